"""How the next token is chosen: settings, what changes the scores, what is drawn.

In: fp32 scores of the vocabulary, [V], and the ids so far. Out: one id. The order is transformers': repetition
penalty, n-grams, minimum length; then, where tokens are drawn, temperature, top-k, top-p, min-p.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from wenmo.config import Count, Settings
from wenmo.errors import say


class Sampling(Settings):
    """How a text is continued. temperature 0 is greedy; above it tokens are drawn, from what top_k, top_p and min_p
    leave; num_beams above 1 searches for the likeliest text. A setting that would do nothing is refused."""

    max_new_tokens: Count = Field(128, gt=0)
    min_new_tokens: Count = 0  # before that many no end of text; a stop string still ends it
    temperature: float = Field(0.0, ge=0, allow_inf_nan=False)
    top_k: Count | None = Field(None, gt=0)  # Fan et al. 2018, §5.4
    top_p: float | None = Field(None, gt=0, le=1)  # Holtzman et al. 2020, §3.1
    min_p: float | None = Field(None, ge=0, le=1)  # Nguyen et al. 2024, §3
    repetition_penalty: float = Field(1.0, gt=0, allow_inf_nan=False)  # Keskar et al. 2019, §4.1
    no_repeat_ngram_size: Count | None = Field(None, gt=0)  # Paulus et al. 2018, §2.5
    num_beams: int = Field(1, ge=1)
    length_penalty: float = Field(1.0, ge=-10, le=10)  # beams: log-probability / tokens^penalty
    early_stopping: bool | Literal["never"] = False  # beams: see search.py
    seed: int = 0
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    num_sequences: int = Field(1, ge=1)
    logprobs: Count | None = None  # so many alternatives beside each token's log-probability; 0: the token's alone

    @model_validator(mode="after")
    def _each_setting_acts(self) -> Sampling:
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(say(f"min_new_tokens {self.min_new_tokens} is above max_new_tokens {self.max_new_tokens}",
                                 f"min_new_tokens {self.min_new_tokens} 大于 max_new_tokens {self.max_new_tokens}"))
        narrowing = [name for name in ("top_k", "top_p", "min_p") if getattr(self, name) is not None]
        if self.num_beams > 1 and self.temperature > 0:
            raise ValueError(say("num_beams searches and temperature draws: give one of the two",
                                 "num_beams 是搜索，temperature 是抽样：请二选一"))
        if self.temperature == 0 and narrowing:
            raise ValueError(say(f"{', '.join(narrowing)} narrows what is drawn, and temperature 0 draws nothing: "
                                 "give a temperature, for example 1",
                                 f"{'、'.join(narrowing)} 只限制抽样的范围，而 temperature 为 0 时不抽样："
                                 "请给出温度，例如 1"))
        of_beams = [name for name in ("length_penalty", "early_stopping")
                    if getattr(self, name) != type(self).model_fields[name].default]
        if self.num_beams == 1 and of_beams:
            raise ValueError(say(f"{', '.join(of_beams)} acts in beam search only: give num_beams, for example 4",
                                 f"{'、'.join(of_beams)} 只在集束搜索中起作用：请给出 num_beams，例如 4"))
        if 1 < self.num_beams < self.num_sequences:
            raise ValueError(say(f"{self.num_beams} beams cannot give {self.num_sequences} sequences",
                                 f"{self.num_beams} 束无法给出 {self.num_sequences} 条序列"))
        return self


def adjust(scores_V: Tensor, context: Sequence[int], num_new: int, sampling: Sampling, ends: frozenset[int],
           banned: frozenset[int] = frozenset()) -> Tensor:
    """Scores under the rules that hold however a token is chosen: [V]. A forbidden token has -inf.

    context: all ids that the model has read as its own text, the last `num_new` of them generated. The penalty divides
    positive scores of tokens that stand in it and multiplies negative ones. `banned`: ids that are never chosen.
    """
    forbidden = list(banned)
    if sampling.repetition_penalty != 1.0:
        seen_X = torch.tensor(sorted(set(context)))
        seen = scores_V[seen_X]
        penalty = sampling.repetition_penalty
        scores_V = scores_V.scatter(0, seen_X, torch.where(seen < 0, seen * penalty, seen / penalty))
    if sampling.no_repeat_ngram_size is not None:
        forbidden += repeating(context, sampling.no_repeat_ngram_size)
    if num_new < sampling.min_new_tokens:
        forbidden += ends
    if forbidden:
        scores_V = scores_V.index_fill(0, torch.tensor(forbidden), -math.inf)
    return scores_V


def repeating(context: Sequence[int], size: int) -> list[int]:
    """The ids that would complete an n-gram of `size` tokens which already stands in `context`."""
    if len(context) < size:
        return []
    begun = list(context[len(context) - size + 1 :])
    return [context[start + size - 1] for start in range(len(context) - size + 1)
            if list(context[start : start + size - 1]) == begun]


def choose(scores_V: Tensor, sampling: Sampling, generator: torch.Generator) -> int | None:
    """One token id from fp32 scores of the vocabulary; None where all are forbidden."""
    if scores_V.max() == -math.inf:
        return None
    if sampling.temperature == 0:
        return int(scores_V.argmax())
    return int(torch.multinomial(probabilities(scores_V, sampling), 1, generator=generator))


def probabilities(scores_V: Tensor, sampling: Sampling) -> Tensor:
    """softmax(scores / temperature), what top-k, top-p and min-p leave of it, renormalised: [V]."""
    scores_V = scores_V / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < scores_V.numel():
        lowest = scores_V.topk(sampling.top_k).values[-1]
        scores_V = scores_V.masked_fill(scores_V < lowest, -math.inf)
    if sampling.top_p is not None and sampling.top_p < 1:
        ordered, index = scores_V.sort(descending=True)
        chances = ordered.softmax(0)
        beyond = chances.cumsum(0) - chances >= sampling.top_p  # mass before it already reaches p
        scores_V = scores_V.masked_fill(torch.zeros_like(beyond).scatter(0, index, beyond), -math.inf)
    chances_V = scores_V.softmax(0)
    if sampling.min_p is not None:
        chances_V = chances_V.masked_fill(chances_V < sampling.min_p * chances_V.max(), 0.0)
        chances_V = chances_V / chances_V.sum()
    return chances_V
