"""Normalisation over the width, in the dtype of its input with fp32 inside."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from wenmo.native.training import kernels_for

_ROWS = 512  # of a chunk: its fp32 copies stay in the cache


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight (Zhang & Sennrich 2019, §3).

    Training on the CPU has formula and gradient by hand: torch's are a dozen passes over fp32 copies of the whole,
    unless they are compiled.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x_MD: Tensor) -> Tensor:
        if torch.is_grad_enabled() and not x_MD.is_cuda and not torch.compiler.is_compiling():
            function: Any = _RMSNorm.apply
            out: Tensor = function(x_MD, self.weight, self.eps)
            return out
        return F.rms_norm(x_MD, self.weight.shape, self.weight.to(x_MD.dtype), self.eps)


class _RMSNorm(torch.autograd.Function):
    """With x̂ = x / rms: dx = (w·dy - x̂ · mean(w·dy·x̂)) / rms, dw = Σ dy·x̂. Native, or chunk by chunk in torch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        x_MD = x.reshape(-1, x.shape[-1]).contiguous()
        kernels = kernels_for(x_MD)
        if kernels is not None:
            out_MD, scale_M = kernels.norm(x_MD, weight_D.float(), eps)
            ctx.save_for_backward(x_MD, weight_D, scale_M[:, None])
            return out_MD.view(x.shape)
        out_MD = torch.empty_like(x_MD, memory_format=torch.contiguous_format)
        scale_M1 = torch.empty(len(x_MD), 1)  # 1 / rms
        for start in range(0, len(x_MD), _ROWS):
            rows = slice(start, start + _ROWS)
            chunk = x_MD[rows].to(torch.float32, copy=True)
            torch.rsqrt(chunk.square().mean(-1, keepdim=True).add_(eps), out=scale_M1[rows])
            out_MD[rows] = chunk.mul_(scale_M1[rows]).mul_(weight_D)
        ctx.save_for_backward(x_MD, weight_D, scale_M1)
        return out_MD.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        x_MD, weight_D, scale_M1 = ctx.saved_tensors
        d_out_MD = d_out.reshape(x_MD.shape)
        weight = weight_D.float()
        kernels = kernels_for(x_MD)
        if kernels is not None:
            d_x_MD, d_weight = kernels.norm_backward(x_MD, weight, scale_M1, d_out_MD.contiguous())
            return d_x_MD.view(d_out.shape), d_weight.to(weight_D.dtype), None
        d_x_MD, d_weight = torch.empty_like(d_out_MD, memory_format=torch.contiguous_format), torch.zeros_like(weight)
        for start in range(0, len(x_MD), _ROWS):
            rows = slice(start, start + _ROWS)
            unit = x_MD[rows].to(torch.float32, copy=True).mul_(scale_M1[rows])
            chunk = d_out_MD[rows].to(torch.float32, copy=True)
            product = chunk * unit
            d_weight += product.sum(0)
            mean = torch.mv(product, weight).div_(-len(weight))
            d_x_MD[rows] = chunk.mul_(weight).addcmul_(unit, mean[:, None]).mul_(scale_M1[rows])
        return d_x_MD.view(d_out.shape), d_weight.to(weight_D.dtype), None


class LayerNorm(nn.LayerNorm):
    """(x - mean) / sqrt(var + eps) · weight + bias (Ba et al. 2016). fp32 weights beside bf16 input are native."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__(width, eps=eps)
