"""The count-based baseline that any language model has to beat: a Kneser–Ney n-gram model over characters.

In: texts to learn from and texts to be surprised by. Out: bits for every character. Characters are its units, so
that its bits per character stand beside those of a model with any tokenizer.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

START = "\x02"  # before the first character of a text; never predicted
Discounts = tuple[float, float, float]


class KneserNey:
    """Interpolated modified Kneser–Ney (Chen and Goodman 1999, §3), discounts from counts of counts (eq. 26).

    P_n(c | h) = max(N(hc) − D(N(hc)), 0) / N(h·) + γ(h) · P_{n−1}(c | h'), where N counts occurrences at the highest
    order (and after START, where nothing else can stand before) and different left neighbours below it; at the
    bottom stands 1 / V. `alphabet`: the characters that exist, seen in training or not; V is their number.
    """

    def __init__(self, texts: Sequence[str], alphabet: Iterable[str] = (), order: int = 5) -> None:
        assert order >= 1
        self.order = order
        self.num_characters = len(set(alphabet).union(*texts)) if texts else len(set(alphabet))
        counts: list[Counter[str]] = [Counter() for _ in range(order + 1)]  # counts[n]: of n-grams
        for text in texts:
            padded = START * (order - 1) + text
            counts[order].update(padded[at - order + 1 : at + 1] for at in range(order - 1, len(padded)))
        for n in range(order - 1, 0, -1):  # how many different characters stand before each shorter one
            for gram in counts[n + 1]:
                counts[n][gram[1:]] += 1
            if n > 1:
                _count_beginnings(counts[n], counts[n + 1])
        self.counts = counts
        self.discounts = [(0.0, 0.0, 0.0), *(_discounts(count) for count in counts[1:])]
        self.totals: list[Counter[str]] = [Counter() for _ in range(order + 1)]  # by history, for its n
        self.reserved: list[dict[str, float]] = [{} for _ in range(order + 1)]
        for n in range(1, order + 1):
            for gram, count in counts[n].items():
                history = gram[:-1]
                self.totals[n][history] += count
                self.reserved[n][history] = self.reserved[n].get(history, 0.0) + self._discount(n, count)

    def _discount(self, n: int, count: int) -> float:
        return min(self.discounts[n][min(count, 3) - 1], count)

    def probability(self, history: str, character: str) -> float:
        """P(character | the last order − 1 characters of the history)."""
        found = 1 / self.num_characters
        for n in range(1, self.order + 1):
            context = history[len(history) - n + 1 :] if n > 1 else ""
            total = self.totals[n].get(context, 0)
            if not total:
                break
            count = self.counts[n].get(context + character, 0)
            kept = count - self._discount(n, count) if count else 0.0
            found = (kept + self.reserved[n][context] * found) / total
        return found

    def bits(self, text: str) -> list[float]:
        """−log₂ P of each character, given those before it in the text."""
        padded = START * (self.order - 1) + text
        return [-math.log2(self.probability(padded[at - self.order + 1 : at], padded[at]))
                for at in range(self.order - 1, len(padded))]


def _count_beginnings(count: Counter[str], longer: Counter[str]) -> None:
    """What begins with START has one left neighbour at most: its occurrences are counted instead (§4.1.6 there)."""
    begun: Counter[str] = Counter()
    for gram, number in longer.items():
        if gram[1] == START:
            begun[gram[1:]] += number
    count.update({gram: number - count[gram] for gram, number in begun.items()})


def _discounts(count: Counter[str]) -> Discounts:
    """D₁, D₂, D₃₊. Where a text is too small for them, absolute discounts of 0.5, 1 and 1.5."""
    n1, n2, n3, n4 = (sum(1 for number in count.values() if number == wanted) for wanted in (1, 2, 3, 4))
    if n1 and n2 and n3:
        y = n1 / (n1 + 2 * n2)
        found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
        if min(found) > 0:  # nothing reserved would leave nothing for what was never seen
            return found
    return (0.5, 1.0, 1.5)
