"""How good a classifier with one label a row is. (B rows, C classes.)

In: labels and predictions or probabilities. Out: the confusion matrix and what is read from it, with intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from wenmo.metrics.estimates import (
    RESAMPLES,
    TAILS,
    Estimate,
    Floats,
    Ints,
    around,
    check_finite,
    check_some,
    keyed_rng,
    ratio,
    resampled,
    wilson,
)


def confusion_matrix(labels: ArrayLike, predictions: ArrayLike, num_classes: int) -> Ints:
    """Counts [C, C]: rows are the true classes, columns the predicted ones."""
    labels_B, predictions_B = np.asarray(labels, dtype=np.int64), np.asarray(predictions, dtype=np.int64)
    assert labels_B.shape == predictions_B.shape
    cells_B = labels_B * num_classes + predictions_B
    return np.bincount(cells_B, minlength=num_classes**2).reshape(num_classes, num_classes)


def accuracy(confusion_CC: ArrayLike) -> Estimate:
    """The share of rows on the diagonal."""
    counts = np.asarray(confusion_CC)
    return wilson(float(np.trace(counts)), float(check_some(int(counts.sum()))))


@dataclass(frozen=True, slots=True)
class ClassScores:
    """Precision, recall, F1 and the number of true rows of each class, [C]; what would be 0/0 is 0."""

    precision: Floats
    recall: Floats
    f1: Floats
    support: Ints

    def macro(self) -> tuple[float, float, float]:
        """Precision, recall and F1 averaged over all classes alike, those without a single row included."""
        return float(self.precision.mean()), float(self.recall.mean()), float(self.f1.mean())

    def weighted(self) -> tuple[float, float, float]:
        """The same weighed by support. (Micro needs no name: with one label a row it is accuracy, thrice.)"""
        share_C = ratio(self.support, self.support.sum())
        return float(self.precision @ share_C), float(self.recall @ share_C), float(self.f1 @ share_C)


def precision_recall_f1(confusion_CC: ArrayLike) -> ClassScores:
    """Scores of each class, as scikit-learn has them with `zero_division=0` and all classes listed."""
    counts = np.asarray(confusion_CC, dtype=np.int64)
    right_C, true_C, predicted_C = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    return ClassScores(
        ratio(right_C, predicted_C), ratio(right_C, true_C), ratio(2 * right_C, true_C + predicted_C), true_C
    )


def f1_estimates(confusion_CC: ArrayLike, seed: int, resamples: int = RESAMPLES) -> tuple[Estimate, list[Estimate]]:
    """Macro F1, and F1 class by class.

    A resample draws n rows from the n rows seen and an imagined one of random label and random prediction. Without
    it a perfect score on twenty rows would be certain, as no resample could hold a mistake; the same single row,
    spread evenly over the table, is Perks's prior (1947).
    """
    counts = np.asarray(confusion_CC, dtype=np.int64)
    num_classes, n = len(counts), check_some(int(counts.sum()))
    rng = keyed_rng(seed, "confusion")
    true, predicted = np.nonzero(counts)  # of many classes' cells most are empty
    cells = np.append(counts[true, predicted], 1) / (n + 1)
    f1_RC = np.empty((resamples, num_classes))
    for r in range(resamples):
        *seen, imagined = rng.multinomial(n, cells)
        drawn = np.zeros_like(counts)
        drawn[true, predicted] = seen
        np.add.at(drawn, tuple(rng.integers(num_classes, size=(2, imagined))), 1)
        f1_RC[r] = ratio(2 * np.diag(drawn), drawn.sum(axis=1) + drawn.sum(axis=0))
    value_C = precision_recall_f1(counts).f1
    low_C, high_C = np.quantile(f1_RC, TAILS, axis=0)
    macro = around(float(value_C.mean()), *np.quantile(f1_RC.mean(axis=1), TAILS))
    return macro, [around(float(v), lo, hi) for v, lo, hi in zip(value_C, low_C, high_C, strict=True)]


def expected_calibration_error(
    probabilities_BC: ArrayLike, labels: ArrayLike, seed: int, bins: int = 15, resamples: int = RESAMPLES
) -> Estimate:
    """How far confidence is from accuracy, on average over rows: Σ_bins |Σ_rows confidence − correct| / B.

    Guo et al. 2017 (section 2): the confidence of the top label, in bins of equal width that are open to the left.
    A finite sample never reaches zero; so the lower end is zero if a model that is right exactly as often as its
    confidence says would, on these rows, score as badly (consistency resampling, Bröcker & Smith 2007).
    """
    probabilities = np.asarray(probabilities_BC, dtype=np.float64)
    confidence_B = probabilities.max(axis=1)
    correct_B = probabilities.argmax(axis=1) == np.asarray(labels)
    n = check_some(len(confidence_B))
    bin_B = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence_B, side="left")
    gap_B = confidence_B - correct_B

    def error(bin_RB: Ints, gap_RB: Floats) -> Floats:
        lines = len(bin_RB)
        slots = bin_RB + bins * np.arange(lines)[:, None]
        sums = np.bincount(slots.ravel(), weights=gap_RB.ravel(), minlength=lines * bins)
        return np.asarray(np.abs(sums.reshape(lines, bins)).sum(axis=1) / n)

    rng = keyed_rng(seed, "calibration")

    def if_calibrated(rows_RB: Ints) -> Floats:
        confidence_RB = confidence_B[rows_RB]
        return error(bin_B[rows_RB], confidence_RB - (rng.random(rows_RB.shape) < confidence_RB))

    value = float(error(bin_B[None], gap_B[None])[0])
    below, above = np.quantile(resampled(lambda rows: error(bin_B[rows], gap_B[rows]), n, rng, resamples), TAILS)
    chance = float(np.quantile(resampled(if_calibrated, n, rng, resamples), TAILS[1]))
    low = 0.0 if value <= chance else max(0.0, 2 * value - float(above))
    return around(value, low, min(1.0, 2 * value - float(below)))


def classification_report(
    labels: ArrayLike, probabilities_BC: ArrayLike, names: Sequence[str], seed: int
) -> dict[str, dict[str, Any]]:
    """Everything about a classifier with one label a row; class i is `names[i]`, the prediction the most probable.

    {"metrics": {"accuracy", "macro_f1", "ece": Estimate},
     "details": {"labels": names, "confusion": [[int]], "per_class": [{"label", "support", "precision", …}]}}

    Raises DataError without rows, NumericsError if a probability is not a number.
    """
    probabilities = np.asarray(probabilities_BC, dtype=np.float64)
    labels_B = np.asarray(labels, dtype=np.int64)
    check_some(len(labels_B))
    assert probabilities.shape == (len(labels_B), len(names))
    check_finite(probabilities, "probabilities", "概率")
    confusion = confusion_matrix(labels_B, probabilities.argmax(axis=1), len(names))
    macro_f1, f1 = f1_estimates(confusion, seed)
    per_class = [
        {
            "label": name,
            "support": int(confusion[c].sum()),
            "precision": wilson(float(confusion[c, c]), float(confusion[:, c].sum())),
            "recall": wilson(float(confusion[c, c]), float(confusion[c].sum())),
            "f1": f1[c],
        }
        for c, name in enumerate(names)
    ]
    return {
        "metrics": {
            "accuracy": accuracy(confusion),
            "macro_f1": macro_f1,
            "ece": expected_calibration_error(probabilities, labels_B, seed),
        },
        "details": {"labels": list(names), "confusion": confusion.tolist(), "per_class": per_class},
    }
