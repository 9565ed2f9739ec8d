"""AdamW by torch's fused kernel, without the half of torch that its own class draws in.

In: parameter groups with `lr` and `weight_decay`, gradients. Out: new weights; state `exp_avg`, `exp_avg_sq`, `step`.
The numbers are those of `torch.optim.AdamW(fused=True)` to the last bit. That class imports torch's compiler when it is
made and at each step, 0.8 s of a start that compiles nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class FusedAdamW(torch.optim.Optimizer):
    """Loshchilov and Hutter 2019, algorithm 2: θ ← θ − η λ θ − η m̂ / (√v̂ + ε)."""

    def __init__(self, groups: Sequence[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        inspect.unwrap(torch.optim.Optimizer.add_param_group)(self, param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        inspect.unwrap(torch.optim.Optimizer.zero_grad)(self, set_to_none)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # torch overloads it to give a loss
        assert closure is None, "the loop computes gradients itself"
        for group in self.param_groups:
            self.update([p for p in group["params"] if p.grad is not None], group)

    def update(self, parameters: Sequence[Tensor], group: dict[str, Any]) -> None:
        """One step of these; all have a gradient."""
        if not parameters:
            return
        states = [self.state[p] or self._begin(p) for p in parameters]
        times = [state["step"] for state in states]
        torch._foreach_add_(times, 1)
        self.kernel(parameters, [p.grad for p in parameters if p.grad is not None],
                    [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states], times, group)

    def kernel(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], m: Sequence[Tensor],
               v: Sequence[Tensor], times: Sequence[Tensor], group: dict[str, Any]) -> None:
        """Weights and moments after step number `times`, in place."""
        beta1, beta2 = group["betas"]
        torch._fused_adamw_(list(parameters), list(gradients), list(m), list(v), [], list(times), lr=group["lr"],
                            beta1=beta1, beta2=beta2, weight_decay=group["weight_decay"], eps=group["eps"],
                            amsgrad=False, maximize=False)

    def _begin(self, parameter: Tensor) -> dict[str, Tensor]:
        state = {"step": torch.zeros((), device=parameter.device), "exp_avg": torch.zeros_like(parameter),
                 "exp_avg_sq": torch.zeros_like(parameter)}
        self.state[parameter] = state
        return state
