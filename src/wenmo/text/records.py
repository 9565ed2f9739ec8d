"""What a file is cut into: records, the layout that tells how, and what makes a text unusable.

In: nothing. Out: the types that the rooms of the formats (tables, conll, json_text, formats) share.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from wenmo.errors import say

Format = Literal[
    "txt", "csv", "tsv", "jsonl", "json", "parquet", "conll", "conllu", "squad", "alpaca", "sharegpt", "yaml"]
Unit = Literal["line", "paragraph", "file"]
Shape = Literal["", "alpaca", "sharegpt"]


class Record(NamedTuple):
    """`fields` is a list by column number, or a dict by key; `fault` is empty or says why there are none."""

    number: int
    fields: Any
    raw: str
    fault: str = ""


@dataclass(frozen=True)
class Beside:
    """A file whose n-th line goes with the n-th line of another."""

    path: Path
    encoding: str


@dataclass(frozen=True)
class Layout:
    """What has to be known to read a file; `columns` are those to read, for Parquet, which has no encoding.

    `shape`: what is made of the objects of a JSON file. `format` is never alpaca or sharegpt here, which are JSON.
    """

    path: Path
    format: Format
    encoding: str
    separator: str
    unit: Unit
    quoted: bool = False
    shape: Shape = ""
    columns: tuple[str, ...] = ()
    beside: tuple[Beside, ...] = ()

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files that the rows come from."""
        return (self.path, *(other.path for other in self.beside))


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
        if 0xDC80 <= code <= 0xDCFF and not encoding.startswith("utf-16"):
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
