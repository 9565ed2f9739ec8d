"""What became of the rows: counts that must add up, and the place where bad rows are put aside.

In: the verdict on each row. Out: one line to print, and a JSONL file that holds each bad row with its reason.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from wenmo.errors import DataError, say
from wenmo.files import append_jsonl, read_jsonl, storage_errors, write_jsonl


@dataclass
class Counts:
    """read = kept + cut + quarantined + duplicate. `conflicting` of the duplicates differ in another column."""

    read: int = 0
    kept: int = 0
    cut: int = 0
    quarantined: int = 0
    duplicate: int = 0
    conflicting: int = 0

    def drop_duplicate(self, conflicting: bool) -> None:
        """A row that counted as kept turns out to be a duplicate."""
        self.kept -= 1
        self.duplicate += 1
        self.conflicting += conflicting

    def check(self) -> None:
        """AssertionError where a row was lost or invented."""
        assert self.read == self.kept + self.cut + self.quarantined + self.duplicate, self
        assert min(vars(self).values()) >= 0, self
        assert self.conflicting <= self.duplicate, self

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def line(self, name: str) -> str:
        """`reviews.csv: 35,123 rows in · 17,410 kept · 0 cut · 3 quarantined · 17,710 duplicate`."""
        line = say(
            f"{name}: {self.read:,} rows in · {self.kept:,} kept · {self.cut:,} cut · "
            f"{self.quarantined:,} quarantined · {self.duplicate:,} duplicate",
            f"{name}：读入 {self.read:,} 行 · 保留 {self.kept:,} · 截去 {self.cut:,} · "
            f"隔离 {self.quarantined:,} · 重复 {self.duplicate:,}",
        )
        if self.conflicting:
            line += say(f" ({self.conflicting:,} of them conflicting)", f"（其中 {self.conflicting:,} 行互相矛盾）")
        return line


class Quarantine:
    """A JSONL file of bad rows: file, number, reason, raw. Reading the same data again adds nothing to it.

    In `raw`, a byte that did not decode stands as `\\xff`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: set[tuple[str, int]] = set()
        if path.exists():
            try:
                rows = read_jsonl(path)
                self._known = {(row["file"], row["number"]) for row in rows}
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    say("this is not a quarantine file", "这不是隔离文件"), where=str(path),
                    mend=say("move it away or name another file", "请移走它，或另选文件"),
                ) from error
            if not path.read_bytes().endswith(b"\n"):  # the last line was cut short by a crash
                write_jsonl(path, rows)

    def add(self, file: str, number: int, reason: str, raw: str) -> None:
        file = _printable(file)
        if (file, number) in self._known:
            return
        if not self._known:
            with storage_errors(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
        self._known.add((file, number))
        append_jsonl(self.path, {"file": file, "number": number, "reason": reason, "raw": _printable(raw)})


def _printable(text: str) -> str:
    """`text` without the lone surrogates that no UTF-8 file can hold."""
    return re.sub("[\ud800-\udfff]", lambda found: _escape(ord(found[0])), text)


def _escape(code: int) -> str:
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else json.dumps(chr(code))[1:-1]
