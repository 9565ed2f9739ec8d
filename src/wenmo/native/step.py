"""A step of a model of Llama's shape, described for the C code (step.h), and the call.

In: its matrices, packed, its norms and rotary frequencies; then, for each step, the embeddings of some rows and where
the keys and values of their sequences stand. Out: scores of the vocabulary, after the rows that were asked for.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wenmo.native.build import Unavailable, library
from wenmo.native.packing import Matrix, MatrixStruct, stand_together

ALIGNMENT = 64  # bytes, of a workspace
SHORT_PRODUCT = 1 << 23  # multiplications: some hundredths of a millisecond


class Threads:
    """Threads that sleep until there is a step; they end with this object."""

    def __init__(self, number: int) -> None:
        """Raises Unavailable, as `build.library` does."""
        self.library, self.number = library(), number
        self.library.pool_new.restype = ctypes.c_void_p
        # The same functions for calls so short that to let other threads run, and wait for them, would cost more.
        self.short = ctypes.PyDLL(self.library._name)
        for size in (self.short.workspace_bytes, self.short.prepared_bytes, self.short.encoder_bytes):
            size.restype = ctypes.c_size_t
        pool = self.library.pool_new(number)
        if pool is None:
            raise Unavailable(f"{number} threads")
        self.pool = ctypes.c_void_p(pool)
        ending = weakref.finalize(self, self.library.pool_free, self.pool)
        ending.atexit = False  # an engine's thread may be in a step then; the process ends its threads by itself

    def product(self, matrix: Matrix, x_MI: Tensor) -> Tensor:
        """x W^T + b in fp32, [M, O]. A row has the same bits whatever is beside it."""
        if x_MI.dtype != torch.float32 or not x_MI.is_contiguous():
            x_MI = x_MI.float().contiguous()
        rows, struct = len(x_MI), ctypes.byref(matrix.struct)
        y_MO = empty(rows, matrix.shape[0])
        prepared, at = room(self.short.prepared_bytes(struct, rows))
        if rows * math.prod(matrix.shape) > SHORT_PRODUCT:
            self.library.run_product(self.pool, struct, address(x_MI), rows, address(y_MO), at)
        else:  # done before the other threads would be awake
            self.short.prepare(struct, address(x_MI), rows, at, 0, rows)
            self.short.multiply(struct, at, rows, address(y_MO), matrix.shape[0], 0, matrix.shape[0])
        del prepared
        return y_MO


@dataclass(frozen=True, slots=True)
class Layer:
    """Maps of the same input are one matrix each; norms: fp32 weights."""

    query_key_value: Matrix
    attention_out: Matrix
    gate_up: Matrix
    down: Matrix
    attention_norm: Tensor
    feed_forward_norm: Tensor
    query_norm: Tensor | None
    key_norm: Tensor | None
    window: int | None


@dataclass(frozen=True, slots=True)
class Sizes:
    heads: int
    key_heads: int
    head_width: int
    epsilon: float


@dataclass(frozen=True, slots=True)
class Span:
    """Neighbouring tokens of one sequence, the first at position `start`. Their keys and values stand in the cache of
    number `cache`, from the number `offset` on: [K, positions, H]."""

    rows: int
    start: int
    cache: int
    offset: int
    positions: int


Caches = Sequence[Sequence[tuple[Tensor, Tensor]]]  # keys and values, by layer


class Steps:
    """`frequencies` and `factor`: of the rotary positions."""

    def __init__(self, threads: Threads, sizes: Sizes, layers: Sequence[Layer], final_norm: Tensor, vocabulary: Matrix,
                 frequencies: Tensor, factor: float, cache_dtype: torch.dtype) -> None:
        self.threads, self.sizes, self.num_layers, self.cache_dtype = threads, sizes, len(layers), cache_dtype
        self.num_scores = vocabulary.shape[0]
        norms = [tensor.detach().float().contiguous() for tensor in (final_norm, frequencies)]
        self._kept: list[object] = [layers, vocabulary, *norms]
        stand_together([*(matrix for layer in layers for matrix in (layer.query_key_value, layer.attention_out,
                                                                    layer.gate_up, layer.down)), vocabulary])
        self._layers = (_Layer * len(layers))(*map(self._described, layers))
        self._model = _Model(
            len(final_norm), sizes.heads, sizes.key_heads, sizes.head_width, layers[0].down.shape[1], len(layers),
            cache_dtype == torch.bfloat16, sizes.epsilon, factor, norms[1].data_ptr(), norms[0].data_ptr(),
            ctypes.addressof(self._layers), ctypes.addressof(vocabulary.struct))
        self._workspace, self._workspace_at = room(0)

    def _described(self, layer: Layer) -> _Layer:
        norms = [None if norm is None else norm.detach().float().contiguous()
                 for norm in (layer.attention_norm, layer.feed_forward_norm, layer.query_norm, layer.key_norm)]
        self._kept += norms
        matrices = (layer.query_key_value, layer.attention_out, layer.gate_up, layer.down)
        return _Layer(*(matrix.struct for matrix in matrices),
                      *(None if norm is None else norm.data_ptr() for norm in norms), layer.window or 0)

    def run(self, hidden_MD: Tensor, spans: Sequence[Span], caches: Caches, scored: Sequence[int]) -> Tensor:
        """fp32 [len(scored), V]: the scores after these rows. hidden_MD: the embeddings, fp32; overwritten. The new
        keys and values are put into the caches. Not from two threads at once."""
        num_rows, num_scored = len(hidden_MD), len(scored)
        assert hidden_MD.dtype == torch.float32
        assert hidden_MD.is_contiguous()
        scores_XV = torch.empty(num_scored, self.num_scores)
        described, first = (_Span * len(spans))(), 0
        for number, span in enumerate(spans):
            described[number] = _Span(first, span.rows, span.start, span.cache, span.offset, span.positions)
            first += span.rows
        assert first == num_rows
        places = np.array([each.data_ptr() for layers in caches for pair in layers for each in pair], np.uintp)
        assert len(places) == len(caches) * self.num_layers * 2
        scored_X = np.asarray(scored, np.int32)
        call, model = self.threads.library, ctypes.byref(self._model)
        needed = self.threads.short.workspace_bytes(model, num_rows, num_scored, self.threads.number)
        if needed > len(self._workspace) - ALIGNMENT:
            self._workspace, self._workspace_at = room(needed)
        call.run_step(self.threads.pool, model, num_rows, address(hidden_MD), len(spans), described,
                      ctypes.c_void_p(places.ctypes.data), num_scored, ctypes.c_void_p(scored_X.ctypes.data),
                      address(scores_XV), self._workspace_at)
        return scores_XV


class _Layer(ctypes.Structure):
    _fields_ = [*((name, MatrixStruct) for name in ("query_key_value", "attention_out", "gate_up", "down")),
                *((name, ctypes.c_void_p)
                  for name in ("attention_norm", "feed_forward_norm", "query_norm", "key_norm")),
                ("window", ctypes.c_int)]


class _Model(ctypes.Structure):
    _fields_ = [*((name, ctypes.c_int) for name in ("width", "heads", "key_heads", "head_width", "feed_forward",
                                                   "num_layers", "cache_is_bf16")),
                ("epsilon", ctypes.c_float), ("rotary_factor", ctypes.c_float),
                *((name, ctypes.c_void_p) for name in ("frequencies", "final_norm", "layers", "vocabulary"))]


class _Span(ctypes.Structure):
    _fields_ = [*((name, ctypes.c_int) for name in ("first_row", "rows", "start", "cache")),
                ("offset", ctypes.c_long), ("positions", ctypes.c_long)]


def address(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def empty(num_rows: int, width: int) -> Tensor:
    """fp32 numbers, whatever they are. By numpy: torch lets other threads run meanwhile, and who lets go of the
    interpreter waits for it behind them all."""
    return torch.from_numpy(np.empty((num_rows, width), np.float32))


def room(num_bytes: int) -> tuple[np.ndarray, ctypes.c_void_p]:
    """So many bytes and some more, and where in them they are aligned."""
    room = np.empty(num_bytes + ALIGNMENT, np.uint8)
    return room, ctypes.c_void_p(-(-room.ctypes.data // ALIGNMENT) * ALIGNMENT)
