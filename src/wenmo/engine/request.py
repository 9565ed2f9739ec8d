"""A request: what is asked for, what comes back, and how far it is.

In: prompt ids and a Sampling. Out: `Event`s, the last of them with the completion or with why there is none.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol

import torch
from torch import Tensor

from wenmo import device
from wenmo.generate.completion import Completion, Continuation, Logprob
from wenmo.generate.sampling import Sampling
from wenmo.text.tokenizer import Tokenizer

Outcome = Literal["stop", "length", "cancelled", "error"]


class Constraint(Protocol):
    """What the text must look like (a schema, a pattern, one of several choices): see engine/grammar.py. Where it
    raises a WenmoError, the request ends with it."""

    def allow(self, scores_V: Tensor) -> Tensor:
        """The scores with -inf for every token that may not come next."""
        ...

    def take(self, token: int) -> None: ...

    @property
    def finished(self) -> bool:
        """Whether nothing more may follow."""
        ...


@dataclass(frozen=True, slots=True)
class Request:
    """One text to be continued once. `sample` is its number among those asked for together: another draws otherwise.

    priority: larger comes first; who waits long rises (scheduler.py). prompt_logprobs: so many alternatives beside the
    log-probability of each of the prompt's own tokens after the first; 0: the tokens' alone. constraint: one of its
    own, for it keeps what it has seen. shown: control ids that stand in the text as they are written.
    """

    ids: tuple[int, ...]  # of an encoder–decoder: the source
    sampling: Sampling
    sample: int = 0
    priority: int = 0
    constraint: Constraint | None = None
    prompt_logprobs: int | None = None
    shown: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Event:
    """New text of a request, whole characters only, with all ids written since the last event, whose text may be yet
    to come, and log-probabilities; the last has the outcome, and the completion unless it failed. The ids of all events
    joined are the completion's. prompt_logprobs, where asked for, come once, when the prompt has been read."""

    text: str
    ids: tuple[int, ...] = ()
    logprobs: tuple[Logprob, ...] = ()
    outcome: Outcome | None = None
    completion: Completion | None = None
    error: Exception | None = None
    prompt_logprobs: tuple[Logprob, ...] = ()


Listener = Callable[[Event], None]


class Handle:
    """What who asked holds: iterate it for events, or ask for the `result`; `cancel` at any time, from any thread."""

    def __init__(self, request: Request, cancel: Callable[[Handle], None], listener: Listener | None = None) -> None:
        self.request = request
        self._cancel, self._events = cancel, queue.SimpleQueue[Event]()
        self.listener: Listener = listener or self._events.put
        self.done = threading.Event()
        self._last: Event | None = None  # once it has been given out

    def cancel(self) -> None:
        """The request ends within one step; its last event says so. Nothing happens where it has ended."""
        self._cancel(self)

    def __iter__(self) -> Iterator[Event]:
        """Events as they come; who asks again after the last gets that one alone."""
        while self._last is None:
            event = self._events.get()
            if event.outcome is not None:
                self._last = event
            yield event
            if event.outcome is not None:
                return
        yield self._last

    def result(self) -> Completion:
        """Waits for the end. Raises what went wrong."""
        for event in self:
            if event.error is not None:
                raise event.error
            if event.completion is not None:
                return event.completion
        raise AssertionError("a request ends with a completion or an error")


@dataclass(eq=False)
class Active:
    """A request in the engine. `prompt`: what is read before the first token is written (not a source); `context`: its
    prompt and what it has written; `num_read`: how many of them stand in the cache; `replay`: tokens written before it
    was preempted, to be read again one by one as they were then."""

    handle: Handle
    number: int  # in the order of arrival
    prompt: Sequence[int]
    context: list[int]
    written: Continuation
    num_read: int = 0
    num_told: int = 0  # of what it has written, in events
    waited: int = 0  # steps
    replay: deque[int] = field(default_factory=deque)
    logprobs: list[Logprob] = field(default_factory=list)

    @property
    def request(self) -> Request:
        return self.handle.request

    @cached_property
    def generator(self) -> torch.Generator:
        """Its random numbers, those of generate/streaming.py; made when first drawn from, for a long prompt is a long
        key, and who submits is not to wait for it."""
        request = self.request
        return device.torch_rng("generate", request.sampling.seed, " ".join(map(str, request.ids)), request.sample)

    def untold(self) -> tuple[int, ...]:
        """The ids that were written since this was last asked for."""
        ids = tuple(self.written.ids[self.num_told :])
        self.num_told += len(ids)
        return ids


def activate(handle: Handle, number: int, prompt: Sequence[int], tokenizer: Tokenizer, room: int) -> Active:
    """A request's state at its beginning."""
    written = Continuation(tokenizer, handle.request.sampling.stop, room, handle.request.shown)
    return Active(handle, number, prompt, list(prompt), written)


def new_tokens(active: Active) -> Sequence[int]:
    """What it has written so far."""
    return active.context[len(active.prompt) :]
