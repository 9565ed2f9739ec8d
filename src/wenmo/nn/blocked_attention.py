"""Attention for training on the CPU: forward and gradients by hand, in blocks of scores that stay in the cache.

In: queries, keys and values of a rectangle; out: what each query gathers. Plain automatic differentiation makes all
T × S scores of all heads, several times over, half of them hidden where a token may not look ahead. Here some rows and
a block of queries are taken at a time, over the keys that these can see; the weights are kept for the backward, or made
again there where they would be many. Products are torch's; what is between them is native where that can be
(native/training.py). The formulas are those of attention.py, which is the reference.

Scores stand as [X, S, Y], keys before queries: so no product needs its larger operand turned round (X: rows times key
heads; Y: the queries of a block that share a key head).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from wenmo.native.training import ALL_IN_SIGHT, Sight, kernels_for
from wenmo.nn.dropout import blank, kept_bits, scale_of

BLOCK_TOKENS = 128  # queries of a block: smaller ones skip more hidden keys, and multiply more slowly
MOST_BLOCKS = 8  # of a sequence: the gradients of keys and values are rounded to their format after each
BLOCK_SCORES = 1 << 20  # the scores of a block: 2 MiB of bf16
LONGEST_KEPT_TOKENS = 1024  # beyond, the backward makes the weights again: they would be T / H times the values' size


@dataclass(frozen=True, slots=True)
class _Rule:
    """Who sees whom, and how strongly it counts. `mask_B1TS`: True = may be seen; T or S may be 1."""

    causal: bool
    window: int | None
    mask: Tensor | None
    scale: float
    dropout_probability: float

    @property
    def drops(self) -> bool:
        return self.dropout_probability > 0

    @property
    def kept_scale(self) -> float:
        """Of what dropout keeps; it stands with the values, so that weights are multiplied by nothing."""
        return scale_of(self.dropout_probability)


@dataclass(frozen=True, slots=True)
class _Block:
    """A block of queries, and the keys that at least one of them sees.

    hidden: -inf where a key is hidden from a query, else 0, [R or 1, S, Q or 1], for the keys from `hidden_from` on;
    where there is a mask, or no native code that goes by places (`_sight`).
    """

    queries: slice
    keys: slice
    hidden_from: int = 0
    hidden: Tensor | None = None


def blocked_attention(q_BTNH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor, *, causal: bool, window: int | None,
                      mask: Tensor | None, scale: float, dropout_probability: float) -> Tensor:
    """The same as `attention` of the same arguments; differentiable once, in queries, keys and values."""
    function: Any = _Attention.apply
    out: Tensor = function(q_BTNH, k_BSKH, v_BSKH, _Rule(causal, window, mask, scale, dropout_probability))
    return out


def _blocks(q_BTNH: Tensor, S: int, rule: _Rule) -> Iterator[tuple[slice, list[_Block]]]:
    """Rows, and the blocks that their queries are taken in, from the last, which sees most, to the first."""
    B, T, N, _ = q_BTNH.shape
    num_queries = max(BLOCK_TOKENS, T // MOST_BLOCKS) if rule.causal else max(1, BLOCK_SCORES // (N * S))
    num_queries = min(T, num_queries)
    num_rows = max(1, BLOCK_SCORES // (N * S * num_queries))
    in_torch = kernels_for(q_BTNH) is None
    blocks = []
    for start in reversed(range(0, T, num_queries)):
        end = min(start + num_queries, T)
        first = 0 if rule.window is None else max(0, start - rule.window + 1)
        block = _Block(slice(start, end), slice(first, end) if rule.causal else slice(0, S))
        if rule.causal and rule.mask is None and in_torch:
            # Without a window, keys before the first query are seen by all.
            hidden_from = start if rule.window is None else first
            block = replace(block, hidden_from=hidden_from - first,
                            hidden=_bias(_in_sight(block, hidden_from, rule, q_BTNH.device), q_BTNH.dtype))
        blocks.append(block)
    for row in range(0, B, num_rows):
        rows = slice(row, min(row + num_rows, B))
        yield rows, (blocks if rule.mask is None else
                     [replace(block, hidden=_bias(_seen(rows, block, rule), q_BTNH.dtype)) for block in blocks])


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_BTNH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor, rule: _Rule) -> Tensor:
        T, (S, K) = q_BTNH.shape[1], k_BSKH.shape[1:3]
        out_BTNH = torch.empty_like(q_BTNH, memory_format=torch.contiguous_format)
        keep = max(T, S) <= LONGEST_KEPT_TOKENS
        kept: list[Tensor] = []
        for rows, blocks in _blocks(q_BTNH, S, rule):
            k_XSH, v_XSH = _heads(k_BSKH[rows], K, rule.scale), _heads(v_BSKH[rows], K, rule.kept_scale)
            for block in blocks:
                q_XYH = _heads(q_BTNH[rows, block.queries], K)
                weights_XSY = _weights(q_XYH, k_XSH, block, rule)
                bits_XSY = kept_bits(weights_XSY.shape, rule.dropout_probability) if rule.drops else None
                kept += [each for each in (weights_XSY if keep else None, bits_XSY) if each is not None]
                seen_XSY = weights_XSY if bits_XSY is None else blank(weights_XSY, bits_XSY)
                _spread(torch.bmm(seen_XSY.transpose(1, 2), v_XSH[:, block.keys]), out_BTNH[rows, block.queries], K)
        ctx.rule, ctx.keep = rule, keep
        ctx.save_for_backward(q_BTNH, k_BSKH, v_BSKH, *kept)
        return out_BTNH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out_BTNH: Tensor) -> tuple[Tensor | None, ...]:
        q_BTNH, k_BSKH, v_BSKH, *kept = ctx.saved_tensors
        rule, rest = ctx.rule, iter(kept)
        S, K = k_BSKH.shape[1:3]
        d_q_BTNH, d_k_BSKH, d_v_BSKH = (torch.empty_like(each, memory_format=torch.contiguous_format)
                                        for each in (q_BTNH, k_BSKH, v_BSKH))
        for rows, blocks in _blocks(q_BTNH, S, rule):
            k_XSH, v_XSH = _heads(k_BSKH[rows], K, rule.scale), _heads(v_BSKH[rows], K, rule.kept_scale)
            d_k_XSH, d_v_XSH = (None if blocks[0].keys == slice(0, S) else torch.zeros_like(k_XSH) for _ in range(2))
            for block in blocks:
                q_XYH, d_out_XYH = (_heads(each[rows, block.queries], K) for each in (q_BTNH, d_out_BTNH))
                weights_XSY = next(rest) if ctx.keep else _weights(q_XYH, k_XSH, block, rule)
                seen_XSY, d_weights_XSY = weights_XSY, torch.bmm(v_XSH[:, block.keys], d_out_XYH.transpose(1, 2))
                if rule.drops:
                    bits_XSY = next(rest)
                    seen_XSY, d_weights_XSY = blank(weights_XSY, bits_XSY), blank(d_weights_XSY, bits_XSY)
                d_scores_XSY = _d_scores(d_weights_XSY, weights_XSY, block, rule)
                d_k_XSH = _added(d_k_XSH, d_scores_XSY, q_XYH, block)
                d_v_XSH = _added(d_v_XSH, seen_XSY, d_out_XYH, block)
                _spread(torch.bmm(d_scores_XSY.transpose(1, 2), k_XSH[:, block.keys]), d_q_BTNH[rows, block.queries], K)
            assert d_k_XSH is not None
            assert d_v_XSH is not None
            _spread(d_k_XSH.mul_(rule.scale), d_k_BSKH[rows], K)
            _spread(d_v_XSH.mul_(rule.kept_scale) if rule.drops else d_v_XSH, d_v_BSKH[rows], K)
        return d_q_BTNH, d_k_BSKH, d_v_BSKH, None


def _weights(q_XYH: Tensor, k_XSH: Tensor, block: _Block, rule: _Rule) -> Tensor:
    """softmax over the keys that the block sees, [X, S, Y]; the keys come scaled."""
    scores_XSY = torch.bmm(k_XSH[:, block.keys], q_XYH.transpose(1, 2))
    kernels = kernels_for(scores_XSY)
    if kernels is not None and rule.mask is None:
        return kernels.weigh_keys_(scores_XSY, _sight(block, rule))
    Q = block.queries.stop - block.queries.start
    if block.hidden is not None:
        X, S, Y = scores_XSY.shape
        R = 1 if rule.mask is None else block.hidden.shape[0]
        scores_XSY.view(R, X // R, S, Y // Q, Q)[:, :, block.hidden_from :].add_(block.hidden[:, None, :, None])
    if kernels is not None:
        return kernels.weigh_keys_(scores_XSY, Sight(scores_XSY.shape[1], Q, ALL_IN_SIGHT, 0))
    return torch.softmax(scores_XSY, dim=1)


def _d_scores(d_weights_XSY: Tensor, weights_XSY: Tensor, block: _Block, rule: _Rule) -> Tensor:
    """The gradient of a block's scores, in the place of that of its weights where native code computes it."""
    kernels = kernels_for(weights_XSY)
    if kernels is None:
        return torch._softmax_backward_data(d_weights_XSY, weights_XSY, 1, weights_XSY.dtype)
    return kernels.weigh_keys_backward_(d_weights_XSY, weights_XSY, _sight(block, rule))


def _sight(block: _Block, rule: _Rule) -> Sight:
    """Whom the queries of a block see by their places; a mask may hide more."""
    ahead = block.queries.start - block.keys.start if rule.causal else ALL_IN_SIGHT
    return Sight(block.keys.stop - block.keys.start, block.queries.stop - block.queries.start, ahead,
                 (rule.window or 0) if rule.causal else 0)


def _seen(rows: slice, block: _Block, rule: _Rule) -> Tensor:
    """By the mask, and by their places where those count: [R or 1, Q or 1, S]."""
    assert rule.mask is not None
    mask_BTS = rule.mask.squeeze(1)
    seen_RQS = mask_BTS[rows if mask_BTS.shape[0] > 1 else slice(None),
                        block.queries if mask_BTS.shape[1] > 1 else slice(None), block.keys]
    return seen_RQS & _in_sight(block, block.keys.start, rule, seen_RQS.device) if rule.causal else seen_RQS


def _in_sight(block: _Block, first_key: int, rule: _Rule, device: torch.device) -> Tensor:
    """By their places alone, the keys from `first_key` on: [1, Q, S]."""
    query_Q1 = torch.arange(block.queries.start, block.queries.stop, device=device)[:, None]
    distance_QS = query_Q1 - torch.arange(first_key, block.keys.stop, device=device)
    seen_QS = distance_QS >= 0 if rule.window is None else (distance_QS >= 0) & (distance_QS < rule.window)
    return seen_QS[None]


def _bias(seen_RQS: Tensor, dtype: torch.dtype) -> Tensor:
    """As `_Block.hidden`."""
    seen_RSQ = seen_RQS.transpose(1, 2)
    return torch.zeros(seen_RSQ.shape, dtype=dtype, device=seen_RSQ.device).masked_fill_(~seen_RSQ, float("-inf"))


def _added(total_XSH: Tensor | None, left_XSY: Tensor, right_XYH: Tensor, block: _Block) -> Tensor:
    """left @ right, added to what earlier blocks gave these keys; a first block that sees all keys needs no zeros."""
    if total_XSH is None:
        return torch.bmm(left_XSY, right_XYH)
    total_XSH[:, block.keys].baddbmm_(left_XSY, right_XYH)
    return total_XSH


def _heads(x_RTNH: Tensor, K: int, scale: float = 1.0) -> Tensor:
    """What belongs to one key head side by side, times `scale`: [X, Y, H]."""
    R, T, N, H = x_RTNH.shape
    kernels = kernels_for(x_RTNH) if x_RTNH.stride(3) == 1 else None
    if kernels is not None:
        out = torch.empty(R * K, N // K * T, H, dtype=x_RTNH.dtype)
        kernels.move_heads(x_RTNH, out.view(R, N, T, H).transpose(1, 2), scale)
        return out
    x_RKGTH = x_RTNH.view(R, T, K, N // K, H).permute(0, 2, 3, 1, 4)
    out = torch.empty(x_RKGTH.shape, dtype=x_RTNH.dtype, device=x_RTNH.device)
    out.copy_(x_RKGTH)
    if scale != 1.0:
        out.mul_(scale)  # in two passes: the second one is over neighbours
    return out.view(R * K, N // K * T, H)


def _spread(x_XYH: Tensor, to_RTNH: Tensor, K: int) -> None:
    """The way back, into `to`."""
    R, T, N, H = to_RTNH.shape
    kernels = kernels_for(x_XYH, to_RTNH) if x_XYH.is_contiguous() and to_RTNH.stride(3) == 1 else None
    if kernels is not None:
        kernels.move_heads(x_XYH.view(R, N, T, H).transpose(1, 2), to_RTNH, 1.0)
        return
    to_RTNH.view(R, T, K, N // K, H).copy_(x_XYH.view(R, K, N // K, T, H).permute(0, 3, 1, 2, 4))
