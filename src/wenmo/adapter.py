"""An adapter's folder, in PEFT's layout: `adapter_config.json`, `adapter_model.safetensors`, and no weights of a base.

In: such a folder, of Wenmo's own or of PEFT's. Out: its settings and tensors under the model's own names, and the base
that it belongs to, found again and proven to be the same by its hash. And the way back: the two files.

The base is named in `wenmo.json` by the reference that the recipe gave, by its way from the adapter's folder (a tree of
runs may be moved as a whole), and by the SHA-256 of its weights.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from wenmo.config import parse
from wenmo.errors import ModelError, say
from wenmo.files import sha256, sha256_file
from wenmo.hub.fetch import is_reference
from wenmo.locate import ADAPTER_CONFIG, is_adapter, locate
from wenmo.models.lora import Adapter, LoraSettings
from wenmo.tensors import load_tensors

CONFIG, WEIGHTS = ADAPTER_CONFIG, "adapter_model.safetensors"
CARD = "adapter"  # the part of wenmo.json that is ours
_PREFIX = "base_model.model."
_WEIGHT_FILES = ("model.safetensors", "model-*.safetensors", "quantized.safetensors")
# PEFT's name for what a model is for, and the heads of such a model.
_TASK_TYPES = {"CAUSAL_LM": "causal_lm", "SEQ_2_SEQ_LM": "seq2seq_lm", "SEQ_CLS": "classification",
               "TOKEN_CLS": "tagging", "QUESTION_ANS": "span_qa"}
# Of PEFT's configuration, what would change the arithmetic, and the values under which it does not.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",), "bias": ("none", None), "lora_bias": (False, None), "alpha_pattern": ({}, None),
    "layer_replication": (None,), "megatron_config": (None,), "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []), "alora_invocation_tokens": (None,), "use_qalora": (False, None),
    "arrow_config": (None,), "monteclora_config": (None,), "velora_config": (None,)}


@dataclass(frozen=True)
class Base:
    """The model that an adapter belongs to. `changes`: keys of its configuration that the run changed."""

    reference: str
    sha256: str
    path: Path
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Stored:
    """What an adapter's folder says. `heads` and `sha256` of the base: None where only PEFT has written it."""

    settings: LoraSettings
    tensors: dict[str, Tensor]
    base: Base
    heads: dict[str, int] | None


# Reading ----------------------------------------------------------------------------------------------


def read(folder: Path, config: Mapping[str, Any], card: Mapping[str, Any]) -> Stored:
    """An adapter's folder; `config` and `card` are its adapter_config.json and wenmo.json.

    ModelError for an adapter that is computed in another way, and for a base that is missing or another.
    """
    _refuse_other_kinds(folder, config)
    tensors = {}
    for name, tensor in load_tensors(folder / WEIGHTS).items():
        # PEFT before 0.5 and some of its methods put the adapter's own name into the parameters'.
        own = re.sub(r"\.(lora_A|lora_B)\.default\.weight$", r".\1.weight", name.removeprefix(_PREFIX))
        tensors[own] = tensor.float()
    settings = parse(LoraSettings, {
        "rank": config["r"], "alpha": config["lora_alpha"], "dropout": config.get("lora_dropout") or 0.0,
        "rslora": bool(config.get("use_rslora")), "dora": bool(config.get("use_dora"))}, str(folder / CONFIG))
    own_card = card.get(CARD, {})
    heads = own_card.get("heads")
    if heads is None and config.get("task_type") in _TASK_TYPES:
        kind = _TASK_TYPES[config["task_type"]]
        heads = {kind: _num_outputs(tensors) if kind in ("classification", "tagging") else 0}
    return Stored(settings, tensors, _find_base(folder, config, own_card), heads)


def _refuse_other_kinds(folder: Path, config: Mapping[str, Any]) -> None:
    for key, fine in _REFUSED.items():
        if key in config and config[key] not in fine:
            raise ModelError(
                say(f"an adapter with `{key}: {config[key]}` is not computed here",
                    f"不支持 `{key}: {config[key]}` 的适配器"), where=str(folder / CONFIG),
                mend=say("merge it into its base with PEFT (merge_and_unload), and save that",
                         "请用 PEFT 的 merge_and_unload 合并到基础模型后另存"))


def _num_outputs(tensors: Mapping[str, Tensor]) -> int:
    """Of the head that assigns labels, by the shape of its last matrix."""
    for last in ("classifier.weight", "score.weight", "classifier.out_proj.weight"):
        if last in tensors:
            return int(tensors[last].shape[0])
    return 2


def _find_base(folder: Path, config: Mapping[str, Any], card: Mapping[str, Any]) -> Base:
    """By the way from here, then by its reference; whatever is found must have the hash that was written down."""
    named = card.get("base", {})
    expected = named.get("sha256")
    reference = named.get("reference") or str(config.get("base_model_name_or_path") or "")
    tries = [str(folder / named["path"])] if named.get("path") else []
    tries.append(reference)
    if not named and "/" in reference and not is_reference(reference) and not Path(reference).exists():
        tries.append(f"hf:{reference}" + (f"@{config['revision']}" if config.get("revision") else ""))
    reasons = []
    for each in tries:
        try:
            path = locate(each)
        except ModelError as error:
            reasons.append(f"{each}: {error.what}")
            continue
        found = base_sha256(path)
        if expected in (None, found):
            _refuse_adapter(path, str(folder))
            return Base(each if not named else reference, found, path, dict(named.get("changes", {})))
        reasons.append(f"{each}: " + say(f"another model (SHA-256 {found[:12]}…, not {expected[:12]}…)",
                                         f"是另一个模型（SHA-256 为 {found[:12]}…，应为 {expected[:12]}…）"))
    raise ModelError(
        say("the base of this adapter is not to be found: ", "找不到此适配器的基础模型：") + "; ".join(reasons),
        where=str(folder),
        mend=say(f"put it there again, or write its place as `{CARD}.base.reference` into the adapter's wenmo.json",
                 f"请放回原处，或将其位置写入适配器 wenmo.json 的 `{CARD}.base.reference`"))


def base_of(reference: str, changes: Mapping[str, Any]) -> Base:
    """A model on which an adapter is to be trained. ModelError where it is an adapter itself."""
    path = locate(reference)
    _refuse_adapter(path, reference)
    return Base(reference, base_sha256(path), path, dict(changes))


def _refuse_adapter(path: Path, where: str) -> None:
    if is_adapter(path):
        raise ModelError(
            say(f"an adapter needs a whole model below it, and {path} is an adapter",
                f"适配器需要完整的基础模型，而 {path} 本身是适配器"), where=where,
            mend=say("merge that one first: wenmo merge", "请先合并它：wenmo merge") + f" {path} --out …")


def base_sha256(path: Path) -> str:
    """The identity of a model on the disk: of its weights and its configuration."""
    if path.is_file():
        return sha256_file(path)
    files = sorted({file for pattern in _WEIGHT_FILES for file in path.glob(pattern)})
    return sha256(*(sha256_file(file) for file in [path / "config.json", *files] if file.exists()))


# Writing ----------------------------------------------------------------------------------------------


def card(base: Base, folder: Path, heads: Mapping[str, int]) -> dict[str, Any]:
    """The adapter's part of wenmo.json."""
    named = {"reference": base.reference, "sha256": base.sha256, **({"changes": base.changes} if base.changes else {})}
    if _is_local(base.reference):
        named["path"] = Path(os.path.relpath(base.path.resolve(), folder.resolve())).as_posix()
    return {"base": named, "heads": dict(heads)}


def peft_config(adapter: Adapter, base: Base, heads: Collection[str], adapted: Collection[str],
                whole: Collection[str], transposed: bool) -> dict[str, Any]:
    """adapter_config.json, as PEFT reads it. `adapted` and `whole`: the modules."""
    settings = adapter.settings
    task_types = [name for name, kind in _TASK_TYPES.items() if set(heads) == {kind}]
    reference = str(base.path.resolve()) if _is_local(base.reference) else base.reference
    reference = reference.removeprefix("hf:").partition("@")[0]
    return {
        "peft_type": "LORA", "base_model_name_or_path": reference, "task_type": task_types[0] if task_types else None,
        "r": settings.rank, "lora_alpha": settings.alpha, "lora_dropout": settings.dropout,
        "target_modules": sorted(adapted), "modules_to_save": sorted(whole) or None,
        "use_rslora": settings.rslora, "use_dora": settings.dora, "fan_in_fan_out": transposed, "bias": "none",
        "init_lora_weights": True if settings.init == "kaiming" else settings.init, "inference_mode": True,
    }


def _is_local(reference: str) -> bool:
    return not is_reference(reference) and not reference.startswith("pkg:")


def peft_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {_PREFIX + name: tensor for name, tensor in tensors.items()}


def modules_of(whole: Collection[str], names: Collection[str]) -> list[str]:
    """The largest modules none of whose parameters (of all the `names`) is not in `whole`: as PEFT names heads."""
    modules = set()
    for name in whole:
        parts = name.split(".")
        inside = [place for place in (".".join(parts[:end]) for end in range(1, len(parts)))
                  if all(other in whole for other in names if other.startswith(f"{place}."))]
        modules.add(inside[0] if inside else ".".join(parts[:-1]))
    return sorted(modules)
