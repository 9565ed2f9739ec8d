"""What a causal decoder of Llama's shape is made of, for who computes it in another way (engine/native.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from wenmo.nn.norm import RMSNorm
from wenmo.nn.rope import Rope


@dataclass(frozen=True, slots=True)
class LayerParts:
    """Pre-norm attention and SwiGLU. query_norm, key_norm: over each head, or none. window: tokens that it sees."""

    attention_norm: RMSNorm
    queries_keys_values: tuple[nn.Module, nn.Module, nn.Module]
    query_norm: RMSNorm | None
    key_norm: RMSNorm | None
    attention_out: nn.Module
    feed_forward_norm: RMSNorm
    gate_up: tuple[nn.Module, nn.Module]
    down: nn.Module
    window: int | None


@dataclass(frozen=True, slots=True)
class DecoderParts:
    embeddings: nn.Module
    layers: Sequence[LayerParts]
    final_norm: RMSNorm
    rope: Rope
    heads: int
    key_heads: int
    head_width: int
    epsilon: float
