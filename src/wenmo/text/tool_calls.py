"""Calls of functions in what a model writes: `<tool_call>{"name": …, "arguments": …}</tool_call>` and its like.

In: a tokenizer's chat template, and text, whole or piece by piece. Out: the text without the calls, and the calls.

How a model writes a call is its template's word: a conversation with a call is rendered, and what stands around it is
read off (Hermes and Qwen: <tool_call> … </tool_call>; Mistral: [TOOL_CALLS] and a list; Llama 3: the answer is the
call). A call that is cut off or broken stays text.
"""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from wenmo.errors import DataError, WenmoError, say
from wenmo.text import chat
from wenmo.text.tokenizer import Tokenizer

MAX_BROKEN = 32  # what only looks like a call so often in one answer is not looked at again


def new_id() -> str:
    """Nine letters and digits: Mistral's templates want that many."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))


@dataclass(frozen=True)
class ToolCall:
    """`index`: its place among the calls of the answer. `arguments`: a JSON object, as the model wrote it."""

    index: int
    name: str
    arguments: str
    id: str = field(default_factory=new_id, compare=False)


@dataclass(frozen=True)
class CallFormat:
    """`before` and `after` stand around a call, or, where `listed`, around a JSON list of calls. Without a `before` an
    answer as a whole is calls. `arguments`: what the key of the arguments is called."""

    before: str
    after: str
    arguments: str
    listed: bool = False

    @property
    def start(self) -> str:
        return self.before.strip()

    @property
    def end(self) -> str:
        return self.after.strip()

    def shown(self, tokenizer: Tokenizer) -> frozenset[int]:
        """Ids of the control tokens among these: they must stand in the text that calls are looked for in."""
        return frozenset(id for text, id in tokenizer.control_strings.items() if text in (self.start, self.end))


# How a model writes calls -----------------------------------------------------------------------------

_PROBE = "probe_of_a_call"
_TOOL = {"type": "function", "function": {"name": _PROBE, "description": _PROBE, "parameters": {
    "type": "object", "properties": {"size": {"type": "integer"}}, "required": ["size"]}}}
_CALL = {"type": "function", "id": "callcall0", "function": {"name": _PROBE, "arguments": {"size": 7}}}
_MARK = re.compile(r"(<[^<>\s]+>|\[[A-Z_]+\])\s*$")  # the last before a call


def call_format(tokenizer: Tokenizer) -> CallFormat:
    """How this model writes calls. Raises DataError for a template that offers no functions, or writes calls in a form
    that is no JSON."""
    asked: list[dict[str, Any]] = [{"role": "user", "content": "?"}]
    answered = [*asked, {"role": "assistant", "content": "", "tool_calls": [_CALL]}]
    try:
        offers = chat.has_place_for_tools(tokenizer, answered, [_TOOL])
        question = chat.render(tokenizer, asked, tools=[_TOOL], add_generation_prompt=True)
        ids = chat.render(tokenizer, answered, tools=[_TOOL])
    except WenmoError as error:
        _no_calls(error.what)
    if not offers:
        _no_calls(say("it does not write them down", "其中没有写出函数或调用"))
    prompt, text = (tokenizer.decode(each, keep_control=True) for each in (question, ids))
    same = next((at for at, (one, other) in enumerate(zip(prompt, text, strict=False)) if one != other), len(prompt))
    added = text[same:]
    opened = added.rfind("{", 0, max(added.find(f'"{_PROBE}"'), 0))
    try:
        call, end = _members(added, opened)
    except ValueError:
        _no_calls(say("calls in it are no JSON objects", "其中的调用不是 JSON 对象"))
    key = next((key for key in ("arguments", "parameters") if call.get(key, "").startswith("{")), None)
    if key is None or call.get("name") != f'"{_PROBE}"':
        _no_calls(say("calls in it have no name and arguments", "其中的调用没有名称和参数"))
    before, after = added[:opened], added[end:]
    listed = before.rstrip().endswith("[") and after.lstrip().startswith("]")
    if listed:
        before, after = before.rstrip()[:-1], after.lstrip()[1:]
    mark = _MARK.search(before)
    before = before[mark.start():] if mark else ""
    closing = re.match(rf"\s*{re.escape(before.strip().replace('<', '</'))}", after) if before.startswith("<") else None
    return CallFormat(before, closing[0] if closing else "", key, listed)


def _no_calls(why: str) -> NoReturn:
    raise DataError(say("this model does not call functions in a known way", "此模型不以已知的方式调用函数"),
                    where=f"chat_template.jinja: {why}",
                    mend=say("leave out `tools`, or use a model that was trained with them",
                             "请去掉 `tools`，或使用训练时带有函数的模型"))


# Text → calls -----------------------------------------------------------------------------------------


def parse_tool_calls(text: str, format: CallFormat) -> tuple[str, list[ToolCall]]:
    """(the text without the calls, the calls)."""
    stream = CallStream(format)
    parts = [*stream.push(text), *stream.finish()]
    return ("".join(part for part in parts if isinstance(part, str)),
            [part for part in parts if isinstance(part, ToolCall)])


class CallStream:
    """Text that comes piece by piece, however it is cut. A call comes out when it is whole, other text as soon as it
    cannot be the beginning of one. Spaces around calls are left out."""

    def __init__(self, format: CallFormat) -> None:
        self.format = format
        self.num_calls = 0
        self._held = ""  # not yet known what it is
        self._brackets: _Brackets | None = None  # of the call that stands at its beginning
        self._num_broken = 0
        self._after_call = False
        self._spoken = False  # whether text came that is no call

    def push(self, text: str) -> list[str | ToolCall]:
        self._held += text
        return list(self._known(last=False))

    def finish(self) -> list[str | ToolCall]:
        return list(self._known(last=True))

    def _known(self, *, last: bool) -> Iterator[str | ToolCall]:
        """What is known by now of what is held; `last`: nothing follows."""
        while True:
            if self._after_call:
                self._held = self._held.lstrip()
            at = self._place()
            if at is None:
                yield from self._say(len(self._held) if last else len(self._held) - self._possible())
                return
            spaces = len(self._held[:at]) - len(self._held[:at].rstrip())
            yield from self._say(at - spaces)
            at = spaces
            read = self._read(at, last)
            if read is None and not last:
                return
            self._brackets = None
            if read is not None and read[0]:
                calls, end = read
                self._held, self._after_call = self._held[end:], True
                for name, arguments in calls:
                    yield ToolCall(self.num_calls, name, arguments)
                    self.num_calls += 1
            else:  # it only looked like one
                self._num_broken += 1
                yield from self._say(spaces + max(1, len(self.format.start)))

    def _place(self) -> int | None:
        """Where in what is held a call may begin."""
        if self._num_broken >= MAX_BROKEN:
            return None
        if self.format.start:
            at = self._held.find(self.format.start)
            return None if at < 0 else at
        at = len(self._held) - len(self._held.lstrip())
        return at if not self._spoken and self._held[at : at + 1] == "{" else None

    def _possible(self) -> int:
        """How many characters at the end may yet belong to a call: spaces, and the beginning of its mark."""
        start, held = self.format.start, self._held
        marked = next((n for n in range(min(len(start) - 1, len(held)), 0, -1) if held.endswith(start[:n])), 0)
        before = held[: len(held) - marked]
        return marked + len(before) - len(before.rstrip())

    def _say(self, count: int) -> Iterator[str]:
        text, self._held = self._held[:count], self._held[count:]
        if text:
            self._after_call = False
            self._spoken = self._spoken or bool(text.strip())
            yield text

    def _read(self, at: int, last: bool) -> tuple[list[tuple[str, str]], int] | None:
        """The calls that begin there, after their mark, and where they end: no calls for what is none, None for what is
        not whole yet."""
        held, format = self._held, self.format
        at = _skip(held, at + len(format.start))
        if at == len(held):
            return None
        if self._brackets is None:
            self._brackets = _Brackets(at)
        end = self._brackets.closed(held) if held[at] == "[{"[not format.listed] else at
        if end is None:
            return None
        try:
            objects = _elements(held, at) if format.listed else [_members(held, at)[0]]
            calls = [(json.loads(call["name"]), call[format.arguments]) for call in objects]
        except (ValueError, KeyError, RecursionError):
            calls = []
        if not calls or not all(isinstance(name, str) and arguments[0] == "{" for name, arguments in calls):
            return [], 0
        rest = held[_skip(held, end):]
        if not rest.startswith(format.end):
            return None if format.end.startswith(rest) and not last else (calls, end)
        return calls, len(held) - len(rest) + len(format.end)


# JSON as it was written -------------------------------------------------------------------------------

_OUTSIDE = re.compile(r'["{}\[\]]')
_INSIDE = re.compile(r'\\.|"', re.DOTALL)  # a text in quotes
_SPACES = re.compile(r"\s*")


@dataclass
class _Brackets:
    """Looks for where the brackets that open at `at` are closed again, in a text that grows: each character is looked
    at once, however often it is asked."""

    at: int
    depth: int = 0
    quoted: bool = False
    end: int | None = None

    def closed(self, text: str) -> int | None:
        while self.end is None and (found := (_INSIDE if self.quoted else _OUTSIDE).search(text, self.at)):
            self.at = found.end()
            if found[0] == '"':
                self.quoted = not self.quoted
            elif found[0] in "{[":
                self.depth += 1
            elif found[0] in "}]":
                self.depth -= 1
                self.end = self.at if self.depth == 0 else None
        self.at = max(self.at, len(text) - text.endswith("\\"))  # what it escapes is yet to come
        return self.end


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def _members(text: str, at: int) -> tuple[dict[str, str], int]:
    """The members of the JSON object that begins there, each value as it is written, and where the object ends.
    ValueError for what is none."""
    found: dict[str, str] = {}
    at = _expect(text, at, "{")
    while text[at : at + 1] != "}":
        name, at = _DECODER.raw_decode(text, at)
        start = _expect(text, _skip(text, at), ":")
        _, at = _DECODER.raw_decode(text, start)
        found[name] = text[start:at]
        at = _skip(text, at)
        at = at if text[at : at + 1] == "}" else _expect(text, at, ",")
    return found, at + 1


def _elements(text: str, at: int) -> list[dict[str, str]]:
    """The objects of the JSON list that begins there."""
    found = []
    at = _expect(text, at, "[")
    while text[at : at + 1] != "]":
        members, at = _members(text, at)
        found.append(members)
        at = _skip(text, at)
        at = at if text[at : at + 1] == "]" else _expect(text, at, ",")
    return found


def _expect(text: str, at: int, character: str) -> int:
    if at < 0 or text[at : at + 1] != character:
        raise ValueError(f"no {character}")
    return _skip(text, at + 1)


def _skip(text: str, at: int) -> int:
    found = _SPACES.match(text, at)
    assert found is not None
    return found.end()


def function_of(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """A tool in OpenAI's form, or the function alone."""
    function = tool.get("function", tool)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise DataError(say("a tool is a function with a name", "工具应为带名称的函数"), where="tools",
                        mend='{"type": "function", "function": {"name": …, "parameters": {…}}}')
    return function


def named(tools: Sequence[Mapping[str, Any]], name: str | None) -> list[Mapping[str, Any]]:
    """The functions, or the one of that name. Raises DataError where there is none."""
    functions = [function_of(tool) for tool in tools]
    chosen = [function for function in functions if name in (None, function["name"])]
    if not chosen:
        known = ", ".join(str(function["name"]) for function in functions) or say("none", "无")
        raise DataError(say(f"there is no function `{name}`", f"没有函数 `{name}`"), where="tools",
                        mend=say(f"those that were given: {known}", f"已给出：{known}"))
    return chosen
