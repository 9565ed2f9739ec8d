"""`wenmo generate`: prompts → continuations, shown as they come, with the speed at the end."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from wenmo.config import parse
from wenmo.device import DType
from wenmo.errors import say
from wenmo.generate import Completion, Sampling
from wenmo.loaded import Loaded, load

_log = logging.getLogger(__name__)


def generate(model: str, prompts: Sequence[str], sampling: Mapping[str, Any], *, chat: bool = False,
             threads: int | None = None, dtype: DType = "auto", streaming: bool = True) -> dict[str, Any]:
    """All completions: {"model", "completions": [{"prompt", "sample", "text", "tokens", "reason"}],
    "tokens_per_second"}; with "score" where beams were searched, and "logprobs" where asked for.

    An encoder–decoder reads a prompt as its source.
    """
    settings = parse(Sampling, sampling, say("the command line", "命令行"))
    loaded = load(model, threads=threads, dtype=dtype)
    completions = []
    tokens, began = 0, time.perf_counter()
    for prompt in prompts:
        ids = loaded.chat_ids([{"role": "user", "content": prompt}]) if chat else loaded.prompt_ids(prompt)
        continues = not chat and "seq2seq_lm" not in loaded.model.heads
        if streaming and continues and settings.num_sequences == 1:
            print(prompt, end="", flush=True)
        for sample, completion in _completions(loaded, ids, settings, streaming).items():
            tokens += len(completion.ids)
            completions.append({"prompt": prompt, "sample": sample, **_answer(loaded, completion)})
    speed = tokens / max(time.perf_counter() - began, 1e-9)
    _log.info(say(f"{tokens} tokens, {speed:.1f} a second", f"{tokens} 个词元，每秒 {speed:.1f} 个"))
    sys.stdout.flush()
    return {"model": model, "completions": completions, "tokens_per_second": round(speed, 2)}


def _completions(loaded: Loaded, ids: Sequence[int], settings: Sampling, streaming: bool) -> dict[int, Completion]:
    """The completions of one prompt by their number; shown as they come, if `streaming`."""
    alone = settings.num_sequences == 1
    keywords = settings.model_dump()
    done: dict[int, Completion] = {}
    if settings.num_beams > 1:
        [best] = loaded.complete([ids], **keywords)
        done = dict(enumerate(best))
        if alone and streaming:
            print(best[0].text, flush=True)
    else:
        for piece in loaded.stream(ids, **keywords):
            if alone and streaming:
                print(piece.text, end="\n" if piece.completion is not None else "", flush=True)
            if piece.completion is not None:
                done[piece.sample] = piece.completion
    for sample, completion in sorted(done.items()):
        if streaming and not alone:
            print(f"[{sample}] {completion.text}", flush=True)
        if streaming and completion.logprobs is not None:
            Console().print(_table(loaded, completion))
    return dict(sorted(done.items()))


def _answer(loaded: Loaded, completion: Completion) -> dict[str, Any]:
    answer: dict[str, Any] = {"text": completion.text, "tokens": len(completion.ids), "reason": completion.reason}
    if completion.score is not None:
        answer["score"] = completion.score
    if completion.logprobs is not None:
        def named(id: int, logprob: float) -> dict[str, Any]:
            return {"token": loaded.tokenizer.token(id), "id": id, "logprob": round(logprob, 6)}

        answer["logprobs"] = [{**named(entry.id, entry.logprob), "top": [named(*pair) for pair in entry.top]}
                              for entry in completion.logprobs]
    return answer


def _table(loaded: Loaded, completion: Completion) -> Table:
    """A row a token: its log-probability, and what the model held likeliest there."""
    table = Table(box=None)
    alternatives = say("likeliest here", "此处最可能")
    for name in (say("token", "词元"), "id", "logprob", alternatives):
        table.add_column(name)

    def shown(id: int) -> str:
        return repr(loaded.tokenizer.token(id))[1:-1]

    for entry in completion.logprobs or ():
        likely = "  ".join(f"{shown(id)} {logprob:.2f}" for id, logprob in entry.top)
        table.add_row(Text(shown(entry.id)), str(entry.id), f"{entry.logprob:.2f}", Text(likely))
    return table
