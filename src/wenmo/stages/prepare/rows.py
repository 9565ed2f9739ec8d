"""Rows: what is learned from and chosen by, handed on one after the other.

In: rows (data/sources.py). Out: the rows to learn from and to choose by, and for a fault in one its file and line. It
stands alone since recipes (corpus.py) and paths on a command line (given.py) both end in rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from wenmo.data.sources import SourceRows
from wenmo.errors import DataError
from wenmo.tasks import Task
from wenmo.tasks.task import row_name
from wenmo.text.intake import Row
from wenmo.text.messages import texts_of
from wenmo.text.words import joined

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Rows:
    """Training rows, source by source, and the rows for choosing; no text stands in both."""

    train: list[SourceRows]
    choose: list[Row]

    @property
    def num_train(self) -> int:
        return sum(len(source.rows) for source in self.train)

    def texts(self, columns: Sequence[str]) -> Iterator[str]:
        for source in self.train:
            for row in source.rows:
                for column in columns:
                    if column not in row.values:  # of another task
                        continue
                    value = row.values[column]
                    if column == "messages":
                        yield from texts_of(value)
                    else:
                        yield joined([str(word) for word in value]) if column == "tokens" else str(value)


@contextmanager
def placed(rows: Sequence[Row]) -> Iterator[Iterator[Values]]:
    """The rows as a task takes them, one after the other. A DataError in between is of the row in hand, and says its
    file and line: rows held out, copies and bad rows have gone by then, and its number among these says nothing."""
    in_hand: list[tuple[int, Row]] = []

    def handed() -> Iterator[Values]:
        for number, row in enumerate(rows, 1):
            in_hand[:] = [(number, row)]
            yield row.values
        in_hand.clear()

    try:
        yield handed()
    except DataError as error:
        for number, row in in_hand:
            among, stands = row_name(number - 1), f"{row.file}:{row.number}"
            error.where = error.where.replace(among, stands) if among in error.where else f"{stands}, {error.where}"
        raise


def place_fault(task: Task, rows: Sequence[Row]) -> None:
    """Reads rows again in which a task has found a fault, to raise it with its file and line."""
    with placed(rows) as values:
        for number, row in enumerate(values):
            task.encode(number, row, with_targets=True)


def values_of(rows: Iterable[Row]) -> list[Values]:
    return [row.values for row in rows]
