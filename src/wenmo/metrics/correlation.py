"""How well scores go with what people said: correlations, and how well they tell two classes apart without a threshold.

In: scores, and grades or labels, [B] each. Out: Estimates by bootstrap over rows. A resample of B rows from a table of
K different values is no more than K counts: nothing is sorted a thousand times.

Where a resample leaves nothing to compare (all grades equal, one class alone), it counts as knowing nothing: a
correlation of 0, an area of ½. Of rows that are so as a whole the correlation is 0, anywhere from −1 to 1; the two
classes are asked for: DataError.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wenmo.errors import DataError, say
from wenmo.metrics.comparison import Statistic
from wenmo.metrics.estimates import Estimate, Floats, Ints, bootstrap, check_finite, check_some

_UNKNOWN = Estimate(0.0, -1.0, 1.0)


def pearson(scores: ArrayLike, grades: ArrayLike, seed: int) -> Estimate:
    """r = Σ (x − x̄)(y − ȳ) / √(Σ (x − x̄)² Σ (y − ȳ)²) (Pearson 1895)."""
    x_B, y_B = _both(scores, grades)
    known = np.ptp(x_B) and np.ptp(y_B)
    return bootstrap(row_pearson(x_B, y_B), len(x_B), seed) if known else _UNKNOWN


def spearman(scores: ArrayLike, grades: ArrayLike, seed: int) -> Estimate:
    """Pearson's r of the ranks, ties at their average rank (Spearman 1904)."""
    x_B, y_B = _both(scores, grades)
    known = np.ptp(x_B) and np.ptp(y_B)
    return bootstrap(row_spearman(x_B, y_B), len(x_B), seed) if known else _UNKNOWN


def roc_auc(scores: ArrayLike, positive: ArrayLike, seed: int) -> Estimate:
    """P(a positive's score > a negative's) + ½ P(they are equal) (Hanley & McNeil 1982)."""
    scores_B, positive_B = _labelled(scores, positive)
    return bootstrap(row_roc_auc(scores_B, positive_B), len(scores_B), seed)


def average_precision(scores: ArrayLike, positive: ArrayLike, seed: int) -> Estimate:
    """Σ_n (R_n − R_{n−1}) P_n over the different scores as thresholds, the highest first; no interpolation."""
    scores_B, positive_B = _labelled(scores, positive)
    return bootstrap(row_average_precision(scores_B, positive_B), len(scores_B), seed)


# The same as functions of the rows drawn --------------------------------------------------------------


def row_pearson(scores: ArrayLike, grades: ArrayLike) -> Statistic:
    x_B, y_B = _both(scores, grades)
    return lambda rows: _correlations(x_B[rows], y_B[rows])


def row_spearman(scores: ArrayLike, grades: ArrayLike) -> Statistic:
    x_codes, y_codes = (_codes(values) for values in _both(scores, grades))
    return lambda rows: _correlations(_ranks(x_codes[rows]), _ranks(y_codes[rows]))


def row_roc_auc(scores: ArrayLike, positive: ArrayLike) -> Statistic:
    codes_B, positive_B = _codes(np.asarray(scores, np.float64)), np.asarray(positive, bool)

    def area(rows: Ints) -> Floats:
        right_RB = positive_B[rows]
        num_right = right_RB.sum(1)
        num_wrong = right_RB.shape[1] - num_right
        above = (_ranks(codes_B[rows]) * right_RB).sum(1) - num_right * (num_right + 1) / 2
        pairs = num_right * num_wrong
        return np.where(pairs > 0, above / np.maximum(pairs, 1), 0.5)

    return area


def row_average_precision(scores: ArrayLike, positive: ArrayLike) -> Statistic:
    codes_B, positive_B = _codes(np.asarray(scores, np.float64)), np.asarray(positive, bool)
    num_codes = int(codes_B.max()) + 1

    def precision(rows: Ints) -> Floats:
        right_RK = _counted(codes_B[rows], num_codes, positive_B[rows].astype(np.float64))[:, ::-1]
        taken_RK = _counted(codes_B[rows], num_codes)[:, ::-1].cumsum(1)
        at_each = right_RK.cumsum(1) / np.maximum(taken_RK, 1)
        num_right = right_RK.sum(1)
        return np.where(num_right > 0, (right_RK * at_each).sum(1) / np.maximum(num_right, 1), 0.0)

    return precision


# A threshold ------------------------------------------------------------------------------------------


def best_threshold(scores: ArrayLike, positive: ArrayLike) -> float:
    """The threshold with the most right answers where `score ≥ threshold` says positive: in the middle of the gap
    between two scores; of several alike the lowest."""
    scores_B, positive_B = np.asarray(scores, np.float64), np.asarray(positive, bool)
    check_some(len(scores_B))
    check_finite(scores_B, "scores", "分数")
    order = np.argsort(scores_B, kind="stable")
    values, right = scores_B[order], positive_B[order]
    # With the threshold before place i, all before are called negative, all from i on positive.
    correct = np.concatenate([[0], np.cumsum(~right)]) + np.concatenate([np.cumsum(right[::-1])[::-1], [0]])
    between = np.concatenate([[True], values[1:] > values[:-1], [True]])  # equal scores are not told apart
    best = int(np.argmax(np.where(between, correct, -1)))
    if best == 0:
        return float(values[0])
    if best == len(values):
        return float(np.nextafter(values[-1], np.inf))
    return float((values[best - 1] + values[best]) / 2)


# Ranks over resamples ---------------------------------------------------------------------------------


def _codes(values_B: Floats) -> Ints:
    """Each value's place among the different values, from 0."""
    return np.unique(values_B, return_inverse=True)[1].astype(np.int64)


def _counted(codes_RB: Ints, num_codes: int, weights_RB: Floats | None = None) -> Floats:
    """How often each code comes in each line (or the sum of its weights), [R, K]."""
    lines = len(codes_RB)
    slots = codes_RB + num_codes * np.arange(lines)[:, None]
    weights = None if weights_RB is None else weights_RB.ravel()
    counts = np.bincount(slots.ravel(), weights=weights, minlength=lines * num_codes)
    return counts.reshape(lines, num_codes).astype(np.float64)


def _ranks(codes_RB: Ints) -> Floats:
    """Average ranks, from 1, of each line's values."""
    counts_RK = _counted(codes_RB, int(codes_RB.max()) + 1)
    rank_RK = counts_RK.cumsum(1) - (counts_RK - 1) / 2
    return np.asarray(np.take_along_axis(rank_RK, codes_RB, axis=1))


def _correlations(x_RB: Floats, y_RB: Floats) -> Floats:
    x_RB, y_RB = x_RB - x_RB.mean(1, keepdims=True), y_RB - y_RB.mean(1, keepdims=True)
    below = np.sqrt(np.square(x_RB).sum(1) * np.square(y_RB).sum(1))
    found = np.divide((x_RB * y_RB).sum(1), below, out=np.zeros(len(below)), where=below > 0)
    return np.asarray(np.clip(found, -1, 1))


def _both(scores: ArrayLike, grades: ArrayLike) -> tuple[Floats, Floats]:
    x_B, y_B = np.asarray(scores, np.float64), np.asarray(grades, np.float64)
    assert x_B.shape == y_B.shape
    check_some(len(x_B))
    check_finite(x_B, "scores", "分数")
    check_finite(y_B, "grades", "评分")
    return x_B, y_B


def _labelled(scores: ArrayLike, positive: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    scores_B, positive_B = np.asarray(scores, np.float64), np.asarray(positive, bool)
    assert scores_B.shape == positive_B.shape
    check_some(len(scores_B))
    check_finite(scores_B, "scores", "分数")
    if positive_B.all() or not positive_B.any():
        raise DataError(
            say("all rows have the same label, so that nothing can be told apart", "所有行的标签都相同，无从区分"),
            where="label", mend=say("evaluate on rows of both labels", "请用两种标签都有的数据评测"))
    return scores_B, positive_B
