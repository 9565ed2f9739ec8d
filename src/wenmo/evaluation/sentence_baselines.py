"""Answering without a model: the sentence of the context that shares most with the question.

In: questions and their contexts. Out: a sentence for each, and their scores beside a model's. Two fixed rules for which
nothing is learned: the largest overlap of n-grams, and BM25. Whoever extracts spans has to beat both.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from wenmo.metrics import Estimate, answer_scores, mean_in_groups
from wenmo.metrics.comparison import difference, row_mean
from wenmo.tasks import Task
from wenmo.tasks.answers import accepted_answers
from wenmo.text.words import units

Rows = Sequence[Mapping[str, Any]]

LONGEST = 3  # n-grams of one to three units
K1, B = 1.2, 0.75  # of BM25, as usual

_SENTENCE = re.compile(r"[^。！？!?；;\n]*?(?:[。！？!?；;]+[」』”’\"]*|\.(?=\s)|\n|$)", re.DOTALL)


def sentences(text: str) -> list[str]:
    """The sentences of a text, Chinese or English, without the spaces around them; at least one."""
    found = [piece for match in _SENTENCE.finditer(text) if (piece := match[0].strip())]
    return found or [text]


def by_overlap(question: str, context: str) -> str:
    """The sentence with the most n-grams (n = 1, 2, 3, each counted once) of the question; of equals the first."""
    wanted = _ngrams(units(question))
    return max(sentences(context), key=lambda sentence: len(wanted & _ngrams(units(sentence))))


def _ngrams(of: Sequence[str]) -> set[tuple[str, ...]]:
    return {tuple(of[at : at + n]) for n in range(1, LONGEST + 1) for at in range(len(of) - n + 1)}


class BM25:
    """Okapi BM25 (Robertson & Zaragoza 2009, eq. 3.15) over sentences; rare terms are those of the given texts.

    Terms: words, single Han characters and pairs of neighbouring ones (Chinese writes no spaces).
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._in: Counter[str] = Counter()  # sentences that hold a term
        self._num_sentences = self._num_terms = 0
        for text in texts:
            for sentence in sentences(text):
                terms = _terms(sentence)
                self._in.update(set(terms))
                self._num_sentences += 1
                self._num_terms += len(terms)

    def best(self, question: str, context: str) -> str:
        """The sentence of the context with the highest score; of equals the first."""
        wanted = set(_terms(question))
        return max(sentences(context), key=lambda sentence: self._score(wanted, _terms(sentence)))

    def _score(self, wanted: set[str], terms: list[str]) -> float:
        usual = self._num_terms / max(self._num_sentences, 1) or 1.0
        damping = K1 * (1 - B + B * len(terms) / usual)
        counts = Counter(terms)
        return sum(self._rarity(term) * counts[term] / (counts[term] + damping)
                   for term in sorted(wanted & counts.keys()))  # sorted: the sum is the same in every process

    def _rarity(self, term: str) -> float:
        """log(1 + (N − n + ½)/(n + ½)): never negative."""
        held = self._in[term]
        return math.log(1 + (self._num_sentences - held + 0.5) / (held + 0.5))


def _terms(text: str) -> list[str]:
    of = units(text)
    return of + [a + b for a, b in pairwise(of) if len(a) == len(b) == 1]


# Beside a model ---------------------------------------------------------------------------------------


def beside_sentences(task: Task, rows: Rows, answers: Rows, train: Rows, seed: int) -> tuple[
        dict[str, Estimate], dict[str, Any]]:
    """Both rules by the task's own metric; the difference is to the one with the higher F1. The training rows tell
    BM25 which terms are rare."""
    settings: Any = task.settings
    rarity = BM25(dict.fromkeys(str(row["context"]) for row in train))
    given = {"model": [str(answer["answer"]) for answer in answers]}
    given |= {name: [rule(str(row["question"]), str(row["context"])) for row in rows]
              for name, rule in (("overlap", by_overlap), ("bm25", rarity.best))}
    accepted = [[answer.text for answer in accepted_answers(row["answers"], "answers")] for row in rows]
    scores = {name: [answer_scores(text, texts, settings.metric) for text, texts in zip(found, accepted, strict=True)]
              for name, found in given.items()}
    contexts = [str(row["context"]) for row in rows]
    f1 = {name: [each for _, each in found] for name, found in scores.items()}
    metrics = {}
    for name in ("overlap", "bm25"):
        metrics[f"{name}_exact_match"] = mean_in_groups([match for match, _ in scores[name]], contexts, seed)
        metrics[f"{name}_f1"] = mean_in_groups(f1[name], contexts, seed)
    better = max(("overlap", "bm25"), key=lambda name: sum(f1[name]))
    metrics["difference"] = difference(row_mean(f1["model"], contexts), row_mean(f1[better], contexts), len(rows), seed)
    return metrics, {"better": better}
