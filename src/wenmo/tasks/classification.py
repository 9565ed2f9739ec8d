"""Classification of a text or a pair of texts into one of several classes.

A row is `text` (or `text_a` and `text_b`) and `label`; labels are names, always strings. The loss is cross-entropy,
the answer {"label", "scores"}.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from wenmo.config import Fraction
from wenmo.data.sequence import Batch
from wenmo.errors import DataError, RecipeError, say
from wenmo.metrics import classification_report
from wenmo.metrics.comparison import Statistic, row_macro_f1, row_mean
from wenmo.models import LanguageModel
from wenmo.objectives import Objective, class_scores, classification
from wenmo.tasks.labels import Label, LabelledSettings, LabelledTask, Weight, labels_of
from wenmo.tasks.task import Measured


class ClassificationSettings(LabelledSettings):
    """labels: in the order of the outputs; without them, all labels of the training rows, sorted.
    class_weights: `balanced` (each class counts alike: n / (C · n_c)), or a weight for each label."""

    type: Literal["classification"] = "classification"
    class_weights: Literal["balanced"] | dict[Label, Weight] | None = None
    label_smoothing: Fraction = 0.0


@dataclass(frozen=True)
class Classification(LabelledTask[ClassificationSettings]):
    weights: tuple[float, ...] | None = None  # of the classes, once fitted

    def fitted(self, rows: Iterable[Mapping[str, Any]]) -> Classification:
        counts = Counter(str(row["label"]) for row in rows)
        labels = labels_of(counts, self.settings.labels)
        if len(labels) < 2:
            raise DataError(
                say(f"all training rows have the label {labels[0] if labels else '?'}",
                    f"所有训练数据都是同一标签 {labels[0] if labels else '?'}"), where="label",
                mend=say("give rows of at least two classes", "请提供至少两个类别的数据"))
        task = replace(self, settings=self.settings.model_copy(update={"labels": labels}))
        return replace(task, weights=task._class_weights(counts))

    def _class_weights(self, counts: Counter[str]) -> tuple[float, ...] | None:
        given = self.settings.class_weights
        if given is None:
            return None
        if given == "balanced":
            total = sum(counts[label] for label in self.labels)
            return tuple(total / (len(self.labels) * counts[label]) for label in self.labels)
        wrong = sorted(set(given) ^ set(self.labels))
        if wrong:
            raise RecipeError(
                say(f"weights and labels differ in {', '.join(wrong)}", f"权重与标签不一致：{', '.join(wrong)}"),
                where="task.class_weights", mend=say("one weight for each of: ", "为每个标签各给一个权重：")
                + ", ".join(self.labels))
        return tuple(given[label] for label in self.labels)

    def targets(self, row: Mapping[str, Any]) -> Mapping[str, int]:
        return {"label": self.number_of(str(row["label"]))}

    def objective(self) -> Objective:
        return classification(class_weights=self.weights, label_smoothing=self.settings.label_smoothing)

    def outputs(self, model: LanguageModel, batch: Batch) -> list[Any]:
        return list(torch.softmax(class_scores(model, batch.text), dim=-1).cpu().numpy())

    def pooled(self, outputs: list[Any]) -> Any:
        """Where the largest of each class were taken, they are made to add up to one again."""
        probabilities_C = super().pooled(outputs)
        return probabilities_C / probabilities_C.sum() if len(outputs) > 1 else probabilities_C

    def decode(self, row: Mapping[str, Any], outputs: list[Any]) -> dict[str, Any]:
        probabilities_C = self.pooled(outputs)
        names = list(self.labels)
        return {"label": names[int(probabilities_C.argmax())],
                "scores": {name: round(float(p), 6) for name, p in zip(names, probabilities_C, strict=True)}}

    def correct(self, row: Mapping[str, Any], outputs: list[Any]) -> bool:
        """Whether the most probable label is the row's."""
        probabilities_C = self.pooled(outputs)
        return int(probabilities_C.argmax()) == self.number_of(str(row["label"]))

    def measure(self, rows: list[Mapping[str, Any]], outputs: list[list[Any]], seed: int) -> Measured:
        labels = [self.number_of(str(row["label"])) for row in rows]
        probabilities_BC = np.stack([self.pooled(each) for each in outputs])
        result = classification_report(labels, probabilities_BC, list(self.labels), seed)
        said = probabilities_BC.argmax(axis=1)
        statistics: dict[str, Statistic] = {
            "accuracy": row_mean(said == labels), "macro_f1": row_macro_f1(labels, said, len(self.labels))}
        return Measured(len(rows), result["metrics"], result["details"], statistics)
