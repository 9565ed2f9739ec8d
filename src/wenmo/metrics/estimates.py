"""Values with their 95% intervals, and the ways to get one; the ground of the other rooms of metrics/.

In: counts, or a statistic of rows. Out: `Estimate`s. The table of which interval serves what stands in
metrics/__init__.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

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
    so that memory stays small. The value is the statistic of all rows, each once. One row tells nothing of its spread.
    """
    check_some(n)
    value = float(statistic(np.arange(n)[None])[0])
    if n == 1:
        return Estimate(value, -math.inf, math.inf)
    low, high = np.quantile(resampled(statistic, n, keyed_rng(seed, "rows"), resamples), TAILS)
    return around(value, low, high)


def paired_bootstrap(correct_a: ArrayLike, correct_b: ArrayLike, seed: int) -> Estimate:
    """How much more accurate model a is than model b (a − b) on the same rows; right or wrong per row, [B] each.

    A row says a better, tie or b better, and these three counts are resampled, after half a row is added to each
    of the four cells of the paired table (Agresti & Min 2005): three wins in three rows are no proof.
    """
    a_B, b_B = np.asarray(correct_a, dtype=bool), np.asarray(correct_b, dtype=bool)
    assert a_B.shape == b_B.shape, "the two models were not asked the same rows"
    n = check_some(len(a_B))
    wins, losses = int((a_B & ~b_B).sum()), int((b_B & ~a_B).sum())
    counts = np.array([wins + 0.5, n - wins - losses + 1, losses + 0.5])
    drawn_R3 = keyed_rng(seed, "pairs").multinomial(n, counts / counts.sum(), size=RESAMPLES)
    low, high = np.quantile((drawn_R3[:, 0] - drawn_R3[:, 2]) / n, TAILS)
    return around((wins - losses) / n, low, high)


def mean_of_runs(values: ArrayLike) -> tuple[Estimate, float]:
    """The mean over a few runs (folds, seeds) with Student's interval x̄ ± t s/√n (Student 1908), and s.

    Of one run nothing is known about the spread: s is NaN and the interval without ends. Folds share most of their
    training rows, so that over folds it tends to be too narrow; no unbiased estimate of their variance exists
    (Bengio & Grandvalet 2004).
    """
    values_R = np.asarray(values, dtype=np.float64)
    n, mean = check_some(len(values_R)), float(values_R.mean())
    if n == 1:
        return Estimate(mean, -math.inf, math.inf), math.nan
    deviation = float(values_R.std(ddof=1))
    half = student(n - 1) * deviation / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half), deviation


LOWER_IS_BETTER = frozenset({"loss", "perplexity", "ece", "brier", "mae", "mse", "rmse", "cer", "wer"})


def lower_is_better(metric: str) -> bool:
    """By the last word of the name (`mlm_loss`, `age.mae`), or as bits per something; others are to be high."""
    return metric.replace(".", "_").rsplit("_", 1)[-1] in LOWER_IS_BETTER or "bits_per_" in metric


def within_noise(difference: Estimate) -> bool:
    """Whether a difference may as well be none: its interval holds zero."""
    return difference.low <= 0 <= difference.high


def resampled(statistic: Callable[[Ints], Floats], n: int, rng: np.random.Generator, resamples: int) -> Floats:
    """The statistic of `resamples` drawings of n rows out of n, [R]; about a million row numbers at a time."""
    lines = max(1, 2**20 // n)
    parts = [statistic(rng.integers(n, size=(min(lines, resamples - done), n))) for done in range(0, resamples, lines)]
    return np.concatenate(parts)


def around(value: float, low: float, high: float) -> Estimate:
    """An interval holds its own value: where a few odd resamples say otherwise it is widened up to it."""
    return Estimate(value, min(float(low), value), max(float(high), value))


def keyed_rng(seed: int, purpose: str) -> np.random.Generator:
    """A pure function of its keys, like device.numpy_rng, which stands beside torch."""
    return np.random.default_rng([seed, *purpose.encode()])


def check_some(n: int) -> int:
    """`n`, the number of rows. DataError if there are none."""
    if n == 0:
        raise DataError(
            say("there are no rows to measure", "没有可供评测的数据"),
            mend=say("check the path, the columns and the filters of the evaluation data",
                     "请检查评测数据的路径、列名和过滤条件"),
        )
    return n


def ratio(above: ArrayLike, below: ArrayLike) -> Floats:
    """above / below, element by element; what would be divided by 0 is 0."""
    above_, below_ = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    return np.divide(above_, below_, out=np.zeros(np.broadcast_shapes(above_.shape, below_.shape)), where=below_ > 0)


def ratio_of_sums(above: ArrayLike, below: ArrayLike, seed: int) -> Estimate:
    """Σ above / Σ below of non-negative numbers, bootstrapped over their common rows.

    Percentiles of few rows are too narrow; they are stretched to the width of Student's interval (Hesterberg 2015).
    One row tells nothing of its spread: the interval is then [0, ∞].
    """
    above_B, below_B = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    assert above_B.shape == below_B.shape == (len(above_B),)
    check_finite(above_B, "losses", "损失")
    kept = below_B > 0  # an empty document has nothing to predict
    assert not above_B[~kept].any()
    above_B, below_B = above_B[kept], below_B[kept]
    n = check_some(len(above_B))
    if n == 1:
        return Estimate(float(above_B[0] / below_B[0]), 0.0, math.inf)

    def statistic(rows_RB: Ints) -> Floats:
        return np.asarray(above_B[rows_RB].sum(axis=1) / below_B[rows_RB].sum(axis=1))

    plain = bootstrap(statistic, n, seed)
    stretch = math.sqrt(n / (n - 1)) * student(n - 1) / Z
    low, high = (plain.value + (end - plain.value) * stretch for end in (plain.low, plain.high))
    return Estimate(plain.value, max(0.0, low), high)


def student(freedom: int) -> float:
    """The 97.5% quantile of Student's t: a table, then its series in 1/freedom (Abramowitz & Stegun 26.7.5)."""
    if freedom <= 5:
        return (12.7062, 4.3027, 3.1824, 2.7764, 2.5706)[freedom - 1]
    first = (Z**3 + Z) / 4
    second = (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96
    return Z + first / freedom + second / freedom**2


def check_finite(numbers: Floats, what_en: str, what_zh: str) -> None:
    """NumericsError if a row of `numbers`, [B] or [B, …], holds one that is not finite."""
    if not np.isfinite(numbers).all():
        bad = int((~np.isfinite(numbers.reshape(len(numbers), -1)).all(axis=1)).sum())
        raise NumericsError(
            say(f"{bad} of {len(numbers)} rows have {what_en} that are not numbers",
                f"{len(numbers)} 行中有 {bad} 行的{what_zh}不是有限数值"),
            mend=say("evaluate in fp32; if it stays so, the model's weights are damaged",
                     "请改用 fp32 评测；若仍如此，则模型权重已损坏"),
        )
