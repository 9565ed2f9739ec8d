"""Flat tokens ↔ a padded rectangle, for the one operation that needs rectangles: attention.

`Padding` holds the two index vectors; `pad` and `unpad` are differentiable. Each flat token has exactly one slot,
so both directions are plain gathers forward and backward (no atomic adds, which are slow and unordered).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def positions_of(lengths: Sequence[int], device: torch.device | None = None) -> Tensor:
    """0 … length-1 for each sequence, end to end: [M]."""
    lengths_B = torch.tensor(lengths)
    total = int(lengths_B.sum())
    starts_B = lengths_B.cumsum(0) - lengths_B
    positions_M = torch.arange(total) - torch.repeat_interleave(starts_B, lengths_B)
    return positions_M.to(device) if device is not None else positions_M


def starts_of(lengths: Sequence[int], device: torch.device | None = None) -> Tensor:
    """Index of each sequence's first token in the flat layout: [B]."""
    starts_B = torch.from_numpy(np.cumsum([0, *lengths[:-1]]))
    return starts_B if device is None or device.type == "cpu" else starts_B.to(device)


class Padding:
    """A rectangle [B, T] over some of the flat tokens: rows are sequences, padded on the right.

    starts, lengths: of the sequences in the flat layout. `token_BT` is each slot's flat token (a padded slot
    repeats the row's first token, whose value is masked or dropped by whoever reads it), `slot_X` each token's slot.
    """

    def __init__(self, starts: Sequence[int], lengths: Sequence[int], device: torch.device) -> None:
        self.num_rows, self.longest = len(lengths), max(lengths)
        lengths_B1 = torch.tensor(lengths).unsqueeze(1)
        starts_B1 = torch.tensor(starts).unsqueeze(1)
        column_T = torch.arange(self.longest)
        real_BT = column_T < lengths_B1
        token_BT = torch.where(real_BT, starts_B1 + column_T, starts_B1)
        self.is_full = min(lengths) == self.longest
        self.real_BT = real_BT.to(device)
        self.token_BT = token_BT.to(device)
        self.slot_X = real_BT.flatten().nonzero().squeeze(1).to(device)
        # A block of equally long neighbours is a view of the flat layout: no gather at all.
        first = starts[0]
        self.view = (first, first + self.num_rows * self.longest) if self.is_full and list(starts) == list(
            range(first, first + self.num_rows * self.longest, self.longest)) else None

    def pad(self, x_MNH: Tensor) -> Tensor:
        """[M, N, H] → [B, T, N, H]."""
        if self.view is not None:
            padded = x_MNH[self.view[0] : self.view[1]]
        else:
            gather: Any = _Gather.apply
            padded = gather(x_MNH, self.token_BT.flatten(), self.slot_X)
        rectangle: Tensor = padded.view(self.num_rows, self.longest, *x_MNH.shape[1:])
        return rectangle

    def unpad(self, x_BTNH: Tensor) -> Tensor:
        """[B, T, N, H] → [X, N, H]: the real tokens, in this rectangle's order."""
        flat = x_BTNH.reshape(-1, *x_BTNH.shape[2:])
        return flat if self.is_full else flat.index_select(0, self.slot_X)


class _Gather(torch.autograd.Function):
    """index_select whose backward is a gather too: a token's gradient is that of its one slot.

    A padded slot's gradient is dropped; it is zero, since masked keys get no weight and padded queries no loss.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, token_BT: Tensor, slot_X: Tensor) -> Tensor:
        ctx.save_for_backward(token_BT, slot_X)
        ctx.num_tokens = x.shape[0]
        return x.index_select(0, token_BT)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        token_BT, slot_X = ctx.saved_tensors
        result = gradient.new_zeros(ctx.num_tokens, *gradient.shape[1:])
        result.index_copy_(0, token_BT.index_select(0, slot_X), gradient.index_select(0, slot_X))
        return result, None, None
