"""What an encoder of BERT's shape is made of, for who computes it in another way (engine/encoder.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from wenmo.nn.activation import ActivationName
from wenmo.nn.norm import LayerNorm


@dataclass(frozen=True, slots=True)
class EncoderLayerParts:
    """Attention and two maps with an activation between them, each with its residual, normed after it."""

    queries_keys_values: tuple[nn.Module, nn.Module, nn.Module]
    attention_out: nn.Module
    attention_norm: LayerNorm
    up: nn.Module
    down: nn.Module
    output_norm: LayerNorm


@dataclass(frozen=True, slots=True)
class EncoderParts:
    """positions: of a sequence's tokens, from the first on; segments: of each kind, the first that of texts without
    any; [number, D] each."""

    words: nn.Embedding
    positions: Tensor
    segments: Tensor
    norm: LayerNorm
    layers: Sequence[EncoderLayerParts]
    heads: int
    activation: ActivationName


def parts_of_encoder(body: Any, config: Any, first_position: int = 0) -> EncoderParts:
    """Of an `Encoder` (bert.py)."""
    layers = [
        EncoderLayerParts((own.query, own.key, own.value), layer.attention["output"].dense,
                          layer.attention["output"].LayerNorm, layer.intermediate["dense"], layer.output.dense,
                          layer.output.LayerNorm)
        for layer in body.encoder["layer"] for own in [layer.attention["self"]]]
    embeddings = body.embeddings
    return EncoderParts(embeddings.word_embeddings, embeddings.position_embeddings.weight[first_position:],
                        embeddings.token_type_embeddings.weight, embeddings.LayerNorm, layers,
                        config.num_attention_heads, config.hidden_act)
