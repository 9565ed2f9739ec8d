"""Tasks on a text, or a pair of texts, that is one sequence a row: what classification and tasks of your own share.

In: rows with `text` (or `text_a` and `text_b`). Out: sequences that fit, with what `targets` reads off each row. A task
adds what is its own: heads, targets, objective, outputs, decode and measure. docs/extend.md has one in full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import numpy as np

from wenmo.config import Settings
from wenmo.data.examples import Rows
from wenmo.data.sequence import Sequence, examples_of
from wenmo.errors import DataError, RecipeError, say
from wenmo.tasks.task import Built, Encoded, Lengths, row_name, windows
from wenmo.text.tokenizer import Tokenizer

S = TypeVar("S", bound="TextSettings")


class TextSettings(Settings):
    """pair: a row is two texts, `text_a` and `text_b`. What is to be learned stands in `label`."""

    type: str
    pair: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        return ("text_a", "text_b") if self.pair else ("text",)

    @property
    def target_columns(self) -> tuple[str, ...]:
        return ("label",)

    @property
    def head_kinds(self) -> frozenset[str]:
        return frozenset({"classification"})


@dataclass(frozen=True)
class TextTask(Generic[S]):
    """The half of a `Task` that is alike whatever is to be learned of a text."""

    settings: S
    tokenizer: Tokenizer
    lengths: Lengths

    @property
    def name(self) -> str:
        return self.settings.type

    def fitted(self, rows: Iterable[Mapping[str, Any]]) -> Self:
        return self

    def tuned(self, rows: list[Mapping[str, Any]], outputs: Callable[[], list[list[Any]]]) -> Self:
        return self

    def targets(self, row: Mapping[str, Any]) -> Mapping[str, int | float | np.ndarray]:
        """What is to be learned of a row: name → a number, or an array of the same shape for all rows.

        They reach the objective as `batch.text.values[name]`, [B] or [B, …]. Raises DataError for a wrong one.
        """
        raise NotImplementedError

    @cached_property
    def _room(self) -> int:
        """Tokens of the text or the two texts. RecipeError where there is none."""
        least = self.tokenizer.num_wrapping(self.settings.pair) + len(self.settings.columns)
        if self.lengths.max_tokens < least:
            raise RecipeError(
                say(f"{self.lengths.max_tokens} tokens leave no room for a text",
                    f"{self.lengths.max_tokens} 个词元容不下文本"),
                where="data.max_tokens", mend=say(f"at least {least}", f"至少 {least}"))
        return self.lengths.max_tokens - least + len(self.settings.columns)

    def pooled(self, outputs: list[Any]) -> Any:
        """The output of a row from those of its windows (arrays or numbers), of which a text that fits has one."""
        if len(outputs) == 1:
            return outputs[0]
        return (np.mean if self.lengths.pool == "mean" else np.max)(np.stack(outputs), axis=0)

    def mean(self, found: list[Any]) -> list[Any]:
        """The outputs of several models for one row (`pooled`, each by its own task) → those of all as one."""
        return [np.mean(np.stack(found), axis=0)]

    def encode(self, number: int, row: Mapping[str, Any], *, with_targets: bool) -> Encoded:
        texts = [str(row[column]) for column in self.settings.columns]
        parts = [self.tokenizer.encode(text) for text in texts]
        room = self._room
        total = sum(map(len, parts))
        values = self.targets(row) if with_targets else {}
        if self.lengths.too_long == "window" and total > room:
            assert len(parts) == 1, "a pair is not read in windows"
            spans = windows(total, room, self.lengths.overlap_tokens)
            return Encoded([self._sequence(number, [parts[0][start:end]], values) for start, end in spans])
        if len(parts) == 1:
            parts = [self.lengths.fit(parts[0], room, texts[0])]
        elif total > room:
            # The longer text gives way first, until both are alike (as BERT's own pair truncation).
            first = min(len(parts[0]), max(room - len(parts[1]), room - room // 2))
            parts = [self.lengths.fit(part, kept, text)
                     for part, kept, text in zip(parts, (first, room - first), texts, strict=True)]
        return Encoded([self._sequence(number, parts, values)], total - sum(map(len, parts)))

    def _sequence(self, number: int, parts: list[list[int]],
                  values: Mapping[str, int | float | np.ndarray]) -> Sequence:
        ids, segments = self.tokenizer.wrap(*parts)
        if not ids:
            raise DataError(say("a text without a single token", "文本没有任何词元"),
                            where=row_name(number), mend=say("remove it", "请删除该行"))
        tokens = {"ids": np.asarray(ids)}
        if self.settings.pair and any(segments):
            tokens["segments"] = np.asarray(segments)
        return Sequence(number, tokens, values)

    def build(self, rows: Iterable[Mapping[str, Any]], folder: Path, seed: int, source_hash: str) -> Built:
        encoded = [self.encode(number, row, with_targets=True) for number, row in enumerate(rows)]
        examples = Rows([example for row in encoded for example in examples_of(row.sequences)])
        return Built(examples, len(encoded), int(examples.lengths(0).sum()),
                     sum(row.cut_tokens > 0 for row in encoded), sum(row.cut_tokens for row in encoded))

    def card(self) -> dict[str, Any]:
        return {**self.settings.model_dump(mode="json"), "lengths": self.lengths.model_dump(mode="json")}
