"""Which languages a text is written in, as far as its letters tell: enough to say what a model has seen."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import islice

from wenmo.text.words import HAN

_HAN = re.compile(f"[{HAN}]")
_LATIN = re.compile(r"[A-Za-zÀ-ɏ]")
_LETTER = re.compile(r"[^\W\d_]")
SAMPLE_TEXTS = 5000


def language_shares(texts: Iterable[str], every: int = 1) -> dict[str, float]:
    """{"zh": share of Han characters, "latin": of Latin letters, "other": of all other letters} in every n-th text."""
    han = latin = letters = 0
    for text in islice(texts, 0, None, every):
        han += len(_HAN.findall(text))
        latin += len(_LATIN.findall(text))
        letters += len(_LETTER.findall(text))
    other = max(letters - han - latin, 0)
    total = max(han + latin + other, 1)
    return {"zh": round(han / total, 4), "latin": round(latin / total, 4), "other": round(other / total, 4)}
