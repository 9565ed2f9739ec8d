"""Likelihood: how a model does at predicting tokens, whichever task asks it to.

In: hidden states and the targets beside them, of whole sequences. Out: a `Likelihood` for each sequence, the answer to
a row made of several, metrics over many rows. Language modelling and the tasks from text to text share it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wenmo.data.sequence import Flat
from wenmo.metrics import Estimate, bits_per_byte, bits_per_character, bootstrap, perplexity
from wenmo.metrics.comparison import Statistic, row_ratio
from wenmo.models import LanguageModel, logits
from wenmo.nn.cross_entropy import IGNORED, rows_at_once
from wenmo.tasks.task import Measured

FEW = 20  # rows: of fewer the interval resamples windows


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Of one sequence's predicted tokens: their summed -log P, number, how many were guessed, and their text's size."""

    nll_nats: float
    num_tokens: int
    num_right: int
    num_characters: int = 0
    num_bytes: int = 0


def likelihoods(model: LanguageModel, hidden_MD: Tensor, flat: Flat) -> list[Likelihood]:
    """One for each sequence of `flat`, over the positions with a target; their size where the batch has it."""
    targets_M = flat.tokens["targets"]
    learnt_X = (targets_M != IGNORED).nonzero().squeeze(1)
    nll_M = torch.zeros(len(targets_M))
    right_M = torch.zeros(len(targets_M))
    for part_X in torch.split(learnt_X, rows_at_once(len(model.lm_output()[0]))):
        scores_XV = logits(model, hidden_MD[part_X])
        nll_M[part_X.cpu()] = F.cross_entropy(scores_XV, targets_M[part_X], reduction="none").cpu()
        right_M[part_X.cpu()] = (scores_XV.argmax(1) == targets_M[part_X]).float().cpu()
    counted_M = (targets_M != IGNORED).cpu()
    parts = [torch.split(each_M, list(flat.lengths)) for each_M in (nll_M, right_M, counted_M)]
    sizes = [flat.values[name].tolist() if name in flat.values else [0] * len(flat.lengths)
             for name in ("num_characters", "num_bytes")]
    return [Likelihood(float(nll.double().sum()), int(counted.sum()), int(right.sum()), characters, num_bytes)
            for nll, right, counted, characters, num_bytes in zip(*parts, *sizes, strict=True)]


def answer(windows: Sequence[Likelihood]) -> dict[str, Any]:
    """Of one row, all its windows together."""
    nll, tokens = sum(window.nll_nats for window in windows), sum(window.num_tokens for window in windows)
    mean = nll / tokens if tokens else math.inf
    return {"log_likelihood": -nll, "tokens": tokens, "perplexity": math.exp(mean) if mean < 700 else None}


def measured(outputs: Sequence[Sequence[Likelihood]], seed: int, *, accuracy: str | None) -> Measured:
    """Perplexity per predicted token; the share of them that were guessed, under the name `accuracy`, or for None bits
    per character and per byte of their text.

    The interval resamples rows, or windows where a few long rows are all there is.
    """
    groups = outputs if len(outputs) >= FEW else [[window] for windows in outputs for window in windows]
    groups = [group for group in groups if sum(window.num_tokens for window in group)]

    def sums(name: str) -> np.ndarray:
        return np.asarray([sum(getattr(window, name) for window in group) for group in groups], float)

    nll, tokens = sums("nll_nats"), sums("num_tokens")
    metrics: dict[str, Estimate] = {"perplexity": perplexity(nll, tokens, seed)}
    details = {"tokens": int(tokens.sum()), "windows": sum(map(len, outputs))}
    if accuracy is not None:
        right = sums("num_right")
        metrics[accuracy] = bootstrap(lambda rows: right[rows].sum(1) / tokens[rows].sum(1), len(groups), seed)
    else:
        characters, num_bytes = sums("num_characters"), sums("num_bytes")
        metrics["bits_per_character"] = bits_per_character(nll, characters, seed)
        metrics["bits_per_byte"] = bits_per_byte(nll, num_bytes, seed)
        details |= {"characters": int(characters.sum()), "bytes": int(num_bytes.sum())}
    return Measured(len(outputs), metrics, details, _statistics(outputs, accuracy))


def _statistics(outputs: Sequence[Sequence[Likelihood]], accuracy: str | None) -> dict[str, Statistic]:
    """The metrics as functions of the rows drawn. Perplexities are not compared: they depend on the tokens."""
    def sums(name: str) -> np.ndarray:
        return np.asarray([sum(getattr(window, name) for window in windows) for windows in outputs], float)

    if accuracy is not None:
        return {accuracy: row_ratio(sums("num_right"), sums("num_tokens"))}
    bits = sums("nll_nats") / math.log(2)
    return {"bits_per_character": row_ratio(bits, sums("num_characters")),
            "bits_per_byte": row_ratio(bits, sums("num_bytes"))}
