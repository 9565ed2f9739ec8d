"""What a Task is: the meaning of a row, defined once for training, evaluation, the command line and the server.

    encode    a row → sequences (one, or several: windows, both sides of a pair, chosen and rejected)
    objective what training minimises on them
    outputs   a batch → one plain output a sequence
    decode    one row and its outputs → the answer a user sees
    measure   the rows and their outputs → metrics with intervals

A task names head kinds and no architecture; the boundary in between is `models.LanguageModel`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from wenmo.config import Count, Settings
from wenmo.data.examples import Examples
from wenmo.data.sequence import Batch, Sequence
from wenmo.errors import DataError, say
from wenmo.metrics import Estimate, Statistic
from wenmo.models import LanguageModel
from wenmo.objectives import Objective
from wenmo.text.tokenizer import Tokenizer

TooLong = Literal["head", "tail", "both", "window", "refuse"]
Span = tuple[int, int]  # from the first token to before the last
SHOWN = 40  # characters of a text in a message about it


class Lengths(Settings):
    """The longest sequence, and what happens to a longer text: which part of it is kept, that it is refused, or that it
    is read in windows, which share `overlap_tokens`. `pool`: what becomes of their answers, the mean or the largest."""

    max_tokens: Count = 128
    too_long: TooLong = "head"
    overlap_tokens: Count = 0
    pool: Literal["mean", "max"] = "mean"

    def fit(self, ids: list[int], room: int, text: str) -> list[int]:
        """At most `room` of the text's ids. Raises DataError if they are too many and the recipe says `refuse`."""
        if len(ids) <= room:
            return ids
        assert self.too_long != "window", "a text is fitted, or cut into windows"
        if self.too_long == "refuse":
            raise DataError(
                say(f"a text of {len(ids)} tokens, {room} fit", f"文本有 {len(ids)} 个词元，最多容纳 {room} 个"),
                where=" ".join(text[:SHOWN].split()) + "…",
                mend=say("shorten the text, raise data.max_tokens, or set data.too_long to head, tail or both",
                         "缩短文本、增大 data.max_tokens，或将 data.too_long 设为 head、tail 或 both"))
        if self.too_long == "head":
            return ids[:room]
        if self.too_long == "tail":
            return ids[len(ids) - room :]
        # The beginning and the end, a quarter and three quarters (Sun et al. 2019, §5.3.1, "head+tail").
        head = room // 4
        return ids[:head] + ids[len(ids) - (room - head) :]


def row_name(number: int) -> str:
    """How a fault says which row it means, counted from 0; stages/prepare/rows.py puts file and line in its place."""
    return say(f"row {number + 1}", f"第 {number + 1} 行")


def windows(num_tokens: int, room: int, overlap: int) -> list[Span]:
    """Where a text of so many tokens is cut into windows of at most `room`, each sharing `overlap` with the next.

    Every token stands in one at least; none of the windows but the only one is shorter than `room` (the last begins
    earlier instead), so that each token is read with as much of its neighbourhood as there is. An empty text has none.
    """
    assert 0 <= overlap < room
    if num_tokens <= room:
        return [(0, num_tokens)] if num_tokens else []
    starts = [*range(0, num_tokens - room, room - overlap), num_tokens - room]
    return [(start, start + room) for start in starts]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A row's sequences, and how many of its tokens did not fit."""

    sequences: list[Sequence]
    cut_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Built:
    """A corpus as examples for training, with what happened to its rows."""

    examples: Examples
    num_rows: int
    num_tokens: int
    num_rows_cut: int = 0
    num_tokens_cut: int = 0
    num_rows_skipped: int = 0  # not among num_rows: nothing is learned from them
    notes: tuple[str, ...] = ()  # what else there is to say of them, a line each


@dataclass(frozen=True, slots=True)
class Measured:
    """Metrics with intervals over `n` items, and what else was seen on the way.

    `statistics`: metrics as functions of the rows drawn (metrics/comparison.py), so that two models can be compared.
    """

    n: int
    metrics: Mapping[str, Estimate]
    details: Mapping[str, Any] = field(default_factory=dict)
    statistics: Mapping[str, Statistic] = field(default_factory=dict)


class TaskSettings(Protocol):
    """Known before a tokenizer is: which columns a row must have, and which heads a model."""

    @property
    def columns(self) -> tuple[str, ...]:
        """To be answered."""
        ...

    @property
    def target_columns(self) -> tuple[str, ...]:
        """Besides, to be learned from or measured on."""
        ...

    @property
    def head_kinds(self) -> frozenset[str]: ...


class Task(Protocol):
    """Made from its settings, a tokenizer and Lengths; see tasks/__init__.py for the table."""

    @property
    def settings(self) -> TaskSettings: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def name(self) -> str: ...

    @property
    def heads(self) -> Mapping[str, int]:
        """Head kind → number of outputs."""
        ...

    def fitted(self, rows: Iterable[Mapping[str, Any]]) -> Task:
        """This task with what must be learned from the training rows alone (labels, class weights)."""
        ...

    def tuned(self, rows: list[Mapping[str, Any]], outputs: Callable[[], list[list[Any]]]) -> Task:
        """This task with what is chosen after training on the rows for choosing, from what the model makes of them
        (thresholds). `outputs` gives these, as for `measure`; who chooses nothing does not ask."""
        ...

    def encode(self, number: int, row: Mapping[str, Any], *, with_targets: bool) -> Encoded:
        """Raises DataError for a row that cannot be encoded."""
        ...

    def build(self, rows: Iterable[Mapping[str, Any]], folder: Path, seed: int, source_hash: str) -> Built:
        """Training examples; a corpus too large for memory goes to token shards in `folder`."""
        ...

    def objective(self) -> Objective: ...

    def outputs(self, model: LanguageModel, batch: Batch) -> list[Any]:
        """One output for each example of the batch (each sequence of its first role), in order. The model is in eval
        mode."""
        ...

    def decode(self, row: Mapping[str, Any], outputs: list[Any]) -> dict[str, Any]:
        """The answer to one row from the row, as the user gave it, and the outputs of its sequences."""
        ...

    def measure(self, rows: list[Mapping[str, Any]], outputs: list[list[Any]], seed: int) -> Measured: ...

    def card(self) -> dict[str, Any]:
        """What a ModelDir must hold to make this task again."""
        ...
