"""Ids → text: the bytes behind byte-level pieces, and a stream that never splits a character.

In: ids, all at once or one by one as a model produces them. Out: text; what a stream has given out, joined, is
what decoding everything at once gives. Byte-level vocabularies (GPT-2, Llama 3, Qwen) are decoded here from
their bytes; all others by their own decoder, asked about the newest piece and the one before it.
"""

from __future__ import annotations

import codecs
import functools
import re
from collections.abc import Callable, Iterable, Sequence

import tokenizers

# GPT-2's alphabet: a byte that prints stands for itself, the others are U+0100 onwards in their order.
_PRINTED = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
_HIDDEN = [byte for byte in range(256) if byte not in _PRINTED]
BYTE_OF_CHARACTER = {chr(byte): byte for byte in _PRINTED} | {chr(256 + n): byte for n, byte in enumerate(_HIDDEN)}

_FALLBACK_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def byte_pieces(tokenizer: tokenizers.Tokenizer) -> list[bytes]:
    """The bytes of every id of a byte-level vocabulary; added tokens are the bytes of their text."""
    added = tokenizer.get_added_tokens_decoder()
    pieces = [b""] * (1 + max(tokenizer.get_vocab().values(), default=-1))
    for piece, id in tokenizer.get_vocab().items():
        spelt = [BYTE_OF_CHARACTER.get(character, -1) for character in piece]
        pieces[id] = piece.encode() if id in added or -1 in spelt else bytes(spelt)
    return pieces


def added_bytes(tokenizer: tokenizers.Tokenizer, skipped: frozenset[int]) -> tuple[list[bytes], list[bytes]]:
    """What each id of any vocabulary adds, in bytes, to a text that has begun, and what a text begins with where it
    comes first: a decoder may leave a space out there. Empty where that depends on what else stands beside it, and for
    those to be skipped."""
    size = 1 + max(tokenizer.get_vocab().values(), default=-1)
    pieces = {id: piece for piece, id in tokenizer.get_vocab().items() if id not in skipped}
    decode = functools.partial(tokenizer.decode_batch, skip_special_tokens=False)
    plain = (id for id, piece in sorted(pieces.items()) if piece[-1:].isalnum() and piece.isascii()
             and not _FALLBACK_BYTE.fullmatch(piece))
    beside = next(plain, None)
    first, later = [b""] * size, [b""] * size
    if beside is None:
        return later, first
    [alone, twice] = decode([[beside], [beside, beside]])
    again = twice[len(alone):]
    ids = list(pieces)
    asked = decode([[id] for id in ids]), decode([[beside, id] for id in ids]), decode([[beside, id, beside]
                                                                                       for id in ids])
    for id, begun, followed, between in zip(ids, *asked, strict=True):
        added = followed[len(alone):]
        if _FALLBACK_BYTE.fullmatch(pieces[id]):
            byte = bytes([int(pieces[id][3:5], 16)])
            first[id], later[id] = begun.encode() if byte.isascii() else byte, byte
        elif between == alone + added + again and "\ufffd" not in added:
            first[id], later[id] = begun.encode(), added.encode()
    return later, first


class ByteStream:
    """Pieces given as bytes; a character comes out with its last byte."""

    def __init__(self, pieces: Sequence[bytes], skipped: frozenset[int]) -> None:
        self._pieces = pieces
        self._skipped = skipped
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """What this id adds to the text; empty while a character is incomplete."""
        if id in self._skipped or not 0 <= id < len(self._pieces):
            return ""
        return self._decoder.decode(self._pieces[id])

    def finish(self) -> str:
        """What is left: U+FFFD where the ids ended within a character."""
        return self._decoder.decode(b"", final=True)


class PieceStream:
    """Pieces whose text depends on whether another stands before them (WordPiece, Metaspace): each is decoded after
    its predecessor, and only what it adds is given out. A run of byte pieces (`<0xE4>`) waits for its end."""

    def __init__(self, decode: Callable[[Sequence[int]], str], piece: Callable[[int], str | None],
                 skipped: frozenset[int]) -> None:
        self._decode = decode
        self._piece = piece
        self._skipped = skipped
        self._before: list[int] = []
        self._waiting: list[int] = []

    def push(self, id: int) -> str:
        """What this id adds to the text; empty while bytes wait for their character."""
        piece = self._piece(id)
        if id in self._skipped or piece is None:
            return ""
        if _FALLBACK_BYTE.fullmatch(piece):
            self._waiting.append(id)
            return ""
        return self.finish() + self._add([id])

    def finish(self) -> str:
        """What still waits."""
        waiting, self._waiting = self._waiting, []
        return self._add(waiting) if waiting else ""

    def _add(self, ids: list[int]) -> str:
        text = self._decode(self._before + ids)[len(self._decode(self._before)):]
        self._before = ids
        return text


Stream = ByteStream | PieceStream


def without(ids: Iterable[int], skipped: frozenset[int]) -> list[int]:
    """`ids` less those to be skipped."""
    return [id for id in ids if id not in skipped]
