"""From text to text: translation, summaries, titles; whatever has a source to be read and a target to be said.

A row is `source` and `target`; several targets of a row are references of one worth, of which the first is learned.
The loss is cross-entropy on the target's tokens, the answer {"output"}. Two layouts, one task:

    encoder–decoder (T5, Marian)     source: prefix x </s>        target: <pad> y  →  y </s>
    decoder (GPT, Llama)             prefix x separator y         →  y and an end of text; nothing else is learned

Answers are searched for by `generation`. While a model is trained they are greedy, and of a few rows: a search over
every row for choosing would take longer than the training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from wenmo.config import Count, Fraction, Settings
from wenmo.data.examples import Rows
from wenmo.data.sequence import Batch, Flat, Sequence
from wenmo.errors import DataError, RecipeError, say
from wenmo.generate import Sampling, generate
from wenmo.metrics import Estimate, Statistic, bootstrap
from wenmo.metrics.translation import Tokenize, bleu, chrf, rouge
from wenmo.models import LanguageModel
from wenmo.nn.cross_entropy import IGNORED
from wenmo.objectives import Objective, language_modeling, sequence_to_sequence
from wenmo.tasks.language_modeling import document_start
from wenmo.tasks.seq2seq import refuse_without_ends, source_and_target
from wenmo.tasks.task import Built, Encoded, Lengths, Measured, row_name
from wenmo.text.languages import script_of
from wenmo.text.tokenizer import Tokenizer
from wenmo.text.words import units

SCORES_AT_ONCE = 2**24  # numbers of the vocabulary's scores that one step of a search holds: 64 MB


class GenerationSettings(Settings):
    """How answers are searched for (see generate/sampling.py). max_new_tokens: left out, that of the longest target."""

    num_beams: int = Field(1, ge=1)
    length_penalty: float = Field(1.0, ge=-10, le=10)
    no_repeat_ngram_size: Count | None = Field(None, gt=0)
    max_new_tokens: Count | None = Field(None, gt=0)

    def sampling(self, longest: int) -> Sampling:
        return Sampling(**{**self.model_dump(), "max_new_tokens": self.max_new_tokens or longest})

    def greedy(self, longest: int) -> Sampling:
        """The same without beams."""
        return self.model_copy(update={"num_beams": 1, "length_penalty": 1.0}).sampling(longest)

    @model_validator(mode="after")
    def _each_key_acts(self) -> GenerationSettings:
        self.sampling(1)
        return self


class TextToTextSettings(Settings):
    """prefix: put before every source, as T5's "summarize: ".
    separator: for a decoder alone, what stands between source and target; without it an encoder–decoder is meant.
    max_target_tokens: its end included; left out, as many as the source may have (of a decoder's, half of all).
    long_targets: of a longer one the beginning is learned, or the row is skipped (and counted), or refused.
    validation_rows: how many of the rows for choosing are answered at each evaluation, greedily."""

    type: Literal["text_to_text"] = "text_to_text"
    prefix: str = ""
    separator: str | None = Field(None, min_length=1)
    max_target_tokens: Count | None = Field(None, ge=2)
    long_targets: Literal["cut", "skip", "refuse"] = "cut"
    label_smoothing: Fraction = 0.0
    generation: GenerationSettings = GenerationSettings()
    metrics: tuple[Literal["bleu", "chrf", "rouge"], ...] = Field(("bleu", "chrf", "rouge"), min_length=1)
    validation_rows: Count = 200

    @property
    def columns(self) -> tuple[str, ...]:
        return ("source",)

    @property
    def target_columns(self) -> tuple[str, ...]:
        return ("target",)

    @property
    def head_kinds(self) -> frozenset[str]:
        return frozenset({"seq2seq_lm" if self.separator is None else "causal_lm"})


@dataclass(frozen=True)
class TextToText:
    settings: TextToTextSettings
    tokenizer: Tokenizer
    lengths: Lengths

    name = "text_to_text"

    def __post_init__(self) -> None:
        if self.settings.separator is None:
            refuse_without_ends(self.tokenizer)
        elif self.tokenizer.eos_id is None:
            raise RecipeError(
                say("a target needs an end of text, and this tokenizer has none",
                    "目标文本需要结束词元，而此分词器没有"), where="tokenizer",
                mend=say("take one with eos", "请换用带 eos 的分词器"))
        longest = self.lengths.max_tokens
        if self._target_tokens > longest:
            raise RecipeError(
                say(f"a target of {self._target_tokens} tokens is longer than data.max_tokens, {longest}",
                    f"目标长 {self._target_tokens} 个词元，超过 data.max_tokens（{longest}）"),
                where="task.max_target_tokens", mend=say("lower it, or raise data.max_tokens",
                                                         "减小它，或增大 data.max_tokens"))
        if self._room < 1:
            raise RecipeError(
                say(f"{self.lengths.max_tokens} tokens leave no room for a source",
                    f"{self.lengths.max_tokens} 个词元容不下源文本"), where="data.max_tokens",
                mend=say(f"at least {self.lengths.max_tokens + 1 - self._room}",
                         f"至少 {self.lengths.max_tokens + 1 - self._room}"))

    @property
    def heads(self) -> Mapping[str, int]:
        return dict.fromkeys(self.settings.head_kinds, 0)

    def fitted(self, rows: Iterable[Mapping[str, Any]]) -> TextToText:
        return self

    @cached_property
    def _target_tokens(self) -> int:
        """Of the longest target, its end included."""
        shared = self.settings.separator is not None
        return self.settings.max_target_tokens or self.lengths.max_tokens // (2 if shared else 1)

    @cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        """What a decoder reads before a source, and between it and its target."""
        return document_start(self.tokenizer), self.tokenizer.encode(self.settings.separator or "")

    @cached_property
    def _room(self) -> int:
        """Tokens of a source, its prefix included."""
        if self.settings.separator is None:
            return self.lengths.max_tokens - self.tokenizer.num_wrapping(False)
        return self.lengths.max_tokens - self._target_tokens - sum(map(len, self._around))

    def tuned(self, rows: list[Mapping[str, Any]], outputs: Callable[[], list[list[Any]]]) -> TextToText:
        return self

    # Text → ids -----------------------------------------------------------------------------------------

    def encode(self, number: int, row: Mapping[str, Any], *, with_targets: bool) -> Encoded:
        text = self.settings.prefix + str(row["source"])
        ids = self.tokenizer.encode(text)
        if not ids:
            raise DataError(say("a source without a single token", "源文本没有任何词元"),
                            where=row_name(number), mend=say("remove it", "请删除该行"))
        source = self.lengths.fit(ids, self._room, text)
        target = self.tokenizer.encode(references_of(row)[0]) if with_targets else []
        kept = target[: self._target_tokens - 1]
        cut = len(ids) - len(source)  # of what is read; what is cut off a target `build` counts
        if self.settings.separator is None:
            return Encoded(source_and_target(number, source, kept, self.tokenizer)[: 2 if with_targets else 1], cut)
        start, separator = self._around
        asked = [*start, *source, *separator]
        end = self.tokenizer.eos_id
        assert end is not None, "refused when the task was made"
        said = [*kept, end] if with_targets else []
        # The token before the first of the target is the first that has something to predict.
        targets = [*[IGNORED] * (len(asked) - 1), *said, *[IGNORED] * (1 if not said else 0)]
        tokens = {"ids": np.asarray([*asked, *said[:-1]]), "targets": np.asarray(targets)}
        return Encoded([Sequence(number, tokens)], cut)

    def build(self, rows: Iterable[Mapping[str, Any]], folder: Path, seed: int, source_hash: str) -> Built:
        kept: list[list[Sequence]] = []
        num_rows = num_cut = num_tokens_cut = num_skipped = 0
        for number, row in enumerate(rows):
            num_rows += 1
            beyond = self._beyond(number, row)
            if beyond and self.settings.long_targets == "skip":
                num_skipped += 1
                continue
            encoded = self.encode(number, row, with_targets=True)
            # Whether it is answered at evaluations; `outputs` reads it. What comes from `encode` alone always is.
            first, *others = encoded.sequences
            kept.append([replace(first, values={"answered": int(number < self.settings.validation_rows)}), *others])
            num_cut += encoded.cut_tokens + beyond > 0
            num_tokens_cut += encoded.cut_tokens + beyond
        examples = Rows(kept)
        return Built(examples, num_rows - num_skipped, int(examples.lengths(0).sum()), num_cut, num_tokens_cut,
                     num_rows_skipped=num_skipped)

    def _beyond(self, number: int, row: Mapping[str, Any]) -> int:
        """How many tokens of a row's target do not fit."""
        num_tokens = len(self.tokenizer.encode(references_of(row)[0])) + 1
        if num_tokens > self._target_tokens and self.settings.long_targets == "refuse":
            raise DataError(
                say(f"a target of {num_tokens} tokens, {self._target_tokens} fit",
                    f"目标有 {num_tokens} 个词元，最多容纳 {self._target_tokens} 个"),
                where=row_name(number),
                mend=say("raise task.max_target_tokens, or set task.long_targets to cut or skip",
                         "增大 task.max_target_tokens，或将 task.long_targets 设为 cut 或 skip"))
        return max(0, num_tokens - self._target_tokens)

    def objective(self) -> Objective:
        kind = sequence_to_sequence if self.settings.separator is None else language_modeling
        return kind(label_smoothing=self.settings.label_smoothing)

    # Answers --------------------------------------------------------------------------------------------

    def outputs(self, model: LanguageModel, batch: Batch) -> list[Any]:
        """The text said to each source; None for a row that is not answered while training."""
        flat = batch.first
        prompts = self._prompts(flat)
        wanted, sampling = list(range(len(prompts))), self.settings.generation.sampling(self._target_tokens)
        if "answered" in flat.values:
            wanted = flat.values["answered"].nonzero().squeeze(1).tolist()
            sampling = self.settings.generation.greedy(self._target_tokens)
        ends = frozenset([self.tokenizer.control["eos"]])
        banned = self.tokenizer.control_ids - ends  # an answer is text
        at_once = max(1, SCORES_AT_ONCE // (self.tokenizer.vocab_size * sampling.num_beams))
        answers: list[Any] = [None] * len(prompts)
        for first in range(0, len(wanted), at_once):
            some = wanted[first : first + at_once]
            found = generate(model, self.tokenizer, [prompts[index] for index in some], sampling, ends, banned)
            for index, [completion] in zip(some, found, strict=True):
                answers[index] = completion.text
        return answers

    def _prompts(self, flat: Flat) -> list[list[int]]:
        prompts: list[list[int]] = [ids_T.tolist() for ids_T in torch.split(flat.ids_M, list(flat.lengths))]
        if self.settings.separator is not None:
            learned = torch.split(flat.tokens["targets"] != IGNORED, list(flat.lengths))
            prompts = [ids[: said_T.tolist().index(True) + 1] if said_T.any() else ids
                       for ids, said_T in zip(prompts, learned, strict=True)]
        return prompts

    def decode(self, row: Mapping[str, Any], outputs: list[Any]) -> dict[str, Any]:
        [text] = outputs
        return {"output": text}

    def measure(self, rows: list[Mapping[str, Any]], outputs: list[list[Any]], seed: int) -> Measured:
        answered = [(row, text) for row, [text] in zip(rows, outputs, strict=True) if text is not None]
        return measured([text for _, text in answered], [references_of(row) for row, _ in answered],
                        self.settings.metrics, seed)

    def card(self) -> dict[str, Any]:
        return {**self.settings.model_dump(mode="json"), "lengths": self.lengths.model_dump(mode="json")}


def references_of(row: Mapping[str, Any]) -> list[str]:
    """A row's target, or its several targets. DataError where there is none."""
    target = row["target"]
    found = [str(each) for each in target] if isinstance(target, list) else [str(target)]
    if not found:
        raise DataError(say("a row without a target", "该行没有目标文本"), where="target",
                        mend=say("remove it", "请删除该行"))
    return found


def measured(texts: list[str], references: list[list[str]], metrics: Iterable[str], seed: int) -> Measured:
    """How near texts come to their references; BLEU's words are Chinese characters where the references are Chinese.

    With no text at all every figure is NaN. Raises MissingExtra without sacrebleu where BLEU or chrF is asked for.
    """
    if not texts:
        return Measured(0, dict.fromkeys(metric_names(metrics), Estimate(float("nan"), float("nan"), float("nan"))))
    chinese = script_of(" ".join(each for row in references for each in row)) == "zh"
    tokenize: Tokenize = "zh" if chinese else "13a"
    found: dict[str, Statistic] = {}
    signatures: dict[str, str] = {}
    for metric in metrics:
        if metric == "bleu":
            found["bleu"], signatures["bleu"] = bleu(texts, references, tokenize)
        elif metric == "chrf":
            found["chrf"], signatures["chrf"] = chrf(texts, references)
        else:
            found |= rouge([units(text) for text in texts], [[units(each) for each in row] for row in references])
            signatures["rouge"] = "f1|stem:no|refs:best|tok:han-characters+words|case:lower"
    estimates = {name: bootstrap(statistic, len(texts), seed) for name, statistic in found.items()}
    empty = sum(not text.strip() for text in texts)
    return Measured(len(texts), estimates, {"signatures": signatures, "empty_outputs": empty}, found)


def metric_names(metrics: Iterable[str]) -> list[str]:
    names = {"rouge": ("rouge1", "rouge2", "rougeL")}
    return [name for metric in metrics for name in names.get(metric, (metric,))]
