"""The learning rate over a run.

In: ScheduleSettings and a step. Out: the factor that the optimizer's rates are multiplied by. A pure function of
(step, total steps): nothing to save, and the wall clock never shapes it.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, model_validator

from wenmo.config import Fraction, Settings
from wenmo.errors import RecipeError, say


def _warmup(value: Any) -> Any:
    """"6%" or 0.06 → a share of the run; 200, 2e2 or "200 steps" → a number of steps."""
    found: Any = value
    if isinstance(value, str):
        text = value.strip()
        try:
            if text.endswith("%"):
                found = float(text[:-1]) / 100
            else:
                number = float(re.sub(r"\s*(steps?|步)$", "", text))
                found = int(number) if number.is_integer() else number
        except ValueError:
            found = None
    elif isinstance(value, float) and value > 1 and value.is_integer():
        found = int(value)
    share = isinstance(found, float) and 0 <= found <= 1
    count = isinstance(found, int) and not isinstance(found, bool) and found >= 0
    if not (share or count):
        raise ValueError(say("write a share of the run (6%) or a number of steps (200)",
                             "请写占全程的比例（6%）或步数（200）"))
    return found


Warmup = Annotated[int | float, BeforeValidator(_warmup)]


class ScheduleSettings(Settings):
    """`warmup`: a share of the run ("6%") or a number of steps. `floor`: the share of lr that the run ends on."""

    type: Literal["constant", "linear", "cosine"] = "cosine"
    warmup: Warmup = 0.06
    floor: Fraction = 0.0

    @model_validator(mode="after")
    def _floor_acts(self) -> ScheduleSettings:
        if self.type == "constant" and self.floor > 0:
            raise ValueError(say("`floor` does nothing under a constant schedule: take it out",
                                 "constant 调度下 `floor` 不起作用：请删去"))
        return self


def warmup_steps(settings: ScheduleSettings, total_steps: int) -> int:
    """The number of steps under the full rate at the start. RecipeError when the run is shorter than that."""
    if isinstance(settings.warmup, float):
        return round(settings.warmup * total_steps)
    if settings.warmup > total_steps:
        raise RecipeError(
            say(f"the warm-up takes {settings.warmup} steps, the whole run has {total_steps}",
                f"预热需要 {settings.warmup} 步，而全程只有 {total_steps} 步"),
            where="train.schedule.warmup",
            mend=say("shorten it, or give a share of the run: 6%", "请缩短预热，或写成占全程的比例：6%"),
        )
    return settings.warmup


def lr_factor(settings: ScheduleSettings, step: int, total_steps: int) -> float:
    """The factor for step `step` (from 0), in (0, 1] while the run lasts.

    It climbs through 1/(w+1), 2/(w+1), … over the w warm-up steps, is 1 at step w, and falls from there so that
    `floor` is met at `step == total_steps`, just behind the last step: no step is spent at a rate of 0.
    """
    warmup = warmup_steps(settings, total_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if settings.type == "constant" or total_steps == warmup:
        return 1.0
    progress = min((step - warmup) / (total_steps - warmup), 1.0)
    if settings.type == "linear":
        height = 1 - progress
    else:
        height = (1 + math.cos(math.pi * progress)) / 2
    return settings.floor + (1 - settings.floor) * height
