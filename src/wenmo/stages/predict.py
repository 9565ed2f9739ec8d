"""`wenmo predict`: rows from a file or stdin → one answer a row, in order, a few hundred rows at a time.

A row that cannot be read or answered costs itself: `{"error": …}` stands in its place.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, BinaryIO

from wenmo.device import DType
from wenmo.errors import DataError, say
from wenmo.loaded import load
from wenmo.stages.prepare import open_given
from wenmo.text.counts import Counts
from wenmo.text.intake import Row, Source, read_all
from wenmo.text.source import STRINGS

_log = logging.getLogger(__name__)
ROWS_AT_ONCE = 512  # answered together, sorted by length; stdin from a person is answered line by line


def predict(model: str, file: str, *, task: str | None = None, source: Mapping[str, Any] | None = None,
            threads: int | None = None, dtype: DType = "fp32") -> Iterator[dict[str, Any]]:
    """The task's answers. On stdin a line is a text, or a JSON object with the task's columns.

    Raises DataError, after the last answer, where not one row could be answered.
    """
    loaded = load(model, threads=threads, dtype=dtype)
    columns = loaded.task(task).settings.columns
    if file == "-":
        rows, at_once = _lines(sys.stdin.buffer, columns), 1 if sys.stdin.isatty() else ROWS_AT_ONCE
    else:
        trained_on = _without_targets(loaded.opened.card.get("source", {}), columns)
        rows, at_once = _rows(open_given(file, columns, source or {}, trained_on)), ROWS_AT_ONCE
    num_rows, faults = 0, []
    waiting = iter(rows)
    while some := list(islice(waiting, at_once)):
        for answer in loaded.answers(some, task, num_rows):
            num_rows += 1
            if isinstance(answer, DataError):
                faults.append(answer)
                yield {"error": f"{answer.what} ({answer.where})" if answer.where else answer.what}
            else:
                yield answer
    if faults and len(faults) == num_rows:
        raise DataError(say(f"not one of {num_rows:,} rows could be answered", f"{num_rows:,} 行中没有一行可答"),
                        where=f"{faults[0].where}: {faults[0].what}", mend=faults[0].mend)
    if faults:
        _log.warning(say(f"{len(faults):,} of {num_rows:,} rows have an error in place of an answer; the first: ",
                         f"{num_rows:,} 行中有 {len(faults):,} 行出错，没有答案；第一处：")
                     + f"{faults[0].where}: {faults[0].what}")


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


def _lines(stream: BinaryIO, columns: tuple[str, ...]) -> Iterable[Mapping[str, Any] | DataError]:
    for number, line in enumerate(stream, 1):
        if line.strip():
            try:
                yield _row(line, number, columns)
            except DataError as error:
                yield error


def _row(line: bytes, number: int, columns: tuple[str, ...]) -> Mapping[str, Any]:
    """A row with all the columns, each a text. DataError, with the number of the line, for anything else."""
    where = say(f"stdin, line {number}", f"标准输入第 {number} 行")
    try:
        text = line.decode("utf-8").rstrip("\r\n").removeprefix("\ufeff")
        row = dict(json.loads(text)) if text.lstrip().startswith("{") else {"text": text}
    except UnicodeDecodeError as error:
        raise DataError(say("not UTF-8", "不是 UTF-8"), where=where,
                        mend="iconv -f gb18030 -t utf-8 … | wenmo predict …") from error
    except ValueError as error:
        raise DataError(say(f"not valid JSON: {error}", f"不是合法的 JSON：{error}"), where=where,
                        mend=say("one JSON object a line, or plain text", "每行一个 JSON 对象，或纯文本")) from error
    for column in columns:
        if column in STRINGS and not (isinstance(row.get(column), str) and row[column].strip()):
            raise DataError(
                say(f"the row has no text `{column}`", f"该行没有文本 `{column}`"), where=where,
                mend=say(f"this task needs: {', '.join(columns)}", f"此任务需要：{', '.join(columns)}"))
    return row


def _without_targets(source: Mapping[str, Any], columns: tuple[str, ...]) -> dict[str, Any]:
    """The training data's column names, without the label's: rows to be answered have none."""
    kept = {key: {name: yours for name, yours in source[key].items() if name in columns}
            for key in ("columns", "before") if key in source}
    return {**source, **kept}
