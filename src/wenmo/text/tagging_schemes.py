"""Tags ↔ entities: how a label on each word says where names begin and end, in the schemes of the field.

In: the tags of a sentence, one a word (or character), or entities as (first word, word after the last, type). Out: the
other. The schemes (Ramshaw & Marcus 1995; Ratinov & Roth 2009, §3), for `O O X X X Y O`, X and Y entities of a kind:

    io      I I I I      neighbours of a kind run into one another
    iob1    I I I B      B only where it must part neighbours
    bio     B I I B      also called IOB2
    bmes    B M E S      begin, middle, end, single; without O and types: Chinese word segmentation
    bioes   B I E S      the same in other letters; so is
    bilou   B I L U

Real annotations break their own rules (an I that follows O). `entities_of` reads what is meant and `num_repairs` counts
what had to be read so; `strict` leaves out what does not fit, as strict scoring does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

from wenmo.errors import DataError, say

Scheme = Literal["io", "iob1", "bio", "bmes", "bioes", "bilou"]
OUTSIDE = "O"


class Entity(NamedTuple):
    """`start` and `end` count words (or characters) from 0; `end` is the one after the last."""

    start: int
    end: int
    type: str


class _Letters(NamedTuple):
    """What a scheme calls the first word of an entity, those between, the last, and an only one."""

    first: str
    inner: str
    last: str
    single: str


_LETTERS: dict[Scheme, _Letters] = {
    "io": _Letters("I", "I", "I", "I"), "iob1": _Letters("I", "I", "I", "I"), "bio": _Letters("B", "I", "I", "B"),
    "bmes": _Letters("B", "M", "E", "S"), "bioes": _Letters("B", "I", "E", "S"), "bilou": _Letters("B", "I", "L", "U"),
}
SCHEMES = tuple(_LETTERS)
_BEGINS, _ENDS = frozenset("BSU"), frozenset("ELSU")
_KNOWN = frozenset("BIMELSU")


def parts(tag: str) -> tuple[str, str]:
    """`B-PER` → ("B", "PER"); `O` → ("O", ""); `M` → ("M", ""). DataError for what is a tag in no scheme."""
    letter, _, kind = tag.partition("-")
    if tag == OUTSIDE:
        return OUTSIDE, ""
    if letter not in _KNOWN:
        raise DataError(
            say(f"the tag `{tag}` fits no scheme of entities", f"标签 `{tag}` 不属于任何实体标注方案"), where="tags",
            mend=say("tags are O, or a letter (B I M E S L U), a hyphen and a type: B-PER; for tags of another kind, "
                     "such as parts of speech, set `task.target: tags`",
                     "标签应为 O，或“字母（B I M E S L U）-类型”，如 B-PER；词性等其他标签请设 `task.target: tags`"))
    return letter, kind


def scheme_of(sentences: Iterable[Sequence[str]]) -> Scheme:
    """The scheme that the tags are written in, by the letters that occur. DataError for letters of two schemes."""
    letters: set[str] = set()
    parting = every = True  # a B always parts neighbours of a kind; each entity begins with one
    for tags in sentences:
        before = (OUTSIDE, "")
        for tag in tags:
            letter, kind = parts(tag)
            letters.add(letter)
            if letter == "B":
                parting &= before[0] in "BI" and before[1] == kind
            if letter == "I":
                every &= before[0] in "BI" and before[1] == kind
            before = letter, kind
    used = letters - {OUTSIDE}
    if used == {"I"}:
        return "io"
    if used <= {"B", "I"}:
        return "iob1" if parting and not every else "bio"
    for scheme in ("bmes", "bioes", "bilou"):
        if used <= set(_LETTERS[scheme]):
            return scheme
    raise DataError(
        say(f"the letters {' '.join(sorted(used))} of the tags belong to no one scheme",
            f"标签的字母 {' '.join(sorted(used))} 不属于同一种方案"), where="tags",
        mend=say(f"use one of {', '.join(SCHEMES)} throughout", f"请统一使用 {', '.join(SCHEMES)} 之一"))


def tags_of(entities: Iterable[Entity], num_words: int, scheme: Scheme) -> list[str]:
    """One tag a word. The entities must not overlap (see `without_conflicts`)."""
    letters = _LETTERS[scheme]
    tags = [OUTSIDE] * num_words
    before = Entity(-1, -1, "")
    for entity in sorted(entities):
        assert before.end <= entity.start < entity.end <= num_words, "entities overlap, or reach beyond the sentence"
        suffix = f"-{entity.type}" if entity.type else ""
        tags[entity.start : entity.end] = [letters.inner + suffix] * (entity.end - entity.start)
        tags[entity.start], tags[entity.end - 1] = letters.first + suffix, letters.last + suffix
        if entity.end - entity.start == 1:
            tags[entity.start] = letters.single + suffix
        if scheme == "iob1" and before.end == entity.start and before.type == entity.type:
            tags[entity.start] = "B" + suffix
        before = entity
    return tags


def entities_of(tags: Sequence[str], strict: Scheme | None = None) -> list[Entity]:
    """The entities in order. An I (M, E, L) that continues nothing begins an entity; one without its end ends where
    something else begins. With `strict` only what is written wholly as that scheme has it is an entity."""
    found: list[Entity] = []
    start, kind = -1, ""  # of the open entity; −1: none is open

    def close(end: int) -> None:
        if start >= 0 and (strict is None or _as_written(tags, Entity(start, end, kind), strict)):
            found.append(Entity(start, end, kind))

    for place, tag in enumerate(tags):
        letter, its = parts(tag)
        if letter == OUTSIDE or letter in _BEGINS or its != kind or start < 0:
            close(place)
            start, kind = (-1, "") if letter == OUTSIDE else (place, its)
        if letter in _ENDS:
            close(place + 1)
            start, kind = -1, ""
    close(len(tags))
    return found


def _as_written(tags: Sequence[str], entity: Entity, scheme: Scheme) -> bool:
    """Whether these words are tagged as the scheme would tag this entity."""
    wanted = tags_of([Entity(0, entity.end - entity.start, entity.type)], entity.end - entity.start, scheme)
    mine = list(tags[entity.start : entity.end])
    return mine == wanted or (scheme == "iob1" and parts(mine[0])[0] == "B" and mine[1:] == wanted[1:])


def num_repairs(tags: Sequence[str], scheme: Scheme) -> int:
    """How many tags must be changed for the sentence to be well-formed in `scheme` with the entities that it means."""
    right = tags_of(entities_of(tags), len(tags), scheme)
    return sum(mine != wanted for mine, wanted in zip(tags, right, strict=True))


def convert(tags: Sequence[str], scheme: Scheme) -> list[str]:
    """The same entities in another scheme, well-formed whatever the first was. (`io` cannot part neighbours.)"""
    return tags_of(entities_of(tags), len(tags), scheme)


def all_tags(types: Sequence[str], scheme: Scheme) -> list[str]:
    """Every tag that a scheme has for these types, O first; a type without a name is that of word segmentation, in
    which every character belongs to a word and there is no O."""
    letters = ["B", "I"] if scheme == "iob1" else list(dict.fromkeys(_LETTERS[scheme]))
    if list(types) == [""]:
        return letters
    return [OUTSIDE, *(f"{letter}-{kind}" for kind in types for letter in letters)]


def may_follow(before: str | None, after: str | None, scheme: Scheme) -> bool:
    """Whether `after` may stand right after `before` in a well-formed sentence; None is its beginning, or its end."""
    letters = _LETTERS[scheme]
    first, kind = parts(before) if before is not None else (OUTSIDE, "")
    second, its = parts(after) if after is not None else (OUTSIDE, "")
    if scheme == "io":
        return True
    if scheme == "iob1":
        return second != "B" or (first != OUTSIDE and kind == its)
    goes_on = second in {letters.inner, letters.last} - {letters.first, letters.single}
    if scheme == "bio":
        return not goes_on or (first != OUTSIDE and kind == its)
    is_open = first in (letters.first, letters.inner)
    return (goes_on and kind == its) if is_open else not goes_on


# Entities given by characters --------------------------------------------------------------------------


def without_conflicts(entities: Iterable[Entity]) -> tuple[list[Entity], list[Entity]]:
    """(those kept, those that overlap, cross or repeat a kept one), in order: the one that begins first is kept, and
    of two that begin together the longer."""
    kept: list[Entity] = []
    dropped: list[Entity] = []
    for entity in sorted(entities, key=lambda each: (each.start, -each.end)):
        (dropped if kept and entity.start < kept[-1].end else kept).append(entity)
    return kept, dropped


def on_words(entities: Iterable[Entity], words: Sequence[tuple[int, int]]) -> list[Entity]:
    """Entities that count characters → the same counting words, of which each takes those that it touches; one that
    touches none is left out. `words`: (start, end) in characters, in order."""
    result = []
    for entity in entities:
        touched = [number for number, (start, end) in enumerate(words) if start < entity.end and end > entity.start]
        if touched:
            result.append(Entity(touched[0], touched[-1] + 1, entity.type))
    return result


def words_as_entities(words: Sequence[str]) -> list[Entity]:
    """Segmented words → the characters that each takes up: what their tags are made from."""
    ends = [0]
    for word in words:
        ends.append(ends[-1] + len(word))
    return [Entity(start, end, "") for start, end in pairwise(ends) if end > start]
