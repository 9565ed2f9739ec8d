"""The Kneser–Ney baseline: a distribution at every history, better the more it has seen, equal to a worked example."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import small_data
from wenmo.evaluation.ngram import START, KneserNey

ALPHABET = "abcd"
TEXTS = st.lists(st.text(ALPHABET, min_size=1, max_size=12), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(TEXTS, st.integers(1, 4), st.text(ALPHABET, max_size=4))
def test_every_history_has_a_distribution(texts: list[str], order: int, history: str) -> None:
    model = KneserNey(texts, ALPHABET, order)
    padded = START * (order - 1) + history
    chances = [model.probability(padded, character) for character in ALPHABET]
    assert sum(chances) == pytest.approx(1)
    assert min(chances) > 0


def test_a_worked_example() -> None:
    """Bigrams of ^abab and ^ba: ab 2, ba 2, ^a 1, ^b 1. Too few for discounts of their own: 0.5 for one, 1 for two.

    One character before: a after b or ^, so 2 of the 4 kinds of pairs; likewise b. Half the mass of each bottom count
    (1 of 2) goes to the alphabet: P(a) = (1 + (1 + 1) / 3) / 4.
    """
    model = KneserNey(["abab", "ba"], "abc", 2)
    a = (2 - 1 + 2 / 3) / 4
    assert model.probability(START, "a") == pytest.approx(((1 - 0.5) + 1.0 * a) / 2)
    assert model.probability("b", "a") == pytest.approx(((2 - 1) + 1 * a) / 2)
    assert model.probability("a", "c") == pytest.approx((0 + 1 * (2 / 3 / 4)) / 2)
    assert model.probability("c", "a") == pytest.approx(a)  # a history never seen says nothing


def test_it_learns_what_the_neighbours_say() -> None:
    texts = small_data.news(300)
    train, test = texts[:250], texts[250:]
    alphabet = set("".join(texts))

    def mean_bits(order: int) -> float:
        bits = list(itertools.chain.from_iterable(map(KneserNey(train, alphabet, order).bits, test)))
        return sum(bits) / len(bits)

    found = [mean_bits(order) for order in (1, 2, 3, 5)]
    assert found == sorted(found, reverse=True)
    shuffled = ["".join(random.Random(0).sample(text, len(text))) for text in test]
    model = KneserNey(train, alphabet, 5)
    assert sum(map(sum, map(model.bits, shuffled))) > 2 * sum(map(sum, map(model.bits, test)))
