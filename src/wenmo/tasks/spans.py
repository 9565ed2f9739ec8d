"""Spans of a text, ranked: from scores of the places where an answer may begin and end to the best answers.

In: for each window of a context, log P(begins here) and log P(ends here) at its tokens. Out: a few candidates a window,
the best of all windows, and when it is better to give none.

A span's score is log P(begin) + log P(end) in its window; both softmaxes hold position 0, "not in this window", so that
the scores of windows can be compared though each is a softmax of its own. "No answer" scores as in the window that is
least sure of it (Devlin et al. 2019, §4.3, and its code).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

KEPT = 20  # candidates of a window


@dataclass(frozen=True, slots=True)
class Candidate:
    """Characters `begin` to before `end` of the context."""

    score: float
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Window:
    """What a model makes of one window: its best spans, and the score of "not here"."""

    nothing: float
    spans: tuple[Candidate, ...]


def candidates_of(log_probabilities_T2: NDArray[np.float32], begins_T: NDArray[np.int64], ends_T: NDArray[np.int64],
                  max_answer_tokens: int) -> Window:
    """The best spans of at most so many tokens; `begins`, `ends` are the tokens' characters, -1 for no place."""
    start_T, end_T = log_probabilities_T2.astype(np.float64).T
    allowed_T = begins_T >= 0
    allowed_T[0] = False
    starts = np.flatnonzero(allowed_T)
    lengths = np.arange(max_answer_tokens)
    stops_KA = starts[:, None] + lengths
    inside_KA = stops_KA < len(begins_T)
    stops_KA = np.where(inside_KA, stops_KA, 0)
    scores_KA = np.where(inside_KA & allowed_T[stops_KA], start_T[starts][:, None] + end_T[stops_KA], -np.inf)
    order = np.argsort(-scores_KA, axis=None, kind="stable")[:KEPT]
    rows, columns = np.unravel_index(order, scores_KA.shape)
    found = [Candidate(float(scores_KA[place]), int(begins_T[starts[place[0]]]), int(ends_T[stops_KA[place]]))
             for place in zip(rows, columns, strict=True) if scores_KA[place] > -np.inf]
    return Window(float(start_T[0] + end_T[0]), tuple(found))


def best_candidates(windows: Sequence[Window]) -> list[Candidate]:
    """Of all windows, the best first; one that stands in several counts as in the best of them."""
    best: dict[tuple[int, int], Candidate] = {}
    for window in windows:
        for each in window.spans:
            place = each.begin, each.end
            if place not in best or each.score > best[place].score:
                best[place] = each
    return sorted(best.values(), key=lambda each: (-each.score, each.begin, each.end))


def no_answer_score(windows: Sequence[Window]) -> float:
    """As in the window that is least sure that the answer is not there."""
    return min(window.nothing for window in windows)


def threshold_for(margins: Sequence[float], gains: Sequence[float]) -> float:
    """The threshold above which no answer is given, best in sum: `margins` are "none" over the best span, `gains` what
    giving the span is worth more than giving none. Between two margins the middle; of equals the nearest to 0."""
    order = np.argsort(np.asarray(margins), kind="stable")
    sorted_B, gains_B = np.asarray(margins, np.float64)[order], np.asarray(gains, np.float64)[order]
    worth = np.concatenate([[0.0], np.cumsum(gains_B)])  # of giving the spans of the first n
    cuts = np.concatenate([[sorted_B[0] - 1], (sorted_B[:-1] + sorted_B[1:]) / 2, [sorted_B[-1] + 1]])
    possible = np.concatenate([[True], np.diff(sorted_B) > 0, [True]])
    best = np.flatnonzero(possible & (worth > worth[possible].max() - 1e-9))
    return round(float(min(cuts[best], key=abs)), 6)
