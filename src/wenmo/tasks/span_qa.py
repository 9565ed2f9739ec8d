"""Span question answering: the answer to a question is a piece of its context, or there is none.

A row is `question`, `context` and `answers` (tasks/answers.py). A long context is read in windows that overlap; each is
a sequence, question and window as a pair. Two scores a token say where the answer begins and ends; position 0 ([CLS])
says that it does not stand in this window. The answer: {"answer", "start", "end", "score"}, characters of the context.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from wenmo.config import Count, Settings
from wenmo.data.examples import Rows
from wenmo.data.sequence import Batch, Sequence
from wenmo.errors import DataError, RecipeError, say
from wenmo.metrics import answer_scores, mean_in_groups, wilson
from wenmo.metrics.comparison import row_mean
from wenmo.models import LanguageModel
from wenmo.nn.cross_entropy import IGNORED
from wenmo.objectives import Objective, span_log_probabilities, span_selection
from wenmo.tasks.answers import NOT_HERE, SEEN, UNUSABLE, accepted_answers, targets_in
from wenmo.tasks.spans import Candidate, Window, best_candidates, candidates_of, no_answer_score, threshold_for
from wenmo.tasks.task import SHOWN, Built, Encoded, Lengths, Measured, Span, row_name, windows
from wenmo.text.languages import language_shares
from wenmo.text.tokenizer import Tokenizer

_QUESTION, _CONTEXT = -1, -2  # stand in for the two texts to see where the tokenizer puts them


class SpanQASettings(Settings):
    """overlap_tokens: what a window of the context shares with the next; longer answers may stand whole in none.
    max_question_tokens: the rest of a longer question is cut. max_answer_tokens: no longer answer is given.
    metric: by SQuAD's rules or CMRC's; auto goes by the questions' language. no_answer: questions may have none; left
    out, whether some of the training rows have none. null_threshold: no answer is given where "none" scores better than
    the best span by more than this (natural logarithms); left out, the best for F1 on the rows for choosing.
    n_best: predict gives so many answers. unfound: what becomes of training rows whose answer is not in the context.
    """

    type: Literal["span_qa"] = "span_qa"
    overlap_tokens: Count = 32
    max_question_tokens: int = Field(64, ge=1)
    max_answer_tokens: int = Field(30, ge=1)
    metric: Literal["auto", "squad", "cmrc"] = "auto"
    no_answer: bool | None = None
    null_threshold: float | None = Field(None, allow_inf_nan=False)
    n_best: int = Field(1, ge=1, le=20)
    unfound: Literal["skip", "refuse"] = "skip"

    @property
    def columns(self) -> tuple[str, ...]:
        return ("question", "context")

    @property
    def target_columns(self) -> tuple[str, ...]:
        return ("answers",)

    @property
    def head_kinds(self) -> frozenset[str]:
        return frozenset({"span_qa"})


@dataclass(frozen=True, slots=True)
class _Read:
    """A row that was encoded: what is to be learned of it, and what was seen on the way (answers.SEEN)."""

    sequences: list[Sequence]
    cut_tokens: int
    seen: tuple[str, ...] = ()
    unusable: str = ""


@dataclass(frozen=True)
class SpanQA:
    settings: SpanQASettings
    tokenizer: Tokenizer
    lengths: Lengths

    def __post_init__(self) -> None:
        layout, _ = self.tokenizer.wrap([_QUESTION], [_CONTEXT])
        if layout[0] in (_QUESTION, _CONTEXT):
            raise RecipeError(
                say("this tokenizer puts no control token before a text: nothing could say that there is no answer",
                    "该分词器不在文本前放控制词元：无从表示“没有答案”"), where="tokenizer",
                mend="tokenizer: {train: {type: wordpiece}}")
        settings = self.settings
        least = self.tokenizer.num_wrapping(True) + settings.max_question_tokens + settings.overlap_tokens + 1
        if self.lengths.max_tokens < least:
            raise RecipeError(
                say(f"{self.lengths.max_tokens} tokens leave no room for windows that share {settings.overlap_tokens}, "
                    f"beside a question of {settings.max_question_tokens}",
                    f"问题占 {settings.max_question_tokens} 个词元时，{self.lengths.max_tokens} 个词元容不下重叠 "
                    f"{settings.overlap_tokens} 的窗口"), where="data.max_tokens",
                mend=say(f"at least {least}, or smaller task.max_question_tokens, task.overlap_tokens",
                         f"至少 {least}，或减小 task.max_question_tokens、task.overlap_tokens"))

    @property
    def name(self) -> str:
        return "span_qa"

    @property
    def heads(self) -> Mapping[str, int]:
        return {"span_qa": 2}

    # Settled by data ------------------------------------------------------------------------------------

    def fitted(self, rows: Iterable[Mapping[str, Any]]) -> SpanQA:
        """With the rules of the metric, and whether there may be no answer."""
        num_rows = num_none = 0
        questions = []
        for number, row in enumerate(rows):
            num_rows += 1
            num_none += not accepted_answers(row["answers"], row_name(number))
            questions.append(str(row["question"]))
        settings = self.settings
        if num_none and settings.no_answer is False:
            raise RecipeError(
                say(f"{num_none:,} of {num_rows:,} training rows have no answer", f"{num_rows:,} 行训练数据中有 "
                    f"{num_none:,} 行没有答案"), where="task.no_answer",
                mend=say("task.no_answer: true, or take these rows out", "设 task.no_answer: true，或去掉这些行"))
        if settings.metric == "auto":
            chinese = language_shares(questions)["zh"] > 0.5
            settings = settings.model_copy(update={"metric": "cmrc" if chinese else "squad"})
        if settings.no_answer is None:
            settings = settings.model_copy(update={"no_answer": num_none > 0})
        if settings.null_threshold is not None and not settings.no_answer:
            raise RecipeError(say("`null_threshold` does nothing where each question has an answer",
                                  "每个问题都有答案时 `null_threshold` 不起作用"), where="task.null_threshold",
                              mend=say("take it out, or set task.no_answer", "请去掉它，或设置 task.no_answer"))
        return replace(self, settings=settings)

    def tuned(self, rows: list[Mapping[str, Any]], outputs: Callable[[], list[list[Any]]]) -> SpanQA:
        """With the threshold that gives the best F1 on these rows."""
        if not self.settings.no_answer or self.settings.null_threshold is not None:
            return self
        margins, gains = [], []
        for row, found in zip(rows, outputs(), strict=True):
            if not found:  # a question that was skipped
                continue
            best = best_candidates(found)[0]
            accepted = [answer.text for answer in accepted_answers(row["answers"], "answers")]
            margins.append(no_answer_score(found) - best.score)
            gains.append(self._scores(_text(row, best), accepted)[1] - self._scores("", accepted)[1])
        threshold = threshold_for(margins, gains) if margins else 0.0
        return replace(self, settings=self.settings.model_copy(update={"null_threshold": threshold}))

    # Rows -----------------------------------------------------------------------------------------------

    def encode(self, number: int, row: Mapping[str, Any], *, with_targets: bool) -> Encoded:
        read = self._read(number, row, with_targets)
        return Encoded(read.sequences, read.cut_tokens)

    def build(self, rows: Iterable[Mapping[str, Any]], folder: Path, seed: int, source_hash: str) -> Built:
        """Each window is an example. Questions whose answer cannot be learned are skipped, and counted."""
        examples, num_rows, num_skipped, num_cut, cut_tokens = [], 0, 0, 0, 0
        seen: Counter[str] = Counter()
        for number, row in enumerate(rows):
            read = self._read(number, row, with_targets=True)
            num_rows += 1
            num_skipped += bool(read.unusable)
            seen.update([read.unusable] if read.unusable else read.seen)
            if read.unusable == "unfound" and self.settings.unfound == "refuse":
                shown = " ".join(str(row["question"]).split())[:SHOWN]
                raise DataError(say(f"the answer is not in its context: {shown}", f"答案不在原文中：{shown}"),
                                where=row_name(number),
                                mend=say("correct the row, or skip such rows: task.unfound: skip",
                                         "改正该行，或跳过这样的行：task.unfound: skip"))
            if not read.unusable:
                examples += [[sequence] for sequence in read.sequences]
                num_cut += read.cut_tokens > 0
                cut_tokens += read.cut_tokens
        if num_rows and not examples:
            raise DataError(say("not one answer can be learned", "没有一个答案可供学习"), where="answers",
                            mend=say("check that the answers stand in their contexts",
                                     "请检查答案是否出自原文"))
        made = Rows(examples)
        notes = tuple(say(f"{seen[name]:,} of {num_rows:,} questions: {en}",
                          f"{num_rows:,} 个问题中有 {seen[name]:,} 个：{zh}")
                      for name, (en, zh) in SEEN.items() if seen[name])
        return Built(made, num_rows - num_skipped, int(made.lengths(0).sum()), num_cut, cut_tokens, num_skipped, notes)

    def _read(self, number: int, row: Mapping[str, Any], with_targets: bool) -> _Read:
        question = self.tokenizer.encode(str(row["question"]))
        context = str(row["context"])
        ids, offsets = self.tokenizer.encode_with_offsets(context)
        places = [_trimmed(context, *offset) for offset in offsets]
        for name, tokens in (("question", question), ("context", [1 for start, end in places if start < end])):
            if not tokens:
                raise DataError(say(f"a {name} without a single token", f"`{name}` 没有任何词元"),
                                where=row_name(number), mend=say("remove it", "请删除该行"))
        cut_tokens = max(0, len(question) - self.settings.max_question_tokens)
        question = question[: self.settings.max_question_tokens]
        room = self.lengths.max_tokens - self.tokenizer.num_wrapping(True) - len(question)
        spans = windows(len(ids), room, self.settings.overlap_tokens)
        targets: list[Span] = [(IGNORED, IGNORED)] * len(spans)
        seen: tuple[str, ...] = ()
        unusable = ""
        if with_targets:
            accepted = accepted_answers(row["answers"], row_name(number))
            targets, seen = targets_in(spans, accepted, context, places, self.settings.max_answer_tokens)
            unusable = next((name for name in seen if name in UNUSABLE), "")
        sequences = [self._sequence(number, question, ids, places, span, target)
                     for span, target in zip(spans, targets, strict=True)]
        return _Read(sequences, cut_tokens, seen, unusable)

    def _sequence(self, number: int, question: list[int], ids: list[int], places: list[Span], span: Span,
                  target: Span) -> Sequence:
        """One window. begins, ends: of each token that may be an answer's, in characters of the context; -1 elsewhere.
        Targets are positions in the sequence."""
        first, last = span
        wrapped, segments = self.tokenizer.wrap(question, ids[first:last])
        layout, _ = self.tokenizer.wrap([_QUESTION] * len(question), [_CONTEXT] * (last - first))
        there = np.asarray(layout) == _CONTEXT
        places_K2 = np.asarray([place if place[0] < place[1] else (-1, -1) for place in places[first:last]], np.int64)
        tokens = {"ids": np.asarray(wrapped)}
        for column, name in enumerate(("begins", "ends")):
            tokens[name] = np.full(len(wrapped), -1)
            tokens[name][there] = places_K2[:, column]
        if any(segments):
            tokens["segments"] = np.asarray(segments)
        shift = int(there.argmax()) - first
        start, end = (place + shift if place >= 0 else 0 if place == NOT_HERE else IGNORED for place in target)
        return Sequence(number, tokens, {"start": start, "end": end})

    # Answers --------------------------------------------------------------------------------------------

    def objective(self) -> Objective:
        return span_selection()

    def outputs(self, model: LanguageModel, batch: Batch) -> list[Any]:
        flat = batch.text
        found_M2 = span_log_probabilities(model, flat).cpu().numpy()
        begins_M, ends_M = (flat.tokens[name].cpu().numpy() for name in ("begins", "ends"))
        stops = np.cumsum(flat.lengths)
        return [candidates_of(found_M2[stop - length : stop], begins_M[stop - length : stop],
                              ends_M[stop - length : stop], self.settings.max_answer_tokens)
                for stop, length in zip(stops, flat.lengths, strict=True)]

    def decode(self, row: Mapping[str, Any], outputs: list[Any]) -> dict[str, Any]:
        candidates = self._ranked(outputs)
        answers = [{"answer": _text(row, each), "start": each.begin if each.end else None, "end": each.end or None,
                    "score": round(probability, 6)} for each, probability in candidates[: self.settings.n_best]]
        return {**answers[0], **({"n_best": answers} if self.settings.n_best > 1 else {})}

    def _ranked(self, outputs: list[Window]) -> list[tuple[Candidate, float]]:
        """Candidates with their probability among all of them, the chosen one first; no answer is the one that ends at
        0. By the threshold it may come first though another is likelier."""
        found = best_candidates(outputs)
        if self.settings.no_answer:
            nothing = Candidate(no_answer_score(outputs), 0, 0)
            none = nothing.score - found[0].score > (self.settings.null_threshold or 0.0)
            rest = sorted([nothing, *found], key=lambda each: -each.score)
            chosen = nothing if none else found[0]
            found = [chosen, *(each for each in rest if each is not chosen)]
        scores = np.asarray([each.score for each in found], np.float64)
        probabilities = np.exp(scores - scores.max())
        return list(zip(found, (probabilities / probabilities.sum()).tolist(), strict=True))

    def correct(self, row: Mapping[str, Any], outputs: list[Any]) -> bool:
        """Whether the answer to the row is one of the accepted ones, by the rules of the metric."""
        accepted = [answer.text for answer in accepted_answers(row["answers"], "answers")]
        return self._scores(_text(row, self._ranked(outputs)[0][0]), accepted)[0] == 1

    def measure(self, rows: list[Mapping[str, Any]], outputs: list[list[Any]], seed: int) -> Measured:
        accepted = [[answer.text for answer in accepted_answers(row["answers"], row_name(number))]
                    for number, row in enumerate(rows)]
        given = [_text(row, self._ranked(found)[0][0]) for row, found in zip(rows, outputs, strict=True)]
        scores = [self._scores(text, texts) for text, texts in zip(given, accepted, strict=True)]
        matches, f1 = [match for match, _ in scores], [f1 for _, f1 in scores]
        contexts = [str(row["context"]) for row in rows]
        metrics = {"exact_match": mean_in_groups(matches, contexts, seed), "f1": mean_in_groups(f1, contexts, seed)}
        answerable = [number for number, texts in enumerate(accepted) if texts]
        if 0 < len(answerable) < len(rows):
            metrics["answerable_f1"] = mean_in_groups([f1[number] for number in answerable],
                                                      [contexts[number] for number in answerable], seed)
            silent = sum(not text for text, texts in zip(given, accepted, strict=True) if not texts)
            metrics["no_answer_accuracy"] = wilson(silent, len(rows) - len(answerable))
        details = {"rules": self.settings.metric, "contexts": len(set(contexts)), "answerable": len(answerable)}
        return Measured(len(rows), metrics, details, {"exact_match": row_mean(matches, contexts),
                                                      "f1": row_mean(f1, contexts)})

    def _scores(self, text: str, accepted: list[str]) -> tuple[float, float]:
        assert self.settings.metric != "auto", "not fitted"
        return answer_scores(text, accepted, self.settings.metric)

    def card(self) -> dict[str, Any]:
        return {**self.settings.model_dump(mode="json"), "lengths": self.lengths.model_dump(mode="json")}


def _text(row: Mapping[str, Any], candidate: Candidate) -> str:
    return str(row["context"])[candidate.begin : candidate.end]


def _trimmed(text: str, start: int, end: int) -> Span:
    """A token's place without the spaces it begins or ends with; empty where it is nothing else."""
    piece = text[start:end]
    stripped = piece.strip()
    start += len(piece) - len(piece.lstrip()) if stripped else 0
    return start, start + len(stripped)
