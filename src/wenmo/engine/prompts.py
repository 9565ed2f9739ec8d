"""Prompts that are being read: chunk after chunk, several in one call where that keeps the bits (runner.py).

In: requests that the scheduler lets in. Out: those whose prompt has been read, with the scores of their first token, or
what went wrong. Of an encoder–decoder it is the source that is read, whole and alone.

What stands of a prompt's beginning already (prefix.py) is not read again. Who shares a beginning with a prompt that is
just being read waits until that has been, so that many who come at once with one system prompt read it once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

from wenmo.engine.attend import rounded
from wenmo.engine.prefix import Prefixes
from wenmo.engine.request import Active
from wenmo.engine.runner import Piece, Runner
from wenmo.engine.scheduler import Scheduler
from wenmo.engine.slots import Layers, Slots
from wenmo.generate.completion import Logprob, logprob_of


@dataclass
class Reading:
    """A prompt that is being read: the keys and values so far, [K, capacity, H] a layer."""

    active: Active
    ids: list[int]
    capacity: int
    layers: Layers = field(default_factory=dict)
    done: int = 0
    logprobs: list[Logprob] = field(default_factory=list)


@dataclass(frozen=True)
class HasRead:
    """Scores after the last token, and the log-probabilities of the prompt where they were asked for; or an error."""

    active: Active
    scores: Tensor | None = None  # [V]
    logprobs: tuple[Logprob, ...] = ()
    error: Exception | None = None


class Prompts:
    """`sources`: the slots for those of an encoder–decoder."""

    def __init__(self, runner: Runner, prefixes: Prefixes, slots: Slots, sources: Slots | None,
                 scheduler: Scheduler) -> None:
        self.runner, self.prefixes, self.slots, self.sources = runner, prefixes, slots, sources
        self.scheduler = scheduler
        self.num_read = 0
        self._begun: Reading | None = None  # of the scheduler's `reading`

    def forget(self) -> None:
        """What was read of the prompt that is the scheduler's to read now."""
        self._begun = None

    def read(self, most_tokens: int) -> Iterator[HasRead]:
        """About so many tokens, a chunk counting whole; each prompt as it has been read. Its slot holds it then, and
        its request is among those that write."""
        if self.sources is not None:
            yield from self._read_sources(most_tokens)
            return
        planned: list[tuple[Reading, int]] = []  # a chunk, by its first token
        left = most_tokens
        while left > 0:
            if self._begun is None and planned and self._shares_beginning(planned):
                yield from self._read_planned(planned)
            active = self.scheduler.next_to_read(self._has_room)
            if active is None:
                break
            try:
                reading = self._begun = self._begun or self._begin(active)
            except Exception as error:  # too little memory for what is known
                yield HasRead(active, error=error)
                continue
            planned.append((reading, reading.done))
            reading.done = min(len(reading.ids), reading.done + self.runner.chunk_tokens)
            left -= self.runner.chunk_tokens
            if reading.done == len(reading.ids):
                self._begun = None
                self.scheduler.read()
            if len(planned) == self.runner.most_chunks:
                yield from self._read_planned(planned)
        yield from self._read_planned(planned)

    def _has_room(self, active: Active) -> bool:
        if not self.slots.admit(active, len(active.context) + 1):
            return False
        if self.sources is None or self.sources.admit(active, len(active.request.ids)):
            return True
        self.slots.release(active)
        return False

    def _begin(self, active: Active) -> Reading:
        """A prompt with what is known of its beginning."""
        ids, size = list(active.prompt), self.runner.chunk_tokens
        reading = Reading(active, ids, rounded(-(-len(ids) // size) * size))
        known = self.prefixes.find(ids) if active.request.prompt_logprobs is None else []  # those are not kept
        for block in known:
            for layer, (keys, values) in block.items():
                if layer not in reading.layers:
                    shape = (keys.shape[0], reading.capacity, keys.shape[2])
                    reading.layers[layer] = (keys.new_zeros(shape), values.new_zeros(shape))
                for whole, part in zip(reading.layers[layer], (keys, values), strict=True):
                    whole[:, reading.done : reading.done + size] = part
            reading.done += size
        return reading

    def _shares_beginning(self, planned: list[tuple[Reading, int]]) -> bool:
        """Whether who comes next begins with the first chunk of a prompt that is planned."""
        following = self.scheduler.next_to_read(self._has_room)
        size = self.runner.chunk_tokens
        if following is None or len(following.prompt) <= size:
            return False
        first = list(following.prompt[:size])
        return any(reading.ids[:size] == first for reading, _ in planned)

    def _read_planned(self, planned: list[tuple[Reading, int]]) -> Iterator[HasRead]:
        """Reads what is planned, in one call; one by one where that fails, so that who is to blame fails alone."""
        chunks = planned.copy()
        planned.clear()
        if not chunks:
            return
        pieces = [self._piece(reading, start) for reading, start in chunks]
        try:
            all_scores = self.runner.read(pieces)
        except Exception as error:
            if len(chunks) == 1:
                yield self._failed(chunks[0][0], error)
                return
            for chunk in chunks:
                if chunk[0].active in self.scheduler.everyone:  # not after an earlier chunk of it has failed
                    yield from self._read_planned([chunk])
            return
        for (reading, start), piece, scores_XV in zip(chunks, pieces, all_scores, strict=True):
            self.num_read += len(piece.ids)
            try:
                if piece.scores == "each":
                    self._note_logprobs(reading, start, scores_XV)
                if start + len(piece.ids) == len(reading.ids):
                    self._finish(reading)
                    yield HasRead(reading.active, scores_XV[-1], tuple(reading.logprobs))
            except Exception as error:
                yield self._failed(reading, error)

    def _piece(self, reading: Reading, start: int) -> Piece:
        ids = reading.ids[start : start + self.runner.chunk_tokens]
        is_last = start + len(ids) == len(reading.ids)
        asked = reading.active.request.prompt_logprobs is not None
        return Piece(ids, start, reading.layers, reading.capacity, "each" if asked else "last" if is_last else "none")

    def _note_logprobs(self, reading: Reading, start: int, scores_XV: Tensor) -> None:
        alternatives = reading.active.request.prompt_logprobs
        assert alternatives is not None
        following = reading.ids[start + 1 : start + 1 + len(scores_XV)]
        reading.logprobs += [logprob_of(scores_V.log_softmax(0), id, alternatives)
                             for scores_V, id in zip(scores_XV, following, strict=False)]

    def _finish(self, reading: Reading) -> None:
        self.prefixes.keep(reading.ids, reading.layers)
        self.slots.fill(reading.active, reading.layers, len(reading.ids))
        reading.active.num_read = len(reading.ids)

    def _failed(self, reading: Reading, error: Exception) -> HasRead:
        if reading is self._begun:
            self._begun = None
        return HasRead(reading.active, error=error)

    # Sources ----------------------------------------------------------------------------------------------

    def _read_sources(self, most_tokens: int) -> Iterator[HasRead]:
        while most_tokens > 0 and (active := self.scheduler.next_to_read(self._has_room)) is not None:
            most_tokens -= len(active.request.ids)
            try:
                scores_V = self._read_source(active)
            except Exception as error:
                yield HasRead(active, error=error)
                continue
            self.scheduler.read()
            yield HasRead(active, scores_V)

    def _read_source(self, active: Active) -> Tensor:
        """The whole of it, and the first token's scores."""
        assert self.sources is not None
        ids, layers, across = active.request.ids, Layers(), Layers()
        capacity = rounded(self.runner.chunk_tokens)
        scores_1V = self.runner.read_source(ids, active.prompt[0], layers, across, capacity)
        self.sources.fill(active, across, len(ids))
        self.slots.fill(active, layers, 1)
        self.num_read += len(ids)
        active.num_read = 1
        return scores_1V[0]
