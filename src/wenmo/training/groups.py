"""Which parameters are trained, and how fast each: patterns on names, and rates that grow from layer to layer.

In: a model, `groups` and `layer_decay`. Out: the frozen parameters frozen, and for every other its share of the rate
and its weight decay. Nothing here knows an architecture: layers are what the names number (`model.layers.3.…`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pydantic import Field, model_validator
from torch import nn

from wenmo.config import Settings
from wenmo.errors import RecipeError, say
from wenmo.nn.names import layer_of, matches, shown

_log = logging.getLogger(__name__)


class GroupSettings(Settings):
    """Parameters whose name `match`es: * stands for anything, and the name may begin at any dot, so that
    `embeddings.*` finds `bert.embeddings.word_embeddings.weight`. The first group that matches a parameter has it.

    `lr_scale` multiplies its rate, `weight_decay` replaces the optimizer's (on matrices), `freeze` leaves it as it is.
    """

    match: str = Field(min_length=1)
    lr_scale: float = Field(1.0, gt=0)
    weight_decay: float | None = Field(None, ge=0)
    freeze: bool = False

    @model_validator(mode="after")
    def _acts(self) -> GroupSettings:
        other = self.lr_scale != 1 or self.weight_decay is not None
        if self.freeze and other:
            raise ValueError(say("with `freeze` the parameters are not trained: take `lr_scale` and `weight_decay` out",
                                 "`freeze` 表示不训练这些参数：请去掉 `lr_scale` 与 `weight_decay`"))
        if not self.freeze and not other:
            raise ValueError(say("the group does nothing: give `lr_scale`, `weight_decay` or `freeze: true`",
                                 "该组不起作用：请给出 `lr_scale`、`weight_decay` 或 `freeze: true`"))
        return self


@dataclass(frozen=True, slots=True)
class Trained:
    """A parameter to be trained. `weight_decay`: None for the optimizer's own."""

    name: str
    parameter: nn.Parameter
    lr_scale: float = 1.0
    weight_decay: float | None = None


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """By name, in the model's own order; a parameter tied to another stands once, under its first name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def divide(model: nn.Module, groups: Sequence[GroupSettings] = (), layer_decay: float | None = None) -> list[Trained]:
    """Freezes what the groups freeze, and gives the other parameters, sorted by name.

    RecipeError for a pattern that finds nothing (with the names that there are), where nothing is left to be trained,
    and for `layer_decay` in a model without layers.
    """
    scales = _layer_scales(model, layer_decay)
    left = {name: Trained(name, parameter, scales[name]) for name, parameter in trainable(model).items()}
    kept: list[Trained] = []
    for number, group in enumerate(groups):
        found = [left.pop(name) for name in list(left) if matches(name, group.match)]
        _refuse_without_effect(group, found, list(left), f"train.groups.{number}")
        if group.freeze:
            for each in found:
                each.parameter.requires_grad_(False)
        else:
            kept += [replace(each, lr_scale=each.lr_scale * group.lr_scale, weight_decay=group.weight_decay)
                     for each in found]
        size = sum(each.parameter.numel() for each in found)
        rate = f" × {group.lr_scale:g}"
        what = say("frozen", "已冻结") if group.freeze else say("rate", "学习率") + rate
        _log.info(say(f"{group.match}: {len(found)} tensors, {size:,} parameters, {what}",
                      f"{group.match}：{len(found)} 个张量，{size:,} 个参数，{what}"))
    kept += left.values()
    if not kept:
        raise RecipeError(say("every parameter is frozen: there is nothing to train",
                              "所有参数都被冻结：没有可训练的内容"),
                          where="train.groups", mend=say("leave some out of the patterns", "请让一部分参数不被匹配"))
    return sorted(kept, key=lambda each: each.name)


def depths(model: nn.Module) -> dict[str, int]:
    """How high each parameter stands: 0 what comes before the layers, 1 … L the layers in the model's order, L + 1 what
    follows them. All 0 in a model without numbered layers."""
    names = [name for name, _ in model.named_parameters()]
    layers = list(dict.fromkeys(layer for name in names if (layer := layer_of(name)) is not None))
    last = max((i for i, name in enumerate(names) if layer_of(name) is not None), default=len(names))
    result, begun = {}, 0
    for i, name in enumerate(names):
        layer = layer_of(name)
        begun = begun if layer is None else layers.index(layer) + 1
        result[name] = len(layers) + 1 if i > last else begun
    return result


def _layer_scales(model: nn.Module, decay: float | None) -> dict[str, float]:
    """decay^(L + 1 − depth): discriminative fine-tuning (Howard and Ruder 2018, §3.2), in the form of ELECTRA's code
    (Clark et al. 2020)."""
    found = depths(model)
    if decay is None:
        return dict.fromkeys(found, 1.0)
    if not any(found.values()):
        raise RecipeError(say("the model has no numbered layers", "该模型没有带编号的层"), where="train.layer_decay",
                          mend=say("take `layer_decay` out", "请去掉 `layer_decay`"))
    top = len({layer for name in found if (layer := layer_of(name)) is not None}) + 1
    return {name: decay ** (top - depth) for name, depth in found.items()}


def _refuse_without_effect(group: GroupSettings, found: Sequence[Trained], left: Sequence[str], where: str) -> None:
    if not found:
        raise RecipeError(
            say(f"no parameter that is still free matches `{group.match}`", f"没有尚未分组的参数匹配 `{group.match}`"),
            where=where, mend=shown(left, group.match))
    if group.weight_decay is not None and group.lr_scale == 1 and all(each.parameter.ndim < 2 for each in found):
        raise RecipeError(
            say(f"`weight_decay` does nothing here: `{group.match}` matches vectors alone, which never decay",
                f"`weight_decay` 在此不起作用：`{group.match}` 只匹配到向量，而向量从不衰减"), where=where,
            mend=say("match matrices, or take the group out", "请匹配矩阵，或去掉该组"))
