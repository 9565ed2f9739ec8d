"""Settings → an opened source: which files, how each is laid out, which column is which.

In: `SourceSettings` and the folder under which their paths lie. Out: a `Source` that can be read, and printed; or
an error that says what is not there and what is. All of a run's sources are opened before the first row is read,
so that a misspelt column costs seconds.
"""

from __future__ import annotations

import contextlib
import difflib
import glob
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from wenmo.errors import DataError, RecipeError, say
from wenmo.hub.fetch import data_files, is_reference
from wenmo.text.archive import members, packing
from wenmo.text.formats import parquet_columns, records
from wenmo.text.json_shapes import shape_of
from wenmo.text.layout import TABLES, empty, layout_of
from wenmo.text.normalize import normalizer
from wenmo.text.records import Layout
from wenmo.text.source_settings import SourceSettings as SourceSettings
from wenmo.text.source_settings import useless

STRINGS = frozenset({"text", "text_a", "text_b", "text_c", "question", "context", "source", "target"})
SEVERAL = frozenset({"target"})  # of these a row may have several texts, each as good as the others: a list stays one
LISTS = frozenset({"tokens", "tags"})
LABELS = frozenset({"label", "labels", "tags", "score"})  # never normalised
# A conversation that a table holds in parts: each under its standard name, or one of those that are usual for it.
PARTS = {"system": ("system",), "question": ("question", "prompt", "instruction"), "input": ("input",),
         "answer": ("answer", "response", "completion", "output")}
_OFFSETS = frozenset({"entities", "answers"})  # these count characters of the text as it stands in the file
_KEYS_FROM_ROWS = 1000  # JSON has no header: its columns are the keys of the first rows
_NUMBERED = (*TABLES, "conll")  # their columns have numbers


def with_parts(columns: Sequence[str]) -> tuple[str, ...]:
    """These columns, and those that some of them may come in."""
    return (*columns, *(PARTS if "messages" in columns else ()))


def text_column(columns: Sequence[str]) -> str:
    """Which column a text without a name is: the one text among the columns that are asked for."""
    texts = [name for name in columns if name in STRINGS]
    return texts[0] if len(texts) == 1 else "text"


@dataclass(frozen=True)
class Found:
    """What was detected in one file, and which of its columns is which; `str()` is one line to print."""

    file: str  # under the root where it lies there
    layout: Layout
    header: bool
    columns: tuple[str, ...]
    take: dict[str, str | int]  # standard name → key or column number

    def __str__(self) -> str:
        layout = self.layout
        shown = [layout.shape, layout.format, packing(layout.path)[1:], layout.encoding]
        if layout.format in TABLES and layout.separator != {"csv": ",", "tsv": "\t"}[layout.format]:
            shown.append(say(f"separated by {layout.separator!r}", f"以 {layout.separator!r} 分隔"))
        if layout.format in TABLES and layout.quoted != (layout.format == "csv"):
            shown.append(say("with quotes", "有引号") if layout.quoted else say("no quoting", "不用引号"))
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
    be in the file if `columns` names it. Where `messages` are required, the functions offered with them (`tools`) are
    taken too, and a file without `messages` may have them in parts (PARTS). DataError for what the files lack,
    RecipeError for what makes no sense.
    """
    if "messages" in required:
        optional = (*optional, "tools")
    check_names(settings, (*required, *optional))
    normalizer(settings.normalize)  # an extra that it lacks is missed now
    offsets = frozenset() if settings.normalize.keeps_places else _OFFSETS
    files = tuple(_look(path, beside, settings, root, required, optional)
                  for path, *beside in _files_together(settings, root))
    for found in files:
        if offsets & set(found.take):
            raise useless("normalize", say("`nfkc` and `strip` would move the characters that the offsets count",
                                           "`nfkc` 与 `strip` 会移动偏移量所指的字符"), settings)
        if settings.join is not None and not STRINGS & set(found.take):
            raise useless("join", say("no column holds a text", "没有文本列"), settings)
    return Source(settings, files, frozenset(required))


def check_names(settings: SourceSettings, known: Sequence[str]) -> None:
    """The standard names in the settings are among those that are used here, and each has one place to come from."""
    known = with_parts(known)
    for name in (*settings.columns, *settings.constants, *settings.parallel, *settings.before):
        if name not in known:
            raise RecipeError(
                say(f"nothing uses a column `{name}` here; used are {', '.join(known)}",
                    f"此处不使用列 `{name}`；使用的列为 {', '.join(known)}"), where=settings.path,
                mend=near(name, known) or say("take it out", "请去掉它"),
            )
    for key, names in (("constants", settings.constants), ("parallel", settings.parallel)):
        for name in names:
            if name in settings.columns:
                raise useless(f"{key}.{name}", say("`columns` gives it too", "`columns` 也给出了它"), settings)
    for name in settings.before:
        if name in settings.constants:
            raise useless(f"before.{name}", say("it is the same for every row", "它在每一行都相同"), settings)


# Files ------------------------------------------------------------------------------------------------


def _files_together(settings: SourceSettings, root: Path) -> list[tuple[Path, ...]]:
    """The files of `path`, each with its parallel ones."""
    files = [_files(pattern, root) for pattern in (settings.path, *settings.parallel.values())]
    if len({len(each) for each in files}) > 1:
        raise DataError(
            say("parallel patterns match different numbers of files", "平行文件的通配符匹配到的文件数不同"),
            where=", ".join(f"{pattern}: {len(each)}" for pattern, each in
                            zip((settings.path, *settings.parallel.values()), files, strict=True)),
            mend=say("each file of `path` needs one of every pattern in `parallel`",
                     "`path` 的每个文件都须在 `parallel` 的每一项中有对应文件"))
    return list(zip(*files, strict=True))


def _files(pattern: str, root: Path) -> list[Path]:
    """The file of that name, else those that match, in the order of their names."""
    if is_reference(pattern):
        return data_files(pattern)
    direct = root / pattern
    if direct.is_file():
        return [direct]
    inside = members(direct)
    matches = [root / name for name in glob.glob(pattern, root_dir=root, recursive=True)] if inside is None else []
    files = inside or sorted(path for path in matches if path.is_file())
    if files:
        return files
    if direct.is_dir():
        raise DataError(
            say("this is a folder, not a file", "这是文件夹，不是文件"), where=str(direct),
            mend=say(f"name its files, such as `{pattern.rstrip('/')}/*.txt`",
                     f"请指明其中的文件，如 `{pattern.rstrip('/')}/*.txt`"),
        )
    there = [path.name for path in direct.parent.iterdir() if near(direct.stem, [path.stem])] \
        if direct.parent.is_dir() else []  # `.csv` alone makes no name like another
    raise DataError(
        say("no such file", "找不到文件"), where=str(direct),
        mend=near(direct.name, there) or say("check the path; those of a recipe begin at --data-root",
                                             "请检查路径；配方中的路径从 --data-root 开始"),
    )


def _look(path: Path, beside: Sequence[Path], settings: SourceSettings, root: Path,
          required: tuple[str, ...], optional: tuple[str, ...]) -> Found:
    file = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
    layout = layout_of(path, settings, beside)
    columns = _columns(layout, settings)
    if (layout.format in ("json", "jsonl") and not layout.shape and "messages" in (*required, *optional)
            and "messages" not in settings.columns):
        layout = replace(layout, shape=shape_of(columns))
        columns = list(dict.fromkeys((*columns, "messages"))) if layout.shape else columns
    take = _take(layout, columns, settings, required, optional)
    if layout.format == "parquet":
        layout = replace(layout, columns=tuple(dict.fromkeys(map(str, take.values()))))
    return Found(file, layout, settings.header, tuple(columns), take)


# Columns ----------------------------------------------------------------------------------------------


def _columns(layout: Layout, settings: SourceSettings) -> list[str]:
    """Their names; numbers where there is no header."""
    if layout.format == "txt":
        return ["text", *settings.parallel]
    if layout.format == "parquet":
        return parquet_columns(layout.path)
    with contextlib.closing(records(layout)) as rows:
        first = list(islice(rows, 1 if layout.format in TABLES else _KEYS_FROM_ROWS))
    if not first:
        raise empty(layout.path)
    good = [record for record in first if not record.fault]
    if not good:
        raise DataError(
            say(f"not one of the first {len(first)} rows can be read: {first[0].fault}",
                f"前 {len(first)} 行无一可读：{first[0].fault}"), where=f"{layout.path}:{first[0].number}",
            mend=say("check `format` and `encoding` of this source", "请检查该数据源的 `format` 和 `encoding`"),
        )
    if layout.format not in _NUMBERED:
        return list(dict.fromkeys(key for record in good for key in record.fields))
    if layout.format in TABLES and settings.header:
        return [name.strip() for name in good[0].fields]
    return [str(i) for i in range(settings.fields or len(good[0].fields))]


def _take(
    layout: Layout, columns: list[str], settings: SourceSettings, required: tuple[str, ...], optional: tuple[str, ...]
) -> dict[str, str | int]:
    """Where each standard name is found: by number in a row that is a list, by key in one that is an object."""
    by_key = layout.format not in (*_NUMBERED, "txt")
    take: dict[str, str | int] = {}
    if "messages" in required and not {"messages"} & {*settings.columns, *columns} and not layout.shape:
        names, usual = _parts(columns, settings)
        if "question" in names:
            required = (*(name for name in required if name != "messages"), "question")
            optional = (*optional, *(name for name in names if name != "question"))
            settings = settings.model_copy(update={"columns": {**usual, **settings.columns}})
    elif "messages" in required and PARTS.keys() & settings.columns.keys():
        part = min(PARTS.keys() & settings.columns.keys())
        raise useless(f"columns.{part}", say("the rows hold whole conversations", "每行已是完整的对话"), settings)
    for name in (*required, *optional):
        if name in settings.constants:
            continue
        key = settings.columns.get(name, _usual(name, layout, columns))
        if isinstance(key, int):
            if layout.format not in _NUMBERED:
                raise useless(f"columns.{name}", say(f"{layout.format} has no column numbers",
                                                     f"{layout.format} 没有列号"), settings)
            if key >= len(columns):
                raise _missing(name, key, layout, columns)
            take[name] = key
        elif columns.count(key) == 1:
            take[name] = key if by_key else columns.index(key)
        elif key in columns or name in required or name in settings.columns or name in settings.before:
            raise _missing(name, key, layout, columns)
    return take


def _parts(columns: list[str], settings: SourceSettings) -> tuple[list[str], dict[str, str]]:
    """(the parts of a conversation that the file has, {part: column} under the first of its usual names)."""
    usual = {part: found for part, names in PARTS.items() if part not in settings.constants
             and (found := next((name for name in names if name in columns), None)) is not None}
    return [part for part in PARTS if part in usual or part in settings.columns], usual


def _usual(name: str, layout: Layout, columns: list[str]) -> str | int:
    """Where a standard name stands if `columns` does not say: CoNLL has no names, CoNLL-U has its own."""
    if layout.format == "conll" and name in LISTS and len(columns) > 1:
        return 0 if name == "tokens" else len(columns) - 1
    return {"tokens": "form", "tags": "upos"}.get(name, name) if layout.format == "conllu" else name


class MissingColumn(DataError):
    """A standard `name` was not found; `guess`: the column (or its number from 0) that `columns` might say it is."""

    def __init__(self, name: str, guess: str | int | None, what: str, *, where: str, mend: str) -> None:
        super().__init__(what, where=where, mend=mend)
        self.name, self.guess = name, guess


def _missing(name: str, key: str | int, layout: Layout, columns: list[str]) -> MissingColumn:
    guess: str | None = None
    there = ", ".join(columns)
    if name == "messages":
        what = say("there is no column `messages`, and none with questions", "没有列 `messages`，也没有问题列")
        mend = say(f"say which they are: `columns: {{question: {columns[0]}, answer: {columns[-1]}}}`",
                   f"请指明是哪些列：`columns: {{question: {columns[0]}, answer: {columns[-1]}}}`")
    elif key in columns:
        what = say(f"several columns are called `{key}`", f"有多列名为 `{key}`")
        numbered = f"`columns: {{{name}: {columns.index(key)}}}`"
        mend = say(f"rename one in the file; in a recipe, its number from 0: {numbered}",
                   f"请在文件中改名；在配方中可用从 0 起的列号：{numbered}")
    else:
        what = say(f"there is no column `{key}`", f"没有列 `{key}`")
        mend = near(str(key), columns)
        if layout.format in TABLES and len(columns) == 1:
            mend = say(f"are the columns separated by something else than `{layout.separator}`? Set `separator`",
                       f"列是否并非以 `{layout.separator}` 分隔？请设置 `separator`")
        if not mend and name not in STRINGS and len(columns) == 1:  # that one is the text
            mend = say(f"these rows have no `{name}`: give a file that has",
                       f"这些数据没有 `{name}`：请换用有此列的文件")
        guess = None if mend else columns[0]
        mend = mend or say(f"say which it is: `columns: {{{name}: {columns[0]}}}`",
                           f"请指明是哪一列：`columns: {{{name}: {columns[0]}}}`")
    where = say(f"{layout.path}; columns found: {there}", f"{layout.path}；找到的列：{there}")
    return MissingColumn(name, guess, what, where=where, mend=mend)


def near(name: str, names: Iterable[str]) -> str:
    """`did you mean …?`, or nothing."""
    by_lower = {other.lower(): other for other in names}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1)
    if not found:
        return ""
    return say(f"did you mean `{by_lower[found[0]]}`?", f"是否想写 `{by_lower[found[0]]}`？")
