"""`wenmo predict`: rows from a file or stdin → one answer a row, in order, a few hundred rows at a time.

A row that cannot be read or answered costs itself: `{"error": …}` stands in its place.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, BinaryIO

from wenmo.config import parse
from wenmo.data.given import open_given
from wenmo.device import DType
from wenmo.ensemble import load_all
from wenmo.errors import DataError, UsageError, say
from wenmo.stages.prepare import columns_in
from wenmo.tasks import JointSettings
from wenmo.text.counts import Counts
from wenmo.text.intake import Row, Source, read_all
from wenmo.text.source import STRINGS, MissingColumn, SourceSettings, check_names, text_column, with_parts

_log = logging.getLogger(__name__)
ROWS_AT_ONCE = 512  # answered together, sorted by length; stdin from a person is answered line by line


def predict(model: str, file: str, *, task: str | None = None, source: Mapping[str, Any] | None = None,
            threads: int | None = None, dtype: DType = "fp32",
            together: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """The task's answers, or of several models the mean of theirs (`together`; ensemble.py). On stdin a line is a text,
    or a JSON object with the task's columns.

    Raises DataError, after the last answer, where not one row could be answered.
    """
    loaded = load_all([model, *together], threads=threads, dtype=dtype)
    settings = loaded.task(task).settings
    columns = settings.columns
    if isinstance(settings, JointSettings):  # a row may have what one of several tasks reads
        columns = () if file == "-" else columns_in(file, settings, source or {}, loaded.opened.card.get("source", {}),
                                                    with_targets=False)
    waiting, at_once = rows_to_answer(file, columns, source or {}, loaded.opened.card.get("source", {}))
    num_rows, faults = 0, []
    while some := list(islice(waiting, at_once)):
        for answer in loaded.answers(some, task, num_rows):
            num_rows += 1
            if isinstance(answer, DataError):
                faults.append(answer)
                yield {"error": answer.in_a_line}
            else:
                yield answer
    if faults and len(faults) == num_rows:
        raise DataError(say(f"not one of {num_rows:,} rows could be answered", f"{num_rows:,} 行中没有一行可答"),
                        where=f"{faults[0].where}: {faults[0].what}", mend=faults[0].mend)
    if faults:
        _log.warning(say(f"{len(faults):,} of {num_rows:,} rows have an error in place of an answer; the first: ",
                         f"{num_rows:,} 行中有 {len(faults):,} 行出错，没有答案；第一处：")
                     + f"{faults[0].where}: {faults[0].what}")


def rows_to_answer(file: str, columns: tuple[str, ...], source: Mapping[str, Any],
                   trained_on: Mapping[str, Any]) -> tuple[Iterator[Mapping[str, Any] | DataError], int]:
    """(the rows of a file, or of stdin for `-`, the bad ones as errors; how many of them to answer at once)."""
    if file == "-":
        settings = _of_lines(source, columns)
        return iter(_lines(sys.stdin.buffer, columns, settings)), 1 if sys.stdin.isatty() else ROWS_AT_ONCE
    source_settings = _without_targets(trained_on, columns)
    try:
        opened = open_given(file, columns, source, source_settings)
    except MissingColumn:
        if columns != ("tokens",):
            raise
        opened = open_given(file, ("text",), source, {})  # a model that tags words splits a text itself
    return _rows(opened), ROWS_AT_ONCE


def _rows(source: Source) -> Iterator[Mapping[str, Any] | DataError]:
    """The file's rows in their order, the bad ones as errors."""
    counts = Counts()
    for row in read_all(source, counts):
        if isinstance(row, Row):
            yield row.values
        else:
            yield DataError(row.reason, where=f"{row.file}:{row.number}",
                            mend=say("correct the row, or check `--columns`", "请改正该行，或检查 `--columns`"))
    _log.info(counts.line(source.settings.path))


def _of_lines(source: Mapping[str, Any], columns: tuple[str, ...]) -> SourceSettings:
    """How lines of stdin are read: their encoding, and what their keys are called. UsageError for what they lack."""
    settings = parse(SourceSettings, {**source, "path": "-"}, "stdin")
    if columns:
        check_names(settings, columns)
    if settings.encoding.startswith("utf-16"):
        raise UsageError(say("stdin is read line by line, which UTF-16 does not allow",
                             "标准输入逐行读取，不支持 UTF-16"), where=f"--encoding {settings.encoding}",
                         mend=f"iconv -f {settings.encoding} -t utf-8 … | wenmo predict …")
    if any(isinstance(yours, int) for yours in settings.columns.values()):
        raise UsageError(say("lines of stdin have no numbered columns", "标准输入的行没有按序号的列"),
                         where="--columns",
                         mend=say("give JSON lines with keys, or a file", "请给出带键的 JSON 行，或改用文件"))
    return settings


def _lines(stream: BinaryIO, columns: tuple[str, ...],
           settings: SourceSettings) -> Iterable[Mapping[str, Any] | DataError]:
    for number, line in enumerate(stream, 1):
        if line.strip():
            try:
                yield _row(line, number, columns, settings)
            except DataError as error:
                yield error


def _row(line: bytes, number: int, columns: tuple[str, ...], settings: SourceSettings) -> Mapping[str, Any]:
    """A row with all the columns, each a text. DataError, with the number of the line, for anything else."""
    where = say(f"stdin, line {number}", f"标准输入第 {number} 行")
    encoding = "utf-8" if settings.encoding == "auto" else settings.encoding
    try:
        text = line.decode(encoding).rstrip("\r\n").removeprefix("\ufeff")
        row = dict(json.loads(text)) if text.lstrip().startswith("{") else {
            text_column(columns): text}
    except UnicodeDecodeError as error:
        raise DataError(say(f"not {encoding.upper()}", f"不是 {encoding.upper()}"), where=where,
                        mend=say("name the encoding: --encoding gb18030 (big5, latin-1 …)",
                                 "请指明编码：--encoding gb18030（big5、latin-1 等）")) from error
    except ValueError as error:
        raise DataError(say(f"not valid JSON: {error}", f"不是合法的 JSON：{error}"), where=where,
                        mend=say("one JSON object a line, or plain text", "每行一个 JSON 对象，或纯文本")) from error
    row |= {name: row[yours] for name, yours in settings.columns.items() if yours in row}
    for column in columns:
        if column in STRINGS and not (isinstance(row.get(column), str) and row[column].strip()):
            raise DataError(
                say(f"the row has no text `{settings.columns.get(column, column)}`",
                    f"该行没有文本 `{settings.columns.get(column, column)}`"), where=where,
                mend=say(f"this task needs: {', '.join(columns)}", f"此任务需要：{', '.join(columns)}"))
    return row


def _without_targets(source: Mapping[str, Any], columns: tuple[str, ...]) -> dict[str, Any]:
    """The training data's column names, without the label's: rows to be answered have none."""
    columns = tuple(name for name in with_parts(columns) if name != "answer")
    kept = {key: {name: yours for name, yours in source[key].items() if name in columns}
            for key in ("columns", "before") if key in source}
    return {**source, **kept}
