"""The rows of a file that a command line names.

In: a path, the columns that are needed, source settings from the command line. Out: an opened source, or its rows.
Without settings the columns are looked for under their standard names, then under those of the training data. Here, and
not among the stages, since a tokenizer and a split ask for rows without knowing of any task, or of torch.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from wenmo.config import parse
from wenmo.data.sources import SourceRows, open_sources, read_opened
from wenmo.errors import DataError, say
from wenmo.text.intake import Source
from wenmo.text.source import MissingColumn, SourceSettings, with_parts

_log = logging.getLogger(__name__)


def rows_of(path: str, columns: tuple[str, ...], *, given: Mapping[str, Any], trained_on: Mapping[str, Any],
            quarantine: Path | None = None, optional: tuple[str, ...] = ()) -> SourceRows:
    """The rows of a file. `given`: source settings from the command line; without any, the
    columns are looked for under their standard names, then under those of the training data. DataError otherwise.
    `optional`: those that a row may lack."""
    source = open_given(path, columns, only(columns, given) if optional else given, only(columns, trained_on))
    source = replace(source, required=source.required - set(optional))
    [result] = read_opened([source], (), quarantine)
    _log.info(str(result))
    return result


def only(names: Sequence[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """Source settings without what they say of other columns than these."""
    return {key: {name: its for name, its in value.items() if name in with_parts(names)}
            if key in ("columns", "constants", "parallel", "before") else value for key, value in options.items()}


def open_given(path: str, columns: tuple[str, ...], given: Mapping[str, Any],
               trained_on: Mapping[str, Any]) -> Source:
    """The source that a path on the command line names, opened; see `rows_of`."""
    only_encoding = not given.keys() - {"encoding"}
    tries = [given, {**trained_on, **given}] if only_encoding else [given]
    for options in tries[:-1]:
        try:
            return _opened(path, columns, options)
        except DataError:
            continue
    return _opened(path, columns, tries[-1])


def _opened(path: str, columns: tuple[str, ...], options: Mapping[str, Any]) -> Source:
    try:
        [source] = open_sources([parse(SourceSettings, {**options, "path": path}, path)], Path(), columns, ())
    except MissingColumn as error:
        if error.guess is None:
            raise
        choice = f"`--columns {error.name}={error.guess}`"  # here there is no recipe to write it into
        raise DataError(error.what, where=error.where,
                        mend=say(f"say which it is: {choice}", f"请指明是哪一列：{choice}")) from error
    return source
