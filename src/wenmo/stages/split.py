"""`wenmo split`: one file of rows → parts that share no text, such as train, choose and report.

Duplicates (rows with the same texts; for translations, with the same source) are dropped first: split before that, and
test rows would stand in the training set. Which rows a part gets depends on the seed and on the rows' own contents
alone, not on their order. With `group`, rows that are equal in a column (questions about one article) stay together.
Parts are written as JSON lines under the standard names; `split.json` beside them says from what, and their hashes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wenmo.data.given import open_given
from wenmo.data.sources import SourceRows, carve, fingerprint, read_opened
from wenmo.errors import DataError, UsageError, say
from wenmo.files import sha256_file, storage_errors, write_json, write_jsonl
from wenmo.seeds import key
from wenmo.stages.out_folder import refuse_inputs
from wenmo.text.intake import Row
from wenmo.text.source import STRINGS, MissingColumn

_log = logging.getLogger(__name__)
RECORD = "split.json"
USUAL = (("text", "label"), ("text_a", "text_b", "label"), ("question", "context", "answers"), ("messages",),
         ("tokens", "tags"), ("source", "target"), ("text",))


def split(data: Sequence[str], out: Path, parts: Sequence[str], *, columns: Sequence[str] | None = None,
          source: Mapping[str, Any] | None = None, group: str | None = None, seed: int = 0) -> dict[str, Any]:
    """Writes OUT/NAME.jsonl for each `NAME=ROWS`; the one part without a number takes the rest.

    `columns`: those that are kept; left out, the first of USUAL that the first file has. Gives {"seed", "sources":
    {path: sha256}, "parts": {name: {"rows", "sha256"}}}. Raises UsageError, DataError.
    """
    numbers, rest_name = _parsed(parts)
    columns = columns or _usual_columns(data[0], source or {})
    names = (*columns, group) if group is not None and group not in columns else tuple(columns)
    opened = [open_given(path, names, source or {}, {}) for path in data]
    asked = tuple(column for column in columns if column in STRINGS and column != "target") or (columns[0],)
    found = read_opened(opened, asked, None)
    for rows in found:
        _log.info(str(rows))
    for name in (*numbers, rest_name):
        refuse_inputs(out / f"{name}.jsonl", *data)
    made = _divided(found, numbers, rest_name, group, seed)
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    _log.info(say(f"each row keeps: {', '.join(columns)}; other columns are left out (--columns)",
                  f"每行保留：{'、'.join(columns)}；其他列不写入（--columns）"))
    record: dict[str, Any] = {"seed": seed, "sources": {}, "parts": {}}
    for path, rows in zip(data, found, strict=True):
        record["sources"][path] = fingerprint(rows.source)
    for name, part in made.items():
        file = out / f"{name}.jsonl"
        write_jsonl(file, ({column: row.values[column] for column in columns} for row in part))
        record["parts"][name] = {"rows": len(part), "sha256": sha256_file(file)}
        _log.info(say(f"{file}: {len(part):,} rows", f"{file}：{len(part):,} 行"))
    write_json(out / RECORD, record)
    return record


def _usual_columns(path: str, source: Mapping[str, Any]) -> tuple[str, ...]:
    for columns in USUAL:
        try:
            open_given(path, columns, source, {})
        except DataError as error:
            if isinstance(error, MissingColumn) or isinstance(error.__cause__, MissingColumn):
                continue
            raise
        return columns
    return USUAL[0]  # to be told that these are not there


def _parsed(parts: Sequence[str]) -> tuple[dict[str, int], str]:
    """`["report=5000", "train"]` → ({"report": 5000}, "train")."""
    numbers: dict[str, int] = {}
    rest = []
    for part in parts:
        name, equals, number = part.partition("=")
        if not name.replace("-", "").replace("_", "").isalnum() or (equals and not number.isdecimal()):
            raise UsageError(say("a part is NAME=ROWS, or NAME for the rest",
                                 "每一部分写作 名称=行数，其余部分只写名称"),
                             where=part, mend="report=1000 train")
        if equals:
            numbers[name] = int(number)
        else:
            rest.append(name)
    if len(rest) != 1 or rest[0] in numbers or len(numbers) + 1 != len(parts):
        raise UsageError(say("exactly one part takes the rest, and each name stands once",
                             "须有且只有一个部分取其余各行，且名称不得重复"), where=" ".join(parts),
                         mend="report=1000 choose=500 train")
    return numbers, rest[0]


def _divided(found: Sequence[SourceRows], numbers: Mapping[str, int], rest_name: str, group: str | None,
             seed: int) -> dict[str, list[Row]]:
    """name → rows, in the order of the source."""
    rest = [row for rows in found for row in rows.rows]
    made: dict[str, list[Row]] = {}
    for name, number in numbers.items():
        lot = key("split", seed, name)
        rest, made[name] = (carve(rest, number, lot, f"{name}={number}") if group is None else
                            _carve_groups(rest, number, lot, group))
    return {**made, rest_name: rest}


def _carve_groups(rows: Sequence[Row], number: int, seed: int, group: str) -> tuple[list[Row], list[Row]]:
    """Whole groups, drawn by lot, as many as fit into `number` rows: where a large one would not, smaller ones may."""
    members: dict[str, int] = {}
    for row in rows:
        name = str(row.values[group])
        members[name] = members.get(name, 0) + 1
    drawn: set[str] = set()
    filled = 0
    for name in sorted(members, key=lambda name: key(seed, "group", name)):
        if filled + members[name] <= number:
            drawn.add(name)
            filled += members[name]
    if not drawn or len(drawn) == len(members):
        raise DataError(say(f"{len(members)} groups cannot give a part of {number:,} rows",
                            f"{len(members)} 个组无法分出 {number:,} 行"), where=group,
                        mend=say("ask for another number of rows", "请更改行数"))
    return ([row for row in rows if str(row.values[group]) not in drawn],
            [row for row in rows if str(row.values[group]) in drawn])
