"""BERT (Devlin et al. 2019): a bidirectional encoder over learned positions, post-norm.

Names and configuration keys are Hugging Face's. Heads: `masked_lm` (cls.predictions), `next_sentence`
(cls.seq_relationship), `classification` (pooler → dropout → classifier), `tagging` (dropout → classifier, at each
token), `span_qa` (qa_outputs, at each token).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from wenmo.models.config import ModelConfig, PositiveFloat, PositiveInt, Probability, check_multiple
from wenmo.models.encoder_parts import EncoderParts, parts_of_encoder
from wenmo.nn.activation import ACTIVATIONS, ActivationName
from wenmo.nn.attend import Attend, Packed
from wenmo.nn.block import Block
from wenmo.nn.dropout import Dropout
from wenmo.nn.initialisation import initialise_normal
from wenmo.nn.linear import Linear, project
from wenmo.nn.norm import LayerNorm
from wenmo.nn.padding import positions_of, starts_of
from wenmo.nn.taps import Taps, tap


class EncoderConfig(ModelConfig):
    """What BERT and its relatives (roberta.py) have in common."""

    hidden_size: PositiveInt = 768
    num_hidden_layers: PositiveInt = 12
    num_attention_heads: PositiveInt = 12
    intermediate_size: PositiveInt = 3072
    hidden_act: ActivationName = "gelu"
    hidden_dropout_prob: Probability = 0.1
    attention_probs_dropout_prob: Probability = 0.1
    classifier_dropout: Probability | None = None
    max_position_embeddings: PositiveInt = 512
    type_vocab_size: PositiveInt = 2
    initializer_range: PositiveFloat = 0.02
    layer_norm_eps: PositiveFloat = 1e-12
    position_embedding_type: Literal["absolute"] | None = "absolute"
    is_decoder: Literal[False] = False
    add_cross_attention: Literal[False] = False
    tie_word_embeddings: Literal[True] = True

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        check_multiple(self.hidden_size, self.num_attention_heads, "hidden_size", "num_attention_heads")
        return self

    @property
    def width(self) -> int:
        return self.hidden_size

    @property
    def head_dropout(self) -> float:
        return self.hidden_dropout_prob if self.classifier_dropout is None else self.classifier_dropout


class BertConfig(EncoderConfig):
    model_type: Literal["bert"] = "bert"

    @property
    def max_tokens(self) -> int:
        return self.max_position_embeddings


class _Embeddings(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)


class _SelfAttention(nn.Module):
    together: ClassVar = (("query", "key", "value"),)  # maps of the same input

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.query = Linear(config.hidden_size, config.hidden_size)
        self.key = Linear(config.hidden_size, config.hidden_size)
        self.value = Linear(config.hidden_size, config.hidden_size)


class _AddAndNorm(nn.Module):
    """dense → dropout → + residual → norm: the end of both halves of a layer."""

    def __init__(self, width_in: int, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = Linear(width_in, config.hidden_size)
        self.LayerNorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, residual_MD: Tensor) -> Tensor:
        out: Tensor = self.LayerNorm(self.dropout(self.dense(x)) + residual_MD)
        return out


class _Layer(Block):
    def __init__(self, index: int, config: EncoderConfig) -> None:
        super().__init__()
        self.index, self.num_heads = index, config.num_attention_heads
        self.activation = ACTIVATIONS[config.hidden_act]
        self.attention = nn.ModuleDict(
            {"self": _SelfAttention(config), "output": _AddAndNorm(config.hidden_size, config)})
        self.intermediate = nn.ModuleDict({"dense": Linear(config.hidden_size, config.intermediate_size)})
        self.output = _AddAndNorm(config.intermediate_size, config)

    def forward(self, hidden_MD: Tensor, attend: Attend) -> Tensor:
        heads = (hidden_MD.shape[0], self.num_heads, -1)
        own: Any = self.attention["self"]
        q_MD, k_MD, v_MD = project(hidden_MD, (own.query, own.key, own.value))
        attended_MNH = attend(self.index, q_MD.reshape(heads), k_MD.reshape(heads), v_MD.reshape(heads))
        hidden_MD = self.attention["output"](attended_MNH.flatten(1), hidden_MD)
        out: Tensor = self.output(self.activation(self.intermediate["dense"](hidden_MD)), hidden_MD)
        return out


class _Transform(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = LayerNorm(config.hidden_size, config.layer_norm_eps)


class _Predictions(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.transform = _Transform(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))


class Encoder(nn.Module):
    """Everything below the heads, under Hugging Face's prefix `bert.` (or a relative's own)."""

    def __init__(self, config: EncoderConfig, *, with_pooler: bool) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        self.encoder = nn.ModuleDict(
            {"layer": nn.ModuleList(_Layer(i, config) for i in range(config.num_hidden_layers))})
        if with_pooler:
            self.pooler = nn.ModuleDict({"dense": Linear(config.hidden_size, config.hidden_size)})

    def forward(self, ids_or_embeddings: Tensor, positions_M: Tensor, attend: Attend, *, dtype: torch.dtype,
                segments_M: Tensor | None, taps: Taps | None) -> Tensor:
        """ids_M, or word embeddings [M, D] in their place → hidden_MD after the last layer, in `dtype`."""
        embeddings = self.embeddings
        words_MD = (ids_or_embeddings if ids_or_embeddings.is_floating_point()
                    else embeddings.word_embeddings(ids_or_embeddings))
        words_MD = tap(taps, "embeddings", words_MD)
        segments_MD = (embeddings.token_type_embeddings.weight[0] if segments_M is None
                       else embeddings.token_type_embeddings(segments_M))
        summed_MD = words_MD + embeddings.position_embeddings(positions_M) + segments_MD
        hidden_MD: Tensor = embeddings.dropout(embeddings.LayerNorm(summed_MD).to(dtype))
        layers: Any = self.encoder["layer"]
        for index, layer in enumerate(layers):
            hidden_MD = tap(taps, f"layers.{index}", layer(hidden_MD, attend))
        return hidden_MD


class Bert(nn.Module):
    """heads: head kind → number of outputs (0 where the kind fixes it)."""

    causal: ClassVar[bool] = False
    body_prefix: ClassVar[str] = "bert."
    config_class: ClassVar = BertConfig
    # Hugging Face's class for a set of heads, and so what `architectures` in config.json says.
    classes: ClassVar[dict[str, frozenset[str]]] = {
        "BertModel": frozenset(),
        "BertForMaskedLM": frozenset({"masked_lm"}),
        "BertForPreTraining": frozenset({"masked_lm", "next_sentence"}),
        "BertForNextSentencePrediction": frozenset({"next_sentence"}),
        "BertForSequenceClassification": frozenset({"classification"}),
        "BertForTokenClassification": frozenset({"tagging"}),
        "BertForQuestionAnswering": frozenset({"span_qa"}),
    }
    # A saved key that repeats another (tied weights), or that older versions stored beside the weights.
    repeated: ClassVar[tuple[str, ...]] = (
        "cls.predictions.decoder.weight", "cls.predictions.decoder.bias", "bert.embeddings.position_ids")
    renamed: ClassVar[tuple[tuple[str, str], ...]] = (("LayerNorm.gamma", "LayerNorm.weight"),
                                                      ("LayerNorm.beta", "LayerNorm.bias"))

    def __init__(self, config: BertConfig, heads: Mapping[str, int]) -> None:
        super().__init__()
        self.config, self.heads = config, dict(heads)
        self.compute_dtype = torch.float32
        self.bert = Encoder(config, with_pooler=not heads or bool({"classification", "next_sentence"} & set(heads)))
        if {"masked_lm", "next_sentence"} & set(heads):
            self.cls = nn.Module()
        if "masked_lm" in heads:
            self.cls.predictions = _Predictions(config)
        if "next_sentence" in heads:
            self.cls.seq_relationship = Linear(config.hidden_size, 2)
        if "classification" in heads:
            self.dropout = Dropout(config.head_dropout)
            self.classifier = Linear(config.hidden_size, heads["classification"])
        if "tagging" in heads:
            self.dropout = Dropout(config.head_dropout)
            self.classifier = Linear(config.hidden_size, heads["tagging"])
        if "span_qa" in heads:
            self.qa_outputs = Linear(config.hidden_size, 2)

    def initialise(self, generator: torch.Generator) -> None:
        initialise_normal(self, self.config.initializer_range, generator)

    def forward(self, ids_M: Tensor, lengths: Sequence[int], *, segments_M: Tensor | None = None,
                taps: Taps | None = None) -> Tensor:
        """ids of whole sequences, end to end → hidden_MD."""
        rate = self.config.attention_probs_dropout_prob if self.training else 0.0
        attend = Packed(lengths, causal=False, dropout=rate, device=ids_M.device)
        return self.body(ids_M, positions_of(lengths, ids_M.device), attend, segments_M=segments_M, taps=taps)

    def body(self, ids_or_embeddings: Tensor, positions_M: Tensor, attend: Attend, *,
             segments_M: Tensor | None = None, taps: Taps | None = None) -> Tensor:
        """ids_M, or word embeddings [M, D] in their place → hidden_MD after the last layer."""
        out: Tensor = self.bert(ids_or_embeddings, positions_M, attend, dtype=self.compute_dtype, segments_M=segments_M,
                                taps=taps)
        return out

    def encoder_parts(self) -> EncoderParts:
        return parts_of_encoder(self.bert, self.config)

    @property
    def predictions(self) -> _Predictions:
        heads: Any = self.cls
        found: _Predictions = heads.predictions
        return found

    def lm_features(self, hidden_XD: Tensor) -> Tensor:
        """What the output vocabulary is compared with, [X, D]."""
        transform: Any = self.predictions.transform
        out: Tensor = transform.LayerNorm(ACTIVATIONS[self.config.hidden_act](transform.dense(hidden_XD)))
        return out

    def lm_output(self) -> tuple[Tensor, Tensor | None]:
        """The output vocabulary's weight [V, D] and bias [V]."""
        return self.bert.embeddings.word_embeddings.weight, self.predictions.bias

    def pooled(self, hidden_MD: Tensor, lengths: Sequence[int]) -> Tensor:
        """tanh(W h_[CLS]) of each sequence, [B, D]."""
        first_BD = hidden_MD.index_select(0, starts_of(lengths, hidden_MD.device))
        return torch.tanh(self.bert.pooler["dense"](first_BD))

    def classify(self, hidden_MD: Tensor, lengths: Sequence[int]) -> Tensor:
        """Scores of the classes, [B, C]."""
        out: Tensor = self.classifier(self.dropout(self.pooled(hidden_MD, lengths)))
        return out

    def tag(self, hidden_MD: Tensor) -> Tensor:
        """Scores of the tags of each token, [M, C]."""
        out: Tensor = self.classifier(self.dropout(hidden_MD))
        return out

    def spans(self, hidden_MD: Tensor) -> Tensor:
        """Scores of "the answer begins here" and "it ends here" of each token, [M, 2]."""
        out: Tensor = self.qa_outputs(hidden_MD)
        return out

    def next_sentence(self, hidden_MD: Tensor, lengths: Sequence[int]) -> Tensor:
        """Scores of "B follows A" (0) and "B comes from elsewhere" (1), [B, 2]."""
        heads: Any = self.cls
        out: Tensor = heads.seq_relationship(self.pooled(hidden_MD, lengths))
        return out
