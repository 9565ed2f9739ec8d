"""Models that write no text, made ready to answer: their maps packed, and encoders of BERT's shape as native steps.

In: a model and a format. Out: the same model. Where a native step can take its body (`encoder_parts`, plain maps, a
compiler), hidden states come from one call, in fp32, and every head and verb above them stays as it is; a sequence has
the same bits whatever is beside it. Where it cannot, torch computes with the packed maps.

A server's threads share one interpreter, which each of torch's operations lets go of and waits for again, behind all
the threads that answer clients. So what stands between the rows and the call has next to none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from wenmo.device import one_thread
from wenmo.engine.native import Choice, matrix_in, threads_where
from wenmo.engine.packed import Format, dtype_of, pack
from wenmo.models.custom_head import kinds_on
from wenmo.models.encoder_parts import EncoderParts
from wenmo.native.encoder import Activation, Embeddings, EncoderLayer, EncoderStep, Norm
from wenmo.nn.activation import ActivationName
from wenmo.nn.linear import Linear
from wenmo.nn.norm import LayerNorm
from wenmo.nn.quantized import QuantizedLinear
from wenmo.nn.taps import Taps

ACTIVATIONS: dict[ActivationName, Activation] = {
    "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu", "silu": "silu",
    "swish": "silu"}


def pack_encoder(model: Any, format: Format, choice: Choice = "auto") -> None:
    """In place. Raises UsageError where it must be native (`on`) and cannot."""
    before = parts_of(model)
    threads = threads_where(choice, is_supported=before is not None)
    if before is None or threads is None:
        if format != "fp32":
            pack(model, format)
        return
    pack(model, format, threads)
    parts: EncoderParts = model.encoder_parts()
    layers = [EncoderLayer(matrix_in(each.queries_keys_values[0]), matrix_in(each.attention_out), matrix_in(each.up),
                           matrix_in(each.down), _norm(each.attention_norm), _norm(each.output_norm))
              for each in parts.layers]
    embeddings = Embeddings(parts.words.weight, parts.positions, parts.segments, _norm(parts.norm))
    step = EncoderStep(threads, parts.heads, ACTIVATIONS[parts.activation], parts.norm.eps, embeddings, layers,
                       dtype_of(format))
    model.forward = NativeForward(model, step)
    if "classification" in set(model.heads) - kinds_on(model):  # the architecture's own, which reads first tokens
        model.first_states = model.forward.first_states


def parts_of(model: Any) -> EncoderParts | None:
    """The parts of a model that can be taken; None where there are others than the plain ones."""
    asked = getattr(model, "encoder_parts", None)
    if asked is None:
        return None
    parts: EncoderParts = asked()
    maps = [each for layer in parts.layers
            for each in (*layer.queries_keys_values, layer.attention_out, layer.up, layer.down)]
    words = parts.words
    are_plain = (type(words) is nn.Embedding and words.weight.dtype == torch.float32 and words.weight.is_contiguous()
                 and all(type(each) in (Linear, QuantizedLinear) for each in maps))
    return parts if are_plain else None


def in_one_thread(model: Any) -> AbstractContextManager[None]:
    """For whoever asks a model: beside a native body torch has little to do, and does it in the thread that asks."""
    return one_thread() if isinstance(model.forward, NativeForward) else nullcontext()


class NativeForward:
    """Takes the place of a model's `forward`. Who looks inside (taps), or hands in embeddings, is answered by
    torch."""

    def __init__(self, model: Any, step: EncoderStep) -> None:
        self.plain, self.step = model.forward, step

    def __call__(self, ids_M: Tensor, lengths: Sequence[int], *, segments_M: Tensor | None = None,
                 taps: Taps | None = None) -> Tensor:
        """Whole sequences, end to end → hidden_MD, fp32."""
        if taps is None and not ids_M.is_floating_point():  # embeddings may stand in the place of ids
            hidden_MD = self._run(ids_M, lengths, segments_M)
            if hidden_MD is not None:
                return hidden_MD
        out: Tensor = self.plain(ids_M, lengths, segments_M=segments_M, taps=taps)
        return out

    def first_states(self, ids_M: Tensor, lengths: Sequence[int], segments_M: Tensor | None) -> Tensor | None:
        """The hidden state of each sequence's first token, [B, D]; None where an embedding is missing."""
        return self._run(ids_M, lengths, segments_M, only_first=True)

    def _run(self, ids_M: Tensor, lengths: Sequence[int], segments_M: Tensor | None, *,
             only_first: bool = False) -> Tensor | None:
        segments_M = None if segments_M is None else segments_M.contiguous()
        return self.step.run(ids_M.contiguous(), lengths, segments_M, only_first=only_first)


def _norm(norm: LayerNorm) -> Norm:
    return Norm(norm.weight, norm.bias)
