"""The same rows have the same scores, whatever stands beside them: for every task, in fp32 within 1e-5.

Batches are flat, so that there is no padding and no side of it: what may differ is how rows are put into batches, and
their order. Decisions (labels, tags, texts) may turn where two scores lie closer than that; they are counted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import wenmo.loaded.held
from every_task import CASES, differences, recipe_of
from wenmo.loaded import Loaded, load
from wenmo.report import metric_name
from wenmo.stages.library import train
from wenmo.tasks import TASKS

TOLERANCE = 1e-5


def test_every_task_is_here() -> None:
    assert {task["type"] for _, _, task, _, _ in CASES.values()} == set(TASKS)


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Loaded, list[Any]]:
    """A model that has learned for a few steps, and its rows."""
    folder = tmp_path_factory.mktemp("run")
    train(recipe_of(request.param, folder), out=folder / "run", data_root=folder)
    return load(folder / "run", threads=1), list(CASES[request.param][3])


def asked(model: Loaded, rows: list[Any]) -> tuple[list[Any], list[Any]]:
    """The task's outputs, and its answers."""
    task = model.task()
    outputs = model.outputs(rows, task, with_targets=True)
    return outputs, [task.decode(row, found) for row, found in zip(rows, outputs, strict=True)]


@pytest.mark.parametrize("batch_tokens", [1, 100])
def test_whatever_the_batch_size(case: tuple[Loaded, list[Any]], batch_tokens: int,
                                 monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = case
    before = asked(model, rows)
    monkeypatch.setattr(wenmo.loaded.held, "BATCH_TOKENS", batch_tokens)
    after = asked(model, rows)
    for one, other in zip(before, after, strict=True):
        largest, turned = differences(one, other)
        assert largest < TOLERANCE
        assert turned == 0


def test_whatever_the_order_and_the_company(case: tuple[Loaded, list[Any]]) -> None:
    model, rows = case
    before = asked(model, rows)
    order = np.random.default_rng(0).permutation(len(rows)).tolist()[: len(rows) // 2]
    after = asked(model, [rows[number] for number in order])
    for one, other in zip(before, after, strict=True):
        largest, turned = differences([one[number] for number in order], other)
        assert largest < TOLERANCE
        assert turned == 0


def test_what_models_are_compared_by_are_the_metrics(case: tuple[Loaded, list[Any]]) -> None:
    """Of all rows, each once, a metric as a function of rows (`wenmo evaluate A B`) is the metric."""
    model, rows = case
    measured = model.task().measure(rows, model.outputs(rows, model.task(), with_targets=True), seed=0)
    assert measured.statistics
    for name, statistic in measured.statistics.items():
        assert statistic(np.arange(len(rows))[None])[0] == pytest.approx(measured.metrics[name].value, rel=1e-9), name


def test_metrics_have_chinese_names(case: tuple[Loaded, list[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WENMO_LANG", "zh")
    model, rows = case
    measured = model.task().measure(rows, model.outputs(rows, model.task(), with_targets=True), seed=0)
    own = {name.rpartition(".")[2] for name in measured.metrics}
    assert not [name for name in own if metric_name(name) == name]


def test_the_metrics_too(case: tuple[Loaded, list[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Values, not intervals: which rows a resample draws goes by their order."""
    model, rows = case
    task = model.task()

    def values(rows: list[Any]) -> dict[str, float]:
        measured = task.measure(rows, model.outputs(rows, task, with_targets=True), seed=0)
        return {name: estimate.value for name, estimate in measured.metrics.items()}

    before = values(rows)
    monkeypatch.setattr(wenmo.loaded.held, "BATCH_TOKENS", 64)
    # Ten times as much: a correlation of scores that hardly differ makes more of their last digits.
    assert values(rows[::-1]) == pytest.approx(before, rel=10 * TOLERANCE, abs=10 * TOLERANCE)
