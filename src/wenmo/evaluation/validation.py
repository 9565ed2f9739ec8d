"""Validation during training: the loss and the task's metrics on the rows for choosing.

In: the model as it is, examples with targets, the rows. Out: plain numbers by name, for the log and for choosing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch

from wenmo.data.examples import Examples, Rows
from wenmo.data.loader import evaluation_batches
from wenmo.data.sequence import Batch
from wenmo.device import Device
from wenmo.models import LanguageModel
from wenmo.objectives import Objective
from wenmo.tasks import Task

BATCH_TOKENS = 8192


def validate(model: LanguageModel, task: Task, objective: Objective, examples: Examples,
             rows: list[Mapping[str, Any]], on: Device) -> dict[str, float]:
    """`loss` (as in training, without dropout), each term by name, and the task's metrics where rows have targets."""
    return _measured(model, task, objective, evaluation_batches(examples, BATCH_TOKENS), rows, on)


def first_batch(model: LanguageModel, task: Task, objective: Objective, examples: Examples,
                rows: list[Mapping[str, Any]], on: Device) -> dict[str, float]:
    """What `validate` gives, of the first batch alone: for the names, before training begins. A row of which it has a
    window is measured with all of them."""
    first = next(evaluation_batches(examples, BATCH_TOKENS))
    if not _measures(task, objective):
        return _measured(model, task, objective, [first], rows, on)
    seen = set(first.first.rows)
    all_examples = (examples.sequences(index, 0) for index in range(len(examples.lengths(0))))
    whole = Rows(example for example in all_examples if example[0].row in seen)
    return _measured(model, task, objective, evaluation_batches(whole, BATCH_TOKENS), rows, on)


def measures_of(names: Collection[str], model: LanguageModel, task: Task, objective: Objective, examples: Examples,
                rows: list[Mapping[str, Any]], on: Device) -> dict[str, float]:
    """`first_batch`, or where that has not all of the names, as it may hold no row of one of several tasks, `validate`.
    """
    found = first_batch(model, task, objective, examples, rows, on)
    return found if all(name in found for name in names) else validate(model, task, objective, examples, rows, on)


def outputs_of(model: LanguageModel, task: Task, examples: Examples, num_rows: int, on: Device) -> list[list[Any]]:
    """For each row the task's outputs of its sequences, none for a row that became no example."""
    found: list[list[Any]] = [[] for _ in range(num_rows)]
    with torch.inference_mode():
        for batch in evaluation_batches(examples, BATCH_TOKENS):
            batch = batch.to(on.device)
            for row, output in zip(batch.first.rows, task.outputs(model, batch), strict=True):
                found[row].append(output)
    return found


def _measures(task: Task, objective: Objective) -> bool:
    """Whether rows have targets. A loss over rows that are compared depends on which of them stand together; what is
    measured does not."""
    return bool(task.settings.target_columns) or objective.coupled is not None


def _measured(model: LanguageModel, task: Task, objective: Objective, batches: Iterable[Batch],
              rows: list[Mapping[str, Any]], on: Device) -> dict[str, float]:
    module: Any = model
    module.eval()
    measures = _measures(task, objective)
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    weights: dict[str, float] = {}
    outputs: dict[int, list[Any]] = {}
    with torch.inference_mode():
        for batch in batches:
            for name, count in objective.counts(batch).items():
                counts[name] = counts.get(name, 0.0) + count
            batch = batch.to(on.device)
            for term in objective.terms(model, batch):
                sums[term.name] = sums.get(term.name, 0.0) + float(term.sum)
                weights[term.name] = term.weight
            if measures:
                for row, output in zip(batch.first.rows, task.outputs(model, batch), strict=True):
                    outputs.setdefault(row, []).append(output)
    means = {name: sums[name] / counts[name] for name in sums if counts[name]}
    result = {"loss": sum(weights[name] * mean for name, mean in means.items())}
    if len(means) > 1:
        result |= {f"{name}_loss": mean for name, mean in means.items()}
    if measures:
        seen = sorted(outputs)
        measured = task.measure([rows[row] for row in seen], [outputs[row] for row in seen], seed=0)
        result |= {name: estimate.value for name, estimate in measured.metrics.items()}
    return result
