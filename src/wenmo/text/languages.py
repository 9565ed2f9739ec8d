"""Which languages a text is written in, as far as its letters tell: enough to say what a model has seen, and when it
is spoken to in something else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import islice

from wenmo.errors import say
from wenmo.text.tokenizer import Tokenizer
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


# Spoken to in a strange language ----------------------------------------------------------------------

LEAST_SHARE = 0.05  # of a model's training text, below which it hardly learned a language
LEAST_VOCABULARY = 1000  # below it, tokens are bytes or characters, and their number tells nothing

# An everyday text of each script, and the characters that a token of one who learned it spells at the least: a
# tokenizer trained on Chinese reaches 1.4 on the first, SmolLM2's (English) 0.5; on the second 1.1 and 4.2.
_EVERYDAY = {
    "zh": ("今天下午天气很好，我们打算去公园走一走，然后找一家饭馆吃晚饭。你觉得怎么样？要不要一起来？", 0.8),
    "latin": ("The weather is fine this afternoon, so we want to take a walk in the park and then find a place for "
              "dinner. What do you think? Would you like to come?", 2.0),
}
_OTHER = 1.0  # measured on the message itself


def script_of(text: str) -> str | None:
    """zh, latin or other: what most of the letters are; None for a text without letters."""
    shares = language_shares([text])
    best = max(shares, key=lambda name: shares[name])
    return best if shares[best] else None


def strange_language(text: str, tokenizer: Tokenizer, shares: Mapping[str, float] | None) -> str | None:
    """A sentence to say if a model was hardly trained on the language of `text`, or None.

    `shares`: of its training text, where they are known; else its tokenizer tells, which was made from such text: it
    spells a language that it hardly met in pieces of characters.
    """
    script = script_of(text)
    if script is None:
        return None
    name = {"zh": say("Chinese", "中文"), "latin": say("languages in Latin letters", "拉丁字母的语言"),
            "other": say("this script", "这种文字")}[script]
    if shares:
        share = shares.get(script, 0.0)
        return None if share >= LEAST_SHARE else say(
            f"this model was hardly trained on {name}: {share:.1%} of its training text",
            f"该模型几乎没有学过{name}：只占训练文本的 {share:.1%}")
    probe, least = _EVERYDAY.get(script, (text, _OTHER))
    ids = tokenizer.encode(probe)
    known = [id for id in ids if id != tokenizer.unk_id]
    characters = len(probe) / max(len(ids), 1) * len(known) / max(len(ids), 1)
    if tokenizer.vocab_size < LEAST_VOCABULARY or characters >= least:
        return None
    return say(f"this model was hardly trained on {name}: its tokenizer spells {characters:.1f} characters a token",
               f"该模型几乎没有学过{name}：其分词器一个词元只能拼出 {characters:.1f} 个字符")
