"""BLEU and chrF are sacreBLEU's, of any rows drawn; ROUGE is what its paper says, in Chinese too."""

from __future__ import annotations

import builtins
import random
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wenmo.errors import MissingExtra
from wenmo.metrics.translation import bleu, chrf, common_subsequence, rouge
from wenmo.tasks.text_to_text import measured
from wenmo.text.words import units

sacrebleu = pytest.importorskip("sacrebleu.metrics")
ENGLISH = ["The", "cat", "sat", "on", "the", "mat,", "and", "the", "dog", "didn't", "like", "it", "at", "all:", "3.5",
           "dogs", "did!"]
CHINESE = list("今天下午天气很好，我们打算去公园走一走。OK，3.5元！")


def rows(words: list[str], joint: str, number: int = 40) -> tuple[list[str], list[list[str]]]:
    """Texts and, for each, one to three references that share some of its words; some texts are empty."""
    rng = random.Random(0)
    texts, references = [], []
    for at in range(number):
        text = [rng.choice(words) for _ in range(rng.randint(0 if at % 7 == 0 else 3, 12))]
        texts.append(joint.join(text))
        references.append([joint.join([*text[: rng.randint(0, 9)], *rng.sample(words, rng.randint(1, 6))])
                           for _ in range(rng.randint(1, 3))])
    return texts, references


def streams(references: list[list[str]]) -> list[list[str | None]]:
    return [[row[rank] if rank < len(row) else None for row in references] for rank in range(3)]


@pytest.mark.parametrize(("words", "joint", "tokenize"), [(ENGLISH, " ", "13a"), (CHINESE, "", "zh")])
def test_bleu_and_chrf_are_sacrebleus_on_any_rows(words: list[str], joint: str, tokenize: Any) -> None:
    texts, references = rows(words, joint)
    (our_bleu, signature), (our_chrf, _) = bleu(texts, references, tokenize), chrf(texts, references)
    assert f"tok:{tokenize}" in signature
    assert "version" in signature
    drawn = np.random.default_rng(0).integers(len(texts), size=(5, len(texts)))
    for lot in [np.arange(len(texts)), *drawn]:
        some, theirs = [texts[i] for i in lot], streams([references[i] for i in lot])
        bleu_of = sacrebleu.BLEU(tokenize=tokenize).corpus_score(some, theirs).score
        assert our_bleu(lot[None])[0] == pytest.approx(bleu_of, abs=1e-9)
        assert our_chrf(lot[None])[0] == pytest.approx(sacrebleu.CHRF().corpus_score(some, theirs).score, abs=1e-9)
    assert our_bleu(drawn).shape == (5,)


def published_rouge(text: str, reference: str) -> dict[str, float]:
    """Lin 2004 for English, the plain way: n-grams in lists, the table of the longest common subsequence."""
    a, b = (re.sub("[^a-z0-9]+", " ", each.lower()).split() for each in (text, reference))

    def f1(matched: int, said: int, wanted: int) -> float:
        if not matched:
            return 0.0
        precision, recall = matched / said, matched / wanted
        return 2 * precision * recall / (precision + recall)

    found = {}
    for size in (1, 2):
        grams = [Counter(zip(*(tokens[i:] for i in range(size)), strict=False)) for tokens in (a, b)]
        matched = sum(min(count, grams[1][gram]) for gram, count in grams[0].items())
        found[f"rouge{size}"] = f1(matched, sum(grams[0].values()), sum(grams[1].values()))
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, left in enumerate(a):
        for j, right in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if left == right else max(table[i][j + 1], table[i + 1][j])
    return found | {"rougeL": f1(table[-1][-1], len(a), len(b))}


def test_rouge_in_english_is_the_published_one() -> None:
    texts, references = rows(ENGLISH, " ")
    ours = rouge([units(text) for text in texts], [[units(each) for each in row] for row in references])
    for name, scores in ours.items():
        best = [max(published_rouge(text, each)[name] for each in row)
                for text, row in zip(texts, references, strict=True)]
        np.testing.assert_allclose(scores.values, best, atol=1e-12)
    assert 0.1 < ours["rouge2"].values.mean() < ours["rougeL"].values.mean() < ours["rouge1"].values.mean() < 1


@given(st.lists(st.sampled_from("abc")), st.lists(st.sampled_from("abc")))
def test_the_longest_common_subsequence(a: list[str], b: list[str]) -> None:
    before = [0] * (len(b) + 1)
    for left in a:
        now = [0]
        for j, right in enumerate(b):
            now.append(before[j] + 1 if left == right else max(before[j + 1], now[-1]))
        before = now
    assert common_subsequence(a, b) == before[-1]


def test_units_of_both_languages() -> None:
    assert units("《三体》是 Liu Cixin 的2006年小说，Über_alles!") == [
        "三", "体", "是", "liu", "cixin", "的", "2006", "年", "小", "说", "über", "alles"]


@pytest.mark.parametrize("text", ["今天下午天气很好。", "The weather is very fine today."])
def test_a_perfect_pair_has_full_marks(text: str) -> None:
    found = measured([text], [[text]], ("bleu", "chrf", "rouge"), 0)
    assert {name: estimate.value for name, estimate in found.metrics.items()} == pytest.approx(
        {"bleu": 100, "chrf": 100, "rouge1": 1, "rouge2": 1, "rougeL": 1})
    assert ("tok:zh" in found.details["signatures"]["bleu"]) == ("天" in text)


def test_without_an_answer_nothing_is_known() -> None:
    found = measured([], [], ("bleu", "rouge"), 0)
    assert list(found.metrics) == ["bleu", "rouge1", "rouge2", "rougeL"]
    assert all(np.isnan(estimate.value) for estimate in found.metrics.values())
    assert measured([""], [["一"]], ("rouge",), 0).details["empty_outputs"] == 1


def test_without_sacrebleu_rouge_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("sacrebleu"):
            raise ImportError(name)
        return plain(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra):
        measured(["a"], [["a"]], ("bleu",), 0)
    assert measured(["a"], [["a"]], ("rouge",), 0).metrics["rouge1"].value == 1
