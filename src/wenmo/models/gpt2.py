"""GPT-2 (Radford et al. 2019): a causal decoder, pre-norm with LayerNorm, learned absolute positions, gelu.

Names and configuration keys are Hugging Face's, and so is the layout: matrices stand as [in, out], queries, keys and
values in one. Heads: `causal_lm` (tied or not), `classification` (score of the last token), `tagging` (dropout →
classifier, at each token), `span_qa` (qa_outputs, at each token).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from wenmo.models.config import ModelConfig, PositiveFloat, PositiveInt, Probability, check_multiple
from wenmo.nn.activation import ACTIVATIONS, ActivationName
from wenmo.nn.attend import Attend, Packed
from wenmo.nn.block import Block
from wenmo.nn.dropout import Dropout
from wenmo.nn.linear import Conv1D, Linear
from wenmo.nn.norm import LayerNorm
from wenmo.nn.padding import positions_of
from wenmo.nn.taps import Taps, tap


class GPT2Config(ModelConfig):
    """n_inner: width of the feed-forward, 4 · n_embd unless given. The two `scale_` keys: see `_Attention.scale`."""

    model_type: Literal["gpt2"] = "gpt2"
    n_positions: PositiveInt = 1024
    n_embd: PositiveInt = 768
    n_layer: PositiveInt = 12
    n_head: PositiveInt = 12
    n_inner: PositiveInt | None = None
    activation_function: ActivationName = "gelu_new"
    resid_pdrop: Probability = 0.1
    embd_pdrop: Probability = 0.1
    attn_pdrop: Probability = 0.1
    # Of the head that tags tokens; where a file is silent, transformers takes 0.1.
    classifier_dropout: Probability | None = Field(None, exclude_if=lambda value: value is None)
    layer_norm_epsilon: PositiveFloat = 1e-5
    initializer_range: PositiveFloat = 0.02
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    add_cross_attention: Literal[False] = False
    tie_word_embeddings: bool = True

    @model_validator(mode="after")
    def _sizes_fit(self) -> GPT2Config:
        check_multiple(self.n_embd, self.n_head, "n_embd", "n_head")
        return self

    @property
    def width(self) -> int:
        return self.n_embd

    @property
    def max_tokens(self) -> int:
        return self.n_positions


class _Attention(nn.Module):
    def __init__(self, index: int, config: GPT2Config) -> None:
        super().__init__()
        self.index, self.num_heads = index, config.n_head
        # 1/√H, and with the second key 1/(layer + 1) beside it: upper layers score more softly (Mistral's GPT-2s).
        self.scale = (config.n_embd // config.n_head) ** -0.5 if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            self.scale /= index + 1
        self.c_attn = Conv1D(config.n_embd, 3 * config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_embd)
        self.dropout = Dropout(config.resid_pdrop)

    def forward(self, x_MD: Tensor, attend: Attend) -> Tensor:
        q_MNH, k_MNH, v_MNH = self.c_attn(x_MD).view(x_MD.shape[0], 3, self.num_heads, -1).unbind(1)
        attended_MNH = attend(self.index, q_MNH, k_MNH, v_MNH, scale=self.scale)
        out: Tensor = self.dropout(self.c_proj(attended_MNH.flatten(1)))
        return out


class _FeedForward(nn.Module):
    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        inner = config.n_inner or 4 * config.n_embd
        self.c_fc = Conv1D(config.n_embd, inner)
        self.c_proj = Conv1D(inner, config.n_embd)
        self.activation = ACTIVATIONS[config.activation_function]
        self.dropout = Dropout(config.resid_pdrop)

    def forward(self, x_MD: Tensor) -> Tensor:
        out: Tensor = self.dropout(self.c_proj(self.activation(self.c_fc(x_MD))))
        return out


class _Layer(Block):
    """x + attention(norm(x)), then x + feed-forward(norm(x)): the norm moved to the input of each half (§2.3)."""

    def __init__(self, index: int, config: GPT2Config) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.attn = _Attention(index, config)
        self.ln_2 = LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.mlp = _FeedForward(config)

    def forward(self, hidden_MD: Tensor, attend: Attend) -> Tensor:
        hidden_MD = hidden_MD + self.attn(self.ln_1(hidden_MD), attend)
        out: Tensor = hidden_MD + self.mlp(self.ln_2(hidden_MD))
        return out


class _Decoder(nn.Module):
    """Everything below the heads, under Hugging Face's prefix `transformer.`"""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.drop = Dropout(config.embd_pdrop)
        self.h = nn.ModuleList(_Layer(i, config) for i in range(config.n_layer))
        self.ln_f = LayerNorm(config.n_embd, config.layer_norm_epsilon)


class GPT2(nn.Module):
    """heads: head kind → number of outputs (0 where the kind fixes it)."""

    causal: ClassVar[bool] = True
    body_prefix: ClassVar[str] = "transformer."
    config_class: ClassVar = GPT2Config
    classes: ClassVar[dict[str, frozenset[str]]] = {
        "GPT2Model": frozenset(),
        "GPT2LMHeadModel": frozenset({"causal_lm"}),
        "GPT2ForSequenceClassification": frozenset({"classification"}),
        "GPT2ForTokenClassification": frozenset({"tagging"}),
        "GPT2ForQuestionAnswering": frozenset({"span_qa"}),
    }
    repeated: ClassVar[tuple[str, ...]] = (".attn.bias", ".attn.masked_bias")  # causal masks, in old files
    renamed: ClassVar[tuple[tuple[str, str], ...]] = ()

    def __init__(self, config: GPT2Config, heads: Mapping[str, int]) -> None:
        super().__init__()
        self.config, self.heads = config, dict(heads)
        self.compute_dtype = torch.float32
        self.transformer = _Decoder(config)
        if "causal_lm" in heads and not config.tie_word_embeddings:
            self.lm_head = Linear(config.n_embd, config.vocab_size, bias=False)
        if "classification" in heads:
            self.score = Linear(config.n_embd, heads["classification"], bias=False)
        if "tagging" in heads:
            self.dropout = Dropout(0.1 if config.classifier_dropout is None else config.classifier_dropout)
            self.classifier = Linear(config.n_embd, heads["tagging"])
        if "span_qa" in heads:
            self.qa_outputs = Linear(config.n_embd, 2)

    def initialise(self, generator: torch.Generator) -> None:
        """Normal(0, initializer_range); what writes to the residual stream, 2L times, is shrunk by √(2L) (§2.3)."""
        for name, parameter in self.named_parameters():
            with torch.no_grad():
                if parameter.ndim >= 2:
                    shrink = math.sqrt(2 * self.config.n_layer) if name.endswith("c_proj.weight") else 1.0
                    parameter.normal_(0.0, self.config.initializer_range / shrink, generator=generator)
                else:
                    parameter.fill_(0.0 if name.endswith("bias") else 1.0)

    def forward(self, ids_M: Tensor, lengths: Sequence[int], *, segments_M: Tensor | None = None,
                taps: Taps | None = None) -> Tensor:
        """ids of whole sequences, end to end → hidden_MD. Segments have no meaning here and must be absent."""
        assert segments_M is None, "this architecture has no segments"
        rate = self.config.attn_pdrop if self.training else 0.0
        attend = Packed(lengths, causal=True, dropout=rate, device=ids_M.device)
        return self.body(ids_M, positions_of(lengths, ids_M.device), attend, taps=taps)

    def body(self, ids_or_embeddings: Tensor, positions_M: Tensor, attend: Attend, *,
             taps: Taps | None = None) -> Tensor:
        """ids_M, or word embeddings [M, D] in their place → hidden_MD after the last norm."""
        parts = self.transformer
        words_MD = ids_or_embeddings if ids_or_embeddings.is_floating_point() else parts.wte(ids_or_embeddings)
        words_MD = tap(taps, "embeddings", words_MD)
        hidden_MD: Tensor = parts.drop((words_MD + parts.wpe(positions_M)).to(self.compute_dtype))
        for index, layer in enumerate(parts.h):
            hidden_MD = tap(taps, f"layers.{index}", layer(hidden_MD, attend))
        out: Tensor = parts.ln_f(hidden_MD)
        return out

    def lm_features(self, hidden_XD: Tensor) -> Tensor:
        """What the output vocabulary is compared with, [X, D]."""
        return hidden_XD

    def lm_output(self) -> tuple[Tensor, Tensor | None]:
        """The output vocabulary's weight [V, D] and bias (none)."""
        return (self.transformer.wte.weight if self.config.tie_word_embeddings else self.lm_head.weight), None

    def classify(self, hidden_MD: Tensor, lengths: Sequence[int]) -> Tensor:
        """Scores of the classes from each sequence's last token, [B, C]."""
        last_B = torch.tensor(lengths).cumsum(0) - 1
        out: Tensor = self.score(hidden_MD.index_select(0, last_B.to(hidden_MD.device)))
        return out

    def tag(self, hidden_MD: Tensor) -> Tensor:
        """Scores of the tags of each token, [M, C]."""
        out: Tensor = self.classifier(self.dropout(hidden_MD))
        return out

    def spans(self, hidden_MD: Tensor) -> Tensor:
        """Scores of "the answer begins here" and "it ends here" of each token, [M, 2]."""
        out: Tensor = self.qa_outputs(hidden_MD)
        return out
