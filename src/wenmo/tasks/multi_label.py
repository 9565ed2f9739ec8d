"""Multi-label classification: of several labels any number hold of a text, or none.

A row is `text` (or `text_a` and `text_b`) and `labels`, a list or one string; the answer is {"labels", "scores"}. Each
label is a yes or no of its own, learned by cross-entropy. How probable it must be to be said is chosen, label by label,
on the rows for choosing (SCut: Yang 2001, §2.3) and kept in the card.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from wenmo.config import Fraction
from wenmo.data.sequence import Batch
from wenmo.errors import DataError, RecipeError, say
from wenmo.metrics.multi_label import best_f1_threshold, multi_label_report, multi_label_statistics
from wenmo.models import LanguageModel
from wenmo.objectives import Objective, class_scores, multi_label
from wenmo.tasks.labels import Label, LabelledSettings, LabelledTask, Weight, labels_of
from wenmo.tasks.task import Measured


class MultiLabelSettings(LabelledSettings):
    """labels: in the order of the outputs; without them, all labels of the training rows, sorted.
    separator: what stands between the labels of a row that are one string; without it the string is one label.
    pos_weight: how much more a row that has the label counts for it than one without: `balanced` (rows without over
    rows with), or a weight for each label.
    thresholds: the least probability at which each is said; left out, chosen on the rows for choosing (0.5 till then).
    """

    type: Literal["multi_label"] = "multi_label"
    labels: tuple[Label, ...] | None = Field(None, min_length=1)
    separator: str | None = Field(None, min_length=1)
    pos_weight: Literal["balanced"] | dict[Label, Weight] | None = None
    thresholds: dict[Label, Fraction] | None = None

    @property
    def target_columns(self) -> tuple[str, ...]:
        return ("labels",)


@dataclass(frozen=True)
class MultiLabel(LabelledTask[MultiLabelSettings]):
    weights: tuple[float, ...] | None = None  # of the rows that have each label, once fitted

    def fitted(self, rows: Iterable[Mapping[str, Any]]) -> MultiLabel:
        counts: Counter[str] = Counter()
        num_rows = 0
        for row in rows:
            counts.update(set(self._names(row)))
            num_rows += 1
        labels = labels_of(counts, self.settings.labels)
        for key, given in (("pos_weight", self.settings.pos_weight), ("thresholds", self.settings.thresholds)):
            if isinstance(given, Mapping) and set(given) != set(labels):
                raise RecipeError(
                    say(f"`{key}` and the labels differ in {', '.join(sorted(set(given) ^ set(labels)))}",
                        f"`{key}` 与标签不一致：{', '.join(sorted(set(given) ^ set(labels)))}"), where=f"task.{key}",
                    mend=say("one for each of: ", "每个标签各给一个：") + ", ".join(labels))
        weights = self.settings.pos_weight
        found = None if weights is None else tuple(
            (num_rows - counts[label]) / counts[label] if weights == "balanced" else weights[label]
            for label in labels)
        return replace(self, settings=self.settings.model_copy(update={"labels": labels}), weights=found)

    def tuned(self, rows: list[Mapping[str, Any]], outputs: Callable[[], list[list[Any]]]) -> MultiLabel:
        """With the threshold of each label that gives the highest F1 on these rows; 0.5 for one that none of them has.
        """
        if self.settings.thresholds is not None or not rows:
            return self
        true_BC = np.stack([self._targets(row) for row in rows])
        probabilities_BC = np.stack([self.pooled(each) for each in outputs()])
        thresholds = {label: float(f"{best_f1_threshold(probabilities_BC[:, c], true_BC[:, c]):.6g}")
                      for label, c in self.labels.items()}
        return replace(self, settings=self.settings.model_copy(update={"thresholds": thresholds}))

    @property
    def _thresholds_C(self) -> np.ndarray:
        given = self.settings.thresholds or {}
        return np.array([given.get(label, 0.5) for label in self.labels])

    def _names(self, row: Mapping[str, Any]) -> list[str]:
        """The row's labels, as names."""
        value = row["labels"]
        if isinstance(value, str):
            parts = [value] if self.settings.separator is None else value.split(self.settings.separator)
            return [part.strip() for part in parts if part.strip()]
        if isinstance(value, list) and all(isinstance(name, (str, int)) for name in value):
            return [str(name) for name in value]
        raise DataError(say(f"`labels` is neither a list of names nor a text: {value}",
                            f"`labels` 既不是名称的列表，也不是文本：{value}"), where="labels",
                        mend=say('write ["one", "two"], or one text with task.separator between',
                                 '写成 ["一", "二"]，或用 task.separator 分隔的一段文本'))

    def _targets(self, row: Mapping[str, Any]) -> np.ndarray:
        """1 for each label that the row has, [C]. DataError for one that was never seen."""
        names = self._names(row)
        said_C = np.zeros(len(self.labels), np.float32)
        said_C[[self.number_of(name) for name in names]] = 1
        return said_C

    def targets(self, row: Mapping[str, Any]) -> Mapping[str, np.ndarray]:
        return {"labels": self._targets(row)}

    def objective(self) -> Objective:
        return multi_label(self.weights)

    def outputs(self, model: LanguageModel, batch: Batch) -> list[Any]:
        return list(torch.sigmoid(class_scores(model, batch.text)).cpu().numpy())

    def decode(self, row: Mapping[str, Any], outputs: list[Any]) -> dict[str, Any]:
        probabilities_C = self.pooled(outputs)
        said = probabilities_C >= self._thresholds_C
        return {"labels": [name for name, yes in zip(self.labels, said, strict=True) if yes],
                "scores": {name: round(float(p), 6) for name, p in zip(self.labels, probabilities_C, strict=True)}}

    def correct(self, row: Mapping[str, Any], outputs: list[Any]) -> bool:
        """Whether exactly the row's labels are said."""
        probabilities_C = self.pooled(outputs)
        return bool(((probabilities_C >= self._thresholds_C) == self._targets(row).astype(bool)).all())

    def measure(self, rows: list[Mapping[str, Any]], outputs: list[list[Any]], seed: int) -> Measured:
        true_BC = np.stack([self._targets(row) for row in rows]).astype(bool)
        probabilities_BC = np.stack([self.pooled(each) for each in outputs])
        metrics, details = multi_label_report(true_BC, probabilities_BC, self._thresholds_C, list(self.labels), seed)
        statistics = multi_label_statistics(true_BC, probabilities_BC, self._thresholds_C)
        return Measured(len(rows), metrics, details, statistics)
