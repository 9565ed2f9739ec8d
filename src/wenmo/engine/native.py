"""The model's two kinds of calls as whole native steps (native/), where the model and the machine allow it.

In: what runner.py is asked: pieces of prompts, and the next tokens of rows. Out: fp32 scores. To a native step both
are the same: rows, each of which depends on itself alone. So nothing is padded or tried, and any number of rows go
together.

A model is taken whose `decoder_parts` names its parts, each of them plain: adapters, encoder–decoders and other
architectures are computed by torch, and so is everything where there is no compiler.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wenmo.engine.packed import Format, Packed, Part, dtype_of
from wenmo.engine.runner import Piece, Read, Runner
from wenmo.engine.slots import Layers, Slots, staging
from wenmo.errors import UsageError, say
from wenmo.models import LanguageModel
from wenmo.models.decoder_parts import DecoderParts
from wenmo.native.build import LEAST_WIDTH, Unavailable
from wenmo.native.packing import Matrix
from wenmo.native.step import Layer, Sizes, Span, Steps, Threads
from wenmo.nn.linear import Linear
from wenmo.nn.quantized import QuantizedLinear

Choice = Literal["auto", "on", "off"]
STEP_ROWS = 512  # rows of prompts in one call

_log = logging.getLogger(__name__)


def runner_for(model: LanguageModel, format: Format, chunk_tokens: int, choice: Choice = "auto") -> Runner:
    """Native where it can be. Raises UsageError where it must be and cannot."""
    threads = threads_for(model, choice)
    if threads is None:
        return Runner(model, format, chunk_tokens)
    return NativeRunner(model, format, chunk_tokens, threads)


def threads_for(model: Any, choice: Choice) -> Threads | None:
    """None: torch computes. Raises UsageError where it must be native and cannot."""
    return threads_where(choice, is_supported=choice != "off" and parts_of(model) is not None)


def threads_where(choice: Choice, *, is_supported: bool) -> Threads | None:
    """The same for a model of which it is known whether it can run natively."""
    if choice == "off":
        return None
    if not is_supported:
        why = say("this model is none that runs natively", "该模型不支持原生计算")
        _refuse(why, choice, logging.DEBUG)
        return None
    try:
        threads = Threads(torch.get_num_threads())
    except Unavailable as error:
        _refuse(str(error), choice, logging.INFO)
        return None
    if choice == "auto" and threads.library.register_width() < LEAST_WIDTH:
        why = say("this processor's registers are too narrow to gain by it", "该处理器的寄存器太窄，没有收益")
        _refuse(why, choice, logging.INFO)
        return None
    return threads


def _refuse(why: str, choice: Choice, level: int) -> None:
    if choice == "on":
        raise UsageError(say(f"no native steps: {why}", f"无法原生计算：{why}"), where="native: on",
                         mend=say("set native: auto, or give a model of Llama's or BERT's shape, and install a C "
                                  "compiler", "请设 native: auto，或使用 Llama 或 BERT 结构的模型并安装 C 编译器"))
    _log.log(level, say(f"torch computes the steps: {why}", f"由 torch 计算：{why}"))


def parts_of(model: Any) -> DecoderParts | None:
    """The parts of a model that can be taken; None where there are others than the plain ones."""
    asked = getattr(model, "decoder_parts", None)
    parts: DecoderParts | None = None if asked is None or "causal_lm" not in model.heads else asked()
    if parts is None or not parts.rope.is_fixed:
        return None
    maps = [each for layer in parts.layers
            for each in (*layer.queries_keys_values, layer.attention_out, *layer.gate_up, layer.down)]
    return parts if all(type(each) in (Linear, QuantizedLinear) for each in maps) else None


class NativeRunner(Runner):
    """What is not overridden is torch's way, with native products."""

    is_native = True

    def __init__(self, model: Any, format: Format, chunk_tokens: int, threads: Threads) -> None:
        before = parts_of(model)  # packing takes the maps out, and gives the norms another form
        assert before is not None
        super().__init__(model, format, chunk_tokens, threads)
        parts: DecoderParts = model.decoder_parts()
        layers = [
            Layer(matrix_in(now.queries_keys_values[0]), matrix_in(now.attention_out), matrix_in(now.gate_up[0]),
                  matrix_in(now.down), was.attention_norm.weight, was.feed_forward_norm.weight, _weight(was.query_norm),
                  _weight(was.key_norm), now.window)
            for was, now in zip(before.layers, parts.layers, strict=True)]
        self.embeddings, self.num_layers = parts.embeddings, len(layers)
        self.steps = Steps(threads, Sizes(parts.heads, parts.key_heads, parts.head_width, parts.epsilon), layers,
                           before.final_norm.weight, matrix_in(self.head.packed), parts.rope.frequencies_X,
                           parts.rope.attention_factor, dtype_of(format))
        self.like_KH = torch.empty(parts.key_heads, parts.head_width, dtype=self.steps.cache_dtype)
        self.most_chunks = max(1, STEP_ROWS // chunk_tokens)

    def read(self, pieces: Sequence[Piece]) -> list[Tensor]:
        """Of one prompt the keys of all pieces stand before any attends."""
        caches = {id(piece.layers): piece.layers for piece in pieces}
        numbers = {key: number for number, key in enumerate(caches)}
        spans, scored, counts, first = [], list[int](), [], 0
        for piece in pieces:
            for layer in range(self.num_layers):
                staging(piece.capacity, layer, piece.layers, self.like_KH)
            spans.append(Span(len(piece.ids), piece.start, numbers[id(piece.layers)], 0, piece.capacity))
            last = first + len(piece.ids)
            wanted = {"none": range(0), "last": range(last - 1, last), "each": range(first, last)}[piece.scores]
            scored += wanted
            counts.append(len(wanted))
            first = last
        return self._run([id for piece in pieces for id in piece.ids], spans, list(caches.values()), scored, counts)

    def next_tokens(self, slots: Slots, reads: Sequence[Read], sources: Slots | None = None) -> list[Tensor]:
        """In one call, however many there are."""
        assert sources is None
        pools = {slots.place[read.active][0].capacity: slots.place[read.active][0] for read in reads}
        numbers = {capacity: number for number, capacity in enumerate(pools)}
        for pool in pools.values():
            for layer in range(self.num_layers):
                pool.layer(layer, self.like_KH)
        spans = []
        for read in reads:
            pool, row = slots.place[read.active]
            offset = row * pool.capacity * self.like_KH.numel()
            spans.append(Span(len(read.ids), read.start, numbers[pool.capacity], offset, pool.capacity))
        ids, counts = [id for read in reads for id in read.ids], [len(read.ids) for read in reads]
        return self._run(ids, spans, [pool.layers for pool in pools.values()], range(len(ids)), counts)

    def _run(self, ids: Sequence[int], spans: Sequence[Span], caches: Sequence[Layers], scored: Sequence[int],
             counts: list[int]) -> list[Tensor]:
        with torch.inference_mode():
            hidden_MD = self.embeddings(torch.tensor(ids)).float()
            in_order = [[layers[number] for number in range(self.num_layers)] for layers in caches]
            return list(torch.split(self.steps.run(hidden_MD, spans, in_order, scored), counts))


def matrix_in(module: nn.Module | Packed) -> Matrix:
    """The native one of a map that was packed."""
    packed = module.joint if isinstance(module, Part) else module
    assert isinstance(packed, Packed)
    assert packed.matrix is not None
    return packed.matrix


def _weight(norm: Any) -> Tensor | None:
    return None if norm is None else norm.weight
