"""Attention of the engine's two kinds of calls, over what stands in its slots.

Both are `nn.attend.Attend`: the same body that trains runs here. Keys are always read in multiples of KEYS, the surplus
hidden by a mask, so that a row's numbers do not change with how far its neighbours are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from wenmo import device
from wenmo.engine.slots import Layers, Pool, staging
from wenmo.nn.attend import Bias

KEYS = 32  # keys are read in multiples of this
SMALL_PRODUCT = 16**3  # batch · rows · inner · columns: up to here torch takes other kernels for bf16


def rounded(num_tokens: int) -> int:
    return -(-num_tokens // KEYS) * KEYS


class Chunk:
    """A chunk of one prompt, of fixed size, after `start` tokens that stand already."""

    def __init__(self, layers: Layers, capacity: int, start: int, size: int) -> None:
        self.layers, self.capacity, self.start, self.size = layers, capacity, start, size
        self.num_keys = rounded(start + size)
        self.query_1T = torch.arange(start, start + size)[None]
        self.masks: dict[tuple[int | None, Bias | None], Tensor] = {}

    def __call__(self, layer: int, q_MNH: Tensor, k_MKH: Tensor, v_MKH: Tensor, *, scale: float | None = None,
                 bias: Bias | None = None, window: int | None = None) -> Tensor:
        keys, values = staging(self.capacity, layer, self.layers, k_MKH[0])
        keys[:, self.start : self.start + self.size] = k_MKH.transpose(0, 1)
        values[:, self.start : self.start + self.size] = v_MKH.transpose(0, 1)
        num_shared = q_MNH.shape[1] // k_MKH.shape[1]
        in_products = q_MNH.dtype == torch.bfloat16 and products_keep_bits(*q_MNH.shape[1:], num_shared)
        if (window, bias) not in self.masks:
            mask = _mask(self.query_1T, self.num_keys, window, bias, q_MNH.dtype)
            self.masks[window, bias] = _written_out(mask, k_MKH.shape[1], num_shared) if in_products else mask
        attention = _in_products if in_products else _attention
        return attention(q_MNH[None], keys[None, :, : self.num_keys], values[None, :, : self.num_keys],
                         self.masks[window, bias], scale)[0]


class Chunks:
    """Chunks of one prompt or of several, end to end; each attends as if it were alone. Of one prompt the earlier comes
    first: it leaves the keys that the later one sees."""

    def __init__(self, chunks: Sequence[Chunk]) -> None:
        self.chunks, self.sizes = chunks, [chunk.size for chunk in chunks]
        self.positions_M = torch.cat([chunk.query_1T[0] for chunk in chunks])

    def __call__(self, layer: int, q_MNH: Tensor, k_MKH: Tensor, v_MKH: Tensor, *, scale: float | None = None,
                 bias: Bias | None = None, window: int | None = None) -> Tensor:
        parts = zip(self.chunks, *(torch.split(each, self.sizes) for each in (q_MNH, k_MKH, v_MKH)), strict=True)
        outs = [chunk(layer, q_XNH, k_XKH, v_XKH, scale=scale, bias=bias, window=window)
                for chunk, q_XNH, k_XKH, v_XKH in parts]
        return outs[0] if len(outs) == 1 else torch.cat(outs)


@dataclass(frozen=True)
class Segment:
    """Rows first … first + n − 1 of a pool; of each its next position, and how many of its tokens are read: one, and
    more where they are only supposed (speculate.py)."""

    pool: Pool
    first: int
    starts: Sequence[int]
    counts: Sequence[int]


class Step:
    """The next tokens of each row, over all that stands in its slot. The rows of a pool are one rectangle, of as many
    columns as a row has tokens: whoever has fewer repeats its last one."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.rectangles = [_Rectangle(segment) for segment in segments]
        self.sizes = [len(rectangle.position_M) for rectangle in self.rectangles]
        self.positions_M = torch.cat([rectangle.position_M for rectangle in self.rectangles])

    def __call__(self, layer: int, q_MNH: Tensor, k_MKH: Tensor, v_MKH: Tensor, *, scale: float | None = None,
                 bias: Bias | None = None, window: int | None = None) -> Tensor:
        if len(self.rectangles) == 1:
            return self.rectangles[0].attend(layer, q_MNH, k_MKH, v_MKH, scale, bias, window)
        parts = zip(self.rectangles, *(torch.split(each, self.sizes) for each in (q_MNH, k_MKH, v_MKH)), strict=True)
        return torch.cat([rectangle.attend(layer, q_XNH, k_XKH, v_XKH, scale, bias, window)
                          for rectangle, q_XNH, k_XKH, v_XKH in parts])


class _Rectangle:
    """Columns T: the most tokens that a row of the segment has."""

    def __init__(self, segment: Segment) -> None:
        self.pool, self.first, self.num_rows = segment.pool, segment.first, len(segment.starts)
        self.num_columns = max(segment.counts)
        starts_B, counts_B = torch.tensor(segment.starts), torch.tensor(segment.counts)
        self.row_M = torch.repeat_interleave(torch.arange(self.num_rows), counts_B)
        before_M = torch.repeat_interleave(counts_B.cumsum(0) - counts_B, counts_B)  # tokens of the rows above
        column_M = torch.arange(len(self.row_M)) - before_M
        self.position_M = starts_B[self.row_M] + column_M
        column_BT = torch.minimum(torch.arange(self.num_columns), counts_B[:, None] - 1)
        self.query_BT = starts_B[:, None] + column_BT
        self.is_full = len(self.row_M) == self.num_rows * self.num_columns
        self.token_X = (counts_B.cumsum(0) - counts_B)[:, None].add(column_BT).flatten()
        self.real_M = self.row_M * self.num_columns + column_M
        self.num_keys = rounded(int(self.position_M.max()) + 1)
        self.places: dict[int, Tensor] = {}
        self.masks: dict[tuple[int | None, Bias | None], Tensor] = {}

    def attend(self, layer: int, q_MNH: Tensor, k_MKH: Tensor, v_MKH: Tensor, scale: float | None, bias: Bias | None,
               window: int | None) -> Tensor:
        keys, values = self.pool.layer(layer, k_MKH[0])
        _, K, _, H = keys.shape
        place_X = self._places(K)
        for slots, new in ((keys, k_MKH), (values, v_MKH)):
            slots.view(-1, H).index_copy_(0, place_X, new.reshape(-1, H))
        N, B, T = q_MNH.shape[1], self.num_rows, self.num_columns
        G = N // K
        in_products = q_MNH.dtype == torch.bfloat16 and products_keep_bits(N, H, G)
        mask = self._mask(q_MNH.dtype, window, bias, K, G, in_products)
        span = (slice(self.first, self.first + B), slice(None), slice(self.num_keys))
        q_BTNH = (q_MNH if self.is_full else q_MNH.index_select(0, self.token_X)).view(B, T, N, H)
        if in_products:
            out_BTNH = _in_products(q_BTNH, keys[span], values[span], mask, scale)
        else:  # one column after the other: several in one call may have other bits
            columns = zip(torch.split(q_BTNH, 1, 1), torch.split(mask, 1, 2), strict=True)
            out_BTNH = torch.cat([_attention(q_B1NH, keys[span], values[span], mask_B11S, scale)
                                  for q_B1NH, mask_B11S in columns], 1)
        out_XNH = out_BTNH.reshape(B * T, N, H)  # `cat` may keep another order of memory
        return out_XNH if self.is_full else out_XNH.index_select(0, self.real_M)

    def _places(self, num_key_heads: int) -> Tensor:
        """Where the new keys stand in the pool, seen as [size · K · capacity, H]."""
        if num_key_heads not in self.places:
            head_MK = (self.first + self.row_M)[:, None] * num_key_heads + torch.arange(num_key_heads)
            self.places[num_key_heads] = (head_MK * self.pool.capacity + self.position_M[:, None]).flatten()
        return self.places[num_key_heads]

    def _mask(self, dtype: torch.dtype, window: int | None, bias: Bias | None, K: int, G: int,
              in_products: bool) -> Tensor:
        if (window, bias) not in self.masks:
            mask = _mask(self.query_BT, self.num_keys, window, bias, dtype)
            if in_products:
                mask = _written_out(mask, K, G)
            self.masks[window, bias] = mask
        return self.masks[window, bias]


def _mask(query_BT: Tensor, num_keys: int, window: int | None, bias: Bias | None, dtype: torch.dtype) -> Tensor:
    """What is added to the scores, [B, 1 or N, T, S]: a bias, and −∞ for keys ahead of a query or `window` back."""
    key_S = torch.arange(num_keys)
    distance_BTS = query_BT[:, :, None] - key_S
    unseen = distance_BTS < 0
    if window is not None:
        unseen |= distance_BTS >= window
    hidden_B1TS = torch.zeros(unseen.shape, dtype=dtype).masked_fill_(unseen, -math.inf)[:, None]
    return hidden_B1TS if bias is None else hidden_B1TS + bias(query_BT, key_S).to(dtype)


def _attention(q_BTNH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, mask: Tensor, scale: float | None) -> Tensor:
    """[B, T, N, H]. The queries that share a key head are laid along T: no copies of keys. mask: [B, 1, 1 or T, S],
    or with a bias [B, N, T, S], of models that share no keys."""
    B, T, N, H = q_BTNH.shape
    K = k_BKSH.shape[1]
    G = N // K
    assert G == 1 or mask.shape[1] == 1
    q_BKXH = q_BTNH.view(B, T, K, G, H).permute(0, 2, 1, 3, 4).reshape(B, K, T * G, H)
    mask_XS = mask.expand(B, 1, T, -1).repeat_interleave(G, dim=2) if T > 1 and G > 1 else mask
    out_BKXH = F.scaled_dot_product_attention(q_BKXH, k_BKSH, v_BKSH, attn_mask=mask_XS.expand(B, K, T * G, -1),
                                              scale=scale)
    return out_BKXH.view(B, K, T, G, H).permute(0, 2, 1, 3, 4).reshape(B, T, N, H)


def _in_products(q_BTNH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, mask_YXS: Tensor, scale: float | None) -> Tensor:
    """The same as plain products of bf16, two to five times faster: [B, T, N, H]. Mask: as `_written_out` gives it."""
    B, T, N, H = q_BTNH.shape
    K = k_BKSH.shape[1]
    q_YXH = q_BTNH.view(B, T, K, N // K, H).transpose(1, 2).reshape(B * K, -1, H)
    scores_YXS = torch.baddbmm(mask_YXS, q_YXH, k_BKSH.flatten(0, 1).transpose(1, 2),
                               alpha=H**-0.5 if scale is None else scale)
    out_YXH = torch.bmm(scores_YXS.softmax(-1), v_BKSH.flatten(0, 1))
    return out_YXH.view(B, K, T, N // K, H).transpose(1, 2).reshape(B, T, N, H)


def _written_out(mask: Tensor, K: int, G: int) -> Tensor:
    """[B, 1 or N, T, S] → [B · K, T · G, S], once for all layers."""
    B, _, T, S = mask.shape
    assert G == 1 or mask.shape[1] == 1, "a bias differs between heads that share keys"
    return mask.expand(B, K, T, S)[:, :, :, None].expand(B, K, T, G, S).reshape(B * K, T * G, S)


@cache
def products_keep_bits(heads: int, width: int, queries: int) -> bool:
    """Whether `_in_products` gives a query the same bits however many others, rows and hidden keys there are: by trial.
    `queries`: of one token, that share a key head. (Where a product is so small that torch multiplies it in another way
    differences are too rare for a trial; no such product has more heads · width.)"""
    if not device.has_native_bf16(torch.device("cpu")) or heads * width * KEYS <= SMALL_PRODUCT:
        return False
    generator = torch.Generator().manual_seed(0)
    num_keys, rows, columns = 9 * KEYS, 8, 4

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).bfloat16()

    K = heads // queries
    with torch.inference_mode():
        q_BTNH = drawn(rows, columns, heads, width)
        k_BKSH, v_BKSH = (drawn(rows, K, num_keys, width) for _ in range(2))
        mask_B1TS = drawn(rows, 1, columns, num_keys)
        mask_B1TS[..., KEYS - 3 :] = -math.inf
        expected = _in_products(q_BTNH, k_BKSH, v_BKSH, _written_out(mask_B1TS, K, queries), None)
        for row, column, multiple in product(range(rows), range(columns), (1, 2, 3)):
            one, part, until = slice(row, row + 1), slice(column, column + 1), slice(multiple * KEYS)
            mask = _written_out(mask_B1TS[one, :, part, until], K, queries)
            found = _in_products(q_BTNH[one, part], k_BKSH[one, :, until], v_BKSH[one, :, until], mask, None)
            if not torch.equal(found, expected[one, part]):
                return False
    return True
