"""How far predicted numbers lie from the true ones.

In: targets and predictions, one number a row. Out: `Estimate`s: mean absolute error, root mean squared error, and
how well the two go together (metrics/correlation.py).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from wenmo.metrics.comparison import Statistic, row_mean
from wenmo.metrics.correlation import pearson, row_pearson, row_spearman, spearman
from wenmo.metrics.estimates import Estimate, bootstrap, check_finite, check_some


def regression_report(targets: ArrayLike, predictions: ArrayLike, seed: int) -> dict[str, Estimate]:
    """`pearson`, `spearman`, `mae` and `rmse`, each with its bootstrap interval over rows.

    Raises DataError without rows, NumericsError if a prediction is not a number.
    """
    targets_B, predictions_B = np.asarray(targets, np.float64), np.asarray(predictions, np.float64)
    n = check_some(len(targets_B))
    assert predictions_B.shape == (n,)
    check_finite(predictions_B, "predictions", "预测值")
    errors_B = predictions_B - targets_B
    return {
        "pearson": pearson(targets_B, predictions_B, seed),
        "spearman": spearman(targets_B, predictions_B, seed),
        "mae": bootstrap(lambda drawn: np.abs(errors_B)[drawn].mean(1), n, seed),
        "rmse": bootstrap(lambda drawn: np.sqrt((errors_B**2)[drawn].mean(1)), n, seed),
    }


def regression_statistics(targets: ArrayLike, predictions: ArrayLike) -> dict[str, Statistic]:
    """The same metrics as functions of the rows drawn (metrics/comparison.py)."""
    targets_B, predictions_B = np.asarray(targets, np.float64), np.asarray(predictions, np.float64)
    errors_B = predictions_B - targets_B
    return {"pearson": row_pearson(targets_B, predictions_B), "spearman": row_spearman(targets_B, predictions_B),
            "mae": row_mean(np.abs(errors_B)), "rmse": lambda rows: np.sqrt((errors_B**2)[rows].mean(1))}
