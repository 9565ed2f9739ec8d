"""Words: where each begins, for whole-word masking, for tags and for anyone who counts words.

In: a text and the places of its tokens. Out: one truth value a token. Chinese writes no spaces, so its words come
from rjieba (extra `zh`); elsewhere a word is a run of letters and digits, and every other sign is a word of its own.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from wenmo.errors import MissingExtra, say

# Unicode's script Han: ideographs of all planes, 々〆〇 and the numerals 〡–〩.
HAN = "\u2e80-\u2fd5\u3005-\u3007\u3021-\u3029\u3038-\u303b\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufad9\U00020000-\U000323af"
_HAN_RUN = re.compile(f"[{HAN}]+")
_CHINESE = re.compile(f"[{HAN}\u3000-\u303f\uff00-\uffef]")  # with the punctuation of full width
_UNIT = re.compile(rf"[{HAN}]|(?:(?![{HAN}])[^\W_])+")


def units(text: str) -> list[str]:
    """What two texts are compared by: each Han character, elsewhere each run of letters and digits, in small letters;
    punctuation does not count."""
    return _UNIT.findall(text.lower())


def split_words(text: str) -> list[str]:
    """The text in words, single signs and runs of spaces, which joined are the text again.

    Raises MissingExtra for Chinese text without rjieba.
    """
    return list(_split(text))


def word_starts(text: str, offsets: Sequence[tuple[int, int]]) -> NDArray[np.bool_]:
    """Whether each token begins a word; `offsets` are (start, end) in characters of `text`, in order.

    A token that stands across a word's border begins none: it goes with the word it begins in. The pieces of one
    character go together. A token of spaces alone begins a word, so that no word is masked for its sake.
    Raises MissingExtra for Chinese text without rjieba.
    """
    words = _words(text)
    result = np.ones(len(offsets), dtype=np.bool_)
    previous = -1
    for i, (start, end) in enumerate(offsets):
        covered = [words[place] for place in range(start, end) if words[place] >= 0]
        if covered:
            result[i] = covered[0] != previous
        previous = covered[-1] if covered else -1
    return result


def _words(text: str) -> NDArray[np.int64]:
    """The number of the word each character belongs to; -1 for spaces."""
    words = np.full(len(text), -1, dtype=np.int64)
    place = number = 0
    for word in _split(text):
        if not word.isspace():
            words[place:place + len(word)] = number
            number += 1
        place += len(word)
    return words


def _split(text: str, cut: Callable[[str], list[str]] | None = None) -> Iterator[str]:
    """`text` in words, single signs and runs of spaces; joined they are `text`. `cut`: a run of Han into its words."""
    place = 0
    for run in _HAN_RUN.finditer(text):
        yield from _split_spaced(text[place:run.start()])
        yield from (cut or _cut)(run[0])
        place = run.end()
    yield from _split_spaced(text[place:])


def _split_spaced(text: str) -> Iterator[str]:
    """Letters and digits with the marks on them (as in Hindi) make words; all else stands alone."""
    word = ""
    for character in text:
        if character.isalnum() or (word and unicodedata.category(character).startswith("M")):
            word += character
            continue
        if word:
            yield word
        word = ""
        yield character
    if word:
        yield word


def _cut(run: str) -> list[str]:
    if len(run) == 1:
        return [run]
    try:
        import rjieba
    except ImportError as error:
        raise MissingExtra("rjieba", "zh", say("finding Chinese words", "中文分词")) from error
    return list(rjieba.cut(run))


# Words and characters that tags belong to --------------------------------------------------------------


def joined(words: Sequence[str]) -> str:
    """Words as a text: a space between two of them, unless a Han character (or its punctuation) stands at either side.

    `place_words` says where each of them stands in it.
    """
    parts = [""]
    for word in words:
        parts.append(" " if _spaced(parts[-1], word) else "")
        parts.append(word)
    return "".join(parts)


def place_words(words: Sequence[str]) -> list[tuple[int, int]]:
    """(start, end) in characters of `joined(words)`."""
    places = []
    end, before = 0, ""
    for word in words:
        start = end + _spaced(before, word)
        end, before = start + len(word), word
        places.append((start, end))
    return places


def split_units(text: str, units: str) -> list[tuple[int, int]]:
    """Where the units stand that tags belong to, (start, end) in characters; white space belongs to none.

    `characters`: every character. `words`: runs of letters and digits, every other sign alone, Chinese cut by rjieba.
    `mixed`: Han characters one by one, words elsewhere.
    """
    if units == "characters":
        return [(place, place + 1) for place, character in enumerate(text) if not character.isspace()]
    places, end = [], 0
    for word in _split(text, list if units == "mixed" else _cut):
        start, end = end, end + len(word)
        if not word.isspace():
            places.append((start, end))
    return places


def _spaced(before: str, after: str) -> bool:
    return bool(before) and bool(after) and not (_CHINESE.match(before[-1]) or _CHINESE.match(after[0]))
