"""Beam search: the likeliest whole text, instead of the likeliest next token.

In: prompts as ids, and a Sampling with num_beams above 1. Out: for each prompt its best completions, best first. At
each step every beam is continued by every token; of all these the best num_beams go on, and those that end compete by

    score = Σ log P(x_t | x_<t) / T^length_penalty                (T tokens, an end of text included)

so that a length_penalty above 0 favours longer texts. `early_stopping`, as in transformers: True ends as soon as
num_beams texts have ended; False, when the best beam that goes on, were it to end now, would be worse than all of
those; "never" gives it the length that suits it best before giving it up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wenmo.generate.completion import Completion, Continuation, Logprob, logprob_of
from wenmo.generate.decoder import Decoder
from wenmo.generate.sampling import Sampling, adjust
from wenmo.models import LanguageModel
from wenmo.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class _Beam:
    """New ids (an end of text among them), the sum of their log-probabilities, and an entry for each if asked for."""

    ids: tuple[int, ...] = ()
    total: float = 0.0
    logprobs: tuple[Logprob, ...] = ()


@dataclass(frozen=True)
class _Rules:
    """What all beams of one call share."""

    sampling: Sampling
    tokenizer: Tokenizer
    ends: frozenset[int]
    banned: frozenset[int]


class _Search:
    """The beams of one prompt: those that go on, best first, and the best that have ended, with their scores."""

    def __init__(self, rules: _Rules, start: Sequence[int], room: int) -> None:
        self.rules, self.start, self.room = rules, start, room
        self.going = [_Beam()]
        self.ended: list[tuple[float, _Beam]] = []

    def advance(self, scores_BV: Tensor) -> list[int]:
        """Continues the beams by one token, from the scores after each; which beams the new ones come from."""
        sampling, num_beams = self.rules.sampling, self.rules.sampling.num_beams
        own_BV = scores_BV.log_softmax(-1)
        allowed_BV = torch.stack([
            adjust(own_V, (*self.start, *beam.ids), len(beam.ids), sampling, self.rules.ends, self.rules.banned)
            for own_V, beam in zip(own_BV, self.going, strict=True)])
        totals_X = (allowed_BV + torch.tensor([beam.total for beam in self.going])[:, None]).flatten()
        # Enough that num_beams go on even if every beam ends in every possible way.
        num_candidates = max(2, 1 + len(self.rules.ends)) * num_beams
        best = totals_X.topk(min(num_candidates, totals_X.numel()))
        going: list[_Beam] = []
        parents: list[int] = []
        ended = list(self.ended)
        for rank, (total, place) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
            if total == -math.inf:
                break
            parent, token = divmod(place, own_BV.shape[1])
            old = self.going[parent]
            logprobs = old.logprobs
            if sampling.logprobs is not None:
                logprobs = (*logprobs, logprob_of(own_BV[parent], token, sampling.logprobs))
            beam = _Beam((*old.ids, token), total, logprobs)
            if self._ends(beam):
                if rank < num_beams:  # the candidates beyond are there to go on
                    ended.append((self._score(beam), beam))
            elif len(going) < num_beams:
                going.append(beam)
                parents.append(parent)
        if not going and not ended:  # every token is forbidden
            ended = [(self._score(beam), beam) for beam in self.going]
        self.ended = sorted(ended, key=lambda pair: -pair[0])[:num_beams]
        self.going = going
        if not self._may_improve():
            self.going, parents = [], []
        return parents

    def _ends(self, beam: _Beam) -> bool:
        return (beam.ids[-1] in self.rules.ends or len(beam.ids) >= self.room
                or (bool(self.rules.sampling.stop) and self._written(beam).reason is not None))

    def _may_improve(self) -> bool:
        """Whether a beam that goes on could still displace one that has ended."""
        sampling = self.rules.sampling
        if not self.going or len(self.ended) < sampling.num_beams:
            return bool(self.going)
        if sampling.early_stopping is True:
            return False
        at_its_best = sampling.early_stopping == "never" and sampling.length_penalty > 0
        hoped = self._score(self.going[0], self.room if at_its_best else None)
        return hoped > self.ended[-1][0]

    def _score(self, beam: _Beam, num_tokens: int | None = None) -> float:
        length = num_tokens or max(1, len(beam.ids))
        return beam.total / math.pow(length, self.rules.sampling.length_penalty)

    def _written(self, beam: _Beam) -> Continuation:
        written = Continuation(self.rules.tokenizer, self.rules.sampling.stop, self.room)
        for id in beam.ids:
            written.push(id, self.rules.ends)
        return written

    def completions(self) -> list[Completion]:
        """The best texts, best first."""
        result = []
        for score, beam in self.ended[: self.rules.sampling.num_sequences]:
            written = self._written(beam)
            if written.reason is None:  # nothing was allowed to follow
                written.push(None, self.rules.ends)
            assert written.reason is not None
            logprobs = None if self.rules.sampling.logprobs is None else beam.logprobs
            result.append(Completion(written.text, tuple(written.ids), written.reason, logprobs, score))
        return result


def search(model: LanguageModel, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], sampling: Sampling,
           ends: frozenset[int], banned: frozenset[int] = frozenset()) -> list[list[Completion]]:
    """For each prompt (for an encoder–decoder: source) its `num_sequences` best completions; as `stream` otherwise."""
    if not prompts:
        return []
    decoder = Decoder(model, prompts, sampling.max_new_tokens)
    rules = _Rules(sampling, tokenizer, ends, banned)
    searches = [_Search(rules, start, room) for start, room in zip(decoder.starts, decoder.rooms, strict=True)]
    new_ids = decoder.starts
    while new_ids:
        scores_BV = decoder.read(new_ids)
        rows: list[int] = []
        row = 0
        for beams in searches:
            num_going = len(beams.going)
            if num_going:
                rows += [row + parent for parent in beams.advance(scores_BV[row : row + num_going])]
            row += num_going
        if rows:
            decoder.keep(rows)
        new_ids = [list(beam.ids[-1:]) for beams in searches for beam in beams.going]
    return [beams.completions() for beams in searches]
