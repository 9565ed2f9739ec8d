"""Settings → an opened source: which files, which format and encoding, which column is which.

In: `SourceSettings` and the folder under which their paths lie. Out: a `Source` that can be read, and printed; or
an error that says what is not there and what is. All of a run's sources are opened before the first row is read,
so that a misspelt column costs seconds.
"""

from __future__ import annotations

import contextlib
import difflib
import glob
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StrictFloat, StrictInt, StrictStr

from wenmo.config import Count, Settings
from wenmo.errors import DataError, RecipeError, say
from wenmo.text.encoding import Encoding, detect, open_text, packing, reading
from wenmo.text.formats import Format, Layout, Unit, parquet_columns, records
from wenmo.text.normalize import NormalizeSettings, normalizer

_EXTENSIONS: dict[str, Format] = {
    ".txt": "txt", ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".json": "json", ".parquet": "parquet",
}  # fmt: skip
STRINGS = frozenset({"text", "text_a", "text_b", "question", "context", "source", "target"})
LABELS = frozenset({"label", "labels", "tags", "score"})  # never normalised
_OFFSETS = frozenset({"entities", "answers"})  # these count characters of the text as it stands in the file
_KEYS_FROM_ROWS = 1000  # JSON has no header: its columns are the keys of the first rows
_FIRST_LINE_CHARACTERS = 1 << 20
_TABLES = ("csv", "tsv")


class SourceSettings(Settings):
    """One source: a file, or a glob whose files are read in the order of their names."""

    path: str  # under the data root, or absolute
    format: Literal["auto"] | Format = "auto"  # by the extension
    encoding: Encoding = "auto"
    columns: dict[str, StrictStr | Annotated[StrictInt, Field(ge=0)]] = Field({})  # {standard name: name or number}
    constants: dict[str, StrictStr | StrictInt | StrictFloat] = Field({})  # for every row: {label: positive}
    header: bool = True  # csv, tsv: the first row holds the names; without it, columns are numbers from 0
    separator: str | None = Field(None, min_length=1)  # csv: one character, `,`; tsv: any, a tab
    unit: Unit = "line"  # txt: what a row is; paragraphs end at a blank line
    join: str | None = None  # JSON, Parquet: puts between the strings of a list that stands where a text belongs
    limit: Count | None = Field(None, ge=1)  # rows to use, from the first; the others are read and counted as cut
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)  # how many times an epoch sees each row
    normalize: NormalizeSettings = NormalizeSettings()


@dataclass(frozen=True)
class Found:
    """What was detected in one file, and which of its columns is which; `str()` is one line to print."""

    file: str  # under the root where it lies there
    layout: Layout
    header: bool
    columns: tuple[str, ...]
    take: dict[str, str | int]  # standard name → key or column number

    def __str__(self) -> str:
        shown = [self.layout.format, packing(self.layout.path)[1:], self.layout.encoding]
        shown.append(say("columns ", "列 ") + " · ".join(self.columns))
        taken = ", ".join(f"{name} ← {self.name(key)}" for name, key in self.take.items())
        return say(f"{self.file}: ", f"{self.file}：") + ", ".join(filter(None, shown)) + f" ({taken})"

    def name(self, key: str | int) -> str:
        """What the file calls a column of `take`."""
        return self.columns[key] if isinstance(key, int) else key


@dataclass(frozen=True)
class Source:
    """A source whose files are there, whose encodings are known and whose columns were found."""

    settings: SourceSettings
    files: tuple[Found, ...]
    required: frozenset[str]


def open_source(
    settings: SourceSettings, root: Path, required: tuple[str, ...] = ("text",), optional: tuple[str, ...] = ("label",)
) -> Source:
    """Looks at every file: encoding, format, columns.

    A row without a `required` column will be quarantined; an `optional` one is taken where it is there, and must
    be in the file if `columns` names it. DataError for what the files lack, RecipeError for what makes no sense.
    """
    known = (*required, *optional)
    for name in (*settings.columns, *settings.constants):
        if name not in known:
            raise RecipeError(
                say(f"nothing uses a column `{name}` here; used are {', '.join(known)}",
                    f"此处不使用列 `{name}`；使用的列为 {', '.join(known)}"), where=settings.path,
                mend=near(name, known) or say("take it out", "请去掉它"),
            )
        if name in settings.columns and name in settings.constants:
            raise _useless(f"constants.{name}", say("`columns` gives it too", "`columns` 也给出了它"), settings)
    offsets = _OFFSETS if normalizer(settings.normalize) is not None else frozenset()
    files = tuple(_look(path, settings, root, required, optional) for path in _files(settings.path, root))
    for found in files:
        if offsets & set(found.take):
            raise _useless("normalize", say("it would move the characters that the offsets count",
                                            "它会移动偏移量所指的字符"), settings)
        if settings.join is not None and not STRINGS & set(found.take):
            raise _useless("join", say("no column holds a text", "没有文本列"), settings)
    return Source(settings, files, frozenset(required))


# Files ------------------------------------------------------------------------------------------------


def _files(pattern: str, root: Path) -> list[Path]:
    """The file of that name, else those that match, in the order of their names."""
    direct = root / pattern
    if direct.is_file():
        return [direct]
    matches = [root / name for name in glob.glob(pattern, root_dir=root, recursive=True)]
    files = sorted(path for path in matches if path.is_file())
    if files:
        return files
    if direct.is_dir():
        raise DataError(
            say("this is a folder, not a file", "这是文件夹，不是文件"), where=str(direct),
            mend=say(f"name its files: `path: {pattern.rstrip('/')}/*.txt`",
                     f"请指明其中的文件：`path: {pattern.rstrip('/')}/*.txt`"),
        )
    there = [path.name for path in direct.parent.iterdir()] if direct.parent.is_dir() else []
    raise DataError(
        say("no such file", "找不到文件"), where=str(direct),
        mend=near(direct.name, there) or say("check the path and the data root", "请检查路径与数据根目录"),
    )


def _look(
    path: Path, settings: SourceSettings, root: Path, required: tuple[str, ...], optional: tuple[str, ...]
) -> Found:
    file = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
    layout = _layout(path, settings)
    columns = _columns(layout, settings.header)
    take = _take(layout, columns, settings, required, optional)
    if layout.format == "parquet":
        layout = replace(layout, columns=tuple(dict.fromkeys(map(str, take.values()))))
    return Found(file, layout, settings.header, tuple(columns), take)


def _layout(path: Path, settings: SourceSettings) -> Layout:
    unpacked = path.with_suffix("") if packing(path) else path
    format = _EXTENSIONS.get(unpacked.suffix.lower()) if settings.format == "auto" else settings.format
    if format is None:
        raise DataError(
            say(f"unknown extension `{unpacked.suffix}`", f"未知的扩展名 `{unpacked.suffix}`"), where=str(path),
            mend=say(f"say `format:`, or use one of {' '.join(_EXTENSIONS)} (each also .gz or .xz)",
                     f"请写明 `format:`，或使用 {' '.join(_EXTENSIONS)} 之一（可加 .gz 或 .xz）"),
        )
    _check_applies(format, settings)
    with reading(path):
        if path.stat().st_size == 0:
            raise empty(path)
    encoding = ""
    if format != "parquet":
        encoding = detect(path) if settings.encoding == "auto" else settings.encoding
    layout = Layout(path, format, encoding, settings.separator or {"tsv": "\t"}.get(format, ","), settings.unit)
    # Many a .json file holds JSON lines: told by a first line that is an object by itself.
    if settings.format == "auto" and format == "json" and _begins_with_object(layout):
        return replace(layout, format="jsonl")
    return layout


def _begins_with_object(layout: Layout) -> bool:
    with reading(layout.path), open_text(layout.path, layout.encoding) as stream:
        line = stream.readline(_FIRST_LINE_CHARACTERS)
        while line.isspace():
            line = stream.readline(_FIRST_LINE_CHARACTERS)
    try:
        return line.lstrip().startswith("{") and (len(line) == _FIRST_LINE_CHARACTERS or bool(json.loads(line)))
    except (ValueError, RecursionError):
        return False


def _check_applies(format: Format, settings: SourceSettings) -> None:
    """RecipeError for a setting that would do nothing."""
    here = say(f"for {format}", f"对 {format}")
    lists = ("json", "jsonl", "parquet")
    for name, used, formats in (
        ("header", not settings.header, _TABLES),
        ("separator", settings.separator is not None, _TABLES),
        ("unit", settings.unit != "line", ("txt",)),
        ("join", settings.join is not None, lists),
        ("encoding", settings.encoding != "auto", ("txt", "csv", "tsv", "json", "jsonl")),
    ):
        if used and format not in formats:
            raise _useless(name, say(f"it means nothing {here}", f"{here} 没有意义"), settings)
    if format == "csv" and len(settings.separator or ",") != 1:
        raise _useless("separator", say("csv takes one character; `format: tsv` takes more",
                                        "csv 只接受一个字符；`format: tsv` 可接受多个"), settings)


# Columns ----------------------------------------------------------------------------------------------


def _columns(layout: Layout, header: bool) -> list[str]:
    """Their names; numbers where there is no header."""
    if layout.format == "txt":
        return ["text"]
    if layout.format == "parquet":
        return parquet_columns(layout.path)
    with contextlib.closing(records(layout)) as rows:
        first = list(islice(rows, 1 if layout.format in _TABLES else _KEYS_FROM_ROWS))
    if not first:
        raise empty(layout.path)
    good = [record for record in first if not record.fault]
    if not good:
        raise DataError(
            say(f"not one of the first {len(first)} rows can be read: {first[0].fault}",
                f"前 {len(first)} 行无一可读：{first[0].fault}"), where=f"{layout.path}:{first[0].number}",
            mend=say("check `format` and `encoding` of this source", "请检查该数据源的 `format` 和 `encoding`"),
        )
    if layout.format not in _TABLES:
        return list(dict.fromkeys(key for record in good for key in record.fields))
    return [name.strip() for name in good[0].fields] if header else [str(i) for i in range(len(good[0].fields))]


def _take(
    layout: Layout, columns: list[str], settings: SourceSettings, required: tuple[str, ...], optional: tuple[str, ...]
) -> dict[str, str | int]:
    """Where each standard name is found: by number in a row that is a list, by key in one that is an object."""
    by_key = layout.format in ("json", "jsonl", "parquet")
    take: dict[str, str | int] = {}
    for name in (*required, *optional):
        if name in settings.constants:
            continue
        key = settings.columns.get(name, name)
        if isinstance(key, int):
            if layout.format not in _TABLES:
                raise _useless(f"columns.{name}", say(f"{layout.format} has no column numbers",
                                                      f"{layout.format} 没有列号"), settings)
            if key >= len(columns):
                raise _missing(name, key, layout, columns)
            take[name] = key
        elif columns.count(key) == 1:
            take[name] = key if by_key else columns.index(key)
        elif key in columns or name in required or name in settings.columns:
            raise _missing(name, key, layout, columns)
    return take


def _missing(name: str, key: str | int, layout: Layout, columns: list[str]) -> DataError:
    there = ", ".join(columns)
    if key in columns:
        what = say(f"several columns are called `{key}`", f"有多列名为 `{key}`")
        mend = say(f"say which by its number from 0: `columns: {{{name}: 0}}`",
                   f"请用从 0 起的列号指明：`columns: {{{name}: 0}}`")
    else:
        what = say(f"there is no column `{key}`", f"没有列 `{key}`")
        mend = near(str(key), columns)
        if layout.format in _TABLES and len(columns) == 1:
            mend = say(f"are the columns separated by something else than `{layout.separator}`? Set `separator`",
                       f"列是否并非以 `{layout.separator}` 分隔？请设置 `separator`")
        mend = mend or say(f"say which it is: `columns: {{{name}: {columns[0]}}}`",
                           f"请指明是哪一列：`columns: {{{name}: {columns[0]}}}`")
    return DataError(
        what, where=say(f"{layout.path}; columns found: {there}", f"{layout.path}；找到的列：{there}"), mend=mend
    )


# Messages ---------------------------------------------------------------------------------------------


def empty(path: Path) -> DataError:
    return DataError(say("there is not a single row in this file", "文件里一行数据都没有"), where=str(path),
                     mend=say("remove it from `path`, or fetch it again", "请从 `path` 中去掉它，或重新获取"))


def near(name: str, names: Iterable[str]) -> str:
    """`did you mean …?`, or nothing."""
    by_lower = {other.lower(): other for other in names}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1)
    if not found:
        return ""
    return say(f"did you mean `{by_lower[found[0]]}`?", f"是否想写 `{by_lower[found[0]]}`？")


def _useless(key: str, why: str, settings: SourceSettings) -> RecipeError:
    return RecipeError(say(f"`{key}` cannot be used here: {why}", f"此处不能使用 `{key}`：{why}"), where=settings.path,
                       mend=say(f"take out `{key}`", f"请去掉 `{key}`"))
