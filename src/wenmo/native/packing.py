"""Matrices as the native products read them (matrix.h).

In: a matrix [O, I] of numbers or of codes, and a bias. Out: a `Matrix`: its weights packed in blocks of BLOCK outputs,
so that one register has the same inputs of all of a block, and the description of them that C takes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from wenmo import device
from wenmo.levels import GROUP, Codes, eight_bits, eight_bits_in_groups, four_bits

Kind = Literal["fp32", "bf16", "int8", "int4", "int8-groups"]
KINDS: tuple[Kind, ...] = ("fp32", "bf16", "int8", "int4", "int8-groups")  # in the order of matrix.h
BLOCK = 16
LINE = 64  # bytes


class MatrixStruct(ctypes.Structure):
    """`Matrix` of matrix.h."""

    _fields_ = [("kind", ctypes.c_int), ("inputs", ctypes.c_int), ("outputs", ctypes.c_int),
                ("codes", ctypes.c_void_p), ("scales", ctypes.c_void_p), ("bias", ctypes.c_void_p)]


class Matrix:
    """x → x W^T + b. `struct` points into the tensors, which live as long as this object does."""

    def __init__(self, kind: Kind, shape: tuple[int, int], codes: Tensor, scales: Tensor | None = None,
                 bias: Tensor | None = None) -> None:
        self.kind, self.shape = kind, shape
        self.codes, self.scales, self.bias = codes, scales, bias
        num_outputs, num_inputs = shape
        self.struct = MatrixStruct(KINDS.index(kind), num_inputs, num_outputs, codes.data_ptr(), _pointer(scales),
                                   _pointer(bias))

    @property
    def num_bytes(self) -> int:
        tensors = (self.codes, self.scales, self.bias)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def stand_together(matrices: Sequence[Matrix]) -> None:
    """Moves the codes next to one another, in their order, into memory of large pages."""
    sizes = [-(-matrix.codes.nbytes // LINE) * LINE for matrix in matrices]
    for matrix, part in zip(matrices, torch.split(device.large_pages(sum(sizes)), sizes), strict=True):
        place = part[: matrix.codes.nbytes].view(matrix.codes.dtype).view(matrix.codes.shape)
        matrix.codes = place.copy_(matrix.codes)
        matrix.struct.codes = matrix.codes.data_ptr()


def pack_matrix(matrix_OI: Tensor | Codes, bias_O: Tensor | None, kind: Kind) -> Matrix:
    """Codes that are there are used as they are where the kind has their bits. `int4` has whole groups of GROUP inputs
    alone (levels.bits_for); where `int8-groups` has no such, it is `int8`."""
    num_outputs, num_inputs = matrix_OI.shape
    bias = None if bias_O is None else _filled_up(bias_O.detach().float(), 0, BLOCK).contiguous()
    shape = (num_outputs, num_inputs)
    if kind == "int8-groups":
        codes = matrix_OI if isinstance(matrix_OI, Codes) else eight_bits_in_groups(matrix_OI.detach())
        if codes.bits == 8 and codes.is_grouped:
            return Matrix(kind, shape, _grouped_bytes(codes), None, bias)
        matrix_OI, kind = codes, "int8"
    if kind == "int8":
        codes = _codes(matrix_OI, 8)
        numbers_OI = _filled_up(_filled_up(codes.numbers, 1, GROUP), 0, BLOCK)
        scales = _filled_up(codes.grid.scales.float().squeeze(1), 0, BLOCK).contiguous()
        return Matrix(kind, shape, _blocks(numbers_OI, 4).view(torch.uint8).bitwise_xor_(128), scales, bias)
    if kind == "int4":
        return Matrix(kind, shape, _nibbles(_codes(matrix_OI, 4)), None, bias)
    weight_OI = _plain(matrix_OI).to(torch.float32 if kind == "fp32" else torch.bfloat16)
    together = 1 if kind == "fp32" else 2
    return Matrix(kind, shape, _blocks(_filled_up(_filled_up(weight_OI, 1, together), 0, BLOCK), together), None, bias)


def product(library: ctypes.CDLL, matrix: Matrix, x_MI: Tensor, *, parts: int = 1) -> Tensor:
    """x W^T + b, [M, O] in fp32: one product alone, where a step has many. `parts` of the outputs come one by one."""
    num_rows, num_outputs = x_MI.shape[0], matrix.shape[0]
    x_MI = x_MI.float().contiguous()
    struct = ctypes.byref(matrix.struct)
    library.prepared_bytes.restype = ctypes.c_size_t
    prepared = torch.empty(library.prepared_bytes(struct, num_rows), dtype=torch.uint8)
    x_at, prepared_at = ctypes.c_void_p(x_MI.data_ptr()), ctypes.c_void_p(prepared.data_ptr())
    library.prepare(struct, x_at, num_rows, prepared_at, 0, num_rows)
    y_MO = torch.empty(num_rows, num_outputs)
    blocks = torch.arange(-(-num_outputs // BLOCK)).tensor_split(parts)
    for block_range in filter(len, blocks):
        first, last = int(block_range[0]) * BLOCK, min(int(block_range[-1] + 1) * BLOCK, num_outputs)
        library.multiply(struct, prepared_at, num_rows, ctypes.c_void_p(y_MO.data_ptr()), num_outputs, first, last)
    return y_MO


def _codes(matrix_OI: Tensor | Codes, bits: Literal[4, 8]) -> Codes:
    if isinstance(matrix_OI, Codes) and matrix_OI.bits == bits and (bits == 4 or not matrix_OI.is_grouped):
        return matrix_OI
    return four_bits(_plain(matrix_OI)) if bits == 4 else eight_bits(_plain(matrix_OI))


def _plain(matrix_OI: Tensor | Codes) -> Tensor:
    return matrix_OI.weight() if isinstance(matrix_OI, Codes) else matrix_OI.detach()


def _filled_up(values: Tensor, dim: int, multiple: int) -> Tensor:
    """With zeros, to a multiple."""
    missing = -values.shape[dim] % multiple
    return F.pad(values, (0, 0) * (values.dim() - 1 - dim) + (0, missing)) if missing else values


def _blocks(values_OI: Tensor, together: int) -> Tensor:
    """[O, I] → [blocks, I / together, BLOCK, together]."""
    num_outputs, num_inputs = values_OI.shape
    split = values_OI.view(num_outputs // BLOCK, BLOCK, num_inputs // together, together)
    return split.transpose(1, 2).contiguous()


def _nibbles(codes: Codes) -> Tensor:
    """[blocks, groups, 320] bytes: two codes in each of the first 256, then the scales and minima of the group."""
    assert codes.grid.minima is not None
    bytes_OI = _filled_up(codes.numbers.to(torch.uint8), 0, BLOCK)
    eights = _blocks(bytes_OI, 8)
    pairs = (eights[..., [0, 4, 1, 5]] | eights[..., [2, 6, 3, 7]] << 4).view(len(eights), -1, GROUP // 8 * BLOCK * 4)
    levels = [_levels(each).view(torch.uint8) for each in (codes.grid.scales, codes.grid.minima)]
    return torch.cat([pairs, *levels], -1)


def _grouped_bytes(codes: Codes) -> Tensor:
    """[blocks, bytes]: the codes + 128 of a block, then the scales of its groups."""
    numbers = _blocks(_filled_up(codes.numbers, 0, BLOCK), 4).view(torch.uint8).bitwise_xor_(128).flatten(1)
    scales = _levels(codes.grid.scales).view(torch.uint8).flatten(1)
    return torch.cat([numbers, _filled_up(scales, 1, LINE)], 1)


def _levels(numbers_OG: Tensor) -> Tensor:
    """[blocks, groups, BLOCK] in fp16."""
    filled = _filled_up(numbers_OG.half(), 0, BLOCK)
    return filled.view(-1, BLOCK, filled.shape[1]).transpose(1, 2).contiguous()


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
