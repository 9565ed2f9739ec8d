"""Accepted answers, and where they stand in their context.

In: what a row has under `answers`: SQuAD's list of {"text", "answer_start"} (or "start"), the same as two lists, texts
alone, or one text. Out: texts; for learning, a span of tokens in each window, and what had to be put right to find it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from wenmo.errors import DataError, say
from wenmo.nn.cross_entropy import IGNORED
from wenmo.tasks.task import Span

Finding = Literal["as given", "moved", "searched", "ambiguous"]
NOT_HERE = -1  # the answer does not stand whole in this window

# What may be seen of a question's answer, and how it is said.
SEEN = {
    "none": ("without an answer", "没有答案"),
    "moved": ("the answer is not where the row says; the nearest place was taken", "答案不在所标位置，取最近一处"),
    "ambiguous": ("the answer stands in several places; the first was taken", "答案在原文中多处出现，取第一处"),
    "inexact": ("the answer begins or ends inside a token: never met exactly", "答案起止在词元内部，无法精确命中"),
    "long": ("the answer is longer than max_answer_tokens: never given", "答案超过 max_answer_tokens：学而不答"),
    "unfound": ("the answer is not in the context: skipped", "答案不在原文中：跳过"),
    "between": ("the answer stands whole in no window: skipped", "没有窗口能完整容纳答案：跳过"),
}
UNUSABLE = ("unfound", "between")


@dataclass(frozen=True, slots=True)
class Accepted:
    text: str
    start: int | None = None  # in characters of the context, where the row says it


@dataclass(frozen=True, slots=True)
class Found:
    """Characters `start` to before `end` of the context. moved: the text stands elsewhere than the row says;
    ambiguous: the row does not say where, and it stands in several places, of which this is the first."""

    start: int
    end: int
    finding: Finding


def accepted_answers(value: Any, where: str) -> list[Accepted]:
    """The answers of a row, none of them blank; none at all where the question cannot be answered. DataError for
    anything that is no answers."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, Mapping) and isinstance(value.get("text"), list):  # as Hugging Face's data sets have them
        texts = value["text"]
        starts = value.get("answer_start", [None] * len(texts))
        value = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)] if (
            isinstance(starts, list) and len(starts) == len(texts)) else None
    if not isinstance(value, (list, tuple)):
        raise _no_answers(value, where)
    return [answer for each in value if (answer := _accepted(each, where)).text.strip()]


def _accepted(value: Any, where: str) -> Accepted:
    if isinstance(value, str):
        return Accepted(value)
    if not isinstance(value, Mapping) or not isinstance(value.get("text"), str):
        raise _no_answers(value, where)
    start = value.get("answer_start", value.get("start"))
    if start is not None and type(start) is not int:
        raise _no_answers(value, where)
    return Accepted(value["text"], start)


def _no_answers(value: Any, where: str) -> DataError:
    shown = " ".join(str(value).split())[:40]
    return DataError(say(f"these are no answers: {shown}", f"这不是答案：{shown}"), where=where,
                     mend=say('write a list of texts or of {"text": …, "answer_start": …}, empty if there is none',
                              '写成文本列表，或 {"text": …, "answer_start": …} 的列表；没有答案则为空列表'))


def to_learn(answers: Sequence[Accepted]) -> Accepted:
    """The one of several answers that is learned: the one that most people gave, of equals the first.

    One place a question is a clear target, and the same in every epoch; scores count the best over all of them.
    """
    counts = Counter(answer.text for answer in answers)
    return max(answers, key=lambda answer: counts[answer.text])


def find(answer: Accepted, context: str) -> Found | None:
    """Where the answer stands: as given, or nearest to that; without a place given, where it stands first."""
    places = []
    place = context.find(answer.text)
    while place >= 0:
        places.append(place)
        place = context.find(answer.text, place + 1)
    if not places:
        return None
    start = answer.start
    if start is None:
        return _found(answer, places[0], "ambiguous" if len(places) > 1 else "searched")
    nearest = min(places, key=lambda place: (abs(place - start), place))
    return _found(answer, nearest, "as given" if nearest == start else "moved")


def _found(answer: Accepted, start: int, finding: Finding) -> Found:
    """Without the spaces at the answer's ends, which no token holds."""
    text = answer.text
    start += len(text) - len(text.lstrip())
    return Found(start, start + len(text.strip()), finding)


def targets_in(spans: Sequence[Span], accepted: Sequence[Accepted], context: str, places: Sequence[Span],
               max_answer_tokens: int) -> tuple[list[Span], tuple[str, ...]]:
    """For each window (a span of tokens) the answer's first and last token, and what was SEEN.

    `places`: the characters of each token. NOT_HERE twice for a window that does not hold the answer whole; IGNORED
    twice in all of them where there is nothing to be learned.
    """
    if not accepted:
        return [(NOT_HERE, NOT_HERE)] * len(spans), ("none",)
    nothing = [(IGNORED, IGNORED)] * len(spans)
    found = find(to_learn(accepted), context)
    if found is None:
        return nothing, ("unfound",)
    seen: list[str] = [found.finding] if found.finding in SEEN else []
    inside = [at for at, (start, end) in enumerate(places) if start < found.end and end > found.start]
    if not inside:  # the tokenizer drops the characters that the answer is made of
        return nothing, ("unfound",)
    first, last = inside[0], inside[-1]
    if (places[first][0], places[last][1]) != (found.start, found.end):
        seen.append("inexact")
    if last - first >= max_answer_tokens:
        seen.append("long")
    whole = [start <= first and last < end for start, end in spans]
    if not any(whole):
        return nothing, (*seen, "between")
    return [(first, last) if holds else (NOT_HERE, NOT_HERE) for holds in whole], tuple(seen)
