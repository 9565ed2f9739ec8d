"""The combinations of a sweep: `lr=1e-4,3e-4` and `seed=0,1,2` → six recipes, each with its name.

In: a recipe as it was read, and the values to be tried. Out: all combinations as parsed recipes, or one error with
every fault in them, before anything is trained.
"""

from __future__ import annotations

import difflib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wenmo.config import apply_overrides, parse_yaml
from wenmo.errors import RecipeError, say
from wenmo.files import sha256
from wenmo.models import CustomHeads
from wenmo.recipe import Recipe, parse_recipe
from wenmo.tasks import CustomTasks

# What the usual keys are called for short.
SHORT = {
    "seed": "seed", "lr": "train.optimizer.lr", "weight_decay": "train.optimizer.weight_decay",
    "optimizer": "train.optimizer.type", "schedule": "train.schedule.type", "warmup": "train.schedule.warmup",
    "epochs": "train.epochs", "steps": "train.steps", "batch_tokens": "train.batch_tokens",
    "accumulation": "train.accumulation", "clip": "train.clip", "ema": "train.ema", "layer_decay": "train.layer_decay",
    "max_tokens": "data.max_tokens", "label_smoothing": "task.label_smoothing",
}
NAME_CHARACTERS = 40  # of one value in the name of a folder


@dataclass(frozen=True)
class Axis:
    """A key of the recipe and the values that it shall have, one after another."""

    key: str
    values: tuple[Any, ...]

    @property
    def name(self) -> str:
        """The short name of the key, where it has one."""
        return next((short for short, key in SHORT.items() if key == self.key), self.key)


@dataclass(frozen=True)
class Combination:
    """`values`: axis name → value. `name` is that of its folder: the same in whatever order the axes were given."""

    values: Mapping[str, Any]
    recipe: Recipe

    @property
    def name(self) -> str:
        return "_".join(f"{_word(key)}-{_word(value)}" for key, value in sorted(self.values.items()))


def read_axes(sweeps: Sequence[str]) -> list[Axis]:
    """`["lr=1e-4,3e-4", "seed=0,1,2"]` → axes; a value is YAML. RecipeError with all faults."""
    axes, faults = [], []
    for text in sweeps:
        key, sign, values = text.partition("=")
        try:
            if not sign or not key:
                raise RecipeError(say(f"not a key with its values: {text}", f"不是“键=值,值”：{text}"),
                                  mend="--sweep lr=1e-4,3e-4")
            axes.append(Axis(_key(key), _values(values, text)))
        except RecipeError as error:
            faults.append(error)
    keys = [axis.key for axis in axes]
    for key in sorted({key for key in keys if keys.count(key) > 1}):
        faults.append(RecipeError(say(f"`{key}` is swept twice", f"`{key}` 出现了两次"),
                                  mend=say("give all its values in one --sweep", "请把所有值写在同一个 --sweep 中")))
    _refuse(faults, "--sweep")
    return axes


def combinations(given: Mapping[str, Any], overrides: Sequence[str], axes: Sequence[Axis], where: str,
                 tasks: CustomTasks | None = None, heads: CustomHeads | None = None) -> list[Combination]:
    """All of them, the last axis fastest. RecipeError with the faults of every one, each said once."""
    fixed = {override.partition("=")[0] for override in overrides}
    faults = [RecipeError(say(f"`{axis.key}` is both set and swept", f"`{axis.key}` 既被设定又被扫描"),
                          mend=say("give it once", "只给出一次")) for axis in axes if axis.key in fixed]
    base = apply_overrides(given, overrides)
    result = []
    for values in itertools.product(*(axis.values for axis in axes)):
        chosen = [f"{axis.key}={json.dumps(value)}" for axis, value in zip(axes, values, strict=True)]
        try:
            recipe = parse_recipe(apply_overrides(base, chosen), where, tasks, heads)
        except RecipeError as error:
            faults.append(error)
        else:
            named = {axis.name: value for axis, value in zip(axes, values, strict=True)}
            result.append(Combination(named, recipe))
    _refuse(faults, where)
    return result


def _key(text: str) -> str:
    if text in SHORT:
        return SHORT[text]
    if "." in text or text in Recipe.model_fields:
        return text
    near = difflib.get_close_matches(text, SHORT, n=1)
    raise RecipeError(say(f"there is no short name `{text}`", f"没有简称 `{text}`"),
                      mend=say(f"did you mean `{near[0]}`?", f"是否想写 `{near[0]}`？") if near else
                      say(f"write the whole key, as in model.hidden_size, or one of: {', '.join(SHORT)}",
                          f"请写完整的键，例如 model.hidden_size，或以下之一：{', '.join(SHORT)}"))


def _values(text: str, where: str) -> tuple[Any, ...]:
    values = parse_yaml(f"[{text}]", where)
    if not values:
        raise RecipeError(say(f"no value: {where}", f"没有值：{where}"), mend="--sweep lr=1e-4,3e-4")
    twice = [value for place, value in enumerate(values) if value in values[:place]]
    if twice:
        raise RecipeError(say(f"a value stands twice: {where}", f"有值重复：{where}"),
                          mend=say("give each once", "每个值只写一次"))
    return tuple(values)


def _refuse(faults: Sequence[RecipeError], where: str) -> None:
    if faults:
        whats = dict.fromkeys(part for fault in faults for part in fault.what.split("; "))
        raise RecipeError("; ".join(whats), where=where,
                          mend=" ".join(dict.fromkeys(fault.mend for fault in faults if fault.mend)))


def _word(value: Any) -> str:
    """A value as part of a folder's name; one that cannot stand there as it is ends in its hash."""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    if re.fullmatch(r"[\w.%+-]+", text) and len(text) <= NAME_CHARACTERS and text.strip("."):
        return text
    kept = re.sub(r"[^\w.%+-]+", "-", text).strip(".-")[: NAME_CHARACTERS - 9]
    return f"{kept}-{sha256(text)[:8]}"
