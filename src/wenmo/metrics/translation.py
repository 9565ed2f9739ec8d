"""Texts against reference texts: BLEU, chrF, ROUGE, each as a function of the rows that are drawn.

In: what was said and, row by row, the references. Out: `Statistic`s (metrics/comparison.py), for a value, its interval,
and the comparison of two models on the same rows. BLEU and chrF are sacreBLEU's (extra `metrics`), 0 to 100, with the
signature that names every choice (Post 2018); ROUGE is 0 to 1, over tokens that the caller makes: it knows no language.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from wenmo.errors import MissingExtra, say
from wenmo.metrics.comparison import RowMean, Statistic, row_mean
from wenmo.metrics.estimates import Floats, Ints

Tokenize = Literal["13a", "zh"]
References = Sequence[Sequence[str]]  # of each row, at least one
Tokens = Sequence[str]

_CHARACTERS = 6  # chrF's longest n-gram
_BETA = 2


def bleu(texts: Sequence[str], references: References, tokenize: Tokenize) -> tuple[Statistic, str]:
    """Corpus BLEU (Papineni et al. 2002), and sacreBLEU's signature. tokenize: `zh` for Chinese references (every
    Chinese character a word), `13a` for the others. Raises MissingExtra."""
    metric = _sacrebleu().BLEU(tokenize=tokenize, effective_order=True)  # which sums of sentences do not heed
    rows = [metric.sentence_score(text, list(each)) for text, each in zip(texts, references, strict=True)]
    table_BK = np.array([[*row.counts, *row.totals, row.sys_len, row.ref_len] for row in rows], np.float64)

    def statistic(rows_RB: Ints) -> Floats:
        sums = _sums(table_BK, rows_RB).astype(int).tolist()
        scores = [metric.compute_bleu(line[:4], line[4:8], line[8], line[9], smooth_method="exp").score
                  for line in sums]
        return np.minimum(scores, 100.0)  # rounding may lie above it

    corpus = _sacrebleu().BLEU(tokenize=tokenize)
    corpus.corpus_score(list(texts), _streams(references))
    return statistic, str(corpus.get_signature())


def chrf(texts: Sequence[str], references: References) -> tuple[Statistic, str]:
    """Corpus chrF2 (Popović 2015): F₂ of the mean precision and recall of runs of one to six characters; of several
    references a row's best one counts. And sacreBLEU's signature. Raises MissingExtra."""
    table_BK = np.array([max((_overlaps(text, each) for each in row), key=_f_score)
                         for text, row in zip(texts, references, strict=True)], np.float64)

    def statistic(rows_RB: Ints) -> Floats:
        return np.array([_f_score(line) for line in _sums(table_BK, rows_RB)])

    corpus = _sacrebleu().CHRF()
    corpus.corpus_score(list(texts), _streams(references))
    return statistic, str(corpus.get_signature())


def rouge(texts: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> dict[str, RowMean]:
    """The mean over the rows of ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004, §2, §3.1), F₁ each; of several references the
    best one counts. ROUGE-L is that of whole texts, not of their sentences. Nothing against anything is 0."""
    found: dict[str, list[float]] = {"rouge1": [], "rouge2": [], "rougeL": []}
    for text, row in zip(texts, references, strict=True):
        for name, size in (("rouge1", 1), ("rouge2", 2)):
            found[name].append(max(_ngram_f1(text, each, size) for each in row))
        found["rougeL"].append(max(_f1(common_subsequence(text, each), len(text), len(each)) for each in row))
    return {name: row_mean(values) for name, values in found.items()}


def common_subsequence(a: Tokens, b: Tokens) -> int:
    """Tokens of the longest common subsequence, with a bit for each token of `a` (Hyyrö 2004, Fig. 1): a column of the
    usual table is one number, and its zeros are counted."""
    places: dict[str, int] = {}
    for at, token in enumerate(a):
        places[token] = places.get(token, 0) | 1 << at
    every = (1 << len(a)) - 1
    column = every
    for token in b:
        matched = column & places.get(token, 0)
        column = (column + matched | column - matched) & every
    return len(a) - column.bit_count()


def _ngram_f1(text: Tokens, reference: Tokens, size: int) -> float:
    said, wanted = (Counter(tuple(tokens[at : at + size]) for at in range(len(tokens) - size + 1))
                    for tokens in (text, reference))
    return _f1((said & wanted).total(), said.total(), wanted.total())


def _f1(num_matched: int, num_said: int, num_wanted: int) -> float:
    return 2 * num_matched / (num_said + num_wanted) if num_matched else 0.0


def _overlaps(text: str, reference: str) -> list[int]:
    """For each length of a run: how many the text has (none counted where the reference has none), the reference, and
    both. White space is left out."""
    said, wanted = ("".join(each.split()) for each in (text, reference))
    found = []
    for size in range(1, _CHARACTERS + 1):
        ours, theirs = (Counter(each[at : at + size] for at in range(len(each) - size + 1)) for each in (said, wanted))
        found += [ours.total() if theirs else 0, theirs.total(), (ours & theirs).total()]
    return found


def _f_score(overlaps: Any) -> float:
    """F₂ of the precisions and recalls averaged over the lengths that both texts reach: 0 to 100."""
    precisions, recalls = [], []
    for said, wanted, both in zip(overlaps[0::3], overlaps[1::3], overlaps[2::3], strict=True):
        if said > 0 and wanted > 0:
            precisions.append(both / said)
            recalls.append(both / wanted)
    precision, recall = (sum(each) / len(each) if each else 0.0 for each in (precisions, recalls))
    below = _BETA**2 * precision + recall
    return float(100 * (1 + _BETA**2) * precision * recall / below) if below else 0.0


def _sums(table_BK: Floats, rows_RB: Ints) -> Floats:
    """The table's lines summed over the rows of each drawing: [R, K]."""
    num_drawings, num_rows = len(rows_RB), len(table_BK)
    slots = rows_RB + num_rows * np.arange(num_drawings)[:, None]
    times_RB = np.bincount(slots.ravel(), minlength=num_drawings * num_rows).reshape(num_drawings, num_rows)
    return np.asarray(times_RB @ table_BK)


def _streams(references: References) -> list[list[str | None]]:
    """The first references of all rows, the second ones, …; None where a row has no more."""
    most = max(map(len, references))
    return [[row[rank] if rank < len(row) else None for row in references] for rank in range(most)]


def _sacrebleu() -> Any:
    try:
        from sacrebleu import metrics
    except ImportError as error:
        raise MissingExtra("sacrebleu", "metrics", say("BLEU and chrF", "计算 BLEU 与 chrF")) from error
    return metrics
