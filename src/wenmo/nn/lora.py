"""Low-rank adapters: a matrix stays as it is, and a product of two thin ones is learnt beside it.

In: a Linear, a Conv1D or an embedding, and how to adapt it. Out: a module that stands in its place, with the same
parameters under the same names, and its own beside them under PEFT's (`lora_A.weight`, `lora_B.weight`, …); or, merged,
one of the first kind again. What is trained and what is frozen is not said here.

LoRA: h = W x + s B A x, with s = α/r (Hu et al. 2021, §4.1), or α/√r (Kalajdzievski 2023). DoRA: the rows of W + s B A
are brought to length 1 and take a learnt magnitude m (Liu et al. 2024, §4.1); their length counts as a constant in the
gradient (§4.3). Where a dropout acts, it acts on what goes into A.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wenmo.nn.dropout import Dropout, drop, kept_bits, new_seed
from wenmo.nn.linear import Conv1D, Linear

Initial = Literal["kaiming", "gaussian"]


@dataclass(frozen=True, slots=True)
class LowRank:
    """How a matrix is adapted. `scale` multiplies B A; `dropout` of the inputs of A; `dora`: with magnitudes."""

    rank: int
    scale: float
    dropout: float = 0.0
    dora: bool = False


class LoraLinear(nn.Module):
    """x_MI → x (W + s B A)^T + b. A [R, I] and B [O, R] are fp32 masters, W may be of any format."""

    def __init__(self, base: nn.Linear | Conv1D, how: LowRank) -> None:
        super().__init__()
        self.weight, self.bias, self.how = base.weight, base.bias, how
        self.transposed = isinstance(base, Conv1D)  # W as [in, out]
        width_out, width_in = base.weight.shape[::-1] if self.transposed else base.weight.shape
        device = base.weight.device
        self.lora_A = Linear(width_in, how.rank, bias=False, device=device)
        self.lora_B = Linear(how.rank, width_out, bias=False, device=device)
        self.dropout = Dropout(how.dropout)
        if how.dora:
            self.lora_magnitude_vector = nn.Parameter(torch.ones(width_out, device=device))

    def initialise(self, initial: Initial, generator: torch.Generator) -> None:
        """B at zero, so that the model begins as it was; A as a Linear's matrix (He et al. 2015), or Normal(0, 1/r)."""
        with torch.no_grad():
            if initial == "kaiming":
                nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5), generator=generator)
            else:
                self.lora_A.weight.normal_(0.0, 1 / self.how.rank, generator=generator)
            self.lora_B.weight.zero_()
            if self.how.dora:
                self.lora_magnitude_vector.copy_(self._lengths())

    def forward(self, x_MI: Tensor) -> Tensor:
        dtype = x_MI.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        if not self.how.dora:
            return self._sum(x_MI, bias)
        share_O = self.lora_magnitude_vector / self._lengths()
        out_MO = self._sum(x_MI, None) * share_O.to(dtype)
        return out_MO if bias is None else out_MO + bias

    def _sum(self, x_MI: Tensor, bias_O: Tensor | None) -> Tensor:
        """x (W + s B A)^T + b. Where nothing but A and B learns, with dropout's masks made twice instead of kept."""
        weight_OI, a_RI, b_OR = self._weight().to(x_MI.dtype), self.lora_A.weight, self.lora_B.weight
        learns_more = weight_OI.requires_grad or (bias_O is not None and bias_O.requires_grad)
        if torch.is_grad_enabled() and not (learns_more or x_MI.is_cuda):
            function: Any = _FrozenPlusLowRank.apply
            rate = self.dropout.probability if self.training else 0.0
            out: Tensor = function(x_MI, weight_OI, bias_O, a_RI, b_OR, self.how.scale, rate)
            return out
        low_MR = self.lora_A(self.dropout(x_MI))  # added where the sum is made: no pass over [M, O] of its own
        return torch.addmm(F.linear(x_MI, weight_OI, bias_O), low_MR, b_OR.to(x_MI.dtype).t(), alpha=self.how.scale)

    def _weight(self) -> Tensor:
        """W as [O, I]."""
        weight: Tensor = self.weight
        return weight.t() if self.transposed else weight

    def _adapted(self) -> Tensor:
        """W + s B A in fp32, [O, I]."""
        return torch.addmm(self._weight().float(), self.lora_B.weight, self.lora_A.weight, alpha=self.how.scale)

    @torch.no_grad()
    def _lengths(self) -> Tensor:
        """Of the rows of W + s B A, [O]."""
        lengths_O: Tensor = torch.linalg.vector_norm(self._adapted(), dim=1)
        return lengths_O

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """A plain Linear or Conv1D that computes the same."""
        weight_OI = self._adapted()
        if self.how.dora:
            weight_OI *= (self.lora_magnitude_vector / self._lengths())[:, None]
        width_out, width_in = weight_OI.shape
        with torch.device("meta"):
            plain: nn.Module = (Conv1D(width_in, width_out) if self.transposed
                                else Linear(width_in, width_out, bias=self.bias is not None))
        plain.weight = nn.Parameter((weight_OI.t() if self.transposed else weight_OI).contiguous())
        if self.bias is not None:
            plain.bias = self.bias
        return plain

    def extra_repr(self) -> str:
        return str(self.how)


class _FrozenPlusLowRank(torch.autograd.Function):
    """x W^T + b + s D(x) A^T B^T, where A [R, I] and B [O, R] learn, and W and b do not; D is dropout.

    For the backward x itself is kept, which its neighbours keep too (q, k and v have the same one), and the seed of the
    mask: plain autograd keeps the mask and D(x) for each map, and these were 40% of an adapter's memory.
    """

    @staticmethod
    def forward(ctx: Any, x_MI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, a_RI: Tensor, b_OR: Tensor,
                scale: float, rate: float) -> Tensor:
        dtype = x_MI.dtype
        ctx.scale, ctx.rate, ctx.seed = scale, rate, new_seed() if rate else 0
        low_MR = _dropped(x_MI, ctx) @ a_RI.to(dtype).t()
        ctx.save_for_backward(x_MI, weight_OI, a_RI, b_OR, low_MR)
        return torch.addmm(F.linear(x_MI, weight_OI, bias_O), low_MR, b_OR.to(dtype).t(), alpha=scale)

    @staticmethod
    def backward(ctx: Any, d_out_MO: Tensor) -> tuple[Tensor | None, ...]:
        x_MI, weight_OI, a_RI, b_OR, low_MR = ctx.saved_tensors
        dtype = x_MI.dtype
        d_low_MR = (d_out_MO @ b_OR.to(dtype)).mul_(ctx.scale)
        d_b_OR = (d_out_MO.t() @ low_MR).mul_(ctx.scale).to(b_OR.dtype)
        d_a_RI = (d_low_MR.t() @ _dropped(x_MI, ctx)).to(a_RI.dtype)
        d_x_MI = None
        if ctx.needs_input_grad[0]:
            d_x_MI = _dropped(d_low_MR @ a_RI.to(dtype), ctx)
            d_x_MI = d_x_MI.addmm_(d_out_MO, weight_OI)
        return d_x_MI, None, None, d_a_RI, d_b_OR, None, None


def _dropped(x_MI: Tensor, ctx: Any) -> Tensor:
    """The same elements of any tensor of this shape."""
    return drop(x_MI, kept_bits(x_MI.shape, ctx.rate, ctx.seed), ctx.rate) if ctx.rate else x_MI


class LoraEmbedding(nn.Module):
    """ids_M → E[ids] + s (A^T)[ids] B^T, with A [R, V] and B [D, R]. Dropout and DoRA have no meaning here."""

    def __init__(self, base: nn.Embedding, how: LowRank) -> None:
        super().__init__()
        self.weight, self.how, self.padding_idx = base.weight, how, base.padding_idx
        num_rows, width = base.weight.shape
        self.lora_embedding_A = nn.Parameter(torch.zeros(how.rank, num_rows, device=base.weight.device))
        self.lora_embedding_B = nn.Parameter(torch.zeros(width, how.rank, device=base.weight.device))

    def initialise(self, initial: Initial, generator: torch.Generator) -> None:
        """A at zero, B from Normal(0, 1): each id that comes has its own column of A, which alone can begin at zero."""
        with torch.no_grad():
            self.lora_embedding_A.zero_()
            self.lora_embedding_B.normal_(0.0, 1.0, generator=generator)

    def forward(self, ids_M: Tensor) -> Tensor:
        low_MR = F.embedding(ids_M, self.lora_embedding_A.t())
        return torch.addmm(F.embedding(ids_M, self.weight).float(), low_MR, self.lora_embedding_B.t(),
                           alpha=self.how.scale)

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """A plain embedding that computes the same."""
        weight_VD = torch.addmm(self.weight.float(), self.lora_embedding_A.t(), self.lora_embedding_B.t(),
                                alpha=self.how.scale)
        num_rows, width = weight_VD.shape
        with torch.device("meta"):
            plain = nn.Embedding(num_rows, width, self.padding_idx)
        plain.weight = nn.Parameter(weight_VD)
        return plain

    def extra_repr(self) -> str:
        return str(self.how)


Adapted = LoraLinear | LoraEmbedding
