"""Normalisation over the width, in the dtype of its input with fp32 inside."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight (Zhang & Sennrich 2019, §3)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x_MD: Tensor) -> Tensor:
        return F.rms_norm(x_MD, self.weight.shape, self.weight.to(x_MD.dtype), self.eps)


class LayerNorm(nn.LayerNorm):
    """(x - mean) / sqrt(var + eps) · weight + bias (Ba et al. 2016). fp32 weights beside bf16 input are native."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__(width, eps=eps)
