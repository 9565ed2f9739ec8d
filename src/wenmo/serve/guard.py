"""The door: what every request passes before a route sees it, and what watches over it while it is inside.

In: ASGI messages. Out: the same, for who may come in; for others an error, before their body is read. In this order:
by which name the server was called and from which page, whose key it is, whether the server is stopping or full, how
often the caller came, how large the body is. Then the body is read whole, and the work has a time limit; it ends early
when the client leaves. /health and /ready are open to all. No text of a request is ever logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from wenmo.errors import say
from wenmo.serve.errors import ApiError, api_error, response
from wenmo.serve.gate import Cut, Gate, Visit, too_many
from wenmo.serve.keys import Keys
from wenmo.serve.metrics import Metrics
from wenmo.serve.quota import Quota
from wenmo.serve.settings import ServeSettings

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = ("/health", "/ready")
BODY_SECONDS = 30  # for a body to arrive
FAREWELL_SECONDS = 1  # for a client to take in why it was cut short
_log = logging.getLogger(__name__)


class Guard:
    """ASGI middleware, the outermost."""

    def __init__(self, app: App, settings: ServeSettings, gate: Gate, metrics: Metrics, keys: Keys) -> None:
        self.app, self.settings, self.gate, self.metrics, self.keys = app, settings, gate, metrics, keys
        if not self.keys.digests and settings.host not in ("127.0.0.1", "::1", "localhost"):
            _log.warning(say(f"whoever reaches {settings.host} may use this server: no API keys are set",
                             f"凡能访问 {settings.host} 的人都可使用本服务器：没有设置 API 密钥"))
        self.requests, self.tokens = Quota(settings.requests_per_minute), Quota(settings.tokens_per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:  # no route is a websocket
            await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        visit = Visit(f"req-{secrets.token_hex(12)}", "-", self.tokens)
        origin = headers.get("origin")
        answer = _Answer(send, visit, self._cross_origin(origin, headers))
        try:
            self._check_names(headers)
            if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
                await _preflight(answer, headers)
            elif scope["path"] in OPEN:
                await self.app(scope, receive, answer.send)
            else:
                visit.caller = self._caller(scope, headers)
                if scope["method"] == "POST":
                    await self._work(scope, receive, answer, visit, headers)
                else:
                    await self.app(scope, receive, answer.send)
        except Exception as error:  # a client is told of everything, in one shape
            if answer.status:
                raise
            await answer.refuse(api_error(error), scope, receive)
        finally:
            seconds = time.perf_counter() - began
            route = getattr(scope.get("route"), "path", "other")
            status = 499 if visit.cut == "gone" else answer.status
            self.metrics.answered(route, status, seconds)
            _log.log(logging.INFO if scope["method"] == "POST" else logging.DEBUG,
                     "%s %s %s %s %d in=%s out=%d %.3fs%s", visit.id, ascii(visit.caller)[1:-1], scope["method"],
                     ascii(scope["path"])[1:-1], status, ascii(headers.get("content-length", "-"))[1:-1],
                     answer.num_bytes, seconds, f" cut={visit.cut}" if visit.cut else "")

    # Who may come in --------------------------------------------------------------------------------------

    def _check_names(self, headers: dict[str, str]) -> None:
        """A page elsewhere cannot reach in by giving its own name this machine's address, nor by posting a form."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._is_ours(host):
            raise ApiError(403, say("this server is not called by that name", "本服务器不以该名称提供服务"),
                           type="permission_error", code="host_not_allowed")
        if origin is not None and not self._from_here(origin, host) and not self._is_named(origin):
            raise ApiError(403, say("pages of that origin may not call this server", "该来源的网页不可调用本服务器"),
                           type="permission_error", code="origin_not_allowed")

    def _is_ours(self, host: str) -> bool:
        """An address, localhost, the name it was bound to, or one of `hosts`: none that another could point here."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(name)
            return True
        known = {"localhost", self.settings.host.lower(), *(each.lower() for each in self.settings.hosts)}
        return name.lower() in known or "*" in known

    def _from_here(self, origin: str, host: str) -> bool:
        return origin.partition("://")[2].lower() == host.lower()

    def _is_named(self, origin: str) -> bool:
        return origin in self.settings.origins or "*" in self.settings.origins

    def _cross_origin(self, origin: str | None, headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
        if origin is None or not self._is_named(origin):
            return []
        return [(b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"Origin"),
                (b"access-control-expose-headers", b"x-request-id, retry-after")]

    def _caller(self, scope: Scope, headers: dict[str, str]) -> str:
        """The key's name; without keys, the address."""
        if not self.keys.digests:
            return str((scope.get("client") or ("-",))[0])
        kind, _, key = headers.get("authorization", "").partition(" ")
        name = self.keys.name_of(key.strip().encode("latin-1")) if kind.lower() == "bearer" else None
        if name is None:
            raise ApiError(401, say("no valid API key: send `Authorization: Bearer KEY`",
                                    "没有有效的 API 密钥：请发送 `Authorization: Bearer KEY`"),
                           type="authentication_error", code="invalid_api_key", headers={"www-authenticate": "Bearer"})
        return name

    # While it is inside -----------------------------------------------------------------------------------

    async def _work(self, scope: Scope, receive: Receive, answer: _Answer, visit: Visit,
                    headers: dict[str, str]) -> None:
        if int(headers.get("content-length", "0")) > self.settings.max_body_bytes:
            raise self._too_large()
        self.gate.enter(visit)
        try:
            wait_seconds = self.requests.take(visit.caller)
            if wait_seconds > 0:
                raise too_many(say("too many requests in this minute", "这一分钟的请求过多"), wait_seconds)
            await self._bounded(scope, receive, answer, visit)
        finally:
            self.gate.leave(visit)

    async def _bounded(self, scope: Scope, receive: Receive, answer: _Answer, visit: Visit) -> None:
        """Reads the body and runs the app, until it is done, or time is up, or the client leaves, or the server
        stops. `visit.limit` is how all of these end it."""
        clock = asyncio.get_running_loop().time
        answer.deadline, answer.idle_seconds = clock() + self.settings.request_seconds, self.settings.idle_seconds
        limit, watcher = asyncio.timeout(min(BODY_SECONDS, self.settings.request_seconds)), None
        try:
            async with limit:
                visit.limit = limit
                body = await self._body(receive)
                if body is None:
                    visit.cut = "gone"
                    return
                limit.reschedule(answer.deadline)
                left = asyncio.Event()
                watcher = asyncio.create_task(_watch(receive, visit, left))
                scope.setdefault("state", {})["visit"] = visit
                await self.app(scope, _replay(body, left), answer.send)
        except TimeoutError:
            if not limit.expired():
                raise
        finally:
            visit.limit = None
            if watcher is not None:
                watcher.cancel()
        if limit.expired() and not visit.finished:
            visit.cut = visit.cut or ("idle" if clock() < answer.deadline and answer.status else "slow")
            if visit.cut != "gone":
                await answer.farewell(_why(visit.cut), scope, receive)

    async def _body(self, receive: Receive) -> bytes | None:
        """None: the client left."""
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > self.settings.max_body_bytes:
                raise self._too_large()
            if not message.get("more_body", False):
                return bytes(body)

    def _too_large(self) -> ApiError:
        most = self.settings.max_body_bytes
        return ApiError(413, say(f"the body is larger than {most} bytes", f"请求体超过 {most} 字节"),
                        type="invalid_request_error", code="body_too_large", headers={"connection": "close"})


class _Answer:
    """What goes back. `status` 0: nothing yet."""

    def __init__(self, send: Send, visit: Visit, headers: list[tuple[bytes, bytes]]) -> None:
        self._send, self.visit = send, visit
        self.headers = [*headers, (b"x-request-id", visit.id.encode())]
        self.status = self.num_bytes = 0
        self.streaming = False
        self.deadline = self.idle_seconds = 0.0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            given = list(message.get("headers", []))
            self.streaming = any(name.lower() == b"content-type" and value.startswith(b"text/event-stream")
                                 for name, value in given)
            message = {**message, "headers": [*given, *self.headers]}
        elif message["type"] == "http.response.body":
            self.num_bytes += len(message.get("body", b""))
            self.visit.finished = not message.get("more_body", False)
        await self._send(message)
        limit = self.visit.limit
        if message.get("body") and limit is not None and not limit.expired():
            limit.reschedule(min(self.deadline, asyncio.get_running_loop().time() + self.idle_seconds))
            await asyncio.sleep(0)  # others' turn, and to hear that the client has left: sending itself does not wait

    async def refuse(self, error: ApiError, scope: Scope, receive: Receive) -> None:
        await response(error)(scope, receive, self.send)

    async def farewell(self, error: ApiError, scope: Scope, receive: Receive) -> None:
        """Says why, as an answer or as a stream's last event; a client that takes nothing in is not waited for."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_SECONDS):
                if not self.status:
                    await self.refuse(error, scope, receive)
                elif self.streaming:
                    event = f"data: {json.dumps(error.body(), ensure_ascii=False)}\n\n"
                    await self.send({"type": "http.response.body", "body": event.encode()})


async def _watch(receive: Receive, visit: Visit, left: asyncio.Event) -> None:
    """Ends the work of a client that leaves."""
    while (await receive())["type"] != "http.disconnect":
        pass
    left.set()
    visit.stop("gone")


def _replay(body: bytes, left: asyncio.Event) -> Receive:
    """What the app receives: the body, and then nothing until the client has left."""
    given = False

    async def receive() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        await left.wait()
        return {"type": "http.disconnect"}

    return receive


def _why(cut: Cut) -> ApiError:
    if cut == "draining":
        return ApiError(503, say("the server is stopping", "服务器正在停止"), type="server_error", code="draining",
                        headers={"retry-after": "10"})
    return ApiError(504, say("the request took too long", "请求耗时过长"), type="server_error", code="timeout")


async def _preflight(answer: _Answer, headers: dict[str, str]) -> None:
    """A browser asks whether a page may call; `_check_names` has said that it may."""
    allowed = [(b"access-control-allow-methods", b"GET, POST"), (b"access-control-max-age", b"600"),
               (b"access-control-allow-headers",
                headers.get("access-control-request-headers", "authorization, content-type").encode("latin-1"))]
    await answer.send({"type": "http.response.start", "status": 204, "headers": allowed})
    await answer.send({"type": "http.response.body", "body": b""})
