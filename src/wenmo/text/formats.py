"""Text streams → records: how each format cuts a file into rows.

In: a file whose format and encoding are known. Out: `Record`s in the file's order, the broken ones among them
with the reason, so that the intake can put them aside. A file whose frame is broken (a JSON array that does
not close, a damaged Parquet file) is a DataError: past that place nothing can be trusted.
"""

from __future__ import annotations

import contextlib
import csv
import json
import re
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, TextIO

from wenmo.errors import DataError, MissingExtra, say
from wenmo.text.encoding import open_bytes, open_text, packing, reading

Format = Literal["txt", "csv", "tsv", "jsonl", "json", "parquet"]
Unit = Literal["line", "paragraph", "file"]

# A quote that never closes swallows the rows after it; this bounds how many, in characters.
_FIELD_CHARACTERS = 1 << 24
_JSON_CHARACTERS = 1 << 20
_SPACE = re.compile(r"[ \t\r\n]*")


class Record(NamedTuple):
    """`fields` is a list by column number, or a dict by key; `fault` is empty or says why there are none."""

    number: int
    fields: Any
    raw: str
    fault: str = ""


@dataclass(frozen=True)
class Layout:
    """What has to be known to read a file; `columns` are those to read, for Parquet, which has no encoding."""

    path: Path
    format: Format
    encoding: str
    separator: str
    unit: Unit
    columns: tuple[str, ...] = ()


def records(layout: Layout) -> Generator[Record]:
    """Every record of the file, a csv header among them; blank lines are none."""
    with reading(layout.path):
        if layout.format == "parquet":
            yield from _parquet(layout.path, layout.columns)
            return
        # csv keeps the line ends inside quotes as they are; elsewhere \r\n and \r are line ends too.
        newline = "" if layout.format == "csv" else None
        with open_text(layout.path, layout.encoding, newline) as stream:
            match layout.format:
                case "txt":
                    found = _txt(stream, layout.unit)
                case "csv":
                    found = _csv(stream, layout.separator)
                case "tsv":
                    found = _tsv(stream, layout.separator)
                case "jsonl":
                    found = _jsonl(stream)
                case "json":
                    found = _json(stream, layout.path)
            for record in found:
                fault = record.fault or misfit(record.raw, layout.encoding)
                yield record._replace(fault=fault) if fault else record


def misfit(text: str, encoding: str) -> str:
    """Why a text is unusable: a NUL, or bytes that did not decode (lone surrogates); else empty."""
    if "\0" in text:
        return say("a NUL character", "含有 NUL 字符")
    if text.isascii():
        return ""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        if 0xDC80 <= code <= 0xDCFF:
            return say(f"the byte {code - 0xDC00:02x} is not {encoding}", f"字节 {code - 0xDC00:02x} 不是 {encoding}")
        return say(f"half a surrogate pair, \\u{code:04x}", f"不成对的代理码 \\u{code:04x}")
    return ""


def misfits_in(value: Any) -> str:
    """`misfit` for the strings of a nested value, in which an escape such as \\u0000 has made one."""
    if isinstance(value, str):
        return misfit(value, "utf-8")
    if isinstance(value, dict):
        return next(filter(None, (misfits_in(item) for pair in value.items() for item in pair)), "")
    if isinstance(value, list):
        return next(filter(None, map(misfits_in, value)), "")
    return ""


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


# Tables -----------------------------------------------------------------------------------------------


class _Lines:
    """The lines for csv.reader; `taken` are those of the record at hand, and can be put back."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._waiting: deque[str] = deque()
        self.taken: list[str] = []

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._waiting.popleft() if self._waiting else next(self._stream)
        self.taken.append(line)
        return line

    def put_back(self, lines: list[str]) -> None:
        self._waiting.extendleft(reversed(lines))


def _csv(stream: TextIO, separator: str) -> Iterator[Record]:
    """RFC 4180. Where the quotes are wrong, only the line in which the record begins is given up:
    most often a stray quote opened it, and the lines that it swallowed are good rows."""
    csv.field_size_limit(max(csv.field_size_limit(), _FIELD_CHARACTERS))  # the module knows no other place for it
    lines = _Lines(stream)
    reader = csv.reader(lines, delimiter=separator, strict=True)
    number = 1
    while True:
        lines.taken = []
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            lines.put_back(lines.taken[1:])
            yield Record(number, [], lines.taken[0], say(f"quotes are wrong: {error}", f"引号有误：{error}"))
            number += 1
            continue
        if fields:
            yield Record(number, fields, lines.taken[0] if len(lines.taken) == 1 else "".join(lines.taken))
        number += len(lines.taken)


def _tsv(stream: TextIO, separator: str) -> Iterator[Record]:
    """Quotes are ordinary characters here, as in nearly all published sets."""
    for number, line in enumerate(stream, 1):
        line = line.removesuffix("\n")
        if line:
            yield Record(number, line.split(separator), line)


# JSON -------------------------------------------------------------------------------------------------


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse)


def _object(number: int, value: Any, raw: str) -> Record:
    if not isinstance(value, dict):
        return Record(number, {}, raw, say("not a JSON object", "不是 JSON 对象"))
    return Record(number, value, raw, misfits_in(value) if "\\u" in raw else "")


def _jsonl(stream: TextIO) -> Iterator[Record]:
    for number, line in enumerate(stream, 1):
        line = line.strip()
        if not line:
            continue
        try:
            yield _object(number, _DECODER.decode(line), line)
        except (ValueError, RecursionError) as error:
            yield Record(number, {}, line, say(f"not valid JSON: {error}", f"不是合法的 JSON：{error}"))


def _json(stream: TextIO, path: Path) -> Iterator[Record]:
    """The elements of one array, a piece of the file at a time."""
    buffer, at, line, number = "", 0, 1, 0
    while True:
        try:
            start, end, value = _element(buffer, at, number)
        except (ValueError, RecursionError) as error:  # broken, or only cut by the end of the piece
            more = stream.read(max(_JSON_CHARACTERS, len(buffer) - at))
            if not more:
                place, what = (error.pos, error.msg) if isinstance(error, json.JSONDecodeError) else (at, str(error))
                raise _broken_array(path, line + buffer.count("\n", 0, place), what) from error
            line += buffer.count("\n", 0, at)
            buffer, at = buffer[at:] + more, 0
            continue
        at = end
        if start == end:
            if (buffer[end:] + stream.read()).strip():
                raise _broken_array(path, line + buffer.count("\n", 0, end), "text after the array")
            return
        number += 1
        yield _object(number, value, buffer[start:end])


def _element(buffer: str, at: int, number: int) -> tuple[int, int, Any]:
    """(start, end, value) of the next one in `buffer`; start == end where the array closes.

    ValueError where there is none, or where the buffer ends before its end is certain.
    """
    at = _space(buffer, at)
    if number == 0:
        if buffer[at : at + 1] != "[":
            raise json.JSONDecodeError("an array must begin with [", buffer, at)
        at = _space(buffer, at + 1)
    if buffer[at : at + 1] == "]":
        return at + 1, at + 1, None
    if number:
        if buffer[at : at + 1] != ",":
            raise json.JSONDecodeError("expecting , or ]", buffer, at)
        at = _space(buffer, at + 1)
    value, end = _DECODER.raw_decode(buffer, at)
    if _space(buffer, end) == len(buffer):  # `12` may be the beginning of `123`
        raise json.JSONDecodeError("the array does not close", buffer, len(buffer))
    return at, end, value


def _space(buffer: str, at: int) -> int:
    found = _SPACE.match(buffer, at)
    assert found is not None
    return found.end()


def _broken_array(path: Path, line: int, what: str) -> DataError:
    return DataError(
        say(f"not an array of JSON objects: {what}", f"不是 JSON 对象的数组：{what}"), where=f"{path}:{line}",
        mend=say("fetch the file again, or write one object a line (.jsonl), where a bad line costs only itself",
                 "请重新获取该文件，或每行写一个对象（.jsonl），那样坏行只影响自身"),
    )


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
            yield parquet.ParquetFile(pyarrow.BufferReader(stream.read()) if packing(path) else stream)
    except pyarrow.ArrowException as error:
        raise DataError(
            say(f"not a readable Parquet file: {error}", f"无法读取的 Parquet 文件：{error}"), where=str(path),
            mend=say("fetch or write the file again", "请重新获取或写出该文件"),
        ) from error
