"""Linear maps whose arithmetic follows their input.

Parameters stay in fp32 (they are the optimizer's masters); the matrix is cast to the activations' format at each
use. The cast costs under 1% of a step (docs/decisions.md) and replaces autocast, loss scaling and a second copy
of the weights. A model cast to bf16 as a whole (serving) meets no cast here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """x_MI → x W^T + b, in x's dtype."""

    def reset_parameters(self) -> None:
        """Zeros: a model draws its own numbers (`initialise`), or reads them. torch's draw half a second for 135M."""
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.linear(input, self.weight.to(input.dtype), bias)


class Conv1D(nn.Module):
    """x W + b, with W as [in, out]: a linear map whose matrix is stored the other way round (GPT-2's)."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width_in, width_out))
        self.bias = nn.Parameter(torch.zeros(width_out))

    def forward(self, x_MI: Tensor) -> Tensor:
        return torch.addmm(self.bias.to(x_MI.dtype), x_MI, self.weight.to(x_MI.dtype))


def project(x_MI: Tensor, maps: Sequence[Any]) -> Sequence[Tensor]:
    """Several maps of the same input, [M, O] each. Where surgery has joined them (engine/packed.py), in one product;
    for training nothing is gained by that."""
    joint = getattr(maps[0], "joint", None)
    return [each(x_MI) for each in maps] if joint is None else torch.split(joint(x_MI), joint.widths, dim=-1)
