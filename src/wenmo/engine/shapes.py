"""What a text shall look like: JSON of a schema, a pattern, one of several choices, calls of functions.

In: what who asks has written. Out: a `Shape`, small and shallow enough to be compiled (grammar.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from wenmo.errors import DataError, say
from wenmo.text.tokenizer import Tokenizer
from wenmo.text.tool_calls import CallFormat, named

MAX_CHARACTERS, MAX_DEPTH, MAX_PATTERN = 65536, 48, 20_000
MAX_CALLS = 16  # of functions in one answer
# Between two tokens of JSON a space, or a new line and an indentation: enough for how JSON is written, and a model that
# is lost cannot go on with it for ever.
WHITESPACE: Any = {"whitespace_pattern": r"( |\n {0,16})"}


@dataclass(frozen=True, slots=True)
class Shape:
    """`source` is what llguidance compiles: a grammar in its JSON form."""

    kind: Literal["json_schema", "regex", "choice", "grammar"]
    source: str

    def __post_init__(self) -> None:
        if len(self.source) > MAX_CHARACTERS:
            raise refused(self.kind, say(f"{len(self.source)} characters", f"共 {len(self.source)} 个字符"),
                           say(f"at most {MAX_CHARACTERS}", f"最多 {MAX_CHARACTERS}"))


def json_schema(schema: Mapping[str, Any] | bool) -> Shape:
    """JSON that is valid under the schema. What cannot be held to is refused when it is compiled, never passed over."""
    if schema is False:
        raise refused("json_schema", say("nothing is valid under `false`", "没有任何值符合 `false`"), say(
            "give a schema that something fits", "请给出可以满足的模式"))
    return Shape("json_schema", _written("json_schema", {} if schema is True else schema))


def json_object() -> Shape:
    """Any JSON object."""
    return json_schema({"type": "object"})


def regex(pattern: str) -> Shape:
    """The whole text matches the pattern (the syntax of Rust's `regex`: without look-around and back references)."""
    _bounded("regex", pattern)
    return Shape("regex", pattern)


def choice(texts: Sequence[str]) -> Shape:
    """One of the texts."""
    if isinstance(texts, str) or not texts or not all(isinstance(text, str) and text for text in texts):
        raise refused("choice", say("no list of texts", "不是文本的列表"),
                       say('for example ["yes", "no"]', '例如 ["是", "否"]'))
    return Shape("choice", " | ".join(quoted(text) for text in texts))


def grammar(lark: str) -> Shape:
    """What a grammar in llguidance's form of Lark derives from `start`."""
    return Shape("grammar", lark)


def tool_calls_shape(format: CallFormat, tools: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, *,
                     name: str | None = None, many: bool = True) -> Shape:
    """One call of a function, or several, with arguments that are valid under its schema. `name`: of that one only.

    Raises DataError where there is no such function.
    """
    functions = named(tools, name)
    objects = []
    for number, function in enumerate(functions):
        head = f'{{"name": {quoted(function["name"])}, "{format.arguments}": '
        objects.append(f'{quoted(head)} arguments_{number} "}}"')
    rules = [f"arguments_{number}: {json_rule({'type': 'object', **(function.get('parameters') or {})})}"
             for number, function in enumerate(functions)]
    before, after = (_spelt(text, tokenizer) for text in (format.before, format.after))
    one, gap = ("call", '", "') if format.listed else (f"{before} call {after}", quoted("\n"))
    several = f"{one} ({gap} {one}){{0,{MAX_CALLS - 1}}}" if many else one
    return Shape("grammar", "\n".join([
        f'start: {before} "[" {several} "]" {after}' if format.listed else f"start: {several}",
        f"call: {' | '.join(objects)}", *rules]))


def _spelt(text: str, tokenizer: Tokenizer) -> str:
    """A text as a grammar writes it, its control strings as the tokens that they are."""
    parts, at = [], 0
    for found in tokenizer.control_pattern.finditer(text):
        parts += [quoted(text[at : found.start()]), f"<[{tokenizer.control_strings[found[0]]}]>"]
        at = found.end()
    return " ".join(part for part in [*parts, quoted(text[at:])] if part != '""')


def quoted(text: str) -> str:
    """A text as a grammar writes it."""
    return json.dumps(text, ensure_ascii=False)


def json_rule(schema: Mapping[str, Any]) -> str:
    """A schema as a grammar writes it."""
    return "%json " + _written("json_schema", {**schema, "x-guidance": WHITESPACE})


def _written(kind: str, value: Any) -> str:
    """JSON of a value that is not too deep."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise refused(kind, say("nested too deeply", "嵌套过深"),
                           say(f"at most {MAX_DEPTH} levels", f"最多 {MAX_DEPTH} 层"))
        for each in level:
            if isinstance(each, Mapping):
                _bounded(kind, each.get("pattern"), *_keys(each.get("patternProperties")))
        level = [item for each in level if isinstance(each, (Mapping, list, tuple))
                 for item in (each.values() if isinstance(each, Mapping) else each)]
    if not isinstance(value, Mapping):
        raise refused(kind, say("not an object", "不是对象"), say('for example {"type": "object"}',
                                                                   '例如 {"type": "object"}'))
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise refused(kind, str(error), say("write JSON", "请写成 JSON")) from error


def _keys(value: Any) -> list[str]:
    return list(value) if isinstance(value, Mapping) else []


def _bounded(kind: str, *patterns: Any) -> None:
    """DataError for a pattern that is very long once its counted repeats are written out: the library's own measure
    does not see those, and they cost a second where they begin."""
    for pattern in patterns:
        if not isinstance(pattern, str):
            continue
        sizes, last = [0], 0
        for found in _PART.finditer(pattern):
            part = found[0]
            if part == "(":
                sizes.append(0)
            elif part == ")" and len(sizes) > 1:
                last = sizes.pop()
                sizes[-1] += last
            elif found["count"]:
                more = last * (int(found["count"]) - 1)
                sizes[-1] += more
                last += more
            else:
                last = 1
                sizes[-1] += 1
            if sizes[-1] > MAX_PATTERN:
                raise refused(kind, say(f"a pattern of more than {MAX_PATTERN} parts, its repeats written out",
                                         f"展开重复之后，模式超过 {MAX_PATTERN} 个部分"), simpler())


# An escape, a class of characters, a count, or any one character.
_PART = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{(?:\d{0,9},)?(?P<count>\d{1,9})(?:,)?\}|.", re.DOTALL)


def refused(kind: str, why: str, mend: str) -> DataError:
    return DataError(say("this is no shape that a text can be held to", "无法让文本遵守这样的格式"),
                     where=f"{kind}: {why}", mend=mend)


def simpler() -> str:
    return say("make it simpler, or leave out what is not supported", "请简化，或去掉不支持的部分")
