"""Holding a text to a shape, token by token.

In: a `Shape` (shapes.py), and the vocabulary of a tokenizer as bytes. Out: a `Constraint` (request.py) that forbids
every token with which the text could no longer become what was asked for, by the library llguidance. An end of text may
come exactly when the text is complete, and comes by itself where nothing could follow.

A shape comes from strangers. Its size and depth are bounded before it comes here, what compiling it and each step may
cost is bounded by the library's own measure, and compiled ones are kept up to a number. Nothing that a schema refers to
is fetched.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wenmo.engine.shapes import WHITESPACE, Shape, refused, simpler
from wenmo.errors import DataError, MissingExtra, say
from wenmo.text.tokenizer import Tokenizer

MAX_KEPT = 64  # compiled shapes
Matcher = Any  # llguidance's LLMatcher: a shape, compiled, and how far a text is in it


@dataclass(frozen=True)
class _Vocabulary:
    """As llguidance asks for it: each token's bytes, empty where it may not come, and last an end of text that stands
    for all of the model's. The first `size` are the model's tokens."""

    tokens: list[bytes]
    special_token_ids: list[int]
    size: int
    tokenizer: Tokenizer = field(repr=False)
    bos_token_id: None = None

    @property
    def eos_token_id(self) -> int:
        return len(self.tokens) - 1

    def __call__(self, text: bytes) -> list[int]:
        """Where only one text is possible it is written in the tokens that it is usually read in; where those say more
        than the text alone (a space at its beginning), in the longest that fit."""
        ids = self.tokenizer.encode(text.decode("utf-8", "replace"))
        pieces = [self.tokens[id] for id in ids]
        return ids if all(pieces) and b"".join(pieces) == text else self._longest(text)

    def _longest(self, text: bytes) -> list[int]:
        ids, at = [], 0
        while at < len(text):
            length = next((n for n in range(self._lengths, 0, -1) if text[at : at + n] in self._ids), None)
            if length is None:
                return []
            ids.append(self._ids[text[at : at + length]])
            at += length
        return ids

    @cached_property
    def _ids(self) -> dict[bytes, int]:
        return {piece: id for id, piece in enumerate(self.tokens[: self.size]) if piece}

    @cached_property
    def _lengths(self) -> int:
        return max(map(len, self._ids))


class Grammars:
    """Shapes → constraints, for one tokenizer. `ends`: ids that end a text. Any thread may ask.

    A token may add other bytes at the beginning of a text than later. Its first token is then chosen by a vocabulary of
    its own, and told to the other as one of the tokens that are added there for this.

    Raises MissingExtra without llguidance, DataError for a vocabulary that no text can be held with.
    """

    def __init__(self, tokenizer: Tokenizer, ends: frozenset[int]) -> None:
        later, first = tokenizer.added_bytes()
        if not any(later):
            raise DataError(say("no text can be held to a shape with this vocabulary", "此词表无法让文本遵守格式"),
                            where="tokenizer.json",
                            mend=say("use a model with a byte-level or SentencePiece vocabulary",
                                     "请使用字节级或 SentencePiece 词表的模型"))
        self.size, self.ends = len(later), ends
        others = [id for id, (one, other) in enumerate(zip(first, later, strict=True)) if one != other]
        self.as_first = {id: len(later) + place for place, id in enumerate(others)}
        self._later = _for_library(later, [first[id] for id in others], tokenizer)
        self._first = _for_library(first, [], tokenizer) if others else None
        self._compiled: OrderedDict[Shape, tuple[Matcher, Matcher | None]] = OrderedDict()
        self._lock = threading.Lock()

    def constraint(self, shape: Shape) -> Grammar:
        """A constraint for one text. What one shape costs to compile is bounded to about a second; shapes are compiled
        one at a time. Raises DataError for what cannot be fulfilled or is not supported."""
        with self._lock:
            if shape not in self._compiled:
                self._compiled[shape] = self._compile(shape)
                if len(self._compiled) > MAX_KEPT:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(shape)
            later, first = self._compiled[shape]
            return Grammar(self, later.deep_copy(), None if first is None else first.deep_copy())

    def _compile(self, shape: Shape) -> tuple[Matcher, Matcher | None]:
        later = _compiled(self._later, shape)
        return later, None if self._first is None else _compiled(self._first, shape)


def _for_library(tokens: list[bytes], added: list[bytes], tokenizer: Tokenizer) -> Any:
    try:
        from llguidance import LLTokenizer, TokenizerWrapper
    except ImportError as error:
        raise MissingExtra("llguidance", "serve", say("structured output", "结构化输出")) from error
    spelt = {id: text.encode() for text, id in tokenizer.control_strings.items()}
    every = [*(spelt.get(id, piece) for id, piece in enumerate(tokens)), *added, b"<end of text>"]
    vocabulary = _Vocabulary(every, [*sorted(spelt), len(every) - 1], len(tokens), tokenizer)
    return LLTokenizer(TokenizerWrapper(vocabulary), eos_token=len(every) - 1)


def _compiled(vocabulary: Any, shape: Shape) -> Matcher:
    from llguidance import LLMatcher

    try:
        if shape.kind == "json_schema":
            source = LLMatcher.grammar_from_json_schema(shape.source, overrides=WHITESPACE)
        elif shape.kind == "regex":
            source = LLMatcher.grammar_from_regex(shape.source)
        else:
            start = f"start: {shape.source}" if shape.kind == "choice" else shape.source
            source = LLMatcher.grammar_from_lark(start)
        matcher = LLMatcher(vocabulary, source, log_level=0, limits=_limits())
        if not matcher.is_error():
            matcher.compute_bitmask()  # here, and not in the engine's thread
    except ValueError as error:
        raise refused(shape.kind, _sentence(str(error)), simpler()) from error
    if matcher.is_error():
        raise refused(shape.kind, _sentence(matcher.get_error()), simpler())
    return matcher


def _sentence(why: str) -> str:
    """Of the library's message the sentence that says what is wrong, without its drawings of the place."""
    lines = why.strip().splitlines() or [""]
    return next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[0])


def _limits() -> Any:
    from llguidance import LLParserLimits

    return LLParserLimits(initial_lexer_fuel=1_000_000, step_lexer_fuel=100_000, step_max_items=20_000,
                          max_lexer_states=20_000, max_grammar_size=100_000, verbose_errors=False)


class Grammar:
    """The Constraint of one text: `first` chooses its first token, where it has to be another (see Grammars)."""

    def __init__(self, grammars: Grammars, later: Matcher, first: Matcher | None) -> None:
        self._grammars, self._later, self._first = grammars, later, first

    def allow(self, scores_V: Tensor) -> Tensor:
        """The scores with -inf for every token that may not come next. Raises DataError where none may, or where the
        shape has become too costly."""
        matcher, size = self._first or self._later, self._grammars.size
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
        _check(matcher)
        allowed = np.zeros(len(scores_V), bool)
        allowed[:size] = bits[: min(size, len(allowed))]
        end = size if self._first else size + len(self._grammars.as_first)
        allowed[[id for id in self._grammars.ends if id < len(allowed)]] = bits[end]
        held_V = scores_V.masked_fill(~torch.from_numpy(allowed), float("-inf"))
        if float(held_V.amax()) == float("-inf"):
            raise refused("…", say("no token of the vocabulary may come next", "词表中没有可以接着出现的词元"),
                          say("drop min_new_tokens and no_repeat_ngram_size, or use a byte-level vocabulary",
                              "请去掉 min_new_tokens、no_repeat_ngram_size，或使用字节级词表的模型"))
        return held_V

    def take(self, token: int) -> None:
        """The token that was chosen; no end of text."""
        as_first, self._first = self._first is not None, None
        self._later.consume_token(self._grammars.as_first.get(token, token) if as_first else token)
        _check(self._later)

    @property
    def finished(self) -> bool:
        """Whether nothing more may follow."""
        return bool(self._later.is_stopped())


def _check(matcher: Matcher) -> None:
    if matcher.is_error():
        raise refused("…", matcher.get_error(), simpler())
