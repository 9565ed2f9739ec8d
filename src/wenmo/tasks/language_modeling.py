"""Language modelling: what pre-training learns from plain text, and how surprised a model is by a text.

A row is a document, `text`. Causal: every token from those before it. Masked: 15% of the tokens from both sides
(BERT's 80/10/10), by words if asked, with next-sentence prediction if asked. The answer to a row is its likelihood.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from wenmo.config import Fraction
from wenmo.data.corruption import mask_tokens, next_sentence, piece_of_another
from wenmo.data.examples import Chunks
from wenmo.data.sequence import Batch, Sequence
from wenmo.data.shards import Shards
from wenmo.device import numpy_rng
from wenmo.errors import RecipeError, say
from wenmo.models import LanguageModel
from wenmo.nn.cross_entropy import IGNORED
from wenmo.objectives import Objective, hidden_of, language_modeling
from wenmo.tasks.documents import Arrays, DocumentSettings, open_shards
from wenmo.tasks.likelihood import answer, likelihoods, measured
from wenmo.tasks.task import Built, Encoded, Lengths, Measured
from wenmo.text.tokenizer import Tokenizer
from wenmo.text.words import word_starts


class CausalLMSettings(DocumentSettings):
    type: Literal["causal_lm"] = "causal_lm"
    label_smoothing: Fraction = 0.0

    @property
    def head_kinds(self) -> frozenset[str]:
        return frozenset({"causal_lm"})


class MaskedLMSettings(DocumentSettings):
    """probability: share of tokens to be predicted. whole_word: the tokens of a word together (Chinese words by
    rjieba). next_sentence: also learn whether the second part follows the first."""

    type: Literal["masked_lm"] = "masked_lm"
    probability: Fraction = 0.15
    whole_word: bool = False
    next_sentence: bool = False
    label_smoothing: Fraction = 0.0

    @property
    def head_kinds(self) -> frozenset[str]:
        return frozenset({"masked_lm", "next_sentence"} if self.next_sentence else {"masked_lm"})


@dataclass(frozen=True)
class LanguageModeling:
    settings: CausalLMSettings | MaskedLMSettings
    tokenizer: Tokenizer
    lengths: Lengths

    def __post_init__(self) -> None:
        if isinstance(self.settings, MaskedLMSettings) and "mask" not in self.tokenizer.control:
            raise RecipeError(
                say("masked language modelling needs a tokenizer with a mask token",
                    "掩码语言模型需要带 mask 词元的分词器"),
                where="task.type", mend="tokenizer: {train: {type: wordpiece}}")

    @property
    def name(self) -> str:
        return self.settings.type

    @property
    def heads(self) -> Mapping[str, int]:
        return {kind: 2 if kind == "next_sentence" else 0 for kind in sorted(self.settings.head_kinds)}

    def fitted(self, rows: Iterable[Mapping[str, Any]]) -> LanguageModeling:
        return self

    # Training -------------------------------------------------------------------------------------------

    def build(self, rows: Iterable[Mapping[str, Any]], folder: Path, seed: int, source_hash: str) -> Built:
        """Documents → token shards (made once for a corpus and tokenizer) → chunks, corrupted anew each epoch."""
        words = isinstance(self.settings, MaskedLMSettings) and self.settings.whole_word
        pairs = isinstance(self.settings, MaskedLMSettings) and self.settings.next_sentence
        with_starts = words or pairs
        shards = open_shards(lambda: self._documents(rows, with_starts), folder, self.tokenizer, source_hash,
                             ("starts",) if with_starts else ())
        extra = 0 if self.settings.type == "causal_lm" else self.tokenizer.num_wrapping(pairs)
        form = partial(self._form, shards, seed)
        examples = Chunks(shards, self.lengths.max_tokens - extra, seed, form, extra)
        return Built(examples, shards.num_documents, shards.num_tokens)

    def _documents(self, rows: Iterable[Mapping[str, Any]], with_starts: bool) -> Iterator[Arrays]:
        texts = (str(row["text"]) for row in rows)
        if with_starts:
            for text in texts:
                its_ids, offsets = self.tokenizer.encode_with_offsets(text)
                if its_ids:
                    yield {"ids": np.asarray(its_ids), "starts": word_starts(text, offsets).astype(np.uint8)}
        elif self.settings.type == "masked_lm":
            yield from ({"ids": ids} for ids in self.tokenizer.encode_each(texts) if len(ids))
        else:  # a causal document stands between its start and end-of-text
            start = document_start(self.tokenizer)
            end = [] if self.tokenizer.eos_id is None else [self.tokenizer.eos_id]
            for ids in self.tokenizer.encode_each(texts):
                if len(ids):
                    yield {"ids": np.concatenate([start, ids, end]).astype(np.int64)}

    def _form(self, shards: Shards, seed: int, arrays: Arrays, document: int, start: int, epoch: int) -> list[Sequence]:
        if isinstance(self.settings, CausalLMSettings):
            return [Sequence(document, {"ids": arrays["ids"], "targets": _following(arrays["ids"])})]
        rng = numpy_rng(seed, "corrupt", epoch, document, start)
        values: dict[str, int | float] = {}
        second: Arrays | None = None
        if self.settings.next_sentence:
            other = partial(_piece, shards, document, rng)
            arrays, second, values["is_random"] = next_sentence(arrays, other, rng)
        ids, segments, starts = self._wrapped(arrays, second)
        corrupted, targets = mask_tokens(
            ids, rng=rng, mask_id=self._mask_id, vocab_size=self.tokenizer.vocab_size,
            control_ids=self._control_ids, probability=self.settings.probability,
            starts=starts if self.settings.whole_word else None)
        tokens = {"ids": corrupted, "targets": targets}
        if second is not None:
            tokens["segments"] = segments
        return [Sequence(document, tokens, values)]

    @cached_property
    def _mask_id(self) -> int:
        return self.tokenizer.control["mask"]

    @cached_property
    def _control_ids(self) -> tuple[int, ...]:
        return tuple(sorted(self.tokenizer.control_ids))

    def _wrapped(self, first: Arrays, second: Arrays | None) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """ids with control tokens around them, segments, and (where the shards have them) the beginnings of words."""
        parts = [first] if second is None else [first, second]
        ids, segments = self.tokenizer.wrap(*(part["ids"].tolist() for part in parts))
        if "starts" not in first:
            return np.asarray(ids), np.asarray(segments), None
        # Control tokens stand in the same places whatever stands between them: each begins a "word" of its own.
        starts = np.ones(len(ids), bool)
        at = 1
        for part in parts:
            starts[at : at + len(part["ids"])] = part["starts"]
            starts[at] = True
            at += len(part["ids"]) + 1
        return np.asarray(ids), np.asarray(segments), starts

    def objective(self) -> Objective:
        pairs = isinstance(self.settings, MaskedLMSettings) and self.settings.next_sentence
        return language_modeling(next_sentence=pairs, label_smoothing=self.settings.label_smoothing)

    # Measuring ------------------------------------------------------------------------------------------

    def encode(self, number: int, row: Mapping[str, Any], *, with_targets: bool) -> Encoded:
        """A document of any length → windows, in which each token is predicted once.

        Causal: windows of `max_tokens` that overlap by half, so that a token has at least half a window before it
        (but for the first window's); the document's first token is given. No control tokens are added. Masked:
        chunks with one fixed corruption, keyed by the text, so that the order of rows is no matter.
        """
        text = str(row["text"])
        ids, offsets = self.tokenizer.encode_with_offsets(text)
        size = [(len(part), len(part.encode("utf-8"))) for part in shares(text, offsets)]
        if isinstance(self.settings, CausalLMSettings):
            return Encoded(list(_windows(number, ids, size, self.lengths.max_tokens)))
        sequences = []
        room = self.lengths.max_tokens - self.tokenizer.num_wrapping(False)
        for start in range(0, len(ids), room):
            wrapped, _ = self.tokenizer.wrap(ids[start : start + room])
            corrupted, targets = mask_tokens(
                np.asarray(wrapped), rng=numpy_rng("evaluate", text, start), mask_id=self._mask_id,
                vocab_size=self.tokenizer.vocab_size, control_ids=self._control_ids,
                probability=self.settings.probability)
            sequences.append(Sequence(number, {"ids": corrupted, "targets": targets}))
        return Encoded(sequences)

    def tuned(self, rows: list[Mapping[str, Any]], outputs: Callable[[], list[list[Any]]]) -> LanguageModeling:
        return self

    def outputs(self, model: LanguageModel, batch: Batch) -> list[Any]:
        return likelihoods(model, hidden_of(model, batch.text), batch.text)

    def decode(self, row: Mapping[str, Any], outputs: list[Any]) -> dict[str, Any]:
        return answer(outputs)

    def measure(self, rows: list[Mapping[str, Any]], outputs: list[list[Any]], seed: int) -> Measured:
        """Perplexity; for causal models bits per byte and character too, for masked ones the share guessed."""
        return measured(outputs, seed, accuracy=None if self.settings.type == "causal_lm" else "masked_accuracy")

    def card(self) -> dict[str, Any]:
        return {**self.settings.model_dump(mode="json"), "lengths": self.lengths.model_dump(mode="json")}


def document_start(tokenizer: Tokenizer) -> list[int]:
    """What a causal document begins with, so that its first token has something before it: what the tokenizer puts
    there, or else end-of-text, as if another document had just ended."""
    return tokenizer.prefix or ([] if tokenizer.eos_id is None else [tokenizer.eos_id])


def _following(ids: np.ndarray) -> np.ndarray:
    """What each position has to predict: the next token; nothing at the last."""
    return np.append(ids[1:].astype(np.int64), IGNORED)


def _piece(shards: Shards, document: int, rng: np.random.Generator, num_tokens: int) -> Arrays:
    return piece_of_another(shards, document, num_tokens, rng)


def shares(text: str, offsets: Iterable[tuple[int, int]]) -> list[str]:
    """Which characters each token accounts for, all of the text among them: some tokenizers leave spaces out of their
    offsets, or give the bytes of one character the same ones."""
    ends = list(accumulate((end for _, end in offsets), max))
    if ends:
        ends[-1] = len(text)
    return [text[start:end] for start, end in pairwise([0, *ends])]


def _windows(number: int, ids: list[int], size: list[tuple[int, int]], max_tokens: int) -> Iterator[Sequence]:
    done = 1  # tokens before it are predicted already, or given
    for start in range(0, max(len(ids) - 1, 1), max_tokens // 2):
        window = np.asarray(ids[start : start + max_tokens])
        targets = _following(window)
        targets[: done - start - 1] = IGNORED
        end = start + len(window)
        new = size[done:end]
        if len(window):
            yield Sequence(number, {"ids": window, "targets": targets},
                           {"num_characters": sum(c for c, _ in new), "num_bytes": sum(b for _, b in new)})
        done = end
        if end == len(ids):
            break
