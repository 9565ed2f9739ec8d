"""How well entities (or words) are found: strict precision, recall and F1 over spans. (B rows.)

In: for each row (a sentence) the true spans and those found, each (start, end, type). A span counts as found only where
beginning, end and type are right (Tjong Kim Sang & De Meulder 2003, §4). Out: estimates with intervals from resampled
sentences, since the entities of one sentence stand or fall together.

Each resample draws from the sentences seen and an imagined one, in which one entity is half found: without it a perfect
score on twenty sentences would be certain, as no resample could hold a mistake (so for F1 in classification.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from wenmo.metrics.comparison import row_ratio
from wenmo.metrics.estimates import RESAMPLES, TAILS, Estimate, Floats, Ints, around, check_some, keyed_rng, ratio

Span = tuple[int, int, str]
_FOUND, _PREDICTED, _TRUE = range(3)


def span_counts(true: Sequence[Iterable[Span]], found: Sequence[Iterable[Span]],
                types: Sequence[str]) -> Ints:
    """[B, K, 3]: for each row and type how many are found, were predicted, and are true."""
    assert len(true) == len(found)
    number = {kind: k for k, kind in enumerate(types)}
    counts = np.zeros((len(true), len(types), 3), np.int64)
    for row, (mine, theirs) in enumerate(zip(found, true, strict=True)):
        predicted, wanted = set(mine), set(theirs)
        for column, spans in ((_FOUND, predicted & wanted), (_PREDICTED, predicted), (_TRUE, wanted)):
            for span in spans:
                counts[row, number[span[2]], column] += 1
    return counts


def span_report(true: Sequence[Iterable[Span]], found: Sequence[Iterable[Span]], seed: int) -> dict[str, Any]:
    """{"metrics": precision, recall, f1 (over all spans alike) and macro_f1 (the mean over types, where there are
    several), "details": {"per_class": …}, "statistics": {"f1": …}}.

    What is 0/0 is 0. Raises DataError without rows.
    """
    true, found = [list(row) for row in true], [list(row) for row in found]
    check_some(len(true))
    types = sorted({span[2] for row in (*true, *found) for span in row}) or [""]
    counts_BK3 = span_counts(true, found, types)
    drawn_RK3, imagined_R13 = _resampled(counts_BK3, seed, imagined=(0.5, 1.0, 1.0))
    metrics = _estimates(counts_BK3.sum((0, 1)), (drawn_RK3.sum(1, keepdims=True) + imagined_R13)[:, 0])
    drawn_RK3 = drawn_RK3 + imagined_R13  # of each type by itself: of a rare one five found are no proof
    per_type: list[dict[str, Any]] = []
    for k, kind in enumerate(types):
        its = counts_BK3[:, k].sum(0)
        per_type.append({"label": kind, "support": int(its[_TRUE]), **_estimates(its, drawn_RK3[:, k])})
    if len(types) > 1:
        f1_RK = _f1(drawn_RK3)
        value = float(np.mean([each["f1"].value for each in per_type]))
        metrics["macro_f1"] = around(value, *np.quantile(f1_RK.mean(1), TAILS))
    whole_B3 = counts_BK3.sum(1)
    statistics = {"f1": row_ratio(2 * whole_B3[:, _FOUND], whole_B3[:, _PREDICTED] + whole_B3[:, _TRUE])}
    return {"metrics": metrics, "details": {"per_class": per_type} if len(types) > 1 else {}, "statistics": statistics}


def share_of_rows(right: ArrayLike, total: ArrayLike, seed: int) -> Estimate:
    """Σ right / Σ total, [B] each, such as the share of words with the right tag: sentences resampled as above, the
    imagined one half right."""
    right_B, total_B = np.asarray(right, np.float64), np.asarray(total, np.float64)
    check_some(len(right_B))
    table_B3 = np.stack([right_B, total_B, total_B], 1)[:, None]
    drawn_R13, imagined_R13 = _resampled(table_B3, seed, (total_B.mean() / 2, total_B.mean(), total_B.mean()))
    drawn_R13 = drawn_R13 + imagined_R13
    value = float(ratio(right_B.sum(), total_B.sum()))
    return around(value, *np.quantile(ratio(drawn_R13[:, 0, 0], drawn_R13[:, 0, 1]), TAILS))


def _resampled(counts_BK3: ArrayLike, seed: int, imagined: tuple[float, float, float]) -> tuple[Floats, Floats]:
    """R drawings of n out of the n rows and the imagined one: the sums over the rows, [R, K, 3], and what the imagined
    one adds to them, [R, 1, 3]."""
    counts = np.asarray(counts_BK3, np.float64)
    n, num_types, _ = counts.shape
    times_RB = keyed_rng(seed, "spans").multinomial(n, np.full(n + 1, 1 / (n + 1)), size=RESAMPLES)
    seen_RK3 = (times_RB[:, :n] @ counts.reshape(n, -1)).reshape(RESAMPLES, num_types, 3)
    return seen_RK3, times_RB[:, n, None, None] * np.asarray(imagined)


def _f1(counts_X3: Floats) -> Floats:
    return ratio(2 * counts_X3[..., _FOUND], counts_X3[..., _PREDICTED] + counts_X3[..., _TRUE])


def _estimates(counts_3: Ints, drawn_R3: Floats) -> dict[str, Estimate]:
    """precision, recall and f1 from the counts, with intervals from the resampled ones."""
    found, predicted, true = (float(count) for count in counts_3)
    pairs = {
        "precision": (ratio(found, predicted), ratio(drawn_R3[:, _FOUND], drawn_R3[:, _PREDICTED])),
        "recall": (ratio(found, true), ratio(drawn_R3[:, _FOUND], drawn_R3[:, _TRUE])),
        "f1": (ratio(2 * found, predicted + true), _f1(drawn_R3)),
    }
    return {name: around(float(value), *np.quantile(drawn, TAILS)) for name, (value, drawn) in pairs.items()}
