"""Matrices in 8 or 4 bits: what a few bits stand for, and the modules that hold them in a matrix's place.

In: a matrix [O, I]. Out: `Codes`, and from them the matrix again, as near as the bits allow. This is the one definition
of levels, scales and zeros: compress/ chooses codes by it, modeldir stores them, engine/packed.py hands them to the
processor's kernels.

    8 bits    w = scale · code,          code in −127 … 127, a scale for each output
    4 bits    w = scale · code + zero,   code in −8 … 7, a scale and a zero for each GROUP of an output's inputs

Scales and zeros are bf16 numbers, since the kernels multiply by such; a weight is rounded to the levels they give.
In a file a matrix `X.weight` is `X.codes` ([O, I], or two codes of 4 bits in a byte, [O, I/2], the first one low),
`X.scales` and, of 4 bits, `X.zeros`, [O, groups] each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wenmo.nn.linear import Conv1D, Linear

Bits = Literal[4, 8]
GROUP = 32  # inputs that share a scale in 4 bits
LEVELS = {4: (-8, 7), 8: (-127, 127)}  # the lowest and the highest code
_TINY = 2.0**-40  # a scale is never zero
_OUTPUTS_MULTIPLE = 16  # of the kernel for 4 bits
PARTS = ("codes", "scales", "zeros")


@dataclass(frozen=True, slots=True)
class Grid:
    """The levels to which the weights are rounded, a scale for each group: [O, G]. No zeros: 8 bits."""

    scales: Tensor
    zeros: Tensor | None

    @property
    def bits(self) -> Bits:
        return 8 if self.zeros is None else 4

    def round(self, weight_OX: Tensor, groups: Tensor | slice = slice(None)) -> Tensor:
        """fp32 codes of weights [O, X], each column by the scale of its own group (or all by one)."""
        scales_OX = self.scales[:, groups]
        moved_OX = weight_OX if self.zeros is None else weight_OX - self.zeros[:, groups]
        return (moved_OX / scales_OX).round().clamp(*LEVELS[self.bits])

    def level(self, codes_OX: Tensor, groups: Tensor | slice = slice(None)) -> Tensor:
        """The weights that codes stand for."""
        weight_OX = codes_OX * self.scales[:, groups]
        return weight_OX if self.zeros is None else weight_OX + self.zeros[:, groups]


@dataclass(frozen=True, slots=True)
class Codes:
    """A matrix in few bits: `numbers`, int8 [O, I], of levels of the grid."""

    numbers: Tensor
    grid: Grid

    @property
    def bits(self) -> Bits:
        return self.grid.bits

    @property
    def shape(self) -> torch.Size:
        return self.numbers.shape

    def weight(self) -> Tensor:
        """[O, I] in fp32."""
        num_outputs, num_inputs = self.numbers.shape
        grouped_OGX = self.numbers.view(num_outputs, self.grid.scales.shape[1], -1)
        weight_OGX = grouped_OGX * self.grid.scales[..., None].float()
        if self.grid.zeros is not None:
            weight_OGX += self.grid.zeros[..., None].float()
        return weight_OGX.view(num_outputs, num_inputs)


def bits_for(num_outputs: int, num_inputs: int, bits: Bits) -> Bits:
    """4 bits need whole groups of inputs, and outputs in sixteens; a matrix of other sizes takes 8."""
    fits = num_inputs % GROUP == 0 and num_outputs % _OUTPUTS_MULTIPLE == 0
    return bits if fits else 8


def grid_of(weight_OI: Tensor, bits: Bits, importance_I: Tensor | None = None) -> Grid:
    """The levels between each group's extremes. With `importance_I`, the range of a group of 4 bits is narrowed to
    where the squared errors, so weighted, are least: what lies outside is cut off, all else is finer."""
    weight_OI = weight_OI.float()
    if bits == 8:
        return Grid(_bf16(weight_OI.abs().amax(1, keepdim=True) / 127).clamp(min=_TINY), None)
    num_outputs, num_inputs = weight_OI.shape
    groups_OGX = weight_OI.view(num_outputs, num_inputs // GROUP, GROUP)
    low_OG, high_OG = groups_OGX.amin(-1), groups_OGX.amax(-1)
    best = _between(low_OG, high_OG)
    if importance_I is None:
        return best
    importance_GX = importance_I.float().view(-1, GROUP)
    least_OG = _error(groups_OGX, best, importance_GX)
    for narrower in (0.025 * step for step in range(1, 13)):
        cut_OG = (high_OG - low_OG) * narrower / 2
        grid = _between(low_OG + cut_OG, high_OG - cut_OG)
        error_OG = _error(groups_OGX, grid, importance_GX)
        better_OG = error_OG < least_OG
        least_OG = torch.where(better_OG, error_OG, least_OG)
        assert best.zeros is not None
        assert grid.zeros is not None
        best = Grid(torch.where(better_OG, grid.scales, best.scales),
                    torch.where(better_OG, grid.zeros, best.zeros))
    return best


def nearest(weight_OI: Tensor, grid: Grid) -> Codes:
    """Each weight at the level nearest to it."""
    num_groups = grid.scales.shape[1]
    groups_I = torch.arange(num_groups).repeat_interleave(weight_OI.shape[1] // num_groups)
    return Codes(grid.round(weight_OI.float(), groups_I).to(torch.int8), grid)


def eight_bits(weight_OI: Tensor) -> Codes:
    return nearest(weight_OI, grid_of(weight_OI, 8))


def four_bits(weight_OI: Tensor) -> Codes:
    return nearest(weight_OI, grid_of(weight_OI, 4))


def joined(parts: list[Codes]) -> Codes:
    """Matrices of the same inputs and bits, one below the other."""
    zeros = [part.grid.zeros for part in parts if part.grid.zeros is not None]
    grid = Grid(torch.cat([part.grid.scales for part in parts]), torch.cat(zeros) if zeros else None)
    return Codes(torch.cat([part.numbers for part in parts]), grid)


def _bf16(values: Tensor) -> Tensor:
    """fp32 numbers that bf16 has too."""
    return values.bfloat16().float()


def _between(low_OG: Tensor, high_OG: Tensor) -> Grid:
    scales_OG = _bf16((high_OG - low_OG) / 15).clamp(min=_TINY)
    return Grid(scales_OG, _bf16(low_OG + 8 * scales_OG))


def _error(groups_OGX: Tensor, grid: Grid, importance_GX: Tensor) -> Tensor:
    assert grid.zeros is not None
    scales, zeros = grid.scales[..., None], grid.zeros[..., None]
    found_OGX = ((groups_OGX - zeros) / scales).round_().clamp_(*LEVELS[4]).mul_(scales).add_(zeros)
    return (found_OGX.sub_(groups_OGX).square_() * importance_GX).sum(-1)


# Modules ----------------------------------------------------------------------------------------------


class Quantized(nn.Module):
    """A matrix as it is stored, in the place of one with a `weight`."""

    zeros: Tensor | None

    def __init__(self, codes: Codes) -> None:
        super().__init__()
        self.bits, self.shape = codes.bits, codes.shape
        for part, tensor in stored(codes).items():
            self.register_buffer(part, tensor)
        if codes.bits == 8:
            self.zeros = None

    def quantized(self) -> Codes:
        """The codes, a byte each."""
        return restored({part: getattr(self, part) for part in PARTS})

    @property
    def weight(self) -> Tensor:
        """[O, I] in fp32, made anew."""
        return self.quantized().weight()

    def extra_repr(self) -> str:
        return f"{'×'.join(map(str, self.shape))}, {self.bits} bits"


class QuantizedLinear(Quantized):
    """x_MI → x W^T + b; the matrix is made at each use. `transposed`: a Conv1D stood here."""

    def __init__(self, codes: Codes, bias: nn.Parameter | None, *, transposed: bool = False) -> None:
        super().__init__(codes)
        self.bias, self.transposed = bias, transposed

    def forward(self, x_MI: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x_MI.dtype)
        return F.linear(x_MI, self.weight.to(x_MI.dtype), bias)


class QuantizedEmbedding(Quantized):
    """ids → rows of the matrix, in fp32. 8 bits alone: a scale for each row."""

    def forward(self, ids: Tensor) -> Tensor:
        codes: Any = self.codes
        scales: Any = self.scales
        return F.embedding(ids, codes).float() * F.embedding(ids, scales).float()


def stored(codes: Codes) -> dict[str, Tensor]:
    """What stands in a file (or a module) for a matrix, by the part of its name."""
    scales_OG, zeros_OG = codes.grid.scales, codes.grid.zeros
    if zeros_OG is None:
        return {"codes": codes.numbers, "scales": scales_OG.bfloat16()}
    nibbles_OI = (codes.numbers + 8).to(torch.uint8)
    packed = nibbles_OI[:, 0::2] | (nibbles_OI[:, 1::2] << 4)
    return {"codes": packed, "scales": scales_OG.bfloat16(), "zeros": zeros_OG.bfloat16()}


def restored(parts: Mapping[str, Tensor | None]) -> Codes:
    codes, scales, zeros = (parts.get(part) for part in PARTS)
    assert codes is not None
    assert scales is not None
    if zeros is None:
        return Codes(codes, Grid(scales.float(), None))
    nibbles = torch.stack([codes & 15, codes >> 4], -1).view(codes.shape[0], -1)
    return Codes(nibbles.to(torch.int8) - 8, Grid(scales.float(), zeros.float()))


def replacement(module: nn.Module, codes: Codes) -> Quantized:
    """What stands in a module's place; its bias goes along."""
    if isinstance(module, nn.Embedding):
        return QuantizedEmbedding(codes)
    assert isinstance(module, (Linear, Conv1D))
    return QuantizedLinear(codes, module.bias, transposed=isinstance(module, Conv1D))


def matrix_of(module: Any) -> Tensor | Codes:
    """The matrix [O, I] of a linear map or an embedding, in the form in which it is there."""
    if isinstance(module, Quantized):
        return module.quantized()
    weight: Tensor = module.weight
    return weight.t() if isinstance(module, Conv1D) else weight


def replace(model: nn.Module, name: str, codes: Codes) -> None:
    """Puts codes in the place of a module's matrix, wherever in the model that module stands (tied embeddings)."""
    module = model.get_submodule(name)
    instead = replacement(module, codes)
    for parent in list(model.modules()):
        for child_name, child in list(parent.named_children()):
            if child is module:
                setattr(parent, child_name, instead)


# Whole models -----------------------------------------------------------------------------------------


def names_of(state: Mapping[str, Tensor]) -> list[str]:
    """The modules whose matrices are stored in few bits."""
    return [name.removesuffix(".codes") for name in state if name.endswith(".codes")]


def put_back(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Makes the places for stored codes, which are then to be loaded as any others. Modules that the model does not
    have are left to who loads."""
    for name in names_of(state):
        module = _module(model, name)
        if module is not None:
            replace(model, name, restored({part: state.get(f"{name}.{part}") for part in PARTS}))


def plain(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a model with the matrices that the codes stand for, in the form of the model's own modules."""
    result = dict(state)
    for name in names_of(state):
        weight_OI = restored({part: result.pop(f"{name}.{part}", None) for part in PARTS}).weight()
        result[f"{name}.weight"] = weight_OI.t() if isinstance(_module(model, name), Conv1D) else weight_OI
    return result


def _module(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def is_quantized(model: nn.Module) -> bool:
    return any(isinstance(module, Quantized) for module in model.modules())


def weight_shapes(model: nn.Module) -> dict[str, torch.Size]:
    """Of all that the model has learnt, however many bits a number has, by parameter name. Matrices in few bits are
    [O, I]."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    return shapes | {f"{name}.weight": module.shape for name, module in model.named_modules()
                     if isinstance(module, Quantized)}


def num_weights(model: nn.Module) -> int:
    return sum(shape.numel() for shape in weight_shapes(model).values())
