"""`wenmo serve`: models behind HTTP until a signal comes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wenmo.config import parse
from wenmo.engine import FormatOrAuto
from wenmo.errors import UsageError, say
from wenmo.serve.app import create_app
from wenmo.serve.models import Models
from wenmo.serve.server import run
from wenmo.serve.settings import ServeSettings

_log = logging.getLogger(__name__)


def serve(models: Sequence[str], settings: Mapping[str, Any], *, format: FormatOrAuto | None = None,
          threads: int | None = None) -> int:
    """Serves `[NAME=]MODEL`s; the exit code. Says where, once requests are answered. Raises UsageError, ModelError.

    `format` wins over that of the settings; `auto` is each model's own.
    """
    chosen = parse(ServeSettings, settings, say("the server's settings", "服务设置"))
    references = named(models)
    served = Models(references, chosen.models, chosen.engine, format, threads=threads)
    served.refuse_too_large()  # as a slip in a name, it is told now, and not to the first who asks
    app = create_app(served, chosen, warm=list(references)[:1])

    def announce(url: str) -> None:
        names = ", ".join(references)
        print(say(f"serving {names} at {url}/v1   (what it offers: {url}/docs; Ctrl-C ends)",
                  f"正在 {url}/v1 提供 {names}   （接口说明：{url}/docs；Ctrl-C 结束）"), flush=True)

    return run(app, chosen, app.state.gate, announce)


def named(models: Sequence[str]) -> dict[str, str]:
    """{name: reference} of `NAME=MODEL` or `MODEL`, whose name is then its last part. Raises UsageError.

    A path may hold a `=` (runs/lr=3e-4, as a sweep calls them): a NAME holds no slash, and what is there is a path.
    """
    references: dict[str, str] = {}
    for given in models:
        before, sign, after = given.partition("=")
        if "/" in before or Path(given).exists():
            sign = ""
        reference = after if sign else given
        name = before if sign else reference.rstrip("/").rpartition("/")[2].rpartition(":")[2].removesuffix(".gguf")
        if not name or not reference or name in references:
            raise UsageError(
                say(f"two models are called `{name}`" if name in references else "a model without a name",
                    f"有两个模型都叫 `{name}`" if name in references else "有模型没有名称"), where=given,
                mend=say("give each its own: NAME=MODEL", "请各取一个名称：名称=模型"))
        references[name] = reference
    return references
