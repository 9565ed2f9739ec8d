"""How the next token is chosen: settings, what changes the scores, what is drawn.

In: fp32 scores of the vocabulary, [V], and the ids so far. Out: one id. The order is transformers': repetition
penalty, n-grams, minimum length; then, where tokens are drawn, temperature, top-k, top-p, min-p.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from wenmo.config import Count, Settings
from wenmo.errors import NumericsError, say


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
    frequency_penalty: float = Field(0.0, ge=-2, le=2)  # for each time that a token was written (OpenAI's API)
    presence_penalty: float = Field(0.0, ge=-2, le=2)  # once for each token that was written
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
    positive scores of tokens that stand in it and multiplies negative ones; those of frequency and presence are taken
    off the scores of tokens that were generated. `banned`: ids that are never chosen.
    """
    forbidden = list(banned)
    if sampling.repetition_penalty != 1.0:
        seen_X = torch.tensor(sorted(set(context)))
        seen = scores_V[seen_X]
        penalty = sampling.repetition_penalty
        scores_V = scores_V.scatter(0, seen_X, torch.where(seen < 0, seen * penalty, seen / penalty))
    if num_new and (sampling.frequency_penalty or sampling.presence_penalty):
        counts = Counter(context[len(context) - num_new :])
        taken_X = [sampling.frequency_penalty * count + sampling.presence_penalty for count in counts.values()]
        scores_V = scores_V.index_add(0, torch.tensor(list(counts)), -torch.tensor(taken_X))
    if sampling.no_repeat_ngram_size is not None:
        forbidden += repeating(context, sampling.no_repeat_ngram_size)
    if num_new < sampling.min_new_tokens:
        forbidden += ends
    if forbidden:
        scores = scores_V.numpy(force=True).copy()  # by numpy: a fraction of what torch takes for one row
        scores[forbidden] = -math.inf
        scores_V = torch.from_numpy(scores).to(scores_V.device)
    return scores_V


def repeating(context: Sequence[int], size: int) -> list[int]:
    """The ids that would complete an n-gram of `size` tokens which already stands in `context`."""
    if len(context) < size:
        return []
    begun = list(context[len(context) - size + 1 :])
    return [context[start + size - 1] for start in range(len(context) - size + 1)
            if list(context[start : start + size - 1]) == begun]


def choose(scores_V: Tensor, sampling: Sampling, generator: torch.Generator) -> int | None:
    """One token id from fp32 scores of the vocabulary; None where all are forbidden. A draw takes one random number.

    Raises NumericsError for scores that are no numbers.
    """
    scores = scores_V.numpy(force=True)
    likeliest = int(scores.argmax())  # the first NaN, if there is one; a tenth of the time that torch takes
    best = float(scores[likeliest])
    if math.isnan(best):
        raise no_numbers()
    if best == -math.inf:
        return None
    if sampling.temperature == 0:
        return likeliest
    ids_X, chances_X = candidates(scores_V, sampling)
    until_X = chances_X.double().cumsum(0)
    total = float(until_X[-1])
    drawn = float(torch.rand((), dtype=torch.float64, generator=generator)) * total
    place = int(torch.searchsorted(until_X, min(drawn, math.nextafter(total, 0.0)), right=True))
    return place if ids_X is None else int(ids_X[place])


def no_numbers() -> NumericsError:
    return NumericsError(
        say("the model's scores are not numbers (NaN)", "模型输出的分数不是数（NaN）"),
        mend=say("its weights are damaged, or its training diverged: use an earlier checkpoint",
                 "权重已损坏或训练已发散：请使用更早的检查点"))


def probabilities(scores_V: Tensor, sampling: Sampling) -> Tensor:
    """softmax(scores / temperature), what top-k, top-p and min-p leave of it, renormalised: [V]."""
    ids_X, chances_X = candidates(scores_V, sampling)
    return chances_X if ids_X is None else torch.zeros_like(scores_V).scatter(0, ids_X, chances_X)


def candidates(scores_V: Tensor, sampling: Sampling) -> tuple[Tensor | None, Tensor]:
    """The ids that may be drawn (None: all, in their order) and their probabilities: `probabilities` without the many
    zeros, and without putting a whole vocabulary in order."""
    scores_X = scores_V / max(sampling.temperature, _COLDEST)
    ids_X: Tensor | None = None
    if sampling.top_k is not None and sampling.top_k < scores_V.numel():
        lowest = scores_X.topk(sampling.top_k).values[-1]
        ids_X = (scores_X >= lowest).nonzero()[:, 0]  # with those that are equal to the last
        scores_X = scores_X[ids_X]
    if sampling.top_p is not None and sampling.top_p < 1:
        inside_X = _nucleus(scores_X.softmax(0), sampling.top_p)
        ids_X = inside_X if ids_X is None else ids_X[inside_X]
        scores_X = scores_X[inside_X]
    chances_X = scores_X.softmax(0)
    if sampling.min_p is not None:
        kept_X = (chances_X >= sampling.min_p * chances_X.amax()).nonzero()[:, 0]
        ids_X = kept_X if ids_X is None else ids_X[kept_X]
        chances_X = chances_X[kept_X] / chances_X[kept_X].sum()
    return ids_X, chances_X


def _nucleus(chances_X: Tensor, top_p: float) -> Tensor:
    """Places of the likeliest, as few as reach `top_p` together. The mass is mostly in a few: those are looked at
    first."""
    count = min(_FEW, chances_X.numel())
    while True:
        ordered, index = chances_X.topk(count)
        before = ordered.double().cumsum(0) - ordered
        if count == chances_X.numel() or before[-1] >= top_p:
            inside = before < top_p
            inside[0] = True  # even of a top_p that is next to nothing
            return index[inside]
        count = min(count * 16, chances_X.numel())


_FEW = 256
_COLDEST = 1e-6  # below it scores would no longer be finite; the likeliest token has all the chances before that
