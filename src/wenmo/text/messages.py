"""Messages: what a conversation is, what of it can be learned from, and how a long one is divided.

In: a row's `messages` as they were read. Out: plain copies that a template may see; the reason why a model should not
learn from a conversation, said before it does; a conversation in parts that each begin with a question.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from wenmo.errors import DataError, say

Message = Mapping[str, Any]
ROLES = ("system", "developer", "user", "assistant", "tool")
_ABOVE = ("system", "developer")  # what stands before the first question
# role → those that it may follow; a tool answers a call, and an assistant nobody but a person or a tool
_AFTER = {"user": (None, "assistant"), "assistant": ("user", "tool"), "tool": ("call", "tool")}


def checked(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Plain copies, without the keys whose value is None. Raises DataError for the first that is no message."""
    if not isinstance(messages, (list, tuple)) or not messages:
        raise not_messages("messages", say("a conversation is a list of messages", "对话应为消息列表"))
    checked = []
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        if not isinstance(message, Mapping):
            raise not_messages(where, say(f"a message is a mapping, not {type(message).__name__}",
                                           f"消息应为映射，而不是 {type(message).__name__}"))
        plain = {key: plain_value(value, f"{where}.{key}") for key, value in message.items() if value is not None}
        if plain.get("role") not in ROLES:
            raise not_messages(f"{where}.role", say(f"no such role: {plain.get('role')!r}",
                                                     f"没有这种角色：{plain.get('role')!r}"))
        content = plain.get("content")
        parts = isinstance(content, list) and all(
            isinstance(part, dict) and isinstance(part.get("text", ""), str) for part in content)
        if not (isinstance(content, str) or parts or (content is None and plain.get("tool_calls"))):
            raise not_messages(f"{where}.content", say("the content is not a text", "内容不是文本"))
        checked.append(plain)
    return checked


def plain_value(value: Any, where: str) -> Any:
    """JSON values of Python's own types: a template must not meet objects with methods."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping) and all(type(key) is str for key in value):
        return {key: plain_value(item, where) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_value(item, where) for item in value]
    raise not_messages(where, say(f"{type(value).__name__} is no JSON value", f"{type(value).__name__} 不是 JSON 值"))


def not_messages(where: str, what: str) -> DataError:
    return DataError(what, where=where, mend=say(
        f'write {{"role": …, "content": text}} with one of the roles {", ".join(ROLES)}',
        f'写成 {{"role": …, "content": 文本}}，角色为 {"、".join(ROLES)} 之一'))


def usual(messages: Any) -> list[dict[str, Any]]:
    """`checked`, in the one form that chat templates agree on: a content that is a list of texts becomes one text, and
    the arguments of a call, if they are JSON in a text (as OpenAI's API has them), an object.

    Raises DataError, for what is no text (an image) too.
    """
    result = []
    for i, message in enumerate(checked(messages)):
        content = message.get("content")
        if isinstance(content, list):
            if any("text" not in part for part in content):
                raise not_messages(f"messages[{i}].content", say("a part that is no text", "其中有非文本的部分"))
            message["content"] = "".join(part["text"] for part in content)
        calls = message.get("tool_calls")
        if calls:
            if not isinstance(calls, list) or not all(_is_call(call) for call in calls):
                raise not_messages(f"messages[{i}].tool_calls", say("not a list of named function calls",
                                                                    "不是带名称的函数调用列表"))
            message["tool_calls"] = [_with_object(call) for call in calls]
            message.setdefault("content", "")
        result.append(message)
    return result


def _is_call(call: Any) -> bool:
    function = call.get("function", call) if isinstance(call, dict) else None
    return isinstance(function, dict) and isinstance(function.get("name"), str)


def _with_object(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function", call)
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except ValueError:
            parsed = None  # a text it stays
        arguments = parsed if isinstance(parsed, dict) else arguments
    function = {**function, "arguments": arguments}
    return {**call, "function": function} if "function" in call else function


def asked(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with `messages`, whatever a user asked with: these, a text in their place, or a conversation in parts
    (`question`, `prompt`, `instruction`; `input`, `system`), or a bare `text`."""
    if row.get("messages"):
        messages = row["messages"]
        return {**row, "messages": [{"role": "user", "content": messages}] if isinstance(messages, str) else messages}
    question = next((row[name] for name in ("question", "prompt", "instruction", "text") if row.get(name)), None)
    if question is None:
        return dict(row)
    more = [each for each in (row.get("input"),) if each]
    turn = {"role": "user", "content": "\n".join(map(str, (question, *more)))}
    return {**row, "messages": with_system([turn], str(row.get("system") or ""))}


def texts_of(messages: Sequence[Message]) -> list[str]:
    """What is said in a conversation, text by text."""
    contents = [message.get("content") for message in messages]
    return [text for content in contents for text in
            ([content] if isinstance(content, str) else
             [part.get("text", "") for part in content or () if isinstance(part, dict)])]


def with_system(messages: Sequence[Message], system: str) -> list[Message]:
    """The conversation with `system` above it, unless it has a system message of its own or there is none to add."""
    has_one = bool(messages) and messages[0].get("role") in _ABOVE
    return list(messages) if has_one or not system else [{"role": "system", "content": system}, *messages]


def refuse_unfit(messages: Sequence[Message]) -> None:
    """DataError for what no model should learn from: roles out of order, an empty message, no word of the assistant.

    In order are: system messages first; then a user, then the assistant, in turn; between the two, calls by the
    assistant and the answers of tools.
    """
    before: str | None = None
    for i, message in enumerate(messages):
        role = message["role"]
        if role in _ABOVE and before in (None, "above"):
            before = "above"
        elif before not in _AFTER.get(role, ()) and not (role == "user" and before == "above"):
            raise _unfit(i, say("roles out of order", "角色顺序不对"))
        else:
            before = "call" if message.get("tool_calls") else role
        if not (message.get("tool_calls") or str(message.get("content") or "").strip()):
            raise _unfit(i, say("an empty message", "消息为空"))
    if not any(message["role"] == "assistant" for message in messages):
        raise _unfit(None, say("no answer of the assistant", "没有助手的回答"))


def _unfit(number: int | None, what: str) -> DataError:
    return DataError(what, where="messages" if number is None else f"messages[{number}]",
                     mend=say("the user and the assistant speak in turn, and each says something",
                              "用户与助手应轮流发言，且每条消息都有内容"))


def up_to_question(messages: Sequence[Message]) -> list[Message]:
    """The conversation without what the assistant says last: what is to be answered."""
    end = len(messages)
    while end and messages[end - 1]["role"] == "assistant":
        end -= 1
    return list(messages[:end])


def exchanges(messages: Sequence[Message]) -> tuple[list[Message], list[list[Message]]]:
    """(what stands above the conversation, its exchanges: a question and all that belongs to its answer, in order).

    A last question without an answer is left out: there is nothing to learn from it.
    """
    above = [message for message in messages if message["role"] in _ABOVE]
    found: list[list[Message]] = []
    for message in messages[len(above):]:
        if message["role"] == "user":
            found.append([])
        found[-1].append(message)
    return above, [each for each in found if any(message["role"] == "assistant" for message in each)]


def tools_of(row: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The functions offered in a row: a list of JSON schemas, or that list written as JSON. DataError otherwise."""
    tools = row.get("tools")
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise _no_tools(str(error)) from error
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise _no_tools(say("it is no list of objects", "不是对象的列表"))
    return tools


def _no_tools(why: str) -> DataError:
    return DataError(say("`tools` is no list of functions", "`tools` 不是函数列表"), where=f"tools: {why}",
                     mend=say("write the functions as JSON schemas, in a list", "请把函数写成 JSON schema 的列表"))
