"""Dropout (Srivastava et al. 2014), several times faster on the CPU than drawing one Bernoulli number an element.

The random numbers come from torch's default generator, which the training loop seeds from (seed, step,
micro-batch) before each forward: the masks are a pure function of those, and nothing needs saving.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEVELS = 1 << 16


def dropout(x: Tensor, probability: float) -> Tensor:
    """Zeroes each element with `probability` (to within 2^-16) and scales the rest by 1 / (1 - probability)."""
    if x.is_cuda:
        return F.dropout(x, probability)
    dropped_levels = min(round(probability * _LEVELS), _LEVELS - 1)
    # Four 16-bit numbers out of every 64 random bits; `from` = the lowest int64 asks for all 64.
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(1 << 63), None)
    uniform = words.view(torch.int16)[: x.numel()].view(x.shape)
    keep = uniform >= dropped_levels - _LEVELS // 2
    return x * keep.to(x.dtype).mul_(_LEVELS / (_LEVELS - dropped_levels))


class Dropout(nn.Module):
    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.probability) if self.training and self.probability > 0 else x

    def extra_repr(self) -> str:
        return f"probability={self.probability}"
