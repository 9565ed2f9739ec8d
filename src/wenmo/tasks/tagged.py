"""A tagged row as what it says: a text, the units in it that carry tags, and what they are tagged with.

In: a row with `tokens` and `tags`, with `text` and `entities`, with words alone, or with a text that is only asked.
Out: a `Sentence`. DataError, with the row, for entities that are none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import index
from typing import Any, Literal

from wenmo.errors import DataError, say
from wenmo.tasks.task import row_name
from wenmo.tasks.units import Place
from wenmo.text import tagging_schemes as schemes
from wenmo.text.tagging_schemes import Entity
from wenmo.text.words import HAN, joined, place_words, split_units

Units = Literal["characters", "words", "mixed"]
Rows = Literal["tokens", "text"]
Target = Literal["entities", "tags", "words"]
Conflicts = Literal["refuse", "drop"]
_HAN = re.compile(f"[{HAN}]")


@dataclass(frozen=True, slots=True)
class Sentence:
    """`places`: of the units in `text`, in characters. `entities` count units. `of_text`: the row gave a text, and
    answers count its characters; else they count the row's tokens. `given`: entities as a row with a text has them, in
    characters."""

    text: str
    places: list[Place]
    of_text: bool
    tags: Sequence[str] = ()
    entities: Sequence[Entity] = ()
    given: Sequence[Entity] | None = None
    num_dropped: int = 0
    num_moved: int = 0

    def shown(self, entity: Entity) -> Place:
        """Where it begins and ends, as answers count."""
        if not self.of_text:
            return entity.start, entity.end
        return self.places[entity.start][0], self.places[entity.end - 1][1]

    def slice(self, entity: Entity) -> str:
        return self.text[self.places[entity.start][0] : self.places[entity.end - 1][1]]


def units_of(rows: Iterable[Sequence[str]]) -> Units:
    """What tokens are, as far as they tell: characters; words, where those in Chinese often have several characters, or
    there are none; or a mixture, Chinese by characters and all else by words."""
    single = several = runs = 0
    for tokens in rows:
        for token in tokens:
            if _HAN.search(token):
                single, several = single + (len(token) == 1), several + (len(token) > 1)
            else:
                runs += len(token) > 1 and any(map(str.isalnum, token))
    if 10 * several >= single:
        return "words"
    return "mixed" if 100 * runs > single else "characters"


def read(row: Mapping[str, Any], number: int, rows: Rows, target: Target, units: Units, conflicts: Conflicts, *,
         with_targets: bool) -> Sentence:
    """The row; with what it is tagged with, if that is asked for. `number`: of the row, for messages."""
    if rows == "text":
        text = str(row["text"])
        places = split_units(text, units)
        _refuse_empty(places, number)
        if not with_targets:
            return Sentence(text, places, of_text=True)
        kept, num_dropped = _given(row, text, number, conflicts)
        on_units, clashing = schemes.without_conflicts(schemes.on_words(kept, places))  # two in one word, once widened
        sentence = Sentence(text, places, True, (), on_units, kept, num_dropped + len(clashing))
        where = {sentence.shown(entity) for entity in on_units}
        return replace(sentence, num_moved=sum((entity.start, entity.end) not in where for entity in kept))
    tokens = tokens_of(row["tokens"], number)
    text = joined(tokens)
    if target == "words":
        places = split_units(text, "characters")
        _refuse_empty(places, number)
        words = [Entity(start, end, "") for start, end in place_words(tokens)]
        return Sentence(text, places, False, (), schemes.on_words(words, places) if with_targets else ())
    places = place_words(tokens)
    _refuse_empty(places, number)
    if not with_targets:
        return Sentence(text, places, of_text=False)
    tags = [str(tag) for tag in row["tags"]]
    if len(tags) != len(tokens):
        raise DataError(
            say(f"{len(tokens)} tokens and {len(tags)} tags", f"{len(tokens)} 个词元，却有 {len(tags)} 个标签"),
            where=row_name(number), mend=say("one tag for each token", "每个词元一个标签"))
    return Sentence(text, places, False, tags, schemes.entities_of(tags) if target == "entities" else ())


def tokens_of(value: Any, number: int) -> list[str]:
    """A list of words; a text is cut at white space."""
    if isinstance(value, str):
        return value.split()
    if not isinstance(value, list | tuple) or not all(isinstance(token, str | int | float) for token in value):
        raise DataError(say(f"these are no tokens: {value}", f"这不是词元的列表：{value}"), where=row_name(number),
                        mend='"tokens": ["Ann", "lives", "in", "Paris"]')
    return [str(token) for token in value]


def _given(row: Mapping[str, Any], text: str, number: int, conflicts: Conflicts) -> tuple[list[Entity], int]:
    """The row's entities in characters, and how many that overlap others were left out."""
    given = row["entities"]
    found = [_entity(each, text, number) for each in (given if isinstance(given, list | tuple) else [given])]
    kept, dropped = schemes.without_conflicts(found)
    if dropped and conflicts == "refuse":
        first = dropped[0]
        raise DataError(
            say(f"the entity `{text[first.start : first.end]}` ({first.start}–{first.end}) overlaps another",
                f"实体 `{text[first.start : first.end]}`（{first.start}–{first.end}）与另一实体重叠"),
            where=row_name(number), mend=say("correct the row, or leave such entities out: task.conflicts: drop",
                                           "改正该行，或略去这样的实体：task.conflicts: drop"))
    return kept, len(dropped)


def _entity(value: Any, text: str, number: int) -> Entity:
    """{"start", "end", "type"}, and `text` if it is there must be what stands at that place."""
    try:
        entity = Entity(index(value["start"]), index(value["end"]), str(value["type"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            say(f"not an entity: {value}", f"不是实体：{value}"), where=row_name(number),
            mend='{"start": 0, "end": 2, "type": "PER"}') from error
    shown = text[max(entity.start, 0) : max(entity.end, 0)]
    if not 0 <= entity.start < entity.end <= len(text) or not shown.strip() or value.get("text", shown) != shown:
        raise DataError(
            say(f"at {entity.start}–{entity.end} stands `{shown}`, not an entity `{value.get('text', '')}`",
                f"{entity.start}–{entity.end} 处是 `{shown}`，不是实体 `{value.get('text', '')}`"),
            where=row_name(number),
            mend=say("start and end count characters from 0, end is the one after the last",
                     "start 与 end 从 0 开始数字符，end 指最后一个字符之后"))
    return entity


def _refuse_empty(places: Sequence[Place], number: int) -> None:
    if not places:
        raise DataError(say("a sentence without a single word", "句子中没有任何词"), where=row_name(number),
                        mend=say("remove it", "请删除该行"))
