"""Annotated sentences: CoNLL's columns, a token a line and a blank line after each sentence; and CoNLL-U.

In: a text stream. Out: a record for each sentence: for CoNLL a list of columns, each a list with one string a token;
for CoNLL-U a dict of such lists by the names of its fields, with what the comments say (`text`, `sent_id`). A line of
the wrong width costs its sentence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, TextIO

from wenmo.errors import say
from wenmo.text.records import Record

CONLLU_FIELDS = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
_COMMENT = re.compile(r"#\s*(\S+)\s*=\s?(.*)")
_NOT_A_WORD = re.compile(r"\d+[-.]\d+")  # a range of a multiword token, or an empty node


def conll(stream: TextIO, separator: str) -> Iterator[Record]:
    """`separator` empty: a tab where the sentence has one, else white space. `-DOCSTART-` is no sentence."""
    for number, lines in _sentences(stream):
        if lines[0].startswith("-DOCSTART-"):
            number, lines = number + 1, lines[1:]
            if not lines:
                continue
        # One separator for a sentence, that of its first token: a token may be any character but that.
        between = separator or ("\t" if "\t" in lines[0] else None)
        rows = [line.split(between) for line in lines]
        fault = _width_fault(rows, len(rows[0]), number)
        yield Record(number, [] if fault else [list(column) for column in zip(*rows, strict=True)],
                     "\n".join(lines), fault)


def conllu(stream: TextIO) -> Iterator[Record]:
    """https://universaldependencies.org/format.html. Ranges and empty nodes are left out: words alone are counted."""
    for number, lines in _sentences(stream):
        fields: dict[str, Any] = {}
        words, fault = [], ""
        for at, line in enumerate(lines, number):
            if line.startswith("#") and "\t" not in line:
                found = _COMMENT.match(line)
                if found and found[1] in ("text", "sent_id"):
                    fields[found[1]] = found[2]
                continue
            row = line.split("\t")
            fault = fault or _width_fault([row], len(CONLLU_FIELDS), at)
            if not _NOT_A_WORD.fullmatch(row[0]):
                words.append(row)
        if not words:
            if all(line.startswith("#") for line in lines):
                continue  # comments of the whole file
            fault = fault or say("no words", "没有词")
        if not fault:
            fields |= {name: list(column) for name, column in zip(CONLLU_FIELDS, zip(*words, strict=True), strict=True)}
        yield Record(number, {} if fault else fields, "\n".join(lines), fault)


def _sentences(stream: TextIO) -> Iterator[tuple[int, list[str]]]:
    """(number of its first line, its lines); a line of white space ends one too."""
    lines: list[str] = []
    number = 0
    for number, line in enumerate(stream, 1):
        line = line.removesuffix("\n")
        if line.strip():
            lines.append(line)
        elif lines:
            yield number - len(lines), lines
            lines = []
    if lines:
        yield number - len(lines) + 1, lines


def _width_fault(rows: list[list[str]], width: int, number: int) -> str:
    for at, row in enumerate(rows, number):
        if len(row) != width:
            return say(f"line {at} has {len(row)} columns instead of {width}",
                       f"第 {at} 行应有 {width} 列，实有 {len(row)} 列")
    return ""
