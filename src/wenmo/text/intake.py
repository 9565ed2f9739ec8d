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
from wenmo.text.formats import records
from wenmo.text.json_shapes import from_parts
from wenmo.text.layout import TABLES, empty
from wenmo.text.normalize import NormalizeSettings as NormalizeSettings
from wenmo.text.normalize import Placeholders, normalized, normalizer
from wenmo.text.records import Record
from wenmo.text.source import LABELS, LISTS, PARTS, SEVERAL, STRINGS, Found
from wenmo.text.source import Source as Source
from wenmo.text.source import SourceSettings as SourceSettings
from wenmo.text.source import open_source as open_source
from wenmo.text.source_settings import useless


@dataclass(frozen=True, slots=True)
class Row:
    """`number` counts from 1: the line in a text file (where the row begins), else the record."""

    values: dict[str, Any]
    file: str
    number: int


@dataclass(frozen=True, slots=True)
class Unusable:
    """A row that could not be used, and why."""

    reason: str
    file: str
    number: int


def read_rows(source: Source, counts: Counts, quarantine: Quarantine | None = None) -> Iterator[Row]:
    """The rows of all files, one at a time; `counts` is brought up to date before each is given out.

    DataError for a file without a single row, and where not one row of the source could be used.
    """
    example = ""
    for row in read_all(source, counts, quarantine):
        if isinstance(row, Row):
            yield row
        else:
            example = example or f"{row.file}:{row.number}: {row.reason}"
    if counts.read == counts.quarantined:
        raise DataError(
            say(f"not one of {counts.read:,} rows could be used", f"{counts.read:,} 行中没有一行可用"), where=example,
            mend=say("check `columns`, `format` and `encoding` of this source",
                     "请检查该数据源的 `columns`、`format` 和 `encoding`"),
        )


def read_all(source: Source, counts: Counts, quarantine: Quarantine | None = None) -> Iterator[Row | Unusable]:
    """`read_rows`, with the bad rows in their places: for answers that must come in the order of the questions."""
    settings = source.settings
    normalize = normalizer(settings.normalize)
    fill = Placeholders(settings.fill)
    for found in source.files:
        before = counts.read
        with contextlib.closing(_body(found, settings.surplus)) as body:
            for record in body:
                counts.read += 1
                try:
                    if record.fault:
                        raise _BadRow(record.fault)
                    values = fill(_values(record.fields, found, source, normalize))
                except _BadRow as bad:
                    counts.quarantined += 1
                    if quarantine is not None:
                        quarantine.add(found.file, record.number, str(bad), record.raw)
                    yield Unusable(str(bad), found.file, record.number)
                    continue
                if settings.limit is not None and counts.kept + counts.duplicate >= settings.limit:
                    counts.cut += 1
                    continue
                counts.kept += 1
                yield Row(values, found.file, record.number)
        if counts.read == before:
            raise empty(found.layout.path)
    if fill.unseen:
        raise useless("fill." + fill.unseen[0], say(f"no row says {{{{{fill.unseen[0]}}}}}",
                                                    f"没有一行含有 {{{{{fill.unseen[0]}}}}}"), settings)


# One row ----------------------------------------------------------------------------------------------


class _BadRow(Exception):
    """Why this row is put aside; never leaves this module."""


def _body(found: Found, surplus: str) -> Generator[Record]:
    """The file's records after its header, each of the width that the file has."""
    rows = records(found.layout)
    if found.layout.format not in (*TABLES, "conll"):
        yield from rows
        return
    if found.header and found.layout.format in TABLES:
        next(rows, None)
    width = len(found.columns)
    for record in rows:
        fields = record.fields
        if len(fields) > width and surplus != "quarantine":
            last = [found.layout.separator.join(fields[width - 1 :])] if surplus == "join" else [fields[width - 1]]
            record = record._replace(fields=[*fields[: width - 1], *last])
        elif not record.fault and len(fields) != width:
            record = record._replace(fault=say(f"{len(fields)} fields instead of {width}",
                                               f"应有 {width} 个字段，实有 {len(fields)} 个"))
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
        if name in SEVERAL and isinstance(value, list):
            value = _texts(value, here)
        elif name in STRINGS or name in PARTS:
            value = _text(value, here, source.settings.join)
        if name in LISTS:
            value = _list(value, here)
        if name in source.settings.before and isinstance(value, str):
            value = value.partition(source.settings.before[name])[0].strip()
        if normalize is not None and name not in LABELS:
            value = normalized(value, normalize)
        if name in source.required and _is_empty(name, value):
            raise _BadRow(say(f"`{here}` is empty", f"`{here}` 为空"))
        values[name] = value
    if "tokens" in values and "tags" in values and len(values["tokens"]) != len(values["tags"]):
        num_tokens, num_tags = len(values["tokens"]), len(values["tags"])
        raise _BadRow(say(f"{num_tokens} tokens and {num_tags} tags", f"{num_tokens} 个词元，却有 {num_tags} 个标签"))
    marked = isinstance(fields, dict) and "label" not in values and fields.get("label") is False
    if marked and "messages" in source.required:
        raise _BadRow(say("`label` is false: the answer is marked as one not to give",
                          "`label` 为 false：该回答被标记为不应给出的回答"))
    values |= source.settings.constants
    return from_parts(values) if "messages" in source.required else values


def _is_empty(name: str, value: Any) -> bool:
    """A question may have no answer, a sentence no entities, a text none of the labels."""
    if isinstance(value, str):
        return not value.strip() and name != "labels"
    return value in ([], {}) and name not in ("answers", "entities", "labels")


def _list(value: Any, here: str) -> list[Any]:
    """A text is cut at white space: `O O B-name`."""
    if isinstance(value, str):
        return value.split()
    if isinstance(value, list) and all(isinstance(item, (str, int)) for item in value):
        return value
    raise _BadRow(say(f"`{here}` is no list of words", f"`{here}` 不是词的列表"))


def _texts(values: list[Any], here: str) -> list[str]:
    """Those that say something."""
    if not all(isinstance(value, str) for value in values):
        raise _BadRow(say(f"`{here}` is no list of texts", f"`{here}` 不是文本的列表"))
    return [value for value in values if value.strip()]


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
