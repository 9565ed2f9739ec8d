"""A file and its settings → its layout: format, encoding, separator, shape; told by the name and the first lines.

In: a path that exists, and `SourceSettings`. Out: a `Layout`, by which text/formats.py can read the file. RecipeError
for a setting that would do nothing for this format.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from wenmo.errors import DataError, say
from wenmo.text.archive import PACKINGS, packing, reading, stored
from wenmo.text.encoding import detect, open_text
from wenmo.text.json_text import looks_like_squad
from wenmo.text.records import Beside, Format, Layout, Shape
from wenmo.text.source_settings import SourceSettings, useless
from wenmo.text.tables import find_separator

EXTENSIONS: dict[str, Format] = {
    ".txt": "txt", ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".json": "json", ".parquet": "parquet",
    ".conll": "conll", ".bmes": "conll", ".bio": "conll", ".conllu": "conllu", ".yml": "yaml", ".yaml": "yaml",
}  # fmt: skip
TABLES = ("csv", "tsv")
_HEAD_CHARACTERS = 1 << 20


def layout_of(path: Path, settings: SourceSettings, beside: Sequence[Path] = ()) -> Layout:
    """How `path` is to be read. DataError for an empty file, an unknown extension, an unknown encoding."""
    format = _format(path, settings)
    _check_applies(format, settings)
    with reading(path):
        if stored(path).stat().st_size == 0:
            raise empty(path)
    encoding = "" if format == "parquet" else _encoding(path, settings)
    layout = Layout(path, format, encoding, settings.separator or "", settings.unit,
                    beside=tuple(Beside(other, _encoding(other, settings)) for other in beside))
    if format in TABLES:
        return _table(layout, settings)
    if format in ("json", "alpaca", "sharegpt"):
        shape = "" if format == "json" else cast(Shape, format)
        return replace(layout, format=_json_format(layout, settings), shape=shape)
    return layout


def _format(path: Path, settings: SourceSettings) -> Format:
    if settings.format != "auto":
        return settings.format
    unpacked = path.with_suffix("") if packing(path) else path
    format = EXTENSIONS.get(unpacked.suffix.lower())
    if format is None:
        kinds = " ".join(EXTENSIONS)
        mend = say(f"say `format:`, or use one of {kinds} (each also {', '.join(PACKINGS)})",
                   f"请写明 `format:`，或使用 {kinds} 之一（可加 {'、'.join(PACKINGS)}）")
        if unpacked.suffix.lower() == ".zip":
            mend = say(f"name the files in it: `path: {settings.path}/*.csv`",
                       f"请指明其中的文件：`path: {settings.path}/*.csv`")
        raise DataError(say(f"unknown extension `{unpacked.suffix}`", f"未知的扩展名 `{unpacked.suffix}`"),
                        where=str(path), mend=mend)
    return format


def _encoding(path: Path, settings: SourceSettings) -> str:
    return detect(path) if settings.encoding == "auto" else settings.encoding


def _table(layout: Layout, settings: SourceSettings) -> Layout:
    separator = layout.separator or ("\t" if layout.format == "tsv" else "")
    if not separator:
        with reading(layout.path), open_text(layout.path, layout.encoding, "") as stream:
            separator = find_separator(stream)
    auto = layout.format == "csv" and separator != "\t"
    quoted = auto if settings.quoting == "auto" else settings.quoting == "double"
    if quoted and len(separator) != 1:
        raise useless("separator", say("csv takes one character; `format: tsv` takes more",
                                       "csv 只接受一个字符；`format: tsv` 可接受多个"), settings)
    return replace(layout, separator=separator, quoted=quoted)


def _json_format(layout: Layout, settings: SourceSettings) -> Format:
    """json, jsonl or squad. Many a .json file holds JSON lines: told by a first line that is an object by itself."""
    with reading(layout.path), open_text(layout.path, layout.encoding) as stream:
        head = stream.read(_HEAD_CHARACTERS)
    if not layout.shape and settings.format == "auto" and looks_like_squad(head):
        return "squad"
    if settings.format == "json":
        return "json"
    line, _, rest = head.lstrip().partition("\n")
    try:
        alone = line.startswith("{") and ((not rest and len(head) == _HEAD_CHARACTERS) or bool(json.loads(line)))
    except (ValueError, RecursionError):
        alone = False
    return "jsonl" if alone else "json"


def _check_applies(format: Format, settings: SourceSettings) -> None:
    """RecipeError for a setting that would do nothing."""
    here = say(f"for {format}", f"对 {format}")
    lists = ("json", "jsonl", "parquet", "conll", "conllu", "squad", "alpaca", "sharegpt")
    for name, used, formats in (
        ("header", not settings.header, TABLES),
        ("separator", settings.separator is not None, (*TABLES, "conll")),
        ("quoting", settings.quoting != "auto", TABLES),
        ("fields", settings.fields is not None, TABLES if not settings.header else ()),
        ("surplus", settings.surplus != "quarantine", TABLES),
        ("unit", settings.unit != "line", ("txt",) if not settings.parallel else ()),
        ("parallel", bool(settings.parallel), ("txt",)),
        ("join", settings.join is not None, lists),
    ):
        if used and format not in formats:
            raise useless(name, say(f"it means nothing {here}", f"{here} 没有意义"), settings)
    if settings.encoding != "auto" and format == "parquet":
        raise useless("encoding", say(f"it means nothing {here}", f"{here} 没有意义"), settings)


def empty(path: Path) -> DataError:
    return DataError(say("there is not a single row in this file", "文件里一行数据都没有"), where=str(path),
                     mend=say("leave it out, or fetch it again", "请去掉它，或重新获取"))
