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

CHUNK_ROWS = 1024
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
    for rows in range(0, features_XD.shape[0], CHUNK_ROWS):
        logits = F.linear(features_XD[rows : rows + CHUNK_ROWS], weight, bias).float()
        total = total + F.cross_entropy(logits, targets_X[rows : rows + CHUNK_ROWS], reduction="sum",
                                        label_smoothing=label_smoothing, ignore_index=IGNORED)
    return total


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features_XD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_X: Tensor,
                label_smoothing: float) -> Tensor:
        weight = weight_VD.to(features_XD.dtype)
        bias = None if bias_V is None else bias_V.to(features_XD.dtype)
        num_words = weight.shape[0]
        total = torch.zeros((), device=features_XD.device)
        d_features = torch.empty_like(features_XD)
        learns_weight, learns_bias = ctx.needs_input_grad[1:3]  # a frozen vocabulary costs a third less
        d_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if learns_weight else None
        d_bias = torch.zeros_like(bias_V, dtype=torch.float32) if bias_V is not None and learns_bias else None
        for start in range(0, features_XD.shape[0], CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            chunk, targets = features_XD[rows], targets_X[rows, None]
            learnt = targets != IGNORED
            targets = targets.clamp(min=0)
            logits = F.linear(chunk, weight, bias).float()
            log_norm = torch.logsumexp(logits, dim=-1, keepdim=True)
            nll = log_norm - logits.gather(1, targets)
            if label_smoothing:
                uniform = log_norm - logits.mean(dim=-1, keepdim=True)
                nll = (1 - label_smoothing) * nll + label_smoothing * uniform
            total += (nll * learnt).sum()
            d_logits = logits.sub_(log_norm).exp_()
            if label_smoothing:
                d_logits -= label_smoothing / num_words
            d_logits.scatter_add_(1, targets, torch.full_like(nll, label_smoothing - 1.0))
            d_logits *= learnt
            if d_bias is not None:
                d_bias += d_logits.sum(0)
            d_logits = d_logits.to(features_XD.dtype)
            d_features[rows] = d_logits @ weight
            if d_weight is not None:
                d_weight += d_logits.t() @ chunk
        ctx.save_for_backward(d_features, d_weight, d_bias)
        ctx.weight_dtype = weight_VD.dtype
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        d_features, d_weight, d_bias = ctx.saved_tensors
        # Out of place: a graph may be run backward twice (retain_graph), and the saved tensors must survive it.
        d_bias = None if d_bias is None else d_bias * upstream
        d_weight = None if d_weight is None else (d_weight * upstream).to(ctx.weight_dtype)
        return d_features * upstream.to(d_features.dtype), d_weight, d_bias, None, None
