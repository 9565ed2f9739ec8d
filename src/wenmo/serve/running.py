"""What an engine writes for one request, from its thread to the server's event loop.

In: the continuations asked for. Out: their events as they come. Whoever leaves a `Running` early (the client is gone,
its time is up) cancels what still writes, so that no slot stays held.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from wenmo.engine import Engine, Event, Handle, Request
from wenmo.engine.request import Listener
from wenmo.errors import say
from wenmo.generate import Completion
from wenmo.generate.completion import Logprob
from wenmo.serve.errors import ApiError


@dataclass
class Finished:
    """One continuation, whole; `prompt_logprobs` where asked for."""

    completion: Completion
    prompt_logprobs: tuple[Logprob, ...] = ()


@dataclass
class Running:
    """`observed` wraps each listener (metrics). Enter it to submit: UsageError for a prompt that cannot be served."""

    engine: Engine
    requests: Sequence[Request]
    observed: Callable[[int, Listener], Listener]
    num_written: int = 0  # tokens so far, of all
    _handles: list[Handle] = field(default_factory=list)

    def __enter__(self) -> Running:
        self._loop, self._queue = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Event]]()
        try:
            for index, request in enumerate(self.requests):
                listener = self.observed(len(request.ids), self._listener(index))
                self._handles.append(self.engine.submit(request, listener))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.cancel()

    def _listener(self, index: int) -> Listener:
        def listen(event: Event) -> None:  # in the engine's thread
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                self._loop.call_soon_threadsafe(self._queue.put_nowait, (index, event))

        return listen

    async def events(self) -> AsyncIterator[tuple[int, Event]]:
        """(number of the continuation, event) until all have ended. Raises what went wrong with any of them."""
        left = len(self._handles)
        while left:
            index, event = await self._queue.get()
            if event.error is not None:
                raise event.error
            if event.outcome == "cancelled":
                raise ApiError(503, say("the server ended this request", "服务器终止了此请求"), code="cancelled")
            self.num_written += len(event.ids)
            left -= event.outcome is not None
            yield index, event

    async def finished(self) -> list[Finished]:
        """All of them, once they are whole."""
        done: dict[int, Finished] = {}
        heard: dict[int, tuple[Logprob, ...]] = {}
        async for index, event in self.events():
            heard[index] = heard.get(index) or event.prompt_logprobs
            if event.completion is not None:
                done[index] = Finished(event.completion, heard[index])
        return [done[index] for index in range(len(self.requests))]
