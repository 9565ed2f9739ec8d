"""Surgery for inference: the linear maps of a model, packed for the processor or quantised.

In: a model. Out: the same model, its maps replaced by `Packed` ones: maps of the same input joined to one product (a
class names them in `together`), the weights re-ordered as the processor's kernels read them, in one of the formats:

    fp32, bf16    as they are
    int8          weights and activations in 8 bits, a scale for each row of either; best for many rows
    int8-weights  weights in 8 bits, multiplied in bf16; best for one row
    int4          weights in 4 bits, a scale and a zero for each GROUP of inputs, multiplied in bf16

The plain modules are gone then: such a model answers, and does not learn. A product of few rows may give other bits
than one of many (a gemv instead of a gemm, another split of the sum); each map finds out from how many rows on its
bits are the same, and pads what has fewer.
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
from wenmo.nn.linear import Conv1D, Linear
from wenmo.nn.norm import RMSNorm
from wenmo.nn.quantized import GROUP, Codes, QuantizedLinear, bits_for, eight_bits, four_bits, joined, matrix_of

Format = Literal["fp32", "bf16", "int8", "int8-weights", "int4"]
FormatOrAuto = Literal["auto", "fp32", "bf16", "int8", "int8-weights", "int4"]
Product = Callable[[Tensor], Tensor]
ROWS = 32  # at most so many rows are in one product of tokens that are written (runner.py)
VOCABULARIES = {"causal_lm", "masked_lm", "seq2seq_lm"}  # heads whose outputs are the vocabulary's
BYTES: dict[Format, float] = {"fp32": 4, "bf16": 2, "int8": 1, "int8-weights": 1, "int4": 0.5 + 4 / GROUP}  # a weight
COUNTS = (1, 2, 3, 4, 8, 16)  # of rows, that are tried against ROWS


class Packed(nn.Module):
    """x_MI → x W^T + b. `widths`: the outputs of each of the maps that were joined."""

    def __init__(self, matrix_OI: Tensor | Codes, bias_O: Tensor | None, format: Format,
                 widths: tuple[int, ...]) -> None:
        super().__init__()
        self.format, self.widths = format, widths
        self.bias_O = None if bias_O is None else bias_O.detach().to(dtype_of(format))
        own_format = _own_format(matrix_OI, format)
        self.product = _product(matrix_OI, own_format)
        self.least_rows = _least_rows(own_format, *matrix_OI.shape)
        self.num_bytes = round(matrix_OI.shape.numel() * BYTES[own_format])

    def forward(self, x_MI: Tensor) -> Tensor:
        num_rows = x_MI.shape[0]
        if num_rows < self.least_rows:
            x_MI = F.pad(x_MI, (0, 0, 0, self.least_rows - num_rows))
        out_MO = self.product(x_MI)[:num_rows]
        return out_MO if self.bias_O is None else out_MO + self.bias_O


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


def pack(model: Any, format: Format) -> None:
    """Replaces all linear maps of the model but its output vocabulary, in place; `Head` packs that."""
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
                           tuple(matrix.shape[0] for matrix in matrices))
            for index, name in enumerate(names):
                setattr(module, name, Part(joint, index))
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) in (Linear, Conv1D, QuantizedLinear) and child is not output:
                matrix = matrix_of(child)
                setattr(module, name, Packed(matrix, child.bias, format, (matrix.shape[0],)))
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
    """hidden_XD → fp32 scores of the vocabulary, [X, V]. In int4 the head has 8 bits: it is where 4 hurt most."""

    def __init__(self, model: Any, format: Format) -> None:
        weight_VD, bias_V = model.lm_output()
        self.features = model.lm_features
        self.packed = Packed(weight_VD, bias_V, "int8-weights" if format == "int4" else format, (weight_VD.shape[0],))

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


def _product(matrix_OI: Tensor | Codes, format: Format) -> Product:
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
        scales = codes.grid.scales.squeeze(1).bfloat16()
        bytes_OI = codes.numbers.contiguous()
        return lambda x: torch.ops.aten._weight_int8pack_mm(x, bytes_OI, scales)
    return _int8(codes) if format == "int8" else _int4(codes)


def _int8(codes: Codes) -> Product:
    """Activations as unsigned bytes around 128: the kernels of processors without AMX know those alone."""
    ordered = torch.ops.onednn.qlinear_prepack(codes.numbers.contiguous(), None)
    scale_O = codes.grid.scales.squeeze(1).float()
    zeros = torch.zeros(len(scale_O), dtype=torch.int32)

    def product(x_MI: Tensor) -> Tensor:
        scale_M1 = (x_MI.abs().amax(1, keepdim=True).float() / 127).clamp_(min=1e-12)
        bytes_MI = (x_MI / scale_M1).add_(128.5).to(torch.uint8)  # rounds: what is cut off is never below 0
        out_MO = torch.ops.onednn.qlinear_pointwise(bytes_MI, 1.0, 128, ordered, scale_O, zeros, None, 1.0, 0,
                                                    torch.float32, "none", [], "")
        scaled_MO: Tensor = out_MO.mul_(scale_M1).to(x_MI.dtype)
        return scaled_MO

    return product


def _int4(codes: Codes) -> Product:
    """The kernel counts codes from 0, and its zero is the weight of code 8: ours of code 0."""
    assert codes.grid.zeros is not None
    ordered = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.numbers.to(torch.int32) + 8, 1)
    scales = torch.stack([codes.grid.scales, codes.grid.zeros], -1).transpose(0, 1).contiguous().bfloat16()
    return lambda x: torch.ops.aten._weight_int4pack_mm_for_cpu(x, ordered, GROUP, scales)


@cache
def _least_rows(format: Format, num_outputs: int, num_inputs: int) -> int:
    """From how many rows on a product of this size gives a row the same bits as one of ROWS rows, by trial.

    Differences are rare (a last bit of one in ten thousand numbers), so that many rows are tried.
    """
    generator = torch.Generator().manual_seed(0)
    num_outputs = min(num_outputs, 8192)  # of a vocabulary a part will do
    num_rows = ROWS * max(4, min(32, 2**22 // (num_outputs * ROWS)))
    product = _product(torch.randn(num_outputs, num_inputs, generator=generator) * num_inputs**-0.5, format)
    x = torch.randn(num_rows, num_inputs, generator=generator).to(dtype_of(format))
    with torch.inference_mode():
        expected = torch.cat([product(part) for part in torch.split(x, ROWS)])
        for count in COUNTS:
            if torch.equal(torch.cat([product(part) for part in torch.split(x, count)]), expected):
                return count
    return ROWS
