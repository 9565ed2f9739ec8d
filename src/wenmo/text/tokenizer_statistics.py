"""How well a tokenizer fits a text, and which kind fits best.

In: tokenizers and texts they were not trained on. Out: rates (characters per token, unknown, exact, words split) and
speeds. A room of its own because it only looks: nothing here changes what a tokenizer does.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from wenmo.text import tokenizer_training
from wenmo.text.tokenizer import Tokenizer
from wenmo.text.tokenizer_training import TokenizerSettings
from wenmo.text.words import HAN, word_starts


def statistics(tokenizer: Tokenizer, texts: Iterable[str]) -> dict[str, float]:
    """How well `tokenizer` fits `texts`; NaN where there is nothing to divide by.

    zh_characters_per_token: Han characters over the tokens that hold one; en_…: all other letters and digits over
    the tokens that hold one of them and no Han. Spaces and signs count in neither, but in characters_per_token.
    unknown_rate: unknown tokens over tokens. exact_rate: texts that decode(encode(text)) gives back unchanged.
    """
    han = re.compile(f"[{HAN}]")
    count: Counter[str] = Counter()
    for text in texts:
        ids, offsets = tokenizer.encode_with_offsets(text)
        count["texts"] += 1
        count["exact"] += tokenizer.decode(ids) == text
        count["characters"] += len(text)
        count["bytes"] += len(text.encode())
        count["zh characters"] += len(han.findall(text))
        count["en characters"] += sum(character.isalnum() for character in han.sub("", text))
        count["tokens"] += len(ids)
        count["unknown"] += sum(id == tokenizer.unk_id for id in ids)
        for start, end in offsets:
            piece = text[start:end]
            if han.search(piece):
                count["zh tokens"] += 1
            elif any(character.isalnum() for character in piece):
                count["en tokens"] += 1

    def rate(part: str, whole: str) -> float:
        return count[part] / count[whole] if count[whole] else float("nan")

    return {
        "characters_per_token": rate("characters", "tokens"),
        "bytes_per_token": rate("bytes", "tokens"),
        "zh_characters_per_token": rate("zh characters", "zh tokens"),
        "en_characters_per_token": rate("en characters", "en tokens"),
        "unknown_rate": rate("unknown", "tokens"),
        "exact_rate": rate("exact", "texts"),
    }


# Several kinds side by side ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """One kind of tokenizer on texts held out; `groups`: name of the texts → its rates."""

    settings: TokenizerSettings
    vocab_size: int
    training_cpu_seconds: float  # of all threads together: whatever else the machine does, they compare
    encoding_megabytes_per_cpu_second: float  # 10^6 bytes of UTF-8, in batches
    groups: Mapping[str, Mapping[str, float]]


def compare(
    texts: Sequence[str], held_out: Mapping[str, Sequence[str]], candidates: Iterable[TokenizerSettings]
) -> list[Fit]:
    """Trains each candidate on the same `texts` and measures it on the groups held out; as `statistics`, and
    words_split: words that became more than one token, over words. MissingExtra for Chinese without rjieba."""
    fits = []
    for settings in candidates:
        began = time.process_time()
        tokenizer = tokenizer_training.train(texts, settings)
        seconds = time.process_time() - began
        everything = [text for group in held_out.values() for text in group]
        began = time.process_time()
        tokenizer.encode_batch(everything)
        encoding_seconds = max(time.process_time() - began, 1e-6)
        megabytes = sum(len(text.encode()) for text in everything) / 1e6
        groups = {name: statistics(tokenizer, group) | {"words_split": words_split(tokenizer, group)}
                  for name, group in held_out.items()}
        fits.append(Fit(settings, tokenizer.vocab_size, seconds, megabytes / encoding_seconds, groups))
    return fits


def words_split(tokenizer: Tokenizer, texts: Iterable[str]) -> float:
    """The share of words that begin with a token and are more than one; spaces are no words. NaN without words.

    A word that lies within a token, behind its beginning, is not counted: no token begins it.
    """
    words = split = 0
    for text in texts:
        _, offsets = tokenizer.encode_with_offsets(text)
        offsets = [span for span in offsets if not text[slice(*span)].isspace()]
        starts = word_starts(text, offsets).tolist()
        words += sum(starts)
        split += sum(begins and not goes_on for begins, goes_on in zip(starts, [*starts, True][1:], strict=True))
    return split / words if words else float("nan")
