"""Correlations, areas and thresholds equal scipy's and scikit-learn's, ties and all; so do their resamples."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from wenmo.errors import DataError, NumericsError
from wenmo.metrics import correlation
from wenmo.metrics.estimates import Estimate

ROWS = st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 4)), min_size=2, max_size=40)


@given(ROWS)
@settings(max_examples=60, deadline=None)
def test_correlations_equal_scipy(rows: list[tuple[int, int]]) -> None:
    x, y = np.asarray(rows, float).T
    ours = {"pearson": correlation.pearson(x, y, 0), "spearman": correlation.spearman(x, y, 0)}
    for name, found in ours.items():
        if np.ptp(x) and np.ptp(y):
            expected = getattr(scipy.stats, f"{name}r")(x, y).statistic
            assert found.value == pytest.approx(expected, abs=1e-12)
            assert -1 <= found.low <= found.value <= found.high <= 1
        else:
            assert found == Estimate(0.0, -1.0, 1.0)  # nothing is known of rows that are all alike


@given(ROWS)
@settings(max_examples=60, deadline=None)
def test_areas_equal_scikit_learn(rows: list[tuple[int, int]]) -> None:
    scores, labels = np.asarray(rows, float).T
    positive = labels > 1
    if positive.all() or not positive.any():
        with pytest.raises(DataError, match="same label"):
            correlation.roc_auc(scores, positive, 0)
        return
    assert correlation.roc_auc(scores, positive, 0).value == pytest.approx(sk.roc_auc_score(positive, scores))
    found = correlation.average_precision(scores, positive, 0)
    assert found.value == pytest.approx(sk.average_precision_score(positive, scores))
    assert 0 <= found.low <= found.value <= found.high <= 1


@given(ROWS)
@settings(max_examples=60, deadline=None)
def test_no_threshold_is_better(rows: list[tuple[int, int]]) -> None:
    scores, labels = np.asarray(rows, float).T
    positive = labels > 1
    threshold = correlation.best_threshold(scores, positive)
    right = float(np.mean((scores >= threshold) == positive))
    others = [*scores, scores.max() + 1]
    assert right == max(float(np.mean((scores >= other) == positive)) for other in others)


def test_a_resample_is_measured_as_rows_are() -> None:
    """Each line of row numbers, with its own ties, as if its rows were all there is."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 9, 30).astype(float), rng.integers(0, 5, 30).astype(float)
    drawn = rng.integers(30, size=(20, 30))
    positive = y > 2
    for line, *found in zip(drawn, correlation.row_spearman(x, y)(drawn), correlation.row_pearson(x, y)(drawn),
                            correlation.row_roc_auc(x, positive)(drawn),
                            correlation.row_average_precision(x, positive)(drawn), strict=True):
        expected = [scipy.stats.spearmanr(x[line], y[line]).statistic, scipy.stats.pearsonr(x[line], y[line]).statistic,
                    sk.roc_auc_score(positive[line], x[line]), sk.average_precision_score(positive[line], x[line])]
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_the_interval_is_as_wide_as_fisher_says() -> None:
    """z = artanh r has the standard error 1/√(n − 3)."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=2000)
    y = 0.8 * x + 0.6 * rng.normal(size=2000)
    found = correlation.pearson(x, y, 0)
    low, high = np.tanh(np.arctanh(found.value) + np.array([-1.96, 1.96]) / np.sqrt(1997))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.005)


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(NumericsError):
        correlation.spearman([0.1, float("nan")], [1, 2], 0)
