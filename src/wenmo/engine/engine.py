"""The engine: requests in, events out; schedule → run → settle, step after step.

`step` does one step and may be called from one thread alone; `start` does so from a thread of its own until `close`.
`submit` and `Handle.cancel` may be called from any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from pydantic import Field
from torch import Tensor

from wenmo.config import Count, Settings
from wenmo.engine.attend import Segment, rounded
from wenmo.engine.packed import ROWS, Format
from wenmo.engine.prefix import Prefixes
from wenmo.engine.request import Active, Event, Handle, Listener, Outcome, Request, activate, new_tokens
from wenmo.engine.runner import Runner
from wenmo.engine.scheduler import Scheduler
from wenmo.engine.slots import Layers, Pool, Slots
from wenmo.errors import NumericsError, UsageError, say
from wenmo.generate.completion import Completion, Logprob, logprob_of
from wenmo.generate.sampling import adjust, choose
from wenmo.models import LanguageModel
from wenmo.text.tokenizer import Tokenizer


class EngineSettings(Settings):
    """format: of the weights (packed.py). cache_tokens: keys and values of so many tokens are kept for running
    requests, prefix_tokens: of beginnings read before. chunk_tokens: so many tokens of a prompt are read in one call;
    step_tokens: at most so many between two steps of those that write. max_context: no request is longer (left out: as
    long as the model allows, and the cache)."""

    format: Format = "fp32"
    cache_tokens: Count = Field(32768, ge=128)
    prefix_tokens: Count = 8192
    chunk_tokens: int = Field(64, ge=16, multiple_of=16)
    step_tokens: Count = Field(512, ge=16)
    max_running: int = Field(32, ge=1)
    max_context: Count | None = Field(None, gt=1)


@dataclass
class Reading:
    """A prompt that is being read: the keys and values so far, [K, capacity, H] a layer."""

    ids: list[int]
    capacity: int
    layers: Layers = field(default_factory=dict)
    done: int = 0


class Engine:
    """One model, in eval mode, which is the engine's own from then on: its weights are packed. `ends`: ids that end a
    text; `banned`: ids that are never chosen."""

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer, settings: EngineSettings, *, ends: frozenset[int],
                 banned: frozenset[int] = frozenset()) -> None:
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        self.ends, self.banned = ends, banned
        limits = (model.config.max_tokens, settings.max_context, settings.cache_tokens)
        self.longest = min(limit for limit in limits if limit is not None)
        self.slots = Slots(settings.cache_tokens, self.longest)
        self.prefixes = Prefixes(settings.chunk_tokens, settings.prefix_tokens)
        self.runner = Runner(model, settings.format, settings.chunk_tokens)
        self.scheduler = Scheduler(settings.max_running)
        self.num_preempted = self.num_written = self.num_read = 0
        self._reading: Reading | None = None
        self._arrived: list[Active] = []
        self._cancelled: set[Handle] = set()
        self._lock = threading.Condition()
        self._num_submitted = 0
        self._closing = False
        self._thread: threading.Thread | None = None

    # From any thread --------------------------------------------------------------------------------------

    def submit(self, request: Request, listener: Listener | None = None) -> Handle:
        """Events go to `listener`, from the engine's thread; without one, to who iterates the handle.

        Raises UsageError for a prompt that is empty or leaves no room, and for beams.
        """
        room = min(request.sampling.max_new_tokens, self.longest - len(request.ids))
        if not request.ids or room < 1 or not self.slots.fits(len(request.ids) + room):
            raise UsageError(
                say(f"a prompt of {len(request.ids)} tokens leaves no room" if request.ids else "an empty prompt",
                    f"提示有 {len(request.ids)} 个词元，没有余地继续生成" if request.ids else "提示为空"),
                where="prompt",
                mend=say(f"give 1 to {self.longest - 1} tokens", f"请给出 1 到 {self.longest - 1} 个词元"))
        if request.sampling.num_beams > 1:
            raise UsageError(say("the engine does not search with beams", "引擎不支持集束搜索"), where="num_beams",
                             mend=say("set num_beams to 1", "请令 num_beams 为 1"))
        handle = Handle(request, self._cancel, listener)
        with self._lock:
            if self._closing:
                raise UsageError(say("the engine is closing", "引擎正在关闭"), where="submit",
                                 mend=say("start another", "请另启一个"))
            self._num_submitted += 1
            self._arrived.append(activate(handle, self._num_submitted, self.tokenizer, room))
            self._lock.notify_all()
        return handle

    def _cancel(self, handle: Handle) -> None:
        with self._lock:
            if not handle.done.is_set():
                self._cancelled.add(handle)
                self._lock.notify_all()

    def generate(self, requests: Iterable[Request]) -> list[Completion]:
        """All of them, in their order; runs the steps itself unless the engine was started."""
        handles = [self.submit(request) for request in requests]
        while self._thread is None and not all(handle.done.is_set() for handle in handles):
            self.step()
        return [handle.result() for handle in handles]

    def start(self) -> Engine:
        self._thread = threading.Thread(target=self._run, name="wenmo-engine", daemon=True)
        self._thread.start()
        return self

    def close(self) -> None:
        """No new requests; those that are there are finished first."""
        with self._lock:
            self._closing = True
            self._lock.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._lock:
                while not (self._arrived or self._cancelled or self._closing or not self.scheduler.idle):
                    self._lock.wait()
                if self._closing and not self._arrived and self.scheduler.idle:
                    return
            self.step()

    # A step -----------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Takes in what came, reads a piece of the prompts, and writes a token for each running request.

        Whatever goes wrong here ends the requests at hand with the error; the engine itself goes on.
        """
        try:
            self._take_in()
            self.scheduler.step()
            self._read_prompts()
            self._make_room()
            self._write()
        except Exception as error:  # nobody may wait for ever: each is told
            for active in self.scheduler.everyone:
                self._end(active, "error", error=error)

    def _take_in(self) -> None:
        with self._lock:
            arrived, self._arrived = self._arrived, []
            cancelled, self._cancelled = self._cancelled, set()
        for active in arrived:
            self.scheduler.add(active)
        for active in [each for each in self.scheduler.everyone if each.handle in cancelled]:
            self._end(active, "cancelled")

    def _read_prompts(self) -> None:
        """Chunks of prompts, one prompt after the other, up to `step_tokens`."""
        left = self.settings.step_tokens
        while left > 0 and (active := self.scheduler.next_to_read(self._has_room)) is not None:
            reading = self._reading = self._reading or self._begun(active)
            chunk = reading.ids[reading.done : reading.done + self.runner.chunk_tokens]
            scores_V = self.runner.read_chunk(chunk, reading.done, reading.layers, reading.capacity)
            reading.done += len(chunk)
            self.num_read += len(chunk)
            left -= self.runner.chunk_tokens
            if reading.done == len(reading.ids):
                self._finish_reading(active, reading, scores_V)

    def _has_room(self, active: Active) -> bool:
        return self.slots.admit(active, len(active.context) + 1)

    def _begun(self, active: Active) -> Reading:
        """A prompt with what is known of its beginning."""
        ids, size = list(active.request.ids), self.runner.chunk_tokens
        reading = Reading(ids, rounded(-(-len(ids) // size) * size))
        for block in self.prefixes.find(ids):
            for layer, (keys, values) in block.items():
                if layer not in reading.layers:
                    shape = (keys.shape[0], reading.capacity, keys.shape[2])
                    reading.layers[layer] = (keys.new_zeros(shape), values.new_zeros(shape))
                for whole, part in zip(reading.layers[layer], (keys, values), strict=True):
                    whole[:, reading.done : reading.done + size] = part
            reading.done += size
        return reading

    def _finish_reading(self, active: Active, reading: Reading, scores_V: Tensor) -> None:
        self.prefixes.keep(reading.ids, reading.layers)
        self.slots.fill(active, reading.layers, len(reading.ids))
        active.num_read = len(reading.ids)
        self._reading = None
        self.scheduler.read()
        if active.replay:
            active.replay.popleft()  # the first written token: its scores are known from before
        else:
            self._settle(active, scores_V)

    def _make_room(self) -> None:
        """Each row that writes needs room for one token more; where the budget ends, the last in rank gives way."""
        for active in sorted(self.scheduler.running, key=lambda each: each.number):
            while active in self.scheduler.running and not self.slots.grow(active, active.num_read):
                self._preempt(self.scheduler.last_in_rank())

    def _preempt(self, active: Active) -> None:
        """Its slot is freed. Later its prompt is read again, and then what it had written, token by token as before:
        the same calls give the same bits."""
        self.num_preempted += 1
        self.slots.release(active)
        active.num_read = 0
        active.replay.clear()
        active.replay.extend(new_tokens(active))
        self.scheduler.give_way(active)

    def _write(self) -> None:
        """The next token of every running row, at most ROWS in a call."""
        running = {id(active): active for active in self.scheduler.running}
        rows = [(pool, row, running[id(owner)]) for pool in self.slots.pools.values()
                for row, owner in enumerate(pool.owners) if id(owner) in running]
        calls = [rows[start : start + ROWS] for start in range(0, len(rows), ROWS)]
        settled: list[tuple[Active, Tensor]] = []
        for call in calls:
            segments = _segments(call)
            ids = [active.context[active.num_read] for _, _, active in call]
            scores_MV = self.runner.next_tokens(segments, ids)
            settled += [(active, scores_V) for (_, _, active), scores_V in zip(call, scores_MV, strict=True)]
        for active, scores_V in settled:  # after all calls: an end moves other rows
            active.num_read += 1
            if active.replay:
                active.replay.popleft()
            else:
                self._settle(active, scores_V)

    def _settle(self, active: Active, scores_V: Tensor) -> None:
        """Chooses a token by its scores and says what it adds to the text."""
        request, sampling = active.request, active.request.sampling
        allowed_V = adjust(scores_V, active.context, len(active.written.ids), sampling, self.ends, self.banned)
        if request.constraint is not None:
            allowed_V = request.constraint.allow(allowed_V)
        if torch.isnan(allowed_V).any():
            self._end(active, "error", error=NumericsError(
                say("the model's scores are not numbers (NaN)", "模型输出的分数不是数（NaN）"),
                mend=say("its weights are damaged: use an earlier checkpoint", "权重已损坏：请使用更早的检查点")))
            return
        token = choose(allowed_V, sampling, active.generator)
        self.num_written += 1
        logprobs: tuple[Logprob, ...] = ()
        if sampling.logprobs is not None and token is not None:
            logprobs = (logprob_of(scores_V.log_softmax(0), token, sampling.logprobs),)
            active.logprobs += logprobs
        last = False
        if token is not None:
            active.context.append(token)
            if request.constraint is not None and token not in self.ends:
                request.constraint.take(token)
                last = request.constraint.finished
        text = active.written.push(token, self.ends, last=last)
        if active.written.reason is not None:
            self._end(active, active.written.reason, text, () if token is None else (token,), logprobs)
        elif text or logprobs:
            active.handle.listener(Event(text, () if token is None else (token,), logprobs))

    def _end(self, active: Active, outcome: Outcome, text: str = "", ids: tuple[int, ...] = (),
             logprobs: tuple[Logprob, ...] = (), error: Exception | None = None) -> None:
        """Frees what it holds; its last event."""
        if active is self.scheduler.reading:
            self._reading = None
        self.scheduler.remove(active)
        if active in self.slots.place:
            self.slots.release(active)
        written = active.written
        completion = None if error is not None else Completion(
            written.text, tuple(written.ids), "stop" if outcome == "stop" else "length",
            None if active.request.sampling.logprobs is None else tuple(active.logprobs))
        active.handle.done.set()
        active.handle.listener(Event(text, ids, logprobs, outcome, completion, error))


def _segments(call: list[tuple[Pool, int, Active]]) -> list[Segment]:
    """Neighbouring rows of a pool, together."""
    segments: list[Segment] = []
    for pool, row, active in call:
        last = segments[-1] if segments else None
        if last is not None and last.pool is pool and last.first + len(last.positions) == row:
            segments[-1] = Segment(pool, last.first, [*last.positions, active.num_read])
        else:
            segments.append(Segment(pool, row, [active.num_read]))
    return segments
