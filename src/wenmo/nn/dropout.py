"""Dropout (Srivastava et al. 2014), many times faster on the CPU than drawing one Bernoulli number an element.

Each element gets 16 random bits, and what is to be kept is marked by all bits set, so that dropping is a bitwise `and`.
The bits come from numpy's SFC64 under a seed that torch's default generator gives; the training loop seeds that one
from (seed, step, micro-batch) before each forward: the masks are a pure function of those, and nothing needs saving.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEVELS = 1 << 16


def dropout(x: Tensor, probability: float) -> Tensor:
    """Zeroes each element with `probability` (to within 2^-16) and scales the rest by 1 / (1 - probability)."""
    if x.is_cuda or torch.compiler.is_compiling():
        return F.dropout(x, probability)
    function: Any = _Dropout.apply
    out: Tensor = function(x, probability)
    return out


def new_seed() -> int:
    """Of the next mask, from torch's default generator."""
    return int(torch.empty((), dtype=torch.int64).random_())


def kept_bits(shape: torch.Size, probability: float, seed: int | None = None) -> Tensor:
    """int16 of that shape: all bits set where an element is kept, none where it is dropped. A new seed unless given."""
    seed = new_seed() if seed is None else seed
    words = np.random.SFC64(seed).random_raw((shape.numel() + 3) // 4)  # four numbers of 16 bits in each
    uniform = torch.from_numpy(words.view(np.int16))[: shape.numel()].view(shape)
    # Compared into integers: torch writes booleans seven times more slowly.
    torch.ge(uniform, _dropped_levels(probability) - _LEVELS // 2, out=uniform)
    return uniform.neg_()


def drop(x: Tensor, bits: Tensor, probability: float) -> Tensor:
    """What `kept_bits` keeps of x, scaled; its own derivative."""
    return blank(x, bits).mul_(scale_of(probability))


def blank(x: Tensor, bits: Tensor) -> Tensor:
    """What `kept_bits` keeps of x, not scaled."""
    if x.element_size() == bits.element_size():
        return (x.view(torch.int16) & bits).view(x.dtype)
    return x * bits.to(x.dtype).neg_()


def scale_of(probability: float) -> float:
    """1 / (1 - probability)."""
    return _LEVELS / (_LEVELS - _dropped_levels(probability))


def _dropped_levels(probability: float) -> int:
    return min(round(probability * _LEVELS), _LEVELS - 1)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, probability: float) -> Tensor:
        bits = kept_bits(x.shape, probability)
        ctx.save_for_backward(bits)
        ctx.probability = probability
        return drop(x, bits, probability)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, None]:
        return drop(d_out, ctx.saved_tensors[0], ctx.probability), None


class Dropout(nn.Module):
    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.probability) if self.training and self.probability > 0 else x

    def extra_repr(self) -> str:
        return f"probability={self.probability}"
