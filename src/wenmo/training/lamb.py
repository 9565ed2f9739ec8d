"""LAMB: Adam whose step in each tensor is as long as the tensor itself, for very large batches.

In: parameter groups with `lr` and `weight_decay`, gradients. Out: new weights; state `exp_avg`, `exp_avg_sq`, `step`.
torch has none. All tensors of a group go through each operation together (foreach).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Lamb(torch.optim.Optimizer):
    """You et al. 2020, algorithm 2, with φ the identity.

    r = m̂ / (√v̂ + ε) + λx;  x ← x − η ‖x‖/‖r‖ r, for each tensor x; the ratio is 1 where either norm is 0.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None, "the loop computes gradients itself"
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._step(parameters, group)

    def _step(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        states = [self.state[p] or self._begin(p) for p in parameters]
        gradients = [p.grad for p in parameters if p.grad is not None]
        (beta1, beta2), eps = group["betas"], group["eps"]
        m, v = [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]
        torch._foreach_add_([s["step"] for s in states], 1)
        times = [s["step"].item() for s in states]

        torch._foreach_lerp_(m, gradients, 1 - beta1)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, gradients, gradients, 1 - beta2)
        roots = torch._foreach_div(v, [1 - beta2**t for t in times])
        torch._foreach_sqrt_(roots)
        torch._foreach_add_(roots, eps)
        updates = torch._foreach_div(m, [1 - beta1**t for t in times])
        torch._foreach_div_(updates, roots)
        if group["weight_decay"]:
            torch._foreach_add_(updates, parameters, alpha=group["weight_decay"])
        sizes, lengths = torch.stack(torch._foreach_norm(parameters)), torch.stack(torch._foreach_norm(updates))
        ratios = torch.where((sizes > 0) & (lengths > 0), sizes / lengths, 1.0)
        torch._foreach_mul_(updates, (-group["lr"] * ratios).tolist())
        torch._foreach_add_(parameters, updates)

    def _begin(self, parameter: Tensor) -> dict[str, Tensor]:
        state = {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(parameter),
                 "exp_avg_sq": torch.zeros_like(parameter)}
        self.state[parameter] = state
        return state
