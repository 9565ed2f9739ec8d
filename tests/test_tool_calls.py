"""Calls of functions are found in what a model writes, however the text comes and however its template writes them."""

from __future__ import annotations

import json
import time

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from test_grammar import continued, made_model, trained
from wenmo.engine.shapes import tool_calls_shape
from wenmo.errors import DataError
from wenmo.text.chat_templates import TEMPLATES
from wenmo.text.tokenizer import Tokenizer
from wenmo.text.tool_calls import CallFormat, CallStream, ToolCall, call_format, parse_tool_calls

HERMES = CallFormat("<tool_call>\n", "\n</tool_call>", "arguments")
MISTRAL = CallFormat("[TOOL_CALLS] ", "", "arguments", listed=True)
LLAMA = CallFormat("", "", "parameters")
FORMATS = {"hermes": HERMES, "mistral": MISTRAL, "llama": LLAMA}
# Written after the published templates of these families, cut down to what matters here.
MISTRAL_TEMPLATE = """{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}
{%- if tools %}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}[INST] {{ m.content }}[/INST]
{%- elif m.tool_calls %}{{ '[TOOL_CALLS] [' }}{% for call in m.tool_calls %}
{%- if call.id | length != 9 %}{{ raise_exception('nine characters') }}{% endif %}
{{- '{"name": "' + call.function.name + '", "arguments": ' + (call.function.arguments | tojson) }}
{{- ', "id": "' + call.id + '"}' }}{% if not loop.last %}, {% endif %}{% endfor %}{{ ']' + eos_token }}
{%- else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"""
LLAMA_TEMPLATE = """{% macro head(r) %}{{ '<|im_start|>' + r + '\\n' }}{% endmacro %}
{%- for m in messages %}{{ head(m.role) }}{% if m.role == 'user' and tools %}{{ tools | tojson }}{% endif %}
{%- if m.tool_calls %}{% set f = m.tool_calls[0].function %}
{{- '{"name": "' + f.name + '", "parameters": ' + (f.arguments | tojson) + '}' }}{% else %}{{ m.content }}{% endif %}
{{- '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ head('assistant') }}{% endif %}"""
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "天气", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "maxLength": 3}, "days": {"type": "integer",
                                     "minimum": 0, "maximum": 9}}, "required": ["city", "days"],
    "additionalProperties": False}}},
    {"type": "function", "function": {"name": 'say "hi"', "parameters": {
        "type": "object", "properties": {"loud": {"type": "boolean"}}, "required": ["loud"],
        "additionalProperties": False}}}]


def tokenizer_of(kind: str) -> Tokenizer:
    made = trained("bpe", ("[TOOL_CALLS]", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"))
    template = {"mistral": MISTRAL_TEMPLATE, "llama": LLAMA_TEMPLATE}.get(kind) or TEMPLATES["chatml"].source
    return made.with_chat_template(template)


@pytest.mark.parametrize(("kind", "expected"), FORMATS.items())
def test_the_template_says_how_calls_are_written(kind, expected) -> None:
    found = call_format(tokenizer_of(kind))
    assert found == expected
    shown = found.shown(made := tokenizer_of(kind))
    assert shown == ({made.control_strings["[TOOL_CALLS]"]} if kind == "mistral" else frozenset())


@pytest.mark.parametrize("template", ["{% for m in messages %}{{ m.content }}{% endfor %}",
                                      "{{ tools }}{% for m in messages %}{{ m.tool_calls or m.content }}{% endfor %}",
                                      "{{ raise_exception('no') }}"])
def test_a_template_without_a_place_for_them_is_refused(template) -> None:
    with pytest.raises(DataError, match=r"call functions|调用函数"):
        call_format(trained("bpe").with_chat_template(template))


CALL = '{"name": "f", "arguments": {"a": [1, "}"], "b": "</tool_call>"}}'
F = ToolCall(0, "f", '{"a": [1, "}"], "b": "</tool_call>"}')
CASES = [
    (HERMES, "plain text", "plain text", []),
    (HERMES, f"<tool_call>\n{CALL}\n</tool_call>", "", [F]),
    (HERMES, f"Let me see. \n<tool_call>{CALL}</tool_call>\n", "Let me see.", [F]),
    (HERMES, f"a<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>b", "ab",
     [F, ToolCall(1, F.name, F.arguments)]),
    (HERMES, f"<tool_call>{CALL}", "", [F]),  # the end of text stood for the mark
    (HERMES, f"<tool_call>{CALL[:-1]}", f"<tool_call>{CALL[:-1]}", []),  # cut off
    (HERMES, 'x \n<tool_call>\n{"name": f}</tool_call>', 'x \n<tool_call>\n{"name": f}</tool_call>', []),
    (HERMES, '<tool_call>{"name": "f", "arguments": {"a": NaN}}',
     '<tool_call>{"name": "f", "arguments": {"a": NaN}}', []),
    (HERMES, f"<tool_call>?<tool_call>{CALL}", "<tool_call>?", [F]),
    (HERMES, "1 <tool 2 <tool_call", "1 <tool 2 <tool_call", []),
    (HERMES, "<tool_call>" + '{"name":' + "[" * 1200 + "]" * 1200 + "}",
     "<tool_call>" + '{"name":' + "[" * 1200 + "]" * 1200 + "}", []),
    (MISTRAL, f"[TOOL_CALLS] [{CALL}, {CALL}]", "", [F, ToolCall(1, F.name, F.arguments)]),
    (MISTRAL, f"[TOOL_CALLS]{CALL}", f"[TOOL_CALLS]{CALL}", []),
    (LLAMA, '{"name": "g", "parameters": {}}', "", [ToolCall(0, "g", "{}")]),
    (LLAMA, ' {"name": "g", "parameters": {}}\n{"name": "h", "parameters": {"x": 1.50}}', "",
     [ToolCall(0, "g", "{}"), ToolCall(1, "h", '{"x": 1.50}')]),
    (LLAMA, '{"answer": 42}', '{"answer": 42}', []),
    (LLAMA, 'So: {"name": "g", "parameters": {}}', 'So: {"name": "g", "parameters": {}}', []),
]


@pytest.mark.parametrize(("format", "text", "content", "calls"), CASES)
def test_calls_are_found(format, text, content, calls) -> None:
    assert parse_tool_calls(text, format) == (content, calls)
    one_by_one = CallStream(format)
    parts = [part for character in text for part in one_by_one.push(character)] + one_by_one.finish()
    assert "".join(part for part in parts if isinstance(part, str)) == content
    assert [part for part in parts if isinstance(part, ToolCall)] == calls
    for call in calls:
        assert len({call.id, *(other.id for other in calls)}) == len(calls)
        json.loads(call.arguments)


PIECES = st.sampled_from(["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<tool", "_call>", CALL, "文", *'[]{}"\\, \n',
                          '{"name": "g", "parameters": {}}'])


@given(st.sampled_from(list(FORMATS.values())), st.lists(PIECES, max_size=12).map("".join), st.data())
@settings(deadline=None, max_examples=300)
def test_however_it_is_cut_it_is_the_same(format, text, data) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    stream = CallStream(format)
    parts = [part for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)
             for part in stream.push(text[start:end])]
    parts += stream.finish()
    content = "".join(part for part in parts if isinstance(part, str))
    assert (content, [part for part in parts if isinstance(part, ToolCall)]) == parse_tool_calls(text, format)


def test_text_is_not_held_back_for_nothing() -> None:
    stream = CallStream(HERMES)
    assert stream.push("Hello <") == ["Hello"]
    assert stream.push("b> there") == [" <b> there"]
    assert stream.push(f"\n<tool_call>{CALL}</tool_call>") == [F]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", [None, "weather", 'say "hi"'])
def test_a_call_that_is_required_comes_and_is_valid(kind, name) -> None:
    """Of a model that knows nothing, whatever it draws."""
    made = tokenizer_of(kind)
    format = call_format(made)
    shape = tool_calls_shape(format, TOOLS, made, name=name, many=name is None)
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}
    num_whole = 0
    for done in continued(made_model(made), made, shape, number=12, max_new_tokens=200, shown=format.shown(made)):
        if done.reason == "length":
            continue
        num_whole += 1
        content, calls = parse_tool_calls(done.text, format)
        assert content == ""
        assert calls
        assert name is None or [call.name for call in calls] == [name]
        for call in calls:
            jsonschema.validate(json.loads(call.arguments), schemas[call.name])
    assert num_whole >= 6


def test_an_unknown_function_is_refused() -> None:
    with pytest.raises(DataError, match="nobody"):
        tool_calls_shape(HERMES, TOOLS, trained("bpe"), name="nobody")
    with pytest.raises(DataError):
        tool_calls_shape(HERMES, [{"type": "function"}], trained("bpe"))


def test_what_only_looks_like_a_call_holds_nobody_up() -> None:
    """Seconds before, of the thread that serves everybody: each piece read the whole again, and each mark the rest."""
    began = time.process_time()
    long = CallStream(HERMES)
    text = '<tool_call>\n{"name": "f", "arguments": {"a": [' + "{}," * 4000
    text += '"\\\\", "\\"}", "' + "abc " * 4000 + '"]}}\n</tool_call>'
    parts = [part for at in range(0, len(text), 3) for part in long.push(text[at : at + 3])] + long.finish()
    assert [part.name for part in parts if isinstance(part, ToolCall)] == ["f"]
    marks = "<tool_call>{" * 3000
    assert parse_tool_calls(marks, HERMES) == (marks, [])
    assert time.process_time() - began < 3
