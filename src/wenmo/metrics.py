"""Metrics: how good, and how sure of it. Pure functions over numpy arrays.

In: labels, predictions, probabilities; negative log-likelihoods and what they are counted over. Out: `Estimate`s,
a value with its 95% interval; there is no function here that hands a user a bare score.

Which interval, and why that one (B rows, C classes; the coverage of each is simulated in tests/test_metrics.py):

    accuracy, precision, recall   Wilson's score interval: closed form, right up to 0 and 1, and at any n.
    F1 and its macro mean         bootstrap of the confusion matrix. Resampling rows is the same as drawing its cells
                                  from a multinomial, so that a resample costs C² numbers instead of B.
    calibration error             reversed ("basic") bootstrap over rows: resampling adds noise to a sum of absolute
                                  gaps, so that the plain percentiles lie too high and may not even hold the value.
    perplexity, bits per byte     bootstrap over documents of a ratio of sums, widened when documents are few.
    difference of two models      bootstrap over rows of the pairs, on the same rows.
    mean of several runs          Student's t over folds or seeds: the only one here that knows how runs differ.

The others tell how the score would vary with other rows of the same kind. They do not tell how it would vary with
another training seed, and rows that belong together (sentences of one document) make them too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wenmo.errors import DataError, NumericsError, say

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

Z = 1.959963984540054  # the normal quantile of a 95% interval
TAILS = (0.025, 0.975)
RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A measured `value` and the ends of its 95% interval. An end that nothing is known about is infinite."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float | None]:
        """Rounded to six decimals for JSON, which knows no infinity: such an end is null."""
        ends = {"value": self.value, "low": self.low, "high": self.high}
        return {name: round(end, 6) if math.isfinite(end) else None for name, end in ends.items()}

    def texts(self) -> tuple[str, str, str]:
        """Value, low and high with as many decimals as the interval's width warrants: two digits of the width."""
        width = self.high - self.low
        decimals = 4 if not 0 < width < math.inf else min(max(1 - math.floor(math.log10(width)), 0), 4)
        return _written(self.value, decimals), _written(self.low, decimals), _written(self.high, decimals)

    def __str__(self) -> str:
        value, low, high = self.texts()
        return f"{value} [{low}, {high}]"


def _written(number: float, decimals: int) -> str:
    if not math.isfinite(number):
        return "∞" if number > 0 else "−∞" if number < 0 else "?"
    if abs(number) >= 1e9:
        return f"{number:.3g}"
    return f"{number:,.{decimals}f}".replace("-", "−")


# Intervals --------------------------------------------------------------------------------------------


def wilson(successes: float, n: float) -> Estimate:
    """A proportion with Wilson's score interval (Wilson 1927). Of nothing it is 0, anywhere between 0 and 1."""
    if n == 0:
        return Estimate(0.0, 0.0, 1.0)
    share = successes / n
    middle = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    return Estimate(share, max(0.0, min(middle - half, share)), min(1.0, max(middle + half, share)))


def bootstrap(
    statistic: Callable[[Ints], Floats], n: int, seed: int, resamples: int = RESAMPLES
) -> Estimate:
    """Percentile bootstrap (Efron 1979) of a statistic of `n` exchangeable rows.

    `statistic` takes row numbers [R, n], one resample a line, and gives its R values; few lines come at a time,
    so that memory stays small. The value is the statistic of all rows, each once.
    """
    _some(n)
    value = float(statistic(np.arange(n)[None])[0])
    low, high = np.quantile(_resampled(statistic, n, _rng(seed, "rows"), resamples), TAILS)
    return _around(value, low, high)


def paired_bootstrap(correct_a: ArrayLike, correct_b: ArrayLike, seed: int) -> Estimate:
    """How much more accurate model a is than model b (a − b) on the same rows; right or wrong per row, [B] each.

    A row says a better, tie or b better, and these three counts are resampled, after half a row is added to each
    of the four cells of the paired table (Agresti & Min 2005): three wins in three rows are no proof.
    """
    a_B, b_B = np.asarray(correct_a, dtype=bool), np.asarray(correct_b, dtype=bool)
    assert a_B.shape == b_B.shape, "the two models were not asked the same rows"
    n = _some(len(a_B))
    wins, losses = int((a_B & ~b_B).sum()), int((b_B & ~a_B).sum())
    counts = np.array([wins + 0.5, n - wins - losses + 1, losses + 0.5])
    drawn_R3 = _rng(seed, "pairs").multinomial(n, counts / counts.sum(), size=RESAMPLES)
    low, high = np.quantile((drawn_R3[:, 0] - drawn_R3[:, 2]) / n, TAILS)
    return _around((wins - losses) / n, low, high)


def mean_of_runs(values: ArrayLike) -> tuple[Estimate, float]:
    """The mean over a few runs (folds, seeds) with Student's interval x̄ ± t s/√n (Student 1908), and s.

    Of one run nothing is known about the spread: s is NaN and the interval without ends. Folds share most of their
    training rows, so that over folds it tends to be too narrow; no unbiased estimate of their variance exists
    (Bengio & Grandvalet 2004).
    """
    values_R = np.asarray(values, dtype=np.float64)
    n, mean = _some(len(values_R)), float(values_R.mean())
    if n == 1:
        return Estimate(mean, -math.inf, math.inf), math.nan
    deviation = float(values_R.std(ddof=1))
    half = _student(n - 1) * deviation / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half), deviation


LOWER_IS_BETTER = frozenset({"loss", "perplexity", "ece", "brier", "mae", "mse", "rmse", "cer", "wer"})


def lower_is_better(metric: str) -> bool:
    """By the last word of the name (`mlm_loss`, `val_perplexity`), or as bits per something; others are to be high."""
    return metric.rsplit("_", 1)[-1] in LOWER_IS_BETTER or "bits_per_" in metric


def within_noise(difference: Estimate) -> bool:
    """Whether a difference may as well be none: its interval holds zero."""
    return difference.low <= 0 <= difference.high


def _resampled(statistic: Callable[[Ints], Floats], n: int, rng: np.random.Generator, resamples: int) -> Floats:
    """The statistic of `resamples` drawings of n rows out of n, [R]; about a million row numbers at a time."""
    lines = max(1, 2**20 // n)
    parts = [statistic(rng.integers(n, size=(min(lines, resamples - done), n))) for done in range(0, resamples, lines)]
    return np.concatenate(parts)


def _around(value: float, low: float, high: float) -> Estimate:
    """An interval holds its own value: where a few odd resamples say otherwise it is widened up to it."""
    return Estimate(value, min(float(low), value), max(float(high), value))


def _rng(seed: int, purpose: str) -> np.random.Generator:
    """A pure function of its keys, like device.numpy_rng, which stands beside torch."""
    return np.random.default_rng([seed, *purpose.encode()])


def _some(n: int) -> int:
    if n == 0:
        raise DataError(
            say("there are no rows to measure", "没有可供评测的数据"),
            mend=say("check the path, the columns and the filters of the evaluation data",
                     "请检查评测数据的路径、列名和过滤条件"),
        )
    return n


# Classification ---------------------------------------------------------------------------------------


def confusion_matrix(labels: ArrayLike, predictions: ArrayLike, num_classes: int) -> Ints:
    """Counts [C, C]: rows are the true classes, columns the predicted ones."""
    labels_B, predictions_B = np.asarray(labels, dtype=np.int64), np.asarray(predictions, dtype=np.int64)
    assert labels_B.shape == predictions_B.shape
    cells_B = labels_B * num_classes + predictions_B
    return np.bincount(cells_B, minlength=num_classes**2).reshape(num_classes, num_classes)


def accuracy(confusion_CC: ArrayLike) -> Estimate:
    """The share of rows on the diagonal."""
    counts = np.asarray(confusion_CC)
    return wilson(float(np.trace(counts)), float(_some(int(counts.sum()))))


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
        share_C = _ratio(self.support, self.support.sum())
        return float(self.precision @ share_C), float(self.recall @ share_C), float(self.f1 @ share_C)


def precision_recall_f1(confusion_CC: ArrayLike) -> ClassScores:
    """Scores of each class, as scikit-learn has them with `zero_division=0` and all classes listed."""
    counts = np.asarray(confusion_CC, dtype=np.int64)
    right_C, true_C, predicted_C = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    return ClassScores(
        _ratio(right_C, predicted_C), _ratio(right_C, true_C), _ratio(2 * right_C, true_C + predicted_C), true_C
    )


def _ratio(above: ArrayLike, below: ArrayLike) -> Floats:
    above_, below_ = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    return np.divide(above_, below_, out=np.zeros(np.broadcast_shapes(above_.shape, below_.shape)), where=below_ > 0)


def f1_estimates(confusion_CC: ArrayLike, seed: int, resamples: int = RESAMPLES) -> tuple[Estimate, list[Estimate]]:
    """Macro F1, and F1 class by class.

    A resample draws n rows from the n rows seen and an imagined one of random label and random prediction. Without
    it a perfect score on twenty rows would be certain, as no resample could hold a mistake; the same single row,
    spread evenly over the table, is Perks's prior (1947).
    """
    counts = np.asarray(confusion_CC, dtype=np.int64)
    num_classes, n = len(counts), _some(int(counts.sum()))
    rng = _rng(seed, "confusion")
    true, predicted = np.nonzero(counts)  # of many classes' cells most are empty
    cells = np.append(counts[true, predicted], 1) / (n + 1)
    f1_RC = np.empty((resamples, num_classes))
    for r in range(resamples):
        *seen, imagined = rng.multinomial(n, cells)
        drawn = np.zeros_like(counts)
        drawn[true, predicted] = seen
        np.add.at(drawn, tuple(rng.integers(num_classes, size=(2, imagined))), 1)
        f1_RC[r] = _ratio(2 * np.diag(drawn), drawn.sum(axis=1) + drawn.sum(axis=0))
    value_C = precision_recall_f1(counts).f1
    low_C, high_C = np.quantile(f1_RC, TAILS, axis=0)
    macro = _around(float(value_C.mean()), *np.quantile(f1_RC.mean(axis=1), TAILS))
    return macro, [_around(float(v), lo, hi) for v, lo, hi in zip(value_C, low_C, high_C, strict=True)]


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
    n = _some(len(confidence_B))
    bin_B = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence_B, side="left")
    gap_B = confidence_B - correct_B

    def error(bin_RB: Ints, gap_RB: Floats) -> Floats:
        lines = len(bin_RB)
        slots = bin_RB + bins * np.arange(lines)[:, None]
        sums = np.bincount(slots.ravel(), weights=gap_RB.ravel(), minlength=lines * bins)
        return np.asarray(np.abs(sums.reshape(lines, bins)).sum(axis=1) / n)

    rng = _rng(seed, "calibration")

    def if_calibrated(rows_RB: Ints) -> Floats:
        confidence_RB = confidence_B[rows_RB]
        return error(bin_B[rows_RB], confidence_RB - (rng.random(rows_RB.shape) < confidence_RB))

    value = float(error(bin_B[None], gap_B[None])[0])
    below, above = np.quantile(_resampled(lambda rows: error(bin_B[rows], gap_B[rows]), n, rng, resamples), TAILS)
    chance = float(np.quantile(_resampled(if_calibrated, n, rng, resamples), TAILS[1]))
    low = 0.0 if value <= chance else max(0.0, 2 * value - float(above))
    return _around(value, low, min(1.0, 2 * value - float(below)))


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
    _some(len(labels_B))
    assert probabilities.shape == (len(labels_B), len(names))
    _finite(probabilities, "probabilities", "概率")
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


# Language models --------------------------------------------------------------------------------------


def perplexity(sum_nll_nats: ArrayLike, num_tokens: ArrayLike, seed: int) -> Estimate:
    """exp(nats per token). One number a document (or window) each, [B]; a token is what was predicted."""
    ends = _ratio_of_sums(sum_nll_nats, num_tokens, seed)
    with np.errstate(over="ignore"):
        return Estimate(*(float(np.exp(end)) for end in (ends.value, ends.low, ends.high)))


def bits_per_byte(sum_nll_nats: ArrayLike, num_bytes: ArrayLike, seed: int) -> Estimate:
    """Bits per UTF-8 byte: comparable across tokenizers, for a Han character is three bytes to each of them."""
    ends = _ratio_of_sums(sum_nll_nats, num_bytes, seed)
    return Estimate(*(end / math.log(2) for end in (ends.value, ends.low, ends.high)))


def bits_per_character(sum_nll_nats: ArrayLike, num_characters: ArrayLike, seed: int) -> Estimate:
    """Bits per Unicode character; comparable across tokenizers on the same text."""
    return bits_per_byte(sum_nll_nats, num_characters, seed)


def _ratio_of_sums(above: ArrayLike, below: ArrayLike, seed: int) -> Estimate:
    """Σ above / Σ below of non-negative numbers, bootstrapped over their common rows.

    Percentiles of few rows are too narrow; they are stretched to the width of Student's interval (Hesterberg 2015).
    One row tells nothing of its spread: the interval is then [0, ∞].
    """
    above_B, below_B = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    assert above_B.shape == below_B.shape == (len(above_B),)
    _finite(above_B, "losses", "损失")
    kept = below_B > 0  # an empty document has nothing to predict
    assert not above_B[~kept].any()
    above_B, below_B = above_B[kept], below_B[kept]
    n = _some(len(above_B))
    if n == 1:
        return Estimate(float(above_B[0] / below_B[0]), 0.0, math.inf)

    def ratio(rows_RB: Ints) -> Floats:
        return np.asarray(above_B[rows_RB].sum(axis=1) / below_B[rows_RB].sum(axis=1))

    plain = bootstrap(ratio, n, seed)
    stretch = math.sqrt(n / (n - 1)) * _student(n - 1) / Z
    low, high = (plain.value + (end - plain.value) * stretch for end in (plain.low, plain.high))
    return Estimate(plain.value, max(0.0, low), high)


def _student(freedom: int) -> float:
    """The 97.5% quantile of Student's t: a table, then its series in 1/freedom (Abramowitz & Stegun 26.7.5)."""
    if freedom <= 5:
        return (12.7062, 4.3027, 3.1824, 2.7764, 2.5706)[freedom - 1]
    first = (Z**3 + Z) / 4
    second = (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96
    return Z + first / freedom + second / freedom**2


def _finite(numbers: Floats, what_en: str, what_zh: str) -> None:
    if not np.isfinite(numbers).all():
        bad = int((~np.isfinite(numbers.reshape(len(numbers), -1)).all(axis=1)).sum())
        raise NumericsError(
            say(f"{bad} of {len(numbers)} rows have {what_en} that are not numbers",
                f"{len(numbers)} 行中有 {bad} 行的{what_zh}不是有限数值"),
            mend=say("evaluate in fp32; if it stays so, the model's weights are damaged",
                     "请改用 fp32 评测；若仍如此，则模型权重已损坏"),
        )
