"""POST /v1/responses: OpenAI's newer form of a conversation. An answer is a list of items: a message, calls of tools.

As a stream, each item is announced, grows, and is closed; the last event holds the whole response.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from wenmo.serve.errors import Json, api_error
from wenmo.serve.limits import check_numbers
from wenmo.serve.running import Running
from wenmo.serve.schema_responses import ResponsesRequest
from wenmo.serve.streaming import EventStream, event
from wenmo.serve.writing import Prompt, engine_of, heading, identity, prompt_of, using, writing
from wenmo.text.tool_calls import CallStream, ToolCall

router = APIRouter(tags=["text"])


@router.post("/v1/responses", summary="Answer a conversation, item by item")
async def responses(body: ResponsesRequest, http: Request) -> Response:
    check_numbers(http.app.state.settings, max_new_tokens=body.max_output_tokens, tokens_param="max_output_tokens")
    async with AsyncExitStack() as stack:
        served = await stack.enter_async_context(using(http, body.model))
        engine_of(served)
        prompt = await prompt_of(served, body.conversation(), http.app.state.settings)
        running = await stack.enter_async_context(writing(
            http, served, [prompt], body.sampling, asked_tokens=body.max_output_tokens, priority=body.priority))
        answer = _Answer(heading(served, "resp_", "response"), body, prompt)
        if body.stream:
            return EventStream(answer.stream(running), stack.pop_all())
        async for _ in answer.events(running):
            pass
        return Json(answer.response)


class _Answer:
    """The response as it grows; each step of it is an event, numbered."""

    def __init__(self, heading: dict[str, Any], body: ResponsesRequest, prompt: Prompt) -> None:
        self.prompt, self.text = prompt, ""
        self.response: dict[str, Any] = {
            "id": heading["id"], "object": "response", "created_at": heading["created"], "status": "in_progress",
            "error": None, "incomplete_details": None, "instructions": body.instructions, "model": heading["model"],
            "max_output_tokens": body.max_output_tokens, "metadata": body.metadata or {}, "output": [],
            "parallel_tool_calls": body.parallel_tool_calls is not False, "previous_response_id": None,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": {"format": {"type": "text"} if body.text is None or body.text.format is None
                     else body.text.format.model_dump()},
            "tool_choice": body.tool_choice if isinstance(body.tool_choice, str) or body.tool_choice is None
            else body.tool_choice.model_dump(), "store": False, "truncation": "disabled", "usage": None,
            "tools": [{"strict": None, "parameters": None, **tool.model_dump(exclude_none=True)}
                      for tool in body.tools or ()], "top_p": 1.0 if body.top_p is None else body.top_p}
        self.response["tool_choice"] = self.response["tool_choice"] or "auto"
        self._numbers = itertools.count()

    def _event(self, type: str, **values: Any) -> dict[str, Any]:
        return {"type": type, "sequence_number": next(self._numbers), **values}

    async def stream(self, running: Running) -> AsyncGenerator[bytes, None]:
        try:
            async for each in self.events(running):
                yield event(each, each["type"])
        except Exception as error:
            told = api_error(error)
            self.response |= {"status": "failed", "error": {"code": "server_error", "message": told.message}}
            failed = self._event("response.failed", response=self.response)
            yield event(failed, failed["type"])

    async def events(self, running: Running) -> AsyncGenerator[dict[str, Any], None]:
        calls = CallStream(self.prompt.calls) if self.prompt.calls else None
        yield self._event("response.created", response=self.response)
        yield self._event("response.in_progress", response=self.response)
        async for _, news in running.events():
            parts: list[str | ToolCall] = [news.text] if calls is None else [*calls.push(news.text)]
            if news.completion is not None and calls is not None:
                parts += calls.finish()
            for part in parts:
                for each in self._call(part) if isinstance(part, ToolCall) else self._say(part):
                    yield each
            if news.completion is not None:
                cut = news.outcome == "length"
                for each in self._close(cut):
                    yield each
                yield self._finish(cut, len(news.completion.ids))

    # Items ------------------------------------------------------------------------------------------------

    def _item(self) -> tuple[int, dict[str, Any] | None]:
        """Place of the last item, and it, if it is a message that still grows."""
        output = self.response["output"]
        growing = output and output[-1]["type"] == "message" and output[-1]["status"] == "in_progress"
        return len(output) - 1, output[-1] if growing else None

    def _say(self, text: str) -> Iterator[dict[str, Any]]:
        if not text:
            return
        index, item = self._item()
        if item is None:
            index += 1
            item = {"id": identity("msg_"), "type": "message", "role": "assistant", "status": "in_progress",
                    "content": []}
            self.response["output"].append(item)
            yield self._event("response.output_item.added", output_index=index, item=item)
            item["content"].append({"type": "output_text", "text": "", "annotations": [], "logprobs": []})
            yield self._event("response.content_part.added", output_index=index, content_index=0, item_id=item["id"],
                              part=item["content"][0])
        item["content"][0]["text"] += text
        yield self._event("response.output_text.delta", output_index=index, content_index=0, item_id=item["id"],
                          delta=text, logprobs=[])

    def _close(self, cut: bool = False) -> Iterator[dict[str, Any]]:
        """Ends the message that grows, if there is one."""
        index, item = self._item()
        if item is None:
            return
        item["status"] = "incomplete" if cut else "completed"
        [part] = item["content"]
        place = {"output_index": index, "content_index": 0, "item_id": item["id"]}
        yield self._event("response.output_text.done", **place, text=part["text"], logprobs=[])
        yield self._event("response.content_part.done", **place, part=part)
        yield self._event("response.output_item.done", output_index=index, item=item)

    def _call(self, call: ToolCall) -> Iterator[dict[str, Any]]:
        yield from self._close()
        index = len(self.response["output"])
        item = {"id": identity("fc_"), "type": "function_call", "status": "in_progress", "call_id": call.id,
                "name": call.name, "arguments": ""}
        self.response["output"].append(item)
        place = {"output_index": index, "item_id": item["id"]}
        yield self._event("response.output_item.added", output_index=index, item=item)
        item |= {"arguments": call.arguments, "status": "completed"}
        yield self._event("response.function_call_arguments.delta", **place, delta=call.arguments)
        yield self._event("response.function_call_arguments.done", **place, arguments=call.arguments, name=call.name)
        yield self._event("response.output_item.done", output_index=index, item=item)

    def _finish(self, cut: bool, num_written: int) -> dict[str, Any]:
        num_read = len(self.prompt.ids)
        self.response |= {
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "usage": {"input_tokens": num_read, "input_tokens_details": {"cached_tokens": 0},
                      "output_tokens": num_written, "output_tokens_details": {"reasoning_tokens": 0},
                      "total_tokens": num_read + num_written}}
        return self._event("response.incomplete" if cut else "response.completed", response=self.response)
