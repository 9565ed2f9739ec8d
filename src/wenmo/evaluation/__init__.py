"""Evaluation: a model, rows and a seed → a Report. It reaches models through `wenmo.load`'s object alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wenmo.loaded import Loaded
from wenmo.report import Report


def evaluate(loaded: Loaded, rows: list[Mapping[str, Any]], data: str, *, task: str | None = None,
             seed: int = 0) -> tuple[Report, list[dict[str, Any]]]:
    """The task's metrics over the rows, with intervals; and the answer to each row. Raises DataError for an unknown
    label and the like."""
    chosen = loaded.task(task)
    outputs = loaded.outputs(rows, chosen, with_targets=True)
    measured = chosen.measure(rows, outputs, seed)
    report = Report(loaded.reference, chosen.name, data, measured.n, seed, measured.metrics, measured.details)
    return report, [chosen.decode(found) for found in outputs]
