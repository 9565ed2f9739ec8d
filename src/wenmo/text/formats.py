"""Text streams → records: how each format cuts a file into rows.

In: a file whose format and encoding are known. Out: `Record`s in the file's order, the broken ones among them
with the reason, so that the intake can put them aside. A file whose frame is broken (a JSON array that does
not close, a damaged Parquet file, parallel files of different lengths) is a DataError: past that place nothing can be
trusted.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, TextIO

import yaml

from wenmo.errors import DataError, MissingExtra, say
from wenmo.text.archive import open_bytes, packing, reading, stored
from wenmo.text.conll import conll, conllu
from wenmo.text.encoding import open_text
from wenmo.text.json_shapes import dialogues, shaped
from wenmo.text.json_text import json_array, json_lines, squad
from wenmo.text.records import Layout, Record, Unit, misfit, misfits_in
from wenmo.text.tables import plain_table, quoted_table


def records(layout: Layout) -> Generator[Record]:
    """Every record of the file, a table's header among them; blank lines are none."""
    with reading(layout.path):
        if layout.format == "parquet":
            yield from _parquet(layout.path, layout.columns)
            return
        if layout.beside:
            yield from _parallel(layout)
            return
        # csv keeps the line ends inside quotes as they are; elsewhere \r\n and \r are line ends too.
        newline = "" if layout.quoted else None
        with open_text(layout.path, layout.encoding, newline) as stream:
            for record in _found(layout, stream):
                fault = record.fault or misfit(record.raw, layout.encoding)
                yield shaped(record._replace(fault=fault), layout.shape) if fault or layout.shape else record


def _found(layout: Layout, stream: TextIO) -> Iterator[Record]:
    match layout.format:
        case "txt":
            return _txt(stream, layout.unit)
        case "csv" | "tsv":
            table = quoted_table if layout.quoted else plain_table
            return table(stream, layout.separator)
        case "conll":
            return conll(stream, layout.separator)
        case "conllu":
            return conllu(stream)
        case "jsonl":
            return json_lines(stream)
        case "squad":
            return squad(stream, layout.path)
        case "yaml":
            return _yaml(stream, layout.path)
        case _:
            return json_array(stream, layout.path)


# Text -------------------------------------------------------------------------------------------------


def _txt(stream: TextIO, unit: Unit) -> Iterator[Record]:
    if unit == "file":
        text = stream.read()
        if text.strip():
            yield Record(1, [text], text)
        return
    lines: list[str] = []
    number = 0
    for number, line in enumerate(stream, 1):
        line = line.removesuffix("\n")
        if unit == "line":
            if line.strip():
                yield Record(number, [line], line)
        elif line.strip():
            lines.append(line)
        elif lines:
            text = "\n".join(lines)
            yield Record(number - len(lines), [text], text)
            lines = []
    if lines:
        text = "\n".join(lines)
        yield Record(number - len(lines) + 1, [text], text)


def _parallel(layout: Layout) -> Iterator[Record]:
    """The n-th lines of several files together; a line that is blank in all of them is none."""
    encodings = [layout.encoding, *(other.encoding for other in layout.beside)]
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(open_text(path, encoding))
                   for path, encoding in zip(layout.paths, encodings, strict=True)]
        for number, lines in enumerate(zip_longest(*streams), 1):
            if None in lines and any(line is not None and line.strip() for line in lines):
                raise _uneven(layout.paths, number - 1, [line is None for line in lines])
            fields = [(line or "").removesuffix("\n") for line in lines]
            if any(line.strip() for line in fields):
                fault = next(filter(None, map(misfit, fields, encodings)), "")
                yield Record(number, fields, "\t".join(fields), fault)


def _uneven(paths: Sequence[Path], lines: int, ended: Sequence[bool]) -> DataError:
    short = ", ".join(str(path) for path, over in zip(paths, ended, strict=True) if over)
    long = ", ".join(str(path) for path, over in zip(paths, ended, strict=True) if not over)
    return DataError(
        say(f"parallel files of different lengths: after {lines:,} lines one ends and another goes on",
            f"平行文件行数不同：{lines:,} 行之后，一个已结束而另一个还有"),
        where=say(f"ended: {short}; longer: {long}", f"已结束：{short}；更长：{long}"),
        mend=say("the n-th lines must belong together: check that the files are of one version",
                 "各文件的第 n 行须一一对应：请检查文件版本是否一致"),
    )


def _yaml(stream: TextIO, path: Path) -> Iterator[Record]:
    """Dialogues in YAML; every scalar is a text: `yes` is an answer, not a boolean."""
    try:
        value = yaml.load(stream, Loader=yaml.BaseLoader)  # knows strings, lists and mappings only
    except (yaml.YAMLError, RecursionError) as error:
        mark, what = getattr(error, "problem_mark", None), getattr(error, "problem", error)
        raise DataError(
            say(f"not valid YAML: {what}", f"不是合法的 YAML：{what}"),
            where=f"{path}:{mark.line + 1}" if mark else str(path),
            mend=say("check indentation, quotes and colons there", "检查该处的缩进、引号和冒号"),
        ) from error
    for number, fields in enumerate(dialogues(value), 1):
        yield Record(number, fields, json.dumps(fields, ensure_ascii=False))


# Parquet ----------------------------------------------------------------------------------------------


def parquet_columns(path: Path) -> list[str]:
    """The names in the file's schema."""
    with reading(path), _parquet_file(path) as file:
        names: list[str] = file.schema_arrow.names
        return names


def _parquet(path: Path, columns: Sequence[str]) -> Iterator[Record]:
    number = 0
    with _parquet_file(path) as file:
        for batch in file.iter_batches(batch_size=1024, columns=list(columns)):
            for fields in batch.to_pylist():
                number += 1
                raw = json.dumps(fields, ensure_ascii=False, default=str)
                yield Record(number, fields, raw, misfits_in(fields))


@contextlib.contextmanager
def _parquet_file(path: Path) -> Iterator[Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtra("pyarrow", "parquet", "Parquet") from error
    try:
        with open_bytes(path) as stream:
            whole = packing(path) or stored(path) != path
            yield parquet.ParquetFile(pyarrow.BufferReader(stream.read()) if whole else stream)
    except pyarrow.ArrowException as error:
        raise DataError(
            say(f"not a readable Parquet file: {error}", f"无法读取的 Parquet 文件：{error}"), where=str(path),
            mend=say("fetch or write the file again", "请重新获取或写出该文件"),
        ) from error
