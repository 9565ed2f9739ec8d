"""`wenmo generate`: prompts → continuations, shown as they come, with the speed at the end."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from wenmo.config import parse
from wenmo.device import DType
from wenmo.errors import say
from wenmo.generate import Sampling
from wenmo.loaded import load

_log = logging.getLogger(__name__)


def generate(model: str, prompts: Sequence[str], sampling: Mapping[str, Any], *, chat: bool = False,
             threads: int | None = None, dtype: DType = "auto", streaming: bool = True) -> dict[str, Any]:
    """All completions: {"model", "completions": [{"prompt", "text", "tokens", "reason"}], "tokens_per_second"}."""
    parse(Sampling, sampling, say("the command line", "命令行"))
    loaded = load(model, threads=threads, dtype=dtype)
    completions = []
    tokens, began = 0, time.perf_counter()
    for prompt in prompts:
        ids = loaded.chat_ids([{"role": "user", "content": prompt}]) if chat else loaded.prompt_ids(prompt)
        alone = streaming and sampling["num_sequences"] == 1
        if alone and not chat:
            print(prompt, end="", flush=True)
        for piece in loaded.stream(ids, **sampling):
            if alone:
                print(piece.text, end="", flush=True)
            if piece.completion is not None:
                tokens += len(piece.completion.ids)
                completions.append({"prompt": prompt, "sample": piece.sample, "text": piece.completion.text,
                                    "tokens": len(piece.completion.ids), "reason": piece.completion.reason})
                if streaming and not alone:
                    print(f"[{piece.sample}] {piece.completion.text}", flush=True)
        if alone:
            print(flush=True)
    speed = tokens / max(time.perf_counter() - began, 1e-9)
    _log.info(say(f"{tokens} tokens, {speed:.1f} a second", f"{tokens} 个词元，每秒 {speed:.1f} 个"))
    sys.stdout.flush()
    return {"model": model, "completions": completions, "tokens_per_second": round(speed, 2)}
