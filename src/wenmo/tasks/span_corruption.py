"""Span corruption: what T5 is pre-trained on (Raffel et al. 2020, §3.1.4).

A row is a document, `text`. Spans are cut out of it; the encoder reads what is left, the decoder says what is missing.
The answer to a row is the likelihood of what was cut out, under one corruption that never changes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import count, takewhile
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from wenmo.config import Fraction
from wenmo.data.corruption import corrupt_spans, corrupted_lengths, longest_text, span_counts
from wenmo.data.examples import SHORTEST, Chunks
from wenmo.data.sequence import TARGET, Batch, Sequence
from wenmo.device import numpy_rng
from wenmo.errors import RecipeError, say
from wenmo.models import LanguageModel
from wenmo.objectives import Objective, sequence_to_sequence, target_hidden_of
from wenmo.tasks.documents import Arrays, DocumentSettings, open_shards
from wenmo.tasks.likelihood import answer, likelihoods, measured
from wenmo.tasks.seq2seq import num_control_tokens, refuse_without_ends, source_and_target
from wenmo.tasks.task import Built, Encoded, Lengths, Measured
from wenmo.text.tokenizer import Tokenizer
from wenmo.text.tokenizer_training import SENTINEL


class SpanCorruptionSettings(DocumentSettings):
    """density: share of tokens to be cut out. mean_span_tokens: how many of them make a span, on average."""

    type: Literal["span_corruption"] = "span_corruption"
    density: Fraction = Field(0.15, gt=0, lt=1)
    mean_span_tokens: float = Field(3.0, ge=1, allow_inf_nan=False)
    label_smoothing: Fraction = 0.0

    @property
    def head_kinds(self) -> frozenset[str]:
        return frozenset({"seq2seq_lm"})

    def longest_text(self, max_tokens: int, num_wrapping: int) -> int:
        """Tokens of a document in one example, so that source and target have at most `max_tokens` each."""
        return longest_text(max_tokens - num_wrapping, max_tokens - 1, self.density, self.mean_span_tokens)

    def num_sentinels(self, max_tokens: int, num_wrapping: int) -> int:
        """How many sentinels the longest text needs: one a span, and one at the end."""
        _, num_spans = span_counts(self.longest_text(max_tokens, num_wrapping), self.density, self.mean_span_tokens)
        return int(num_spans) + 1


@dataclass(frozen=True)
class SpanCorruption:
    settings: SpanCorruptionSettings
    tokenizer: Tokenizer
    lengths: Lengths

    name = "span_corruption"

    def __post_init__(self) -> None:
        refuse_without_ends(self.tokenizer)
        fault = sentinel_fault(self.settings, self.lengths, len(self._sentinels), self.tokenizer.num_wrapping(False))
        if fault is not None:
            raise fault

    @property
    def heads(self) -> Mapping[str, int]:
        return dict.fromkeys(self.settings.head_kinds, 0)

    def fitted(self, rows: Iterable[Mapping[str, Any]]) -> SpanCorruption:
        return self

    @cached_property
    def _sentinels(self) -> np.ndarray:
        ids = self.tokenizer.control_strings
        return np.asarray([ids[name] for name in sentinels_in(ids)], np.int64)

    @cached_property
    def _chunk_tokens(self) -> int:
        return self.settings.longest_text(self.lengths.max_tokens, self.tokenizer.num_wrapping(False))

    # Training -------------------------------------------------------------------------------------------

    def build(self, rows: Iterable[Mapping[str, Any]], folder: Path, seed: int, source_hash: str) -> Built:
        """Documents → token shards (made once for a corpus and tokenizer) → chunks, corrupted anew each epoch."""
        shards = open_shards(lambda: self._documents(rows), folder, self.tokenizer, source_hash)
        examples = Chunks(shards, self._chunk_tokens, seed, partial(self._form, seed), self._num_added)
        return Built(examples, shards.num_documents, shards.num_tokens)

    def _documents(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[Arrays]:
        texts = (str(row["text"]) for row in rows)
        yield from ({"ids": ids} for ids in self.tokenizer.encode_each(texts) if len(ids))

    def _form(self, seed: int, arrays: Arrays, document: int, start: int, epoch: int) -> list[Sequence]:
        return self._example(document, arrays["ids"], numpy_rng(seed, "spans", epoch, document, start))

    def _example(self, row: int, ids: np.ndarray, rng: np.random.Generator) -> list[Sequence]:
        source, target = corrupt_spans(ids, rng=rng, sentinels=self._sentinels, density=self.settings.density,
                                       mean_length=self.settings.mean_span_tokens)
        return source_and_target(row, source.tolist(), target.tolist(), self.tokenizer)

    def _num_added(self, lengths: np.ndarray) -> np.ndarray:
        """Sentinels and control tokens; the text's own tokens stand in the source or in the target, once each."""
        source, target = corrupted_lengths(lengths, self.settings.density, self.settings.mean_span_tokens)
        added: np.ndarray = source + target - lengths + num_control_tokens(self.tokenizer)
        return added

    def objective(self) -> Objective:
        return sequence_to_sequence(label_smoothing=self.settings.label_smoothing)

    # Measuring ------------------------------------------------------------------------------------------

    def encode(self, number: int, row: Mapping[str, Any], *, with_targets: bool) -> Encoded:
        """A document of any length → chunks, each with one fixed corruption, keyed by the text and the place."""
        text = str(row["text"])
        ids = np.asarray(self.tokenizer.encode(text))
        sequences: list[Sequence] = []
        for start in range(0, len(ids), self._chunk_tokens):
            chunk = ids[start : start + self._chunk_tokens]
            sequences += self._example(number, chunk, numpy_rng("evaluate spans", text, start))
        return Encoded(sequences)

    def tuned(self, rows: list[Mapping[str, Any]], outputs: Callable[[], list[list[Any]]]) -> SpanCorruption:
        return self

    def outputs(self, model: LanguageModel, batch: Batch) -> list[Any]:
        return likelihoods(model, target_hidden_of(model, batch), batch.roles[TARGET])

    def decode(self, row: Mapping[str, Any], outputs: list[Any]) -> dict[str, Any]:
        return answer(outputs)

    def measure(self, rows: list[Mapping[str, Any]], outputs: list[list[Any]], seed: int) -> Measured:
        """Perplexity of the target's tokens and the share of them guessed; sentinels and the end count too."""
        return measured(outputs, seed, accuracy="target_accuracy")

    def card(self) -> dict[str, Any]:
        return {**self.settings.model_dump(mode="json"), "lengths": self.lengths.model_dump(mode="json")}


def sentinels_in(names: Collection[str]) -> list[str]:
    """<extra_id_0>, <extra_id_1>, … as far as they go without a gap: in that order, whatever their ids are."""
    return list(takewhile(names.__contains__, map(SENTINEL.format, count())))


def sentinel_fault(settings: SpanCorruptionSettings, lengths: Lengths, num_sentinels: int,
                   num_wrapping: int) -> RecipeError | None:
    """What is wrong with these lengths or this number of sentinels, if anything; known before a tokenizer is made."""
    if settings.longest_text(lengths.max_tokens, num_wrapping) < SHORTEST:
        least = next(tokens for tokens in count() if settings.longest_text(tokens, num_wrapping) >= SHORTEST)
        return RecipeError(
            say(f"{lengths.max_tokens} tokens leave no room for a text and its sentinels",
                f"{lengths.max_tokens} 个词元容不下文本及其哨兵词元"),
            where="data.max_tokens", mend=say(f"at least {least}", f"至少 {least}"))
    needed = settings.num_sentinels(lengths.max_tokens, num_wrapping)
    if not num_sentinels:
        return RecipeError(
            say("span corruption needs a tokenizer with sentinels (<extra_id_0>, <extra_id_1>, …)",
                "片段破坏需要带哨兵词元（<extra_id_0>、<extra_id_1>……）的分词器"),
            where="tokenizer", mend="tokenizer: {train: {type: bpe, seq2seq: true}}")
    if num_sentinels < needed:
        return RecipeError(
            say(f"a text of {lengths.max_tokens} tokens needs {needed} sentinels, the tokenizer has {num_sentinels}",
                f"{lengths.max_tokens} 个词元的文本需要 {needed} 个哨兵词元，分词器只有 {num_sentinels} 个"),
            where="tokenizer",
            mend=say(f"tokenizer.train.sentinels={needed}, a smaller data.max_tokens or a larger task.mean_span_tokens",
                     f"tokenizer.train.sentinels={needed}，或减小 data.max_tokens、增大 task.mean_span_tokens"))
    return None
