"""Marian (Junczys-Dowmunt et al. 2018): the original Transformer (Vaswani et al. 2017), as translation models have it.

An encoder–decoder, post-norm, with sinusoidal positions and one matrix for both vocabularies and the output. Names and
configuration keys are Hugging Face's. Head: `seq2seq_lm`, with the bias `final_logits_bias`, which is not learned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from wenmo.errors import say
from wenmo.models.config import ModelConfig, PositiveFloat, PositiveInt, Probability, TokenId, VocabSize, check_multiple
from wenmo.models.encoder_decoder import EncoderDecoder
from wenmo.nn.activation import ACTIVATIONS, ActivationName
from wenmo.nn.attend import Attend, Packed
from wenmo.nn.block import Block
from wenmo.nn.cross import Cross
from wenmo.nn.dropout import Dropout
from wenmo.nn.initialisation import initialise_normal
from wenmo.nn.linear import Linear
from wenmo.nn.norm import LayerNorm
from wenmo.nn.padding import positions_of
from wenmo.nn.sinusoid import sinusoids
from wenmo.nn.taps import Taps, tap

_EPS = 1e-5  # of the norms; no key sets it


class MarianConfig(ModelConfig):
    model_type: Literal["marian"] = "marian"
    d_model: PositiveInt = 1024
    encoder_layers: PositiveInt = 12
    encoder_attention_heads: PositiveInt = 16
    encoder_ffn_dim: PositiveInt = 4096
    decoder_layers: PositiveInt = 12
    decoder_attention_heads: PositiveInt = 16
    decoder_ffn_dim: PositiveInt = 4096
    max_position_embeddings: PositiveInt = 1024
    activation_function: ActivationName = "gelu"
    dropout: Probability = 0.1
    attention_dropout: Probability = 0.0
    activation_dropout: Probability = 0.0
    scale_embedding: bool = False
    init_std: PositiveFloat = 0.02
    pad_token_id: TokenId | None = None
    decoder_start_token_id: TokenId | None = None
    decoder_vocab_size: VocabSize | None = None
    # What other models of this family have, and this file does not compute.
    encoder_layerdrop: float = Field(0.0, ge=0, le=0)
    decoder_layerdrop: float = Field(0.0, ge=0, le=0)
    share_encoder_decoder_embeddings: Literal[True] = True
    tie_word_embeddings: Literal[True] = True
    static_position_embeddings: Literal[True] = True
    normalize_before: Literal[False] = False
    normalize_embedding: Literal[False] = False
    add_final_layer_norm: Literal[False] = False
    is_encoder_decoder: Literal[True] = True

    @classmethod
    def one_spelling(cls, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """Where a file does not say what the decoder begins with, it is the padding."""
        start = data.get("decoder_start_token_id")
        return {**data, "decoder_start_token_id": data.get("pad_token_id") if start is None else start}

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        check_multiple(self.d_model, 2, "d_model", "2")  # sines and cosines
        for heads in ("encoder_attention_heads", "decoder_attention_heads"):
            check_multiple(self.d_model, getattr(self, heads), "d_model", heads)
        if self.decoder_vocab_size not in (None, self.vocab_size):
            raise ValueError(say("decoder_vocab_size must be vocab_size: two vocabularies are not supported",
                                 "decoder_vocab_size 须等于 vocab_size：不支持两个词表"))
        if self.vocab_size and max(self.pad_token_id or 0, self.decoder_start_token_id or 0) >= self.vocab_size:
            raise ValueError(say("pad_token_id and decoder_start_token_id must be below vocab_size",
                                 "pad_token_id 与 decoder_start_token_id 须小于 vocab_size"))
        return self

    @property
    def width(self) -> int:
        return self.d_model

    @property
    def max_tokens(self) -> int:
        """Of the source, and of the target."""
        return self.max_position_embeddings


class _Attention(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.head_width = width // num_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (Linear(width, width) for _ in range(4))

    def queries(self, x_MD: Tensor) -> Tensor:
        return self._heads(self.q_proj(x_MD))

    def keys_and_values(self, x_MD: Tensor) -> tuple[Tensor, Tensor]:
        return self._heads(self.k_proj(x_MD)), self._heads(self.v_proj(x_MD))

    def _heads(self, x_MD: Tensor) -> Tensor:
        return x_MD.view(x_MD.shape[0], -1, self.head_width)


class _Layer(Block):
    """Each part is norm(x + dropout(part(x))): attention, attention to the source (decoder alone), feed-forward."""

    def __init__(self, index: int, config: MarianConfig, decoder: bool) -> None:
        super().__init__()
        self.index = index
        D, inner = config.d_model, config.decoder_ffn_dim if decoder else config.encoder_ffn_dim
        num_heads = config.decoder_attention_heads if decoder else config.encoder_attention_heads
        self.self_attn, self.self_attn_layer_norm = _Attention(D, num_heads), LayerNorm(D, _EPS)
        if decoder:
            self.encoder_attn, self.encoder_attn_layer_norm = _Attention(D, num_heads), LayerNorm(D, _EPS)
        self.fc1, self.fc2 = Linear(D, inner), Linear(inner, D)
        self.final_layer_norm = LayerNorm(D, _EPS)
        self.activation = ACTIVATIONS[config.activation_function]
        self.dropout, self.activation_dropout = Dropout(config.dropout), Dropout(config.activation_dropout)

    def forward(self, hidden_MD: Tensor, attend: Attend, cross: Cross | None) -> Tensor:
        project = self.self_attn
        attended_MNH = attend(self.index, project.queries(hidden_MD), *project.keys_and_values(hidden_MD))
        out_MD = project.out_proj(attended_MNH.flatten(1))
        hidden_MD = self.self_attn_layer_norm(hidden_MD + self.dropout(out_MD))
        if cross is not None:
            project = self.encoder_attn
            attended_MNH = cross(self.index, project.queries(hidden_MD), project.keys_and_values)
            out_MD = project.out_proj(attended_MNH.flatten(1))
            hidden_MD = self.encoder_attn_layer_norm(hidden_MD + self.dropout(out_MD))
        out_MD = self.fc2(self.activation_dropout(self.activation(self.fc1(hidden_MD))))
        out: Tensor = self.final_layer_norm(hidden_MD + self.dropout(out_MD))
        return out


class _Body(nn.Module):
    """Everything below the head, under Hugging Face's prefix `model.`"""

    def __init__(self, config: MarianConfig) -> None:
        super().__init__()
        # The padding's vector gets no gradient as an input, though the decoder begins with it; as an output it does.
        self.shared = nn.Embedding(config.vocab_size, config.d_model, padding_idx=config.pad_token_id)
        self.encoder, self.decoder = (
            nn.ModuleDict({"layers": nn.ModuleList(_Layer(i, config, decoder) for i in range(depth))})
            for depth, decoder in ((config.encoder_layers, False), (config.decoder_layers, True)))


class Marian(EncoderDecoder):
    """heads: head kind → number of outputs (0 where the kind fixes it)."""

    body_prefix: ClassVar[str] = "model."
    config_class: ClassVar = MarianConfig
    classes: ClassVar[dict[str, frozenset[str]]] = {
        "MarianModel": frozenset(),
        "MarianMTModel": frozenset({"seq2seq_lm"}),
    }
    # Positions are computed; files may hold them all the same.
    repeated: ClassVar[tuple[str, ...]] = (
        "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "encoder.embed_positions.weight",
        "decoder.embed_positions.weight")
    renamed: ClassVar[tuple[tuple[str, str], ...]] = ()

    def __init__(self, config: MarianConfig, heads: Mapping[str, int]) -> None:
        super().__init__()
        self.config, self.heads = config, dict(heads)
        self.compute_dtype = torch.float32
        self.model = _Body(config)
        self.dropout = Dropout(config.dropout)
        self.scale = math.sqrt(config.d_model) if config.scale_embedding else 1.0
        positions_PD = sinusoids(config.max_position_embeddings, config.d_model)
        self.register_buffer("positions_PD", positions_PD, persistent=False)
        if "seq2seq_lm" in heads:
            self.register_buffer("final_logits_bias", torch.zeros(1, config.vocab_size))

    def initialise(self, generator: torch.Generator) -> None:
        initialise_normal(self, self.config.init_std, generator)
        if self.config.pad_token_id is not None:
            with torch.no_grad():
                self.model.shared.weight[self.config.pad_token_id] = 0.0

    @property
    def attention_dropout(self) -> float:
        return self.config.attention_dropout if self.training else 0.0

    def encode(self, ids_or_embeddings: Tensor, lengths: Sequence[int], *, taps: Taps | None = None) -> Tensor:
        """Source tokens → memory_MD."""
        device = ids_or_embeddings.device
        attend = Packed(lengths, causal=False, dropout=self.attention_dropout, device=device)
        return self._run("encoder", ids_or_embeddings, positions_of(lengths, device), attend, None, taps)

    def body(self, ids_or_embeddings: Tensor, positions_M: Tensor, attend: Attend, *, cross: Cross,
             taps: Taps | None = None) -> Tensor:
        """Target tokens → hidden_MD."""
        return self._run("decoder", ids_or_embeddings, positions_M, attend, cross, taps)

    def _run(self, stack: str, ids_or_embeddings: Tensor, positions_M: Tensor, attend: Attend, cross: Cross | None,
             taps: Taps | None) -> Tensor:
        words_MD = (ids_or_embeddings if ids_or_embeddings.is_floating_point()
                    else self.model.shared(ids_or_embeddings))
        words_MD = tap(taps, f"{stack}.embeddings", words_MD)
        positions_PD: Any = self.positions_PD
        placed_MD = words_MD * self.scale + positions_PD.index_select(0, positions_M)
        hidden_MD: Tensor = self.dropout(placed_MD.to(self.compute_dtype))
        layers: Any = getattr(self.model, stack)["layers"]
        for index, layer in enumerate(layers):
            hidden_MD = tap(taps, f"{stack}.layers.{index}", layer(hidden_MD, attend, cross))
        return hidden_MD

    def lm_features(self, hidden_XD: Tensor) -> Tensor:
        """What the output vocabulary is compared with, [X, D]."""
        return hidden_XD

    def lm_output(self) -> tuple[Tensor, Tensor | None]:
        """The output vocabulary's weight [V, D] and bias [V]."""
        bias: Any = self.final_logits_bias
        return self.model.shared.weight, bias[0]
