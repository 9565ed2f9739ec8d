"""Units and tokens: which of a tokenizer's tokens belong to each word, or character, that carries a tag.

In: a text and where its units stand. Out: for each unit ids of its own, at least one. Where a token lies across the
border of two units (one token 中国 for the characters 中 and 国), these units are encoded each by itself; everywhere
else the ids are those of the text as a whole. Long texts are cut into windows, and each unit answered in one of them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from wenmo.tasks.task import windows
from wenmo.text.tokenizer import Tokenizer

Place = tuple[int, int]  # (start, end) in characters


def ids_of_units(tokenizer: Tokenizer, text: str, units: Sequence[Place]) -> list[list[int]]:
    """The ids of each unit. One of which the tokenizer makes nothing gets its unknown token, or that of a `?`."""
    ids, offsets = tokenizer.encode_with_offsets(text)
    starts = [start for start, _ in units]
    result: list[list[int]] = [[] for _ in units]
    shared: set[int] = set()  # units that must be encoded apart
    for id, (start, end) in zip(ids, offsets, strict=True):
        piece = text[start:end]
        begin = start + len(piece) - len(piece.lstrip())
        last = start + len(piece.rstrip()) - 1
        if last < begin:
            continue  # spaces alone belong to no unit
        first_unit, last_unit = bisect_right(starts, begin) - 1, bisect_right(starts, last) - 1
        if first_unit != last_unit:
            shared.update(range(max(first_unit, 0), last_unit + 1))
        elif first_unit >= 0:
            result[first_unit].append(id)
    for number, (start, end) in enumerate(units):
        if number in shared or not result[number]:
            spaced = start > 0 and text[start - 1] == " "
            result[number] = tokenizer.encode(" " * spaced + text[start:end]) or _something(tokenizer)
    return result


def _something(tokenizer: Tokenizer) -> list[int]:
    return [tokenizer.unk_id] if tokenizer.unk_id is not None else tokenizer.encode("?")


class Window(NamedTuple):
    """`ids` of a stretch of the text; the units `first` to before `end` are answered in it, and `places` says which of
    the ids is each one's first."""

    ids: list[int]
    first: int
    end: int
    places: list[int]


def cut(units: Sequence[Sequence[int]], room: int, overlap: int) -> list[Window]:
    """The ids of all units in windows of at most `room`, each unit answered in the window in which its first id stands
    farthest from an edge (the beginning and the end of the text are none)."""
    flat = [id for ids in units for id in ids]
    spans = windows(len(flat), room, overlap)
    owned: list[list[tuple[int, int]]] = [[] for _ in spans]  # (unit, the place of its first id), by window
    number = place = 0
    for unit, ids in enumerate(units):
        while number + 1 < len(spans) and (place >= spans[number][1] or _distance(
                place, spans[number + 1], len(flat)) > _distance(place, spans[number], len(flat))):
            number += 1
        owned[number].append((unit, place))
        place += len(ids)
    return [Window(flat[start:end], own[0][0], own[-1][0] + 1, [place - start for _, place in own])
            for (start, end), own in zip(spans, owned, strict=True) if own]


def _distance(at: int, span: Place, num_tokens: int) -> int:
    """To the nearer edge of a window; −1 outside of it."""
    start, end = span
    if not start <= at < end:
        return -1
    left = at - start if start else num_tokens
    right = end - 1 - at if end < num_tokens else num_tokens
    return min(left, right)
