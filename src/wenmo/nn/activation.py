"""Activation functions under the names that Hugging Face's configurations use, and gates by them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from wenmo.native.training import kernels_for

ActivationName = Literal["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish"]

# gelu: Hendrycks & Gimpel 2016; gelu_new is its tanh approximation (§2); silu, or swish, is x · σ(x).
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
}


def gated(activation: Callable[[Tensor], Tensor], gate_MF: Tensor, up_MF: Tensor) -> Tensor:
    """activation(gate) · up (Shazeer 2020, §2)."""
    if activation is F.silu and torch.is_grad_enabled() and kernels_for(gate_MF, up_MF) is not None:
        function: Any = _SiluGate.apply
        out_MF: Tensor = function(gate_MF, up_MF)
        return out_MF
    return activation(gate_MF) * up_MF


class _SiluGate(torch.autograd.Function):
    """By native code alone: in torch's operations nothing is gained over its own gradients."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        kernels = kernels_for(gate, up)
        assert kernels is not None
        ctx.save_for_backward(gate, up)
        return kernels.gate(gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        kernels = kernels_for(gate, up)
        assert kernels is not None
        return kernels.gate_backward(gate, up, d_out.contiguous())
