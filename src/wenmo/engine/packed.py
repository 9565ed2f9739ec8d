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

from collections.abc import Callable
from functools import cache
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wenmo import device
from wenmo.nn.linear import Conv1D, Linear

Format = Literal["fp32", "bf16", "int8", "int8-weights", "int4"]
FormatOrAuto = Literal["auto", "fp32", "bf16", "int8", "int8-weights", "int4"]
Product = Callable[[Tensor], Tensor]
ROWS = 32  # at most so many rows are in one product of tokens that are written (runner.py)
GROUP = 32  # inputs that share a scale in int4
COUNTS = (1, 2, 3, 4, 8, 16)  # of rows, that are tried against ROWS


class Packed(nn.Module):
    """x_MI → x W^T + b. `widths`: the outputs of each of the maps that were joined."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, format: Format, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.format, self.widths = format, widths
        self.bias_O = None if bias_O is None else bias_O.detach().to(dtype_of(format))
        self.product = _product(weight_OI.detach(), format)
        self.least_rows = _least_rows(format, weight_OI.shape[0], weight_OI.shape[1])

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


def pack(model: Any, format: Format) -> None:
    """Replaces all linear maps of the model but its output vocabulary, in place; `head_of` packs that."""
    vocabulary, _ = model.lm_output()
    for module in list(model.modules()):
        for names in getattr(module, "together", ()):
            maps = [getattr(module, name) for name in names]
            if not all(type(each) is Linear for each in maps):
                continue
            biases = [each.bias for each in maps]
            assert all((bias is None) == (biases[0] is None) for bias in biases)
            joint = Packed(torch.cat([each.weight for each in maps]), None if biases[0] is None else torch.cat(biases),
                           format, tuple(each.weight.shape[0] for each in maps))
            for index, name in enumerate(names):
                setattr(module, name, Part(joint, index))
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is Linear and child.weight is not vocabulary:
                setattr(module, name, Packed(child.weight, child.bias, format, (child.weight.shape[0],)))
            elif type(child) is Conv1D:
                setattr(module, name, Packed(child.weight.t(), child.bias, format, (child.weight.shape[1],)))
    model.compute_dtype = dtype_of(format)


def chosen_format(format: FormatOrAuto) -> Format:
    """`auto` is bf16 where the processor multiplies it natively, else fp32."""
    if format == "auto":
        return "bf16" if device.has_native_bf16(torch.device("cpu")) else "fp32"
    return cast(Format, format)


def dtype_of(format: Format) -> torch.dtype:
    """Of the activations."""
    return torch.float32 if format == "fp32" else torch.bfloat16


def head_of(model: Any, format: Format) -> Callable[[Tensor], Tensor]:
    """hidden_XD → fp32 scores of the vocabulary, [X, V]. In int4 the head has 8 bits: it is where 4 hurt most."""
    weight_VD, bias_V = model.lm_output()
    packed = Packed(weight_VD, bias_V, "int8-weights" if format == "int4" else format, (weight_VD.shape[0],))

    def head(hidden_XD: Tensor) -> Tensor:
        scores_XV: Tensor = packed(model.lm_features(hidden_XD)).float()
        return scores_XV

    return head


# Formats ----------------------------------------------------------------------------------------------


def _product(weight_OI: Tensor, format: Format) -> Product:
    if format == "fp32":
        kept = weight_OI.float().contiguous()
        return lambda x: F.linear(x, kept)
    if format == "bf16":
        ordered = torch.ops.mkldnn._reorder_linear_weight(weight_OI.bfloat16().contiguous(), ROWS)
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, ordered, None, "none", [], "")
    if format == "int8-weights":
        codes, scales = eight_bits(weight_OI)
        rounded = scales.bfloat16()
        return lambda x: torch.ops.aten._weight_int8pack_mm(x, codes, rounded)
    if format == "int8":
        return _int8(weight_OI)
    return _int4(weight_OI)


def eight_bits(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """(codes, a scale for each output): the nearest of 255 levels."""
    scale_O = (weight_OI.float().abs().amax(1) / 127).clamp(min=1e-12)
    return (weight_OI.float() / scale_O[:, None]).round().to(torch.int8), scale_O


def _int8(weight_OI: Tensor) -> Product:
    """Activations as unsigned bytes around 128: the kernels of processors without AMX know those alone."""
    codes, scale_O = eight_bits(weight_OI)
    ordered = torch.ops.onednn.qlinear_prepack(codes, None)
    zeros = torch.zeros(len(scale_O), dtype=torch.int32)

    def product(x_MI: Tensor) -> Tensor:
        scale_M1 = (x_MI.abs().amax(1, keepdim=True).float() / 127).clamp_(min=1e-12)
        bytes_MI = (x_MI / scale_M1).add_(128.5).to(torch.uint8)  # rounds: what is cut off is never below 0
        out_MO = torch.ops.onednn.qlinear_pointwise(bytes_MI, 1.0, 128, ordered, scale_O, zeros, None, 1.0, 0,
                                                    torch.float32, "none", [], "")
        scaled_MO: Tensor = out_MO.mul_(scale_M1).to(x_MI.dtype)
        return scaled_MO

    return product


def _int4(weight_OI: Tensor) -> Product:
    """Sixteen levels for each GROUP inputs, from the smallest to the largest weight among them."""
    num_outputs, num_inputs = weight_OI.shape
    groups_OGX = weight_OI.float().view(num_outputs, num_inputs // GROUP, GROUP)
    low_OG, high_OG = groups_OGX.amin(-1), groups_OGX.amax(-1)
    scale_OG = ((high_OG - low_OG) / 15).clamp(min=1e-12)
    codes = ((groups_OGX - low_OG[..., None]) / scale_OG[..., None]).round().clamp(0, 15).to(torch.int32)
    ordered = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.view(num_outputs, num_inputs), 1)
    # The kernel's zero is the weight of code 8.
    scales = torch.stack([scale_OG, low_OG + 8 * scale_OG], -1).transpose(0, 1).contiguous().bfloat16()
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
