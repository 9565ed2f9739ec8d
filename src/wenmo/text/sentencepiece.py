"""SentencePiece models → the content of a tokenizer.json: for translation models and old T5s, which bring no other.

In: a .model or .spm file; for Marian (opus-mt) the one of the source language beside the vocabulary that both languages
share. Out: a definition in which every id is the one that the model was trained with. The files are protocol buffers
of which few fields matter here, so that they are read without the library.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from wenmo.errors import TokenizerError, say

UNKNOWN, END, PAD = "<unk>", "</s>", "<pad>"
_SPACE = "▁"  # how a piece writes a space
_NORMAL, _USER_DEFINED = 1, 4  # types of pieces; what is neither is control, unknown, unused or a byte
_UNIGRAM = 1
_LAST = -1e6  # log-probability of a character that stands in a piece for which the model has none: the last resort


@dataclass(frozen=True)
class SentencePiece:
    """pieces: text, log-probability and type, in the order of their ids. charsmap: SentencePiece's own form of a
    normalisation. prefix: whether a text begins as if a space stood before it."""

    pieces: list[tuple[str, float, int]]
    charsmap: bytes
    prefix: bool
    one_space: bool  # runs of spaces count as one, and those at the ends not at all


def read_sentencepiece(path: Path) -> SentencePiece:
    """Raises TokenizerError for a file that is damaged, or of a kind other than Unigram."""
    try:
        data = path.read_bytes()
        pieces, training, normalisation = [], dict[int, int | bytes](), dict[int, int | bytes]()
        for number, value in _fields(data):
            if number == 1 and isinstance(value, bytes):
                piece = dict(_fields(value))
                text, score = piece[1], piece.get(2, b"\0\0\0\0")
                assert isinstance(text, bytes)
                assert isinstance(score, bytes)
                pieces.append((text.decode(), struct.unpack("<f", score)[0], int(piece.get(3, _NORMAL))))
            elif number in (2, 3) and isinstance(value, bytes):
                (training if number == 2 else normalisation).update(_fields(value))
        charsmap = normalisation.get(2, b"")
        assert isinstance(charsmap, bytes)
    except (OSError, ValueError, KeyError, IndexError, AssertionError, struct.error) as error:
        raise TokenizerError(
            say(f"{path.name} is damaged: {error}", f"{path.name} 已损坏：{error}"), where=str(path),
            mend=say("fetch the file again", "请重新获取该文件")) from error
    if training.get(3, _UNIGRAM) != _UNIGRAM or not pieces:
        raise TokenizerError(
            say("a SentencePiece model of another kind than Unigram", "不是 Unigram 类型的 SentencePiece 模型"),
            where=str(path), mend=say("save its tokenizer.json once with transformers' save_pretrained",
                                      "请先用 transformers 的 save_pretrained 另存 tokenizer.json"))
    return SentencePiece(pieces, charsmap, bool(normalisation.get(3, 1)), bool(normalisation.get(4, 1)))


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protocol buffer's message: number and value (a number, or the bytes)."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        length = {1: 8, 5: 4}.get(kind)
        if kind == 2:
            length, at = _varint(data, at)
        if length is None or at + length > len(data):
            raise ValueError(say("it ends in the middle", "文件不完整"))
        yield tag >> 3, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Seven bits a byte, the lowest first; the highest bit says that more come."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


# As tokenizer.json ------------------------------------------------------------------------------------


def marian_definition(source: SentencePiece, ids: Mapping[str, int], where: str) -> str:
    """`ids`: vocab.json, the pieces of both languages. Codes such as >>fra<< are tokens wherever they stand.

    A piece of the target language alone is read out of a text only where the source has none for its characters
    (transformers does so where such characters are one piece, and takes them for unknown otherwise); a piece of the
    source that has no id is taken apart further.

    Raises TokenizerError for ids that are not 0 … n-1, each once, or without </s>, <unk> and <pad>.
    """
    if sorted(ids.values()) != list(range(len(ids))) or not {UNKNOWN, END, PAD} <= ids.keys():
        raise TokenizerError(
            say("the vocabulary has gaps, or lacks </s>, <unk> or <pad>",
                "词表编号不连续，或缺少 </s>、<unk>、<pad>"), where=where,
            mend=say("fetch the file again", "请重新获取该文件"))
    scores = {piece: score for piece, score, kind in source.pieces if kind in (_NORMAL, _USER_DEFINED)}
    control = (UNKNOWN, END, PAD)
    codes = [piece for piece in ids if piece.startswith(">>") and piece.endswith("<<")]
    vocabulary = [(piece, scores.get(piece, _LAST * len(piece) - 1)) for piece in sorted(ids, key=ids.__getitem__)]
    full = _tokenizer(source, vocabulary, ids[UNKNOWN])
    full.add_special_tokens(list(control))
    full.add_tokens([AddedToken(code, normalized=False) for code in codes])
    return _ended(full)


def t5_definition(model: SentencePiece, num_sentinels: int) -> str:
    """T5's: after the pieces the sentinels, the last one first. Raises TokenizerError without </s>, <unk> and <pad>."""
    vocabulary = [(piece, score) for piece, score, _ in model.pieces]
    names = [piece for piece, _ in vocabulary]
    missing = [name for name in (PAD, END, UNKNOWN) if name not in names]
    if missing:
        raise TokenizerError(say(f"the SentencePiece model has no {', '.join(missing)}",
                                 f"SentencePiece 模型缺少 {'、'.join(missing)}"),
                             mend=say("it is no T5's: give its tokenizer.json", "它不是 T5 的：请提供 tokenizer.json"))
    sentinels = [f"<extra_id_{number}>" for number in reversed(range(num_sentinels))]
    full = _tokenizer(model, [*vocabulary, *((name, _LAST) for name in sentinels)], names.index(UNKNOWN))
    full.add_special_tokens([PAD, END, UNKNOWN, *sentinels])
    return _ended(full)


def _tokenizer(model: SentencePiece, vocabulary: list[tuple[str, float]], unknown_id: int) -> tokenizers.Tokenizer:
    full = tokenizers.Tokenizer(models.Unigram(vocabulary, unknown_id, False))
    steps: list[normalizers.Normalizer] = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    if model.one_space:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    full.normalizer = normalizers.Sequence(steps)
    scheme = "always" if model.prefix else "never"
    spaced = any(_SPACE in piece[1:] for piece, _ in vocabulary)
    full.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme=scheme, split=not spaced)
    full.decoder = decoders.Metaspace(_SPACE, prepend_scheme=scheme)
    return full


def _ended(full: tokenizers.Tokenizer) -> str:
    """With </s> after every text."""
    full.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", pair=f"$A {END} $B {END}", special_tokens=[(END, full.token_to_id(END))])
    definition: str = full.to_str()
    return definition
