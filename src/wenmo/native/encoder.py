"""An encoder of BERT's shape in one call: its description for the C code (encoder.h), and the call.

In: an encoder's matrices and weights once; then ids of whole sequences, end to end. Out: hidden states after the last
layer, in fp32. Residuals and norms are fp32 whatever the matrices are.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from wenmo.native.packing import Matrix, MatrixStruct, stand_together
from wenmo.native.step import ALIGNMENT, Threads, address, empty, room

Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]
ACTIVATIONS: tuple[Activation, ...] = ("gelu", "gelu_tanh", "relu", "silu")  # in the order of encoder.h


@dataclass(frozen=True, slots=True)
class Norm:
    """Of LayerNorm, [D] each."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True, slots=True)
class EncoderLayer:
    query_key_value: Matrix
    attention_out: Matrix
    up: Matrix
    down: Matrix
    attention_norm: Norm
    output_norm: Norm


@dataclass(frozen=True, slots=True)
class Embeddings:
    """[number of each, D]. `words` is used where it stands, and must be fp32 and contiguous."""

    words: Tensor
    positions: Tensor
    segments: Tensor
    norm: Norm


class EncoderStep:
    """keys_dtype: fp32 or bf16, in which queries, keys, values and their weights are multiplied."""

    def __init__(self, threads: Threads, heads: int, activation: Activation, epsilon: float, embeddings: Embeddings,
                 layers: Sequence[EncoderLayer], keys_dtype: torch.dtype) -> None:
        self.threads = threads
        words_VD = embeddings.words.detach()
        assert words_VD.dtype == torch.float32
        assert words_VD.is_contiguous()
        self.width = words_VD.shape[1]
        tables = (words_VD, embeddings.positions, embeddings.segments)
        self._kept: list[object] = [layers, words_VD]
        stand_together([matrix for layer in layers for matrix in _matrices(layer)])
        self._layers = (_Layer * len(layers))(*map(self._described, layers))
        self._encoder = _Encoder(
            self.width, heads, self.width // heads, layers[0].up.shape[0], len(layers),
            keys_dtype == torch.bfloat16, ACTIVATIONS.index(activation), epsilon, *map(len, tables),
            *map(self._at, tables), *self._norm(embeddings.norm), ctypes.addressof(self._layers))
        self._workspaces: list[tuple[np.ndarray, ctypes.c_void_p]] = []  # that no call has

    def _described(self, layer: EncoderLayer) -> _Layer:
        return _Layer(*(matrix.struct for matrix in _matrices(layer)), *self._norm(layer.attention_norm),
                      *self._norm(layer.output_norm))

    def _at(self, tensor: Tensor) -> int:
        """Where its fp32 numbers stand from now on."""
        kept = tensor.detach().float().contiguous()
        self._kept.append(kept)
        return kept.data_ptr()

    def _norm(self, norm: Norm) -> tuple[int, int]:
        return self._at(norm.weight), self._at(norm.bias)

    def run(self, ids_M: Tensor, lengths: Sequence[int], segments_M: Tensor | None, *,
            only_first: bool = False) -> Tensor | None:
        """int64 ids and segments → hidden_MD, fp32; None where an embedding is missing. `only_first`: [B, D], of each
        sequence's first token alone, with the same bits: the last layer then has little to do. From any thread."""
        num_rows = len(ids_M)
        assert ids_M.is_contiguous()
        assert ids_M.dtype == torch.int64
        if segments_M is not None:
            assert segments_M.is_contiguous()
            assert segments_M.dtype == torch.int64
            assert len(segments_M) == num_rows
        assert sum(lengths) == num_rows
        hidden_MD = empty(num_rows, self.width)
        first_BD = empty(len(lengths), self.width) if only_first else None
        lengths_B = np.array(lengths, np.int32)
        library, encoder = self.threads.library, ctypes.byref(self._encoder)
        needed = self.threads.short.encoder_bytes(encoder, num_rows, len(lengths), max(lengths), self.threads.number)
        workspace, workspace_at = self._workspaces.pop() if self._workspaces else room(needed)
        if needed > len(workspace) - ALIGNMENT:
            workspace, workspace_at = room(needed)
        is_known = library.run_encoder(
            self.threads.pool, encoder, address(ids_M), None if segments_M is None else address(segments_M),
            len(lengths), ctypes.c_void_p(lengths_B.ctypes.data), address(hidden_MD),
            None if first_BD is None else address(first_BD), workspace_at)
        self._workspaces.append((workspace, workspace_at))
        if not is_known:
            return None
        return hidden_MD if first_BD is None else first_BD


def _matrices(layer: EncoderLayer) -> tuple[Matrix, ...]:
    return layer.query_key_value, layer.attention_out, layer.up, layer.down


class _Layer(ctypes.Structure):
    _fields_ = [*((name, MatrixStruct) for name in ("query_key_value", "attention_out", "up", "down")),
                *((name, ctypes.c_void_p) for name in ("attention_weight", "attention_bias", "output_weight",
                                                       "output_bias"))]


class _Encoder(ctypes.Structure):
    _fields_ = [*((name, ctypes.c_int) for name in ("width", "heads", "head_width", "feed_forward", "num_layers",
                                                   "keys_are_bf16", "activation")),
                ("epsilon", ctypes.c_float),
                *((name, ctypes.c_int) for name in ("num_words", "num_positions", "num_segments")),
                *((name, ctypes.c_void_p) for name in ("words", "positions", "segments", "norm_weight", "norm_bias",
                                                      "layers"))]
