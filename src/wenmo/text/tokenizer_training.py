"""Training a tokenizer: texts and settings in, a Tokenizer out.

Byte-level BPE for models that write (GPT, Llama): every text has ids and comes back exactly. WordPiece for
models that read (BERT): Han characters one by one, rare characters unknown. Unigram gives every text back too: what
has no piece is spelt in bytes. Chinese has no spaces, so while BPE and Unigram are trained a run of Han is cut into
short ones: training stays linear in the text, and no token swallows a sentence. The finished tokenizer does not cut:
where a run begins must not decide how its words are split.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Literal

import tokenizers
from pydantic import Field, model_validator
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from wenmo.config import Count, Settings
from wenmo.errors import DataError, say
from wenmo.text import unigram
from wenmo.text.tokenizer import Tokenizer

END_OF_TEXT, START_OF_MESSAGE, END_OF_MESSAGE = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
_BPE_CONTROL = (END_OF_TEXT, START_OF_MESSAGE, END_OF_MESSAGE)
MASK = "[MASK]"
_UNKNOWN = "<unk>"
_WORDPIECE_CONTROL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", MASK)
_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
_SEQ2SEQ_CONTROL = (PAD, END) = ("<pad>", "</s>")
SENTINEL = "<extra_id_{}>"  # T5's names for the places of spans, from 0


class TokenizerSettings(Settings):
    """What to train. `vocab_size` counts the control tokens and, for BPE and Unigram, the 256 bytes."""

    type: Literal["bpe", "wordpiece", "unigram"] = "bpe"
    vocab_size: Count = 8192
    lowercase: bool = False  # BPE and Unigram then no longer give the text back exactly
    max_run: Count = Field(4, ge=1)  # BPE, Unigram: the most Han characters that one token may hold
    min_frequency: Count = Field(2, ge=1)  # how often a pair must occur to be merged; Unigram: a piece, to be one
    masked: bool = False  # with BERT's control tokens, for masked language modelling (as RoBERTa has its own)
    seq2seq: bool = False  # with T5's control tokens, for an encoder–decoder: every text ends in </s>
    sentinels: Count = 100  # seq2seq: how many <extra_id_0>, <extra_id_1>, … stand for spans cut out of a text
    control_tokens: tuple[str, ...] = ()  # beside those that the type brings

    @property
    def all_control_tokens(self) -> tuple[str, ...]:
        """In the order of their ids, from 0."""
        own: tuple[str, ...] = _WORDPIECE_CONTROL if self.type == "wordpiece" or self.masked else _BPE_CONTROL
        if self.seq2seq:
            own = (*_SEQ2SEQ_CONTROL, *(SENTINEL.format(number) for number in range(self.sentinels)))
        if self.type == "unigram" and not self.masked:
            own = (*own, _UNKNOWN)  # never given out, but the library's Unigram must have one
        return tuple(dict.fromkeys((*own, *self.control_tokens)))

    @model_validator(mode="after")
    def _fits(self) -> TokenizerSettings:
        if self.masked and self.type == "wordpiece":
            raise ValueError(say("`masked` is for bpe and unigram; wordpiece has BERT's control tokens anyway",
                                 "`masked` 只用于 bpe 和 unigram；wordpiece 本来就带 BERT 的控制词元"))
        if self.seq2seq and (self.type == "wordpiece" or self.masked):
            raise ValueError(say("`seq2seq` is for a tokenizer that writes: neither wordpiece nor `masked`",
                                 "`seq2seq` 用于生成文本的分词器：不能与 wordpiece 或 `masked` 同用"))
        if not self.seq2seq and self.sentinels != type(self).model_fields["sentinels"].default:
            raise ValueError(say("`sentinels` does nothing without `seq2seq: true`",
                                 "没有 `seq2seq: true` 时 `sentinels` 不起作用"))
        least = len(self.all_control_tokens) + {"bpe": 256, "wordpiece": 1, "unigram": 257}[self.type]
        if self.vocab_size < least:
            raise ValueError(say(f"vocab_size {self.vocab_size} is too small, at least {least} are needed",
                                 f"vocab_size {self.vocab_size} 太小，至少需要 {least}"))
        if any(not token.strip() for token in self.control_tokens):
            raise ValueError(say("a control token is empty", "控制词元不能为空"))
        return self


def train(texts: Iterable[str], settings: TokenizerSettings) -> Tokenizer:
    """A tokenizer for `texts`. The same texts and settings give the same bytes, in whatever order.

    WordPiece and Unigram read the texts twice: what can be read only once is kept in memory. Raises DataError
    without text.
    """
    if settings.type == "bpe":
        return _train_bpe(texts, settings)
    again = list(texts) if isinstance(texts, Iterator) else texts
    return _train_wordpiece(again, settings) if settings.type == "wordpiece" else _train_unigram(again, settings)


# BPE --------------------------------------------------------------------------------------------------

_LONGEST = 64  # of any run: a megabyte of dashes is one "word" too


def _split(max_run: int) -> pre_tokenizers.PreTokenizer:
    """No token goes across these: runs of Han (and of other scripts without spaces), words with the space
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
    return pre_tokenizers.Split(Regex(pattern), behavior="isolated")


def _bpe_pieces(max_run: int) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([
        _split(max_run), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
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
    return _finished(full, settings)


def _finished(full: tokenizers.Tokenizer, settings: TokenizerSettings) -> Tokenizer:
    """With what the settings want around a text, and the names of its control tokens."""
    if settings.masked:
        return _as_bert(full)
    unknown = {"unk_token": _UNKNOWN} if settings.type == "unigram" else {}
    if settings.seq2seq:
        return _as_t5(full, unknown)
    return Tokenizer(full.to_str(), {f"{role}_token": END_OF_TEXT for role in ("bos", "eos", "pad")} | unknown)


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


def _as_t5(full: tokenizers.Tokenizer, unknown: dict[str, str]) -> Tokenizer:
    """With </s> after texts and pairs, and T5's names: <pad>, which its decoder begins with, </s>, the sentinels."""
    template = processors.TemplateProcessing(single=f"$A {END}", pair=f"$A {END} $B {END}",
                                             special_tokens=[(END, full.token_to_id(END))])
    trimming = [] if full.post_processor is None else [full.post_processor]
    full.post_processor = processors.Sequence([*trimming, template])
    names = {"pad_token": PAD, "eos_token": END, **unknown}
    return Tokenizer(full.to_str(), {**names, "model_input_names": ["input_ids", "attention_mask"]})


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


# Unigram ----------------------------------------------------------------------------------------------

_COVERAGE = 0.9995  # share of the characters that are pieces of their own (as in SentencePiece); the others are bytes
_ABSENT = "\0"  # stands for a character without a piece while words are counted


def _train_unigram(texts: Iterable[str], settings: TokenizerSettings) -> Tokenizer:
    normalizer = normalizers.Lowercase() if settings.lowercase else None
    room = settings.vocab_size - len(settings.all_control_tokens) - len(_BYTES)
    alphabet = _frequent_characters(_with_text(texts), normalizer, room, settings.min_frequency)
    words = _words(texts, normalizer, alphabet, settings.max_run)
    pieces = unigram.train(words, room, min_frequency=settings.min_frequency)
    # A text that says "<0x41>" is never read as the byte: signs and digits stand apart, so no word holds it.
    vocabulary = [*((token, 0.0) for token in (*settings.all_control_tokens, *_BYTES)), *pieces]
    unknown = "[UNK]" if settings.masked else _UNKNOWN
    full = tokenizers.Tokenizer(models.Unigram(vocabulary, settings.all_control_tokens.index(unknown), True))
    if normalizer is not None:
        full.normalizer = normalizer
    # Neighbours that are unknown would be one to the library, with one place in the text for all their bytes.
    absent = pre_tokenizers.Split(Regex(f"[^{_ranges(alphabet)}]"), behavior="isolated")
    full.pre_tokenizer = pre_tokenizers.Sequence([_split(_LONGEST), absent])
    full.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    full.add_special_tokens(list(settings.all_control_tokens))
    return _finished(full, settings)


def _frequent_characters(
    texts: Iterable[str], normalizer: normalizers.Normalizer | None, number: int, min_frequency: int
) -> set[str]:
    """Those that cover the text but for a remainder, the most frequent first; of equals the smaller code point."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text if normalizer is None else normalizer.normalize_str(text))
    del counts[_ABSENT]
    missing = counts.total()
    rest = (1 - _COVERAGE) * missing
    chosen: set[str] = set()
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if len(chosen) == number or missing <= rest or (count < min_frequency and chosen):
            break
        chosen.add(character)
        missing -= count
    if not chosen:
        raise _no_text()
    return chosen


def _words(
    texts: Iterable[str], normalizer: normalizers.Normalizer | None, alphabet: set[str], max_run: int
) -> Counter[str]:
    """What no piece goes across, without the characters that have no piece, and how often it occurs."""
    split = pre_tokenizers.Sequence([pre_tokenizers.Split(_ABSENT, behavior="removed"), _split(max_run)])
    words: Counter[str] = Counter()
    for text in texts:
        text = text if normalizer is None else normalizer.normalize_str(text)
        known = "".join(character if character in alphabet else _ABSENT for character in text)
        words.update(word for word, _ in split.pre_tokenize_str(known))
    return words


def _ranges(characters: set[str]) -> str:
    """The inside of a regular expression's [] that matches these."""
    points = sorted(map(ord, characters))
    breaks = [0, *(i for i in range(1, len(points)) if points[i] != points[i - 1] + 1), len(points)]
    return "".join(rf"\x{{{points[begin]:x}}}-\x{{{points[end - 1]:x}}}" for begin, end in itertools.pairwise(breaks))


def _with_text(texts: Iterable[str]) -> Iterator[str]:
    """`texts`, unless there is nothing in them."""
    empty = True
    for text in texts:
        empty = empty and not text.strip()
        yield text
    if empty:
        raise _no_text()


def _no_text() -> DataError:
    return DataError(say("there is no text to train a tokenizer on", "没有可用于训练分词器的文本"),
                     mend=say("check the path and the column of the text", "请检查路径和文本列"))
