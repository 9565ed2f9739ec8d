"""The server's door: who comes in, how much they may ask, and how it ends. Behind it stands a plain ASGI app."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError

from promtool import promtool
from wenmo.engine import Event
from wenmo.errors import UsageError
from wenmo.generate.completion import Completion
from wenmo.serve.app import create_app
from wenmo.serve.errors import ApiError, response
from wenmo.serve.gate import Gate
from wenmo.serve.guard import Guard
from wenmo.serve.keys import read_keys
from wenmo.serve.limits import check_bytes, check_numbers, check_tokens
from wenmo.serve.metrics import Metrics
from wenmo.serve.models import Models
from wenmo.serve.quota import Quota
from wenmo.serve.schema import ChatRequest
from wenmo.serve.schema_responses import ResponsesRequest
from wenmo.serve.server import background
from wenmo.serve.settings import ServeSettings


@dataclass
class Site:
    url: str
    gate: Gate
    metrics: Metrics
    bodies: list[bytes] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    streams: threading.Event = field(default_factory=threading.Event)

    def post(self, path: str = "/echo", content: bytes = b"{}", **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return httpx.post(self.url + path, content=content, headers=named, timeout=20)


@contextlib.contextmanager
def serving(**given: object) -> Iterator[Site]:
    settings = ServeSettings(**{"port": 0, **given})
    site = Site("", gate := Gate(settings.max_requests), Metrics(gate))

    async def app(scope, receive, send) -> None:
        if scope["type"] == "lifespan":
            return
        body = (await receive()).get("body", b"") if scope["method"] == "POST" else b""
        site.bodies.append(body)
        streams = scope["path"] == "/stream"
        kind = b"text/event-stream" if streams else b"application/json"
        try:
            if scope["path"] == "/reserve":
                try:
                    scope["state"]["visit"].reserve(int(body))
                except ApiError as error:
                    await response(error)(scope, receive, send)
                    return
                scope["state"]["visit"].spend(int(body) // 2)
            if scope["path"] == "/slow":
                await asyncio.sleep(60)
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
            for number in range(int(body)) if streams else ():
                await send({"type": "http.response.body", "body": b"data: %d\n\n" % number, "more_body": True})
                site.streams.set()
                await asyncio.sleep(0.05)
            if scope["path"] == "/flood":
                while True:
                    await send({"type": "http.response.body", "body": b" " * 65536, "more_body": True})
            await send({"type": "http.response.body", "body": b"" if streams else b"{}"})
            site.ended.append("whole")
        except asyncio.CancelledError:
            site.ended.append("cancelled")
            raise

    with background(Guard(app, settings, gate, site.metrics, read_keys(settings.keys)), settings, gate) as site.url:
        yield site


def eventually(holds, seconds: float = 5) -> bool:
    until = time.monotonic() + seconds
    while not holds() and time.monotonic() < until:
        time.sleep(0.01)
    return bool(holds())


# Who may come in ------------------------------------------------------------------------------------------


def test_keys(tmp_path, monkeypatch) -> None:
    (tmp_path / "keys").write_text("# ours\nann: secret-a\nsecret-b\n")
    monkeypatch.setenv("WENMO_API_KEYS", "eve: secret-c")
    assert sorted(read_keys(str(tmp_path / "keys")).digests) == ["ann", "eve", "key-2"]
    with serving(keys=str(tmp_path / "keys")) as site:
        for key in ("secret-a", "secret-b", "secret-c"):
            assert site.post(authorization=f"Bearer {key}").status_code == 200
        for wrong in ("Bearer secret-d", "Bearer", "secret-a", "Basic secret-a", "Bearer secret-a2", "Bearer s\xe9"):
            refused = httpx.post(site.url + "/echo", headers={b"authorization": wrong.encode("latin-1")})
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        assert httpx.get(site.url + "/anything").status_code == 401
        assert httpx.get(site.url + "/metrics").status_code == 401
        assert httpx.get(site.url + "/health").status_code == httpx.get(site.url + "/ready").status_code == 200


@pytest.mark.parametrize("text", ["", "# none\n", "a: 1\na: 2\n", "a:\n", ": b\n"])
def test_a_file_of_keys_that_is_none(text, tmp_path) -> None:
    (tmp_path / "keys").write_text(text)
    with pytest.raises(UsageError):
        read_keys(str(tmp_path / "keys"))
    with pytest.raises(UsageError):
        read_keys(str(tmp_path / "absent"))
    with pytest.raises(UsageError):  # and before anything is served
        create_app(Models({}), ServeSettings(keys=str(tmp_path / "keys")))


def test_by_what_name_and_from_which_page() -> None:
    with serving(hosts=("models.example",), origins=("https://page.example",)) as site:
        for host in ("127.0.0.1", "localhost:1234", "[::1]:80", "models.example:8000", "192.168.1.7"):
            assert site.post(host=host).status_code == 200, host
        for host in ("evil.example", "localhost.evil.example", "models.example.evil", "", "evil.example:80@x"):
            assert site.post(host=host).json()["error"]["code"] == "host_not_allowed", host
        assert site.post(origin=site.url).status_code == 200
        for origin in ("https://evil.example", "null", "http://127.0.0.1:1", "https://page.example.evil"):
            refused = site.post(origin=origin)
            assert refused.json()["error"]["code"] == "origin_not_allowed"
            assert "access-control-allow-origin" not in refused.headers
        assert site.post(origin="https://page.example").headers["access-control-allow-origin"] == "https://page.example"
        preflight = httpx.options(site.url + "/echo", headers={
            "origin": "https://page.example", "access-control-request-method": "POST",
            "access-control-request-headers": "authorization"})
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-headers"] == "authorization"


# How much -------------------------------------------------------------------------------------------------


def test_a_quota_fills_steadily() -> None:
    now = [0.0]
    quota = Quota(60, clock=lambda: now[0])
    assert [quota.take("a") for _ in range(60)] == [0.0] * 60
    assert quota.take("a") == pytest.approx(1)
    assert quota.take("b") == 0  # each has a bucket of its own
    now[0] = 10
    assert sum(quota.take("a") == 0 for _ in range(20)) == 10
    now[0] = 1000
    assert quota.take("a", 90) == 0  # more than it holds, from a full one: it owes the rest
    assert quota.take("a") == pytest.approx(31)
    quota.give_back("a", 40)
    assert quota.take("a", 10) == 0
    assert quota.take("a") > 0
    for number in range(5000):
        quota.take(f"other {number}")
        now[0] += 1
    assert len(quota.buckets) < 4200
    assert Quota(None).take("a", 10**9) == 0


def test_requests_and_tokens_of_a_minute(tmp_path) -> None:
    (tmp_path / "keys").write_text("a: one\nb: two")
    with serving(keys=str(tmp_path / "keys"), requests_per_minute=3, tokens_per_minute=1000) as site:
        got = [site.post(authorization="Bearer one") for _ in range(5)]
        assert [each.status_code for each in got] == [200] * 3 + [429] * 2
        assert 1 <= int(got[-1].headers["retry-after"]) <= 60
        # Half of each is given back: after the first 700 are left, after the second 400.
        got = [site.post("/reserve", b"600", authorization="Bearer two") for _ in range(3)]
        assert [each.status_code for each in got] == [200, 200, 429]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_not_read(chunked) -> None:
    with serving(max_body_bytes=10_000) as site:
        content = iter([b"x" * 1000] * 11) if chunked else b"x" * 11_000
        refused = site.post(content=content)
        assert (refused.status_code, refused.json()["error"]["code"]) == (413, "body_too_large")
        assert not site.bodies
        assert site.post(content=b"x" * 10_000).status_code == 200
        assert [len(body) for body in site.bodies] == [10_000]
        assert eventually(lambda: not site.gate.inside)


def test_a_body_said_to_be_large_is_not_waited_for() -> None:
    with serving(max_body_bytes=10_000) as site, socket.create_connection(address(site)) as client:
        client.sendall(b"POST /echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999999\r\n\r\n")
        client.settimeout(5)
        assert client.recv(100).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("begun", [b"", b"POST /echo HTTP/1.1\r\nhost: local",
                                   b"POST /echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\n{}POST /e"])
def test_a_head_that_does_not_end_is_not_waited_for(begun, monkeypatch) -> None:
    monkeypatch.setattr("wenmo.serve.server.HEAD_SECONDS", 0.5)
    whole, part = begun[: begun.rfind(b"POST /e")], begun[begun.rfind(b"POST /e") :]
    with serving() as site, socket.create_connection(site.url.removeprefix("http://").split(":")) as client:
        client.settimeout(4)  # uvicorn's own, between two requests, is 5
        if b"{}" in whole:
            client.sendall(whole)
            assert client.recv(1000).startswith(b"HTTP/1.1 200")
        client.sendall(part)
        began = time.monotonic()
        while client.recv(1000):
            pass
        assert 0.2 < time.monotonic() - began < 3


def test_a_slow_answer_keeps_its_connection(monkeypatch) -> None:
    monkeypatch.setattr("wenmo.serve.server.HEAD_SECONDS", 0.2)
    with serving() as site:
        assert site.post("/stream", b"10").text.count("data:") == 10


def test_limits_before_tokenising() -> None:
    settings = ServeSettings(max_prompt_tokens=10, max_new_tokens=5, max_n=2, max_rows=3)
    check_bytes(settings, ["x" * 160], "prompt")
    check_tokens(settings, 10, "prompt")
    check_numbers(settings, max_new_tokens=5, n=2, rows=3)
    check_bytes(settings, ["x" * 100, "y" * 100], "prompt")
    for check in (lambda: check_bytes(settings, ["ok", "字" * 60], "input"),
                  lambda: check_bytes(settings, ["x" * 100, "y" * 100], "messages", together=True),
                  lambda: check_bytes(settings, ["\ud800" * 161], "input"),
                  lambda: check_tokens(settings, 11, "prompt"), lambda: check_numbers(settings, max_new_tokens=6),
                  lambda: check_numbers(settings, n=3), lambda: check_numbers(settings, rows=4)):
        with pytest.raises(ApiError) as caught:
            check()
        assert (caught.value.status, caught.value.type) == (400, "invalid_request_error")
        assert caught.value.param


@pytest.mark.parametrize("kind", ["image_url", "input_image", "file", "input_file", "input_audio", "video_url", None])
def test_nothing_is_fetched(kind) -> None:
    """There is no kind of content but text."""
    def asked(key: str, text: str, *more: dict) -> str:
        content = [{"type": text, "text": "a"}, *more]
        return json.dumps({"model": "any", key: [{"role": "user", "content": content}]})

    part = {"type": kind, str(kind): {"url": "file:///etc/passwd"}}
    for body, key, text in ((ChatRequest, "messages", "text"), (ResponsesRequest, "input", "input_text")):
        body.model_validate_json(asked(key, text))
        with pytest.raises(ValidationError):
            body.model_validate_json(asked(key, text, part))


def test_full(monkeypatch) -> None:
    with serving(max_requests=2) as site, contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(httpx.stream("POST", site.url + "/stream", content=b"40"))
        began = time.perf_counter()
        refused = site.post()
        assert time.perf_counter() - began < 1  # the figure itself is measured in test_reliability.py
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert httpx.get(site.url + "/health").status_code == 200


# How it ends ----------------------------------------------------------------------------------------------


def test_time_is_limited() -> None:
    with serving(request_seconds=0.3) as site:
        slow = site.post("/slow")
        assert (slow.status_code, slow.json()["error"]["code"]) == (504, "timeout")
        events = site.post("/stream", b"100").text.split("\n\n")
        assert events[0] == "data: 0"
        assert json.loads(events[-2].removeprefix("data: "))["error"]["code"] == "timeout"
        assert events[-1] == ""
        assert site.ended == ["cancelled"] * 2
        assert site.post().status_code == 200


def test_a_client_that_reads_nothing_is_not_waited_for() -> None:
    with serving(idle_seconds=0.3) as site, socket.create_connection(address(site)) as client:
        client.sendall(b"POST /flood HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n")
        assert eventually(lambda: site.ended == ["cancelled"])
        assert eventually(lambda: not site.gate.inside)


@pytest.mark.parametrize("path", ["/slow", "/stream"])
def test_a_client_that_leaves(path) -> None:
    with serving() as site:
        with socket.create_connection(address(site)) as client:
            client.sendall(f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 3\r\n\r\n900".encode())
            assert eventually(lambda: site.bodies == [b"900"])
        assert eventually(lambda: site.ended == ["cancelled"])
        assert eventually(lambda: not site.gate.inside)
        with socket.create_connection(address(site)) as client:  # and one whose body never comes
            client.sendall(b"POST /echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: 3\r\n\r\n9")
            assert eventually(lambda: site.gate.inside)
        assert eventually(lambda: not site.gate.inside)
        assert len(site.bodies) == 1


@pytest.mark.parametrize(("drain_seconds", "whole"), [(20, True), (0.2, False)])
def test_draining(drain_seconds, whole) -> None:
    texts: list[str] = []
    with contextlib.ExitStack() as stack:
        site = stack.enter_context(serving(drain_seconds=drain_seconds))
        with httpx.Client() as other:
            assert other.post(site.url + "/echo").status_code == 200
            threads = [threading.Thread(target=lambda: texts.append(site.post("/stream", b"20").text))
                       for _ in range(3)]
            for thread in threads:
                thread.start()
            assert eventually(lambda: len(site.gate.inside) == 3)
            site.gate.draining = True
            late = other.post(site.url + "/echo")
            assert (late.status_code, late.json()["error"]["code"]) == (503, "draining")
            stack.close()
        for thread in threads:
            thread.join()
    numbers = "".join(f"data: {number}\n\n" for number in range(20))
    for text in texts:
        if whole:
            assert text == numbers
        else:
            before, _, last = text.rstrip().rpartition("\n\n")
            assert numbers.startswith(before)
            assert json.loads(last.removeprefix("data: "))["error"]["code"] == "draining"
    assert len(texts) == 3


def test_a_port_that_is_taken() -> None:
    with serving() as site, pytest.raises(UsageError, match="cannot listen"):
        with serving(port=address(site)[1]):
            pass


# What is written down -------------------------------------------------------------------------------------


def test_the_log_has_no_text_of_a_request(caplog) -> None:
    with serving() as site, caplog.at_level(logging.DEBUG, "wenmo"):
        answered = site.post("/echo?q=private", b'{"prompt": "private"}', x_other="private")
        site.post("/a%0aforged line")
        # A line is written once the answer is out, so a client may be sooner.
        assert eventually(lambda: len([each for each in caplog.records if each.name == "wenmo.serve.guard"]) == 2)
    assert "private" not in caplog.text
    assert answered.headers["x-request-id"] in caplog.text
    assert all("\n" not in record.getMessage() for record in caplog.records)


def test_metrics_are_wellformed() -> None:
    with serving() as site:
        site.post()
        heard: list[Event] = []
        listener = site.metrics.listen('m"\n\\', 7, heard.append)
        done = Event("b", (2,), outcome="stop", completion=Completion("ab", (1, 2), "stop"))
        for event in (Event("a", (1,)), done):
            listener(event)
        assert [event.text for event in heard] == ["a", "b"]
        assert eventually(lambda: b'status="200"' in site.metrics.text())
        page = site.metrics.text().decode()
    families = {family.name: family for family in text_string_to_metric_families(page)}
    assert promtool(page) == []
    assert value(families, "wenmo_written_tokens_total") == 2
    assert value(families, "wenmo_prompt_tokens_total") == 7
    assert value(families, "wenmo_first_token_seconds_count") == 1
    assert value(families, "wenmo_between_tokens_seconds_count") == 1
    assert value(families, "wenmo_requests_total") == 1


def value(families: dict, name: str) -> float:
    return sum(sample.value for family in families.values() for sample in family.samples if sample.name == name)


def address(site: Site) -> tuple[str, int]:
    return "127.0.0.1", int(site.url.rpartition(":")[2])
