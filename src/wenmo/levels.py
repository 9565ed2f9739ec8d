"""What a matrix's few bits stand for: codes, and the levels that they number.

In: a matrix [O, I]. Out: `Codes`, and from them the matrix again, as near as the bits allow. This is the one definition
of levels, scales and minima: compress/ chooses codes by it, nn/quantized.py holds and stores them, engine/packed.py
hands them to the processor's kernels.

    8 bits    w = scale · code,            code in −127 … 127, a scale for each output (of a vocabulary that goes with
                                           4 bits: for each GROUP of its inputs, which is what GGUF calls Q8_0)
    4 bits    w = scale · code + minimum,  code in 0 … 15, a scale and a minimum for each GROUP of an output's inputs

What stands for a GROUP is an fp16 number, a scale of a whole output a bf16 number, since the kernels multiply by such;
a weight is rounded to the levels they give. 4 bits are what GGUF calls Q4_1: a matrix that was stored so keeps its
levels, and loses nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from wenmo.errors import ModelError, say

Bits = Literal[4, 8]
GROUP = 32  # inputs that share a scale in 4 bits
LEVELS = {4: (0, 15), 8: (-127, 127)}  # the lowest and the highest code
_TINY = {4: 2.0**-24, 8: 2.0**-40}  # a scale is never zero
_LARGEST = 65504.0  # of fp16
_NEAR = 0.02  # of a step: so far from a level fp16 scales and minima may lay a weight that was on it
_OUTPUTS_MULTIPLE = 16  # of the kernel for 4 bits


@dataclass(frozen=True, slots=True)
class Grid:
    """The levels to which the weights are rounded, a scale for each group: [O, G]. No minima: 8 bits."""

    scales: Tensor
    minima: Tensor | None

    @property
    def bits(self) -> Bits:
        return 8 if self.minima is None else 4

    def round(self, weight_OX: Tensor, groups: Tensor | slice = slice(None)) -> Tensor:
        """fp32 codes of weights [O, X], each column by the scale of its own group (or all by one)."""
        scales_OX = self.scales[:, groups]
        moved_OX = weight_OX if self.minima is None else weight_OX - self.minima[:, groups]
        return (moved_OX / scales_OX).round().clamp(*LEVELS[self.bits])

    def level(self, codes_OX: Tensor, groups: Tensor | slice = slice(None)) -> Tensor:
        """The weights that codes stand for."""
        weight_OX = codes_OX * self.scales[:, groups]
        return weight_OX if self.minima is None else weight_OX + self.minima[:, groups]


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

    @property
    def is_grouped(self) -> bool:
        """Whether an output has several scales."""
        return self.grid.scales.shape[1] > 1

    def weight(self) -> Tensor:
        """[O, I] in fp32."""
        num_outputs, num_inputs = self.numbers.shape
        grouped_OGX = self.numbers.view(num_outputs, self.grid.scales.shape[1], -1)
        weight_OGX = grouped_OGX * self.grid.scales[..., None].float()
        if self.grid.minima is not None:
            weight_OGX += self.grid.minima[..., None].float()
        return weight_OGX.view(num_outputs, num_inputs)


def bits_for(num_outputs: int, num_inputs: int, bits: Bits) -> Bits:
    """4 bits need whole groups of inputs, and outputs in sixteens; a matrix of other sizes takes 8."""
    fits = num_inputs % GROUP == 0 and num_outputs % _OUTPUTS_MULTIPLE == 0
    return bits if fits else 8


def grid_of(weight_OI: Tensor, bits: Bits, importance_I: Tensor | None = None) -> Grid:
    """The levels between each group's extremes. With `importance_I`, the range of a group of 4 bits is narrowed to
    where the squared errors, so weighted, are least: what lies outside is cut off, all else is finer. ModelError for
    weights that fp16 does not have."""
    weight_OI = weight_OI.detach().float()
    if bits == 8:
        return Grid(_bf16(weight_OI.abs().amax(1, keepdim=True) / 127).clamp(min=_TINY[8]), None)
    num_outputs, num_inputs = weight_OI.shape
    groups_OGX = weight_OI.view(num_outputs, num_inputs // GROUP, GROUP)
    low_OG, high_OG = groups_OGX.amin(-1), groups_OGX.amax(-1)
    if max(-float(low_OG.min()), float(high_OG.max())) > _LARGEST:
        raise ModelError(
            say("the model has weights that are too large for 4 bits", "模型中有权重过大，无法用 4 比特表示"),
            mend=say("choose 8 bits or bf16", "请选择 8 比特或 bf16"))
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
        assert best.minima is not None
        assert grid.minima is not None
        best = Grid(torch.where(better_OG, grid.scales, best.scales),
                    torch.where(better_OG, grid.minima, best.minima))
    return best


def nearest(weight_OI: Tensor, grid: Grid) -> Codes:
    """Each weight at the level nearest to it."""
    num_groups = grid.scales.shape[1]
    groups_I = torch.arange(num_groups).repeat_interleave(weight_OI.shape[1] // num_groups)
    return Codes(grid.round(weight_OI.float(), groups_I).to(torch.int8), grid)


def eight_bits(weight_OI: Tensor) -> Codes:
    return nearest(weight_OI, grid_of(weight_OI, 8))


def eight_bits_in_groups(weight_OI: Tensor) -> Codes:
    """A scale for each GROUP of an output's inputs, where there are several and all are whole; else as `eight_bits`."""
    if weight_OI.shape[1] % GROUP or weight_OI.shape[1] == GROUP:
        return eight_bits(weight_OI)
    groups_OGX = weight_OI.float().view(len(weight_OI), -1, GROUP)
    return nearest(weight_OI, Grid(_fp16(groups_OGX.abs().amax(-1) / 127).clamp(min=_TINY[4]), None))


def four_bits(weight_OI: Tensor) -> Codes:
    """Weights that stand on sixteen levels a group already, as those of files in 4 bits do, stay on these."""
    return nearest(weight_OI, _levels_found(weight_OI.float(), grid_of(weight_OI, 4)))


def joined(parts: list[Codes]) -> Codes:
    """Matrices of the same inputs and bits, one below the other."""
    minima = [part.grid.minima for part in parts if part.grid.minima is not None]
    grid = Grid(torch.cat([part.grid.scales for part in parts]), torch.cat(minima) if minima else None)
    return Codes(torch.cat([part.numbers for part in parts]), grid)


def _bf16(values: Tensor) -> Tensor:
    """fp32 numbers that bf16 has too."""
    return values.bfloat16().float()


def _fp16(values: Tensor) -> Tensor:
    """fp32 numbers that fp16 has too; its steps are no finer than 2^-24."""
    return values.half().float()


def _between(low_OG: Tensor, high_OG: Tensor) -> Grid:
    return Grid(_fp16((high_OG - low_OG) / 15).clamp(min=_TINY[4]), _fp16(low_OG))


def _levels_found(weight_OI: Tensor, grid: Grid) -> Grid:
    """The grid that the weights are on; of groups that are on none the one given. A group need not use all levels: its
    range may be fewer steps than fifteen."""
    groups_NX = weight_OI.reshape(-1, GROUP)
    if ((groups_NX[:64].sort(-1).values.diff() > 0).sum(-1) > LEVELS[4][1]).any():
        return grid  # more than sixteen different numbers
    assert grid.minima is not None
    scales_N, minima_N = grid.scales.flatten().clone(), grid.minima.flatten()
    ranges_N = groups_NX.amax(-1) - groups_NX.amin(-1)
    left = torch.arange(len(groups_NX))  # groups whose steps are not known
    for steps in range(LEVELS[4][1], 0, -1):
        scales = _fp16(ranges_N[left] / steps).clamp(min=_TINY[4])
        places_LX = (groups_NX[left] - minima_N[left, None]) / scales[:, None]
        fits = (places_LX - places_LX.round()).abs().amax(-1) < _NEAR
        scales_N[left[fits]] = scales[fits]
        left = left[~fits]
    return Grid(scales_N.view_as(grid.scales), grid.minima)


def _error(groups_OGX: Tensor, grid: Grid, importance_GX: Tensor) -> Tensor:
    assert grid.minima is not None
    scales, minima = grid.scales[..., None], grid.minima[..., None]
    found_OGX = ((groups_OGX - minima) / scales).round_().clamp_(*LEVELS[4]).mul_(scales).add_(minima)
    return (found_OGX.sub_(groups_OGX).square_() * importance_GX).sum(-1)
