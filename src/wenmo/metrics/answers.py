"""Answers beside the ones that people gave: exact match and F1, by the published rules of SQuAD and of CMRC 2018.

In: an answer and the accepted ones, as texts. Out: (exact match, F1), the best over the accepted ones; means over many
questions with an interval that resamples contexts, since questions about one text fall together.

    squad    lower case, without English articles and ASCII punctuation; F1 over the bag of words between spaces
             (Rajpurkar et al. 2016, §6.1; 2018). It knows no Chinese: a sentence is one word there.
    cmrc     lower case, without CMRC's list of signs; a Han character is a unit, other text falls into words; F1 over
             the longest run of units that both have (Cui et al. 2019, §4.1, and its evaluation script).

A question without accepted answers is right if, and only if, no answer is given (Rajpurkar et al. 2018, §5).
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Literal

import numpy as np

from wenmo.metrics.entities import share_of_rows
from wenmo.metrics.estimates import Estimate

AnswerRules = Literal["squad", "cmrc"]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_ASCII_SIGNS = str.maketrans("", "", string.punctuation)
_CMRC_SIGNS = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
_CMRC_HAN = "\u4e00-\u9fa5"
# The script hands what stands between Han characters to nltk's word_tokenize. Here: words and numbers, with the points,
# commas and apostrophes inside them; any other sign alone. They differ in English contractions ("don't") and the like.
_CMRC_UNIT = re.compile(rf"[{_CMRC_HAN}]|[^\W_{_CMRC_HAN}]+(?:[.,'][^\W_{_CMRC_HAN}]+)*|[^\w\s]")


def answer_scores(answer: str, accepted: Sequence[str], rules: AnswerRules) -> tuple[float, float]:
    """(exact match, F1) of an answer, each the best over the accepted ones; an empty one says that there is none."""
    if rules == "cmrc":
        texts = [_cmrc_text(text) for text in accepted if text.strip()] or [""]
        match = float(_cmrc_text(answer) in texts)
        units = [_cmrc_units(text) for text in accepted if text.strip()] or [[]]
        return match, max(_f1(_longest_run(_cmrc_units(answer), each), _cmrc_units(answer), each) for each in units)
    words = [found for text in accepted if (found := squad_words(text))] or [[]]
    given = squad_words(answer)
    return (float(given in words),
            max(_f1(sum((Counter(given) & Counter(each)).values()), given, each) for each in words))


def squad_words(text: str) -> list[str]:
    """The words that count by SQuAD's rules."""
    return _ARTICLES.sub(" ", text.lower().translate(_ASCII_SIGNS)).split()


def _cmrc_text(text: str) -> str:
    return "".join(character for character in text.lower().strip() if character not in _CMRC_SIGNS)


def _cmrc_units(text: str) -> list[str]:
    """Units of the text without the signs: taking one out joins what stood beside it, as in the script."""
    return _CMRC_UNIT.findall(_cmrc_text(text))


def _f1(num_common: int, given: Sequence[str], wanted: Sequence[str]) -> float:
    """2PR/(P+R) = 2·common/(given + wanted); of two empty answers 1."""
    total = len(given) + len(wanted)
    return 2 * num_common / total if total else 1.0


def _longest_run(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest run of units that stands in both."""
    longest, before = 0, [0] * (len(b) + 1)
    for unit in a:
        here = [0]
        for place, other in enumerate(b):
            here.append(before[place] + 1 if unit == other else 0)
        longest, before = max(longest, *here), here
    return longest


def mean_in_groups(values: Sequence[float], groups: Sequence[Hashable], seed: int) -> Estimate:
    """The mean of values [B] from 0 to 1 with an interval that resamples the groups they fall in (contexts, articles,
    documents) and an imagined one, whose mean is a half: values of one group go together, and as if they did not the
    interval would be too narrow. One group tells nothing of its spread."""
    place: dict[Hashable, int] = {}
    numbers = [place.setdefault(group, len(place)) for group in groups]
    if len(place) == 1:
        return Estimate(float(np.mean(values)), -math.inf, math.inf)
    return share_of_rows(np.bincount(numbers, weights=values), np.bincount(numbers), seed)
