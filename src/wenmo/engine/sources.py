"""The sources of encoder–decoders: how the rows of a step see each its own.

A source is encoded alone when its request is let in, and projected alone when the first token of its target is read;
its keys and values then stand in slots of their own (slots.py) and never change. So no number of a row depends on the
others. Both classes are called as nn.cross.Cross is; keys are read in multiples of 32, as in attend.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from wenmo.engine.attend import rounded
from wenmo.engine.slots import Layers, Pool
from wenmo.nn.cross import Project


class OneSource:
    """The first token of one target over its source, memory_SD; `layers` has the keys and values afterwards,
    [K, S rounded up, H] each."""

    def __init__(self, memory_SD: Tensor) -> None:
        self.memory_SD, self.layers = memory_SD, Layers()
        self.mask_111S = _hidden(torch.tensor([len(memory_SD)]), rounded(len(memory_SD)), memory_SD.dtype)

    def __call__(self, layer: int, q_MNH: Tensor, project: Project, *, scale: float | None = None) -> Tensor:
        surplus = self.mask_111S.shape[-1] - len(self.memory_SD)
        keys, values = (F.pad(x_SKH, (0, 0, 0, 0, 0, surplus)).transpose(0, 1) for x_SKH in project(self.memory_SD))
        self.layers[layer] = (keys, values)
        return _across(q_MNH, keys[None], values[None], self.mask_111S, scale)


@dataclass(frozen=True)
class _Group:
    """Rows of a pool: their numbers in the call and in the pool, and what they may not see."""

    pool: Pool
    calls: Tensor
    rows: slice | Tensor
    num_keys: int
    lengths: Tensor


class Across:
    """One token of each row over that row's source. places: (pool, row in it, number of source tokens) of each row of
    the call. The rows of a pool are attended in one rectangle, in place where they stand side by side."""

    def __init__(self, places: Sequence[tuple[Pool, int, int]]) -> None:
        self.groups: list[_Group] = []
        self.masks: dict[int, Tensor] = {}  # of each group
        for pool in {id(pool): pool for pool, _, _ in places}.values():
            found = sorted((row, call, length) for call, (each, row, length) in enumerate(places) if each is pool)
            rows, calls, lengths = (list(column) for column in zip(*found, strict=True))
            in_place = rows == list(range(rows[0], rows[0] + len(rows)))
            self.groups.append(_Group(
                pool, torch.tensor(calls), slice(rows[0], rows[-1] + 1) if in_place else torch.tensor(rows),
                rounded(max(lengths)), torch.tensor(lengths)))

    def __call__(self, layer: int, q_MNH: Tensor, project: Project, *, scale: float | None = None) -> Tensor:
        out_MNH = torch.empty_like(q_MNH)
        for number, group in enumerate(self.groups):
            if number not in self.masks:
                self.masks[number] = _hidden(group.lengths, group.num_keys, q_MNH.dtype)
            keys, values = (each[group.rows, :, : group.num_keys] for each in group.pool.layers[layer])
            out_MNH[group.calls] = _across(q_MNH[group.calls], keys, values, self.masks[number], scale)
        return out_MNH


def _hidden(lengths_B: Tensor, num_keys: int, dtype: torch.dtype) -> Tensor:
    """What is added to the scores, [B, 1, 1, S]: −∞ for what is behind the end of a source."""
    behind = torch.arange(num_keys) >= lengths_B[:, None]
    return torch.zeros(behind.shape, dtype=dtype).masked_fill_(behind, -math.inf)[:, None, None]


def _across(q_BNH: Tensor, k_BNSH: Tensor, v_BNSH: Tensor, mask_B11S: Tensor, scale: float | None) -> Tensor:
    """[B, N, H]. Every head has keys of its own in these models."""
    mask_BN1S = mask_B11S.expand(-1, q_BNH.shape[1], -1, -1)
    return F.scaled_dot_product_attention(q_BNH[:, :, None], k_BNSH, v_BNSH, attn_mask=mask_BN1S, scale=scale)[:, :, 0]
