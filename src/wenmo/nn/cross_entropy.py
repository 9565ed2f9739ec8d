"""Cross-entropy over a vocabulary without ever holding all logits.

For M tokens and V words the logits alone are M·V numbers, the largest thing in a small model's memory. Rows are
taken in chunks; the gradients with respect to features, weight and bias are made in the forward, while a chunk's
logits are still at hand (the sum's gradient is linear in what comes from above, which the backward multiplies in).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wenmo.native.training import kernels_for

CHUNK_ROWS = 2048  # at most, and as many as have about so many logits; with weight gradients fewer chunks cost less
CHUNK_LOGITS, CHUNK_LOGITS_LEARNT = 1 << 24, 1 << 25
BLOCK_LOGITS = 1 << 19  # as many are turned into gradients at once, in fp32: these stay in the cache
VANISHING = 1e-30
IGNORED = -100


def linear_cross_entropy(
    features_XD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_X: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """Σ over rows of -log softmax(features W^T + b)[target], in nats; rows with target -100 count nothing.

    label_smoothing ε: (1 - ε) of the weight on the target, ε spread over all words (Szegedy et al. 2016, §7).
    Returns an fp32 scalar, differentiable in features, weight and bias.
    """
    if torch.is_grad_enabled():
        function: Any = _LinearCrossEntropy.apply
        total: Tensor = function(features_XD, weight_VD, bias_V, targets_X, label_smoothing)
        return total
    weight = weight_VD.to(features_XD.dtype)
    bias = None if bias_V is None else bias_V.to(features_XD.dtype)
    total = features_XD.new_zeros((), dtype=torch.float32)
    most = rows_at_once(len(weight))
    for chunk, targets in zip(torch.split(features_XD, most), torch.split(targets_X, most), strict=True):
        total = total + F.cross_entropy(F.linear(chunk, weight, bias).float(), targets, reduction="sum",
                                        label_smoothing=label_smoothing, ignore_index=IGNORED)
    return total


def rows_at_once(num_words: int, *, learns_weight: bool = False) -> int:
    """Whose logits may stand in memory together."""
    return min(CHUNK_ROWS, max(1, (CHUNK_LOGITS_LEARNT if learns_weight else CHUNK_LOGITS) // num_words))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features_XD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_X: Tensor,
                label_smoothing: float) -> Tensor:
        weight = weight_VD.to(features_XD.dtype)
        bias = None if bias_V is None else bias_V.to(features_XD.dtype)
        num_words = weight.shape[0]
        total = torch.zeros((), device=features_XD.device)
        d_features: list[Tensor] = []
        learns_weight, learns_bias = ctx.needs_input_grad[1:3]  # a frozen vocabulary costs a third less
        d_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if learns_weight else None
        d_bias = torch.zeros_like(bias_V, dtype=torch.float32) if bias_V is not None and learns_bias else None
        most = rows_at_once(num_words, learns_weight=learns_weight)
        block_rows = max(1, BLOCK_LOGITS // num_words)
        kernels, targets_X = kernels_for(features_XD), targets_X.contiguous()
        for chunk, targets in zip(torch.split(features_XD, most), torch.split(targets_X, most), strict=True):
            logits = F.linear(chunk, weight, bias)  # and soon their gradients, in place
            if kernels is not None:
                total += kernels.cross_entropy_(logits, targets, label_smoothing).sum()
            else:
                blocks = zip(torch.split(logits, block_rows), torch.split(targets, block_rows), strict=True)
                for logits_RV, targets_R in blocks:
                    total += _loss_and_gradient(logits_RV, targets_R, label_smoothing)
            if d_bias is not None:
                d_bias += logits.sum(0, dtype=torch.float32)
            d_features.append(logits @ weight)
            if d_weight is not None:
                d_weight += logits.t() @ chunk
        ctx.save_for_backward(torch.cat(d_features), d_weight, d_bias)
        ctx.weight_dtype = weight_VD.dtype
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        d_features, d_weight, d_bias = ctx.saved_tensors
        # Out of place: a graph may be run backward twice (retain_graph), and the saved tensors must survive it.
        d_bias = None if d_bias is None else d_bias * upstream
        d_weight = None if d_weight is None else (d_weight * upstream).to(ctx.weight_dtype)
        return d_features * upstream.to(d_features.dtype), d_weight, d_bias, None, None


def _loss_and_gradient(logits_RV: Tensor, targets_R: Tensor, label_smoothing: float) -> Tensor:
    """The sum over the rows; the logits are overwritten by its gradient, softmax - target."""
    learnt_R1 = (targets_R != IGNORED)[:, None]
    targets_R1 = targets_R.clamp(min=0)[:, None]
    share = torch.softmax(logits_RV, dim=-1, dtype=torch.float32)
    target_share = share.gather(1, targets_R1)
    nll = -target_share.log()
    if bool((target_share < VANISHING).any()):  # its logarithm is not exact, or infinite
        nll = torch.logsumexp(logits_RV.float(), dim=-1, keepdim=True) - logits_RV.gather(1, targets_R1)
    if label_smoothing:
        log_norm = nll + logits_RV.gather(1, targets_R1)
        uniform = log_norm - logits_RV.mean(dim=-1, keepdim=True, dtype=torch.float32)
        nll = (1 - label_smoothing) * nll + label_smoothing * uniform
        share -= label_smoothing / logits_RV.shape[1]
    share.scatter_add_(1, targets_R1, torch.full_like(nll, label_smoothing - 1.0))
    logits_RV.copy_(share)
    if not bool(learnt_R1.all()):
        logits_RV.masked_fill_(~learnt_R1, 0.0)
        nll.masked_fill_(~learnt_R1, 0.0)
    return nll.sum()
