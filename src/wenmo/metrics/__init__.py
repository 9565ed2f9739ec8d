"""Metrics: how good, and how sure of it. Pure functions over numpy arrays.

In: labels, predictions, probabilities; negative log-likelihoods and what they are counted over. Out: `Estimate`s,
a value with its 95% interval; there is no function here that hands a user a bare score.

Which interval, and why that one (B rows, C classes; the coverage of each is simulated in tests/test_metrics.py):

    accuracy, precision, recall   Wilson's score interval: closed form, right up to 0 and 1, and at any n.
    F1 and its macro mean         bootstrap of the confusion matrix. Resampling rows is the same as drawing its cells
                                  from a multinomial, so that a resample costs C² numbers instead of B.
    calibration error             reversed ("basic") bootstrap over rows: resampling adds noise to a sum of absolute
                                  gaps, so that the plain percentiles lie too high and may not even hold the value.
    exact match, F1 of answers    bootstrap over contexts and an imagined one, half right.
    perplexity, bits per byte     bootstrap over documents of a ratio of sums, widened when documents are few.
    difference of two models      bootstrap over rows of the pairs, on the same rows.
    mean of several runs          Student's t over folds or seeds: the only one here that knows how runs differ.

The others tell how the score would vary with other rows of the same kind. They do not tell how it would vary with
another training seed, and rows that belong together (sentences of one document) make them too narrow.
"""

from __future__ import annotations

from wenmo.metrics.answers import answer_scores, mean_in_groups
from wenmo.metrics.classification import (
    ClassScores,
    accuracy,
    classification_report,
    confusion_matrix,
    expected_calibration_error,
    f1_estimates,
    precision_recall_f1,
)
from wenmo.metrics.comparison import Statistic, difference
from wenmo.metrics.estimates import (
    RESAMPLES,
    Estimate,
    bootstrap,
    lower_is_better,
    mean_of_runs,
    paired_bootstrap,
    wilson,
    within_noise,
)
from wenmo.metrics.likelihood import bits_per_byte, bits_per_character, perplexity

__all__ = ["RESAMPLES", "ClassScores", "Estimate", "Statistic", "accuracy", "answer_scores",
           "bits_per_byte", "bits_per_character", "bootstrap", "classification_report", "confusion_matrix",
           "difference", "expected_calibration_error", "f1_estimates", "lower_is_better",
           "mean_in_groups", "mean_of_runs", "paired_bootstrap", "perplexity", "precision_recall_f1", "wilson",
           "within_noise"]
