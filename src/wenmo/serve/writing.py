"""From a conversation or a prompt to requests for the engine.

In: what a client sent. Out: ids, how they are continued, and what the text must look like. Templates are rendered,
texts read into tokens and grammars compiled here: `prepare` is called in a worker thread, so that streams go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from fastapi import Request as HttpRequest
from starlette.concurrency import run_in_threadpool

from wenmo import __version__
from wenmo.engine import Engine, Request
from wenmo.engine.shapes import Shape, choice, json_object, json_schema, regex, tool_calls_shape
from wenmo.errors import say
from wenmo.generate import Sampling
from wenmo.serve.errors import ApiError, message_of
from wenmo.serve.limits import check_bytes, check_tokens
from wenmo.serve.models import ModelsBusy, UnknownModel
from wenmo.serve.running import Running
from wenmo.serve.served import Served
from wenmo.serve.settings import ServeSettings
from wenmo.text.chat import has_place_for_tools
from wenmo.text.messages import texts_of, usual
from wenmo.text.tool_calls import CallFormat, call_format

_log = logging.getLogger(__name__)
Choice = Literal["none", "auto", "required"]
T = TypeVar("T")


@dataclass(frozen=True)
class Conversation:
    """What is to be answered: both of OpenAI's routes come down to this. `tools`: as chat completions have them;
    `named`: the one that must be called; `many`: several calls may come at once; `format`: what the answer must be, a
    type and what goes with it."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    choice: Choice
    named: str | None
    many: bool
    format: tuple[str, Any] | None


@dataclass(frozen=True)
class Prompt:
    """Ids to be continued. `calls`: how the model writes calls of tools, if it was offered any."""

    ids: list[int]
    shape: Shape | None = None
    calls: CallFormat | None = None


@contextlib.asynccontextmanager
async def using(http: HttpRequest, name: str) -> AsyncIterator[Served]:
    """The model of that name, kept in memory while the block runs."""
    async with AsyncExitStack() as stack:
        try:
            served = await stack.enter_async_context(http.app.state.models.use(name))
        except UnknownModel as error:
            raise ApiError(404, say(f"there is no model `{name}` here", f"此处没有模型 `{name}`"), param="model",
                           code="model_not_found") from error
        except ModelsBusy as error:
            raise ApiError(503, message_of(error), code="no_memory", headers={"Retry-After": "5"}) from error
        except Exception as error:
            _log.error(say(f"model {name} cannot be loaded", f"无法载入模型 {name}"), exc_info=error)
            raise ApiError(500, say(f"the model `{name}` cannot be loaded; the server's log says why",
                                    f"无法载入模型 `{name}`，原因见服务器日志"), code="model_not_loaded") from error
        yield served


def engine_of(served: Served) -> Engine:
    if served.engine is None:
        raise ApiError(400, say(f"the model `{served.name}` does not write text; ask it through /v1/predict",
                                f"模型 `{served.name}` 不生成文本；请使用 /v1/predict"), param="model")
    return served.engine


async def prompt_of(served: Served, conversation: Conversation, settings: ServeSettings) -> Prompt:
    tools = [json.dumps(tool, ensure_ascii=False) for tool in conversation.tools]
    check_bytes(settings, [*texts_of(conversation.messages), *tools], "messages", together=True)
    return await run_in_threadpool(_prompt_of, served, conversation)


def _prompt_of(served: Served, conversation: Conversation) -> Prompt:
    """Raises DataError, TokenizerError, ApiError."""
    loaded, tokenizer = served.loaded, served.loaded.tokenizer
    messages = [{**message, "role": "system"} if message["role"] == "developer" else message  # templates' word for it
                for message in usual(conversation.messages)]
    tools = conversation.tools if conversation.choice != "none" else []
    calls = call_format(tokenizer) if tools else None
    if any(message.get("tool_calls") for message in messages) and not has_place_for_tools(tokenizer, messages, tools):
        raise ApiError(400, say("the model's chat template has no place for calls of tools",
                                "该模型的对话模板没有工具调用的位置"), param="messages")
    shape = _shape_of(conversation.format)
    if calls is not None and (conversation.choice == "required" or conversation.named is not None):
        shape = tool_calls_shape(calls, tools, tokenizer, name=conversation.named, many=conversation.many)
    elif calls is not None and shape is not None:
        raise ApiError(400, say("response_format binds the whole answer, so that no tool could be called: give "
                                "tool_choice required or none, or leave one of the two out",
                                "response_format 约束整个回答，无法再调用工具：请令 tool_choice 为 required 或 none，"
                                "或去掉二者之一"), param="response_format")
    return Prompt(loaded.chat_ids(messages, tools or None), shape, calls)


def _shape_of(format: tuple[str, Any] | None) -> Shape | None:
    """`format`: its type, and what goes with it. Raises DataError for what is too large or no schema."""
    if format is None or format[0] == "text":
        return None
    kind, source = format
    if kind == "json_object":
        return json_object()
    if kind == "json_schema":
        return json_schema(source)
    return regex(source) if kind == "regex" else choice(source)


@contextlib.asynccontextmanager
async def writing(http: HttpRequest, served: Served, prompts: Sequence[Prompt], sampling: Callable[[int], Sampling], *,
                  asked_tokens: int | None, n: int = 1, prompt_logprobs: int | None = None, priority: int = 0,
                  ) -> AsyncIterator[Running]:
    """Submits `n` continuations of each prompt, in order; `sampling` is told how many tokens may come. The route has
    checked what was asked for by its numbers (limits.py), before anything was read.

    Raises ApiError for a prompt that is longer than the server, the caller's quota or the model allows.
    """
    settings: ServeSettings = http.app.state.settings
    engine, visit = engine_of(served), http.state.visit
    # What a client leaves open is bounded by the model's room alone, and what it asks for beyond that is cut there.
    most = settings.max_new_tokens if asked_tokens is None else asked_tokens
    rooms = []
    for prompt in prompts:
        check_tokens(settings, len(prompt.ids), "prompt")
        rooms.append(min(most, engine.room(len(prompt.ids))))
        if rooms[-1] < 1:
            raise ApiError(400, say(f"the prompt has {len(prompt.ids)} tokens, which leaves no room for an answer",
                                    f"提示有 {len(prompt.ids)} 个词元，没有余地回答"), code="context_length_exceeded")
    num_read = sum(len(prompt.ids) for prompt in prompts)
    visit.reserve(num_read + n * sum(rooms))

    def made() -> list[Request]:
        return [Request(tuple(prompt.ids), sampling(room), sample, priority,
                        constraint=None if prompt.shape is None else engine.constraint(prompt.shape),
                        shown=frozenset() if prompt.calls is None else prompt.calls.shown(served.loaded.tokenizer),
                        prompt_logprobs=prompt_logprobs)
                for prompt, room in zip(prompts, rooms, strict=True) for sample in range(n)]

    try:
        if any(prompt.shape is not None for prompt in prompts):
            requests = await _in_turn(http.app.state.compiling, made)
        else:
            requests = await run_in_threadpool(made)
        listen = http.app.state.metrics.listen
        with Running(engine, requests, lambda tokens, listener: listen(served.name, tokens, listener)) as running:
            try:
                yield running
            finally:
                num_read += running.num_written
    finally:
        visit.spend(num_read)


async def _in_turn(turn: asyncio.Semaphore, work: Callable[[], T]) -> T:
    """Grammars are compiled one at a time: who waits for it holds no thread. A turn ends with the work, even if nobody
    waits for it any more."""
    await turn.acquire()
    done = asyncio.ensure_future(run_in_threadpool(work))

    def ended(task: asyncio.Future[T]) -> None:
        turn.release()
        task.cancelled() or task.exception()  # who asked is told, if still there

    done.add_done_callback(ended)
    return await asyncio.shield(done)


# What all answers have ---------------------------------------------------------------------------------


def identity(prefix: str) -> str:
    return f"{prefix}{secrets.token_hex(12)}"


def heading(served: Served, prefix: str, kind: str) -> dict[str, Any]:
    """What each answer, and each piece of one, begins with."""
    return {"id": identity(prefix), "object": kind, "created": int(time.time()), "model": served.name,
            "system_fingerprint": f"wenmo-{__version__}-{engine_of(served).settings.format}"}


def usage(num_read: int, num_written: int) -> dict[str, int]:
    return {"prompt_tokens": num_read, "completion_tokens": num_written, "total_tokens": num_read + num_written}
