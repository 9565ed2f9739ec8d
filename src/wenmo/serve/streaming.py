"""Server-sent events: an answer as it comes.

In: what is to be said, piece by piece. Out: `data: …` lines. Once the first byte is out a status can no longer say that
something failed: then an event does, in the shape of any other error.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack
from typing import Any

import anyio
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from wenmo.serve.errors import api_error, encoded

DONE = b"data: [DONE]\n\n"
# No ends of lines in the standard's sense, but in Python's and JavaScript's, and so in many a client's.
_ESCAPED = {character.encode(): f"\\u{ord(character):04x}".encode() for character in "\u0085\u2028\u2029"}
_LINE_ENDS = re.compile(b"|".join(_ESCAPED))


def event(value: Mapping[str, Any], name: str | None = None) -> bytes:
    line = f"event: {name}\n".encode() if name else b""
    return line + b"data: " + _LINE_ENDS.sub(lambda found: _ESCAPED[found[0]], encoded(value)) + b"\n\n"


class EventStream(StreamingResponse):
    """Sends the events and, whatever happens, lets go of what the `stack` holds: the model in use, what still writes.

    `failed` writes the event of an error.
    """

    def __init__(self, events: AsyncGenerator[bytes, None], stack: AsyncExitStack) -> None:
        super().__init__(_with_errors(events), media_type="text/event-stream",
                         headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._events, self._stack = events, stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                await self._events.aclose()
                await self._stack.aclose()


async def _with_errors(events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    try:
        async for each in events:
            yield each
    except Exception as error:
        yield event(api_error(error).body())
