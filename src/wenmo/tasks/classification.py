"""Classification of a text or a pair of texts into one of several classes.

A row is `text` (or `text_a` and `text_b`) and `label`; labels are names, always strings. The loss is cross-entropy,
the answer {"label", "scores"}.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BeforeValidator, Field, field_validator

from wenmo.config import Fraction
from wenmo.data.sequence import Batch
from wenmo.errors import DataError, RecipeError, say
from wenmo.metrics import classification_report
from wenmo.metrics.comparison import Statistic, row_macro_f1, row_mean
from wenmo.models import LanguageModel
from wenmo.objectives import Objective, class_scores, classification
from wenmo.tasks.task import Measured
from wenmo.tasks.text_task import TextSettings, TextTask


def _label(value: Any) -> Any:
    """Labels are names: a number in a recipe (`labels: [0, 1]`) is the name that a file writes so."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Label = Annotated[str, BeforeValidator(_label)]
Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def all_different(labels: tuple[str, ...] | None) -> tuple[str, ...] | None:
    twice = [label for label, count in Counter(labels or ()).items() if count > 1]
    if twice:
        raise ValueError(say(f"{', '.join(twice)} stands twice", f"{'、'.join(twice)} 出现了两次"))
    return labels


def labels_of(counts: Mapping[str, int], given: tuple[str, ...] | None) -> tuple[str, ...]:
    """The labels of the training rows, `given` or else sorted. RecipeError where those given are others."""
    labels = given
    if labels is None:
        numeric = all(label.lstrip("-").isdigit() for label in counts)
        labels = tuple(sorted(counts, key=int if numeric else str))
    unseen = [label for label in labels if not counts.get(label)]
    if unseen:
        raise RecipeError(
            say(f"no training row has the label {', '.join(unseen)}", f"训练数据中没有标签 {', '.join(unseen)}"),
            where="task.labels",
            mend=say("the labels found: ", "实际的标签有：") + ", ".join(sorted(counts)))
    unlisted = sorted(set(counts) - set(labels))
    if unlisted:
        raise RecipeError(
            say(f"training rows have the label {', '.join(unlisted)}, which is not listed",
                f"训练数据中的标签 {', '.join(unlisted)} 未列出"),
            where="task.labels",
            mend=say("the labels found: ", "实际的标签有：") + ", ".join(sorted(counts)))
    if not labels:
        raise DataError(say("no training row has a label", "训练数据中没有任何标签"), where="labels",
                        mend=say("check the column and task.separator", "请检查该列与 task.separator"))
    return labels


class ClassificationSettings(TextSettings):
    """labels: in the order of the outputs; without them, all labels of the training rows, sorted.
    class_weights: `balanced` (each class counts alike: n / (C · n_c)), or a weight for each label."""

    type: Literal["classification"] = "classification"
    labels: tuple[Label, ...] | None = Field(None, min_length=2)
    class_weights: Literal["balanced"] | dict[Label, Weight] | None = None
    label_smoothing: Fraction = 0.0

    _all_different = field_validator("labels")(all_different)


@dataclass(frozen=True)
class Classification(TextTask[ClassificationSettings]):
    weights: tuple[float, ...] | None = None  # of the classes, once fitted

    @cached_property
    def labels(self) -> dict[str, int]:
        """label → number of the output."""
        assert self.settings.labels is not None, "not fitted"
        return {label: index for index, label in enumerate(self.settings.labels)}

    @property
    def heads(self) -> Mapping[str, int]:
        return {"classification": len(self.labels)}

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
        return {"label": self._number(str(row["label"]))}

    def _number(self, label: str) -> int:
        if label not in self.labels:
            raise DataError(
                say(f"the label `{label}` was never seen in training", f"标签 `{label}` 在训练中从未出现"),
                where="label",
                mend=say("known labels: ", "已知标签：") + ", ".join(self.labels))
        return self.labels[label]

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
        return int(probabilities_C.argmax()) == self._number(str(row["label"]))

    def measure(self, rows: list[Mapping[str, Any]], outputs: list[list[Any]], seed: int) -> Measured:
        labels = [self._number(str(row["label"])) for row in rows]
        probabilities_BC = np.stack([self.pooled(each) for each in outputs])
        result = classification_report(labels, probabilities_BC, list(self.labels), seed)
        said = probabilities_BC.argmax(axis=1)
        statistics: dict[str, Statistic] = {
            "accuracy": row_mean(said == labels), "macro_f1": row_macro_f1(labels, said, len(self.labels))}
        return Measured(len(rows), result["metrics"], result["details"], statistics)

    def card(self) -> dict[str, Any]:
        return {**super().card(), "labels": list(self.labels)}
