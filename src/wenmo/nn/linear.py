"""Linear map whose arithmetic follows its input, and embeddings.

Parameters stay in fp32 (they are the optimizer's masters); the matrix is cast to the activations' format at each
use. The cast costs under 1% of a step (docs/decisions.md) and replaces autocast, loss scaling and a second copy
of the weights. A model cast to bf16 as a whole (serving) meets no cast here.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """x_MI → x W^T + b, in x's dtype."""

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.linear(input, self.weight.to(input.dtype), bias)
