"""The model's two kinds of calls: chunks of prompts, and the next tokens of many rows.

In: ids. Out: fp32 scores of the vocabulary. Both have fixed shapes where a shape would change bits: chunks are padded
to their size, several are in one call only where a trial found that this changes nothing, and no more than ROWS rows
are in one call of the second kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from wenmo.engine.attend import Chunk, Chunks, Segment, Step
from wenmo.engine.packed import READ_ROWS, ROWS, Format, Head, Packed, pack
from wenmo.engine.request import Active
from wenmo.engine.slots import Layers, Slots
from wenmo.engine.sources import Across, OneSource
from wenmo.models import LanguageModel
from wenmo.native.step import Threads
from wenmo.nn.rope import Rope


@dataclass(frozen=True)
class Read:
    """The next tokens of a row: `ids` at the positions from `start` on. More than one where they are supposed, or known
    from before it was preempted."""

    active: Active
    start: int
    ids: Sequence[int]


@dataclass(frozen=True)
class Piece:
    """At most a chunk of a prompt, after its first `start` tokens. `scores`: after its last token, [1, V], or after
    each, [len(ids), V], of which the last has the same bits; or none, [0, 0]."""

    ids: Sequence[int]
    start: int
    layers: Layers
    capacity: int
    scores: Literal["none", "last", "each"] = "last"


class Runner:
    """Packs the model, which is its own from then on. `most_chunks` may be read in one call. is_native: torch computes
    next to nothing of it."""

    is_native = False

    def __init__(self, model: LanguageModel, format: Format, chunk_tokens: int, threads: Threads | None = None) -> None:
        """threads: of native products."""
        self.head = Head(model, format, threads)
        pack(model, format, threads)
        self.model, self.chunk_tokens = model, chunk_tokens
        self.last_position = (model.config.max_tokens or 1 << 30) - 1
        self.most_chunks = max(1, READ_ROWS // chunk_tokens) if _joins_chunks(model) else 1

    def share_head(self, base: Runner) -> None:
        """Takes the base's output vocabulary, where an adapter's is the same."""
        if self.model.lm_output()[0].data_ptr() == base.model.lm_output()[0].data_ptr():
            self.head.packed = base.head.packed

    def read(self, pieces: Sequence[Piece]) -> list[Tensor]:
        """The scores of each piece; at most `most_chunks` of them, those of one prompt in their order."""
        size = self.chunk_tokens
        with torch.inference_mode():
            ids_M = torch.zeros(len(pieces) * size, dtype=torch.int64)
            for number, piece in enumerate(pieces):
                ids_M[number * size :][: len(piece.ids)] = torch.tensor(piece.ids)
            chunks = Chunks([Chunk(piece.layers, piece.capacity, piece.start, size) for piece in pieces])
            hidden_MD = self.model.body(ids_M, chunks.positions_M.clamp(max=self.last_position), chunks)
            return [self._scores(piece, hidden_XD)
                    for piece, hidden_XD in zip(pieces, torch.split(hidden_MD, size), strict=True)]

    def _scores(self, piece: Piece, hidden_XD: Tensor) -> Tensor:
        if piece.scores == "none":
            return hidden_XD.new_zeros(0, 0)
        number = len(piece.ids)
        last_1V = self.head(hidden_XD[number - 1 : number])
        if piece.scores == "last" or number == 1:
            return last_1V
        return torch.cat([self.head(hidden_XD[: number - 1]), last_1V])

    def read_source(self, ids: Sequence[int], start: int, layers: Layers, across: Layers, capacity: int) -> Tensor:
        """Encodes the source of an encoder–decoder, and reads `start`, with which its target begins: scores after it,
        [1, V]. `layers` gets the keys and values of the target so far, `across` those of the source."""
        with torch.inference_mode():
            cross = OneSource(self.model.encode(torch.tensor(ids), [len(ids)]))
            hidden_1D = self.model.body(torch.tensor([start]), torch.tensor([0]), Chunk(layers, capacity, 0, 1),
                                        cross=cross)
            across.update(cross.layers)
            return self.head(hidden_1D)

    def next_tokens(self, slots: Slots, reads: Sequence[Read], sources: Slots | None = None) -> list[Tensor]:
        """For each read the scores after each of its ids, [len(ids), V]. Neighbours in the slots go into the same call;
        sources: where those of an encoder–decoder stand."""
        scores: dict[Active, Tensor] = {}
        for call in _calls(sorted(reads, key=lambda read: _place(slots, read))):
            ids = [id for read in call for id in read.ids]
            with torch.inference_mode():
                step = Step(_segments(slots, call))
                inputs = {} if sources is None else {
                    "cross": Across([(*sources.place[read.active], len(read.active.request.ids)) for read in call])}
                hidden_MD = self.model.body(torch.tensor(ids), step.positions_M, step, **inputs)
                parts = torch.split(self.head(hidden_MD), [len(read.ids) for read in call])
            scores.update(zip((read.active for read in call), parts, strict=True))
        return [scores[read.active] for read in reads]


def _joins_chunks(model: Any) -> bool:
    """Whether chunks keep their bits beside others."""
    rope: Rope | None = getattr(model, "rope", None)
    maps = (module for module in model.modules() if isinstance(module, Packed))
    return (rope is None or rope.is_fixed) and all(each.joins_chunks() for each in maps)


def _place(slots: Slots, read: Read) -> tuple[int, int]:
    pool, row = slots.place[read.active]
    return pool.capacity, row


def _calls(reads: Sequence[Read]) -> list[list[Read]]:
    """At most ROWS tokens in each."""
    calls: list[list[Read]] = []
    room = 0
    for read in reads:
        assert len(read.ids) <= ROWS
        if len(read.ids) > room:
            calls.append([])
            room = ROWS
        calls[-1].append(read)
        room -= len(read.ids)
    return calls


def _segments(slots: Slots, call: Sequence[Read]) -> list[Segment]:
    """Neighbouring rows of a pool, together."""
    segments: list[Segment] = []
    for read in call:
        pool, row = slots.place[read.active]
        last = segments[-1] if segments else None
        if last is not None and last.pool is pool and last.first + len(last.starts) == row:
            segments[-1] = Segment(pool, last.first, [*last.starts, read.start], [*last.counts, len(read.ids)])
        else:
            segments.append(Segment(pool, row, [read.start], [len(read.ids)]))
    return segments
