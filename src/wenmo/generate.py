"""Generating text: the plain reference. Greedy, temperature, top-k, top-p, seeds, stop strings, several sequences.

In: prompts as ids, and a Sampling. Out: a stream of new tokens, or whole completions. Every continuation draws from
its own random numbers, keyed by (seed, the prompt's ids, sample): neither the others beside it nor its place among
them change it. A prompt that stands twice is continued alike; `num_sequences` gives different ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from wenmo import device
from wenmo.config import Count, Settings
from wenmo.errors import NumericsError, UsageError, say
from wenmo.models import LanguageModel, logits
from wenmo.nn.attend import Cache
from wenmo.text.tokenizer import Tokenizer

Reason = Literal["stop", "length"]


class Sampling(Settings):
    """How the next token is chosen. temperature 0 is greedy; top_k and top_p narrow what may be drawn."""

    max_new_tokens: Count = Field(128, gt=0)
    temperature: float = Field(0.0, ge=0)
    top_k: Count | None = Field(None, gt=0)  # Fan et al. 2018, §5.4
    top_p: float | None = Field(None, gt=0, le=1)  # Holtzman et al. 2020, §3.1
    seed: int = 0
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    num_sequences: int = Field(1, ge=1)


@dataclass(frozen=True)
class Completion:
    """`reason`: "stop" for end of text or a stop string (which is cut off), "length" for a limit. `text` is what
    the ids say, up to the stop string and without a character that the end cut in two."""

    text: str
    ids: tuple[int, ...]
    reason: Reason


@dataclass(frozen=True)
class Piece:
    """New text of one continuation, whole characters only; the last piece of it carries the completion."""

    prompt: int
    sample: int
    text: str
    completion: Completion | None = None


def choose(scores_V: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """One token id from fp32 scores of the vocabulary."""
    if sampling.temperature == 0:
        return int(scores_V.argmax())
    return int(torch.multinomial(probabilities(scores_V, sampling), 1, generator=generator))


def probabilities(scores_V: Tensor, sampling: Sampling) -> Tensor:
    """softmax(scores / temperature), what top-k and top-p leave of it, renormalised: [V]."""
    scores_V = scores_V / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < scores_V.numel():
        lowest = scores_V.topk(sampling.top_k).values[-1]
        scores_V = scores_V.masked_fill(scores_V < lowest, float("-inf"))
    if sampling.top_p is not None and sampling.top_p < 1:
        ordered, index = scores_V.sort(descending=True)
        chances = ordered.softmax(0)
        beyond = chances.cumsum(0) - chances >= sampling.top_p  # mass before it already reaches p
        scores_V = scores_V.masked_fill(torch.zeros_like(beyond).scatter(0, index, beyond), float("-inf"))
    return scores_V.softmax(0)


class _Continuation:
    """One continuation as it grows: its ids, the text shown so far, and whether a stop string has come."""

    def __init__(self, prompt: int, ids: Sequence[int], sample: int, room: int, tokenizer: Tokenizer,
                 sampling: Sampling) -> None:
        self.prompt, self.sample, self.room, self.sampling = prompt, sample, room, sampling
        self.generator = device.torch_rng("generate", sampling.seed, " ".join(map(str, ids)), sample)
        self.decoder = tokenizer.stream()
        self.ids: list[int] = []
        self.text, self.shown = "", 0
        self.reason: Reason | None = None

    def push(self, token: int, ends: frozenset[int]) -> Piece:
        """Takes one token; what is certain of its text becomes visible."""
        if token in ends:
            self.reason = "stop"
        else:
            self.ids.append(token)
            self.text += self.decoder.push(token)
            if len(self.ids) >= self.room:
                self.reason = "length"
        if self.reason is not None:
            self.text += self.decoder.finish().rstrip("\ufffd")
        cut = min((at for at in (self.text.find(stop) for stop in self.sampling.stop) if at >= 0), default=-1)
        if cut >= 0:
            self.text, self.reason = self.text[:cut], "stop"
        held = 0 if self.reason is not None else self._could_begin_a_stop()
        new, self.shown = self.text[self.shown : len(self.text) - held], len(self.text) - held
        done = None if self.reason is None else Completion(self.text, tuple(self.ids), self.reason)
        return Piece(self.prompt, self.sample, new, done)

    def _could_begin_a_stop(self) -> int:
        """How many characters at the end might be the start of a stop string, and must not be shown yet."""
        longest = max((len(stop) for stop in self.sampling.stop), default=0)
        for length in range(min(longest - 1, len(self.text)), 0, -1):
            if any(stop.startswith(self.text[-length:]) for stop in self.sampling.stop):
                return length
        return 0


def stream(model: LanguageModel, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], sampling: Sampling,
           ends: frozenset[int]) -> Iterator[Piece]:
    """Pieces of all continuations as they come. `ends`: ids that end a text. The model must be in eval mode.

    Raises UsageError for an empty prompt or one that leaves no room, NumericsError for scores that are no numbers.
    """
    rows: list[_Continuation] = []
    for index, prompt in enumerate(prompts):
        room = _room(index, len(prompt), model.config.max_tokens, sampling)
        rows += [_Continuation(index, prompt, sample, room, tokenizer, sampling)
                 for sample in range(sampling.num_sequences)]
    lengths = [len(prompts[row.prompt]) for row in rows]
    cache = Cache(len(rows), max((length + row.room for length, row in zip(lengths, rows, strict=True)), default=0))
    ids = [token for row in rows for token in prompts[row.prompt]]
    counts = lengths
    while rows:
        with torch.inference_mode():
            weight, _ = model.lm_output()
            attend = cache.extend(counts, weight.device)
            hidden_MD = model.body(torch.tensor(ids, device=weight.device), attend.positions_M, attend)
            last_B = (torch.tensor(counts).cumsum(0) - 1).to(weight.device)
            scores_BV = logits(model, hidden_MD[last_B]).cpu()
        if scores_BV.isnan().any():
            raise NumericsError(
                say("the model's scores are not numbers (NaN)", "模型输出的分数不是数（NaN）"),
                mend=say("its weights are damaged, or its training diverged: use an earlier checkpoint",
                         "权重已损坏或训练已发散：请使用更早的检查点"))
        going: list[int] = []
        tokens = [choose(scores, sampling, row.generator) for scores, row in zip(scores_BV, rows, strict=True)]
        for index, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            piece = row.push(token, ends)
            if piece.completion is None:
                going.append(index)
            if piece.text or piece.completion is not None:
                yield piece
        if len(going) < len(rows) and going:
            cache.keep(going)
        ids, counts = [tokens[index] for index in going], [1] * len(going)
        rows = [rows[index] for index in going]


def _room(index: int, num_tokens: int, longest: int | None, sampling: Sampling) -> int:
    """How many tokens may follow a prompt. Raises UsageError."""
    if num_tokens and (longest is None or num_tokens < longest):
        return sampling.max_new_tokens if longest is None else min(sampling.max_new_tokens, longest - num_tokens)
    raise UsageError(
        say(f"a prompt of {num_tokens} tokens leaves no room" if num_tokens else "an empty prompt",
            f"提示有 {num_tokens} 个词元，没有余地继续生成" if num_tokens else "提示为空"),
        where=say(f"prompt {index}", f"第 {index} 个提示"),
        mend=say("give at least one token", "请至少给出一个词元") if longest is None
        else say(f"give 1 to {longest - 1} tokens", f"请给出 1 到 {longest - 1} 个词元"))


def generate(model: LanguageModel, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], sampling: Sampling,
             ends: frozenset[int]) -> list[list[Completion]]:
    """For each prompt its `num_sequences` completions."""
    results: dict[tuple[int, int], Completion] = {}
    for piece in stream(model, tokenizer, prompts, sampling, ends):
        if piece.completion is not None:
            results[piece.prompt, piece.sample] = piece.completion
    return [[results[index, sample] for sample in range(sampling.num_sequences)] for index in range(len(prompts))]
