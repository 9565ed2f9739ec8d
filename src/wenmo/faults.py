"""What pydantic finds wrong with a value, in the words of the person who wrote it, English and Chinese.

In: a fault as pydantic describes it. Out: one clause for the first line of an error. A room of its own: it is a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wenmo.errors import say


def in_words(fault: Mapping[str, Any]) -> str:
    """What is wanted in place of the value; pydantic's own sentence for the kinds of fault that are not listed here."""
    kind, given = str(fault["type"]), fault.get("ctx", {})
    match kind:
        case "int_parsing" | "int_type" | "int_from_float" | "int_parsing_size":
            return say("a whole number is wanted", "应为整数")
        case "float_parsing" | "float_type":
            return say("a number is wanted", "应为数字")
        case "finite_number":
            return say("a finite number is wanted", "应为有限的数")
        case "bool_parsing" | "bool_type":
            return say("true or false is wanted", "应为 true 或 false")
        case "string_type":
            return say("a text is wanted", "应为文本")
        case "tuple_type" | "list_type":
            return say("a list is wanted: […]", "应为列表：[…]")
        case "model_type" | "model_attributes_type" | "dict_type":
            return say("keys with values are wanted: {key: value}", "应为键与值：{键: 值}")
        case "too_short":
            return say(f"at least {given['min_length']} wanted, {given['actual_length']} given",
                       f"至少要有 {given['min_length']} 项，只给了 {given['actual_length']} 项")
        case "literal_error":
            wanted = str(given["expected"])
            return say(f"wanted is {wanted}", f"应为 {wanted.replace(' or ', ' 或 ')}")
        case "string_pattern_mismatch":
            return say(f"it must look like {given['pattern']}", f"须符合 {given['pattern']}")
        case "greater_than":
            return say(f"it must be more than {given['gt']:g}", f"须大于 {given['gt']:g}")
        case "greater_than_equal":
            return say(f"it must be at least {given['ge']:g}", f"不得小于 {given['ge']:g}")
        case "less_than":
            return say(f"it must be less than {given['lt']:g}", f"须小于 {given['lt']:g}")
        case "less_than_equal":
            return say(f"it must be at most {given['le']:g}", f"不得大于 {given['le']:g}")
    return str(fault["msg"]).removeprefix("Value error, ")
