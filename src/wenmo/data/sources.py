"""Several sources together: rows without duplicates, counts that add up, rows held out for choosing.

In: the settings of the sources. Out: their rows, as a stream (language modelling need not hold them) or as lists
with a hash of the files, so that a resumed run can refuse changed data. Of rows that are equal in the columns
`unique_by`, after normalisation and across all sources, the first is kept. Only 16-byte hashes are remembered.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

from wenmo.errors import DataError, say
from wenmo.files import sha256, sha256_file
from wenmo.seeds import key
from wenmo.text.archive import reading, stored
from wenmo.text.intake import Counts, Quarantine, Row, Source, SourceSettings, open_source, read_rows


@dataclass(frozen=True)
class SourceRows:
    """What one source gave; `sha256` is that of its files' bytes, whatever their names."""

    source: Source
    rows: list[Row]
    counts: Counts
    sha256: str

    def __str__(self) -> str:
        """The line to print: what was read and what became of it."""
        return self.counts.line(self.source.settings.path)


def open_sources(
    sources: Sequence[SourceSettings], root: Path,
    required: tuple[str, ...] = ("text",), optional: tuple[str, ...] = ("label",),
) -> list[Source]:  # fmt: skip
    """All of them, before the first row of any is read; errors as in `open_source`."""
    return [open_source(settings, root, required, optional) for settings in sources]


def stream_rows(
    sources: Sequence[Source], counts: Sequence[Counts],
    unique_by: tuple[str, ...] = ("text",), quarantine: Quarantine | None = None,
) -> Iterator[tuple[int, Row]]:  # fmt: skip
    """(number of the source, row), source after source; `counts`, one a source, are kept up to date.

    An empty `unique_by` keeps duplicates, and then nothing is remembered. A duplicate that differs from the kept
    row in another column (the same text under another label) is counted as conflicting.
    """
    seen: dict[tuple[tuple[str, ...], bytes], bytes] = {}  # a text may stand in the rows of several tasks
    for number, (source, count) in enumerate(zip(sources, counts, strict=True)):
        for row in read_rows(source, count, quarantine):
            if unique_by:
                others = [name for name in sorted(row.values) if name not in unique_by]
                rest = _digest(row, others) if others else b""
                content = source.settings.tasks, _digest(row, unique_by)
                if content in seen:
                    count.drop_duplicate(conflicting=seen[content] != rest)
                    continue
                seen[content] = rest
            yield number, row
        count.check()


def read_opened(sources: Sequence[Source], unique_by: tuple[str, ...], quarantine: Path | None) -> list[SourceRows]:
    """`stream_rows` into lists. `quarantine` is the JSONL file for bad rows; without it they are only counted."""
    counts = [Counts() for _ in sources]
    rows: list[list[Row]] = [[] for _ in sources]
    aside = Quarantine(quarantine) if quarantine is not None and sources else None
    for number, row in stream_rows(sources, counts, unique_by, aside):
        rows[number].append(row)
    return [SourceRows(source, found, count, "") for source, found, count in zip(sources, rows, counts, strict=True)]


def read_sources(
    sources: Sequence[SourceSettings], root: Path,
    required: tuple[str, ...] = ("text",), optional: tuple[str, ...] = ("label",),
    unique_by: tuple[str, ...] = ("text",), quarantine: Path | None = None,
) -> list[SourceRows]:  # fmt: skip
    """Opened, read, and with the hash of their files."""
    found = read_opened(open_sources(sources, root, required, optional), unique_by, quarantine)
    return [replace(rows, sha256=fingerprint(rows.source)) for rows in found]


def fingerprint(source: Source) -> str:
    """Hex sha256 over the files' bytes as they are stored; one pass over the disk."""
    digests = []
    for found in source.files:
        for path in found.layout.paths:
            with reading(path):
                digests.append(sha256_file(stored(path)))
    return sha256(*digests)


# Held-out rows ----------------------------------------------------------------------------------------


def carve(rows: Sequence[Row], number: int, seed: int, where: str = "") -> tuple[list[Row], list[Row]]:
    """(the rest, `number` rows held out), both in the order of `rows`.

    A row's lot depends on the seed and its own content alone: the same rows are drawn in whatever order they
    come, and rows added later push out few. Carve after duplicates are dropped: equal rows share a lot.
    DataError where nothing would be left; `where` the number stands.
    """
    if number >= len(rows):
        raise DataError(
            say(f"cannot hold out {number:,} of {len(rows):,} rows", f"无法从 {len(rows):,} 行中留出 {number:,} 行"),
            where=where or f"carve: {number}", mend=say("hold out fewer rows, or name a file of its own for them",
                                                        "请减少留出的行数，或为其另设一个文件"))
    lots = [key(seed, "carve", _digest(row, sorted(row.values)).hex()) for row in rows]
    drawn = set(sorted(range(len(rows)), key=lots.__getitem__)[:number])
    return ([row for i, row in enumerate(rows) if i not in drawn], [row for i, row in enumerate(rows) if i in drawn])


def carve_sources(sources: Sequence[SourceRows], number: int, seed: int) -> tuple[list[SourceRows], list[Row]]:
    """`carve` over the rows of all sources together; what remains stays with its source."""
    _, drawn = carve([row for source in sources for row in source.rows], number, seed)
    gone = {id(row) for row in drawn}
    return [replace(s, rows=[row for row in s.rows if id(row) not in gone]) for s in sources], drawn


def fold_numbers(rows: Sequence[Row], num_folds: int, seed: int, unique_by: tuple[str, ...] = ("text",),
                 class_column: str | None = None) -> list[int]:
    """The fold, 1 to `num_folds`, in which each row is held out.

    Texts are dealt in the order of their lots, which the seed and their contents alone give, so that folds differ by
    one text at most; rows with the same text stay together. With a `class_column` class after class is dealt, and
    each fold has its share of every one. DataError where there are fewer texts than folds, or a class has one only.
    """
    names = [_digest(row, unique_by) for row in rows]
    class_of: dict[bytes, str] = {}
    for name, row in zip(names, rows, strict=True):
        its = "" if class_column is None else str(row.values[class_column])
        class_of[name] = min(its, class_of.get(name, its))  # of a text under two labels, whatever the order of rows
    if len(class_of) < num_folds:
        raise DataError(
            say(f"{len(class_of):,} different texts cannot make {num_folds} folds",
                f"{len(class_of):,} 条不同的文本无法分成 {num_folds} 折"),
            where=f"folds: {num_folds}", mend=say("make fewer folds, or give more rows", "请减少折数，或提供更多数据"))
    if class_column is not None:
        sizes = Counter(class_of.values())
        alone = sorted(label for label, size in sizes.items() if size == 1)
        if alone:
            raise DataError(
                say(f"one text only is `{', '.join(alone)}`: held out, nothing of its class is left to learn from",
                    f"`{'、'.join(alone)}` 只有一条文本：留出后该类别便没有可供学习的数据"),
                where=f"folds: {num_folds}",
                mend=say("give more rows of it, or take it out", "请补充该类别的数据，或将其去掉"))
    dealt = sorted(class_of, key=lambda name: (class_of[name], key(seed, "folds", name.hex())))
    fold_of = {name: 1 + place % num_folds for place, name in enumerate(dealt)}
    return [fold_of[name] for name in names]


def contents(rows: Iterable[Row], unique_by: tuple[str, ...] = ("text",)) -> set[bytes]:
    """The hashes by which `without` knows these rows."""
    return {_digest(row, unique_by) for row in rows}


def without(rows: Iterable[Row], seen: Set[bytes], unique_by: tuple[str, ...] = ("text",)) -> list[Row]:
    """The rows that are not among `contents` of others: held-out rows must not be in training."""
    return [row for row in rows if _digest(row, unique_by) not in seen]


def _digest(row: Row, names: Sequence[str]) -> bytes:
    """16 bytes of blake2b over the values; a label counts alike as 1 (JSON) and "1" (csv)."""
    digest = blake2b(digest_size=16)
    for name in names:
        value = row.values.get(name)
        text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
        data = text.encode("utf-8")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.digest()
