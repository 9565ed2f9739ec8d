"""Exact match and F1 of answers: equal to SQuAD's and CMRC's published rules, and fair to both languages."""

from __future__ import annotations

import math
import os
import re
import string
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wenmo.metrics import answer_scores, bootstrap, difference, mean_in_groups
from wenmo.metrics.comparison import row_mean
from wenmo.text.intake import Counts, SourceSettings, open_source, read_rows

DATA = Path(os.environ.get("WENMO_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
ENGLISH = st.lists(st.sampled_from(["the", "a", "An", "cat", "Cat.", "sat", "--", "U.S.", "on", "mat!", "42"]),
                   max_size=6).map(" ".join)
MIXED = st.lists(st.sampled_from([*"北京的大学，。《》-：（）", "NBA", " ", "2018", "年", "iPhone 6", "·", "……"]),
                 max_size=8).map("".join)


# SQuAD: the rules of its evaluation script (2.0), written out as they are published.


def words(text: str) -> list[str]:
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return [word for word in re.split(r"\s+", re.sub(r"\b(a|an|the)\b", " ", text)) if word]


def squad(answer: str, accepted: Sequence[str]) -> tuple[float, float]:
    golds = [words(gold) for gold in accepted if words(gold)] or [[]]
    f1 = []
    for gold in golds:
        same = sum(min(gold.count(word), words(answer).count(word)) for word in set(gold))
        if not gold or not words(answer):
            f1.append(float(gold == words(answer)))
        elif same == 0:
            f1.append(0.0)
        else:
            precision, recall = same / len(words(answer)), same / len(gold)
            f1.append(2 * precision * recall / (precision + recall))
    return float(words(answer) in golds), max(f1)


@given(ENGLISH, st.lists(ENGLISH, min_size=1, max_size=3))
def test_squad_rules(answer: str, accepted: list[str]) -> None:
    assert answer_scores(answer, accepted, "squad") == pytest.approx(squad(answer, accepted))


# CMRC: the rules of its evaluation script, written out as they are published.

SIGNS = ["-", ":", "_", "*", "^", "/", "\\", "~", "`", "+", "=", "，", "。", "：", "？", "！", "“", "”", "；", "’",
         "《", "》", "……", "·", "、", "「", "」", "（", "）", "－", "～", "『", "』"]
WORD = re.compile(r"\w+(?:[.,']\w+)*|[^\w\s]")


def segments(text: str) -> list[str]:
    """Signs out, Han characters apart; what is between them goes to a tokenizer of words, numbers and signs."""
    found: list[str] = []
    word = ""
    for character in text.lower().strip():
        if character in SIGNS:
            continue
        if "\u4e00" <= character <= "\u9fa5":
            found += [*WORD.findall(word), character]
            word = ""
        else:
            word += character
    return found + WORD.findall(word)


def common(a: Sequence[str], b: Sequence[str]) -> int:
    """The longest common substring, by trying all."""
    return max((n for n in range(len(a) + 1) for i in range(len(a) - n + 1) for j in range(len(b) - n + 1)
                if a[i:i + n] == b[j:j + n]), default=0)


def cmrc(answer: str, accepted: Sequence[str]) -> tuple[float, float]:
    f1 = []
    for gold in accepted:
        wanted, got = segments(gold), segments(answer)
        length = common(wanted, got)
        f1.append(0.0 if length == 0 else 2 * (length / len(got)) * (length / len(wanted))
                  / (length / len(got) + length / len(wanted)))

    def bare(text: str) -> str:
        return "".join(character for character in text.lower().strip() if character not in SIGNS)

    return float(any(bare(gold) == bare(answer) for gold in accepted)), max(f1)


@given(MIXED, st.lists(MIXED.filter(segments), min_size=1, max_size=3))
def test_cmrc_rules(answer: str, accepted: list[str]) -> None:
    assert answer_scores(answer, accepted, "cmrc") == pytest.approx(cmrc(answer, accepted))


@pytest.mark.skipif(not DATA.exists(), reason=f"the public sets are not in {DATA} (WENMO_TEST_DATA)")
def test_real_answers_against_the_published_rules() -> None:
    """Each answer in DRCD beside the one after it, which is often another of the same question."""
    source = open_source(SourceSettings(path="drcd/DRCD_dev.json.gz", limit=300), DATA, ("context", "answers"), ())
    rows = [row.values for row in read_rows(source, Counts())]
    texts = [answer["text"] for row in rows for answer in row["answers"]]
    for first, second in pairwise(texts):
        if segments(first):
            assert answer_scores(second, [first], "cmrc") == pytest.approx(cmrc(second, [first])), (first, second)


@pytest.mark.parametrize(("answer", "accepted", "rules", "expected"), [
    ("《红楼梦》", ["红楼梦"], "cmrc", (1, 1)),
    ("北京大学", ["北京", "大学"], "cmrc", (0, 2 / 3)),
    ("大北京学", ["北京大学"], "cmrc", (0, 0.5)),  # a run, not a bag
    ("NBA球队", ["nba"], "cmrc", (0, 0.5)),  # a word is one unit
    ("The cat", ["cat!"], "squad", (1, 1)),
    ("北京大学", ["北京"], "squad", (0, 0)),  # why Chinese has rules of its own
    ("", [], "squad", (1, 1)), ("", [], "cmrc", (1, 1)), ("北京", [], "cmrc", (0, 0)), ("", ["北京"], "cmrc", (0, 0)),
])
def test_known_answers(answer: str, accepted: list[str], rules: str, expected: tuple[float, float]) -> None:
    assert answer_scores(answer, accepted, rules) == pytest.approx(expected)  # type: ignore[arg-type]


# Intervals --------------------------------------------------------------------------------------------


def test_questions_of_one_context_go_together() -> None:
    """Fifty contexts, twenty questions each, all right or all wrong: worth fifty observations, not a thousand."""
    rng = np.random.default_rng(0)
    right = np.repeat(rng.random(50) < 0.5, 20).astype(float)
    together = mean_in_groups(right, np.repeat(np.arange(50), 20).tolist(), seed=0)
    alone = mean_in_groups(right, list(range(1000)), seed=0)
    assert together.value == alone.value == right.mean()
    assert together.high - together.low > 3 * (alone.high - alone.low)
    assert together.high - together.low == pytest.approx(2 * 1.96 * right.std() / 50 ** 0.5, rel=0.15)


def test_a_difference_is_paired() -> None:
    noise = np.random.default_rng(0).random(200)
    found = difference(row_mean(noise + 0.1, list(range(200))), row_mean(noise, list(range(200))), 200, seed=0)
    assert found.value == pytest.approx(0.1)
    assert found.high - found.low < 1e-6


def test_of_one_context_or_row_nothing_is_certain() -> None:
    one = mean_in_groups([1, 0, 1, 1], ["c"] * 4, seed=0)
    assert (one.value, one.low, one.high) == (0.75, -math.inf, math.inf)
    perfect = mean_in_groups([1.0] * 20, list(range(20)), seed=0)
    assert perfect.value == perfect.high == 1 > perfect.low
    apart = difference(row_mean([1, 1, 0.5], ["c"] * 3), row_mean([0, 0, 0], ["c"] * 3), 3, seed=0)
    assert (apart.low, apart.high) == (-math.inf, math.inf)
    alone = bootstrap(lambda rows: np.full(len(rows), 2.0), 1, seed=0)
    assert (alone.value, alone.low, alone.high) == (2.0, -math.inf, math.inf)
