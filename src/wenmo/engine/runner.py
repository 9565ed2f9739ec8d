"""The model's two kinds of calls: a chunk of one prompt, and the next tokens of many rows.

In: ids. Out: fp32 scores of the vocabulary. Both have fixed shapes where a shape would change bits: chunks are padded
to their size, and no more than ROWS rows are in one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from wenmo.engine.attend import Chunk, Segment, Step
from wenmo.engine.packed import ROWS, Format, Head, pack
from wenmo.engine.request import Active
from wenmo.engine.slots import Layers, Slots
from wenmo.engine.sources import Across, OneSource
from wenmo.models import LanguageModel


@dataclass(frozen=True)
class Read:
    """The next tokens of a row: `ids` at the positions from `start` on. More than one where they are supposed, or known
    from before it was preempted."""

    active: Active
    start: int
    ids: Sequence[int]


class Runner:
    """Packs the model, which is its own from then on."""

    def __init__(self, model: LanguageModel, format: Format, chunk_tokens: int) -> None:
        self.head = Head(model, format)
        pack(model, format)
        self.model, self.chunk_tokens = model, chunk_tokens
        self.last_position = (model.config.max_tokens or 1 << 30) - 1

    def share_head(self, base: Runner) -> None:
        """Takes the base's output vocabulary, where an adapter's is the same."""
        if self.model.lm_output()[0].data_ptr() == base.model.lm_output()[0].data_ptr():
            self.head.packed = base.head.packed

    def read_chunk(self, ids: Sequence[int], start: int, layers: Layers, capacity: int, *,
                   scores: Literal["none", "last", "each"] = "last") -> Tensor:
        """Reads at most a chunk of a prompt after the first `start` tokens; scores after its last token, [1, V], or
        after each, [len(ids), V]: the last the same bits either way. Without scores: [0, 0]."""
        size = self.chunk_tokens
        with torch.inference_mode():
            ids_M = torch.zeros(size, dtype=torch.int64)
            ids_M[: len(ids)] = torch.tensor(ids)
            positions_M = torch.arange(start, start + size).clamp(max=self.last_position)
            hidden_MD = self.model.body(ids_M, positions_M, Chunk(layers, capacity, start, size))
            if scores == "none":
                return hidden_MD.new_zeros(0, 0)
            last_1V = self.head(hidden_MD[len(ids) - 1 : len(ids)])
            if scores == "last" or len(ids) == 1:
                return last_1V
            return torch.cat([self.head(hidden_MD[: len(ids) - 1]), last_1V])

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
