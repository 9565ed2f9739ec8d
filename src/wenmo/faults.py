"""What pydantic finds wrong with a value, and the system with a file, in the words of the person who named it.

In: a fault as they describe it. Out: one clause for the first line of an error, English or Chinese. A room of its own:
it is two tables.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Any

from wenmo.errors import say

# Every pattern that a setting must match (tests/test_bad_input.py holds the list whole) → what it asks for.
DEVICE = r"^(auto|cpu|cuda(:\d+)?)$"
NAME = r"^[a-zA-Z0-9_-]{1,64}$"


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
        case "too_long":
            return say(f"at most {given['max_length']} wanted", f"至多只能有 {given['max_length']} 项")
        case "string_too_short":
            return say(f"at least {given['min_length']} characters are wanted",
                       f"至少要有 {given['min_length']} 个字符")
        case "string_too_long":
            return say(f"at most {given['max_length']} characters are wanted", f"至多 {given['max_length']} 个字符")
        case "literal_error":
            wanted = str(given["expected"])
            return say(f"wanted is {wanted}", f"应为 {wanted.replace(', ', '、').replace(' or ', ' 或 ')}")
        case "union_tag_invalid":
            wanted = str(given["expected_tags"])
            return say(f"wanted is one of {wanted}", f"应为 {wanted.replace(', ', '、')} 之一")
        case "json_invalid":
            return say("it is no valid JSON", "不是合法的 JSON")
        case "string_pattern_mismatch":
            return _pattern_in_words(given["pattern"])
        case "greater_than":
            return say(f"it must be more than {_number(given['gt'])}", f"须大于 {_number(given['gt'])}")
        case "greater_than_equal":
            return say(f"it must be at least {_number(given['ge'])}", f"不得小于 {_number(given['ge'])}")
        case "less_than":
            return say(f"it must be less than {_number(given['lt'])}", f"须小于 {_number(given['lt'])}")
        case "less_than_equal":
            return say(f"it must be at most {_number(given['le'])}", f"不得大于 {_number(given['le'])}")
    return str(fault["msg"]).removeprefix("Value error, ")


def of_reading(error: OSError | UnicodeDecodeError) -> str:
    """Why a file cannot be read or written, or an address not be had; the system's own words for what is rare."""
    if isinstance(error, UnicodeDecodeError):
        return say("it is not UTF-8", "不是 UTF-8")
    in_chinese = {
        errno.ENOENT: "没有这个文件或目录", errno.EISDIR: "这是目录", errno.ENOTDIR: "不是目录",
        errno.EACCES: "没有权限",
        errno.EPERM: "不允许", errno.EROFS: "磁盘只读", errno.ENOSPC: "磁盘已满", errno.EDQUOT: "配额已满",
        errno.EFBIG: "文件过大", errno.EIO: "磁盘故障", errno.EADDRINUSE: "端口已被占用",
        errno.EADDRNOTAVAIL: "不是本机的地址"}
    words = os.strerror(error.errno) if error.errno in in_chinese else error.strerror or str(error)
    return say(words, in_chinese.get(error.errno or 0, words))


def _number(bound: Any) -> str:
    """All its digits: 2147483648, 0.5."""
    return f"{bound:g}" if isinstance(bound, float) else str(bound)


def _pattern_in_words(pattern: str) -> str:
    if pattern == DEVICE:
        return say("wanted is auto, cpu, cuda, or one of several: cuda:0, cuda:1, …",
                   "应为 auto、cpu、cuda，或多块中的一块：cuda:0、cuda:1 等")
    if pattern == NAME:
        return say("a name is wanted: 1 to 64 of the letters a to z (small or capital), digits, _ and -",
                   "应为名称：1 至 64 个英文字母、数字、_ 或 -")
    return say(f"it must look like {pattern}", f"须符合 {pattern}")  # of a task of the user's own
