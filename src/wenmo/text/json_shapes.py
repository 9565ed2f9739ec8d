"""Objects of chat data → messages: alpaca's instruction and output, sharegpt's conversations, lists of turns.

In: one record's fields. Out: the same with `messages`, [{"role", "content"}, …], or the reason why there are none.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from wenmo.errors import say
from wenmo.text.messages import with_system
from wenmo.text.records import Record, Shape

_ROLES = {
    "human": "user", "gpt": "assistant", "system": "system", "function_call": "assistant", "observation": "tool",
    "user": "user", "assistant": "assistant", "tool": "tool", "developer": "developer",
}  # fmt: skip


class _Malformed(Exception):
    """Why this record is no conversation; never leaves this module."""


def shape_of(keys: Iterable[str]) -> Shape:
    """Which form of chat data has these keys."""
    there = set(keys)
    if {"instruction", "output"} <= there:
        return "alpaca"
    return "sharegpt" if {"conversations", "messages"} & there else ""


def shaped(record: Record, shape: Shape) -> Record:
    """The record with `messages` beside its other keys; for sharegpt also `chosen` and `rejected` as messages."""
    if record.fault or not shape:
        return record
    fields = record.fields
    try:
        if shape == "alpaca":
            return record._replace(fields={**fields, "messages": _alpaca(fields)})
        made: dict[str, Any] = {"messages": _conversation(fields)}
        for name in ("chosen", "rejected"):
            if isinstance(fields.get(name), dict):
                made[name] = _message(fields[name])
        return record._replace(fields={**fields, **made})
    except _Malformed as fault:
        return record._replace(fault=str(fault))


def _alpaca(fields: dict[str, Any]) -> list[dict[str, Any]]:
    """system, the history's pairs, then instruction (with `input` on a new line) and output. Taori et al. 2023."""
    messages = []
    if fields.get("system"):
        messages.append({"role": "system", "content": _string(fields["system"], "system")})
    history = fields.get("history") or []
    if not (isinstance(history, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in history)):
        raise _Malformed(say("`history` is no list of pairs", "`history` 不是由成对问答组成的列表"))
    for question, answer in history:
        messages += _pair(_string(question, "history"), _string(answer, "history"))
    question = _string(fields.get("instruction"), "instruction")
    if fields.get("input"):
        question += "\n" + _string(fields["input"], "input")
    return messages + _pair(question, _string(fields.get("output"), "output"))


def from_parts(values: dict[str, Any]) -> dict[str, Any]:
    """A row's `messages` made of its `system`, `question` (with `input` on a new line) and `answer`, where it has none;
    a `system` alone goes above those that it has."""
    parts = {name: values.pop(name, None) for name in ("system", "question", "input", "answer")}
    messages = list(values.get("messages") or ())
    if not messages:
        messages = [{"role": "user", "content": "\n".join(filter(None, (parts["question"], parts["input"])))}]
        if parts["answer"] is not None:
            messages.append({"role": "assistant", "content": parts["answer"]})
    if isinstance(messages[0], dict):
        messages = with_system(messages, parts["system"])
    return {**values, "messages": messages}


def _pair(question: str, answer: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _conversation(fields: dict[str, Any]) -> list[dict[str, Any]]:
    name = "conversations" if "conversations" in fields else "messages"
    turns = fields.get(name)
    if not isinstance(turns, list) or not turns:
        raise _Malformed(say(f"`{name}` is no list of messages", f"`{name}` 不是消息列表"))
    system = _string(fields["system"], "system") if fields.get("system") else ""
    return [dict(message) for message in with_system([_message(turn) for turn in turns], system)]


def _message(turn: Any) -> dict[str, Any]:
    """{"from", "value"} or {"role", "content"}; what else stands in the latter (tool calls, a name) is kept."""
    if not isinstance(turn, dict):
        raise _Malformed(say("a message is not an object", "消息不是对象"))
    role, content = (turn.get("from"), turn.get("value")) if "from" in turn else (turn.get("role"), turn.get("content"))
    if not isinstance(role, str) or role not in _ROLES:
        raise _Malformed(say(f"no such role: {role}", f"没有这种角色：{role}"))
    if role == "function_call":
        return {"role": "assistant", "content": "", "tool_calls": _calls(_string(content, role))}
    others = {name: value for name, value in turn.items() if name not in ("from", "value", "role", "content")}
    if content is None and others.get("tool_calls"):
        content = ""
    return {"role": _ROLES[role], "content": _string(content, role), **others}


def _calls(text: str) -> list[dict[str, Any]]:
    """A call written as JSON, or a list of them, in the form of OpenAI's API."""
    try:
        calls = json.loads(text)
    except ValueError as error:
        raise _Malformed(say(f"a function call that is not JSON: {error}", f"函数调用不是 JSON：{error}")) from error
    calls = calls if isinstance(calls, list) else [calls]
    if not calls or not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        raise _Malformed(say("a function call without a name", "函数调用没有 name"))
    return [{"type": "function", "function": {"name": call["name"], "arguments": call.get("arguments", {})}}
            for call in calls]


def _string(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise _Malformed(say(f"`{name}` is not a text", f"`{name}` 不是文本"))
    return value


def dialogues(value: Any) -> list[dict[str, Any]]:
    """Lists of turns, two speakers in alternation, under `conversations`: a row with `messages` for each.

    A row that is no list of texts has what stands there instead, which the intake finds wrong.
    """
    found = value.get("conversations") if isinstance(value, dict) else value
    if not isinstance(found, list):
        return []
    others = {name: each for name, each in value.items() if name != "conversations"} if isinstance(value, dict) else {}
    return [{**others, "messages": _turns(turns)} for turns in found]


def _turns(turns: Any) -> Any:
    if not isinstance(turns, list) or not all(isinstance(turn, str) for turn in turns):
        return None
    return [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]
