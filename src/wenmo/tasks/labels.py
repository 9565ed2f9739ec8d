"""Labels: names that the rows give to texts, one each (classification) or any number (multi_label).

In: how often each label stands in the training rows. Out: the labels in the order of a head's outputs, fixed at
training and kept in the card; and the half of a task over them that is alike for one label and for several.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field, field_validator

from wenmo.errors import DataError, RecipeError, say
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
        numeric = all(label.removeprefix("-").isdecimal() for label in counts)
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


class LabelledSettings(TextSettings):
    """labels: in the order of the outputs; without them, all labels of the training rows, sorted."""

    labels: tuple[Label, ...] | None = Field(None, min_length=2)

    _all_different = field_validator("labels")(all_different)


L = TypeVar("L", bound=LabelledSettings)


@dataclass(frozen=True)
class LabelledTask(TextTask[L]):
    """A text task whose head has an output for each label."""

    @cached_property
    def labels(self) -> dict[str, int]:
        """label → number of the output."""
        assert self.settings.labels is not None, "not fitted"
        return {label: index for index, label in enumerate(self.settings.labels)}

    @property
    def heads(self) -> Mapping[str, int]:
        return {"classification": len(self.labels)}

    def number_of(self, label: str) -> int:
        """The label's output. DataError for one that was never seen in training."""
        if label not in self.labels:
            raise DataError(
                say(f"the label `{label}` was never seen in training", f"标签 `{label}` 在训练中从未出现"),
                where=self.settings.target_columns[0],
                mend=say("known labels: ", "已知标签：") + ", ".join(self.labels))
        return self.labels[label]

    def card(self) -> dict[str, Any]:
        return {**super().card(), "labels": list(self.labels)}
