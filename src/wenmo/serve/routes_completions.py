"""POST /v1/completions: prompts in, what follows them out. For an encoder–decoder a prompt is the source."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack
from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from wenmo.errors import say
from wenmo.generate.completion import Logprob
from wenmo.loaded import Loaded
from wenmo.serve.errors import ApiError, Json
from wenmo.serve.limits import check_bytes, check_numbers, check_tokens
from wenmo.serve.logprobs import OfCompletion
from wenmo.serve.running import Finished, Running
from wenmo.serve.schema import CompletionRequest
from wenmo.serve.streaming import DONE, EventStream, event
from wenmo.serve.writing import Prompt, engine_of, heading, usage, using, writing

router = APIRouter(tags=["text"])
_DEFAULT_TOKENS = 16  # OpenAI's


@router.post("/v1/completions", summary="Continue a text")
async def completions(body: CompletionRequest, http: Request) -> Response:
    settings = http.app.state.settings
    prompts = body.prompts()
    most = min(_DEFAULT_TOKENS, settings.max_new_tokens) if body.max_tokens is None else body.max_tokens
    check_numbers(settings, max_new_tokens=most, rows=len(prompts), n=body.n, rows_param="prompt")
    check_numbers(settings, n=len(prompts) * body.n)
    check_bytes(settings, [prompt for prompt in prompts if isinstance(prompt, str)], "prompt")
    for prompt in prompts:
        if not isinstance(prompt, str):
            check_tokens(settings, len(prompt), "prompt")
    async with AsyncExitStack() as stack:
        served = await stack.enter_async_context(using(http, body.model))
        engine, loaded = engine_of(served), served.loaded
        if body.echo and "seq2seq_lm" in loaded.model.heads:
            raise ApiError(400, say("this model rewrites its prompt instead of continuing it: nothing can be echoed",
                                    "该模型改写而非续写提示，无可回显"), param="echo")
        read = await run_in_threadpool(lambda: [_read(loaded, prompt) for prompt in prompts])
        running = await stack.enter_async_context(writing(
            http, served, read, lambda room: body.sampling(room, body.logprobs), asked_tokens=max(1, most), n=body.n,
            prompt_logprobs=body.logprobs if body.echo else None, priority=body.priority))
        answer = _Answer(heading(served, "cmpl-", "text_completion"), body, loaded, engine.ends, read)
        if body.stream:
            return EventStream(answer.stream(running), stack.pop_all())
        return Json(answer.whole(await running.finished(), written=most > 0))


def _read(loaded: Loaded, prompt: str | list[int]) -> Prompt:
    if isinstance(prompt, str):
        return Prompt(loaded.prompt_ids(prompt))
    if max(prompt) >= loaded.tokenizer.vocab_size:
        raise ApiError(400, say(f"there is no token {max(prompt)}", f"没有编号为 {max(prompt)} 的词元"), param="prompt")
    return Prompt(prompt)


class _Answer:
    """Writes one request's answer down."""

    def __init__(self, heading: dict[str, Any], body: CompletionRequest, loaded: Loaded, ends: frozenset[int],
                 prompts: Sequence[Prompt]) -> None:
        self.heading, self.body, self.prompts, self.ends = heading, body, prompts, ends
        self.tokenizer = loaded.tokenizer

    def whole(self, finished: Sequence[Finished], *, written: bool) -> dict[str, Any]:
        """`written` False: of each prompt its log-probabilities alone were asked for."""
        choices = []
        for index, each in enumerate(finished):
            number = index // self.body.n
            text = each.completion.text if written else ""
            if self.body.echo:
                text = self._echoed(number) + text
            choices.append({"index": index, "text": text, "logprobs": self._logprobs(number, each, written),
                            "finish_reason": each.completion.reason if written else "length"})
        num_written = sum(len(each.completion.ids) for each in finished) if written else 0
        return {**self.heading, "choices": choices, "usage": usage(self._num_read(), num_written)}

    def _num_read(self) -> int:
        return sum(len(prompt.ids) for prompt in self.prompts)

    def _echoed(self, number: int) -> str:
        given = self.body.prompts()[number]
        return given if isinstance(given, str) else self.tokenizer.decode(given)

    def _logprobs(self, number: int, each: Finished, written: bool) -> dict[str, list[Any]] | None:
        if self.body.logprobs is None:
            return None
        lists = OfCompletion(self.tokenizer, self.ends)
        if self.body.echo:
            entries: list[Logprob | None] = [None, *each.prompt_logprobs]
            for id, entry in zip(self.prompts[number].ids, entries, strict=True):
                lists.add(id, entry, of_prompt=True)
            lists.place = len(self._echoed(number))
        for own in (each.completion.logprobs or ()) if written else ():
            lists.add(own.id, own)
        return lists.take()

    async def stream(self, running: Running) -> AsyncGenerator[bytes, None]:
        with_usage = self.body.stream_options is not None and self.body.stream_options.include_usage
        heading = {**self.heading, "usage": None} if with_usage else self.heading
        lists = [OfCompletion(self.tokenizer, self.ends) for _ in running.requests]
        num_written = 0
        async for index, news in running.events():
            for entry in news.logprobs:
                lists[index].add(entry.id, entry)
            logprobs = lists[index].take() if self.body.logprobs is not None else None
            if news.completion is not None:
                num_written += len(news.completion.ids)
            yield event({**heading, "choices": [{"index": index, "text": news.text, "logprobs": logprobs,
                                                 "finish_reason": news.outcome}]})
        if with_usage:
            yield event({**heading, "choices": [], "usage": usage(self._num_read(), num_written)})
        yield DONE
