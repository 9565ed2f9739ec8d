"""Attention of the engine's two kinds of calls, over what stands in its slots.

Both are `nn.attend.Attend`: the same body that trains runs here. Keys are always read in multiples of 64, the surplus
hidden by a mask, so that a row's numbers do not change with how far its neighbours are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from wenmo.engine.slots import Layers, Pool, staging
from wenmo.nn.attend import Bias

KEYS = 64  # keys are read in multiples of this


def rounded(num_tokens: int) -> int:
    return -(-num_tokens // KEYS) * KEYS


class Chunk:
    """A chunk of one prompt, of fixed size, after `start` tokens that stand already."""

    def __init__(self, layers: Layers, capacity: int, start: int, size: int) -> None:
        self.layers, self.capacity, self.start, self.size = layers, capacity, start, size
        self.num_keys = rounded(start + size)
        query_T = torch.arange(start, start + size)
        self.distance_TS = query_T[:, None] - torch.arange(self.num_keys)
        self.masks: dict[int | None, Tensor] = {}

    def __call__(self, layer: int, q_MNH: Tensor, k_MKH: Tensor, v_MKH: Tensor, *, scale: float | None = None,
                 bias: Bias | None = None, window: int | None = None) -> Tensor:
        keys, values = staging(self.capacity, layer, self.layers, k_MKH[0])
        keys[:, self.start : self.start + self.size] = k_MKH.transpose(0, 1)
        values[:, self.start : self.start + self.size] = v_MKH.transpose(0, 1)
        if window not in self.masks:
            self.masks[window] = _hidden(self.distance_TS, window, q_MNH.dtype)
        return _attention(q_MNH[None], keys[None, :, : self.num_keys], values[None, :, : self.num_keys],
                          self.masks[window][None, None], scale)[0]


@dataclass(frozen=True)
class Segment:
    """Rows first … first + n − 1 of a pool, and the position of each one's token."""

    pool: Pool
    first: int
    positions: Sequence[int]


class Step:
    """One token of each row, over all that stands in its slot; the rows of a pool are attended in one rectangle."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.segments = segments
        self.sizes = [len(segment.positions) for segment in segments]
        self.positions_M = torch.tensor([position for segment in segments for position in segment.positions])
        self.position_parts = torch.split(self.positions_M, self.sizes)
        self.num_keys = [rounded(max(segment.positions) + 1) for segment in segments]
        self.masks: dict[int | None, list[Tensor]] = {}

    def __call__(self, layer: int, q_MNH: Tensor, k_MKH: Tensor, v_MKH: Tensor, *, scale: float | None = None,
                 bias: Bias | None = None, window: int | None = None) -> Tensor:
        if window not in self.masks:
            self.masks[window] = [
                _hidden(position_B[:, None] - torch.arange(num_keys), window, q_MNH.dtype)[:, None, None]
                for position_B, num_keys in zip(self.position_parts, self.num_keys, strict=True)]
        parts = []
        for segment, position_B, num_keys, mask, q_BNH, k_BKH, v_BKH in zip(
                self.segments, self.position_parts, self.num_keys, self.masks[window],
                *(torch.split(each, self.sizes) for each in (q_MNH, k_MKH, v_MKH)), strict=True):
            rows = slice(segment.first, segment.first + len(position_B))
            keys, values = (each[rows] for each in segment.pool.layer(layer, k_BKH[0]))
            index = position_B[:, None, None, None].expand(-1, keys.shape[1], 1, keys.shape[3])
            keys.scatter_(2, index, k_BKH.unsqueeze(2))
            values.scatter_(2, index, v_BKH.unsqueeze(2))
            parts.append(_attention(q_BNH[:, None], keys[:, :, :num_keys], values[:, :, :num_keys], mask, scale)[:, 0])
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _hidden(distance: Tensor, window: int | None, dtype: torch.dtype) -> Tensor:
    """What is added to the scores: −∞ for keys ahead of a query, or `window` tokens back."""
    unseen = distance < 0
    if window is not None:
        unseen |= distance >= window
    return torch.zeros(distance.shape, dtype=dtype).masked_fill_(unseen, -math.inf)


def _attention(q_BTNH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, mask: Tensor, scale: float | None) -> Tensor:
    """[B, T, N, H]. The queries that share a key head are laid along T: no copies of keys. mask: [B, 1, 1 or T, S]."""
    B, T, N, H = q_BTNH.shape
    K = k_BKSH.shape[1]
    G = N // K
    q_BKXH = q_BTNH.view(B, T, K, G, H).permute(0, 2, 1, 3, 4).reshape(B, K, T * G, H)
    mask_XS = mask.expand(B, 1, T, -1).repeat_interleave(G, dim=2) if T > 1 and G > 1 else mask
    out_BKXH = F.scaled_dot_product_attention(q_BKXH, k_BKSH, v_BKSH, attn_mask=mask_XS.expand(B, K, T * G, -1),
                                              scale=scale)
    return out_BKXH.view(B, K, T, G, H).permute(0, 2, 1, 3, 4).reshape(B, T, N, H)
