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
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wenmo.nn.dropout import Dropout
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
        weight_OI = self._weight().to(dtype)
        low_MR = self.lora_A(self.dropout(x_MI))
        up_RO = self.lora_B.weight.to(dtype).t()
        if not self.how.dora:  # the product is added where the sum is made: no pass over [M, O] of its own
            return torch.addmm(F.linear(x_MI, weight_OI, bias), low_MR, up_RO, alpha=self.how.scale)
        share_O = self.lora_magnitude_vector / self._lengths()
        out_MO = torch.addmm(F.linear(x_MI, weight_OI), low_MR, up_RO, alpha=self.how.scale) * share_O.to(dtype)
        return out_MO if bias is None else out_MO + bias

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
