"""Two models on the same rows: which is better, and is it more than noise?

In: two models of one task, rows and a seed. Out: a Comparison: the metrics of both, and for each that the task gives
as a function of rows the paired difference with its interval (metrics/comparison.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wenmo.ensemble import Answering
from wenmo.errors import UsageError, say
from wenmo.evaluation import measured
from wenmo.metrics import difference
from wenmo.report import Comparison


def compare(a: Answering, b: Answering, rows: list[Mapping[str, Any]], data: str, *, task: str | None = None,
            seed: int = 0) -> Comparison:
    """a − b in every metric. UsageError for models of different tasks, or a task whose metrics cannot be compared."""
    names = [each.task(task).name for each in (a, b)]
    columns = [each.task(task).settings.columns for each in (a, b)]
    if names[0] != names[1] or columns[0] != columns[1]:
        raise UsageError(
            say(f"the models are not of one task: {names[0]} on {', '.join(columns[0])}; {names[1]} on "
                f"{', '.join(columns[1])}",
                f"两个模型的任务不同：{names[0]}（{'、'.join(columns[0])}）与 {names[1]}（{'、'.join(columns[1])}）"),
            where=f"{a.reference} | {b.reference}", mend=say("compare models of the same task, or name one with --task",
                                                             "请比较同一任务的模型，或用 --task 指定"))
    (report_a, of_a, _), (report_b, of_b, _) = (measured(each, rows, data, task=task, seed=seed) for each in (a, b))
    common = [name for name in report_a.metrics if name in of_a and name in of_b]
    if not common:
        raise UsageError(
            say(f"no metric of {names[0]} can be compared row by row", f"{names[0]} 没有可逐行比较的指标"),
            where=names[0], mend=say("evaluate the models one by one", "请分别评测各模型"))
    differences = {name: difference(of_a[name], of_b[name], len(rows), seed) for name in common}
    return Comparison(report_a, report_b, differences)
