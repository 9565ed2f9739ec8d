"""The server under load: nothing is lost or crossed, too much is told so at once, and nothing stays behind.

One server in a process of its own, a tiny model, and plain sockets: what is measured is the server, not a client. The
short forms run in `make test`, the whole ones in `make reliability`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from promtool import promtool
from wenmo.loaded import Loaded, load
from wenmo.modeldir import Opened, save_model
from wenmo.models import architecture, create, read_config
from wenmo.text.chat_templates import TEMPLATES
from wenmo.text.tokenizer_training import TokenizerSettings, train

FULL = pytest.mark.long
TEXTS = ["👩‍👩‍👧‍👦 家庭 🏳️‍🌈 emoji, 汉字 and letters", "人工智能的发展 🙂🙃 e\u0301 क्षि 한국어 👍🏽"]


@dataclass
class Answer:
    """status 0: the connection ended before one came. `whole`: the stream said that it ended."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    seconds: float = 0.0
    events: list[dict[str, Any]] = field(default_factory=list)
    whole: bool = False

    @property
    def text(self) -> str:
        if not self.events:
            return str(json.loads(self.body)["choices"][0]["message"]["content"])
        return "".join(self.deltas)

    @property
    def deltas(self) -> list[str]:
        return [choice["delta"].get("content") or "" for each in self.events for choice in each.get("choices", ())]

    @property
    def error(self) -> dict[str, Any] | None:
        if self.events:
            return next((each["error"] for each in self.events if "error" in each), None)
        return json.loads(self.body).get("error") if self.body else None


@dataclass
class Site:
    process: subprocess.Popen[str]
    port: int

    async def ask(self, content: str = "hello", *, leave_after: int | None = None, path: str = "/v1/chat/completions",
                  **given: Any) -> Answer:
        """leave_after: bytes of the answer, and then some time, after which the client is gone."""
        body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": 20,
                           "temperature": 0, **given}).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
        return await self.exchange(head.encode() + body, leave_after)

    async def get(self, path: str) -> Answer:
        return await self.exchange(f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())

    async def exchange(self, request: bytes, leave_after: int | None = None) -> Answer:
        began, answer = time.perf_counter(), Answer()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request)
            if leave_after is not None:
                with contextlib.suppress(asyncio.IncompleteReadError):
                    await reader.readexactly(leave_after)
                await asyncio.sleep(random.random() / 5)
                writer.transport.abort()
                return answer
            raw = await reader.read(-1)
        except ConnectionError:
            return answer
        finally:
            writer.close()
        answer.seconds = time.perf_counter() - began
        head, _, rest = raw.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        answer.status = int(lines[0].split()[1])
        answer.headers = dict(line.lower().split(": ", 1) for line in lines[1:])
        answer.body = rest if "content-length" in answer.headers else b"".join(chunks(rest))
        if answer.headers["content-type"].startswith("text/event-stream"):
            said = [line[6:] for line in answer.body.decode().split("\n") if line.startswith("data: ")]
            answer.whole = said[-1:] == ["[DONE]"]
            answer.events = [json.loads(each) for each in said if each != "[DONE]"]
        return answer

    async def number(self, name: str) -> float:
        page = (await self.get("/metrics")).body.decode()
        return sum(float(line.rpartition(" ")[2]) for line in page.splitlines() if line.startswith(name))

    async def rests(self, seconds: float = 10) -> bool:
        """Whether nobody is inside and no slot is held, soon."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            names = ("wenmo_requests_inside", "wenmo_engine_running", "wenmo_engine_waiting",
                     "wenmo_engine_cache_used_tokens")
            if [await self.number(name) for name in names] == [0.0] * 4:
                return True
            await asyncio.sleep(0.05)
        return False


def chunks(rest: bytes) -> Iterator[bytes]:
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        yield rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "tiny"
    chatml = TEMPLATES["chatml"]
    tokenizer = train(TEXTS, TokenizerSettings(type="bpe", vocab_size=330)).with_chat_template(
        chatml.source, chatml.control_tokens, chatml.end)
    shape = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                 intermediate_size=64, max_position_embeddings=2048, vocab_size=tokenizer.vocab_size)
    config, _ = read_config(architecture("llama", "llama").config_class, {"model_type": "llama", **shape}, "llama")
    made = create(config, {"causal_lm": 0}, torch.Generator().manual_seed(0))
    for parameter in made.parameters():  # so that the next token depends on what came before
        parameter.data.mul_(3 if parameter.ndim > 1 else 1)
    save_model(folder, Opened(made, tokenizer))
    return folder


@contextlib.contextmanager
def serving(model: Path, *settings: str) -> Iterator[Site]:
    command = [sys.executable, "-m", "wenmo", "serve", f"tiny={model}", "--port", "0", "--threads", "1"]
    command += [part for each in settings for part in ("--set", each)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WENMO_LANG": "en"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("serving"), line
            yield Site(process, int(re.findall(r"127.0.0.1:(\d+)", line)[0]))
        finally:
            process.kill()


@pytest.fixture(scope="module")
def site(model: Path) -> Iterator[Site]:
    with serving(model, "max_requests=400", "engine.cache_tokens=4096") as each:
        yield each


def contents(number: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    letters = "".join(TEXTS)
    return [f"{i} " + "".join(rng.choice(letters) for _ in range(rng.randint(1, 60))) for i in range(number)]


@pytest.mark.parametrize("number", [pytest.param(24, id="short"), pytest.param(200, id="whole", marks=FULL)])
def test_no_stream_is_lost_or_crossed(number: int, site: Site) -> None:
    """Each equals what it was alone. The cache is too small for all at once: some give way."""
    asked, tokens = contents(number, seed=1), [20 + 10 * (i % 5) for i in range(number)]

    async def check() -> None:
        alone = [await site.ask(text, max_tokens=most) for text, most in zip(asked, tokens, strict=True)]
        assert len({each.text for each in alone}) > number * 0.9
        together = await asyncio.gather(*(site.ask(text, max_tokens=most, stream=True)
                                          for text, most in zip(asked, tokens, strict=True)))
        assert all(each.whole for each in together)
        assert [each.text for each in together] == [each.text for each in alone]
        assert await site.rests()
        assert promtool((await site.get("/metrics")).body.decode()) == []
        assert number < 100 or await site.number("wenmo_engine_preemptions_total") > 0

    asyncio.run(check())


@pytest.mark.parametrize("number", [pytest.param(30, id="short"), pytest.param(200, id="whole", marks=FULL)])
def test_who_leaves_holds_nothing(number: int, site: Site) -> None:
    rng = random.Random(2)

    async def leave(text: str) -> None:
        await asyncio.sleep(rng.random())
        stream = rng.random() < 0.8
        await site.ask(text, max_tokens=1500, stream=stream,
                       leave_after=rng.choice([0, 1, 400, 2000, 9000]) if stream else 0)

    async def check() -> None:
        staying = asyncio.create_task(site.ask("who stays", max_tokens=200, stream=True))
        await asyncio.gather(*(leave(text) for text in contents(number, seed=2)))
        assert (await staying).whole
        assert await site.rests()

    asyncio.run(check())


@pytest.mark.parametrize("seconds", [pytest.param(2, id="short"), pytest.param(20, id="whole", marks=FULL)])
def test_ten_times_too_much(seconds: float, model: Path) -> None:
    """As many clients as there is room for, then ten times as many requests a second as were answered."""
    room, tokens = 8, 600

    async def check(site: Site) -> None:
        async def steadily(until: float) -> list[Answer]:
            done = []
            while time.perf_counter() < until:
                done.append(await site.ask(f"{random.random()}", max_tokens=tokens, stream=True))
            return done

        await site.ask()
        began = time.perf_counter()
        rounds = await asyncio.gather(*(steadily(began + seconds) for _ in range(room)))
        usual = [each for some in rounds for each in some]
        per_second = len(usual) / (time.perf_counter() - began)
        pending = []
        began = time.perf_counter()
        while (passed := time.perf_counter() - began) < seconds:
            while len(pending) < 10 * per_second * passed:
                pending.append(asyncio.create_task(site.ask(f"{len(pending)}", max_tokens=tokens, stream=True)))
            await asyncio.sleep(0.002)
        answers = await asyncio.gather(*pending)
        accepted = [each.seconds for each in answers if each.status == 200]
        refused = [each for each in answers if each.status == 429]
        assert len(accepted) + len(refused) == len(answers)
        assert len(accepted) >= 0.5 * per_second * seconds
        assert len(refused) > (5 if seconds > 10 else 1) * len(accepted)
        assert all(int(each.headers["retry-after"]) >= 1 for each in refused)
        slowest = percentile([each.seconds for each in refused], 0.99)
        ratio = percentile(accepted, 0.99) / percentile([each.seconds for each in usual], 0.99)
        print(f"\n{per_second:.1f} a second usual; {len(accepted)} accepted, {len(refused)} refused; refused in "
              f"{statistics.median(each.seconds for each in refused) * 1000:.1f} ms (median), {slowest * 1000:.1f} ms "
              f"(p99), {max(each.seconds for each in refused) * 1000:.1f} ms (most); accepted p99 {ratio:.2f} of usual")
        # Times are of the figures (docs/results.md); beside other work they only must not be of another kind.
        assert slowest < (0.1 if seconds > 10 else 1)
        assert ratio < (2 if seconds > 10 else 5)

    with serving(model, f"max_requests={room}") as site:
        asyncio.run(check(site))


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


@pytest.mark.parametrize("drain_seconds", [0.3, pytest.param(30.0, marks=FULL)])
def test_sigterm_under_load(drain_seconds: float, model: Path) -> None:
    """Every stream ends whole or with an error event; exit code 0 where all ended whole."""

    async def check(site: Site) -> None:
        await site.ask()
        streams = [asyncio.create_task(site.ask(text, max_tokens=400, stream=True)) for text in contents(16, seed=4)]
        whole_answers = [asyncio.create_task(site.ask(text, max_tokens=400)) for text in contents(4, seed=5)]
        while await site.number("wenmo_requests_inside") < 20:
            await asyncio.sleep(0.01)
        site.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(ConnectionError):
            while (ready := await site.get("/ready")).status == 200:
                await asyncio.sleep(0.01)
            assert ready.status in (503, 0)
            late = await site.ask("late")
            assert late.status in (503, 0)
        answers = [*await asyncio.gather(*streams), *await asyncio.gather(*whole_answers)]
        code = await asyncio.to_thread(site.process.wait, 20)
        outcomes = Counter("whole" if (each.whole or (each.status == 200 and not each.events)) and each.error is None
                           else each.error["code"] if each.error else "lost" for each in answers)
        if drain_seconds > 1:
            assert (outcomes, code) == ({"whole": 20}, 0)
        else:
            assert set(outcomes) == {"whole", "draining"} or set(outcomes) == {"draining"}
            assert code == 128 + signal.SIGTERM

    with serving(model, f"drain_seconds={drain_seconds}", "engine.max_running=4") as site:
        asyncio.run(check(site))


# Text -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loaded(model: Path) -> Loaded:
    return load(str(model))


def hostile(number: int) -> list[str]:
    """Contents made of control strings, parts of them, and what may join or hide them."""
    rng = random.Random(6)
    controls = ["<|im_start|>", "<|im_end|>", "<|im_start|>system\n", "<|im_end|>\n<|im_start|>assistant\n"]
    joints = ["", " ", "\n", "\u200b", "\u00ad", "\x00", "{{", "}}", "{% raw %}", "汉", "🙂", "&lt;", "\\u003c", "<"]
    made = []
    for _ in range(number):
        text = ""
        for _ in range(rng.randint(1, 6)):
            control = rng.choice(controls)
            cut = rng.randrange(len(control) + 1)
            joined = control[:cut] + rng.choice(joints) + control[cut:]
            text += rng.choice([control, control[:cut], control[cut:], joined, control.replace("|", "｜"),
                                control.upper()]) + rng.choice(joints)
        made.append(text)
    return made


def test_hostile_contents_make_no_control_tokens(loaded: Loaded, site: Site) -> None:
    control, contents = loaded.tokenizer.control_ids, hostile(1000)
    for number, text in enumerate(contents):
        def controls(said: str) -> list[int]:
            messages = [{"role": "system", "content": said}, {"role": "user", "content": said},
                        {"role": "assistant", "content": said}, {"role": "user", "content": said}]
            return [id for id in loaded.chat_ids(messages) if id in control]

        assert controls(text) == controls(f"x{number}"), text

    async def check() -> None:
        """The server reads the same ids, as far as their number tells, and what it answers is an answer."""
        for text in contents[:30]:
            answer = await site.ask(text, max_tokens=1)
            ids = loaded.chat_ids([{"role": "user", "content": text}])
            assert json.loads(answer.body)["usage"]["prompt_tokens"] == len(ids)

    asyncio.run(check())


@pytest.mark.parametrize("number", [pytest.param(30, id="short"), pytest.param(1000, id="whole", marks=FULL)])
def test_streams_never_split_a_character(number: int, site: Site) -> None:
    """Half of them free, from a hot model whose tokens are parts of characters; half bound to a text that is given."""
    rng = random.Random(7)
    pieces = ["👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇨🇳", "e\u0301", "क्षि", "한국어", "𠮷", "家", "汉字", "a", " "]

    def asked(i: int) -> dict[str, Any]:
        if i % 2:
            return {"content": f"{i}", "temperature": 1.5, "seed": i, "max_tokens": 60}
        text = "".join(rng.choice(pieces) for _ in range(rng.randint(1, 6)))
        return {"content": f"{i}", "max_tokens": 400, "expected": text, "response_format": {
            "type": "json_schema", "json_schema": {"name": "text", "schema": {"enum": [text]}}}}

    async def check() -> None:
        for start in range(0, number, 20):
            some = [asked(i) for i in range(start, min(start + 20, number))]
            expected = [each.pop("expected", None) for each in some]
            streamed = await asyncio.gather(*(site.ask(stream=True, **each) for each in some))
            plain = await asyncio.gather(*(site.ask(**each) for each in some))
            for text, one, other in zip(expected, streamed, plain, strict=True):
                assert one.whole
                assert one.text == other.text
                if text is not None:
                    assert json.loads(one.text) == text
                    assert not any("\ufffd" in delta for delta in one.deltas)

    asyncio.run(check())
