"""Examples: what training draws from, whatever it is made of.

In: encoded rows, or token shards. Out: numbered examples, each a few Sequences, with their lengths known before any
is built, so that the loader can plan a whole epoch. What an example is may change from epoch to epoch; that change
is a pure function of (seed, epoch), so there is nothing to save and any epoch can be asked for at any time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from wenmo.data.sequence import Sequence
from wenmo.data.shards import Shards
from wenmo.device import key, numpy_rng
from wenmo.errors import UsageError, say


class Examples(Protocol):
    """`lengths(epoch)` is the law: as many examples as it has entries, none with more tokens than it says."""

    def __len__(self) -> int:
        """The number of rows or documents that the examples are made from."""

    @property
    def row_end(self) -> int:
        """Every `Sequence.row` is below it."""

    def lengths(self, epoch: int) -> np.ndarray:
        """Tokens of each example, over all its sequences, as int64; always positive."""

    def sequences(self, index: int, epoch: int) -> list[Sequence]:
        """The sequences of one example; they stay together in one micro-batch."""


class Rows:
    """Rows of a task, encoded once and held in memory: the same in every epoch."""

    def __init__(self, rows: Iterable[list[Sequence]]) -> None:
        self._rows = list(rows)
        self._lengths = np.array([sum(map(len, row)) for row in self._rows], np.int64)
        self._lengths.flags.writeable = False
        assert (self._lengths > 0).all(), "a row without tokens"

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def row_end(self) -> int:
        return 1 + max((sequence.row for row in self._rows for sequence in row), default=-1)

    def lengths(self, epoch: int) -> np.ndarray:
        return self._lengths

    def sequences(self, index: int, epoch: int) -> list[Sequence]:
        return self._rows[index]


# Documents cut into chunks ----------------------------------------------------------------------------

Form = Callable[[dict[str, np.ndarray], int, int, int], list[Sequence]]
"""(columns of the chunk, document, its first token in the document, epoch) → the sequences of the example."""
Extra = Callable[[np.ndarray], np.ndarray]
"""Lengths of chunks → how many tokens `form` adds to each."""
SHORTEST = 8  # tokens: a chunk of fewer cannot be cut at places that move


class Chunks:
    """Documents of token shards, the long ones cut into chunks at places that move from epoch to epoch.

    A document of at most `chunk_tokens` is one example. A longer one, of L = q·C + r tokens (0 < r ≤ C, C the chunk),
    is cut into whole chunks between a first and a last piece that share the remainder:
        r ≤ C/2:  first + last = C + r, with q − 1 chunks between them
        r > C/2:  first + last = r,     with q chunks between them
    The first piece is drawn anew for each (seed, epoch, document) from a range of at least C/4, so that no place is
    always a seam. Every token stands in exactly one chunk of an epoch: nothing is dropped or merged, as no piece is
    shorter than C/8. The number of examples is the same in every epoch; their lengths are not.

    `form` makes the sequences of a chunk and may add up to `extra_tokens` ([CLS], [SEP], end of text): a number, or a
    function of the chunk's length where that decides (the sentinels of span corruption).
    """

    def __init__(self, shards: Shards, chunk_tokens: int, seed: int, form: Form, extra_tokens: int | Extra) -> None:
        if chunk_tokens < SHORTEST:
            least = extra_tokens if isinstance(extra_tokens, int) else int(extra_tokens(np.array([SHORTEST]))[0])
            raise UsageError(
                say(f"text cannot be cut into chunks of {chunk_tokens} tokens",
                    f"无法把文本切成 {chunk_tokens} 个词元的片段"),
                where="max_tokens",
                mend=say(f"allow at least {SHORTEST + least}, of which {least} are control tokens",
                         f"至少设为 {SHORTEST + least}，其中 {least} 个是控制词元"),
            )
        self._shards, self._form = shards, form
        self._seed, self._chunk, self._extra = seed, chunk_tokens, extra_tokens
        lengths = shards.doc_lengths
        wholes = np.maximum(lengths - 1, 0) // chunk_tokens
        rest = lengths - wholes * chunk_tokens
        split = rest > chunk_tokens // 2
        shortest = max(2, chunk_tokens // 8)
        low = np.where(split, shortest, np.maximum(rest, shortest))
        high = np.where(split, rest - shortest, chunk_tokens + np.minimum(rest - shortest, 0))
        self._low = low.astype(np.uint32)  # the first piece of a long document is low … low + span − 1
        self._span = np.where(wholes > 0, high - low + 1, 1).astype(np.uint32)
        counts = np.where(wholes > 0, wholes + 1 + split, lengths > 0)
        self._first_example = np.concatenate([[0], np.cumsum(counts)])  # of each document

    def __len__(self) -> int:
        return self._shards.num_documents

    @property
    def row_end(self) -> int:
        return self._shards.num_documents

    def _first_piece(self, documents: Any, low: Any, span: Any, epoch: int) -> Any:
        """Tokens before the first cut of long documents: ints in, int out; uint64 arrays in, array out."""
        return low + _mixed(documents, key(self._seed, "chunks", epoch)) % span

    def lengths(self, epoch: int) -> np.ndarray:
        doc_lengths, first = self._shards.doc_lengths, self._first_example
        lengths = np.full(first[-1], self._chunk, np.int64)
        short = np.flatnonzero((doc_lengths > 0) & (doc_lengths <= self._chunk))
        lengths[first[short]] = doc_lengths[short]
        long = np.flatnonzero(doc_lengths > self._chunk)
        low, span = self._low[long].astype(np.uint64), self._span[long].astype(np.uint64)
        head = self._first_piece(long.astype(np.uint64), low, span, epoch).astype(np.int64)
        between = first[long + 1] - first[long] - 2
        lengths[first[long]] = head
        lengths[first[long + 1] - 1] = doc_lengths[long] - head - between * self._chunk
        return lengths + (self._extra if isinstance(self._extra, int) else self._extra(lengths))

    def sequences(self, index: int, epoch: int) -> list[Sequence]:
        document = int(np.searchsorted(self._first_example, index, side="right")) - 1
        piece = index - int(self._first_example[document])
        columns = self._shards.document(document)
        length = len(columns["ids"])
        if length <= self._chunk:
            return self._form(columns, document, 0, epoch)
        head = self._first_piece(document, int(self._low[document]), int(self._span[document]), epoch)
        start = head + (piece - 1) * self._chunk if piece else 0
        end = min(head + piece * self._chunk, length)
        return self._form({name: column[start:end] for name, column in columns.items()}, document, start, epoch)


_64_BITS = 0xFFFF_FFFF_FFFF_FFFF


def _mixed(numbers: Any, seed: int) -> Any:
    """A 64-bit hash of each number, for an int or a uint64 array: SplitMix64 (Steele et al. 2014, Fig. 17).

    A generator or a digest for each of millions of documents would take longer than the epoch's whole plan.
    """
    state = (numbers * 0x9E37_79B9_7F4A_7C15 + seed) & _64_BITS
    state = ((state ^ (state >> 30)) * 0xBF58_476D_1CE4_E5B9) & _64_BITS
    state = ((state ^ (state >> 27)) * 0x94D0_49BB_1331_11EB) & _64_BITS
    return state ^ (state >> 31)


# Several sources --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Pass:
    """One pass over a source within an epoch of the mixture: all its examples, or the `chosen` ones."""

    source: int
    epoch: int  # the source's own
    chosen: np.ndarray | None


class Mixture:
    """Several sources with weights: an epoch sees each example of a source `weight` times.

    That is ⌊weight⌋ whole passes and a random part of one more, drawn for (seed, epoch, source). Each pass is an
    epoch of its own to the source (e·⌈weight⌉, e·⌈weight⌉ + 1, …), so that a row seen twice is cut and masked anew.
    `Sequence.row` counts on from source to source: a source's rows are shifted by the sum of the `row_end` before it.
    A source is not itself a mixture: its passes would take turns in the inner one's plan, which keeps one epoch.
    """

    def __init__(self, sources: Iterable[tuple[Examples, float]], seed: int) -> None:
        self._sources = list(sources)
        self._seed = seed
        self._first_row = np.cumsum([0] + [source.row_end for source, _ in self._sources]).tolist()
        self._plan: tuple[int, list[_Pass], list[int], np.ndarray] | None = None  # of the latest epoch

    def __len__(self) -> int:
        return sum(len(source) for source, _ in self._sources)

    @property
    def row_end(self) -> int:
        return int(self._first_row[-1])

    def _planned(self, epoch: int) -> tuple[int, list[_Pass], list[int], np.ndarray]:
        """(epoch, its passes, the first example of each pass, lengths)."""
        if self._plan is None or self._plan[0] != epoch:
            passes: list[_Pass] = []
            lengths: list[np.ndarray] = [np.empty(0, np.int64)]
            for number, (source, weight) in enumerate(self._sources):
                num_passes = int(np.ceil(weight))
                for own_epoch in range(epoch * num_passes, (epoch + 1) * num_passes):
                    chosen, own_lengths = None, source.lengths(own_epoch)
                    part = weight - own_epoch + epoch * num_passes
                    if part < 1:
                        rng = numpy_rng(self._seed, "mixture", epoch, number)
                        size = round(part * len(own_lengths))
                        chosen = np.sort(rng.choice(len(own_lengths), size, replace=False))
                        own_lengths = own_lengths[chosen]
                    passes.append(_Pass(number, own_epoch, chosen))
                    lengths.append(own_lengths)
            first = np.cumsum([len(part) for part in lengths[:-1]]).tolist()
            self._plan = epoch, passes, first, np.concatenate(lengths)
        return self._plan

    def lengths(self, epoch: int) -> np.ndarray:
        return self._planned(epoch)[3]

    def sequences(self, index: int, epoch: int) -> list[Sequence]:
        _, passes, first, _ = self._planned(epoch)
        number = bisect_right(first, index) - 1
        chosen, own_index = passes[number].chosen, index - first[number]
        if chosen is not None:
            own_index = int(chosen[own_index])
        sequences = self._sources[passes[number].source][0].sequences(own_index, passes[number].epoch)
        shift = self._first_row[passes[number].source]
        return [replace(sequence, row=sequence.row + shift) for sequence in sequences] if shift else sequences
