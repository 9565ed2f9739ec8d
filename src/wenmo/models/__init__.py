"""Architectures, one file each, and the one table of them.

A model is a body and heads. What all of them offer stands in `LanguageModel`; whatever is above this floor speaks
to that alone and names no architecture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol, Union

import torch
import torch.nn.functional as F
from pydantic import Discriminator
from torch import Tensor, nn

from wenmo.errors import ModelError, say
from wenmo.models.bert import Bert
from wenmo.models.config import ModelConfig, read_config
from wenmo.models.custom_head import CRF_KIND, CustomHeads, check_kinds, classify, put_on
from wenmo.models.gpt2 import GPT2
from wenmo.models.llama import Llama
from wenmo.models.marian import Marian
from wenmo.models.mistral import Mistral
from wenmo.models.qwen2 import Qwen2
from wenmo.models.qwen3 import Qwen3
from wenmo.models.roberta import Roberta
from wenmo.models.t5 import T5
from wenmo.models.task_heads import TASK_HEADS, TaskView, head_name, is_task_head

_ALL: tuple[Any, ...] = (Bert, GPT2, Llama, Marian, Mistral, Qwen2, Qwen3, Roberta, T5)
# model_type in config.json, `type` in a recipe → architecture
ARCHITECTURES: dict[str, Any] = {cls.config_class.model_fields["model_type"].default: cls for cls in _ALL}

# The configuration of any one of them, told apart by its `model_type`: what a recipe says of a new model.
if TYPE_CHECKING:
    AnyConfig = ModelConfig
else:
    AnyConfig = Annotated[Union[tuple(cls.config_class for cls in _ALL)], Discriminator("model_type")]  # noqa: UP007


class LanguageModel(Protocol):
    """What every architecture offers. `training`, `parameters`, `train()` and so on are torch's.

    An encoder–decoder (head `seq2seq_lm`) is called with a target beside the source, and gives the target's hidden
    states; `encode` and `body` are its two halves, joined by a nn.cross.Memory: body(…, cross=memory.cross(counts)).
    What its decoder begins with is `config.decoder_start_token_id`.
    """

    config: ModelConfig
    heads: dict[str, int]
    compute_dtype: torch.dtype
    causal: ClassVar[bool]

    def __call__(self, ids_M: Tensor, lengths: Sequence[int], *target: Any, **inputs: Any) -> Tensor:
        """Whole sequences, end to end → hidden_MD. `target`: target_ids_M and target_lengths of an encoder–decoder."""
        ...

    def encode(self, ids_or_embeddings: Tensor, lengths: Sequence[int]) -> Tensor:
        """Source sequences of an encoder–decoder → memory_MD."""
        ...

    def body(self, ids_or_embeddings: Tensor, positions_M: Tensor, attend: Any, **inputs: Any) -> Tensor: ...
    def lm_features(self, hidden_XD: Tensor) -> Tensor: ...
    def lm_output(self) -> tuple[Tensor, Tensor | None]: ...
    def classify(self, hidden_MD: Tensor, lengths: Sequence[int]) -> Tensor: ...
    def next_sentence(self, hidden_MD: Tensor, lengths: Sequence[int]) -> Tensor: ...
    def tag(self, hidden_MD: Tensor) -> Tensor: ...
    def spans(self, hidden_MD: Tensor) -> Tensor: ...
    def initialise(self, generator: torch.Generator) -> None: ...


def architecture(model_type: str, where: str) -> Any:
    """The class for a `model_type`; ModelError with the list of known ones otherwise."""
    if model_type not in ARCHITECTURES:
        raise ModelError(
            say(f"unknown architecture `{model_type}`", f"未知的模型结构 `{model_type}`"), where=where,
            mend=say("known: ", "可用的有：") + ", ".join(sorted(ARCHITECTURES)))
    return ARCHITECTURES[model_type]


def create(config: ModelConfig, heads: Mapping[str, int], generator: torch.Generator,
           custom: CustomHeads | None = None, *, initialised: bool = True) -> nn.Module:
    """A freshly initialised model with these heads (kind → number of outputs), those in `custom` made by it; a kind of
    the form `NAME:KIND` is the head of one of several tasks. `initialised` may be left out where every parameter is
    about to be read from a file: drawing them takes longer than reading."""
    custom = custom or {}
    check_kinds(custom, heads)
    cls = architecture(config.model_type, "model.type")
    own = {kind: number for kind, number in heads.items() if kind not in {*custom, CRF_KIND} and not is_task_head(kind)}
    check_heads(cls, own)
    model: Any = cls(config, own)
    if initialised:
        model.initialise(generator)
    put_on(model, heads, custom, generator)
    whole: nn.Module = model
    return whole


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


__all__ = ["ARCHITECTURES", "CRF_KIND", "TASK_HEADS", "AnyConfig", "CustomHeads", "LanguageModel", "ModelConfig",
           "TaskView", "architecture", "check_heads", "classify", "create", "head_name", "is_task_head", "logits",
           "read_config"]
