"""Training a tokenizer: texts and settings in, a Tokenizer and its statistics out.

Byte-level BPE for models that write (GPT, Llama): every text has ids and comes back exactly. WordPiece for
models that read (BERT): Han characters one by one, rare characters unknown. Chinese has no spaces, so while BPE
is trained a run of Han is cut into short ones: training stays linear in the text, and no token swallows a
sentence. The finished tokenizer does not cut: where a run begins must not decide how its words are split.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Literal

import tokenizers
from pydantic import Field, model_validator
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from wenmo.config import Count, Settings
from wenmo.errors import DataError, say
from wenmo.text.tokenizer import Tokenizer
from wenmo.text.words import HAN

END_OF_TEXT, START_OF_MESSAGE, END_OF_MESSAGE = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
_BPE_CONTROL = (END_OF_TEXT, START_OF_MESSAGE, END_OF_MESSAGE)
MASK = "[MASK]"
_WORDPIECE_CONTROL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", MASK)


class TokenizerSettings(Settings):
    """What to train. `vocab_size` counts the control tokens and, for BPE, the 256 bytes."""

    type: Literal["bpe", "wordpiece"] = "bpe"
    vocab_size: Count = 8192
    lowercase: bool = False  # BPE then no longer gives the text back exactly
    max_run: Count = Field(4, ge=1)  # BPE: the most Han characters that one token may hold
    min_frequency: Count = Field(2, ge=1)  # how often a pair must occur to be merged
    masked: bool = False  # BPE with BERT's control tokens, for masked language modelling (as RoBERTa has its own)
    control_tokens: tuple[str, ...] = ()  # beside those that the type brings

    @property
    def all_control_tokens(self) -> tuple[str, ...]:
        """In the order of their ids, from 0."""
        own = _WORDPIECE_CONTROL if self.type == "wordpiece" or self.masked else _BPE_CONTROL
        return tuple(dict.fromkeys((*own, *self.control_tokens)))

    @model_validator(mode="after")
    def _fits(self) -> TokenizerSettings:
        if self.masked and self.type != "bpe":
            raise ValueError(say("`masked` is for bpe; wordpiece has BERT's control tokens anyway",
                                 "`masked` 只用于 bpe；wordpiece 本来就带 BERT 的控制词元"))
        least = len(self.all_control_tokens) + (256 if self.type == "bpe" else 1)
        if self.vocab_size < least:
            raise ValueError(say(f"vocab_size {self.vocab_size} is too small, at least {least} are needed",
                                 f"vocab_size {self.vocab_size} 太小，至少需要 {least}"))
        if any(not token.strip() for token in self.control_tokens):
            raise ValueError(say("a control token is empty", "控制词元不能为空"))
        return self


def train(texts: Iterable[str], settings: TokenizerSettings) -> Tokenizer:
    """A tokenizer for `texts`. The same texts and settings give the same bytes, in whatever order.

    WordPiece reads the texts twice: what can be read only once is kept in memory. Raises DataError without text.
    """
    if settings.type == "bpe":
        return _train_bpe(texts, settings)
    return _train_wordpiece(list(texts) if isinstance(texts, Iterator) else texts, settings)


# BPE --------------------------------------------------------------------------------------------------

_LONGEST = 64  # of any run: a megabyte of dashes is one "word" too


def _bpe_pieces(max_run: int) -> pre_tokenizers.PreTokenizer:
    """BPE never merges across these: runs of Han (and of other scripts without spaces), words with the space
    before them, single digits, runs of signs with the space before them, line breaks, spaces."""
    unspaced = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
    pattern = "|".join((
        r"'(?i:[sdmt]|ll|ve|re)(?!\p{L})",
        rf"[{unspaced}&&[\p{{L}}\p{{M}}\p{{Nl}}]]{{1,{max_run}}}",
        rf" ?[\p{{L}}\p{{M}}&&[^{unspaced}]]{{1,{_LONGEST}}}",
        r"\p{N}",
        rf" ?[^\s\p{{L}}\p{{M}}\p{{N}}]{{1,{_LONGEST}}}",
        r"(?:\r?\n){1,8}",
        rf"\s{{1,{_LONGEST}}}(?!\S)",
        r"\s",
    ))
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])


def _train_bpe(texts: Iterable[str], settings: TokenizerSettings) -> Tokenizer:
    full = tokenizers.Tokenizer(models.BPE())
    if settings.lowercase:
        full.normalizer = normalizers.Lowercase()
    full.pre_tokenizer = _bpe_pieces(settings.max_run)
    full.decoder = decoders.ByteLevel()
    full.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=True)
    full.train_from_iterator(_with_text(texts), trainers.BpeTrainer(
        vocab_size=settings.vocab_size, min_frequency=settings.min_frequency, show_progress=False,
        special_tokens=list(settings.all_control_tokens), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    ))
    full.pre_tokenizer = _bpe_pieces(_LONGEST)
    if settings.masked:
        return _as_bert(full)
    names = {f"{role}_token": END_OF_TEXT for role in ("bos", "eos", "pad")}
    return Tokenizer(full.to_str(), names)


def _as_bert(full: tokenizers.Tokenizer) -> Tokenizer:
    """With [CLS] and [SEP] around texts and pairs, and the names of BERT's control tokens."""
    cls, sep = (full.token_to_id(token) for token in ("[CLS]", "[SEP]"))
    full.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", cls), ("[SEP]", sep)],
    )
    names = {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep", "mask")}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return Tokenizer(full.to_str(), names | {"model_input_names": inputs})


# WordPiece --------------------------------------------------------------------------------------------


def _train_wordpiece(texts: Iterable[str], settings: TokenizerSettings) -> Tokenizer:
    full = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    full.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=settings.lowercase, lowercase=settings.lowercase
    )
    full.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # Pieces are joined by spaces, except between Han and Chinese punctuation: 我 爱 → 我爱.
    chinese = r"[\p{Han}\x{3001}-\x{303f}\x{ff01}-\x{ff0f}\x{ff1a}-\x{ff20}\x{2014}\x{2018}-\x{201d}\x{2026}]"
    full.decoder = decoders.Sequence([
        decoders.WordPiece(prefix="##", cleanup=False), decoders.Fuse(),
        decoders.Replace(Regex(f"(?<={chinese}) (?={chinese})"), ""),
    ])
    alphabet, inner = _alphabet(_with_text(texts), full, settings)
    control = list(settings.all_control_tokens)
    # The trainer numbers `##` characters as it meets them, which differs from run to run: given as special
    # tokens they have their ids beforehand, and are made ordinary again below.
    full.train_from_iterator(iter(texts), trainers.WordPieceTrainer(
        vocab_size=settings.vocab_size, min_frequency=settings.min_frequency, show_progress=False,
        special_tokens=control + inner, initial_alphabet=alphabet, limit_alphabet=len(alphabet),
    ))
    definition = json.loads(full.to_str())
    definition["added_tokens"] = definition["added_tokens"][:len(control)]
    full = tokenizers.Tokenizer.from_str(json.dumps(definition))
    return _as_bert(full)


def _alphabet(
    texts: Iterable[str], full: tokenizers.Tokenizer, settings: TokenizerSettings
) -> tuple[list[str], list[str]]:
    """The characters that get a token, the most frequent first, as many as fit; and the `##` forms of those that
    can stand inside a word. Where two are equally frequent the smaller code point wins.
    """
    raw: Counter[str] = Counter()
    for text in texts:
        raw.update(text)
    counts: Counter[str] = Counter()
    for character, count in raw.items():
        for normal in full.normalizer.normalize_str(character):
            if not normal.isspace():
                counts[normal] += count
    room = settings.vocab_size - len(settings.all_control_tokens)
    alphabet: list[str] = []
    inner: list[str] = []
    for character, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        between = full.pre_tokenizer.pre_tokenize_str(full.normalizer.normalize_str(f"a{character}a"))
        forms = [f"##{character}"] if len(between) == 1 else []
        room -= 1 + len(forms)
        if room < 0:
            break
        alphabet.append(character)
        inner += forms
    return alphabet, inner


def _with_text(texts: Iterable[str]) -> Iterator[str]:
    """`texts`, unless there is nothing in them."""
    empty = True
    for text in texts:
        empty = empty and not text.strip()
        yield text
    if empty:
        raise DataError(
            say("there is no text to train a tokenizer on", "没有可用于训练分词器的文本"),
            mend=say("check the path and the column of the text", "请检查路径和文本列"),
        )


# Statistics -------------------------------------------------------------------------------------------


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
