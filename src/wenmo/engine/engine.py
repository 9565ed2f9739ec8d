"""The engine: requests in, events out; schedule → run → settle, step after step.

`step` does one step and may be called from one thread alone; `start` does so from a thread of its own until `close`.
`submit` and `Handle.cancel` may be called from any thread.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import threading
from collections.abc import Iterable
from functools import cached_property
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from wenmo import device
from wenmo.config import Count, Settings
from wenmo.engine.grammar import Grammars
from wenmo.engine.native import Choice, runner_for
from wenmo.engine.packed import Format
from wenmo.engine.prefix import Prefixes, tokens_within
from wenmo.engine.prompts import HasRead, Prompts
from wenmo.engine.request import Active, Constraint, Event, Handle, Listener, Outcome, Request, activate, new_tokens
from wenmo.engine.runner import Piece, Read
from wenmo.engine.scheduler import Scheduler
from wenmo.engine.shapes import Shape
from wenmo.engine.slots import Layers, Slots, bytes_of_token, largest
from wenmo.engine.speculate import DraftModel, PromptLookup, Speculation
from wenmo.errors import UsageError, WenmoError, say
from wenmo.generate.completion import Completion, Logprob, logprob_of
from wenmo.generate.sampling import adjust, choose
from wenmo.models import LanguageModel
from wenmo.text.tokenizer import Tokenizer

_log = logging.getLogger(__name__)
STEP_SECONDS = 30  # that a program waits at its end for a step to be over
SOURCE_TOKENS = 2048  # of an encoder–decoder that sets no limit, where max_context sets none
REPLAYED = 8  # tokens of a row that are read again in one step


class DraftSettings(Settings):
    """draft: a smaller model with the same tokenizer, by its reference."""

    draft: str


class EngineSettings(Settings):
    """format: of the weights (packed.py). native: whole steps in compiled code (native.py) where model and machine
    allow it (auto), or else an error (on), or never. cache_tokens: keys and values of so many tokens are kept for
    running requests, prefix_tokens: of beginnings read before (left out: what a 32nd of the memory holds).
    chunk_tokens: prompts are read in chunks of so many; step_tokens: about so many between two steps of those that
    write. max_context: no request is longer (left out: as long as the model allows, and the cache; 2,048 for an
    encoder–decoder that has no limit of its own, such as T5). speculate: guess the next tokens (speculate.py), at most
    speculate_tokens at a time; the text is the same."""

    format: Format = "fp32"
    native: Choice = "auto"
    cache_tokens: Count = Field(32768, ge=128)
    prefix_tokens: Count | None = None
    chunk_tokens: int = Field(64, ge=16, multiple_of=16)
    step_tokens: Count = Field(512, ge=16)
    max_running: int = Field(32, ge=1)
    max_context: Count | None = Field(None, gt=1)
    speculate: Literal["off", "prompt"] | DraftSettings = "off"
    speculate_tokens: int = Field(8, ge=1, le=15)


class Engine:
    """One model, in eval mode, which is the engine's own from then on: its weights are packed. `ends`: ids that end a
    text; `banned`: ids that are never chosen; `draft`: the model that guesses, where the settings name one. Of an
    encoder–decoder the `sources` of running requests stand beside what they write, within as many tokens again."""

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer, settings: EngineSettings, *, ends: frozenset[int],
                 banned: frozenset[int] = frozenset(), draft: LanguageModel | None = None) -> None:
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        self.ends, self.banned = ends, banned
        # A source is read at once, and what its attention takes grows with the square of its length.
        bounded = model.config.max_tokens or settings.max_context or "seq2seq_lm" not in model.heads
        limits = (model.config.max_tokens, settings.max_context, largest(settings.cache_tokens),
                  None if bounded else SOURCE_TOKENS)
        self.longest = min(limit for limit in limits if limit is not None)
        self.slots = Slots(settings.cache_tokens, self.longest)
        self.sources = Slots(settings.cache_tokens, self.longest) if "seq2seq_lm" in model.heads else None
        self.prefixes = Prefixes(settings.chunk_tokens, settings.prefix_tokens)
        self.runner = runner_for(model, settings.format, settings.chunk_tokens, settings.native)
        self.is_native = self.runner.is_native
        self.speculation = self._speculation(draft)
        self.scheduler = Scheduler(settings.max_running)
        self.prompts = Prompts(self.runner, self.prefixes, self.slots, self.sources, self.scheduler)
        self.num_preempted = self.num_written = 0
        self._arrived: list[Active] = []
        self._cancelled: set[Handle] = set()
        self._lock = threading.Condition()
        self._num_submitted = 0
        self._closing = self._abandoned = False
        self._thread: threading.Thread | None = None
        self._grammars: Grammars | None = None
        self._compiling = threading.Lock()

    def _speculation(self, draft: LanguageModel | None) -> Speculation | None:
        settings = self.settings
        if settings.speculate == "off":
            return None
        if self.sources is not None:
            raise UsageError(say("an encoder–decoder does not speculate", "编码器–解码器不支持推测解码"),
                             where="speculate", mend=say("leave it out", "请去掉"))
        if settings.speculate == "prompt":
            return Speculation(PromptLookup(), settings.speculate_tokens)
        if draft is None or draft.lm_output()[0].shape[0] != self.model.lm_output()[0].shape[0]:
            raise UsageError(say("the draft model is missing or has another vocabulary", "缺少草稿模型，或其词表不同"),
                             where="speculate.draft",
                             mend=say("give a smaller model with the same tokenizer", "请给出分词器相同的较小模型"))
        longest = min(self.longest, draft.config.max_tokens or self.longest)
        runner = runner_for(draft, settings.format, settings.chunk_tokens, settings.native)
        self.is_native = self.is_native and runner.is_native
        return Speculation(DraftModel(runner, settings.cache_tokens, longest), settings.speculate_tokens)

    @property
    def num_read(self) -> int:
        """Tokens of prompts that the model has read."""
        return self.prompts.num_read

    @property
    def _target_start(self) -> tuple[int]:
        """What the target of an encoder–decoder begins with."""
        config: Any = self.model.config
        return (config.decoder_start_token_id,)

    @cached_property
    def cache_bytes(self) -> int:
        """Of all keys and values that it may keep; found by reading a token."""
        layers, across, size = Layers(), Layers(), self.settings.chunk_tokens
        if self.sources is None:
            self.runner.read([Piece([0], 0, layers, size)])
        else:
            self.runner.read_source([0], self._target_start[0], layers, across, size)
        tokens = self.settings.cache_tokens
        kept = self.settings.prefix_tokens
        if kept is None:
            kept = 0 if self.sources is not None else tokens_within(bytes_of_token(layers))
        return bytes_of_token(layers) * (tokens + kept) + bytes_of_token(across) * tokens

    # From any thread --------------------------------------------------------------------------------------

    def submit(self, request: Request, listener: Listener | None = None) -> Handle:
        """Events go to `listener`, from the engine's thread; without one, to who iterates the handle.

        Raises UsageError for a prompt that is empty or leaves no room, and for beams.
        """
        prompt = request.ids if self.sources is None else self._target_start
        room = min(request.sampling.max_new_tokens, self.room(len(request.ids)))
        fits = self.sources is None or self.sources.fits(len(request.ids))
        if not request.ids or room < 1 or not fits or not self.slots.fits(len(prompt) + room):
            most = self.longest - (1 if self.sources is None else 0)
            raise UsageError(
                say(f"a prompt of {len(request.ids)} tokens leaves no room" if request.ids else "an empty prompt",
                    f"提示有 {len(request.ids)} 个词元，没有余地继续生成" if request.ids else "提示为空"),
                where="prompt", mend=say(f"give 1 to {most} tokens", f"请给出 1 到 {most} 个词元"))
        if request.prompt_logprobs is not None and self.sources is not None:
            raise UsageError(say("a source has no log-probabilities", "源文本没有对数概率"), where="prompt_logprobs",
                             mend=say("leave it out", "请去掉"))
        if request.sampling.num_beams > 1:
            raise UsageError(say("the engine does not search with beams", "引擎不支持集束搜索"), where="num_beams",
                             mend=say("set num_beams to 1", "请令 num_beams 为 1"))
        handle = Handle(request, self._cancel, listener)
        with self._lock:
            if self._closing:
                raise UsageError(say("the engine is closing", "引擎正在关闭"), where="submit",
                                 mend=say("start another", "请另启一个"))
            self._num_submitted += 1
            self._arrived.append(activate(handle, self._num_submitted, prompt, self.tokenizer, room))
            self._lock.notify_all()
        return handle

    def room(self, num_tokens: int) -> int:
        """How many tokens can follow a prompt of so many; beside a source, after the token that begins a target."""
        return self.longest - (num_tokens if self.sources is None else 1)

    def constraint(self, shape: Shape) -> Constraint:
        """What holds one text to a shape (grammar.py); each sample needs one of its own.

        Raises MissingExtra without llguidance, DataError for a shape that cannot be fulfilled or is not supported.
        """
        with self._compiling:
            if self._grammars is None:
                self._grammars = Grammars(self.tokenizer, self.ends)
        return self._grammars.constraint(shape)

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
        # Python ends its daemon threads in the middle of whatever they do; inside of torch that takes the process down.
        atexit.register(self._abandon)
        return self

    def close(self) -> None:
        """No new requests; those that are there are finished first."""
        with self._lock:
            self._closing = True
            self._lock.notify_all()
        if self._thread is not None:
            self._thread.join()
            atexit.unregister(self._abandon)

    def _abandon(self) -> None:
        """The program ends, and nobody waits any more: the thread stops after its step."""
        with self._lock:
            self._abandoned = True
            self._lock.notify_all()
        if self._thread is not None:
            self._thread.join(STEP_SECONDS)

    def _run(self) -> None:
        while True:
            with self._lock:
                while not (self._arrived or self._cancelled or self._closing or self._abandoned
                           or not self.scheduler.idle):
                    self._lock.wait()
                if self._abandoned or (self._closing and not self._arrived and self.scheduler.idle):
                    return
            self.step()

    # A step -----------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Takes in what came, reads a piece of the prompts, and writes a token for each running request.

        What goes wrong while a prompt is read ends its request alone; anything else those at hand, with the error. The
        engine itself goes on.
        """
        try:
            # Of what is left to torch beside native steps nothing is worth a second thread.
            with device.one_thread() if self.is_native else contextlib.nullcontext():
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
        for has_read in self.prompts.read(self.settings.step_tokens):
            active, error = has_read.active, has_read.error
            try:
                self._begin_to_write(has_read)
            except Exception as settling:  # of this prompt: the others go on
                error = settling
            if error is not None and active in self.scheduler.everyone:
                self._end(active, "error", error=error)

    def _begin_to_write(self, has_read: HasRead) -> None:
        active = has_read.active
        if has_read.scores is None:
            return
        if active.replay:
            active.replay.popleft()  # the first written token: its scores are known from before
            return
        if has_read.logprobs:
            _tell(active, Event("", prompt_logprobs=has_read.logprobs))
        self._settle(active, has_read.scores)

    def _make_room(self) -> None:
        """Each row that writes needs room for one token more; where the budget ends, the last in rank gives way."""
        for active in sorted(self.scheduler.running, key=lambda each: each.number):
            while active in self.scheduler.running and not self.slots.grow(active, active.num_read):
                self._preempt(self.scheduler.last_in_rank())

    def _preempt(self, active: Active) -> None:
        """Its slot is freed. Later its prompt is read again, and then what it had written, token by token as before:
        the same calls give the same bits."""
        self.num_preempted += 1
        self._free(active)
        active.num_read = 0
        active.replay.clear()
        active.replay.extend(new_tokens(active))
        self.scheduler.give_way(active)

    def _free(self, active: Active) -> None:
        if self.speculation is not None:
            self.speculation.forget(active)
        for slots in (self.slots, self.sources):
            if slots is not None and active in slots.place:
                slots.release(active)

    def _write(self) -> None:
        """The next token of every running row, and more of them where guesses come true."""
        reads = self._reads()
        scores = self.runner.next_tokens(self.slots, reads, self.sources) if reads else []
        for read, scores_XV in zip(reads, scores, strict=True):  # after all calls: an end moves other rows
            self._take(read, scores_XV)

    def _reads(self) -> list[Read]:
        """What each row reads: the token it wrote last and guesses of what follows, or tokens that it wrote before it
        was preempted."""
        writing = [active for active in self.scheduler.running if not active.replay]
        guessed = {} if self.speculation is None else self.speculation.propose(
            [(active, self._room_to_guess(active)) for active in writing])
        reads = []
        for active in self.scheduler.running:
            start = active.num_read
            known = active.context[start : start + 1]
            if active.replay and self.sources is None:
                most = min(len(active.replay), self.slots.place[active][0].capacity - start, REPLAYED)
                known = active.context[start : start + most]
            reads.append(Read(active, start, [*known, *guessed.get(active, [])]))
        return reads

    def _room_to_guess(self, active: Active) -> int:
        """Its slot has places for so many, and a token more is always chosen than guesses come true."""
        in_slot = self.slots.place[active][0].capacity - active.num_read - 1
        return min(in_slot, active.written.room - len(active.written.ids) - 1)

    def _take(self, read: Read, scores_XV: Tensor) -> None:
        """Settles token after token, as long as what was read is what is chosen."""
        active, guessed = read.active, len(read.ids) - 1 if not read.active.replay else 0
        num_true = 0
        for following, scores_V in zip([*read.ids[1:], None], scores_XV, strict=True):
            active.num_read += 1
            if active.replay:
                active.replay.popleft()
                continue
            self._settle(active, scores_V)
            if active.handle.done.is_set() or active.context[-1] != following:
                break
            num_true += 1
        if guessed and self.speculation is not None:
            self.speculation.learn(active, guessed, num_true)

    def _settle(self, active: Active, scores_V: Tensor) -> None:
        """Chooses a token by its scores and says what it adds to the text."""
        request, sampling = active.request, active.request.sampling
        last = False
        try:
            allowed_V = adjust(scores_V, active.context, len(active.written.ids), sampling, self.ends, self.banned)
            if request.constraint is not None:
                allowed_V = request.constraint.allow(allowed_V)
            token = choose(allowed_V, sampling, active.generator)
            if request.constraint is not None and token is not None and token not in self.ends:
                request.constraint.take(token)
                last = request.constraint.finished
        except WenmoError as error:  # it is this request's alone
            self._end(active, "error", error=error)
            return
        self.num_written += 1
        logprobs: tuple[Logprob, ...] = ()
        if sampling.logprobs is not None and token is not None:
            logprobs = (logprob_of(scores_V.log_softmax(0), token, sampling.logprobs),)
            active.logprobs += logprobs
        if token is not None:
            active.context.append(token)
        text = active.written.push(token, self.ends, last=last)
        if active.written.reason is not None:
            self._end(active, active.written.reason, text, logprobs)
        elif text or logprobs:
            _tell(active, Event(text, active.untold(), logprobs))

    def _end(self, active: Active, outcome: Outcome, text: str = "", logprobs: tuple[Logprob, ...] = (),
             error: Exception | None = None) -> None:
        """Frees what it holds; its last event."""
        if active is self.scheduler.reading:
            self.prompts.forget()
        self.scheduler.remove(active)
        self._free(active)
        written = active.written
        completion = None if error is not None else Completion(
            written.text, tuple(written.ids), "stop" if outcome == "stop" else "length",
            None if active.request.sampling.logprobs is None else tuple(active.logprobs))
        active.handle.done.set()
        _tell(active, Event(text, active.untold(), logprobs, outcome, completion, error))


def _tell(active: Active, event: Event) -> None:
    """A listener that fails is no fault of the engine's, nor of the others beside it."""
    try:
        active.handle.listener(event)
    except Exception as error:
        _log.error(say("a listener has failed", "监听函数出错"), exc_info=error)

