"""Tables: fields between separators, with quotes (RFC 4180) or without.

In: a text stream. Out: records whose fields are lists, the ones with wrong quotes among them with the reason. The
width of the rows is the intake's affair: it knows the header.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator
from typing import TextIO

from wenmo.errors import say
from wenmo.text.records import Record

# A quote that never closes swallows the rows after it; this bounds how many, in characters.
_FIELD_CHARACTERS = 1 << 24
SEPARATORS = (",", ";", "\t", "|")
_SAMPLE_CHARACTERS = 1 << 16
_EVEN = 0.8  # of the first rows have as many fields as the first; 0.97 in sts-b, 1.0 in files without faults


class _Lines:
    """The lines for csv.reader; `taken` are those of the record at hand, and can be put back."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._waiting: deque[str] = deque()
        self.taken: list[str] = []

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._waiting.popleft() if self._waiting else next(self._stream)
        self.taken.append(line)
        return line

    def put_back(self, lines: list[str]) -> None:
        self._waiting.extendleft(reversed(lines))


def quoted_table(stream: TextIO, separator: str) -> Iterator[Record]:
    """RFC 4180. Where the quotes are wrong, only the line in which the record begins is given up:
    most often a stray quote opened it, and the lines that it swallowed are good rows."""
    csv.field_size_limit(max(csv.field_size_limit(), _FIELD_CHARACTERS))  # the module knows no other place for it
    lines = _Lines(stream)
    reader = csv.reader(lines, delimiter=separator, strict=True)
    number = 1
    while True:
        lines.taken = []
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            lines.put_back(lines.taken[1:])
            yield Record(number, [], lines.taken[0], say(f"quotes are wrong: {error}", f"引号有误：{error}"))
            number += 1
            continue
        if fields:
            yield Record(number, fields, lines.taken[0] if len(lines.taken) == 1 else "".join(lines.taken))
        number += len(lines.taken)


def plain_table(stream: TextIO, separator: str) -> Iterator[Record]:
    """Quotes are ordinary characters here, as in nearly all published sets between tabs."""
    for number, line in enumerate(stream, 1):
        line = line.removesuffix("\n")
        if line:
            yield Record(number, line.split(separator), line)


def find_separator(stream: TextIO) -> str:
    """The one of SEPARATORS by which most of the first rows fall into as many fields as the first row, two or more.

    A comma where nothing does, and where it does as well as another.
    """
    sample = stream.read(_SAMPLE_CHARACTERS)
    lines = sample.splitlines(keepends=True)
    if len(sample) == _SAMPLE_CHARACTERS:
        lines = lines[:-1]
    evenness = {}
    for separator in SEPARATORS:
        widths = [len(row) for row in csv.reader(lines, delimiter=separator) if row]
        if widths and widths[0] > 1:
            evenness[separator] = widths.count(widths[0]) / len(widths)
    best = max(evenness, key=evenness.__getitem__, default=",")
    return best if evenness.get(best, 0) >= _EVEN else ","
