"""RoBERTa (Liu et al. 2019): BERT's encoder without segments and next sentences.

The layers are bert.py's; what differs stands here: positions are counted from the one after the padding's id. Names and
configuration keys are Hugging Face's. Heads: `masked_lm` (lm_head); `classification` (from <s>: dense, tanh, out_proj);
`tagging` (dropout → classifier, at each token); `span_qa` (qa_outputs, at each token).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from wenmo.errors import say
from wenmo.models.bert import Encoder, EncoderConfig
from wenmo.models.config import PositiveInt, TokenId
from wenmo.models.encoder_parts import EncoderParts, parts_of_encoder
from wenmo.nn.attend import Attend, Packed
from wenmo.nn.dropout import Dropout
from wenmo.nn.initialisation import initialise_normal
from wenmo.nn.linear import Linear
from wenmo.nn.norm import LayerNorm
from wenmo.nn.padding import positions_of, starts_of
from wenmo.nn.taps import Taps


class RobertaConfig(EncoderConfig):
    """`pad_token_id` is arithmetic here: the first position comes after it. A recipe may leave it to the tokenizer."""

    model_type: Literal["roberta"] = "roberta"
    pad_token_id: TokenId | None = None
    type_vocab_size: PositiveInt = 1

    @classmethod
    def one_spelling(cls, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """Where a file is silent, the values are those that transformers takes."""
        return {"pad_token_id": 1, "type_vocab_size": 2, **data}

    @model_validator(mode="after")
    def _positions_are_left(self) -> Self:
        if self.max_tokens < 1:
            raise ValueError(say(f"max_position_embeddings must be more than pad_token_id + 1 ({self.first_position})",
                                 f"max_position_embeddings 须大于 pad_token_id + 1（{self.first_position}）"))
        return self

    @property
    def first_position(self) -> int:
        return (self.pad_token_id or 0) + 1

    @property
    def max_tokens(self) -> int:
        return self.max_position_embeddings - self.first_position


class _LMHead(nn.Module):
    def __init__(self, config: RobertaConfig) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size)
        self.layer_norm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))


class _Classifier(nn.Module):
    def __init__(self, config: RobertaConfig, num_classes: int) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size)
        self.dropout = Dropout(config.head_dropout)
        self.out_proj = Linear(config.hidden_size, num_classes)

    def forward(self, first_BD: Tensor) -> Tensor:
        pooled_BD = torch.tanh(self.dense(self.dropout(first_BD)))
        out: Tensor = self.out_proj(self.dropout(pooled_BD))
        return out


class Roberta(nn.Module):
    """heads: head kind → number of outputs (0 where the kind fixes it)."""

    causal: ClassVar[bool] = False
    body_prefix: ClassVar[str] = "roberta."
    config_class: ClassVar = RobertaConfig
    classes: ClassVar[dict[str, frozenset[str]]] = {
        "RobertaModel": frozenset(),
        "RobertaForMaskedLM": frozenset({"masked_lm"}),
        "RobertaForSequenceClassification": frozenset({"classification"}),
        "RobertaForTokenClassification": frozenset({"tagging"}),
        "RobertaForQuestionAnswering": frozenset({"span_qa"}),
    }
    repeated: ClassVar[tuple[str, ...]] = (
        "lm_head.decoder.weight", "lm_head.decoder.bias", "roberta.embeddings.position_ids")
    renamed: ClassVar[tuple[tuple[str, str], ...]] = ()

    def __init__(self, config: RobertaConfig, heads: Mapping[str, int]) -> None:
        super().__init__()
        self.config, self.heads = config, dict(heads)
        self.compute_dtype = torch.float32
        self.roberta = Encoder(config, with_pooler=not heads)
        if "masked_lm" in heads:
            self.lm_head = _LMHead(config)
        if "classification" in heads:
            self.classifier: nn.Module = _Classifier(config, heads["classification"])
        if "tagging" in heads:
            self.dropout = Dropout(config.head_dropout)
            self.classifier = Linear(config.hidden_size, heads["tagging"])
        if "span_qa" in heads:
            self.qa_outputs = Linear(config.hidden_size, 2)

    def initialise(self, generator: torch.Generator) -> None:
        initialise_normal(self, self.config.initializer_range, generator)

    def forward(self, ids_M: Tensor, lengths: Sequence[int], *, segments_M: Tensor | None = None,
                taps: Taps | None = None) -> Tensor:
        """ids of whole sequences, end to end → hidden_MD. Segments count only where the model has several kinds."""
        rate = self.config.attention_probs_dropout_prob if self.training else 0.0
        attend = Packed(lengths, causal=False, dropout=rate, device=ids_M.device)
        return self.body(ids_M, positions_of(lengths, ids_M.device), attend, segments_M=segments_M, taps=taps)

    def body(self, ids_or_embeddings: Tensor, positions_M: Tensor, attend: Attend, *,
             segments_M: Tensor | None = None, taps: Taps | None = None) -> Tensor:
        """ids_M, or word embeddings [M, D] in their place → hidden_MD after the last layer. Positions begin at 0."""
        out: Tensor = self.roberta(
            ids_or_embeddings, positions_M + self.config.first_position, attend, dtype=self.compute_dtype,
            segments_M=segments_M if self.config.type_vocab_size > 1 else None, taps=taps)
        return out

    def encoder_parts(self) -> EncoderParts:
        return parts_of_encoder(self.roberta, self.config, self.config.first_position)

    def lm_features(self, hidden_XD: Tensor) -> Tensor:
        """What the output vocabulary is compared with, [X, D]; the activation is always GELU here."""
        out: Tensor = self.lm_head.layer_norm(F.gelu(self.lm_head.dense(hidden_XD)))
        return out

    def lm_output(self) -> tuple[Tensor, Tensor | None]:
        """The output vocabulary's weight [V, D] and bias [V]."""
        return self.roberta.embeddings.word_embeddings.weight, self.lm_head.bias

    def classify(self, hidden_MD: Tensor, lengths: Sequence[int]) -> Tensor:
        """Scores of the classes from each sequence's first token, [B, C]."""
        out: Tensor = self.classifier(hidden_MD.index_select(0, starts_of(lengths, hidden_MD.device)))
        return out

    def tag(self, hidden_MD: Tensor) -> Tensor:
        """Scores of the tags of each token, [M, C]."""
        out: Tensor = self.classifier(self.dropout(hidden_MD))
        return out

    def spans(self, hidden_MD: Tensor) -> Tensor:
        """Scores of "the answer begins here" and "it ends here" of each token, [M, 2]."""
        out: Tensor = self.qa_outputs(hidden_MD)
        return out
