"""POST /v1/chat/completions: a conversation in, the assistant's next message out, whole or as it comes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from wenmo.engine import Event
from wenmo.serve.errors import Json
from wenmo.serve.limits import check_numbers
from wenmo.serve.logprobs import of_chat
from wenmo.serve.running import Running
from wenmo.serve.schema import ChatRequest, NamedTool
from wenmo.serve.streaming import DONE, EventStream, event
from wenmo.serve.writing import Conversation, Prompt, engine_of, heading, prompt_of, usage, using, writing
from wenmo.text.tokenizer import Tokenizer
from wenmo.text.tool_calls import CallStream, ToolCall, parse_tool_calls

router = APIRouter(tags=["text"])


@router.post("/v1/chat/completions", summary="Answer a conversation")
async def chat_completions(body: ChatRequest, http: Request) -> Response:
    check_numbers(http.app.state.settings, max_new_tokens=body.most_tokens, n=body.n,
                  tokens_param="max_tokens" if body.max_completion_tokens is None else "max_completion_tokens")
    async with AsyncExitStack() as stack:
        served = await stack.enter_async_context(using(http, body.model))
        engine, tokenizer = engine_of(served), served.loaded.tokenizer
        prompt = await prompt_of(served, _conversation(body), http.app.state.settings)
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        running = await stack.enter_async_context(writing(
            http, served, [prompt], lambda room: body.sampling(room, logprobs), asked_tokens=body.most_tokens,
            n=body.n, priority=body.priority))
        answer = _Answer(heading(served, "chatcmpl-", "chat.completion"), body, tokenizer, engine.ends, prompt)
        if body.stream:
            return EventStream(answer.stream(running), stack.pop_all())
        return Json(await answer.whole(running))


def _conversation(body: ChatRequest) -> Conversation:
    format = body.response_format
    choice = body.tool_choice
    return Conversation(
        messages=[message.model_dump(exclude_none=True) for message in body.messages],
        tools=[tool.model_dump(exclude_none=True) for tool in body.tools or ()],
        choice="required" if isinstance(choice, NamedTool) else choice or "auto",
        named=choice.function.name if isinstance(choice, NamedTool) else None,
        many=body.parallel_tool_calls is not False,
        format=None if format is None else (format.type, format.source))


class _Answer:
    """Writes one request's answer down."""

    def __init__(self, heading: dict[str, Any], body: ChatRequest, tokenizer: Tokenizer, ends: frozenset[int],
                 prompt: Prompt) -> None:
        self.heading, self.body, self.tokenizer, self.ends, self.prompt = heading, body, tokenizer, ends, prompt

    def _logprobs(self, entries: Sequence[Any] | None) -> dict[str, Any] | None:
        return of_chat(self.tokenizer, entries or (), self.ends) if self.body.logprobs else None

    async def whole(self, running: Running) -> dict[str, Any]:
        choices = []
        finished = await running.finished()
        for index, each in enumerate(finished):
            text, reason = each.completion.text, each.completion.reason
            content, calls = parse_tool_calls(text, self.prompt.calls) if self.prompt.calls else (text, [])
            message: dict[str, Any] = {"role": "assistant", "content": content or (None if calls else ""),
                                       "refusal": None}
            if calls:
                message["tool_calls"] = [_call(call) for call in calls]
            choices.append({"index": index, "message": message, "logprobs": self._logprobs(each.completion.logprobs),
                            "finish_reason": "tool_calls" if calls and reason == "stop" else reason})
        written = sum(len(each.completion.ids) for each in finished)
        return {**self.heading, "choices": choices, "usage": usage(len(self.prompt.ids), written)}

    async def stream(self, running: Running) -> AsyncGenerator[bytes, None]:
        heading = {**self.heading, "object": "chat.completion.chunk"}
        with_usage = self.body.stream_options is not None and self.body.stream_options.include_usage
        if with_usage:
            heading["usage"] = None

        def chunk(index: int, delta: dict[str, Any], logprobs: Any = None, reason: str | None = None) -> bytes:
            return event({**heading, "choices": [
                {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}]})

        calls = [CallStream(self.prompt.calls) if self.prompt.calls else None for _ in running.requests]
        called = [False] * len(calls)
        written = 0
        for index in range(len(calls)):
            yield chunk(index, {"role": "assistant", "content": "", "refusal": None})
        async for index, news in running.events():
            parts = _parts(news, calls[index])
            logprobs = self._logprobs(news.logprobs) if news.logprobs else None
            if logprobs is not None and not any(isinstance(part, str) for part in parts):
                parts.insert(0, "")  # a token whose text is yet to come has its log-probability all the same
            for part in parts:
                if isinstance(part, ToolCall):
                    called[index] = True
                    yield chunk(index, {"tool_calls": [{"index": part.index, **_call(part)}]})
                else:
                    yield chunk(index, {"content": part}, logprobs)
                    logprobs = None
            if news.completion is not None:
                written += len(news.completion.ids)
                stopped = news.outcome == "stop"
                yield chunk(index, {}, reason="tool_calls" if called[index] and stopped else news.outcome)
        if with_usage:
            yield event({**heading, "choices": [], "usage": usage(len(self.prompt.ids), written)})
        yield DONE


def _parts(news: Event, calls: CallStream | None) -> list[str | ToolCall]:
    """What an event adds to a message: text to show, whole calls."""
    if calls is None:
        return [news.text] if news.text else []
    parts = calls.push(news.text)
    return [*parts, *calls.finish()] if news.completion is not None else list(parts)


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
