"""Several tasks in one model: one body, a head for each (Caruana 1997; for intents and slots, Chen et al. 2019).

In: rows that have what one task reads and learns, or several. Parts that read the same columns share a row's sequences,
and so one forward; a row that lacks what a part learns counts for nothing there. The loss is Σ weight · mean loss of
the part over its own items. Out: the parts' answers side by side, their metrics under `NAME.metric`, and `exact`, the
share of rows in which every part that can be is right.

A part is a task as it is: it sees its own columns (`columns` says which, if they have other names), its own half of the
batch, and the model with its own head (models/task_heads.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, SerializeAsAny, field_validator, model_serializer, model_validator
from torch import Tensor, nn

from wenmo.config import Settings, parse
from wenmo.data.examples import Rows
from wenmo.data.sequence import TEXT, Batch, Flat, Sequence
from wenmo.errors import DataError, UsageError, say
from wenmo.metrics import Estimate, wilson
from wenmo.models import LanguageModel, TaskView, head_name
from wenmo.objectives import Objective, Term, hidden_of
from wenmo.tasks.classification import Classification, ClassificationSettings
from wenmo.tasks.multi_label import MultiLabel, MultiLabelSettings
from wenmo.tasks.regression import Regression, RegressionSettings
from wenmo.tasks.span_qa import SpanQA, SpanQASettings
from wenmo.tasks.tagging import Tagging
from wenmo.tasks.tagging_settings import TaggingSettings
from wenmo.tasks.task import Built, Encoded, Lengths, Measured, Task, row_name
from wenmo.tasks.text_task import TextSettings, TextTask
from wenmo.text.source import STRINGS
from wenmo.text.tokenizer import Tokenizer
from wenmo.text.words import joined

PartTask = Annotated[ClassificationSettings | MultiLabelSettings | RegressionSettings | SpanQASettings
                     | TaggingSettings, Field(discriminator="type")]
_PARTS: dict[str, Any] = {"classification": Classification, "multi_label": MultiLabel, "regression": Regression,
                          "span_qa": SpanQA, "tagging": Tagging}
_INPUTS = ("ids", "segments")  # what of a sequence's tokens the body reads, whatever the task
OF_THE_PART = ("weight", "columns")


class PartSettings(Settings):
    """weight: of the part's loss. columns: standard name → what the rows call it, `{label: topic}`, so that two parts
    need not read the same one. The other keys are those of the task."""

    task: SerializeAsAny[PartTask]
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    columns: dict[str, str] = Field({})

    @model_validator(mode="before")
    @classmethod
    def _side_by_side(cls, value: Any) -> Any:
        """The task's keys stand beside the part's own."""
        if not isinstance(value, Mapping) or isinstance(value.get("task"), Settings):
            return value
        own = {key: item for key, item in value.items() if key in OF_THE_PART}
        return own | {"task": {key: item for key, item in value.items() if key not in OF_THE_PART}}

    @model_validator(mode="after")
    def _names(self) -> PartSettings:
        known = (*self.task.columns, *self.task.target_columns)
        for name in self.columns:
            if name not in known:
                raise ValueError(say(f"`columns`: the task reads no `{name}`, but {', '.join(known)}",
                                     f"`columns`：该任务不读取 `{name}`，而是 {', '.join(known)}"))
        return self

    @model_serializer(mode="plain")
    def _flat(self) -> dict[str, Any]:
        return {**self.task.model_dump(mode="json"), "weight": self.weight, "columns": self.columns}

    @property
    def inputs(self) -> tuple[str, ...]:
        """The rows' names of the columns that are read to answer."""
        return tuple(self.columns.get(name, name) for name in self.task.columns)

    @property
    def targets(self) -> tuple[str, ...]:
        """The rows' names of the columns that are learned."""
        return tuple(self.columns.get(name, name) for name in self.task.target_columns)


class JointSettings(Settings):
    """tasks: name → the settings of a task, with `weight` and `columns`."""

    type: Literal["joint"] = "joint"
    tasks: dict[str, PartSettings] = Field(min_length=1)

    @field_validator("tasks")
    @classmethod
    def _good_names(cls, tasks: dict[str, PartSettings]) -> dict[str, PartSettings]:
        for name in tasks:
            if not name.isidentifier() or hasattr(nn.ModuleDict, name) or name in _INPUTS:
                raise ValueError(say(f"`{name}` cannot be the name of a task: take a word of letters and digits",
                                     f"`{name}` 不能作任务名：请用由字母与数字组成的词"))
        return tasks

    @property
    def columns(self) -> tuple[str, ...]:
        return self.columns_of(())[0]

    @property
    def target_columns(self) -> tuple[str, ...]:
        return self.columns_of(())[1]

    def columns_of(self, names: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The columns read and those learned by the parts of these names; of none, by all."""
        parts = [self.tasks[name] for name in tuple(names) or self.tasks]
        inputs = dict.fromkeys(column for part in parts for column in part.inputs)
        targets = dict.fromkeys(column for part in parts for column in part.targets if column not in inputs)
        return tuple(inputs), tuple(targets)

    @property
    def head_kinds(self) -> frozenset[str]:
        return frozenset()  # on a bare body


@dataclass(frozen=True)
class Joint:
    """`fit`: the parts once they know what is learned from the rows alone."""

    settings: JointSettings
    tokenizer: Tokenizer
    lengths: Lengths
    fit: Mapping[str, Task] | None = None

    @property
    def name(self) -> str:
        """Of one part, where it stands alone."""
        return "joint" if len(self.settings.tasks) > 1 else next(iter(self.settings.tasks))

    def plain(self) -> tuple[Task, Callable[[Mapping[str, Any]], Mapping[str, Any]]]:
        """The task of a part that stands alone, and rows under the names that it knows. UsageError for several."""
        if len(self.parts) > 1:
            raise UsageError(say("the model has several tasks", "该模型有多个任务"), where=", ".join(self.parts),
                             mend=f"--task {next(iter(self.parts))}")
        [(name, part)] = self.parts.items()
        return part, lambda row: self.row_of(name, row)

    def only(self, name: str) -> Joint:
        """One part, to be asked or measured by itself."""
        settings = self.settings.model_copy(update={"tasks": {name: self.settings.tasks[name]}})
        return replace(self, settings=settings, fit={name: self.parts[name]})

    @cached_property
    def parts(self) -> Mapping[str, Task]:
        return self.fit or {name: _PARTS[part.task.type](part.task, self.tokenizer, self.lengths)
                            for name, part in self.settings.tasks.items()}

    @property
    def heads(self) -> Mapping[str, int]:
        return {head_name(name, kind): number for name, part in self.parts.items()
                for kind, number in part.heads.items()}

    # Rows -----------------------------------------------------------------------------------------------

    def row_of(self, name: str, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """The row under the names that the part knows; a list of words that stands for a text is one."""
        columns = self.settings.tasks[name].columns
        own = {standard: row[column] for standard, column in columns.items() if column in row}
        return {**row, **{standard: joined(value) if standard in STRINGS and isinstance(value, list) else value
                          for standard, value in own.items()}}

    def _has(self, row: Mapping[str, Any], columns: Iterable[str]) -> bool:
        return all(row.get(column) not in (None, "") for column in columns)

    def learns(self, name: str, row: Mapping[str, Any]) -> bool:
        """Whether the row has all that the part reads and learns."""
        part = self.settings.tasks[name]
        return self._has(row, (*part.inputs, *part.targets))

    @cached_property
    def _groups(self) -> list[list[str]]:
        """Parts that read the same columns; the first of a group lays the row out: one that looks at single tokens, if
        there is any."""
        groups: dict[tuple[str, ...], list[str]] = {}
        for name, part in self.settings.tasks.items():
            groups.setdefault(part.inputs, []).append(name)
        return [sorted(names, key=lambda name: isinstance(self.settings.tasks[name].task, TextSettings))
                for names in groups.values()]

    def fitted(self, rows: Iterable[Mapping[str, Any]]) -> Joint:
        rows = list(rows)
        fit = {}
        for name, part in self.parts.items():
            own = [self.row_of(name, row) for row in rows if self.learns(name, row)]
            if not own:
                raise DataError(say(f"no training row has all that `{name}` reads and learns",
                                    f"没有训练数据包含 `{name}` 所需的全部列"), where=f"tasks.{name}",
                                mend=say("needed: ", "需要：") + ", ".join(
                                    (*self.settings.tasks[name].inputs, *self.settings.tasks[name].targets)))
            fit[name] = part.fitted(own)
        return replace(self, fit=fit)

    def tuned(self, rows: list[Mapping[str, Any]], outputs: Callable[[], list[list[Any]]]) -> Joint:
        fit = {}
        for name, part in self.parts.items():
            places = [place for place, row in enumerate(rows) if self.learns(name, row)]

            def own_outputs(name: str = name, places: list[int] = places) -> list[list[Any]]:
                found = outputs()
                return [_own(name, found[place]) for place in places]

            fit[name] = part.tuned([self.row_of(name, rows[place]) for place in places], own_outputs)
        return self if all(fit[name] is part for name, part in self.parts.items()) else replace(self, fit=fit)

    def encode(self, number: int, row: Mapping[str, Any], *, with_targets: bool) -> Encoded:
        """The sequences of each group of parts that read the same, with what each of them learns of the row."""
        sequences: list[Sequence] = []
        cut_tokens = 0
        for host, *guests in self._groups:
            asked = [name for name in (host, *guests) if not with_targets or self.learns(name, row)]
            of_text = isinstance(self.parts[host], Tagging) and not with_targets and self._has(row, ("text",))
            if not asked or not (self._has(row, self.settings.tasks[host].inputs) or of_text):
                continue
            encoded = self.parts[host].encode(number, self.row_of(host, row),
                                              with_targets=with_targets and host in asked)
            cut_tokens += encoded.cut_tokens
            for place, sequence in enumerate(encoded.sequences):
                tokens = {name if name in _INPUTS else f"{host}.{name}": values
                          for name, values in sequence.tokens.items()}
                values = {host: 1, **{f"{host}.{key}": value for key, value in sequence.values.items()}}
                if host not in asked:
                    values = {}
                # What belongs to the whole text, each of its windows learns; those of single tokens, the first alone.
                for guest in asked if place == 0 or isinstance(self.parts[host], TextTask) else ():
                    if guest != host:
                        own = self._targets(guest, row) if with_targets else {}
                        values |= {guest: 1, **{f"{guest}.{key}": value for key, value in own.items()}}
                if values:
                    sequences.append(replace(sequence, tokens=tokens, values=values))
        if not sequences and not with_targets:
            needed = " / ".join(", ".join(self.settings.tasks[host].inputs) for host, *_ in self._groups)
            raise DataError(say("the row has nothing that one of the tasks reads", "该行没有任何任务所读取的列"),
                            where=row_name(number),
                            mend=say(f"needed: {needed}", f"需要：{needed}"))
        return Encoded(sequences, cut_tokens)

    def _targets(self, name: str, row: Mapping[str, Any]) -> Mapping[str, Any]:
        part: Any = self.parts[name]  # a guest is a TextTask
        found: Mapping[str, Any] = part.targets(self.row_of(name, row))
        return found

    def build(self, rows: Iterable[Mapping[str, Any]], folder: Path, seed: int, source_hash: str) -> Built:
        encoded = [self.encode(number, row, with_targets=True) for number, row in enumerate(rows)]
        kept = [row for row in encoded if row.sequences]
        examples = Rows([row.sequences for row in kept])
        return Built(examples, len(kept), int(examples.lengths(0).sum()), sum(row.cut_tokens > 0 for row in kept),
                     sum(row.cut_tokens for row in kept), num_rows_skipped=len(encoded) - len(kept))

    # Learning -------------------------------------------------------------------------------------------

    def objective(self) -> Objective:
        """Each part's terms over the rows that it learns, `NAME.term`, times its weight."""
        objectives = {name: part.objective() for name, part in self.parts.items()}
        weights = {name: part.weight for name, part in self.settings.tasks.items()}

        def counts(batch: Batch) -> dict[str, float]:
            return {f"{name}.{term}": count for name, own, _ in _halves(batch, objectives)
                    for term, count in objectives[name].counts(own).items()}

        def terms(model: LanguageModel, batch: Batch) -> list[Term]:
            hidden_MD = hidden_of(model, batch.text)
            return [replace(term, name=f"{name}.{term.name}", weight=weights[name] * term.weight)
                    for name, own, places_X in _halves(batch, objectives)
                    for term in objectives[name].terms(_view(model, name, hidden_MD, places_X), own)]

        return Objective(counts, terms)

    # Answers --------------------------------------------------------------------------------------------

    def outputs(self, model: LanguageModel, batch: Batch) -> list[Any]:
        """For each sequence {name of a part: its output}, of the parts that read it."""
        hidden_MD = hidden_of(model, batch.text)
        found: list[dict[str, Any]] = [{} for _ in batch.text.lengths]
        for name, own, places_X in _halves(batch, self.parts):
            outputs = self.parts[name].outputs(_view(model, name, hidden_MD, places_X), own)
            marks = (batch.text.values[name] == 1).nonzero().squeeze(1).tolist()
            for place, output in zip(marks, outputs, strict=True):
                found[place][name] = output
        return found

    def pooled(self, outputs: list[Any]) -> dict[str, Any]:
        """Of each part that reads the row what its own `pooled` gives."""
        parts: Mapping[str, Any] = self.parts
        return {name: part.pooled(own) for name, part in parts.items() if (own := _own(name, outputs))}

    def mean(self, found: list[dict[str, Any]]) -> list[Any]:
        parts: Mapping[str, Any] = self.parts
        return [{name: parts[name].mean([each[name] for each in found])[0] for name in found[0]}]

    def decode(self, row: Mapping[str, Any], outputs: list[Any]) -> dict[str, Any]:
        """The parts' answers in one; under their names where two say something under the same key."""
        answers = {name: part.decode(self.row_of(name, row), own) for name, part in self.parts.items()
                   if (own := _own(name, outputs))}
        if self._apart:
            return answers
        return {key: value for answer in answers.values() for key, value in answer.items()}

    @cached_property
    def _apart(self) -> bool:
        """Whether parts would answer under the same keys: `score`, `label` and `scores` are those of whole texts."""
        return sum(isinstance(part.task, (TextSettings, SpanQASettings)) for part in self.settings.tasks.values()) > 1

    def measure(self, rows: list[Mapping[str, Any]], outputs: list[list[Any]], seed: int) -> Measured:
        """Each part's metrics over the rows that it can be measured on. `exact`, of those whose answers are right or
        wrong, is over the rows that all of them can."""
        metrics: dict[str, Estimate] = {}
        statistics: dict[str, Any] = {}
        details: dict[str, Any] = {}
        right: dict[int, list[bool]] = {}
        for name, part in self.parts.items():
            places = [place for place, row in enumerate(rows) if self.learns(name, row)]
            if not places:
                continue
            own_rows = [self.row_of(name, rows[place]) for place in places]
            own_outputs = [_own(name, outputs[place]) for place in places]
            measured = part.measure(own_rows, own_outputs, seed)
            if len(self.parts) == 1:
                return measured if len(places) == len(rows) else replace(measured, statistics={})
            metrics |= {f"{name}.{metric}": estimate for metric, estimate in measured.metrics.items()}
            if len(places) == len(rows):  # its rows are those that are drawn
                statistics |= {f"{name}.{metric}": each for metric, each in measured.statistics.items()}
            details[name] = {"n": measured.n, **measured.details}
            correct = getattr(part, "correct", None)
            if correct is not None:
                for place, row, own in zip(places, own_rows, own_outputs, strict=True):
                    right.setdefault(place, []).append(correct(row, own))
        num_decided = sum(hasattr(part, "correct") for part in self.parts.values())
        whole = [all(each) for each in right.values() if len(each) == num_decided]
        if whole and num_decided > 1:
            metrics["exact"] = wilson(sum(whole), len(whole))
            details["exact"] = {"n": len(whole)}
        return Measured(len(rows), metrics, details, statistics)

    def cards(self) -> dict[str, dict[str, Any]]:
        """What a ModelDir holds of each part."""
        return {name: {**self.parts[name].card(), "weight": part.weight, "columns": part.columns}
                for name, part in self.settings.tasks.items()}

    def card(self) -> dict[str, Any]:
        return {"type": "joint", "tasks": self.cards(), "lengths": self.lengths.model_dump(mode="json")}


def joint_of(cards: Mapping[str, Mapping[str, Any]], tasks: Mapping[str, Task], tokenizer: Tokenizer,
             where: str) -> Joint:
    """The joint task of a ModelDir's parts, which were made from their cards."""
    parts = {name: {key: value for key, value in card.items() if key != "lengths"} for name, card in cards.items()}
    lengths = parse(Lengths, next(iter(cards.values()))["lengths"], where)
    return Joint(parse(JointSettings, {"type": "joint", "tasks": parts}, where), tokenizer, lengths, dict(tasks))


# A batch of rows of several parts ---------------------------------------------------------------------


def _halves(batch: Batch, names: Iterable[str]) -> Iterator[tuple[str, Batch, Tensor | None]]:
    """(part, its half of the batch, the places of its tokens in the whole; None where the half is all of it)."""
    flat = batch.text
    for name in names:
        mark_B = flat.values.get(name)
        if mark_B is None or not bool((mark_B == 1).any()):
            continue
        tokens = {key: value for key, value in flat.tokens.items() if key in _INPUTS} | _stripped(flat.tokens, name)
        values = _stripped(flat.values, name)
        if bool((mark_B == 1).all()):
            yield name, Batch({TEXT: Flat(tokens, values, flat.lengths, flat.rows)}), None
            continue
        chosen_B = (mark_B == 1).nonzero().squeeze(1)
        lengths_B = torch.tensor(flat.lengths, device=mark_B.device)
        places_X = (mark_B == 1).repeat_interleave(lengths_B).nonzero().squeeze(1)
        kept = chosen_B.tolist()
        yield name, Batch({TEXT: Flat(
            {key: value.index_select(0, places_X) for key, value in tokens.items()},
            {key: value.index_select(0, chosen_B) for key, value in values.items()},
            tuple(flat.lengths[i] for i in kept), tuple(flat.rows[i] for i in kept))}), places_X


def _stripped(values: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Those of a part, under the names that it knows."""
    return {key.removeprefix(f"{name}."): value for key, value in values.items() if key.startswith(f"{name}.")}


def _view(model: Any, name: str, hidden_MD: Tensor, places_X: Tensor | None) -> Any:
    return TaskView(model, name, hidden_MD if places_X is None else hidden_MD.index_select(0, places_X))


def _own(name: str, outputs: list[Any]) -> list[Any]:
    """A part's outputs among those of a row's sequences."""
    return [output[name] for output in outputs if name in output]
