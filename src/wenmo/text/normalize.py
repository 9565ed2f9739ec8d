"""Text → text: the clean-ups a recipe may ask for, all off by default.

In: a string. Out: a string. What is done here is done alike to every row of a source, before duplicates are
looked for; what a deployed model will be asked should pass through the same settings.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import Any

from wenmo.config import Settings
from wenmo.errors import MissingExtra

# Letters, digits and the ideographic space only: ，！？：；（） stay, they are Chinese punctuation.
_HALF_WIDTH = {code + 0xFEE0: code for code in range(0x21, 0x7F) if chr(code).isalnum()} | {0x3000: 0x20}

# str.strip() leaves the byte-order mark and the zero-width space, which exported files carry at their seams.
_EDGES = "".join(chr(code) for code in range(0x3001) if chr(code).isspace()) + "\ufeff\u200b"


class NormalizeSettings(Settings):
    """Carried out in this order."""

    nfkc: bool = False  # Unicode compatibility form (UAX 15): Ａ → A, ㎏ → kg, ① → 1, but also ，→ ,
    width: bool = False  # full → half width for letters, digits and spaces; Chinese punctuation stays
    simplify: bool = False  # traditional → simplified characters (OpenCC, t2s)
    strip: bool = False  # white space, byte-order marks and zero-width spaces at both ends


def normalizer(settings: NormalizeSettings) -> Callable[[str], str] | None:
    """The function that carries out `settings`, or None where they ask for nothing.

    Raises MissingExtra where `simplify` finds no OpenCC.
    """
    steps: list[Callable[[str], str]] = []
    if settings.nfkc:
        steps.append(lambda text: unicodedata.normalize("NFKC", text))
    if settings.width:
        steps.append(lambda text: text.translate(_HALF_WIDTH))
    if settings.simplify:
        steps.append(_simplifier())
    if settings.strip:
        steps.append(lambda text: text.strip(_EDGES))
    if not steps:
        return None

    def normalize(text: str) -> str:
        for step in steps:
            text = step(text)
        return text

    return normalize


def _simplifier() -> Callable[[str], str]:
    try:
        from opencc import OpenCC
    except ImportError as error:
        raise MissingExtra("opencc", "zh", "`normalize.simplify`") from error
    convert: Callable[[str], str] = OpenCC("t2s").convert
    return convert


def normalized(value: Any, change: Callable[[str], str]) -> Any:
    """`change` for the strings of a nested value (messages, tokens); keys stay."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [normalized(item, change) for item in value]
    if isinstance(value, dict):
        return {key: normalized(item, change) for key, item in value.items()}
    return value
