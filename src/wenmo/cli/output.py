"""What verbs print on stdout: JSON, facts; nothing but the end where nobody reads any more.

In: results. Out: lines.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any


def follows() -> bool:
    """Whether this is one of several processes that torchrun has started, and not the first, which speaks for all."""
    return "WORLD_SIZE" in os.environ and os.environ.get("RANK", "0") != "0"


def print_json(value: dict[str, Any]) -> None:
    if follows():
        return
    with quiet_pipe():
        print(json.dumps(_finite(value), ensure_ascii=False), flush=True)


def _finite(value: Any) -> Any:
    """NaN and infinity, which JSON does not know, as null."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_facts(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(facts)
        return
    with quiet_pipe():
        print("\n".join(f"{name}: {value}" for name, value in facts.items()), flush=True)


@contextlib.contextmanager
def quiet_pipe() -> Iterator[None]:
    """`wenmo predict … | head` ends without a traceback. Around what prints: beyond, typer takes it for a failure."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
