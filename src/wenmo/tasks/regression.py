"""Regression: a number for a text or a pair of texts (similarity, a rating, a reading age).

A row is `text` (or `text_a` and `text_b`) and `score`; the answer is {"score"}. The model learns the score in
units of its spread: (score − offset) / scale, which the card keeps, so that the answer is in the user's units.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from wenmo.data.sequence import Batch
from wenmo.errors import DataError, say
from wenmo.metrics.regression import regression_report, regression_statistics
from wenmo.models import LanguageModel
from wenmo.objectives import Objective, class_scores, regression
from wenmo.tasks.task import SHOWN, Measured
from wenmo.tasks.text_task import TextSettings, TextTask


class RegressionSettings(TextSettings):
    """loss: squared errors, absolute ones, or Huber's, squared up to `delta` and absolute beyond.
    delta: in units of `scale`.
    offset, scale: left out, mean and standard deviation of the training rows' scores.
    range: the scores that there are; a row beyond it is refused, an answer beyond it cut to it."""

    type: Literal["regression"] = "regression"
    loss: Literal["mse", "mae", "huber"] = "mse"
    delta: float | None = Field(None, gt=0, allow_inf_nan=False)
    offset: float | None = Field(None, allow_inf_nan=False)
    scale: float | None = Field(None, gt=0, allow_inf_nan=False)
    range: tuple[float, float] | None = None

    @property
    def target_columns(self) -> tuple[str, ...]:
        return ("score",)

    @model_validator(mode="after")
    def _acts(self) -> RegressionSettings:
        if self.delta is not None and self.loss != "huber":
            raise ValueError(say("`delta` does nothing without `loss: huber`",
                                 "没有 `loss: huber` 时 `delta` 不起作用"))
        if self.range is not None and not -math.inf < self.range[0] < self.range[1] < math.inf:
            raise ValueError(say("`range` is [lowest, highest]", "`range` 应为 [最低, 最高]"))
        return self


@dataclass(frozen=True)
class Regression(TextTask[RegressionSettings]):
    @property
    def heads(self) -> Mapping[str, int]:
        return {"classification": 1}

    @property
    def _units(self) -> tuple[float, float]:
        """offset and scale."""
        assert self.settings.offset is not None, "not fitted"
        assert self.settings.scale is not None, "not fitted"
        return self.settings.offset, self.settings.scale

    def fitted(self, rows: Iterable[Mapping[str, Any]]) -> Regression:
        given = self.settings
        scores = np.array([self._score(row) for row in rows])
        found = {"offset": float(scores.mean()) if given.offset is None else given.offset,
                 "scale": float(scores.std()) if given.scale is None else given.scale}
        if not found["scale"]:
            raise DataError(say(f"all training rows have the score {scores[0]:g}",
                                f"所有训练数据的分数都是 {scores[0]:g}"), where="score",
                            mend=say("give rows with different scores", "请提供分数不同的数据"))
        return replace(self, settings=given.model_copy(update=found))

    def _score(self, row: Mapping[str, Any]) -> float:
        """The row's score. DataError where it is no number, or lies beyond the range."""
        value = row["score"]
        try:
            score = float(value)
        except (TypeError, ValueError):
            score = math.nan
        low, high = self.settings.range or (-math.inf, math.inf)
        if not math.isfinite(score) or not low <= score <= high:
            what = say("is no number", "不是数") if not math.isfinite(score) else say(
                f"lies beyond {low:g} to {high:g}", f"超出 {low:g} 至 {high:g}")
            text = str(row.get(self.settings.columns[0], ""))
            raise DataError(say(f"the score `{value}` {what}", f"分数 `{value}` {what}"),
                            where="score: " + " ".join(text[:SHOWN].split()),
                            mend=say("correct the row, or task.range", "请改正该行，或修改 task.range"))
        return score

    def targets(self, row: Mapping[str, Any]) -> Mapping[str, float]:
        offset, scale = self._units
        return {"score": (self._score(row) - offset) / scale}

    def objective(self) -> Objective:
        return regression(self.settings.loss, 1.0 if self.settings.delta is None else self.settings.delta)

    def outputs(self, model: LanguageModel, batch: Batch) -> list[Any]:
        """Each row's number, in the user's units."""
        offset, scale = self._units
        scores_B = class_scores(model, batch.text)[:, 0].double().cpu().numpy() * scale + offset
        return list(scores_B if self.settings.range is None else scores_B.clip(*self.settings.range))

    def decode(self, row: Mapping[str, Any], outputs: list[Any]) -> dict[str, Any]:
        score = self.pooled(outputs)
        return {"score": round(float(score), 6)}

    def measure(self, rows: list[Mapping[str, Any]], outputs: list[list[Any]], seed: int) -> Measured:
        targets = [self._score(row) for row in rows]
        scores = [self.pooled(each) for each in outputs]
        return Measured(len(rows), regression_report(targets, scores, seed),
                        statistics=regression_statistics(targets, scores))
