"""The demo's last act, with models of a few seconds: the server is asked by OpenAI's own client, and then is gone."""

from __future__ import annotations

import importlib.util
import logging
import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import small_data
from wenmo.errors import MissingExtra
from wenmo.loaded import load
from wenmo.stages.demo_serve import needs_client, serve_and_ask
from wenmo.stages.library import train

TEXTS = ["房间很干净", "服务太差"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    data = small_data.write(folder / "data", num_reviews=60, num_news=40)
    train(small_data.recipe("classification", steps=4), out=folder / "sentiment", data_root=data)
    train(small_data.recipe("causal_lm", steps=2), out=folder / "gpt", data_root=data)
    (folder / "gpt" / "model" / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content }}{% endfor %}", encoding="utf-8")
    return folder


@pytest.mark.parametrize("chats", [False, True])
def test_both_models_answer_as_they_do_alone(folder: Path, chats: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    models = {name: str(folder / name) for name in ("sentiment", "gpt")}
    found = serve_and_ask(models, TEXTS, chats=chats, question="新华社", max_tokens=8, format="fp32")
    assert found["labels"] == [answer["label"] for answer in load(models["sentiment"]).predict(TEXTS)]
    [[alone]] = load(models["gpt"]).complete(
        [load(models["gpt"]).chat_ids([{"role": "user", "content": "新华社"}]) if chats
         else load(models["gpt"]).prompt_ids("新华社")], max_new_tokens=8)
    assert found["answer"] == alone.text
    assert found["question"] == "新华社"
    assert found["model"] == "gpt"
    [url] = set(re.findall(r"http://127\.0\.0\.1:\d+(?=:)", caplog.text))
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{url}/health", timeout=5)


def test_the_client_is_asked_for_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    needs_client()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="openai"):
        needs_client()
