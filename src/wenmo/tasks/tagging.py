"""Tagging: a label for each word or character. Names of things, parts of speech, slots, word segmentation.

A row is `tokens` and `tags` (in any scheme of text/tagging_schemes.py), or `text` and `entities`; for segmentation
`tokens`, its words, are question and answer at once. Every word gets its tag however long the sentence: long ones are
read in windows. A model gives each word scores; the best sequence without an impossible step is the answer
({"entities", "tags"}, {"tags"} or {"words"}), found by Viterbi's algorithm, with a CRF's scores of steps if asked.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wenmo.data.examples import Rows
from wenmo.data.sequence import Batch, Sequence
from wenmo.errors import DataError, RecipeError, say
from wenmo.metrics.classification import confusion_matrix, f1_estimates
from wenmo.metrics.comparison import row_mean, row_ratio
from wenmo.metrics.entities import share_of_rows, span_report
from wenmo.metrics.estimates import wilson
from wenmo.models import LanguageModel
from wenmo.nn.crf import Rules, viterbi
from wenmo.nn.cross_entropy import IGNORED
from wenmo.objectives import Objective, hidden_of, tagging
from wenmo.tasks.tagged import Sentence, Units, read, units_of
from wenmo.tasks.tagging_settings import TaggingSettings
from wenmo.tasks.task import Built, Encoded, Lengths, Measured, row_name
from wenmo.tasks.units import cut, ids_of_units
from wenmo.text import tagging_schemes as schemes
from wenmo.text.tagging_schemes import Entity
from wenmo.text.tokenizer import Tokenizer

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Of the words of one window, from the word `first` on: `scores` [U, C], and what a CRF has learned of steps."""

    first: int
    scores: np.ndarray
    learned: Rules | None


@dataclass(frozen=True)
class Tagging:
    settings: TaggingSettings
    tokenizer: Tokenizer
    lengths: Lengths

    def __post_init__(self) -> None:
        least = self.tokenizer.num_wrapping(False) + 2
        if self.lengths.max_tokens < least or self._overlap >= self._room:
            raise RecipeError(
                say(f"{self.lengths.max_tokens} tokens leave no room for windows that share {self._overlap}",
                    f"{self.lengths.max_tokens} 个词元容不下重叠 {self._overlap} 的窗口"), where="data.max_tokens",
                mend=say(f"at least {least + self._overlap}, or a smaller task.overlap_tokens",
                         f"至少 {least + self._overlap}，或减小 task.overlap_tokens"))

    @property
    def _room(self) -> int:
        return self.lengths.max_tokens - self.tokenizer.num_wrapping(False)

    @property
    def _overlap(self) -> int:
        given = self.settings.overlap_tokens
        return max(self._room, 0) // 4 if given is None else given

    @property
    def name(self) -> str:
        return "tagging"

    @cached_property
    def labels(self) -> dict[str, int]:
        """tag → number of the output."""
        assert self.settings.labels is not None, "not fitted"
        return {label: index for index, label in enumerate(self.settings.labels)}

    @property
    def heads(self) -> Mapping[str, int]:
        return {kind: len(self.labels) for kind in sorted(self.settings.head_kinds, reverse=True)}

    @cached_property
    def rules(self) -> Rules:
        """Which tag may follow which: all, where they make no entities."""
        scheme = self.settings.own_scheme
        return Rules.of(list(self.labels), lambda before, after:
                        scheme is None or schemes.may_follow(before, after, scheme))

    # Settled by data ------------------------------------------------------------------------------------

    def fitted(self, rows: Iterable[Mapping[str, Any]]) -> Tagging:
        """With the tags and the units of the training rows; repairs and conflicts in them are counted and said."""
        kinds: Counter[str] = Counter()
        written: list[list[str]] = []
        tokens: list[list[str]] = []
        for number, row in enumerate(rows):
            tokens.append([] if self.settings.rows == "text" else [str(token) for token in row["tokens"]])
            if self.settings.target == "tags":
                kinds.update(str(tag) for tag in row["tags"])
            elif self.settings.target == "words":
                kinds[""] += 1
            elif self.settings.rows == "text":
                sentence = self._sentence(row, number, with_targets=True)
                kinds.update(entity.type for entity in sentence.entities)
            else:
                written.append([str(tag) for tag in row["tags"]])
                kinds.update(entity.type for entity in schemes.entities_of(written[-1]))
        if not kinds:
            raise DataError(say("not one entity in the training rows", "训练数据中没有一个实体"),
                            where=self.settings.target_columns[0],
                            mend=say("check the column of the tags", "请检查标签所在的列"))
        if written:
            _say_repairs(written)
        scheme = self.settings.own_scheme
        needed = sorted(kinds) if scheme is None else schemes.all_tags(sorted(kinds), scheme)
        found: Units = "characters" if self.settings.target == "words" else self.settings.units or (
            "mixed" if self.settings.rows == "text" else units_of(tokens))
        settings = self.settings.model_copy(update={"labels": self._listed(needed), "units": found})
        return replace(self, settings=settings)

    def _listed(self, needed: list[str]) -> tuple[str, ...]:
        """The labels of the recipe, which must be those that the rows need; without any, these."""
        given = self.settings.labels
        if given is None:
            return tuple(needed)
        scheme = self.settings.own_scheme
        if scheme is not None:  # types that no training row has may be listed: whole
            needed = schemes.all_tags(sorted({schemes.parts(tag)[1] for tag in (*given, *needed)
                                              if tag != schemes.OUTSIDE}), scheme)
        missing, strange = sorted(set(needed) - set(given)), sorted(set(given) - set(needed))
        if missing or strange:
            raise RecipeError(
                say(f"the labels listed are not those needed: without {', '.join(missing) or '–'}; "
                    f"too many: {', '.join(strange) or '–'}",
                    f"所列标签与所需不符：缺少 {', '.join(missing) or '–'}；多出 {', '.join(strange) or '–'}"),
                where="task.labels", mend=say("those needed: ", "所需的标签：") + ", ".join(needed))
        return given

    def tuned(self, rows: list[Mapping[str, Any]], outputs: Callable[[], list[list[Any]]]) -> Tagging:
        return self

    # Rows -----------------------------------------------------------------------------------------------

    def question(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """A row as it was asked → with the columns of the task: a text without `tokens` is split into its words or
        characters, as `units` says."""
        text = row.get("text")
        if self.settings.rows == "text" or "tokens" in row or not isinstance(text, str):
            return row
        if self.settings.target == "words":
            return {**row, "tokens": text.split()}
        sentence = self._sentence(row, 0, with_targets=False)
        return {**row, "tokens": [text[start:end] for start, end in sentence.places]}

    def _sentence(self, row: Mapping[str, Any], number: int, *, with_targets: bool) -> Sentence:
        """Who asked may have given a text in place of tokens (see `question`)."""
        settings, asks_text = self.settings, not with_targets and "tokens" not in row
        return read(row, number, "text" if asks_text else settings.rows, settings.target, settings.units or "mixed",
                    settings.conflicts, with_targets=with_targets)

    def encode(self, number: int, row: Mapping[str, Any], *, with_targets: bool) -> Encoded:
        sentence = self._sentence(row, number, with_targets=with_targets)
        units = ids_of_units(self.tokenizer, sentence.text, sentence.places)
        targets = self._targets(sentence, number) if with_targets else None
        before = len(self.tokenizer.prefix)
        sequences = []
        for window in cut(units, self._room, self._overlap):
            ids, _ = self.tokenizer.wrap(window.ids)
            first = np.zeros(len(ids), np.uint8)
            first[np.asarray(window.places) + before] = 1
            tokens = {"ids": np.asarray(ids), "first": first}
            if targets is not None:
                learnt = np.full(len(ids), IGNORED, np.int64)
                for unit, place in zip(range(window.first, window.end), window.places, strict=True):
                    length = len(units[unit]) if self.settings.learn == "all" else 1
                    learnt[before + place : before + min(place + length, len(window.ids))] = targets[unit]
                tokens["targets"] = learnt
            values = {"first": window.first, "begins": int(window.first == 0), "ends": int(window.end == len(units))}
            sequences.append(Sequence(number, tokens, values))
        return Encoded(sequences)

    def _targets(self, sentence: Sentence, number: int) -> list[int]:
        """The number of each unit's tag. An entity of a type that was never seen in training cannot be learned or
        found; its words count as outside of any, and `measure` counts it as missed."""
        if self.settings.own_scheme is None:
            strange = sorted(set(sentence.tags) - set(self.labels))
            if strange:
                raise DataError(
                    say(f"the tag `{strange[0]}` was never seen in training", f"标签 `{strange[0]}` 在训练中从未出现"),
                    where=say("tags, ", "tags，") + row_name(number),
                    mend=say("known tags: ", "已知标签：") + ", ".join(self.labels))
            return [self.labels[tag] for tag in sentence.tags]
        types = {schemes.parts(label)[1] for label in self.labels}
        known = [entity for entity in sentence.entities if entity.type in types]
        return [self.labels[tag] for tag in
                schemes.tags_of(known, len(sentence.places), self.settings.own_scheme)]

    def build(self, rows: Iterable[Mapping[str, Any]], folder: Path, seed: int, source_hash: str) -> Built:
        """Each window is an example. What long sentences share between windows is learned once."""
        examples = []
        num_rows = num_cut = num_dropped = num_moved = 0
        for number, row in enumerate(rows):
            found = self.encode(number, row, with_targets=True).sequences
            examples += [[sequence] for sequence in found]
            num_rows += 1
            num_cut += len(found) > 1
            if self.settings.rows == "text":
                sentence = self._sentence(row, number, with_targets=True)
                num_dropped, num_moved = num_dropped + sentence.num_dropped, num_moved + sentence.num_moved
        made = Rows(examples)
        told = [
            (num_cut, "sentences read in several windows", "个句子分多个窗口读取"),
            (num_dropped, "entities left out, since they overlap another", "个实体因与其他实体重叠而略去"),
            (num_moved, "entities widened to whole words", "个实体扩展到完整的词"),
        ]
        notes = tuple(say(f"{count:,} {en}", f"{count:,} {zh}") for count, en, zh in told if count)
        return Built(made, num_rows, int(made.lengths(0).sum()), notes=notes)

    # Learning and answering -----------------------------------------------------------------------------

    def objective(self) -> Objective:
        return tagging(self.rules if self.settings.crf else None, self.settings.label_smoothing)

    def outputs(self, model: LanguageModel, batch: Batch) -> list[Any]:
        flat = batch.text
        scores_MC = model.tag(hidden_of(model, flat)).float()
        learned = None
        if self.settings.crf:
            with_crf: Any = model
            learned = with_crf.crf.rules()
        else:
            scores_MC = scores_MC.log_softmax(1)
        first_M = flat.tokens["first"].bool()
        counts = [int(part.sum()) for part in torch.split(first_M, list(flat.lengths))]
        answered = torch.split(scores_MC[first_M].cpu(), counts)
        return [Scores(int(at), part.numpy(), learned)
                for at, part in zip(flat.values["first"].tolist(), answered, strict=True)]

    def pooled(self, outputs: list[Scores]) -> Scores:
        """The scores of all words of a sentence, from its windows."""
        windows = sorted(outputs, key=lambda window: window.first)
        return Scores(0, np.concatenate([window.scores for window in windows]), windows[0].learned)

    def mean(self, found: list[Scores]) -> list[Scores]:
        """Of several models: the mean probability of each tag; of CRFs the mean of all their scores."""
        if found[0].learned is None:
            scores_UC = np.logaddexp.reduce([each.scores for each in found]) - np.float32(np.log(len(found)))
            return [Scores(0, scores_UC, None)]
        learned = Rules(*(np.mean([getattr(each.learned, name) for each in found], axis=0)
                          for name in ("transitions", "start", "end")))
        return [Scores(0, np.mean([each.scores for each in found], axis=0), learned)]

    def _tags(self, outputs: list[Scores]) -> list[str]:
        """The best tags of a sentence, from its windows."""
        whole = self.pooled(outputs)
        scores_UC, learned = whole.scores, whole.learned
        if learned is None and self.settings.own_scheme is None:
            best = scores_UC.argmax(1).tolist()
        else:
            best = viterbi(scores_UC, self.rules if learned is None else self.rules.plus(learned))
        names = list(self.labels)
        return [names[number] for number in best]

    def decode(self, row: Mapping[str, Any], outputs: list[Any]) -> dict[str, Any]:
        sentence = self._sentence(row, 0, with_targets=False)
        tags = self._tags(outputs)
        answer: dict[str, Any] = {}
        if self.settings.target == "words":
            return {"words": [sentence.slice(entity) for entity in schemes.entities_of(tags)]}
        if self.settings.target == "entities":
            answer["entities"] = [dict(zip(("start", "end"), sentence.shown(entity), strict=True), type=entity.type,
                                       text=sentence.slice(entity)) for entity in schemes.entities_of(tags)]
        if sentence.of_text:  # whose tags these are
            answer["tokens"] = [sentence.text[start:end] for start, end in sentence.places]
        return {**answer, "tags": tags}

    def correct(self, row: Mapping[str, Any], outputs: list[Any]) -> bool:
        """Whether every tag of the row is right."""
        return self.tagged(row)[1] == self._tags(outputs)

    def tagged(self, row: Mapping[str, Any], number: int = 0) -> tuple[list[str], list[str]]:
        """A row's units, and their tags in the task's own scheme."""
        sentence = self._sentence(row, number, with_targets=True)
        scheme = self.settings.own_scheme
        tags = list(sentence.tags) if scheme is None else schemes.tags_of(
            sentence.entities, len(sentence.places), scheme)
        return [sentence.text[start:end] for start, end in sentence.places], tags

    def measure(self, rows: list[Mapping[str, Any]], outputs: list[list[Any]], seed: int) -> Measured:
        return self.measured(rows, [self._tags(its) for its in outputs], seed)

    def measured(self, rows: list[Mapping[str, Any]], found: list[list[str]], seed: int) -> Measured:
        """Of tags found for each row: strict entity-level scores (segmentation: of words, as SIGHAN's bakeoffs have
        them); the share of words with the right tag; of sentences with all tags right. `macro_f1` of tags that make no
        entities is their mean. Entities given in characters stay so: one widened to whole words is not right."""
        true = [self.tagged(row, number)[1] for number, row in enumerate(rows)]
        same = [a == b for a, b in zip(true, found, strict=True)]
        right = [sum(a == b for a, b in zip(*pair, strict=True)) for pair in zip(true, found, strict=True)]
        total = [len(tags) for tags in true]
        metrics = {"token_accuracy": share_of_rows(right, total, seed)}
        statistics: dict[str, Any] = {"token_accuracy": row_ratio(right, total), "exact": row_mean(same)}
        details: dict[str, Any] = {}
        if self.settings.own_scheme is not None:
            report = span_report(*self._spans(rows, found), seed)
            metrics = {**report["metrics"], **metrics}
            details, statistics = {**report["details"], **self._repaired(rows)}, {**report["statistics"], **statistics}
        else:
            wanted, given = ([self.labels[tag] for tags in part for tag in tags] for part in (true, found))
            confusion = confusion_matrix(wanted, given, len(self.labels))
            metrics["macro_f1"], f1 = f1_estimates(confusion, seed)
            details["per_class"] = [{"label": tag, "support": int(confusion[index].sum()), "f1": f1[index]}
                                    for tag, index in self.labels.items()]
        metrics["exact"] = wilson(sum(same), len(same))
        return Measured(len(rows), metrics, details, statistics)

    def _spans(self, rows: list[Mapping[str, Any]], found: list[list[str]]) -> tuple[list[list[Entity]],
                                                                                    list[list[Entity]]]:
        """The true entities of each row and those found, both as the row counts."""
        true, answers = [], []
        for number, (row, tags) in enumerate(zip(rows, found, strict=True)):
            sentence = self._sentence(row, number, with_targets=True)
            true.append(list(sentence.entities if sentence.given is None else sentence.given))
            answers.append([Entity(*sentence.shown(entity), entity.type) for entity in schemes.entities_of(tags)])
        return true, answers

    def _repaired(self, rows: list[Mapping[str, Any]]) -> dict[str, Any]:
        """How many of the rows' own tags break the rules of the scheme that they are written in. DataError for letters
        of two schemes."""
        if self.settings.target != "entities" or self.settings.rows == "text":
            return {}
        repairs = _repairs([[str(tag) for tag in row["tags"]] for row in rows])[1]
        return {"repaired": {"rows": sum(map(bool, repairs)), "tags": sum(repairs)}} if any(repairs) else {}

    def card(self) -> dict[str, Any]:
        return {**self.settings.model_dump(mode="json"), "lengths": self.lengths.model_dump(mode="json")}


def _say_repairs(sentences: list[list[str]]) -> None:
    """In which scheme the training rows are written, and how often they break its rules."""
    scheme, repairs = _repairs(sentences)
    broken = sum(count > 0 for count in repairs)
    _log.info(say(f"the tags are in the scheme {scheme}; {sum(repairs):,} repaired in {broken:,} sentences",
                  f"标签采用 {scheme} 方案；在 {broken:,} 个句子中修复了 {sum(repairs):,} 处"))


def _repairs(sentences: list[list[str]]) -> tuple[schemes.Scheme, list[int]]:
    """The scheme that the sentences are written in, and how many tags of each break its rules."""
    scheme = schemes.scheme_of(sentences)
    return scheme, [schemes.num_repairs(tags, scheme) for tags in sentences]
