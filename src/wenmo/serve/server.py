"""Listening, and stopping well.

In: an app and its gate. Out: an exit code. On SIGTERM or Ctrl-C nothing new is let in (/ready says so), those inside
have `drain_seconds` to end, the rest is told why it is cut short, and then the process ends; a second signal cuts at
once. Exit code 0 where all were answered whole, else that of the signal.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from wenmo.errors import UsageError, say
from wenmo.faults import of_reading
from wenmo.serve.gate import Gate
from wenmo.serve.settings import ServeSettings

_TICK_SECONDS = 0.02
HEAD_SECONDS = 30  # for the head of a request to arrive; of its body the guard says the same


def run(app: Any, settings: ServeSettings, gate: Gate, announce: Callable[[str], None]) -> int:
    """Serves until a signal comes; `announce` is called with the address once requests are answered. To be called in
    the main thread. Raises UsageError for a port or host that cannot be had."""
    listening = _listen(settings)
    server = _Server(app, settings, gate, announce=lambda: announce(_url(listening)))
    server.run(sockets=[listening])
    if not server.started:
        raise RuntimeError("the server did not start; its log says why")
    return server.exit_code


@contextlib.contextmanager
def background(app: Any, settings: ServeSettings, gate: Gate) -> Iterator[str]:
    """The same in a thread of its own, while the block runs: its address. Drains at the end."""
    listening, ready = _listen(settings), threading.Event()
    server = _Server(app, settings, gate, announce=ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="wenmo-serve", daemon=True)
    thread.start()
    while not ready.wait(0.1):
        if not thread.is_alive():
            raise RuntimeError("the server did not start; its log says why")
    try:
        yield _url(listening)
    finally:
        server.stop()
        thread.join()


class _Http(H11Protocol):
    """Closes a connection that does not bring the head of a request to its end: uvicorn would wait for ever."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn's own narrowing
        super().connection_made(transport)
        self._until = self.loop.call_later(HEAD_SECONDS, transport.close)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._until.cancel()
        elif self._until.cancelled():  # another request begins
            self._until = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._until.cancel()
        super().connection_lost(exc)


class _Server(uvicorn.Server):
    def __init__(self, app: Any, settings: ServeSettings, gate: Gate, announce: Callable[[], None]) -> None:
        # No proxy headers: a client could take another's address on. No websockets: no route is one.
        super().__init__(uvicorn.Config(app, http=_Http, loop="asyncio", ws="none", lifespan="on",
                                        log_config=None, log_level="warning", access_log=False, proxy_headers=False,
                                        server_header=False, timeout_graceful_shutdown=5))
        self.drain_seconds, self.gate, self.announce = settings.drain_seconds, gate, announce
        self.exit_code = 0
        self._signals = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self._signals:
            self.should_exit = True
        elif self.started:
            self.announce()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """uvicorn's hook for signals; it would raise them again at the end if they were noted where it looks."""
        self._signals += 1
        self.stop(128 + sig)

    def stop(self, code: int = 1) -> None:
        """From any thread: begins to drain; a second time, cuts. `code`: for the process, if some are cut short."""
        if self._loop is None:
            self.should_exit = True
        else:
            self._loop.call_soon_threadsafe(self._stop, code)

    def _stop(self, code: int) -> None:
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain(code))
        else:
            self._cut(code)

    async def _drain(self, code: int) -> None:
        self.gate.draining = True
        until = asyncio.get_running_loop().time() + self.drain_seconds
        while self.gate.inside and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(_TICK_SECONDS)
        self._cut(code)
        while self.gate.inside:
            await asyncio.sleep(_TICK_SECONDS)
        self.should_exit = True

    def _cut(self, code: int) -> None:
        if self.gate.cut():
            self.exit_code = code


def _listen(settings: ServeSettings) -> socket.socket:
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        raise UsageError(
            say(f"cannot listen at {settings.host}, port {settings.port}: {of_reading(error)}",
                f"无法监听 {settings.host} 的端口 {settings.port}：{of_reading(error)}"), where="--host, --port",
            mend=say("choose another port, or stop who has it", "请换一个端口，或停掉占用它的程序") if taken else
            say("give an address of this machine and a port that you may use", "请给出本机的地址和允许使用的端口"),
        ) from error


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
