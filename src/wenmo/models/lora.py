"""LoRA and DoRA as surgery on a model of any architecture and with any heads.

In: a model and what a recipe says. Out: the same model, frozen but for thin matrices beside the linear maps of its
layers, and for its heads, which are trained whole; and an `Adapter` that knows which these are. The parameters of the
model keep their names, so that rates by layer, groups and checkpoints need to know nothing of it. `merge` undoes it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from wenmo.config import Settings
from wenmo.device import torch_rng
from wenmo.errors import ModelError, RecipeError, say
from wenmo.models.config import Probability
from wenmo.nn.linear import Conv1D
from wenmo.nn.lora import Adapted, Initial, LoraEmbedding, LoraLinear, LowRank
from wenmo.nn.names import layer_of, matches, shown

_log = logging.getLogger(__name__)

# Heads whose output is the vocabulary's: they were pre-trained with the body, and stay as it does.
_VOCABULARY = frozenset({"masked_lm", "causal_lm", "seq2seq_lm"})
_FIRST = {"lora_A.weight": LoraLinear, "lora_embedding_A": LoraEmbedding}  # what tells of a module that it is adapted


class LoraSettings(Settings):
    """`rank` r, `alpha` α and `dropout` as in PEFT. `targets`: names of modules, or patterns with *, from any dot on
    (`q_proj`, `layers.1*.mlp.*`); left out, every linear map inside the layers. An embedding must be named.
    `modules_to_save`: what is trained whole besides; the heads always are, but not the output vocabulary.

    `rslora`: s = α/√r (Kalajdzievski 2023). `dora`: magnitudes apart from directions (Liu et al. 2024). `init` of A:
    uniform as in PEFT, or Normal(0, 1/r).
    """

    rank: int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0, allow_inf_nan=False)
    dropout: Probability = 0.0
    targets: tuple[str, ...] | None = Field(None, min_length=1)
    modules_to_save: tuple[str, ...] = ()
    rslora: bool = False
    dora: bool = False
    init: Initial = "kaiming"

    def how(self, rank: int) -> LowRank:
        scale = self.alpha / (math.sqrt(rank) if self.rslora else rank)
        return LowRank(rank, scale, self.dropout, self.dora)


@dataclass(frozen=True)
class Adapter:
    """What was put on a model: its settings, and the parameters that are trained `whole`, by name."""

    settings: LoraSettings
    whole: frozenset[str]


# Putting on -------------------------------------------------------------------------------------------


def put_on(model: Any, settings: LoraSettings, fresh: Collection[str], seed: int) -> Adapter:
    """Freezes the model and adapts it. `fresh`: parameters that its files did not have, which must be learnt whole.

    What A begins with is a function of the seed and the module's name. RecipeError where `targets` or
    `modules_to_save` find nothing that can be adapted, or where the rank is too large for a matrix.
    """
    whole = _whole(model, settings, fresh)
    targets = _targets(model, settings, whole)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in whole)
    for name in targets:
        module = _adapt(model, name, settings.how(settings.rank))
        module.initialise(settings.init, torch_rng("lora", seed, name))
    return Adapter(settings, whole)


def put_back(model: Any, settings: LoraSettings, tensors: Mapping[str, Tensor], where: str) -> Adapter:
    """Makes the places for the tensors of an adapter that was saved, which are then to be loaded as any others.

    Its ranks are those of the tensors. ModelError for a module that the model does not have.
    """
    for name, kind, rank in _saved(tensors):
        try:
            module = model.get_submodule(name)
        except AttributeError:
            module = None
        fitting = (nn.Linear, Conv1D) if kind is LoraLinear else nn.Embedding
        if not isinstance(module, fitting):
            raise ModelError(
                say(f"the adapter changes `{name}`, which this model does not have",
                    f"适配器改动 `{name}`，而此模型没有"),
                where=where, mend=say("use the model that the adapter was trained on", "请使用训练该适配器的模型"))
        _adapt(model, name, settings.how(rank))
    own = _adapters_names(model)
    whole = frozenset(tensors) - own
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in whole or name in own)
    return Adapter(settings, whole)


def _saved(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, type[nn.Module], int]]:
    """(module, its kind, the rank) of what a saved adapter changes."""
    for name, tensor in tensors.items():
        for first, kind in _FIRST.items():
            if name.endswith(f".{first}"):
                yield name.removesuffix(f".{first}"), kind, tensor.shape[0]


def _adapt(model: nn.Module, name: str, how: LowRank) -> Adapted:
    place, _, last = name.rpartition(".")
    parent = model.get_submodule(place)
    module: Any = parent.get_submodule(last)
    adapted = LoraEmbedding(module, how) if isinstance(module, nn.Embedding) else LoraLinear(module, how)
    setattr(parent, last, adapted.train(module.training))
    return adapted


def _whole(model: Any, settings: LoraSettings, fresh: Collection[str]) -> frozenset[str]:
    names = [name for name, _ in model.named_parameters()]
    whole = (set(names) & set(fresh)) | _head_names(model)
    modules = [name for name, module in model.named_modules() if name and next(module.parameters(), None) is not None]
    for number, pattern in enumerate(settings.modules_to_save):
        found = [module for module in modules if matches(module, pattern)]
        if not found:
            raise RecipeError(
                say(f"no module of the model matches `{pattern}`", f"模型中没有模块匹配 `{pattern}`"),
                where=f"model.lora.modules_to_save.{number}", mend=shown(modules, pattern))
        whole |= {name for name in names if any(name.startswith(f"{module}.") for module in found)}
    return frozenset(whole)


def _head_names(model: Any) -> set[str]:
    """Parameters of the heads, but for those of the output vocabulary; a pooler is part of the head that it serves."""
    with torch.device("meta"):
        kinds = {kind: number for kind, number in model.heads.items() if kind in _VOCABULARY}
        body = {name for name, _ in type(model)(model.config, kinds).named_parameters()}
    served = {"classification", "next_sentence"} & set(model.heads)
    return {name for name, _ in model.named_parameters() if name not in body or (served and ".pooler." in name)}


def _targets(model: Any, settings: LoraSettings, whole: Collection[str]) -> list[str]:
    possible = dict(_possible(model, whole))
    if settings.targets:
        found: set[str] = set()
        for number, pattern in enumerate(settings.targets):
            these = [name for name in possible if matches(name, pattern)]
            if not these:
                raise _nothing_to_adapt(model, pattern, list(possible), whole, f"model.lora.targets.{number}")
            found.update(these)
    else:
        found = {name for name, module in possible.items()
                 if layer_of(name) is not None and not isinstance(module, nn.Embedding)}
    for name in sorted(found):
        narrow = min(possible[name].weight.shape)
        if settings.rank > narrow:
            raise RecipeError(
                say(f"rank {settings.rank} is more than the {narrow} that {name} {_shape(possible[name])} has",
                    f"秩 {settings.rank} 超过 {name} {_shape(possible[name])} 的 {narrow}"),
                where="model.lora.rank", mend=say(f"at most {narrow}; 8 is a good beginning",
                                                  f"至多 {narrow}；可从 8 开始"))
    if settings.dora and any(isinstance(possible[name], nn.Embedding) for name in found):
        raise RecipeError(say("`dora` has no form for embeddings", "`dora` 不适用于嵌入层"), where="model.lora.targets",
                          mend=say("take the embedding out of `targets`, or `dora` away",
                                   "请把嵌入层移出 `targets`，或去掉 `dora`"))
    if settings.dropout and all(isinstance(possible[name], nn.Embedding) for name in found):
        raise RecipeError(say("`dropout` does nothing on embeddings", "`dropout` 对嵌入层不起作用"),
                          where="model.lora.dropout", mend=say("take it out", "请去掉"))
    return sorted(found)


def _possible(model: Any, whole: Collection[str]) -> Iterator[tuple[str, Any]]:
    """The modules that can be adapted: linear maps of the body, and word embeddings that serve as nothing else."""
    output = model.lm_output()[0] if _VOCABULARY & set(model.heads) else None
    for name, module in model.named_modules():
        words = isinstance(module, nn.Embedding) and module.num_embeddings == model.config.vocab_size
        if not (words or isinstance(module, (nn.Linear, Conv1D))):
            continue
        if module.weight is not output and f"{name}.weight" not in whole:
            yield name, module


def _nothing_to_adapt(model: Any, pattern: str, possible: list[str], whole: Collection[str],
                      where: str) -> RecipeError:
    others = [name for name, _ in model.named_modules() if name and matches(name, pattern)]
    if not others:
        what = say(f"no module of the model matches `{pattern}`", f"模型中没有模块匹配 `{pattern}`")
    elif any(f"{name}.weight" in whole for name in others):
        what = say(f"`{others[0]}` is trained whole, and needs no adapter", f"`{others[0]}` 整体训练，无需适配器")
    else:
        kind = type(model.get_submodule(others[0])).__name__
        what = say(f"`{others[0]}` ({kind}) cannot be adapted: it is no linear map of its own",
                   f"`{others[0]}`（{kind}）不能适配：它不是独立的线性映射")
    return RecipeError(what, where=where, mend=shown(possible, pattern))


def _shape(module: Any) -> str:
    return "×".join(map(str, module.weight.shape))


# The parts --------------------------------------------------------------------------------------------


def stored_names(model: nn.Module, adapter: Adapter) -> list[str]:
    """The parameters that an adapter's file holds: its own, and those that are trained whole."""
    own = _adapters_names(model)
    return [name for name in model.state_dict() if name in own or name in adapter.whole]


def _adapters_names(model: nn.Module) -> frozenset[str]:
    return frozenset(f"{name}.{part}" for name, module in model.named_modules() if isinstance(module, Adapted)
                     for part, _ in module.named_parameters() if part not in ("weight", "bias"))


def adapted_names(model: nn.Module) -> list[str]:
    """The modules that are adapted."""
    return [name for name, module in model.named_modules() if isinstance(module, Adapted)]


def stores_transposed(model: nn.Module) -> bool:
    """Whether the matrices that are adapted stand as [in, out]."""
    return any(isinstance(module, LoraLinear) and module.transposed for module in model.modules())


def round_frozen(model: nn.Module, dtype: torch.dtype) -> None:
    """Keeps the frozen matrices in the format in which they multiply: in bf16 half the memory, and no cast a use."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, Conv1D, nn.Embedding, LoraLinear, LoraEmbedding)):
            weight: Any = module.weight
            if not weight.requires_grad:
                weight.data = weight.data.to(dtype)


def restore_frozen(model: nn.Module, exact: Mapping[str, Tensor]) -> None:
    """Puts the exact values of the frozen matrices back, from the base's tensors by name."""
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad and parameter.dtype != exact[name].dtype:
            parameter.data = exact[name].to(parameter.device)


# Taking off -------------------------------------------------------------------------------------------


def merge(model: nn.Module) -> None:
    """Adds every product to its matrix: a plain model, all of whose parameters can be trained. In fp32."""
    for name in adapted_names(model):
        place, _, last = name.rpartition(".")
        module: Any = model.get_submodule(name)
        setattr(model.get_submodule(place), last, module.merged().train(module.training))
    model.requires_grad_(True)
