"""The learning rate over a run.

In: schedule settings and a step. Out: the factor that the optimizer's rates are multiplied by. A pure function of
(step, total steps): nothing to save, and the wall clock never shapes it. `Rates` is both together; a run may be made
longer, or its schedule another, as long as no step that is done would have had another rate.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from wenmo.config import Count, Fraction, Settings, identity_differences
from wenmo.errors import CheckpointError, RecipeError, say


def _length(value: Any) -> Any:
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


Length = Annotated[int | float, BeforeValidator(_length)]


class _Warm(Settings):
    """`warmup`: a share of the run ("6%") or a number of steps (Goyal et al. 2017, §2.2)."""

    warmup: Length = 0.06


class _Falling(_Warm):
    """`floor`: the share of lr that the run ends on."""

    floor: Fraction = 0.0


class ConstantSchedule(_Warm):
    type: Literal["constant"] = "constant"


class LinearSchedule(_Falling):
    type: Literal["linear"] = "linear"


class CosineSchedule(_Falling):
    """Loshchilov and Hutter 2017, §3, without restarts."""

    type: Literal["cosine"] = "cosine"


class PolynomialSchedule(_Falling):
    """(1 − p)^power of the way down to the floor; 1 is linear."""

    type: Literal["polynomial"] = "polynomial"
    power: float = Field(2.0, gt=0)


class InverseSqrtSchedule(_Warm):
    """1/√step after the warm-up (Vaswani et al. 2017, §5.3), in shares of the highest rate."""

    type: Literal["inverse_sqrt"] = "inverse_sqrt"


class WsdSchedule(_Falling):
    """Warm-up, stable, decay (Hu et al. 2024, §4): the rate stands until the last `decay` of the run, a share or steps.

    `form` of the decay: linear, cosine, or 1-sqrt (Hägele et al. 2024, §3), which falls fastest at its beginning.
    """

    type: Literal["wsd"] = "wsd"
    decay: Length = 0.2
    form: Literal["linear", "cosine", "1-sqrt"] = "1-sqrt"

    @model_validator(mode="after")
    def _fits(self) -> WsdSchedule:
        if self.decay == 0:
            raise ValueError(say("without `decay` this is `type: constant`", "没有 `decay` 即为 `type: constant`"))
        if isinstance(self.decay, float) and isinstance(self.warmup, float) and self.decay + self.warmup > 1 + 1e-9:
            raise ValueError(say("`warmup` and `decay` are longer than the run", "`warmup` 与 `decay` 之和超过全程"))
        return self


def _type(value: Any) -> Any:
    return value.get("type", "cosine") if isinstance(value, dict) else getattr(value, "type", "cosine")


ScheduleSettings = Annotated[
    Annotated[ConstantSchedule, Tag("constant")] | Annotated[LinearSchedule, Tag("linear")]
    | Annotated[CosineSchedule, Tag("cosine")] | Annotated[PolynomialSchedule, Tag("polynomial")]
    | Annotated[InverseSqrtSchedule, Tag("inverse_sqrt")] | Annotated[WsdSchedule, Tag("wsd")], Discriminator(_type)]


def warmup_steps(settings: ScheduleSettings, total_steps: int) -> int:
    """The number of steps under the full rate at the start. RecipeError when the run is shorter than that."""
    return _steps(settings.warmup, total_steps, "warm-up", "预热", "warmup")


def _steps(length: int | float, total_steps: int, en: str, zh: str, key: str) -> int:
    if isinstance(length, float):
        return round(length * total_steps)
    if length > total_steps:
        raise RecipeError(
            say(f"the {en} takes {length} steps, the whole run has {total_steps}",
                f"{zh}需要 {length} 步，而全程只有 {total_steps} 步"),
            where=f"train.schedule.{key}",
            mend=say("shorten it, or give a share of the run: 6%", "请缩短，或写成占全程的比例：6%"),
        )
    return length


def _fall_begins(settings: ScheduleSettings, total_steps: int, warmup: int) -> int:
    if not isinstance(settings, WsdSchedule):
        return warmup
    decay = _steps(settings.decay, total_steps, "decay", "衰减", "decay")
    if warmup + decay > total_steps + 1:  # two rounded shares may be one step too long
        raise RecipeError(
            say(f"warm-up ({warmup} steps) and decay ({decay}) are longer than the run ({total_steps})",
                f"预热（{warmup} 步）与衰减（{decay} 步）之和超过全程（{total_steps} 步）"),
            where="train.schedule", mend=say("shorten one of them", "请缩短其中之一"))
    return max(warmup, total_steps - decay)


def lr_factor(settings: ScheduleSettings, step: int, total_steps: int) -> float:
    """The factor for step `step` (from 0), in (0, 1] while the run lasts.

    It climbs through 1/(w+1), 2/(w+1), … over the w warm-up steps and is 1 at step w. What falls to a `floor` meets it
    at `step == total_steps`, just behind the last step: no step is spent at a rate of 0.
    """
    warmup = warmup_steps(settings, total_steps)
    begin = _fall_begins(settings, total_steps, warmup)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if isinstance(settings, ConstantSchedule) or step <= begin or total_steps == begin:
        return 1.0
    if isinstance(settings, InverseSqrtSchedule):
        return math.sqrt((warmup + 1) / (step + 1))
    progress = min((step - begin) / (total_steps - begin), 1.0)
    form = settings.form if isinstance(settings, WsdSchedule) else settings.type
    if form == "cosine":
        height = (1 + math.cos(math.pi * progress)) / 2
    elif form == "1-sqrt":
        height = 1 - math.sqrt(progress)
    else:
        height = (1 - progress) ** (settings.power if isinstance(settings, PolynomialSchedule) else 1.0)
    return settings.floor + (1 - settings.floor) * height


# The rates of a run -----------------------------------------------------------------------------------


class Rates(Settings):
    """A schedule and the length that it is laid over; part of a checkpoint."""

    schedule: ScheduleSettings
    total_steps: Count

    def factor(self, step: int) -> float:
        return lr_factor(self.schedule, step, self.total_steps)


def refuse_other_past(before: Rates, now: Rates, steps_done: int, where: str) -> None:
    """CheckpointError where one of the steps done would have had another rate: the weights would not be those of a run
    that was begun so. Under a constant rate, and before a decay has begun, a run may thus be made longer."""
    if before == now:
        return
    first = next((step for step in range(steps_done) if before.factor(step) != now.factor(step)), None)
    if first is None and now.total_steps >= steps_done:
        return
    lines = "".join(f"\n  {name.replace('total_steps', 'steps')}: {old} → {new}"
                    for name, old, new in identity_differences(before, now, "train"))
    if first is None:
        why = say(f"{steps_done} steps are done", f"已完成 {steps_done} 步")
        mend = say("give at least as many steps", "步数不能少于已完成的步数")
    else:
        why = say(f"step {first + 1} of the {steps_done} done had {before.factor(first):.4g} of the rate, "
                  f"and would now have {now.factor(first):.4g}",
                  f"已完成 {steps_done} 步，其中第 {first + 1} 步的学习率系数为 {before.factor(first):.4g}，"
                  f"按现在的设定则为 {now.factor(first):.4g}")
        mend = say("change these back, or choose another --out; a run can be made longer under a constant or wsd "
                   "schedule whose warm-up is a number of steps, before the decay begins",
                   "改回原值，或换一个 --out；若调度为 constant 或 wsd 且预热写成步数，则在衰减开始之前可以加长")
    raise CheckpointError(
        say("this run was begun with something else:", "该运行开始时的设定与现在不同：") + lines + "\n" + why,
        where=where, mend=mend)
