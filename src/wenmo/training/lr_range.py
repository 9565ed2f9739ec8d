"""The learning-rate range test: what the loss does while the rate grows (Smith 2017, §3.3).

In: the loss at each of an exponentially growing row of rates. Out: the smoothed curve and the rates that it suggests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MEMORY = 0.9  # of the running mean that tells a divergence
DIVERGED = 4.0  # times the lowest running mean so far


def rate_at(step: int, num_steps: int, low: float, high: float) -> float:
    """The rate of step 0 … num_steps − 1, from `low` to `high`, each the same multiple of the one before."""
    return low * math.exp(math.log(high / low) * step / (num_steps - 1))


class Watch:
    """Sees the losses one by one; `diverged` once their running mean is far above its lowest, or one is not finite."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.diverged = False
        self._sum, self._best = 0.0, math.inf

    def see(self, loss: float) -> None:
        if not math.isfinite(loss):
            self.diverged = True
            return
        self.losses.append(loss)
        self._sum = MEMORY * self._sum + (1 - MEMORY) * loss
        mean = self._sum / (1 - MEMORY ** len(self.losses))
        self._best = min(self._best, mean)
        self.diverged = mean > DIVERGED * self._best


@dataclass(frozen=True, slots=True)
class Suggestion:
    """`steepest`: where the loss falls fastest. `tenth`: a tenth of the rate at the lowest loss, `minimum`.

    `lr` is the smaller of the two. `at_the_end`: the loss was still falling at the highest rate.
    """

    lr: float
    steepest: float
    tenth: float
    minimum: float
    at_the_end: bool


def smoothed(losses: Sequence[float]) -> list[float]:
    """Means weighted by a triangle over a tenth of the steps around each: noise goes, and no place is shifted."""
    reach = max(2, len(losses) // 20)
    values = np.asarray(losses, dtype=np.float64)
    weights = 1 + reach - np.abs(np.arange(-reach, reach + 1))
    sums = np.convolve(values, weights)[reach : reach + len(values)]
    counts = np.convolve(np.ones(len(values)), weights)[reach : reach + len(values)]
    return [float(value) for value in sums / counts]


def suggest(rates: Sequence[float], losses: Sequence[float]) -> Suggestion | None:
    """None where the loss never fell: each rate of the row was too high, or all were too low."""
    curve = np.array(smoothed(losses))
    if len(curve) < 3:
        return None
    lowest = int(curve.argmin())
    if lowest == 0 or curve[0] - curve[lowest] < 0.01 * abs(curve[0]):
        return None
    slopes = np.gradient(curve, np.log(np.asarray(rates[: len(curve)])))
    steepest = rates[int(slopes[: lowest + 1].argmin())]
    tenth = rates[lowest] / 10
    return Suggestion(min(steepest, tenth), steepest, tenth, rates[lowest], lowest == len(curve) - 1)
