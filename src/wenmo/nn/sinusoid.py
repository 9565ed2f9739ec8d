"""Positions as sines and cosines, without anything to learn (Vaswani et al. 2017, §3.5)."""

from __future__ import annotations

import torch
from torch import Tensor


def sinusoids(num_positions: int, width: int) -> Tensor:
    """[num_positions, width], fp32: sin(p / 10000^(2i/D)) for i = 0 … D/2 - 1, then the cosines of the same angles.

    The paper has sines and cosines by turns; halves, as Hugging Face's Marian has them, are the same up to the order of
    the dimensions. Angles are made in fp64: those of late positions have few digits left behind the point in fp32.
    """
    exponent_X = torch.arange(0, width, 2, dtype=torch.float64) / width
    angle_PX = torch.arange(num_positions, dtype=torch.float64)[:, None] / 10000**exponent_X
    return torch.cat((angle_PX.sin(), angle_PX.cos()), dim=-1).float()
