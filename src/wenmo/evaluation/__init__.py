"""Evaluation: a model, rows and a seed → a Report. It reaches models through `wenmo.load`'s object alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wenmo.ensemble import Answering
from wenmo.metrics import Statistic
from wenmo.report import Report


def evaluate(loaded: Answering, rows: list[Mapping[str, Any]], data: str, *, task: str | None = None,
             seed: int = 0) -> tuple[Report, list[dict[str, Any]]]:
    """The task's metrics over the rows, with intervals; and the answer to each row. Raises DataError for an unknown
    label and the like."""
    report, _, outputs = measured(loaded, rows, data, task=task, seed=seed)
    chosen = loaded.task(task)
    return report, [chosen.decode(row, found) for row, found in zip(rows, outputs, strict=True)]


def measured(loaded: Answering, rows: list[Mapping[str, Any]], data: str, *, task: str | None = None,
             seed: int = 0) -> tuple[Report, Mapping[str, Statistic], list[list[Any]]]:
    """The report, its metrics as functions of the rows drawn, and the task's outputs. What was cut is in the details.
    """
    chosen = loaded.task(task)
    outputs, cuts = loaded.outputs_and_cuts(rows, chosen, with_targets=True)
    found = chosen.measure([loaded.targets_as_learned(row, chosen) for row in rows], outputs, seed)
    cut = {"truncated": {"rows": sum(map(bool, cuts)), "tokens": sum(cuts)}} if any(cuts) else {}
    report = Report(loaded.reference, chosen.name, data, found.n, seed, found.metrics, {**found.details, **cut})
    return report, found.statistics, outputs
