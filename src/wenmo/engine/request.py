"""A request: what is asked for, what comes back, and how far it is.

In: prompt ids and a Sampling. Out: `Event`s, the last of them with the completion or with why there is none.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
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
    """New text of a request, whole characters only, with the ids and log-probabilities it came with; the last has the
    outcome, and the completion unless it failed. prompt_logprobs, where asked for, come once, when the prompt has been
    read."""

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

    def cancel(self) -> None:
        """The request ends within one step; its last event says so. Nothing happens where it has ended."""
        self._cancel(self)

    def __iter__(self) -> Iterator[Event]:
        while True:
            event = self._events.get()
            yield event
            if event.outcome is not None:
                return

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
    generator: torch.Generator
    num_read: int = 0
    waited: int = 0  # steps
    replay: deque[int] = field(default_factory=deque)
    logprobs: list[Logprob] = field(default_factory=list)
    cancelled: bool = False

    @property
    def request(self) -> Request:
        return self.handle.request


def activate(handle: Handle, number: int, prompt: Sequence[int], tokenizer: Tokenizer, room: int) -> Active:
    """A request's state at its beginning. Its random numbers are those of generate/streaming.py."""
    request = handle.request
    written = Continuation(tokenizer, request.sampling.stop, room, request.shown)
    generator = device.torch_rng("generate", request.sampling.seed, " ".join(map(str, request.ids)), request.sample)
    return Active(handle, number, prompt, list(prompt), written, generator)


def new_tokens(active: Active) -> Sequence[int]:
    """What it has written so far."""
    return active.context[len(active.prompt) :]
