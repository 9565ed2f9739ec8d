"""`wenmo generate`: prompts → continuations, shown as they come, with the speed at the end."""

from __future__ import annotations

import itertools
import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from wenmo.config import parse
from wenmo.engine import Engine, Event, FormatOrAuto, Handle, Request, chosen_format, shapes
from wenmo.engine.shapes import Shape
from wenmo.errors import DataError, UsageError, say
from wenmo.faults import of_reading
from wenmo.generate import Completion, Sampling
from wenmo.loaded import Loaded, load

_log = logging.getLogger(__name__)


def generate(model: str, prompts: Sequence[str], sampling: Mapping[str, Any], *, chat: bool = False,
             threads: int | None = None, format: FormatOrAuto = "fp32", streaming: bool = True,
             shape: Shape | None = None) -> dict[str, Any]:
    """All completions: {"model", "completions": [{"prompt", "sample", "text", "tokens", "reason"}],
    "tokens_per_second"}; with "score" where beams were searched, and "logprobs" where asked for.

    All of them are written together by the engine, and shown in order. Beams are the plain reference's (generate/).
    Raises UsageError for a format that it does not have, and for a `shape`, which the engine holds each text to.
    """
    settings = parse(Sampling, sampling, say("the command line", "命令行"))
    loaded = load(model, device="cpu", threads=threads)
    asked = [loaded.chat_ids([{"role": "user", "content": prompt}]) if chat else loaded.prompt_ids(prompt)
             for prompt in prompts]
    began = time.perf_counter()
    events: Iterator[list[Iterator[Event]]]
    if _plain(settings, format, shape):
        events = ([iter([Event(each.text, completion=each)]) for each in some]
                  for some in loaded.complete(asked, **settings.model_dump()))
    else:
        engine = loaded.engine({"format": chosen_format(format, loaded.stored_format)})
        began = time.perf_counter()  # to pack the weights and compile the native steps is not to write
        events = _engine_events(engine, asked, settings, shape)
    continues = not chat and "seq2seq_lm" not in loaded.model.heads
    completions, tokens, num_cut = [], 0, 0
    for prompt, samples in zip(prompts, events, strict=True):
        if streaming and continues and settings.num_sequences == 1:
            print(prompt, end="", flush=True)
        for sample, coming in enumerate(samples):
            completion = _shown(loaded, sample, coming, settings, streaming)
            tokens += len(completion.ids)
            num_cut += completion.reason == "length" and len(completion.ids) < settings.max_new_tokens
            completions.append({"prompt": prompt, "sample": sample, **_answer(loaded, completion)})
    if num_cut:
        number, window = len(completions), loaded.opened.max_tokens
        _log.warning(say(f"{num_cut} of {number} texts end with the model's window of {window} tokens",
                         f"{number} 段文本中有 {num_cut} 段止于模型窗口的末尾（{window} 个词元）"))
    speed = tokens / max(time.perf_counter() - began, 1e-9)
    _log.info(say(f"{tokens} tokens, {speed:.1f} a second", f"{tokens} 个词元，每秒 {speed:.1f} 个"))
    sys.stdout.flush()
    return {"model": model, "completions": completions, "tokens_per_second": round(speed, 2)}


def shape_of(json_schema: Path | None, regex: str | None, choices: str | None) -> Shape | None:
    """What the command line asks the texts to look like: JSON of the schema in a file, a pattern, or one of the texts
    between the commas. Raises UsageError for more than one, DataError for a file that holds no schema."""
    if sum(each is not None for each in (json_schema, regex, choices)) > 1:
        raise UsageError(say("a text can be held to one shape only", "文本只能遵守一种格式"),
                         where="--json-schema, --regex, --choices", mend=say("give one of them", "请只给出其一"))
    if json_schema is not None:
        try:
            return shapes.json_schema(json.loads(json_schema.read_text(encoding="utf-8")))
        except (OSError, ValueError, RecursionError) as error:
            if isinstance(error, DataError):
                raise
            why = of_reading(error) if isinstance(error, OSError | UnicodeDecodeError) else str(error)
            raise DataError(say(f"cannot read the schema: {why}", f"无法读取模式：{why}"), where=str(json_schema),
                            mend=say("give a JSON file", "请给出 JSON 文件")) from error
    if regex is not None:
        return shapes.regex(regex)
    return None if choices is None else shapes.choice([text for text in choices.split(",") if text])


def _plain(settings: Sampling, format: FormatOrAuto, shape: Shape | None) -> bool:
    """Whether the plain reference is to write."""
    if settings.num_beams == 1:
        return False
    if format not in ("auto", "fp32"):
        raise UsageError(say("beams are computed in fp32", "集束搜索以 fp32 计算"),
                         where=f"format {format}", mend=say("leave the format out", "请不要给出格式"))
    if shape is not None:
        raise UsageError(say("beams cannot be held to a shape", "集束搜索无法遵守格式"),
                         where=shape.kind, mend=say("leave it out", "请不要给出格式要求"))
    return True


def _engine_events(engine: Engine, asked: Sequence[Sequence[int]], settings: Sampling,
                   shape: Shape | None) -> Iterator[list[Iterator[Event]]]:
    """For each prompt the events of its samples, in order; all are written at once. What is left when who reads them
    stops is cancelled."""
    handles: list[list[Handle]] = []
    engine.start()
    try:
        for ids in asked:
            handles.append([engine.submit(Request(
                tuple(ids), settings, sample, constraint=None if shape is None else engine.constraint(shape)))
                for sample in range(settings.num_sequences)])
        for some in handles:
            yield [iter(handle) for handle in some]
    finally:
        for handle in itertools.chain.from_iterable(handles):
            handle.cancel()
        engine.close()


def _shown(loaded: Loaded, sample: int, coming: Iterator[Event], settings: Sampling, streaming: bool) -> Completion:
    """The completion at the end of the events; shown as it comes, if `streaming` and alone."""
    alone = settings.num_sequences == 1
    for event in coming:
        if event.error is not None:
            raise event.error
        if alone and streaming:
            print(event.text, end="" if event.completion is None else "\n", flush=True)
        if event.completion is not None:
            if streaming and not alone:
                print(f"[{sample}] {event.completion.text}", flush=True)
            if streaming and event.completion.logprobs is not None:
                Console().print(_table(loaded, event.completion))
            return event.completion
    raise AssertionError("the last event of a request has its completion or its error")


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
