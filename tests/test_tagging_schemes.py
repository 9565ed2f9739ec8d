"""Tags ↔ entities: every scheme there and back, what is broken repaired, what is meant found."""

from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wenmo.errors import DataError
from wenmo.text.tagging_schemes import (
    SCHEMES,
    Entity,
    all_tags,
    convert,
    entities_of,
    may_follow,
    num_repairs,
    on_words,
    scheme_of,
    tags_of,
    without_conflicts,
)

EXAMPLE = [Entity(1, 4, "X"), Entity(4, 5, "X"), Entity(5, 6, "Y")]
WRITTEN = {
    "io": "O I-X I-X I-X I-X I-Y O", "iob1": "O I-X I-X I-X B-X I-Y O", "bio": "O B-X I-X I-X B-X B-Y O",
    "bmes": "O B-X M-X E-X S-X S-Y O", "bioes": "O B-X I-X E-X S-X S-Y O", "bilou": "O B-X I-X L-X U-X U-Y O",
}


@st.composite
def sentences(draw: st.DrawFn) -> tuple[list[Entity], int]:
    """Entities without overlaps, and the number of words."""
    entities, place = [], 0
    for gap, length, kind in draw(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4), st.sampled_from("XY")),
                                           max_size=6)):
        entities.append(Entity(place + gap, place + gap + length, kind))
        place += gap + length
    return entities, place + draw(st.integers(0, 2))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_example_of_the_table(scheme: str) -> None:
    tags = WRITTEN[scheme].split()
    assert tags_of(EXAMPLE, 7, scheme) == tags
    assert entities_of(tags) == (EXAMPLE if scheme != "io" else [Entity(1, 5, "X"), EXAMPLE[2]])
    assert scheme_of([tags]) == scheme
    assert convert(tags, "bmes") == WRITTEN["bmes"].split() or scheme == "io"


@given(sentences(), st.sampled_from([scheme for scheme in SCHEMES if scheme != "io"]), st.sampled_from(SCHEMES))
def test_there_and_back_between_all_schemes(sentence: tuple[list[Entity], int], first: str, second: str) -> None:
    entities, num_words = sentence
    tags = tags_of(entities, num_words, first)
    assert entities_of(tags) == entities_of(tags, strict=first) == entities
    assert num_repairs(tags, first) == 0
    other = convert(tags, second)
    assert num_repairs(other, second) == 0
    if second != "io":
        assert convert(other, first) == tags


@given(sentences(), st.sampled_from(SCHEMES))
def test_a_well_formed_sentence_takes_allowed_steps_alone(sentence: tuple[list[Entity], int], scheme: str) -> None:
    tags = tags_of(sentence[0], sentence[1], scheme)
    steps = zip([None, *tags], [*tags, None], strict=True)
    assert all(may_follow(before, after, scheme) for before, after in steps)


@settings(suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
@given(st.data(), st.sampled_from(SCHEMES))
def test_whatever_takes_allowed_steps_alone_is_well_formed(data: st.DataObject, scheme: str) -> None:
    tags: list[str] = []
    while len(tags) < 8:
        before = tags[-1] if tags else None
        tags.append(data.draw(st.sampled_from([tag for tag in all_tags("XY", scheme)
                                               if may_follow(before, tag, scheme)])))
    while not may_follow(tags[-1], None, scheme):
        tags.append(data.draw(st.sampled_from([tag for tag in all_tags("XY", scheme)
                                               if may_follow(tags[-1], tag, scheme)])))
    assert num_repairs(tags, scheme) == 0


def test_what_is_broken_is_read_as_it_was_meant() -> None:
    assert entities_of(["O", "I-X", "I-X", "O"]) == [Entity(1, 3, "X")]
    assert entities_of(["B-X", "I-Y", "I-Y"]) == [Entity(0, 1, "X"), Entity(1, 3, "Y")]
    assert entities_of(["B-X", "M-X", "O", "E-X"]) == [Entity(0, 2, "X"), Entity(3, 4, "X")]
    assert convert(["B-X", "M-X", "O"], "bmes") == ["B-X", "E-X", "O"]
    assert num_repairs(["B-X", "M-X", "O"], "bmes") == 1
    assert num_repairs(["O", "I-X"], "bio") == 1
    assert num_repairs(["O", "I-X"], "iob1") == 0


@given(st.lists(st.sampled_from(all_tags("XY", "bio")), max_size=9))
def test_strict_bio_finds_what_the_pattern_b_then_i_matches(tags: list[str]) -> None:
    """The published rule of strict scoring in IOB2: one B of a type and as many I of the same as follow."""
    letters = "".join({"O": "o", "B-X": "b", "I-X": "i", "B-Y": "d", "I-Y": "j"}[tag] for tag in tags)
    expected = [Entity(*found.span(), "X" if found[0][0] == "b" else "Y") for found in re.finditer("bi*|dj*", letters)]
    assert entities_of(tags, strict="bio") == expected


@given(st.lists(st.sampled_from(all_tags("XY", "bioes")), max_size=9))
def test_strict_bioes_finds_what_is_whole(tags: list[str]) -> None:
    letters = "".join({"O": "o", "B-X": "b", "I-X": "i", "E-X": "e", "S-X": "s", "B-Y": "B", "I-Y": "I", "E-Y": "E",
                       "S-Y": "S"}[tag] for tag in tags)
    expected = [Entity(*found.span(), "X" if found[0][0].islower() else "Y")
                for found in re.finditer("bi*e|s|BI*E|S", letters)]
    assert entities_of(tags, strict="bioes") == expected


def test_segmentation_has_no_types_and_no_outside() -> None:
    assert all_tags([""], "bmes") == ["B", "M", "E", "S"]
    assert entities_of(["B", "E", "S", "B", "M", "E"]) == [Entity(0, 2, ""), Entity(2, 3, ""), Entity(3, 6, "")]
    assert not may_follow("B", "S", "bmes")
    assert may_follow("E", "B", "bmes")
    assert not may_follow("B", None, "bmes")


@pytest.mark.parametrize("tags", [["NOUN"], ["X-PER"], ["B-X", "M-X", "L-X"]])
def test_tags_that_fit_no_scheme_are_refused_in_three_lines(tags: list[str]) -> None:
    with pytest.raises(DataError) as refused:
        scheme_of([tags])
    assert len(str(refused.value).splitlines()) == 3


def test_of_entities_that_overlap_the_first_and_the_longer_is_kept() -> None:
    long, crossing, inner, apart = Entity(0, 5, "X"), Entity(4, 7, "Y"), Entity(0, 2, "Y"), Entity(7, 8, "X")
    assert without_conflicts([apart, inner, crossing, long]) == ([long, apart], [inner, crossing])


def test_characters_are_counted_in_words() -> None:
    words = [(0, 3), (4, 8), (8, 9)]
    found = on_words([Entity(0, 3, "X"), Entity(5, 7, "Y"), Entity(3, 4, "Z"), Entity(4, 9, "X")], words)
    assert found == [Entity(0, 1, "X"), Entity(1, 2, "Y"), Entity(1, 3, "X")]
