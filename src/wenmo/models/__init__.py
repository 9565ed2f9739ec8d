"""Architectures, one file each, and the one table of them.

A model is a body and heads. What all of them offer stands in `LanguageModel`; whatever is above this floor speaks
to that alone and names no architecture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wenmo.errors import ModelError, say
from wenmo.models.bert import Bert
from wenmo.models.config import ModelConfig, read_config
from wenmo.models.llama import Llama
from wenmo.models.t5 import T5

# model_type in config.json → architecture
ARCHITECTURES: dict[str, Any] = {"bert": Bert, "llama": Llama, "t5": T5}


class LanguageModel(Protocol):
    """What every architecture offers. `training`, `parameters`, `train()` and so on are torch's."""

    config: ModelConfig
    heads: dict[str, int]
    compute_dtype: torch.dtype
    causal: ClassVar[bool]

    def __call__(self, ids_M: Tensor, lengths: Sequence[int], **inputs: Any) -> Tensor:
        """Whole sequences, end to end → hidden_MD."""
        ...

    def body(self, ids_or_embeddings: Tensor, positions_M: Tensor, attend: Any, **inputs: Any) -> Tensor: ...
    def lm_features(self, hidden_XD: Tensor) -> Tensor: ...
    def lm_output(self) -> tuple[Tensor, Tensor | None]: ...
    def classify(self, hidden_MD: Tensor, lengths: Sequence[int]) -> Tensor: ...
    def next_sentence(self, hidden_MD: Tensor, lengths: Sequence[int]) -> Tensor: ...
    def initialise(self, generator: torch.Generator) -> None: ...


def architecture(model_type: str, where: str) -> Any:
    """The class for a `model_type`; ModelError with the list of known ones otherwise."""
    if model_type not in ARCHITECTURES:
        raise ModelError(
            say(f"unknown architecture `{model_type}`", f"未知的模型结构 `{model_type}`"), where=where,
            mend=say("known: ", "可用的有：") + ", ".join(sorted(ARCHITECTURES)))
    return ARCHITECTURES[model_type]


def create(config: ModelConfig, heads: Mapping[str, int], generator: torch.Generator) -> nn.Module:
    """A freshly initialised model with these heads (kind → number of outputs)."""
    cls = architecture(config.model_type, "model.type")
    check_heads(cls, heads)
    model: nn.Module = cls(config, heads)
    model.initialise(generator)  # type: ignore[operator]
    return model


def check_heads(cls: Any, heads: Mapping[str, int]) -> None:
    """ModelError if the architecture has no class with exactly these heads."""
    if frozenset(heads) not in cls.classes.values():
        possible = sorted({" + ".join(sorted(kinds)) for kinds in cls.classes.values() if kinds})
        raise ModelError(
            say(f"{cls.__name__} has no head for {', '.join(sorted(heads))}",
                f"{cls.__name__} 没有 {', '.join(sorted(heads))} 对应的输出头"), where="model.type",
            mend=say("its heads: ", "可用的输出头：") + ", ".join(possible))


def logits(model: LanguageModel, hidden_XD: Tensor) -> Tensor:
    """Scores of the vocabulary at some positions, [X, V], in fp32."""
    weight_VD, bias_V = model.lm_output()
    features_XD = model.lm_features(hidden_XD)
    bias = None if bias_V is None else bias_V.to(features_XD.dtype)
    return F.linear(features_XD, weight_VD.to(features_XD.dtype), bias).float()


__all__ = ["ARCHITECTURES", "LanguageModel", "ModelConfig", "architecture", "check_heads", "create", "logits",
           "read_config"]
