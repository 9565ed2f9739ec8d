"""Several models that answer as one: the mean of what each of them finds (Hansen & Salamon 1990).

In: references to models of one task. Out: an `Ensemble`, which `evaluate` and `predict` ask as they ask one model. The
means are those of a row's scores (probabilities, numbers, cosines), so that the models need not share a tokenizer or a
shape. What they are is the task's to say (`pooled`, `mean`); answers in words, and spans, have none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wenmo.device import DType
from wenmo.errors import DataError, ModelError, say
from wenmo.loaded import Answered, Loaded, decoded, load
from wenmo.modeldir import Opened
from wenmo.tasks import Joint, Task


def load_all(references: Sequence[str], *, dtype: DType = "fp32", threads: int | None = None) -> Answering:
    """One model, or an Ensemble of several; a folder of folds (`RUN/folds`) stands for all in it. Raises ModelError."""
    names = [name for reference in references for name in members(reference)]
    loaded = [load(name, dtype=dtype, threads=threads) for name in names]
    return loaded[0] if len(loaded) == 1 else Ensemble(loaded)


def members(reference: str) -> list[str]:
    """The runs of a cross-validation's folder `folds`, in order; else the reference itself."""
    folds = sorted(Path(reference).glob("fold-*/model"), key=lambda path: int(path.parent.name.removeprefix("fold-")))
    return [str(path.parent) for path in folds] or [reference]


class Ensemble:
    """Models of the same task and labels. What it says of itself is what the first of them says."""

    def __init__(self, loaded: Sequence[Loaded]) -> None:
        assert len(loaded) > 1
        self.loaded = list(loaded)

    @property
    def reference(self) -> str:
        return " + ".join(each.reference for each in self.loaded)

    @property
    def opened(self) -> Opened:
        return self.loaded[0].opened

    def task(self, name: str | None = None) -> Task:
        """The first model's. Raises ModelError where the others' is not the same, or has no scores to be averaged."""
        first: Task = self._tasks(name)[0]
        return first

    def _tasks(self, name: str | None) -> list[Any]:
        found: list[Any] = []  # each a Task with `pooled` and `mean`
        for each in self.loaded:
            task = each.task(name)
            if not all(hasattr(part, "mean") for part in (task.parts.values() if isinstance(task, Joint) else [task])):
                raise ModelError(
                    say(f"the answers of {task.name} have no mean", f"{task.name} 的答案没有平均值可言"),
                    where=each.reference,
                    mend=say("ensembles are for classes, labels, numbers, tags and similarity; or average the "
                             "weights: wenmo average",
                             "集成用于类别、标签、数值、序列标注与相似度；或平均权重：wenmo average"))
            if found and _meaning(task) != _meaning(found[0]):
                raise ModelError(
                    say("the models answer different questions: their tasks, columns or labels differ",
                        "各模型回答的问题不同：任务、列或标签不一致"),
                    where=f"{self.loaded[0].reference} | {each.reference}",
                    mend=say("take models that were trained with the same `task:`, labels in the same order",
                             "请使用以相同 `task:`、相同标签顺序训练的模型"))
            found.append(task)
        return found

    def outputs_and_cuts(self, rows: Sequence[Mapping[str, Any]], task: Task, *,
                         with_targets: bool = False) -> tuple[list[list[Any]], list[int]]:
        """As of one model; the tokens cut are those of the model that reads least of a row."""
        tasks = self._tasks(None if isinstance(task, Joint) and len(task.parts) > 1 else task.name)
        of_each = [(own, each.outputs_and_cuts(rows, own, with_targets=with_targets))
                   for own, each in zip(tasks, self.loaded, strict=True)]
        outputs = [tasks[0].mean([own.pooled(found[row]) for own, (found, _) in of_each]) for row in range(len(rows))]
        return outputs, [max(cuts[row] for _, (_, cuts) in of_each) for row in range(len(rows))]

    def targets_as_learned(self, row: Mapping[str, Any], task: Task) -> Mapping[str, Any]:
        return self.loaded[0].targets_as_learned(row, task)

    def answers(self, rows: Sequence[Mapping[str, Any] | str | DataError], task: str | None = None,
                first: int = 0) -> list[dict[str, Any] | DataError]:
        """As `Loaded.answers`; a row that one of the models cannot answer has its error."""
        tasks = self._tasks(task)
        of_each = [each.answered(rows, own, first) for own, each in zip(tasks, self.loaded, strict=True)]
        result: list[dict[str, Any] | DataError] = []
        for found in zip(*of_each, strict=True):
            good = [each for each in found if isinstance(each, Answered)]
            if len(good) < len(found):
                result.append(next(each for each in found if isinstance(each, DataError)))
                continue
            outputs = tasks[0].mean([own.pooled(each.outputs) for own, each in zip(tasks, good, strict=True)])
            result.append(decoded(tasks[0], Answered(good[0].row, outputs, max(each.cut_tokens for each in good))))
        return result


Answering = Loaded | Ensemble


def _meaning(task: Any) -> tuple[Any, ...]:
    """What must be alike for two tasks' outputs to be of one kind."""
    if isinstance(task, Joint):
        return tuple((name, *_meaning(part)) for name, part in task.parts.items())
    settings = task.settings
    own = [getattr(settings, name, None) for name in ("labels", "target", "rows", "units")]
    return task.name, settings.columns, dict(task.heads), *own
