"""Text → text: the clean-ups a recipe may ask for, all off by default.

In: a string. Out: a string. What is done here is done alike to every row of a source, before duplicates are
looked for; what a deployed model will be asked should pass through the same settings.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
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
    simplify: bool = False  # traditional → simplified characters (OpenCC, t2s), one for one
    strip: bool = False  # white space, byte-order marks and zero-width spaces at both ends

    @property
    def keeps_places(self) -> bool:
        """Whether each character stands where it stood before: what counts characters stays true."""
        return not (self.nfkc or self.strip)


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


class Placeholders:
    """{{name}} in texts → what `values` has for it. `unseen`: the names that no text said so far."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self.values, self.seen = dict(values), set[str]()
        self._pattern = re.compile("|".join(rf"\{{\{{\s*({re.escape(name)})\s*\}}\}}" for name in values))

    @property
    def unseen(self) -> list[str]:
        return [name for name in self.values if name not in self.seen]

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {name: normalized(value, self._filled) for name, value in row.items()} if self.values else row

    def _filled(self, text: str) -> str:
        return self._pattern.sub(self._value, text)

    def _value(self, found: re.Match[str]) -> str:
        name = next(filter(None, found.groups()))
        self.seen.add(name)
        return self.values[name]


def _simplifier() -> Callable[[str], str]:
    try:
        from opencc import OpenCC
    except ImportError as error:
        raise MissingExtra("opencc", "zh", "`normalize.simplify`") from error
    convert: Callable[[str], str] = OpenCC("t2s").convert

    def simplify(text: str) -> str:
        """Its phrases are as long as what they stand for; were one not, the characters are taken one by one."""
        simple = convert(text)
        return simple if len(simple) == len(text) else "".join(convert(character)[:1] for character in text)

    return simplify


def normalized(value: Any, change: Callable[[str], str]) -> Any:
    """`change` for the strings of a nested value (messages, tokens); keys stay."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [normalized(item, change) for item in value]
    if isinstance(value, dict):
        return {key: normalized(item, change) for key, item in value.items()}
    return value
