"""Files → rows: what a source of the recipe says, read one row at a time.

In: a `Source`, opened and checked (text/source.py). Out: `Row`s with the standard column names, the same ones in
the same order every time; counts that add up; and a quarantine file with the rows that could not be used. A bad
row costs itself. A fault of a whole file or of the settings is an error.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

from wenmo.errors import DataError, say
from wenmo.text.counts import Counts as Counts
from wenmo.text.counts import Quarantine as Quarantine
from wenmo.text.formats import Record, records
from wenmo.text.normalize import NormalizeSettings as NormalizeSettings
from wenmo.text.normalize import normalizer
from wenmo.text.source import LABELS, STRINGS, Found, empty
from wenmo.text.source import Source as Source
from wenmo.text.source import SourceSettings as SourceSettings
from wenmo.text.source import open_source as open_source


@dataclass(frozen=True, slots=True)
class Row:
    """`number` counts from 1: the line in a text file (where the row begins), else the record."""

    values: dict[str, Any]
    file: str
    number: int


def read_rows(source: Source, counts: Counts, quarantine: Quarantine | None = None) -> Iterator[Row]:
    """The rows of all files, one at a time; `counts` is brought up to date before each is given out.

    DataError for a file without a single row, and where not one row of the source could be used.
    """
    settings = source.settings
    normalize = normalizer(settings.normalize)
    example = ""
    for found in source.files:
        before = counts.read
        with contextlib.closing(_body(found)) as body:
            for record in body:
                counts.read += 1
                try:
                    if record.fault:
                        raise _BadRow(record.fault)
                    values = _values(record.fields, found, source, normalize)
                except _BadRow as bad:
                    counts.quarantined += 1
                    example = example or f"{found.file}:{record.number}: {bad}"
                    if quarantine is not None:
                        quarantine.add(found.file, record.number, str(bad), record.raw)
                    continue
                if settings.limit is not None and counts.kept + counts.duplicate >= settings.limit:
                    counts.cut += 1
                    continue
                counts.kept += 1
                yield Row(values, found.file, record.number)
        if counts.read == before:
            raise empty(found.layout.path)
    if counts.read == counts.quarantined:
        raise DataError(
            say(f"not one of {counts.read:,} rows could be used", f"{counts.read:,} 行中没有一行可用"), where=example,
            mend=say("check `columns`, `format` and `encoding` of this source",
                     "请检查该数据源的 `columns`、`format` 和 `encoding`"),
        )


# One row ----------------------------------------------------------------------------------------------


class _BadRow(Exception):
    """Why this row is put aside; never leaves this module."""


def _body(found: Found) -> Generator[Record]:
    """The file's records after its header, each of the width that the file has."""
    rows = records(found.layout)
    if found.layout.format not in ("csv", "tsv"):
        yield from rows
        return
    if found.header:
        next(rows, None)
    width = len(found.columns)
    for record in rows:
        if not record.fault and len(record.fields) != width:
            record = record._replace(fault=say(f"{len(record.fields)} fields instead of {width}",
                                               f"应有 {width} 个字段，实有 {len(record.fields)} 个"))
        yield record


def _values(fields: Any, found: Found, source: Source, normalize: Callable[[str], str] | None) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, key in found.take.items():
        value = fields.get(key) if isinstance(fields, dict) else fields[key]
        here = found.name(key)
        if value is None or value != value:  # NaN is how tables write null
            if name in source.required:
                raise _BadRow(say(f"`{here}` is missing or null", f"`{here}` 缺失或为空值"))
            continue
        if name in STRINGS:
            value = _text(value, here, source.settings.join)
        if normalize is not None and name not in LABELS:
            value = _mapped(value, normalize)
        if name in source.required and (not value.strip() if isinstance(value, str) else value in ([], {})):
            raise _BadRow(say(f"`{here}` is empty", f"`{here}` 为空"))
        values[name] = value
    return values | source.settings.constants


def _text(value: Any, here: str, join: str | None) -> str:
    if isinstance(value, str):
        return value
    if join is not None and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return join.join(value)
    kind = type(value).__name__
    if isinstance(value, list):
        raise _BadRow(say(f"`{here}` is a list, not a text (`join` makes a text of a list of strings)",
                          f"`{here}` 是列表，不是文本（`join` 可把字符串列表合为一段文本）"))
    raise _BadRow(say(f"`{here}` is {kind}, not a text", f"`{here}` 是 {kind}，不是文本"))


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """`change` for the strings of a nested value (messages, tokens); keys stay."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_mapped(item, change) for item in value]
    if isinstance(value, dict):
        return {key: _mapped(item, change) for key, item in value.items()}
    return value
