"""Two models on the same rows: a metric as a function of the rows that are drawn, and the interval of a difference.

In: what a model got in each row. Out: `Statistic`s, which say what the metric is on any drawing of the rows, and the
paired difference of two of them. A task gives its metrics in this form beside their values (`Measured.statistics`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from wenmo.metrics.estimates import Estimate, Floats, Ints, Z, around, bootstrap, paired_bootstrap, ratio, student

Statistic = Callable[[Ints], Floats]
"""Row numbers [R, n], one drawing a line → the metric on each, [R]; what `bootstrap` takes."""


@dataclass(frozen=True, eq=False, slots=True)
class RowMean:
    """The mean of one number a row: accuracy, exact match, absolute error. `groups`: of rows that fall together, such
    as questions about one text; they are then drawn together."""

    values: Floats
    groups: tuple[Hashable, ...] | None = None

    def __call__(self, rows_RB: Ints) -> Floats:
        return np.asarray(self.values[rows_RB].mean(axis=1))

    @property
    def right_or_wrong(self) -> bool:
        return bool(np.isin(self.values, (0.0, 1.0)).all())


def row_mean(values: ArrayLike, groups: Sequence[Hashable] | None = None) -> RowMean:
    return RowMean(np.asarray(values, np.float64), None if groups is None else tuple(groups))


def row_ratio(above: ArrayLike, below: ArrayLike) -> Statistic:
    """Σ above / Σ below over the rows drawn, 0 where nothing is below: micro F1 (2·tp over 2·tp + fp + fn), bits per
    byte."""
    above_B, below_B = np.asarray(above, np.float64), np.asarray(below, np.float64)

    def statistic(rows_RB: Ints) -> Floats:
        return ratio(above_B[rows_RB].sum(axis=1), below_B[rows_RB].sum(axis=1))

    return statistic


def row_macro_f1(labels: ArrayLike, predictions: ArrayLike, num_classes: int) -> Statistic:
    """The mean of all classes' F1, which is 0 for a class that neither stands nor is predicted in the rows drawn."""
    true_B, predicted_B = np.asarray(labels, np.int64), np.asarray(predictions, np.int64)

    right_B = np.where(true_B == predicted_B, true_B, num_classes)  # a class beyond the last for what is wrong

    def counts(of_B: Ints, rows_RB: Ints) -> Ints:
        slots = of_B[rows_RB] + (num_classes + 1) * np.arange(len(rows_RB))[:, None]
        found = np.bincount(slots.ravel(), minlength=(num_classes + 1) * len(rows_RB))
        return found.reshape(-1, num_classes + 1)[:, :num_classes]

    def statistic(rows_RB: Ints) -> Floats:
        right_RC = counts(right_B, rows_RB)
        either_RC = counts(true_B, rows_RB) + counts(predicted_B, rows_RB)
        return np.asarray(ratio(2 * right_RC, either_RC).mean(axis=1))

    return statistic


def difference(a: Statistic, b: Statistic, n: int, seed: int) -> Estimate:
    """a − b on the same n rows, with the interval of the paired bootstrap (Koehn 2004): both are asked every drawing.

    Rows that fall together (`RowMean.groups`) are drawn together. Where rows are simply right or wrong it is
    `paired_bootstrap`, which is right for few rows too; elsewhere the percentiles are stretched to the width of
    Student's interval (Hesterberg 2015). One row tells nothing, and no more do several of one group.
    """
    if isinstance(a, RowMean) and isinstance(b, RowMean) and a.groups and len(set(a.groups)) < n:
        place: dict[Hashable, int] = {}
        group_B = np.array([place.setdefault(group, len(place)) for group in a.groups])
        of_a, of_b = (row_ratio(np.bincount(group_B, each.values), np.bincount(group_B)) for each in (a, b))
        return difference(of_a, of_b, len(place), seed)
    if isinstance(a, RowMean) and isinstance(b, RowMean) and a.right_or_wrong and b.right_or_wrong:
        return paired_bootstrap(a.values, b.values, seed)
    if n == 1:
        once = np.zeros((1, 1), np.int64)
        return Estimate(float(a(once)[0] - b(once)[0]), -math.inf, math.inf)
    plain = bootstrap(lambda rows: a(rows) - b(rows), n, seed)
    stretch = math.sqrt(n / (n - 1)) * student(n - 1) / Z
    return around(plain.value, *(plain.value + (end - plain.value) * stretch for end in (plain.low, plain.high)))
