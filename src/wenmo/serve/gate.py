"""Who is inside the server: every request that does work, from its first byte to its last.

The guard lets them in and out; whoever drains the server asks how many are left and, at the end, cuts them short.
Lives in the event loop alone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from wenmo.errors import say
from wenmo.serve.errors import ApiError
from wenmo.serve.quota import Quota

Cut = Literal["slow", "idle", "draining", "gone"]


@dataclass(eq=False)
class Visit:
    """One request. `id` stands in the log and in the answer's x-request-id; `caller`: the key's name, or an address.
    In a route it is `request.state.visit`."""

    id: str
    caller: str
    tokens: Quota
    limit: asyncio.Timeout | None = None
    cut: Cut | None = None  # why it was cut short
    finished: bool = False  # its answer is whole
    reserved: int = 0

    def reserve(self, num_tokens: int) -> None:
        """Takes from the caller's tokens of a minute what this request may need at most: its prompts and all that may
        be written. Raises ApiError (429) where they are used up."""
        wait_seconds = self.tokens.take(self.caller, num_tokens)
        if wait_seconds > 0:
            raise too_many(say("your tokens of this minute are used up", "这一分钟的词元配额已用完"), wait_seconds)
        self.reserved += num_tokens

    def spend(self, num_tokens: int) -> None:
        """What it really took; the rest of what was reserved is given back."""
        self.tokens.give_back(self.caller, self.reserved - num_tokens)
        self.reserved = 0

    @contextlib.contextmanager
    def reading(self, num_tokens: int) -> Iterator[None]:
        """Reserves what the block reads, and gives it back where that comes to nothing: the client has left, say."""
        self.reserve(num_tokens)
        spent = 0
        try:
            yield
            spent = num_tokens
        finally:
            self.spend(spent)

    def stop(self, why: Cut) -> None:
        """Cancels its work at once; the guard tells the client, if there still is one."""
        if self.limit is not None and self.cut is None and not self.finished:
            self.cut = why
            self.limit.reschedule(asyncio.get_running_loop().time())


@dataclass
class Gate:
    """max_requests: so many are inside at once."""

    max_requests: int
    draining: bool = False
    inside: set[Visit] = field(default_factory=set)

    def enter(self, visit: Visit) -> None:
        """Raises ApiError: 503 while the server drains, 429 where it is full."""
        if self.draining:
            raise ApiError(503, say("the server is stopping", "服务器正在停止"), type="server_error", code="draining",
                           headers={"retry-after": "10", "connection": "close"})
        if len(self.inside) >= self.max_requests:
            raise too_many(say("the server is full", "服务器已满"), 1)
        self.inside.add(visit)

    def leave(self, visit: Visit) -> None:
        self.inside.discard(visit)

    def cut(self) -> int:
        """Ends what is left; how many that was."""
        left = list(self.inside)
        for visit in left:
            visit.stop("draining")
        return len(left)


def too_many(message: str, wait_seconds: float) -> ApiError:
    return ApiError(429, message, type="rate_limit_error", code="rate_limit_exceeded",
                    headers={"retry-after": str(max(1, -int(-wait_seconds // 1)))})
