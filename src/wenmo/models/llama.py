"""Llama (Touvron et al. 2023): a causal decoder, pre-norm, rotary positions, grouped queries, SwiGLU.

Names and configuration keys are Hugging Face's. Heads: `causal_lm` (lm_head, tied or not), `classification` (score of
the last token), `tagging` (dropout → score, at each token). Most decoders since have this shape: qwen2.py, qwen3.py and
mistral.py say only what they do otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from wenmo.errors import say
from wenmo.models.config import ModelConfig, PositiveFloat, PositiveInt, Probability, check_multiple
from wenmo.models.decoder_parts import DecoderParts, LayerParts
from wenmo.nn.activation import ACTIVATIONS, ActivationName, gated
from wenmo.nn.attend import Attend, Packed
from wenmo.nn.block import Block
from wenmo.nn.dropout import Dropout
from wenmo.nn.linear import Linear, project
from wenmo.nn.norm import RMSNorm
from wenmo.nn.padding import positions_of
from wenmo.nn.rope import Rope, RopeScaling, check_scaling, rotate
from wenmo.nn.taps import Taps, tap


class RotaryConfig(ModelConfig):
    """The keys that Llama shares with the models of its shape, and what the layers ask."""

    hidden_size: PositiveInt = 4096
    intermediate_size: PositiveInt = 11008
    num_hidden_layers: PositiveInt = 32
    num_attention_heads: PositiveInt = 32
    num_key_value_heads: PositiveInt | None = None
    head_dim: PositiveInt | None = None
    hidden_act: ActivationName = "silu"
    max_position_embeddings: PositiveInt = 2048
    initializer_range: PositiveFloat = 0.02
    rms_norm_eps: PositiveFloat = 1e-6
    rope_theta: PositiveFloat = 10000.0
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = False
    attention_dropout: Probability = 0.0
    # Of the head that tags tokens; where a file is silent, transformers takes 0.1.
    classifier_dropout: Probability | None = Field(None, exclude_if=lambda value: value is None)

    @classmethod
    def one_spelling(cls, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """transformers 5 writes `rope_parameters`, 4 `rope_theta` and `rope_scaling` (with `type` or `rope_type`)."""
        data = dict(data)
        parameters = dict(data.pop("rope_parameters", None) or {})
        if "rope_theta" in parameters:
            data["rope_theta"] = parameters.pop("rope_theta")
        scaling = dict(data.get("rope_scaling") or parameters)
        if "type" in scaling:
            scaling.setdefault("rope_type", scaling.pop("type"))
        if scaling.get("partial_rotary_factor") == 1.0:
            del scaling["partial_rotary_factor"]
        plain = scaling.get("rope_type", "default") == "default" and not set(scaling) - {"rope_type"}
        data["rope_scaling"] = None if plain else scaling  # a default with more to it is refused, not ignored
        return data

    @model_validator(mode="after")
    def _sizes_fit(self) -> RotaryConfig:
        if self.head_dim is None:
            check_multiple(self.hidden_size, self.num_attention_heads, "hidden_size", "num_attention_heads")
        check_multiple(self.num_attention_heads, self.key_heads, "num_attention_heads", "num_key_value_heads")
        if self.head_width % 2:
            raise ValueError(say(f"a head is {self.head_width} wide: rotary positions turn pairs, it must be even",
                                 f"每个头的宽度为 {self.head_width}：旋转位置成对转动，宽度须为偶数"))
        check_scaling(self.rope_scaling, self.head_width, self.rope_theta)
        return self

    @property
    def head_width(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def key_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def width(self) -> int:
        return self.hidden_size

    @property
    def max_tokens(self) -> int:
        return self.max_position_embeddings

    # Which maps add a bias, and how far a layer looks back (None: to the beginning): each model has its own keys.

    @property
    def query_bias(self) -> bool:
        """Of queries, keys and values."""
        return False

    @property
    def output_bias(self) -> bool:
        return False

    @property
    def feed_forward_bias(self) -> bool:
        return False

    def window(self, layer: int) -> int | None:
        return None


class LlamaConfig(RotaryConfig):
    model_type: Literal["llama"] = "llama"
    attention_bias: bool = False
    mlp_bias: bool = False

    @property
    def query_bias(self) -> bool:
        return self.attention_bias

    @property
    def output_bias(self) -> bool:
        return self.attention_bias

    @property
    def feed_forward_bias(self) -> bool:
        return self.mlp_bias


class Attention(nn.Module):
    together: ClassVar = (("q_proj", "k_proj", "v_proj"),)  # maps of the same input

    def __init__(self, config: RotaryConfig) -> None:
        super().__init__()
        D, H, bias = config.hidden_size, config.head_width, config.query_bias
        self.head_width = H
        self.q_proj = Linear(D, config.num_attention_heads * H, bias=bias)
        self.k_proj = Linear(D, config.key_heads * H, bias=bias)
        self.v_proj = Linear(D, config.key_heads * H, bias=bias)
        self.o_proj = Linear(config.num_attention_heads * H, D, bias=config.output_bias)

    def queries_keys_values(self, x_MD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[M, N, H], [M, K, H], [M, K, H], not yet turned to their positions."""
        q_MX, k_MX, v_MX = project(x_MD, (self.q_proj, self.k_proj, self.v_proj))
        heads = (x_MD.shape[0], -1, self.head_width)
        return q_MX.view(heads), k_MX.view(heads), v_MX.view(heads)


class _FeedForward(nn.Module):
    """down(silu(gate(x)) · up(x)): SwiGLU (Shazeer 2020, §2)."""

    together: ClassVar = (("gate_proj", "up_proj"),)

    def __init__(self, config: RotaryConfig) -> None:
        super().__init__()
        D, F_, bias = config.hidden_size, config.intermediate_size, config.feed_forward_bias
        self.gate_proj, self.up_proj = Linear(D, F_, bias=bias), Linear(D, F_, bias=bias)
        self.down_proj = Linear(F_, D, bias=bias)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, x_MD: Tensor) -> Tensor:
        gate_MF, up_MF = project(x_MD, (self.gate_proj, self.up_proj))
        out: Tensor = self.down_proj(gated(self.activation, gate_MF, up_MF))
        return out


class _Layer(Block):
    def __init__(self, index: int, config: RotaryConfig, attention: type[Attention]) -> None:
        super().__init__()
        self.index, self.window = index, config.window(index)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = _FeedForward(config)

    def forward(self, hidden_MD: Tensor, cos_sin: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        q_MNH, k_MKH, v_MKH = self.self_attn.queries_keys_values(self.input_layernorm(hidden_MD))
        attended_MNH = attend(self.index, rotate(q_MNH, cos_sin), rotate(k_MKH, cos_sin), v_MKH, window=self.window)
        hidden_MD = hidden_MD + self.self_attn.o_proj(attended_MNH.flatten(1))
        out: Tensor = hidden_MD + self.mlp(self.post_attention_layernorm(hidden_MD))
        return out


class _Decoder(nn.Module):
    """Everything below the heads, under Hugging Face's prefix `model.`"""

    def __init__(self, config: RotaryConfig, attention: type[Attention]) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(_Layer(i, config, attention) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


def classes_of(name: str) -> dict[str, frozenset[str]]:
    """Hugging Face's classes for a model of this shape, and the heads that each has."""
    return {f"{name}Model": frozenset(), f"{name}ForCausalLM": frozenset({"causal_lm"}),
            f"{name}ForSequenceClassification": frozenset({"classification"}),
            f"{name}ForTokenClassification": frozenset({"tagging"})}


class Llama(nn.Module):
    """heads: head kind → number of outputs (0 where the kind fixes it)."""

    causal: ClassVar[bool] = True
    body_prefix: ClassVar[str] = "model."
    config_class: ClassVar[type[RotaryConfig]] = LlamaConfig
    classes: ClassVar[dict[str, frozenset[str]]] = classes_of("Llama")
    attention: ClassVar[type[Attention]] = Attention
    repeated: ClassVar[tuple[str, ...]] = ("rotary_emb.inv_freq",)
    renamed: ClassVar[tuple[tuple[str, str], ...]] = ()

    def __init__(self, config: RotaryConfig, heads: Mapping[str, int]) -> None:
        super().__init__()
        self.config, self.heads = config, dict(heads)
        self.compute_dtype = torch.float32
        self.model = _Decoder(config, self.attention)
        self.rope = Rope(config.head_width, config.rope_theta, config.max_position_embeddings, config.rope_scaling)
        if "causal_lm" in heads and not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        if "classification" in heads:
            self.score = Linear(config.hidden_size, heads["classification"], bias=False)
        if "tagging" in heads:
            self.dropout = Dropout(0.1 if config.classifier_dropout is None else config.classifier_dropout)
            self.score = Linear(config.hidden_size, heads["tagging"])

    def initialise(self, generator: torch.Generator) -> None:
        """Normal(0, initializer_range); what writes to the residual stream shrinks by √(2L) (Radford et al. 2019)."""
        for name, parameter in self.named_parameters():
            with torch.no_grad():
                if parameter.ndim >= 2:
                    into_stream = name.endswith(("o_proj.weight", "down_proj.weight"))
                    shrink = math.sqrt(2 * self.config.num_hidden_layers) if into_stream else 1.0
                    parameter.normal_(0.0, self.config.initializer_range / shrink, generator=generator)
                else:
                    parameter.fill_(0.0 if name.endswith("bias") else 1.0)

    def forward(self, ids_M: Tensor, lengths: Sequence[int], *, segments_M: Tensor | None = None,
                taps: Taps | None = None) -> Tensor:
        """ids of whole sequences, end to end → hidden_MD. Segments have no meaning here and must be absent."""
        assert segments_M is None, "this architecture has no segments"
        rate = self.config.attention_dropout if self.training else 0.0
        attend = Packed(lengths, causal=True, dropout=rate, device=ids_M.device)
        return self.body(ids_M, positions_of(lengths, ids_M.device), attend, taps=taps)

    def body(self, ids_or_embeddings: Tensor, positions_M: Tensor, attend: Attend, *,
             taps: Taps | None = None) -> Tensor:
        """ids_M, or word embeddings [M, D] in their place → hidden_MD after the last norm."""
        words_MD = (ids_or_embeddings if ids_or_embeddings.is_floating_point()
                    else self.model.embed_tokens(ids_or_embeddings))
        hidden_MD: Tensor = tap(taps, "embeddings", words_MD).to(self.compute_dtype)
        cos_sin = self.rope.cos_sin(positions_M, hidden_MD.dtype)
        for index, layer in enumerate(self.model.layers):
            hidden_MD = tap(taps, f"layers.{index}", layer(hidden_MD, cos_sin, attend))
        out: Tensor = self.model.norm(hidden_MD)
        return out

    def decoder_parts(self) -> DecoderParts | None:
        """None where the feed-forward layers have another activation than silu."""
        config = self.config
        layers: Any = self.model.layers
        if config.hidden_act != "silu":
            return None
        return DecoderParts(
            self.model.embed_tokens,
            [LayerParts(layer.input_layernorm,
                        (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj),
                        getattr(layer.self_attn, "q_norm", None), getattr(layer.self_attn, "k_norm", None),
                        layer.self_attn.o_proj, layer.post_attention_layernorm,
                        (layer.mlp.gate_proj, layer.mlp.up_proj), layer.mlp.down_proj, layer.window)
             for layer in layers],
            self.model.norm, self.rope, config.num_attention_heads, config.key_heads, config.head_width,
            config.rms_norm_eps)

    def lm_features(self, hidden_XD: Tensor) -> Tensor:
        """What the output vocabulary is compared with, [X, D]."""
        return hidden_XD

    def lm_output(self) -> tuple[Tensor, Tensor | None]:
        """The output vocabulary's weight [V, D] and bias (none)."""
        tied = self.config.tie_word_embeddings
        return (self.model.embed_tokens.weight if tied else self.lm_head.weight), None

    def classify(self, hidden_MD: Tensor, lengths: Sequence[int]) -> Tensor:
        """Scores of the classes from each sequence's last token, [B, C]."""
        last_B = torch.tensor(lengths).cumsum(0) - 1
        out: Tensor = self.score(hidden_MD.index_select(0, last_B.to(hidden_MD.device)))
        return out

    def tag(self, hidden_MD: Tensor) -> Tensor:
        """Scores of the tags of each token, [M, C]."""
        out: Tensor = self.score(self.dropout(hidden_MD))
        return out
