"""Attend: who sees whom, and what is remembered. It owns mask and cache, so that a body knows neither.

A body computes queries, keys and values over flat tokens and calls `attend(layer, q, k, v)`; the object behind
the call decides the layout:

    Packed   whole sequences, end to end, each isolated from the others (training, scoring, prefill)
    Cached   some new tokens a row over the keys and values kept from before (generation)

Both give the same numbers for the same tokens; tests/test_parity.py holds them to it. A causal layer may look back over
a window of tokens alone. (How a decoder sees its source: nn/cross.py.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from wenmo.nn.attention import attention, in_window
from wenmo.nn.padding import Padding, positions_of

FILL = 2 / 3  # of a rectangle, at least
FEW_TOKENS = 256  # are not worth a rectangle of their own
# (query positions [B or 1, T], key positions [S]) → what is added to the scores, [B or 1, N, T, S]
Bias = Callable[[Tensor, Tensor], Tensor]


class Attend(Protocol):
    def __call__(
        self, layer: int, q_MNH: Tensor, k_MKH: Tensor, v_MKH: Tensor,
        *, scale: float | None = None, bias: Bias | None = None, window: int | None = None,
    ) -> Tensor:
        """[M, N, H] for the M query tokens; `layer` tells a cache where to keep the keys and values.

        window: a token sees the last `window` tokens up to itself (causal models alone).
        """
        ...


class Packed:
    """Sequences end to end, isolated: position t of a sequence sees that sequence alone (if causal, up to t).

    Sequences of like length share a rectangle, so that the cost is near Σ length² and padding never exceeds a
    third of a rectangle of more than FEW_TOKENS; equally long neighbours are attended in place, without a copy.
    """

    def __init__(self, lengths: Sequence[int], *, causal: bool, dropout: float = 0.0,
                 device: torch.device | None = None) -> None:
        self.causal, self.dropout = causal, dropout
        self.lengths, self.device = tuple(lengths), device or torch.device("cpu")

    @cached_property
    def groups(self) -> list[Padding]:
        starts = [0, *accumulate(self.lengths)]
        return [Padding([starts[i] for i in group], [self.lengths[i] for i in group], self.device)
                for group in groups_of_like_length(self.lengths)]

    @cached_property
    def order_M(self) -> Tensor | None:
        """Groups come out one after the other; it puts the tokens back, unless they never left their order."""
        grouped_M = torch.cat([group.token_BT.flatten()[group.slot_X] for group in self.groups])
        return torch.argsort(grouped_M) if len(self.groups) > 1 else None

    def __call__(self, layer: int, q_MNH: Tensor, k_MKH: Tensor, v_MKH: Tensor, *, scale: float | None = None,
                 bias: Bias | None = None, window: int | None = None) -> Tensor:
        assert window is None or self.causal
        parts = []
        for group in self.groups:
            column_T = torch.arange(group.longest, device=q_MNH.device)
            # A right-padded key lies after every real query: causality hides it without a mask.
            needs_mask = not (group.is_full or self.causal)
            out_BTNH = attention(
                group.pad(q_MNH), group.pad(k_MKH), group.pad(v_MKH), causal=self.causal, scale=scale,
                mask=group.real_BT[:, None, None, :] if needs_mask else None,
                bias=bias(column_T[None], column_T) if bias is not None else None,
                window=window, dropout_probability=self.dropout,
            )
            parts.append(group.unpad(out_BTNH))
        out = parts[0] if len(parts) == 1 else torch.cat(parts)
        return out if self.order_M is None else out.index_select(0, self.order_M)


def groups_of_like_length(lengths: Sequence[int]) -> list[list[int]]:
    """Sequence numbers in groups whose rectangle is at least FILL full (or holds few tokens), longest first."""
    groups: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        if groups and (length >= FILL * longest or longest * (len(groups[-1]) + 1) <= FEW_TOKENS):
            groups[-1].append(index)
        else:
            groups.append([index])
            longest = length
    # Keep the flat order inside a group: neighbours that are equally long stay views.
    return [sorted(group) for group in groups]


class Cache:
    """Keys and values of up to `capacity_tokens` tokens for each of `num_rows` rows; `filled` says how many stand.

    `extend(counts)` gives the Attend for a forward over `counts[b]` new tokens of each row b, laid end to end.
    """

    def __init__(self, num_rows: int, capacity_tokens: int) -> None:
        self.capacity_tokens = capacity_tokens
        self.filled = [0] * num_rows
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}  # layer → keys, values [B, capacity, K, H]

    def extend(self, counts: Sequence[int], device: torch.device | None = None) -> Cached:
        assert len(counts) == len(self.filled)
        step = Cached(self, list(self.filled), counts, device or torch.device("cpu"))
        self.filled = [old + new for old, new in zip(self.filled, counts, strict=True)]
        assert max(self.filled) <= self.capacity_tokens, "the cache is full"
        return step

    def keep(self, rows: Sequence[int]) -> None:
        """Goes on with these rows only (finished ones dropped, or rows repeated, as beams do)."""
        index = torch.tensor(list(rows))
        self.filled = [self.filled[row] for row in rows]
        self.layers = {layer: (k.index_select(0, index.to(k.device)), v.index_select(0, index.to(v.device)))
                       for layer, (k, v) in self.layers.items()}

    def store(self, layer: int, row_M: Tensor, position_M: Tensor, k_MKH: Tensor,
              v_MKH: Tensor) -> tuple[Tensor, Tensor]:
        if layer not in self.layers:
            shape = (len(self.filled), self.capacity_tokens, *k_MKH.shape[1:])
            self.layers[layer] = (k_MKH.new_zeros(shape), v_MKH.new_zeros(shape))
        keys, values = self.layers[layer]
        keys[row_M, position_M] = k_MKH
        values[row_M, position_M] = v_MKH
        return keys, values


class Cached:
    """New tokens over all that stands in a Cache, themselves included, causally. `positions_M` is theirs."""

    def __init__(self, cache: Cache, before: Sequence[int], counts: Sequence[int], device: torch.device) -> None:
        self.cache = cache
        starts = [0]
        for count in counts:
            starts.append(starts[-1] + count)
        self.padding = Padding(starts[:-1], counts, device)
        before_B = torch.tensor(before, device=device)
        counts_B = torch.tensor(counts, device=device)
        self.row_M = torch.repeat_interleave(torch.arange(len(counts), device=device), counts_B)
        self.positions_M = positions_of(counts, device) + before_B[self.row_M]
        self.num_keys = max(old + new for old, new in zip(before, counts, strict=True))
        # A padded query goes by its row's last position, and so sees that token at least: no empty softmax.
        column_T = torch.arange(self.padding.longest, device=device)
        self.query_BT = before_B[:, None] + torch.minimum(column_T, counts_B[:, None] - 1)
        self.one_position = self.padding.longest == 1 and len(set(before)) == 1
        self.seen: dict[int | None, tuple[Tensor, Tensor | None]] = {}  # window → keys and mask, for all layers

    def __call__(self, layer: int, q_MNH: Tensor, k_MKH: Tensor, v_MKH: Tensor, *, scale: float | None = None,
                 bias: Bias | None = None, window: int | None = None) -> Tensor:
        keys, values = self.cache.store(layer, self.row_M, self.positions_M, k_MKH, v_MKH)
        if window not in self.seen:
            self.seen[window] = self._seen(window)
        key_S, mask = self.seen[window]
        first = self.num_keys - len(key_S)
        out_BTNH = attention(
            self.padding.pad(q_MNH), keys[:, first : self.num_keys], values[:, first : self.num_keys], scale=scale,
            mask=mask, bias=bias(self.query_BT, key_S) if bias is not None else None,
        )
        return self.padding.unpad(out_BTNH)

    def _seen(self, window: int | None) -> tuple[Tensor, Tensor | None]:
        """Positions of the keys that are seen [S], and who sees which [B, 1, T, S]; no mask where all see all."""
        earliest = 0 if window is None else max(0, int(self.query_BT.min()) - window + 1)
        key_S = torch.arange(earliest, self.num_keys, device=self.query_BT.device)
        return key_S, None if self.one_position else in_window(self.query_BT, key_S, window)
