"""Augmentation: training texts changed a little, anew in each epoch, under the label that they have.

In: rows, how each becomes sequences, and which changes at what rate. Out: Examples whose texts are a pure function of
(seed, epoch, row): nothing is saved, and a resumed run reads what the first would have read.

A text is changed by one of the ways asked for, drawn by lot (as Wei & Zou 2019 do); where the lot falls on one that
finds nothing to do there, on another. No thesaurus is needed: what EDA does with synonyms is done with marks of
punctuation (AEDA) and, for replacing, with words that say as little as the one that goes (UDA).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as ListOf
from typing import Any

import numpy as np
from pydantic import model_validator

from wenmo.config import Fraction, Settings
from wenmo.data.sequence import Sequence, examples_of
from wenmo.device import numpy_rng
from wenmo.errors import DataError, say
from wenmo.text.pinyin import homophones
from wenmo.text.words import HAN, split_words

Row = Mapping[str, Any]
FEWEST_WORDS = 4  # a shorter text is left as it is: each of its words may be the one that counts
HAN_MARKS, MARKS = "，。；：？！", ",.;:?!"
_HAN = re.compile(f"[{HAN}]")
_KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


class AugmentSettings(Settings):
    """`share` of the rows are changed in an epoch, each in one of the ways that have a rate.

    delete: words left out (Wei & Zou 2019). swap: pairs of words that change places (there too). span: one run of words
    left out. insert: marks of punctuation put in, up to this share of the words (Karimi et al. 2021). replace: words
    that say little for others that do (Xie et al. 2020, §3.2). typo: letters hit beside, twice, not at all, or in the
    wrong order. homophone: Han characters for others that sound alike.
    """

    share: Fraction = 0.5
    delete: Fraction = 0.0
    swap: Fraction = 0.0
    span: Fraction = 0.0
    insert: Fraction = 0.0
    replace: Fraction = 0.0
    typo: Fraction = 0.0
    homophone: Fraction = 0.0

    @property
    def rates(self) -> dict[str, float]:
        return {name: rate for name, rate in self if name != "share" and rate}

    @model_validator(mode="after")
    def _acts(self) -> AugmentSettings:
        if not self.rates or not self.share:
            raise ValueError(say("it does nothing: give a rate to one of delete, swap, span, insert, replace, typo, "
                                 "homophone, and a `share` above 0",
                                 "不起作用：请为 delete、swap、span、insert、replace、typo、homophone 之一设定比例，"
                                 "且 `share` 须大于 0"))
        return self


class Augmentation:
    """The changes, with what they know from the training texts: which words say little, which characters sound alike.

    Raises MissingExtra for Chinese without the extra `zh`.
    """

    def __init__(self, settings: AugmentSettings, texts: Iterable[str]) -> None:
        self.settings = settings
        texts = list(texts)
        self._words = _WordScores(map(split_words, texts)) if settings.replace else None
        self._alike = homophones(texts) if settings.homophone else {}

    def change(self, text: str, rng: np.random.Generator) -> str:
        """The text, changed in one way; as it is where it is short or nothing applies."""
        pieces = split_words(text)
        places = [place for place, piece in enumerate(pieces) if piece[0].isalnum()]
        if len(places) < FEWEST_WORDS:
            return text
        rates = self.settings.rates
        for way in rng.permutation(sorted(rates)).tolist():
            changed = "".join(getattr(self, f"_{way}")(list(pieces), places, rates[way], rng))
            if changed != text:
                return changed
        return text

    # Ways: (pieces, places of the words among them, rate) → pieces ---------------------------------------

    def _delete(self, pieces: list[str], places: list[int], rate: float, rng: np.random.Generator) -> list[str]:
        gone = rng.random(len(places)) < rate
        if gone.all():
            gone[rng.integers(len(places))] = False
        return _without(pieces, [place for place, is_gone in zip(places, gone, strict=True) if is_gone])

    def _span(self, pieces: list[str], places: list[int], rate: float, rng: np.random.Generator) -> list[str]:
        size = _how_many(rate, len(places) - 1)
        first = int(rng.integers(len(places) - size + 1))
        return _without(pieces, range(places[first], places[first + size - 1] + 1))  # with the signs between them

    def _swap(self, pieces: list[str], places: list[int], rate: float, rng: np.random.Generator) -> list[str]:
        for _ in range(_how_many(rate, len(places))):
            one, other = rng.choice(places, 2, replace=False).tolist()
            pieces[one], pieces[other] = pieces[other], pieces[one]
        return pieces

    def _insert(self, pieces: list[str], places: list[int], rate: float, rng: np.random.Generator) -> list[str]:
        number = int(rng.integers(1, _how_many(rate, len(places)) + 1))
        for place in rng.choice(places, number, replace=False).tolist():
            han = _HAN.match(pieces[place])
            mark = str(rng.choice(list(HAN_MARKS if han else MARKS)))
            pieces[place] = (mark if han else f"{mark} ") + pieces[place]
        return pieces

    def _replace(self, pieces: list[str], places: list[int], rate: float, rng: np.random.Generator) -> list[str]:
        assert self._words is not None
        chances = self._words.chances([pieces[place] for place in places], rate)
        for place, chance in zip(places, chances, strict=True):
            if rng.random() < chance:
                pieces[place] = self._words.draw(rng)
        return pieces

    def _typo(self, pieces: list[str], places: list[int], rate: float, rng: np.random.Generator) -> list[str]:
        for place in places:
            if pieces[place].isascii() and pieces[place].isalpha() and len(pieces[place]) > 2:
                pieces[place] = _mistyped(pieces[place], rate, rng)
        return pieces

    def _homophone(self, pieces: list[str], places: list[int], rate: float, rng: np.random.Generator) -> list[str]:
        for place in places:
            pieces[place] = "".join(
                str(rng.choice(list(self._alike[character])))
                if character in self._alike and rng.random() < rate else character for character in pieces[place])
        return pieces


def _how_many(rate: float, most: int) -> int:
    return min(max(1, round(rate * most)), most)


def _without(pieces: list[str], gone: ListOf[int]) -> list[str]:
    """Without what stands at these places, and without the space behind each."""
    left_out = {*gone, *(place + 1 for place in gone if place + 1 < len(pieces) and pieces[place + 1].isspace())}
    return [piece for place, piece in enumerate(pieces) if place not in left_out]


def _mistyped(word: str, rate: float, rng: np.random.Generator) -> str:
    letters = list(word)
    for place in np.flatnonzero(rng.random(len(letters)) < rate).tolist():
        match int(rng.integers(4)):
            case 0:
                letters[place] = _beside(letters[place], rng)
            case 1:
                letters[place] *= 2
            case 2 if place + 1 < len(letters):
                letters[place], letters[place + 1] = letters[place + 1], letters[place]
            case _:
                letters[place] = ""
    return "".join(letters) or word


def _beside(letter: str, rng: np.random.Generator) -> str:
    """The key to the left or right; what was hit twice or dropped before stays."""
    row = next((row for row in _KEYS if letter.lower() in row), "") if letter else ""
    near = [row[at] for at in (row.find(letter.lower()) - 1, row.find(letter.lower()) + 1) if 0 <= at < len(row)]
    if not row or not near:
        return letter
    found = str(rng.choice(near))
    return found.upper() if letter.isupper() else found


class _WordScores:
    """UDA's replacement (Xie et al. 2020, §3.2 and appendix B): tf·idf over the training texts says how much a word
    says; one that says little is likely to go, and what comes for it is drawn from the words that say little."""

    def __init__(self, texts: Iterable[list[str]]) -> None:
        counts: Counter[str] = Counter()
        documents: Counter[str] = Counter()
        number = 0
        for pieces in texts:
            words = [piece for piece in pieces if piece[0].isalnum()]
            counts.update(words)
            documents.update(set(words))
            number += 1
        self._idf = {word: math.log(number / found) for word, found in documents.items()}
        self._vocabulary = sorted(counts)
        said = np.array([counts[word] * self._idf[word] for word in self._vocabulary])
        little = said.max(initial=0.0) - said
        self._ends = np.cumsum(little if little.any() else np.ones_like(said))

    def chances(self, words: ListOf[str], rate: float) -> np.ndarray:
        """How likely each is to go: `rate` on average over the words of a text, none for its weightiest."""
        counts = Counter(words)
        said = np.array([counts[word] / len(words) * self._idf.get(word, 0.0) for word in words])
        little = said.max() - said
        return np.minimum(1.0, rate * little / little.mean()) if little.any() else np.full(len(words), rate)

    def draw(self, rng: np.random.Generator) -> str:
        return self._vocabulary[int(np.searchsorted(self._ends, rng.random() * self._ends[-1], side="right"))]


# Examples ---------------------------------------------------------------------------------------------


class Augmented:
    """Examples of rows that are encoded anew in every epoch; see `data.examples.Examples`.

    `encode(number, row)` gives a row's sequences; `columns` are its texts. What cannot be encoded once it is changed
    (too long for a recipe that refuses such texts) is read as it is. Lengths of the epochs asked for are remembered.
    """

    def __init__(self, rows: ListOf[Row], columns: ListOf[str], encode: Callable[[int, Row], list[Sequence]],
                 augmentation: Augmentation, seed: int) -> None:
        self._rows, self._columns, self._encode = rows, columns, encode
        self._augmentation, self._seed = augmentation, seed
        self._plans: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # epoch → first example of each row, lengths

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def row_end(self) -> int:
        return len(self._rows)

    def lengths(self, epoch: int) -> np.ndarray:
        return self._plan(epoch)[1]

    def sequences(self, index: int, epoch: int) -> list[Sequence]:
        first, _ = self._plan(epoch)
        row = int(np.searchsorted(first, index, side="right")) - 1
        return self._examples(row, epoch)[index - int(first[row])]

    def _plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        if epoch not in self._plans:
            lengths = [[sum(map(len, example)) for example in self._examples(row, epoch)]
                       for row in range(len(self._rows))]
            first = np.cumsum([0] + [len(each) for each in lengths])
            self._plans[epoch] = first, np.array([length for each in lengths for length in each], np.int64)
        return self._plans[epoch]

    def _examples(self, number: int, epoch: int) -> list[list[Sequence]]:
        row, rng = self._rows[number], numpy_rng(self._seed, "augment", epoch, number)
        if rng.random() < self._augmentation.settings.share:
            changed = {**row, **{name: self._augmentation.change(str(row[name]), rng) for name in self._columns}}
            try:
                return examples_of(self._encode(number, changed))
            except DataError:
                pass  # as it is: it was encoded before
        return examples_of(self._encode(number, row))
