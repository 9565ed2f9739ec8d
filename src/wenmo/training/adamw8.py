"""AdamW that remembers its moments in eight bits: two bytes a parameter between steps instead of eight.

In: parameter groups, gradients. Out: new weights; state of a matrix: `exp_avg` and `exp_avg_sq` as codes in its own
shape, with a scale for each row (`…_scale`, [R, 1]); of a vector fp32, as ever.

Block-wise quantisation of optimizer states is Dettmers et al. 2022; a block here is a row. Their code is a table with
more places near zero; ours is a power: m = s (c/127)² with c's sign, v = s (c/255)⁴, so that √v and m have like steps
and no table is looked up. Rounding is by chance, in proportion to what lies on either side: a moving average changes by
a part of a step at a time, and rounded to the nearest it would stand still. The chances are a function of the step
and the place, so that a resumed run draws the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from wenmo.device import key
from wenmo.training.adamw import FusedAdamW

TOGETHER = 1 << 18  # numbers that are fp32 at a time: they stay in the cache
TINY = 1e-38


class EightBitAdamW(FusedAdamW):
    """Loshchilov and Hutter 2019, algorithm 2, with the moments of matrices in eight bits."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # torch overloads it to give a loss
        assert closure is None, "the loop computes gradients itself"
        number = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                number += 1
                if parameter.grad is not None and parameter.ndim == 2:
                    self._update_rows(parameter, group, number)
            self.update([p for p in group["params"] if p.grad is not None and p.ndim != 2], group)

    def _update_rows(self, parameter: Tensor, group: dict[str, Any], number: int) -> None:
        assert parameter.grad is not None
        state = self.state[parameter] or self._begin_coded(parameter)
        state["step"] += 1
        chance = np.random.SFC64(key("adamw8", number, int(state["step"])))
        together = max(1, TOGETHER // parameter.shape[1])
        for start in range(0, parameter.shape[0], together):
            rows = slice(start, start + together)
            parts = [state[name][rows] for name in ("exp_avg", "exp_avg_scale", "exp_avg_sq", "exp_avg_sq_scale")]
            m_RC, v_RC = signed(parts[0], parts[1]), positive(parts[2], parts[3])
            self.kernel([parameter[rows]], [parameter.grad[rows]], [m_RC], [v_RC], [state["step"]], group)
            code_signed(m_RC, _uniform(chance, m_RC), *parts[:2])
            code_positive(v_RC, _uniform(chance, v_RC), *parts[2:])

    def _begin_coded(self, parameter: Tensor) -> dict[str, Tensor]:
        scale = parameter.new_zeros(parameter.shape[0], 1)
        state = {"step": torch.zeros((), device=parameter.device),
                 "exp_avg": torch.zeros_like(parameter, dtype=torch.int8), "exp_avg_scale": scale.clone(),
                 "exp_avg_sq": torch.zeros_like(parameter, dtype=torch.uint8), "exp_avg_sq_scale": scale}
        self.state[parameter] = state
        return state


def signed(code_RC: Tensor, scale_R1: Tensor) -> Tensor:
    """s (c/127)², with the sign of c."""
    root_RC = code_RC.float().mul_(1 / 127)
    return root_RC.mul_(root_RC.abs()).mul_(scale_R1)


def code_signed(x_RC: Tensor, uniform_RC: Tensor, code_RC: Tensor, scale_R1: Tensor) -> None:
    """Fills in the codes and the scales of x; uniform: in [0, 1)."""
    size_RC = x_RC.abs()
    torch.amax(size_RC, 1, keepdim=True, out=scale_R1)
    root_RC = size_RC.div_(scale_R1.clamp(min=TINY)).sqrt_().mul_(127)
    code_RC.copy_(root_RC.add_(uniform_RC).floor_().clamp_(max=127).copysign_(x_RC))


def positive(code_RC: Tensor, scale_R1: Tensor) -> Tensor:
    """s (c/255)⁴."""
    return code_RC.float().mul_(1 / 255).square_().square_().mul_(scale_R1)


def code_positive(x_RC: Tensor, uniform_RC: Tensor, code_RC: Tensor, scale_R1: Tensor) -> None:
    """As `code_signed`. What is not zero never becomes zero: m would then be divided by nothing but ε."""
    torch.amax(x_RC, 1, keepdim=True, out=scale_R1)
    root_RC = x_RC.div(scale_R1.clamp(min=TINY)).sqrt_().sqrt_().mul_(255)
    code_RC.copy_(root_RC.add_(uniform_RC).floor_().clamp_(max=255).maximum((x_RC > 0).float()))


def _uniform(chance: np.random.SFC64, like: Tensor) -> Tensor:
    """The middles of 256 equal parts of [0, 1)."""
    bytes_ = chance.random_raw((like.numel() + 7) // 8).view(np.uint8)[: like.numel()]
    return torch.from_numpy(bytes_).to(like.device).view(like.shape).float().add_(0.5).mul_(1 / 256)
