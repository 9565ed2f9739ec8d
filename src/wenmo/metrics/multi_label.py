"""How well several yes-or-no labels of a row are told.

In: which labels hold, how probable each was said to be, from which probability it is said. Out: `Estimate`s: micro and
macro F1, the share of rows with exactly their labels, and label ranking average precision, which no threshold touches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from wenmo.metrics.comparison import Statistic, row_mean, row_ratio
from wenmo.metrics.estimates import (
    RESAMPLES,
    TAILS,
    Estimate,
    Floats,
    Ints,
    around,
    bootstrap,
    check_finite,
    check_some,
    keyed_rng,
    ratio,
    resampled,
    wilson,
)


def best_f1_threshold(probabilities: ArrayLike, true: ArrayLike) -> float:
    """The threshold with the highest F1 where `probability ≥ threshold` says yes: in the middle of the gap between two
    probabilities; of several alike the highest. 0.5 where no row is true."""
    probabilities_B, true_B = np.asarray(probabilities, np.float64), np.asarray(true, bool)
    if not true_B.any():
        return 0.5
    order = np.argsort(-probabilities_B, kind="stable")
    falling_B = probabilities_B[order]
    said_B = np.arange(1, len(order) + 1)  # if the threshold lies below this row
    f1_B = 2 * true_B[order].cumsum() / (said_B + true_B.sum())
    below_B = np.append(falling_B[1:], 0.0)
    f1_B[falling_B == below_B] = -1.0  # no threshold lies between equal probabilities
    best = int(f1_B.argmax())
    return float((falling_B[best] + below_B[best]) / 2)


def ranking_precision(true_BC: np.ndarray, probabilities_BC: np.ndarray) -> Floats:
    """Of each row: over its true labels, the mean share of true ones among those ranked as high or higher (Tsoumakas
    et al. 2010, §4.2). 1 where all labels hold, or none, as nothing can be ranked wrongly. [B]."""
    result_B = np.ones(len(true_BC))
    for row, (true_C, probabilities_C) in enumerate(zip(true_BC, probabilities_BC, strict=True)):
        if true_C.any() and not true_C.all():
            as_high_CC = probabilities_C[None, :] >= probabilities_C[true_C][:, None]
            result_B[row] = (as_high_CC[:, true_C].sum(1) / as_high_CC.sum(1)).mean()
    return result_B


def multi_label_report(true_BC: np.ndarray, probabilities_BC: np.ndarray, thresholds_C: np.ndarray,
                       names: Sequence[str], seed: int) -> tuple[dict[str, Estimate], dict[str, Any]]:
    """(`micro_f1`, `macro_f1`, `subset_accuracy`, `lrap`; details with `thresholds` and `per_class`).

    F1 is bootstrapped over the rows and an imagined one, a quarter of it in each cell of each label's table: without
    it a perfect score on twenty rows would be certain. Raises DataError without rows, NumericsError if a probability
    is not a number.
    """
    n, num_labels = check_some(len(true_BC)), len(names)
    assert true_BC.shape == probabilities_BC.shape == (n, num_labels)
    check_finite(probabilities_BC, "probabilities", "概率")
    said_BC = probabilities_BC >= thresholds_C
    both_BC, either_BC = (true_BC & said_BC).astype(np.float64), true_BC.astype(np.float64) + said_BC

    def f1_of(weights_RB: Floats, both: np.ndarray, either: np.ndarray) -> Floats:
        """[R, C + 2]: of each label, of all together (micro), their mean (macro)."""
        both_RC, either_RC = weights_RB @ both, weights_RB @ either
        labels_RC = ratio(2 * both_RC, either_RC)
        micro_R = ratio(2 * both_RC.sum(1), either_RC.sum(1))
        return np.column_stack([labels_RC, micro_R, labels_RC.mean(1)])

    value = f1_of(np.ones((1, n)), both_BC, either_BC)[0]
    with_one = [np.vstack([cells, np.full((1, num_labels), cell)]) for cells, cell in
                ((both_BC, 0.25), (either_BC, 1.0))]
    drawn = resampled(_by_weights(lambda weights: f1_of(weights, *with_one)), n + 1, keyed_rng(seed, "labels"),
                      RESAMPLES)
    low, high = np.quantile(drawn, TAILS, axis=0)
    f1 = [around(float(v), lo, hi) for v, lo, hi in zip(value, low, high, strict=True)]
    ranked_B = ranking_precision(true_BC, probabilities_BC)
    metrics = {
        "micro_f1": f1[num_labels],
        "macro_f1": f1[num_labels + 1],
        "subset_accuracy": wilson(float((true_BC == said_BC).all(1).sum()), float(n)),
        "lrap": bootstrap(lambda rows: ranked_B[rows].mean(1), n, seed),
    }
    per_class = [
        {
            "label": name,
            "support": int(true_BC[:, c].sum()),
            "precision": wilson(float(both_BC[:, c].sum()), float(said_BC[:, c].sum())),
            "recall": wilson(float(both_BC[:, c].sum()), float(true_BC[:, c].sum())),
            "f1": f1[c],
        }
        for c, name in enumerate(names)
    ]
    thresholds = {name: float(threshold) for name, threshold in zip(names, thresholds_C, strict=True)}
    return metrics, {"thresholds": thresholds, "per_class": per_class}


def multi_label_statistics(true_BC: np.ndarray, probabilities_BC: np.ndarray,
                           thresholds_C: np.ndarray) -> dict[str, Statistic]:
    """The same metrics as functions of the rows drawn (metrics/comparison.py)."""
    said_BC = probabilities_BC >= thresholds_C
    both_BC, either_BC = (true_BC & said_BC).astype(np.float64), true_BC.astype(np.float64) + said_BC
    return {"micro_f1": row_ratio(2 * both_BC.sum(1), either_BC.sum(1)),
            "macro_f1": _by_weights(lambda weights: ratio(2 * weights @ both_BC, weights @ either_BC).mean(1)),
            "subset_accuracy": row_mean((true_BC == said_BC).all(1)),
            "lrap": row_mean(ranking_precision(true_BC, probabilities_BC))}


def _by_weights(statistic: Callable[[Floats], Floats]) -> Callable[[Ints], Floats]:
    """A statistic of how often each row was drawn, [R, n], as one of the rows drawn."""
    def of_rows(rows_RB: Ints) -> Floats:
        lines, n = rows_RB.shape
        slots = rows_RB + n * np.arange(lines)[:, None]
        return statistic(np.bincount(slots.ravel(), minlength=lines * n).reshape(lines, n).astype(np.float64))

    return of_rows
