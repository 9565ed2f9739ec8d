"""Surgery for inference: the linear maps of a model, packed for the processor or quantised.

In: a model. Out: the same model, its maps replaced by `Packed` ones: maps of the same input joined to one product (a
class names them in `together`), the weights re-ordered as the processor's kernels read them, in one of the formats:

    fp32, bf16    as they are
    int8          weights and activations in 8 bits, a scale for each row of either; best for many rows
    int8-weights  weights in 8 bits, multiplied in bf16; best for one row
    int4          weights in 4 bits, a scale and a minimum for each GROUP of inputs, multiplied in bf16

The products are torch's, or those of native/ for a model that runs in native steps (native.py): there activations have
a scale for each GROUP of inputs, which costs less than one for the whole row, and are of 8 bits in both int8 formats,
and of 16 in int4. An output vocabulary has the weights and activations of int8 in all of the last three; the native one
of int4 has a scale for each GROUP of its weights, as what it is made from often has. The plain modules are gone then:
such a model answers, and does not learn. A product of few rows of torch's may give other bits than one of many (a gemv
instead of a gemm, another split of the sum); each map finds out from how many rows on its bits are the same, and pads
what has fewer, and whether products of more rows, of prompts, keep the bits as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wenmo import device
from wenmo.levels import GROUP, Codes, bits_for, eight_bits, four_bits, joined
from wenmo.native.packing import Kind, Matrix, pack_matrix
from wenmo.native.step import Threads
from wenmo.nn.linear import Conv1D, Linear
from wenmo.nn.norm import RMSNorm
from wenmo.nn.quantized import QuantizedLinear, matrix_of

Format = Literal["fp32", "bf16", "int8", "int8-weights", "int4"]
FormatOrAuto = Literal["auto", "fp32", "bf16", "int8", "int8-weights", "int4"]
Product = Callable[[Tensor], Tensor]
ROWS = 32  # at most so many rows are in one product of tokens that are written (runner.py)
VOCABULARIES = {"causal_lm", "masked_lm", "seq2seq_lm"}  # heads whose outputs are the vocabulary's
BYTES: dict[Format, float] = {"fp32": 4, "bf16": 2, "int8": 1, "int8-weights": 1, "int4": 0.5 + 4 / GROUP}  # a weight
COUNTS = (1, 2, 3, 4, 8, 16)  # of rows, that are tried against ROWS
READ_ROWS = 256  # at most so many rows of prompts are in one product: more of them cost as much a row


class Packed(nn.Module):
    """x_MI → x W^T + b, in the dtype of x. `widths`: the outputs of each of the maps that were joined. `scores`: what
    comes out is compared, and has the dtype in which the format adds. `kind`: of a native matrix, where it is not the
    format's."""

    def __init__(self, matrix_OI: Tensor | Codes, bias_O: Tensor | None, format: Format, widths: tuple[int, ...], *,
                 scores: bool = False, threads: Threads | None = None, kind: Kind | None = None) -> None:
        super().__init__()
        self.format, self.widths = format, widths
        self.own_format, self.shape = _own_format(matrix_OI, format), matrix_OI.shape
        self.matrix: Matrix | None = None
        self.bias_O: Tensor | None = None
        if threads is not None:
            self.matrix = pack_matrix(matrix_OI, bias_O, kind or _kind(self.own_format))
            self.product, self.least_rows = _native(self.matrix, threads, scores=scores), 1
            self.num_bytes = self.matrix.num_bytes
            return
        self.bias_O = None if bias_O is None else bias_O.detach().to(dtype_of(format))
        self.product = _product(matrix_OI, self.own_format, scores=scores)
        self.least_rows = _least_rows(self.own_format, *self.shape)
        self.num_bytes = round(self.shape.numel() * BYTES[self.own_format])

    def forward(self, x_MI: Tensor) -> Tensor:
        num_rows = x_MI.shape[0]
        if num_rows < self.least_rows:
            x_MI = F.pad(x_MI, (0, 0, 0, self.least_rows - num_rows))
        out_MO = self.product(x_MI)
        if len(out_MO) > num_rows:
            out_MO = out_MO[:num_rows]
        return out_MO if self.bias_O is None else out_MO + self.bias_O

    def joins_chunks(self) -> bool:
        """Whether a row has the same bits in a chunk of a prompt as among READ_ROWS rows."""
        return self.matrix is not None or _joins_chunks(self.own_format, *self.shape)


class Part(nn.Module):
    """A map that was joined to others: `nn.linear.project` asks for all of them at once."""

    def __init__(self, joint: Packed, index: int) -> None:
        super().__init__()
        self.joint, self.index = joint, index

    def forward(self, x_MI: Tensor) -> Tensor:
        return torch.split(self.joint(x_MI), list(self.joint.widths), dim=-1)[self.index]


class Norm(nn.Module):
    """RMSNorm in four kernels where torch's own takes a dozen: x / √(|x|² + D ε) · (weight √D)."""

    def __init__(self, norm: RMSNorm, dtype: torch.dtype) -> None:
        super().__init__()
        width = norm.weight.numel()
        self.floor = torch.tensor(math.sqrt(width * norm.eps), dtype=dtype)
        self.weight = (norm.weight.detach() * math.sqrt(width)).to(dtype)

    def forward(self, x_MD: Tensor) -> Tensor:
        length_M1 = torch.hypot(torch.linalg.vector_norm(x_MD, 2, -1, keepdim=True), self.floor)
        return (x_MD / length_M1).mul_(self.weight)


def pack(model: Any, format: Format, threads: Threads | None = None) -> None:
    """Replaces all linear maps of the model but its output vocabulary, in place; `Head` packs that. `threads`: of
    native products."""
    output = output_map(model)
    for module in list(model.modules()):
        for names in getattr(module, "together", ()):
            maps = [getattr(module, name) for name in names]
            if not all(type(each) in (Linear, QuantizedLinear) for each in maps):
                continue
            biases = [each.bias for each in maps]
            assert all((bias is None) == (biases[0] is None) for bias in biases)
            matrices = [matrix_of(each) for each in maps]
            joint = Packed(_together(matrices), None if biases[0] is None else torch.cat(biases), format,
                           tuple(matrix.shape[0] for matrix in matrices), threads=threads)
            for index, name in enumerate(names):
                setattr(module, name, Part(joint, index))
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) in (Linear, Conv1D, QuantizedLinear) and child is not output:
                matrix = matrix_of(child)
                setattr(module, name, Packed(matrix, child.bias, format, (matrix.shape[0],), threads=threads))
            elif type(child) is RMSNorm:
                setattr(module, name, Norm(child, dtype_of(format)))
    model.compute_dtype = dtype_of(format)


def chosen_format(format: FormatOrAuto, stored: Format | None = None) -> Format:
    """`auto` is the format that the model is stored in; else bf16 where the processor multiplies it natively, or fp32.
    """
    if format == "auto" and stored is not None:
        return stored
    if format == "auto":
        return "bf16" if device.has_native_bf16(torch.device("cpu")) else "fp32"
    return format


def output_map(model: Any) -> nn.Module | None:
    """The module that holds the output vocabulary's matrix alone, where there is one (embeddings are none such)."""
    vocabulary = model.lm_output()[0] if VOCABULARIES & set(model.heads) else None
    for module in model.modules():
        if type(module) is Linear and module.weight is vocabulary:
            return module
        if type(module) is QuantizedLinear and vocabulary is not None and module.shape == vocabulary.shape:
            return module  # its weight is made anew each time
    return None


def dtype_of(format: Format) -> torch.dtype:
    """Of the activations."""
    return torch.float32 if format == "fp32" else torch.bfloat16


class Head:
    """hidden_XD → fp32 scores of the vocabulary, [X, V]. In few bits, whichever, its format is int8: 4 hurt most here,
    and of all kernels its reads the matrix fastest."""

    def __init__(self, model: Any, format: Format, threads: Threads | None = None) -> None:
        weight_VD, bias_V = model.lm_output()
        self.features = model.lm_features
        own_format: Format = "int8" if format in ("int8-weights", "int4") else format
        self.packed = Packed(weight_VD, bias_V, own_format, (weight_VD.shape[0],), scores=True, threads=threads,
                             kind="int8-groups" if format == "int4" else None)

    def __call__(self, hidden_XD: Tensor) -> Tensor:
        scores_XV: Tensor = self.packed(self.features(hidden_XD)).float()
        return scores_XV


# Formats ----------------------------------------------------------------------------------------------


def _together(matrices: Sequence[Tensor | Codes]) -> Tensor | Codes:
    """Matrices of the same input as one; codes stay codes where all have the same bits."""
    codes = [matrix for matrix in matrices if isinstance(matrix, Codes)]
    if len(codes) == len(matrices) and len({each.bits for each in codes}) == 1:
        return joined(codes)
    return torch.cat([_plain(matrix) for matrix in matrices])


def _plain(matrix_OI: Tensor | Codes) -> Tensor:
    return matrix_OI.weight() if isinstance(matrix_OI, Codes) else matrix_OI.detach()


def _own_format(matrix_OI: Tensor | Codes, format: Format) -> Format:
    """In int4 a matrix has 8 bits where its sizes are none for 4, or where it was stored so."""
    stored_in_8 = isinstance(matrix_OI, Codes) and matrix_OI.bits == 8
    in_8 = format == "int4" and (stored_in_8 or bits_for(matrix_OI.shape[0], matrix_OI.shape[1], 4) == 8)
    return "int8-weights" if in_8 else format


def _product(matrix_OI: Tensor | Codes, format: Format, *, scores: bool = False) -> Product:
    """Codes that were stored are used as they are where the format is theirs."""
    if format == "fp32":
        kept = _plain(matrix_OI).float().contiguous()
        return lambda x: F.linear(x, kept)
    if format == "bf16":
        ordered = torch.ops.mkldnn._reorder_linear_weight(_plain(matrix_OI).bfloat16().contiguous(), ROWS)
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, ordered, None, "none", [], "")
    bits = 4 if format == "int4" else 8
    if isinstance(matrix_OI, Codes) and matrix_OI.bits == bits:
        codes = matrix_OI
    else:
        codes = four_bits(_plain(matrix_OI)) if bits == 4 else eight_bits(_plain(matrix_OI))
    if format == "int8-weights":
        return _int8_weights(codes)
    return _int8(codes, torch.float32 if scores else torch.bfloat16) if format == "int8" else _int4(codes)


def _kind(format: Format) -> Kind:
    """Of a native product. Its integer kinds have the rows in 8 bits too, a scale for each GROUP of inputs."""
    return "int8" if format == "int8-weights" else format


def _native(matrix: Matrix, threads: Threads, *, scores: bool) -> Product:

    def product(x_MI: Tensor) -> Tensor:
        out_MO = threads.product(matrix, x_MI)
        return out_MO if scores or x_MI.dtype == torch.float32 else out_MO.to(x_MI.dtype)

    return product


def _int8_weights(codes: Codes) -> Product:
    """The kernel reads beyond the end of rows that are not whole sixteens of inputs: they are filled up with zeros."""
    scales_O = codes.grid.scales.squeeze(1).bfloat16()
    missing = -codes.shape[1] % 16
    bytes_OI = F.pad(codes.numbers, (0, missing)).contiguous()

    def product(x_MI: Tensor) -> Tensor:
        filled_MI = F.pad(x_MI, (0, missing)) if missing else x_MI
        out_MO: Tensor = torch.ops.aten._weight_int8pack_mm(filled_MI, bytes_OI, scales_O)
        return out_MO

    return product


def _int8(codes: Codes, dtype: torch.dtype) -> Product:
    """Activations as unsigned bytes around 128: the kernels of processors without AMX know those alone. A row's scale
    is its largest magnitude, which bf16 has exactly; the 127 of it stands in the scales of the weights.

    What is done beside the product is chosen by what torch does fast: its maxima of bf16 and its conversion of fp32 to
    bytes take five times as long as those of int16. A row of zeros is NaN on the way, and is multiplied by 0 at the
    end: as bytes it is whatever it is.
    """
    ordered = torch.ops.onednn.qlinear_prepack(codes.numbers.contiguous(), None)
    scale_O = codes.grid.scales.squeeze(1).float() / 127
    zeros, largest_byte = torch.zeros(len(scale_O), dtype=torch.int32), torch.full((1, 1), 127.0)

    def product(x_MI: Tensor) -> Tensor:
        # Without its sign a bf16 number is as large as its bits are, seen as an integer.
        largest_M1 = x_MI.view(torch.int16).bitwise_and(0x7FFF).amax(1, keepdim=True).view(torch.bfloat16)
        moved_MI = x_MI.float().mul_(largest_byte / largest_M1).add_(128.5)  # rounds: what is cut off is never below 0
        out_MO: Tensor = torch.ops.onednn.qlinear_pointwise(
            moved_MI.to(torch.int16).to(torch.uint8), 1.0, 128, ordered, scale_O, zeros, None, 1.0, 0, dtype, "none",
            [], "")
        return out_MO.mul_(largest_M1)

    return product


def _int4(codes: Codes) -> Product:
    """The kernel has the weight of code 8 where ours has that of code 0."""
    assert codes.grid.minima is not None
    ordered = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.numbers.to(torch.int32), 1)
    zeros_OG = codes.grid.minima + 8 * codes.grid.scales
    scales = torch.stack([codes.grid.scales, zeros_OG], -1).transpose(0, 1).contiguous().bfloat16()
    return lambda x: torch.ops.aten._weight_int4pack_mm_for_cpu(x, ordered, GROUP, scales)


@cache
def _least_rows(format: Format, num_outputs: int, num_inputs: int) -> int:
    """From how many rows on a product of this size gives a row the same bits as one of ROWS rows, by trial.

    Differences are rare (a last bit of one in ten thousand numbers), so that many rows are tried.
    """
    num_outputs = min(num_outputs, 8192)  # of a vocabulary a part will do
    product, x = _trial(format, num_outputs, num_inputs, ROWS * max(4, min(32, 2**22 // (num_outputs * ROWS))))
    expected = _in_parts(product, x, ROWS)
    return next((count for count in COUNTS if torch.equal(_in_parts(product, x, count), expected)), ROWS)


@cache
def _joins_chunks(format: Format, num_outputs: int, num_inputs: int) -> bool:
    """By trial."""
    product, x = _trial(format, min(num_outputs, 8192), num_inputs, READ_ROWS)
    expected = _in_parts(product, x, READ_ROWS)
    return all(torch.equal(_in_parts(product, x, count), expected) for count in (16, 64, 96, 128, 192))


def _trial(format: Format, num_outputs: int, num_inputs: int, num_rows: int) -> tuple[Product, Tensor]:
    generator = torch.Generator().manual_seed(0)
    product = _product(torch.randn(num_outputs, num_inputs, generator=generator) * num_inputs**-0.5, format)
    return product, torch.randn(num_rows, num_inputs, generator=generator).to(dtype_of(format))


def _in_parts(product: Product, x_MI: Tensor, num_rows: int) -> Tensor:
    with torch.inference_mode():
        return torch.cat([product(part) for part in torch.split(x_MI, num_rows)])
