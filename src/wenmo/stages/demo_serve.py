"""The demo's last act: two models behind one server, asked as other programs would ask, then stopped.

In: the folders of the classifier and of a model that writes. Out: what they answered, through OpenAI's own client.
"""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from wenmo.engine import EngineSettings, FormatOrAuto, chosen_format
from wenmo.errors import MissingExtra, say
from wenmo.serve.app import create_app
from wenmo.serve.models import Models
from wenmo.serve.server import background
from wenmo.serve.settings import ServeSettings

_log = logging.getLogger(__name__)


def needs_client() -> None:
    """Raises MissingExtra where OpenAI's client is not installed: to be said before anything is trained."""
    if importlib.util.find_spec("openai") is None:
        raise MissingExtra("openai", "demo", say("calling the server", "调用服务"))


def serve_and_ask(models: Mapping[str, str], texts: Sequence[str], *, chats: bool, question: str,
                  max_tokens: int = 80, format: FormatOrAuto = "auto") -> dict[str, Any]:
    """`models`: the classifier and the writer by their names, in this order; it chats or, if not, continues `question`.

    {"model", "question", "answer", "tokens_per_second", "labels", "seconds"}; the speed is that of a whole answer, once
    the model is loaded.
    """
    from openai import OpenAI

    began = time.perf_counter()
    classifier, writer = models
    settings = ServeSettings(port=0, engine=EngineSettings(format=chosen_format(format)))
    app = create_app(Models(models, engine=settings.engine), settings)
    with background(app, settings, app.state.gate) as url, OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        _log.info(say(f"at {url}: ", f"{url} 上：") + ", ".join(model.id for model in client.models.list()))
        body = {"model": classifier, "rows": [{"text": text} for text in texts]}
        answers = client.post("/predict", cast_to=dict[str, Any], body=body)["answers"]
        labels = [answer["label"] for answer in answers]
        for text, label in zip(texts, labels, strict=True):
            _log.info(f"{text} → {label}")
        options: Any = {"model": writer, "temperature": 0, "max_tokens": max_tokens, "stream": True,
                        "stream_options": {"include_usage": True}}
        for _ in range(2):  # the first time the model is loaded; the second is what a user then waits for
            answer, num_tokens, asked_at = "", 0, time.perf_counter()
            for chunk in (client.chat.completions.create(messages=[{"role": "user", "content": question}], **options)
                          if chats else client.completions.create(prompt=question, **options)):
                num_tokens = chunk.usage.completion_tokens if chunk.usage is not None else num_tokens
                for choice in chunk.choices:
                    answer += (choice.delta.content if chats else choice.text) or ""
            speed = num_tokens / (time.perf_counter() - asked_at)
    _log.info(f"{question}\n→ {answer}\n" + say(f"{speed:.1f} tokens a second; the server has stopped",
                                                f"每秒 {speed:.1f} 个词元；服务已停止"))
    return {"model": writer, "question": question, "answer": answer, "tokens_per_second": round(speed, 2),
            "labels": labels, "seconds": round(time.perf_counter() - began, 1)}
