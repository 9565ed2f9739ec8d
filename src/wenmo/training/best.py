"""Which evaluation was the best, and when to stop.

In: (step, metrics) after each evaluation. Out: whether these are the best weights so far, and whether the patience
is at its end. The state is a plain dict inside the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator

from wenmo.config import Settings, free
from wenmo.errors import RecipeError, say
from wenmo.metrics import lower_is_better

Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class BestSettings(Settings):
    """`metric` chooses the weights: one by its name, or the weighted mean of several, `{intent.accuracy: 1, slots.f1:
    2}`. `patience` ends the run after so many evaluations without a better one."""

    metric: str | dict[str, Weight] = "loss"
    patience: int | None = free(None, ge=1)

    @property
    def weights(self) -> dict[str, float]:
        return {self.metric: 1.0} if isinstance(self.metric, str) else self.metric

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.weights)

    @model_validator(mode="after")
    def _one_way(self) -> BestSettings:
        if not self.weights:
            raise ValueError(say("`metric` names no metric", "`metric` 没有给出指标"))
        if len({lower_is_better(name) for name in self.names}) > 1:
            raise ValueError(say("`metric`: some of these are to be high and others low, and have no mean",
                                 "`metric`：其中有的越高越好、有的越低越好，不能求平均"))
        return self


class Best:
    """`step` and `value` of the best evaluation; `num_since` evaluations have come after it."""

    def __init__(self, settings: BestSettings, state: Mapping[str, Any] | None = None) -> None:
        self.settings = settings
        self.step: int | None = None
        self.value: float | None = None
        self.num_since = 0
        if state is not None:
            self.step, self.value, self.num_since = state["step"], state["value"], state["num_since"]

    def see(self, step: int, metrics: Mapping[str, float]) -> bool:
        """True when these are the best so far; a tie keeps the earlier, NaN is never best.

        RecipeError for a metric that was not measured.
        """
        weights = self.settings.weights
        for name in weights:
            if name not in metrics:
                raise RecipeError(
                    say(f"there is no metric `{name}` here", f"这里没有指标 `{name}`"), where="train.best.metric",
                    mend=say("choose one of: ", "可选：") + ", ".join(sorted(metrics)),
                )
        value = sum(weight * float(metrics[name]) for name, weight in weights.items()) / sum(weights.values())
        if self.value is None:
            better = value == value
        else:
            better = value < self.value if lower_is_better(self.settings.names[0]) else value > self.value
        if better:
            self.step, self.value, self.num_since = step, value, 0
        else:
            self.num_since += 1
        return better

    @property
    def should_stop(self) -> bool:
        return self.settings.patience is not None and self.num_since >= self.settings.patience

    def to_dict(self) -> dict[str, Any]:
        return {"step": self.step, "value": self.value, "num_since": self.num_since}
