"""T5 (Raffel et al. 2020): an encoder–decoder, pre-norm with RMSNorm, relative position biases, unscaled scores.

In: source ids, and the ids that the decoder reads; out: hidden states of the target. Names and configuration keys are
Hugging Face's (v1.0 with relu, v1.1 with gated gelu and an output vocabulary of its own). Heads: `seq2seq_lm`;
`encoder` is the first stack alone, as vectors of texts need it; `tagging` (dropout → classifier, at each token) stands
on that one too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from wenmo.errors import say
from wenmo.models.config import ModelConfig, PositiveFloat, PositiveInt, Probability, TokenId
from wenmo.models.encoder_decoder import EncoderDecoder
from wenmo.nn.activation import ACTIVATIONS, gated
from wenmo.nn.attend import Attend, Bias, Packed
from wenmo.nn.block import Block
from wenmo.nn.cross import Cross
from wenmo.nn.dropout import Dropout
from wenmo.nn.linear import Linear
from wenmo.nn.norm import RMSNorm
from wenmo.nn.taps import Taps, tap


class T5Config(ModelConfig):
    model_type: Literal["t5"] = "t5"
    d_model: PositiveInt = 512
    d_kv: PositiveInt = 64
    d_ff: PositiveInt = 2048
    num_layers: PositiveInt = 6
    num_decoder_layers: PositiveInt | None = None
    num_heads: PositiveInt = 8
    relative_attention_num_buckets: int = Field(32, ge=4)
    relative_attention_max_distance: PositiveInt = 128
    dropout_rate: Probability = 0.1
    classifier_dropout: Probability = 0.0  # of the head that tags tokens
    layer_norm_epsilon: PositiveFloat = 1e-6
    initializer_factor: PositiveFloat = 1.0
    feed_forward_proj: Literal["relu", "gated-gelu", "gated-silu"] = "relu"
    decoder_start_token_id: TokenId | None = None
    tie_word_embeddings: bool = True
    scale_decoder_outputs: bool | None = None
    is_encoder_decoder: Literal[True] = True

    @classmethod
    def one_spelling(cls, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """Where a file does not say what the decoder begins with, it is the padding; and T5EncoderModel, which
        transformers says is none, has an encoder–decoder's configuration."""
        start = data.get("decoder_start_token_id")
        return {**data, "is_encoder_decoder": True,
                "decoder_start_token_id": (data.get("pad_token_id") or 0) if start is None else start}

    @model_validator(mode="after")
    def _scaling_as_it_was_trained(self) -> Self:
        """v1.0 ties its embeddings and scales the output by D^-½; transformers 5 says so in a key of its own."""
        if self.scale_decoder_outputs is None:
            object.__setattr__(self, "scale_decoder_outputs", self.tie_word_embeddings)
        return self

    @model_validator(mode="after")
    def _distances_fit(self) -> Self:
        """Half of the encoder's buckets are for what comes before, and half of those for single distances."""
        if self.relative_attention_num_buckets % 4:
            raise ValueError(say("relative_attention_num_buckets must be a multiple of 4",
                                 "relative_attention_num_buckets 须是 4 的倍数"))
        if self.relative_attention_max_distance <= self.relative_attention_num_buckets // 2:
            names = ("relative_attention_max_distance", "relative_attention_num_buckets")
            raise ValueError(say("{} must be more than half of {}", "{} 须大于 {} 的一半").format(*names))
        return self

    @property
    def width(self) -> int:
        return self.d_model

    @property
    def max_tokens(self) -> None:
        return None


class _Attention(nn.Module):
    def __init__(self, config: T5Config, with_bias: bool) -> None:
        super().__init__()
        inner = config.num_heads * config.d_kv
        self.q, self.k, self.v = (Linear(config.d_model, inner, bias=False) for _ in range(3))
        self.o = Linear(inner, config.d_model, bias=False)
        if with_bias:
            self.relative_attention_bias = nn.Embedding(config.relative_attention_num_buckets, config.num_heads)


class _FeedForward(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        gated = config.feed_forward_proj.startswith("gated-")
        name = config.feed_forward_proj.removeprefix("gated-")
        # Hugging Face runs "gated-gelu" checkpoints with the tanh approximation they were trained with.
        self.activation = ACTIVATIONS["gelu_new" if gated and name == "gelu" else name]
        if gated:
            self.wi_0 = Linear(config.d_model, config.d_ff, bias=False)
            self.wi_1 = Linear(config.d_model, config.d_ff, bias=False)
        else:
            self.wi = Linear(config.d_model, config.d_ff, bias=False)
        self.gated = gated
        self.wo = Linear(config.d_ff, config.d_model, bias=False)
        self.dropout = Dropout(config.dropout_rate)

    def forward(self, x_MD: Tensor) -> Tensor:
        inner = (gated(self.activation, self.wi_0(x_MD), self.wi_1(x_MD)) if self.gated
                 else self.activation(self.wi(x_MD)))
        out: Tensor = self.wo(self.dropout(inner))
        return out


class _Sublayer(nn.Module):
    """norm → inner → dropout → + residual; the inner module stands under Hugging Face's own name."""

    def __init__(self, name: str, inner: nn.Module, config: T5Config) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, inner)
        self.layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)
        self.dropout = Dropout(config.dropout_rate)

    @property
    def inner(self) -> Any:
        return getattr(self, self.name)


class _Block(Block):
    def __init__(self, index: int, config: T5Config, decoder: bool) -> None:
        super().__init__()
        self.index, self.head_width, self.decoder = index, config.d_kv, decoder
        sublayers = [_Sublayer("SelfAttention", _Attention(config, with_bias=index == 0), config)]
        if decoder:
            sublayers.append(_Sublayer("EncDecAttention", _Attention(config, with_bias=False), config))
        sublayers.append(_Sublayer("DenseReluDense", _FeedForward(config), config))
        self.layer = nn.ModuleList(sublayers)

    def forward(self, hidden_MD: Tensor, attend: Attend, bias: Bias, cross: Cross | None) -> Tensor:
        sub: Any = self.layer[0]
        x_MD, project = sub.layer_norm(hidden_MD), sub.inner
        attended = attend(self.index, self._heads(project.q(x_MD)), self._heads(project.k(x_MD)),
                          self._heads(project.v(x_MD)), scale=1.0, bias=bias)
        hidden_MD = hidden_MD + sub.dropout(project.o(attended.flatten(1)))
        if cross is not None:
            sub = self.layer[1]
            across = sub.inner
            attended = cross(
                self.index, self._heads(across.q(sub.layer_norm(hidden_MD))),
                lambda memory_MD: (self._heads(across.k(memory_MD)), self._heads(across.v(memory_MD))), scale=1.0)
            hidden_MD = hidden_MD + sub.dropout(across.o(attended.flatten(1)))
        sub = self.layer[-1]
        out: Tensor = hidden_MD + sub.dropout(sub.inner(sub.layer_norm(hidden_MD)))
        return out

    def _heads(self, x_MX: Tensor) -> Tensor:
        return x_MX.view(x_MX.shape[0], -1, self.head_width)


class _Stack(nn.Module):
    def __init__(self, config: T5Config, decoder: bool) -> None:
        super().__init__()
        self.config, self.decoder = config, decoder
        depth = (config.num_decoder_layers or config.num_layers) if decoder else config.num_layers
        self.block = nn.ModuleList(_Block(i, config, decoder) for i in range(depth))
        self.final_layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)
        self.dropout = Dropout(config.dropout_rate)

    def forward(self, words_MD: Tensor, attend: Attend, cross: Cross | None, taps: Taps | None) -> Tensor:
        place = "decoder" if self.decoder else "encoder"
        hidden_MD: Tensor = self.dropout(tap(taps, f"{place}.embeddings", words_MD))
        for index, block in enumerate(self.block):
            hidden_MD = tap(taps, f"{place}.layers.{index}", block(hidden_MD, attend, self.bias, cross))
        out: Tensor = self.dropout(self.final_layer_norm(hidden_MD))
        return out

    def bias(self, query_BT: Tensor, key_S: Tensor) -> Tensor:
        """A learned number a head for the bucket of each distance (§2.1), shared by the layers: [B, N, T, S]."""
        first: Any = self.block[0]
        table = first.layer[0].inner.relative_attention_bias
        buckets = relative_bucket(key_S - query_BT[:, :, None], bidirectional=not self.decoder,
                                  num_buckets=self.config.relative_attention_num_buckets,
                                  max_distance=self.config.relative_attention_max_distance)
        bias: Tensor = table(buckets)
        return bias.permute(0, 3, 1, 2)


def relative_bucket(distance: Tensor, *, bidirectional: bool, num_buckets: int, max_distance: int) -> Tensor:
    """key position − query position → bucket: exact when near, logarithmic up to `max_distance`, then one for all."""
    offset = torch.zeros_like(distance)
    if bidirectional:
        num_buckets //= 2
        offset = (distance > 0).long() * num_buckets
        distance = distance.abs()
    else:
        distance = (-distance).clamp(min=0)
    exact = num_buckets // 2
    ratio = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    far = (exact + (ratio * (num_buckets - exact)).long()).clamp(max=num_buckets - 1)
    return offset + torch.where(distance < exact, distance, far)


class T5(EncoderDecoder):
    """heads: head kind → number of outputs (0 where the kind fixes it)."""

    body_prefix: ClassVar[str] = ""
    config_class: ClassVar = T5Config
    classes: ClassVar[dict[str, frozenset[str]]] = {
        "T5Model": frozenset(),
        "T5ForConditionalGeneration": frozenset({"seq2seq_lm"}),
        "T5EncoderModel": frozenset({"encoder"}),
        "T5ForTokenClassification": frozenset({"tagging"}),
    }
    # The classes whose files have all but the head's parameters under a further prefix.
    nested: ClassVar[dict[str, str]] = {"T5ForTokenClassification": "transformer."}
    # The last one stands in the released T5 files, which never used it.
    repeated: ClassVar[tuple[str, ...]] = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight",
                                           "EncDecAttention.relative_attention_bias.weight")
    renamed: ClassVar[tuple[tuple[str, str], ...]] = ()

    def __init__(self, config: T5Config, heads: Mapping[str, int]) -> None:
        super().__init__()
        self.config, self.heads = config, dict(heads)
        self.compute_dtype = torch.float32
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = _Stack(config, decoder=False)
        if not self.one_stack:
            self.decoder = _Stack(config, decoder=True)
        if "seq2seq_lm" in heads and not config.tie_word_embeddings:
            self.lm_head = Linear(config.d_model, config.vocab_size, bias=False)
        if "tagging" in heads:
            self.dropout = Dropout(config.classifier_dropout)
            self.classifier = Linear(config.d_model, heads["tagging"])

    def initialise(self, generator: torch.Generator) -> None:
        """Normal, with a deviation of its own for each kind of matrix, since scores are not scaled (T5's own code)."""
        config, factor = self.config, self.config.initializer_factor
        deviation = {"q": (config.d_model * config.d_kv) ** -0.5, "o": (config.num_heads * config.d_kv) ** -0.5,
                     "wo": config.d_ff**-0.5, "shared": 1.0, "lm_head": 1.0}
        for name, parameter in self.named_parameters():
            with torch.no_grad():
                if parameter.ndim >= 2:
                    std = factor * deviation.get(name.split(".")[-2], config.d_model**-0.5)
                    parameter.normal_(0.0, std, generator=generator)
                else:
                    parameter.fill_(0.0 if name.endswith("bias") else factor)

    def encode(self, ids_or_embeddings: Tensor, lengths: Sequence[int], *, taps: Taps | None = None) -> Tensor:
        """Source tokens → memory_MD."""
        attend = Packed(lengths, causal=False, dropout=self.attention_dropout, device=ids_or_embeddings.device)
        return self._run(self.encoder, ids_or_embeddings, attend, None, taps)

    def body(self, ids_or_embeddings: Tensor, positions_M: Tensor, attend: Attend, *, cross: Cross,
             taps: Taps | None = None) -> Tensor:
        """Target tokens → hidden_MD. Positions reach the scores through `attend`, which knows them."""
        return self._run(self.decoder, ids_or_embeddings, attend, cross, taps)

    @property
    def attention_dropout(self) -> float:
        return self.config.dropout_rate if self.training else 0.0

    def _run(self, stack: _Stack, ids_or_embeddings: Tensor, attend: Attend, cross: Cross | None,
             taps: Taps | None) -> Tensor:
        words_MD = (ids_or_embeddings if ids_or_embeddings.is_floating_point() else self.shared(ids_or_embeddings))
        out: Tensor = stack(words_MD.to(self.compute_dtype), attend, cross, taps)
        return out

    def lm_features(self, hidden_XD: Tensor) -> Tensor:
        """What the output vocabulary is compared with, [X, D]; scaled by D^-½ where the checkpoint asks for it."""
        return hidden_XD * self.config.d_model**-0.5 if self.config.scale_decoder_outputs else hidden_XD

    def lm_output(self) -> tuple[Tensor, Tensor | None]:
        """The output vocabulary's weight [V, D] and bias (none)."""
        return (self.shared.weight if self.config.tie_word_embeddings else self.lm_head.weight), None

    def tag(self, hidden_MD: Tensor) -> Tensor:
        """Scores of the tags of each source token, [M, C]."""
        out: Tensor = self.classifier(self.dropout(hidden_MD))
        return out
