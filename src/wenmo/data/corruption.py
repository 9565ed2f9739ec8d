"""Corruption: what BERT and T5 learn from, made anew in every epoch.

In: ids of a text (and where its words begin), a generator keyed by (seed, epoch, row). Out: the corrupted ids with
their targets; pairs of text pieces with their label; a text with spans cut out, and the spans. Pure functions: the same
key gives the same corruption, so that a resumed run, another batch size or another number of processes sees the same
text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from wenmo.data.shards import Shards
from wenmo.errors import DataError, say
from wenmo.nn.cross_entropy import IGNORED


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


# Span corruption --------------------------------------------------------------------------------------


def corrupt_spans(
    ids: np.ndarray, *, rng: np.random.Generator, sentinels: np.ndarray, density: float = 0.15, mean_length: float = 3.0
) -> tuple[np.ndarray, np.ndarray]:
    """Span corruption (Raffel et al. 2020, §3.1.4 and Fig. 2) → (source, target), both int64.

    The source is the text with each span replaced by a sentinel, in their order; the target is each sentinel followed
    by the span that it stands for, and one more sentinel at the end:

        Thank you for inviting me to your party last week .
        source   Thank you <0> me to your party <1> week .
        target   <0> for inviting <1> last <2>

    `ids` is text alone: control tokens are put around both afterwards, and cannot be hit. How many tokens are cut out
    and in how many spans is fixed by the length (`span_counts`); where, and how long each is, is uniformly random among
    all ways with these numbers. (T5's own code begins with kept text and ends with a span, which leaves a single choice
    to texts of up to 30 tokens: always their end.)
    """
    num_hidden, num_spans = (int(count) for count in span_counts(len(ids), density, mean_length))
    ids = ids.astype(np.int64)
    if not num_spans:
        return ids, sentinels[:1].astype(np.int64)
    assert num_spans < len(sentinels), "too few sentinels for so long a text"
    hidden = _parts(num_hidden, num_spans, rng)
    kept = _parts(len(ids) - num_hidden + 2, num_spans + 1, rng)
    kept[[0, -1]] -= 1  # the text before the first span and after the last may be empty, that between them not
    pieces = np.empty(2 * num_spans + 1, np.int64)
    pieces[0::2], pieces[1::2] = kept, hidden
    is_hidden = np.repeat(np.arange(len(pieces)) % 2 == 1, pieces)
    source = np.insert(ids[~is_hidden], np.cumsum(kept)[:-1], sentinels[:num_spans])
    target = np.insert(ids[is_hidden], np.cumsum([0, *hidden]), sentinels[: num_spans + 1])
    return source, target


def span_counts(num_tokens: Any, density: float, mean_length: float) -> tuple[Any, Any]:
    """(tokens that are cut out, spans they make) of a text of so many tokens; ints or arrays in, arrays out.

    round(n · density) tokens in round(tokens / mean_length) spans, at least one of each, but always a token stays: a
    text of a single one is left whole. The numbers are those of T5's own code.
    """
    hidden = np.clip(np.round(num_tokens * density), 1, None).astype(np.int64)
    hidden = np.minimum(hidden, np.maximum(num_tokens - 1, 0))
    spans = np.maximum(np.round(hidden / mean_length).astype(np.int64), 1)
    return hidden, np.minimum(np.minimum(spans, hidden), num_tokens - hidden + 1)


def corrupted_lengths(num_tokens: Any, density: float, mean_length: float) -> tuple[Any, Any]:
    """Tokens of source and target after `corrupt_spans`; both never fall as the text gets longer."""
    hidden, spans = span_counts(num_tokens, density, mean_length)
    return num_tokens - hidden + spans, hidden + spans + 1


def longest_text(max_source: int, max_target: int, density: float, mean_length: float) -> int:
    """The most tokens that a text may have for its source and target to have at most so many (as T5 cuts its text)."""
    lengths = np.arange(max_source + max_target)  # every token of a text stands in one of the two
    sources, targets = corrupted_lengths(lengths, density, mean_length)
    fitting = np.flatnonzero((sources <= max_source) & (targets <= max_target))
    return int(fitting[-1]) if len(fitting) else 0


def _parts(total: int, num_parts: int, rng: np.random.Generator) -> np.ndarray:
    """`total` as a sum of so many positive numbers, every such sum equally likely."""
    cuts = np.sort(rng.choice(total - 1, num_parts - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))
