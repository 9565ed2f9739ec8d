"""`wenmo predict`: rows from a file or stdin → one answer a row, in order."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from wenmo.device import DType
from wenmo.errors import DataError, say
from wenmo.loaded import load
from wenmo.stages.prepare import rows_of, values_of

_log = logging.getLogger(__name__)
ROWS_AT_ONCE = 512  # answered together, sorted by length; stdin from a person is answered line by line


def predict(model: str, file: str, *, task: str | None = None, source: Mapping[str, Any] | None = None,
            threads: int | None = None, dtype: DType = "fp32") -> Iterator[dict[str, Any]]:
    """The task's answers. On stdin a line is a text, or a JSON object with the task's columns."""
    loaded = load(model, threads=threads, dtype=dtype)
    chosen = loaded.task(task)
    if file == "-":
        lines = enumerate(sys.stdin.buffer, 1)
        rows: Iterable[Mapping[str, Any]] = (
            _row(line, number, chosen.settings.columns) for number, line in lines if line.strip())
        at_once = 1 if sys.stdin.isatty() else ROWS_AT_ONCE
    else:
        found = rows_of(file, chosen.settings.columns, given=source or {},
                        trained_on=_without_targets(loaded.opened.card.get("source", {}), chosen.settings.columns))
        if found.counts.quarantined:
            _log.warning(say(f"{found.counts.quarantined:,} rows could not be read and have no answer",
                             f"{found.counts.quarantined:,} 行无法读取，没有答案"))
        rows, at_once = values_of(found.rows), ROWS_AT_ONCE
    waiting = iter(rows)
    while some := list(islice(waiting, at_once)):
        yield from loaded.predict(some, task)


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
        if not isinstance(row.get(column), str) or not row[column].strip():
            raise DataError(
                say(f"the row has no text `{column}`", f"该行没有文本 `{column}`"), where=where,
                mend=say(f"this task needs: {', '.join(columns)}", f"此任务需要：{', '.join(columns)}"))
    return row


def _without_targets(source: Mapping[str, Any], columns: tuple[str, ...]) -> dict[str, Any]:
    """The training data's column names, without the label's: rows to be answered have none."""
    named = {name: yours for name, yours in source.get("columns", {}).items() if name in columns}
    return {**source, "columns": named} if source else {}
