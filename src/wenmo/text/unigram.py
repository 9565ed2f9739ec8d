"""Unigram: which pieces, and how likely each is (Kudo 2018, "Subword Regularization", §3.2).

In: words and how often each stands in the text. Out: pieces with their log probabilities, the likeliest first.
A word has many segmentations x = (x_1, …, x_n); each has the probability Π p(x_i), and the word that of their sum.
EM finds the p that make the words likeliest; the pieces that the likelihood misses least are dropped, until the
vocabulary fits.

It is our own because the trainer of `tokenizers` gives other scores each time it runs (it adds words up in the order
of a hash map that is seeded afresh), and a tokenizer must come out the same. All words are one lattice here, walked
by NumPy column by column: no Python loop sees a word.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_SEEDS = 10  # pieces to begin with, for each that is wanted
_KEPT = 0.75  # share of the pieces that one pruning leaves (Kudo keeps 80%, SentencePiece 75%)
_EM_STEPS = 2  # between two prunings
_LEAST_COUNT = 0.01  # of a character that must stay though no segmentation uses it
_BASE = np.uint64(0x9E3779B97F4A7C15)


def train(
    words: Mapping[str, int], size: int, max_characters: int = 16, min_frequency: int = 2
) -> list[tuple[str, float]]:
    """At most `size` pieces of at most `max_characters`, each with its natural-log probability.

    All characters of `words` are pieces, however many there are. Longer ones must occur `min_frequency` times. The
    same words and counts give the same pieces, in whatever order they come.
    """
    text = _Text.of(words)
    pieces, hashes, counts = _seeds(text, _SEEDS * size, max_characters, min_frequency)
    lattice = _Lattice.of(text, hashes)
    counts = counts * np.array([len(piece) for piece in pieces], dtype=np.float64)
    scores = np.log(counts / counts.sum())
    while True:
        for _ in range(_EM_STEPS):
            counts = np.maximum(lattice.expected_counts(scores, text.counts), _LEAST_COUNT)
            scores = np.log(counts / counts.sum())
        least = max(size, sum(len(piece) == 1 for piece in pieces))
        if len(pieces) <= least:
            break
        keep = _worth_keeping(pieces, hashes, counts, scores, max(least, int(_KEPT * len(pieces))))
        pieces = [pieces[i] for i in keep]
        hashes, counts, scores = hashes[keep], counts[keep], scores[keep]
        lattice = lattice.only(keep)
    found = [(piece, round(score, 6)) for piece, score in zip(pieces, scores.tolist(), strict=True)]
    return sorted(found, key=lambda item: (-item[1], item[0]))


def _worth_keeping(pieces: list[str], hashes: NDArray[np.uint64], counts: Floats, scores: Floats, number: int) -> Ints:
    """The places of the `number` pieces whose loss would cost most: Σ log P(word) falls by about count · (log p(x) −
    log P(x without x)), where the latter is the best segmentation of x into other pieces. Characters always stay."""
    text = _Text.of(dict.fromkeys(pieces, 1), ordered=True)
    lattice = _Lattice.of(text, hashes)
    whole = (lattice.end - lattice.start == text.lengths[lattice.word]) & (text.lengths[lattice.word] > 1)
    without = lattice.without(whole).best(scores)
    loss = np.where(text.lengths == 1, np.inf, counts * (scores - without))
    order = np.lexsort((np.arange(len(pieces)), -loss))  # equals: the one that stood first among the seeds
    kept: Ints = np.sort(order[:number])
    return kept


# Text as numbers --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Text:
    """All words behind one another. A word of n characters has n + 1 nodes, `first[w]` to `first[w] + n`."""

    words: list[str]
    counts: Floats
    characters: NDArray[np.uint64]
    lengths: Ints
    begins: Ints  # of each word in `characters`

    @classmethod
    def of(cls, words: Mapping[str, int], ordered: bool = False) -> _Text:
        listed = list(words) if ordered else sorted(words)
        lengths = np.array([len(word) for word in listed], dtype=np.int64)
        characters = np.frombuffer("".join(listed).encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
        begins = np.concatenate(([0], np.cumsum(lengths)[:-1])).astype(np.int64)
        return cls(listed, np.array([words[word] for word in listed], dtype=np.float64), characters, lengths, begins)

    def windows(self, longest: int) -> Iterable[tuple[int, Ints, Ints, NDArray[np.uint64]]]:
        """For each length: the word, the place in `characters`, and a 64-bit hash of each run of so many in a word."""
        word = np.repeat(np.arange(len(self.words)), self.lengths)
        left = np.repeat(self.begins + self.lengths, self.lengths) - np.arange(len(self.characters))
        hashes = np.zeros(len(self.characters), dtype=np.uint64)
        places = np.arange(len(self.characters))
        for length in range(1, longest + 1):
            fits = left[places] >= length
            places = places[fits]
            if not len(places):
                return
            hashes = hashes[fits] * _BASE + self.characters[places + length - 1] + np.uint64(1)
            yield length, word[places], places, hashes


def _seeds(text: _Text, number: int, longest: int, min_frequency: int) -> tuple[list[str], NDArray[np.uint64], Floats]:
    """Every character, and the longer runs that cover most of the text: (pieces, hashes, counts)."""
    lengths: list[Ints] = []
    places: list[Ints] = []
    hashes: list[NDArray[np.uint64]] = []
    counts: list[Floats] = []
    for length, word, place, window in text.windows(longest):
        unique, first, inverse = np.unique(window, return_index=True, return_inverse=True)
        count = np.bincount(inverse, weights=text.counts[word]).astype(np.float64)
        often = np.flatnonzero(count >= min_frequency) if length > 1 else np.arange(len(unique))
        lengths.append(np.full(len(often), length))
        places.append(place[first[often]])
        hashes.append(unique[often])
        counts.append(count[often])
    sizes, begins, totals = np.concatenate(lengths), np.concatenate(places), np.concatenate(counts)
    worth = np.where(sizes == 1, np.inf, totals * sizes)
    chosen = np.lexsort((begins, sizes, -worth))[:max(number, int((sizes == 1).sum()))]
    joined = "".join(text.words)
    pieces = [joined[begin : begin + size] for begin, size in zip(begins[chosen], sizes[chosen], strict=True)]
    return pieces, np.concatenate(hashes)[chosen], totals[chosen]


# The lattice ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Lattice:
    """Every place where a piece stands in a word is an edge from the node before it to the one after it."""

    num_words: int
    firsts: Ints  # node before each word
    lasts: Ints  # node after it
    word: Ints
    piece: Ints
    start: Ints
    end: Ints

    @classmethod
    def of(cls, text: _Text, hashes: NDArray[np.uint64]) -> _Lattice:
        """Of pieces given by their hashes, the shortest of which reach every node."""
        order = np.argsort(hashes)
        known = hashes[order]
        words, pieces, starts, ends = [], [], [], []
        for length, word, place, window in text.windows(int(text.lengths.max(initial=0))):
            at = np.minimum(np.searchsorted(known, window), len(known) - 1)
            found = known[at] == window
            words.append(word[found])
            pieces.append(order[at[found]])
            starts.append(place[found] + word[found])
            ends.append(starts[-1] + length)
        word, piece, start, end = (np.concatenate(parts) for parts in (words, pieces, starts, ends))
        firsts = text.begins + np.arange(len(text.words))
        return cls(len(text.words), firsts, firsts + text.lengths, word, piece, start, end)

    def without(self, edges: NDArray[np.bool_]) -> _Lattice:
        stay = ~edges
        return _Lattice(self.num_words, self.firsts, self.lasts, self.word[stay], self.piece[stay], self.start[stay],
                        self.end[stay])

    def only(self, kept: Ints) -> _Lattice:
        """With the pieces `kept`, numbered anew in that order."""
        number = np.full(int(self.piece.max(initial=0)) + 1, -1, dtype=np.int64)
        number[kept[kept < len(number)]] = np.flatnonzero(kept < len(number))
        stay = number[self.piece] >= 0
        left = self.without(~stay)
        return _Lattice(left.num_words, left.firsts, left.lasts, left.word, number[left.piece], left.start, left.end)

    def expected_counts(self, scores: Floats, counts: Floats) -> Floats:
        """E-step: how often each piece is used, over all segmentations of all words by their probability."""
        alpha = self._walk(scores, np.logaddexp, self.start, self.end)
        beta = self._walk(scores, np.logaddexp, self.end, self.start)
        log_p = alpha[self.start] + scores[self.piece] + beta[self.end] - alpha[self.lasts][self.word]
        weights = np.exp(log_p) * counts[self.word]
        return np.bincount(self.piece, weights=weights, minlength=len(scores)).astype(np.float64)

    def best(self, scores: Floats) -> Floats:
        """log P of each word's likeliest segmentation; 0 for one that has none."""
        return self._walk(scores, np.maximum, self.start, self.end)[self.lasts]

    def _walk(self, scores: Floats, combine: np.ufunc, source: Ints, target: Ints) -> Floats:
        """Each node's value, joined over the edges that lead to it; all words at once, one character after another."""
        value = np.zeros(int(self.lasts.max(initial=0)) + 1)
        origin = self.firsts if source is self.start else self.lasts
        distance = np.abs(target - origin[self.word])
        order = np.lexsort((target, distance))
        steps = np.searchsorted(distance[order], np.arange(1, int(distance.max(initial=0)) + 2))
        for begin, stop in itertools.pairwise(steps):
            edges = order[begin:stop]
            if len(edges):
                nodes = target[edges]
                groups = np.flatnonzero(np.concatenate(([True], nodes[1:] != nodes[:-1])))
                value[nodes[groups]] = combine.reduceat(value[source[edges]] + scores[self.piece[edges]], groups)
        return value
