"""Scaled dot-product attention over a rectangle, softmax(Q Kᵀ / √d_k) V (Vaswani et al. 2017, §3.2.1).

Here the formula is plain products and a softmax, which beat torch's fused kernel on the CPU at the lengths of this
package; longer inputs go to that kernel, since T × S scores would be held. On cuda the fused kernel always. Training on
the CPU takes the same formula block by block, with gradients by hand (blocked_attention.py): torch's backward is slow.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from wenmo.nn.blocked_attention import blocked_attention
from wenmo.nn.dropout import dropout

LONGEST_PLAIN_TOKENS = 1024


def attention(
    q_BTNH: Tensor,
    k_BSKH: Tensor,
    v_BSKH: Tensor,
    *,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    causal: bool = False,
    window: int | None = None,
    scale: float | None = None,
    dropout_probability: float = 0.0,
) -> Tensor:
    """[B, T, N, H] of queries over [B, S, K, H] of keys and values, K dividing N (grouped queries, Ainslie 2023).

    mask: bool, True = may be seen, broadcastable to [B, 1, T, S]. bias: added to the scores, [B or 1, N, T, S].
    causal: query t sees keys 0 … t (T = S). window: of these the last `window` alone, its own included (Child et al.
    2019; Jiang et al. 2023, §2); without `causal` it has no meaning. scale: 1/√H unless given. Returns [B, T, N, H].
    """
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    if scale is None:
        scale = 1 / math.sqrt(H)
    if window is not None and window >= T:
        window = None
    if window is not None and T > LONGEST_PLAIN_TOKENS:
        assert mask is None
        assert bias is None
        return _block_by_block(q_BTNH, k_BSKH, v_BSKH, window, scale, dropout_probability)
    k_BKSH, v_BKSH = k_BSKH.transpose(1, 2), v_BSKH.transpose(1, 2)
    learns = torch.is_grad_enabled() and (q_BTNH.requires_grad or k_BSKH.requires_grad or v_BSKH.requires_grad)
    if learns and bias is None and not q_BTNH.is_cuda:
        return blocked_attention(q_BTNH, k_BSKH, v_BSKH, causal=causal, window=window, mask=mask, scale=scale,
                                 dropout_probability=dropout_probability)
    if q_BTNH.is_cuda or max(T, S) > LONGEST_PLAIN_TOKENS:
        both = _added(mask, bias, causal, window, T, S, q_BTNH)
        out_BNTH = F.scaled_dot_product_attention(
            q_BTNH.transpose(1, 2), k_BKSH, v_BKSH, attn_mask=both, is_causal=causal and both is None,
            scale=scale, dropout_p=dropout_probability, enable_gqa=N != K,
        )
        return out_BNTH.transpose(1, 2)
    # Queries that share a key head are laid along T: one product per key head, no copies of keys.
    G = N // K
    q_BKXH = (q_BTNH * scale).view(B, T, K, G, H).permute(0, 2, 3, 1, 4).reshape(B, K, G * T, H)
    scores = (q_BKXH @ k_BKSH.transpose(-1, -2)).view(B, K, G, T, S)
    if bias is not None:
        scores = scores + bias.to(scores.dtype).view(-1, K, G, T, S)
    if causal:
        scores = scores + _causal_bias(T, scores.dtype, scores.device, window)
    if mask is not None:
        scores = scores.masked_fill(~mask.unsqueeze(2), float("-inf"))
    weights = torch.softmax(scores, dim=-1)
    if dropout_probability > 0:
        weights = dropout(weights, dropout_probability)
    out_BKXH = weights.view(B, K, G * T, S) @ v_BKSH
    return out_BKXH.view(B, K, G, T, H).permute(0, 3, 1, 2, 4).reshape(B, T, N, H)


def _block_by_block(q_BTNH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor, window: int, scale: float,
                    dropout_probability: float) -> Tensor:
    """Blocks of queries, each over the keys that they can see: T · (block + window) scores instead of T · T."""
    T, parts = q_BTNH.shape[1], []
    for start in range(0, T, LONGEST_PLAIN_TOKENS):
        end, first = min(start + LONGEST_PLAIN_TOKENS, T), max(0, start - window + 1)
        query_T = torch.arange(start, end, device=q_BTNH.device)
        key_S = torch.arange(first, end, device=q_BTNH.device)
        parts.append(attention(q_BTNH[:, start:end], k_BSKH[:, first:end], v_BSKH[:, first:end], scale=scale,
                               mask=in_window(query_T[None], key_S, window), dropout_probability=dropout_probability))
    return torch.cat(parts, dim=1)


def in_window(query_BT: Tensor, key_S: Tensor, window: int | None) -> Tensor:
    """Whether a query sees a key, by their positions: neither ahead of it nor `window` tokens back; [B, 1, T, S]."""
    distance_B1TS = (query_BT[:, :, None] - key_S)[:, None]
    seen = distance_B1TS >= 0
    return seen if window is None else seen & (distance_B1TS < window)


def _causal_bias(length: int, dtype: torch.dtype, device: torch.device, window: int | None) -> Tensor:
    hidden = torch.full((length, length), float("-inf"), dtype=dtype, device=device)
    return hidden.triu(1) if window is None else hidden.triu(1) + hidden.tril(-window)


def _added(mask: Tensor | None, bias: Tensor | None, causal: bool, window: int | None, T: int, S: int,
           like: Tensor) -> Tensor | None:
    """Mask, bias, causality and window as the one additive mask that the fused kernel takes."""
    if bias is None and mask is None and window is None:
        return None
    total = bias.to(like.dtype) if bias is not None else torch.zeros(1, 1, T, S, dtype=like.dtype, device=like.device)
    if causal:
        total = total + _causal_bias(T, like.dtype, like.device, window)
    return total if mask is None else total.masked_fill(~mask, float("-inf"))
