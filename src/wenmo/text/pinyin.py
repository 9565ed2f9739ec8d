"""Characters that sound alike: what a pinyin keyboard confuses.

In: the Han characters of a text. Out: for each the others among them with the same pinyin, tones aside. The readings
are pypinyin's (extra `zh`), of each character its most common one.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

from wenmo.errors import MissingExtra, say
from wenmo.text.words import HAN

_HAN = re.compile(f"[{HAN}]")


def homophones(texts: Iterable[str]) -> dict[str, str]:
    """character → the other characters of these texts that sound like it, in order; those without any are left out."""
    try:
        from pypinyin import lazy_pinyin
    except ImportError as error:
        raise MissingExtra("pypinyin", "zh", say("finding characters that sound alike", "查找同音字")) from error
    by_sound: dict[str, list[str]] = defaultdict(list)
    for character in sorted({character for text in texts for character in _HAN.findall(text)}):
        [sound] = lazy_pinyin(character)
        by_sound[sound].append(character)
    return {character: "".join(other for other in alike if other != character)
            for alike in by_sound.values() if len(alike) > 1 for character in alike}
