"""Corruption: what BERT learns from, made anew in every epoch.

In: ids of a text (and where its words begin), a generator keyed by (seed, epoch, row). Out: the corrupted ids with
their targets; pairs of text pieces with their label. Pure functions: the same key gives the same corruption, so
that a resumed run, another batch size or another number of processes sees the same text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np

from wenmo.data.shards import Shards
from wenmo.errors import DataError, say

IGNORED = -100  # a target that is not learned


def mask_tokens(
    ids: np.ndarray,
    *,
    rng: np.random.Generator,
    mask_id: int,
    vocab_size: int,
    control_ids: tuple[int, ...],
    probability: float = 0.15,
    starts: np.ndarray | None = None,
    replace: tuple[float, float, float] = (0.8, 0.1, 0.1),
) -> tuple[np.ndarray, np.ndarray]:
    """BERT's masking (Devlin et al. 2019, §3.1 and A.1) → (corrupted ids, targets), both [M].

    Each token is chosen with `probability`; of the chosen ones the parts `replace` become `mask_id`, become another
    token, stay as they are. With `starts` (true where a token begins a word) the tokens of a word are chosen together
    (Cui et al. 2021, whole word masking), and each then falls under `replace` by itself; a token is still chosen with
    `probability` whatever the length of its word. Where chance chooses none, one word is chosen, so that every sequence
    teaches something. Control tokens are never chosen, never a target and never a replacement.
    Targets hold the original id (int64) at the chosen places and -100 elsewhere.
    """
    is_control, others = _vocabulary(vocab_size, control_ids)
    words = np.arange(len(ids)) if starts is None else np.cumsum(starts)  # 0 may be the rest of a word cut off
    free = ~is_control[ids]
    places = np.flatnonzero((rng.random(len(ids) + 1) < probability)[words] & free)
    targets = np.full(len(ids), IGNORED, np.int64)
    corrupted = ids.copy()
    if not len(places):
        candidates = np.flatnonzero(free)
        if not len(candidates):
            return corrupted, targets
        word = words[candidates[rng.integers(len(candidates))]]
        places = candidates[words[candidates] == word]
    targets[places] = ids[places]
    fate = rng.random(len(places))
    corrupted[places[fate < replace[0]]] = mask_id
    swapped = places[(fate >= replace[0]) & (fate < replace[0] + replace[1])]
    corrupted[swapped] = others[(rng.random(len(swapped)) * len(others)).astype(np.intp)]
    return corrupted, targets


@lru_cache(maxsize=8)
def _vocabulary(vocab_size: int, control_ids: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(whether an id is a control token [V], the ids that are not): building them takes longer than masking."""
    is_control = np.zeros(vocab_size, bool)
    is_control[list(control_ids)] = True
    return is_control, np.flatnonzero(~is_control)


# Next sentence prediction -----------------------------------------------------------------------------

Columns = dict[str, np.ndarray]


def next_sentence(
    chunk: Mapping[str, np.ndarray], other: Callable[[int], Columns], rng: np.random.Generator
) -> tuple[Columns, Columns, int]:
    """A chunk → (A, B, label) for next sentence prediction (Devlin et al. 2019, §3.1, Task #2).

    A is the chunk up to a random cut, at the beginning of a word where the column `starts` tells. B is what follows
    it, label 0, or, half of the time, `other(tokens of what follows)`, label 1, as in HF's models. A chunk of one
    token cannot be cut: B is empty and the label -100, not learned.

        rng = numpy_rng(seed, "next", epoch, document, start)
        a, b, label = next_sentence(columns, lambda n: piece_of_another(shards, document, n, rng), rng)
    """
    length = len(chunk["ids"])
    if length < 2:
        return dict(chunk), {name: column[:0] for name, column in chunk.items()}, IGNORED
    cuts = np.flatnonzero(chunk["starts"][1:]) + 1 if "starts" in chunk else np.empty(0)
    cut = int(cuts[rng.integers(len(cuts))]) if len(cuts) else int(rng.integers(1, length))
    first = {name: column[:cut] for name, column in chunk.items()}
    if rng.random() < 0.5:
        return first, other(length - cut), 1
    return first, {name: column[cut:] for name, column in chunk.items()}, 0


def piece_of_another(shards: Shards, document: int, num_tokens: int, rng: np.random.Generator) -> Columns:
    """`num_tokens` from a random place of another document, from the beginning of a word where `starts` tells.

    Every token of the other documents is equally likely to be hit. Of a few hits the first in a document that is long
    enough is taken, and the longest document otherwise: were random pieces shorter than true ones, their length would
    betray the label. Raises DataError where there is no other document.
    """
    before, after = int(shards.offsets[document]), int(shards.offsets[document + 1])
    outside = shards.num_tokens - (after - before)
    if not outside:
        raise DataError(
            say("next sentence prediction needs two documents, the corpus has one",
                "下一句预测至少需要两篇文档，而语料只有一篇"), where=str(shards.folder),
            mend=say("give every document its own row, or leave next sentence prediction out",
                     "让每篇文档各占一行，或不使用下一句预测"),
        )
    hits = rng.integers(outside, size=8)
    hits += (hits >= before) * (after - before)
    documents = np.searchsorted(shards.offsets, hits, side="right") - 1
    lengths = shards.offsets[documents + 1] - shards.offsets[documents]
    enough = lengths >= num_tokens
    hit = int(np.argmax(enough) if enough.any() else np.argmax(lengths))
    columns = shards.document(int(documents[hit]))
    start = int(min(hits[hit] - shards.offsets[documents[hit]], max(lengths[hit] - num_tokens, 0)))
    if "starts" in columns:
        begun = np.flatnonzero(columns["starts"][: start + 1])
        start = int(begun[-1]) if len(begun) else 0
    return {name: column[start : start + num_tokens] for name, column in columns.items()}
