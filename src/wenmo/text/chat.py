"""Chat: messages → ids, and which of them the assistant wrote.

In: messages as `{"role", "content"}`, and a tokenizer with a chat template. Out: the ids a model was trained to see.
For conversations that hold no control strings they equal transformers' `apply_chat_template(tokenize=True)`.

Text that is data never becomes control, here either. Before the template renders, every control string inside a
message gives way to a mark made from a nonce: digits, which no filter of a template alters. The rendered text is
split at the control strings that are left, which only the template can have written; then the marks become what they
stood for, as text. A mark also fences off content that begins or ends with a part of a control string, so that
content and template cannot spell one together.
"""

from __future__ import annotations

import functools
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wenmo.errors import TokenizerError, WenmoError, say
from wenmo.text.chat_templates import CHATML as CHATML
from wenmo.text.messages import Message, checked, plain_value
from wenmo.text.template import render_template
from wenmo.text.tokenizer import Tokenizer


def render(tokenizer: Tokenizer, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] | None = None,
           add_generation_prompt: bool = False) -> list[int]:
    """The ids of a conversation; with `add_generation_prompt`, up to where the assistant is to begin. `tools`: the
    functions that it may call, as JSON schemas.

    Raises DataError for messages that are none or that the template objects to, TokenizerError without a working
    template.
    """
    marks = _Marks(tokenizer)
    safe, offered = _safe(marks, messages, tools)
    pieces = marks.pieces(_rendered(tokenizer, safe, offered, add_generation_prompt))
    return tokenizer.encode_pieces([piece.value for piece in pieces])[0]


def render_with_mask(
    tokenizer: Tokenizer, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = False, last_only: bool = False,
) -> tuple[list[int], list[bool]]:
    """The ids of `render`, and for each whether it is the assistant's: what a model is to learn to write. `last_only`:
    of its turns only the last one counts.

    The template's {% generation %} blocks say so. Where it has none, it is the content of the assistant's messages
    (`reasoning_content` too) and the control token that follows; with tool calls, which a template writes in its own
    way, whatever a message adds to the conversation before it, up to its last control token. A token that the
    assistant's words share with the template's is theirs. Raises TokenizerError for a template that rewrites what the
    assistant says so that it cannot be found again.
    """
    marks = _Marks(tokenizer)
    safe, offered = _safe(marks, messages, tools)
    plain = _rendered(tokenizer, safe, offered, add_generation_prompt)
    fences = marks.start, marks.end
    fenced = _rendered(tokenizer, safe, offered, add_generation_prompt, fences)
    closes = fenced == plain
    theirs = [i for i, message in enumerate(safe) if message["role"] == "assistant"][-1 if last_only else 0:]
    if closes and theirs:
        if any(message.get("tool_calls") for message in safe):
            fenced = _by_prefix(tokenizer, marks, safe, offered, plain, theirs)
        else:
            attempts = ([_fenced(message, fences, within) if i in theirs else message for i, message in
                         enumerate(safe)] for within in (False, True))
            renderings = (_rendered(tokenizer, attempt, offered, add_generation_prompt) for attempt in attempts)
            fenced = next((text for text in renderings if marks.fences_only(text, plain)), "")
        if not fenced:
            raise _untraceable()
    elif last_only:
        before, start, last = fenced.rpartition(marks.start)
        fenced = before.replace(marks.start, "").replace(marks.end, "") + start + last
    pieces = marks.pieces(fenced)
    if closes:
        pieces = _with_closing(pieces)
    ids, spans = tokenizer.encode_pieces([piece.value for piece in pieces])
    return ids, [any(piece.assistant for piece in pieces[first:last + 1]) for first, last in spans]


def end_of_turn(tokenizer: Tokenizer) -> int | None:
    """The control token that the assistant ends its turns with; None where the template lets them end without one."""
    ids, mask = render_with_mask(tokenizer, [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}])
    learned = [id for id, theirs in zip(ids, mask, strict=True) if theirs]
    return learned[-1] if learned and learned[-1] in tokenizer.control_ids else None


def has_place_for_tools(tokenizer: Tokenizer, messages: Sequence[Message], tools: Any) -> bool:
    """Whether nothing is lost: the template writes the functions down, and every call of one."""
    def lost(without: Sequence[Message], offered: Any) -> bool:
        marks = _Marks(tokenizer)
        texts = [_rendered(tokenizer, *_safe(marks, *each), False) for each in ((messages, tools), (without, offered))]
        return texts[0] == texts[1]

    if tools and lost(messages, None):
        return False
    calling = [i for i, message in enumerate(messages) if message.get("tool_calls")]
    return not any(lost([{**message, "tool_calls": None, "content": message.get("content") or ""} if i == number
                         else message for number, message in enumerate(messages)], tools) for i in calling)


def _safe(marks: _Marks, messages: Sequence[Message], tools: Any) -> tuple[list[dict[str, Any]], Any]:
    """Messages and tools as a template may see them."""
    offered = None if not tools else [marks.defused(plain_value(tool, f"tools[{i}]")) for i, tool in enumerate(tools)]
    return [marks.defused(message) for message in checked(messages)], offered


@dataclass(frozen=True, slots=True)
class _Piece:
    """A text, or a control token's id; `assistant`: whether the assistant wrote it."""

    value: str | int
    assistant: bool


class _Marks:
    """The marks of one rendering: a nonce nobody can have guessed, then six digits that say what it stands for."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._nonce = "".join(secrets.choice("0123456789") for _ in range(40))
        self._ids = tokenizer.control_strings
        self._control = tokenizer.control_pattern
        self._texts = tuple(self._ids)
        self._numbers = {text: number for number, text in enumerate(self._texts)}
        self._fence, self.start, self.end = (f"{self._nonce}{number}" for number in (_FENCE, _START, _END))

    def defused(self, value: Any) -> Any:
        """`value` with marks for the control strings in all its texts, however deep; roles stay."""
        if isinstance(value, str):
            return self._fenced_off(self._control.sub(self._mark, value))
        if isinstance(value, Mapping):
            # Templates look names up, so those stay whole; other keys are data too.
            return {key if key.isidentifier() else self.defused(key): item if key == "role" else self.defused(item)
                    for key, item in value.items()}
        return [self.defused(item) for item in value] if isinstance(value, (list, tuple)) else value

    def _mark(self, found: re.Match[str]) -> str:
        return f"{self._nonce}{self._numbers[found[0]]:06d}"

    def _fenced_off(self, text: str) -> str:
        """Fences where a control string could go on, inside the spaces that a template may trim."""
        core = text.strip()
        if not core:
            return text
        heads, tails, joined = _parts(self._texts)
        longest = max(map(len, self._texts), default=0)
        inside = len(core) < longest and core in joined
        before = inside or any(core[:n] in tails for n in range(1, longest))
        after = inside or any(core[-n:] in heads for n in range(1, longest))
        place = text.index(core)
        return (text[:place] + self._fence * before + core + self._fence * after + text[place + len(core):])

    def pieces(self, rendered: str) -> list[_Piece]:
        """The rendered text, split at its control strings and at the assistant's borders, the marks undone."""
        pieces: list[_Piece] = []
        text, assistant = "", False

        def end_text() -> None:
            nonlocal text
            if text:
                pieces.append(_Piece(text, assistant))
            text = ""

        for i, part in enumerate(rendered.split(self._nonce)):
            if i > 0:
                number, part = int(part[:6]), part[6:]
                if number < len(self._texts):
                    text += self._texts[number]
                elif number != _FENCE:
                    end_text()
                    assistant = number == _START
            place = 0
            for found in self._control.finditer(part):
                text += part[place:found.start()]
                end_text()
                pieces.append(_Piece(self._ids[found[0]], assistant))
                place = found.end()
            text += part[place:]
        end_text()
        return pieces

    def end_of_last_control(self, text: str) -> int:
        """Where the last control string of a rendered text ends; without one, where its words do."""
        return max((found.end() for found in self._control.finditer(text)), default=len(text.rstrip()))

    def fences_only(self, fenced: str, plain: str) -> bool:
        """Whether `fenced` is `plain` with starts and ends added, each start with its end."""
        order = [part[:6] for part in fenced.split(self._nonce)[1:] if int(part[:6]) in (_START, _END)]
        pairs = all(part == str((_START, _END)[i % 2]) for i, part in enumerate(order)) and len(order) % 2 == 0
        return pairs and fenced.replace(self.start, "").replace(self.end, "") == plain


_FENCE, _START, _END = 999997, 999998, 999999  # where no control string begins; around the assistant's words


@functools.lru_cache(maxsize=8)
def _parts(controls: tuple[str, ...]) -> tuple[frozenset[str], frozenset[str], str]:
    """How control strings can begin, how they can end, and all of them in one text."""
    heads = frozenset(text[:n] for text in controls for n in range(1, len(text)))
    tails = frozenset(text[n:] for text in controls for n in range(1, len(text)))
    return heads, tails, "\n".join(controls)


def _rendered(
    tokenizer: Tokenizer, messages: list[dict[str, Any]], tools: Any, add_generation_prompt: bool,
    fences: tuple[str, str] = ("", ""),
) -> str:
    if tokenizer.chat_template is None:
        raise TokenizerError(
            say("this tokenizer has no chat template", "该分词器没有对话模板"), where="chat_template.jinja",
            mend=say("use the tokenizer of a chat model, or give it one (chat_template.jinja)",
                     "请使用对话模型的分词器，或为其提供 chat_template.jinja"),
        )
    names = {f"{role}_token": tokenizer.token(id) for role, id in tokenizer.control.items()}
    values = {**names, "messages": messages, "tools": tools, "documents": None,
              "add_generation_prompt": add_generation_prompt}
    return render_template(tokenizer.chat_template, values, fences)


# The assistant's part ---------------------------------------------------------------------------------


def _fenced(message: dict[str, Any], fences: tuple[str, str], within: bool) -> dict[str, Any]:
    """An assistant's message with fences around what it says, `within` or outside the spaces around that."""
    if message["role"] != "assistant":
        return message
    changed: dict[str, Any] = {}
    for key in {"content", "reasoning_content"} & message.keys():
        value = message[key]
        if isinstance(value, str):
            changed[key] = _between(value, fences, within)
        elif isinstance(value, list):
            changed[key] = [{**part, "text": _between(part["text"], fences, within)} if "text" in part else part
                            for part in value]
    return {**message, **changed}


def _by_prefix(tokenizer: Tokenizer, marks: _Marks, messages: list[dict[str, Any]], tools: Any, plain: str,
               theirs: Sequence[int]) -> str:
    """`plain` with fences around what each of these messages adds to the conversation up to where it begins; empty
    where the template does not simply go on."""
    result, done = "", 0
    for i in theirs:
        try:
            before = _rendered(tokenizer, messages[:i], tools, True)
            until = _rendered(tokenizer, messages[:i + 1], tools, False)
        except WenmoError:  # it does not take a part of a conversation
            return ""
        if not (until.startswith(before) and plain.startswith(until)):
            return ""
        end = len(before) + marks.end_of_last_control(until[len(before):])
        result += plain[done:len(before)] + marks.start + plain[len(before):end] + marks.end
        done = end
    return result + plain[done:]


def _between(text: str, fences: tuple[str, str], within: bool) -> str:
    core = text.strip() if within else text
    if not core.strip():
        return text  # a template may ask whether there is any content
    before, after = text.split(core, 1)
    return f"{before}{fences[0]}{core}{fences[1]}{after}"


def _with_closing(pieces: list[_Piece]) -> list[_Piece]:
    """With the control token after the assistant's words, and spaces between them, taken for the assistant's."""
    result: list[_Piece] = []
    for i, piece in enumerate(pieces):
        after = result and result[-1].assistant and not isinstance(result[-1].value, int)
        spaces = isinstance(piece.value, str) and not piece.value.strip()
        closes = isinstance(piece.value, int) or (
            spaces and i + 1 < len(pieces) and isinstance(pieces[i + 1].value, int))
        result.append(_Piece(piece.value, piece.assistant or bool(after and closes)))
    return result


def _untraceable() -> TokenizerError:
    return TokenizerError(
        say("the chat template rewrites what the assistant says, so that its tokens cannot be told apart",
            "对话模板改写了助手的话，无法分辨哪些词元出自助手"),
        where="chat_template.jinja",
        mend=say("put {% generation %} and {% endgeneration %} around it in the template",
                 "请在模板中用 {% generation %} 和 {% endgeneration %} 把它括起来"),
    )
