"""Speculation: the next tokens are guessed cheaply, and read all in one step; those that come true are kept.

In: the running requests and how many tokens may be guessed. Out: guesses, and what became of them. A guess is read as
one more row of the step over the same slot, and the engine chooses at each place as it would have anyway (greedily or
by the request's own random numbers, under its penalties and constraints): by the law of the engine the text is the
same, whatever was guessed (Leviathan et al. 2023, "Fast inference from transformers via speculative decoding", §2.3
proves as much for draws; here the choices themselves are equal).

    prompt          what followed the last tokens where they stood before, in the request's own ids (Saxena 2023)
    a draft model   what a smaller model of the same tokenizer would write, greedily
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

from wenmo.engine.attend import rounded
from wenmo.engine.packed import ROWS
from wenmo.engine.request import Active
from wenmo.engine.runner import Piece, Read, Runner
from wenmo.engine.slots import Layers, Slots, bytes_of_token

SPECULATIVE_ROWS = ROWS // 2  # a step of more rows than these is bound by arithmetic: guesses would cost what they give
FIRST = 4  # so many tokens are guessed at first
PAUSE = 16  # steps without a guess, after the only token guessed was wrong
NGRAM = 3  # tokens that are looked up, or else one fewer


class Drafter(Protocol):
    def propose(self, asked: Sequence[tuple[Active, int]]) -> list[list[int]]:
        """For each request at most so many tokens that may follow its context."""
        ...

    def forget(self, active: Active) -> None:
        """Frees what is kept for it."""
        ...


class Speculation:
    """How many tokens to guess for whom: twice as many after all came true, else as many as did."""

    def __init__(self, drafter: Drafter, most_tokens: int) -> None:
        self.drafter, self.most_tokens = drafter, most_tokens
        self.num_drafted = self.num_accepted = 0
        self._counts: dict[Active, int] = {}  # below 0: so many steps without

    def propose(self, asked: Sequence[tuple[Active, int]]) -> dict[Active, list[int]]:
        """asked: who writes, and how many tokens may be guessed for it. Guesses are for who has any."""
        left = SPECULATIVE_ROWS - len(asked)
        wanted: list[tuple[Active, int]] = []
        for active, most in asked:
            count = self._counts.setdefault(active, min(FIRST, self.most_tokens))
            if count <= 0:
                self._counts[active] = count + 1
            elif (number := min(count, most, left)) > 0:
                wanted.append((active, number))
                left -= number
        found = self.drafter.propose(wanted) if wanted else []
        return {active: ids for (active, _), ids in zip(wanted, found, strict=True) if ids}

    def learn(self, active: Active, num_drafted: int, num_accepted: int) -> None:
        self.num_drafted += num_drafted
        self.num_accepted += num_accepted
        if active not in self._counts:  # it has ended
            return
        if num_accepted == num_drafted:
            self._counts[active] = min(self.most_tokens, 2 * num_drafted)
        elif num_accepted == 0 and num_drafted == 1:
            self._counts[active] = -PAUSE
        else:
            self._counts[active] = max(1, num_accepted)

    def forget(self, active: Active) -> None:
        self._counts.pop(active, None)
        self.drafter.forget(active)


class PromptLookup:
    """What followed the last NGRAM tokens (or the last NGRAM − 1) where they stood last before."""

    def __init__(self) -> None:
        self._seen: dict[Active, dict[tuple[int, ...], int]] = {}  # n-gram → the place after it
        self._read: dict[Active, int] = {}

    def propose(self, asked: Sequence[tuple[Active, int]]) -> list[list[int]]:
        return [self._look_up(active, number) for active, number in asked]

    def _look_up(self, active: Active, number: int) -> list[int]:
        context, seen = active.context, self._seen.setdefault(active, {})
        for end in range(self._read.get(active, 1), len(context)):  # n-grams that something follows
            for size in (NGRAM, NGRAM - 1):
                if size <= end:
                    seen[tuple(context[end - size : end])] = end
        self._read[active] = len(context)
        for size in (NGRAM, NGRAM - 1):
            place = seen.get(tuple(context[-size:]))
            if place is not None:
                return self._from(context, place, number)
        return []

    def _from(self, context: Sequence[int], place: int, number: int) -> list[int]:
        """What stands from `place` on; where that reaches the end, it goes round (a text that repeats itself)."""
        period = len(context) - place
        return [context[place + step % period] for step in range(number)]

    def forget(self, active: Active) -> None:
        self._seen.pop(active, None)
        self._read.pop(active, None)


class DraftModel:
    """A smaller model with slots of its own. It reads what was decided since, and goes on greedily."""

    def __init__(self, runner: Runner, budget_tokens: int, longest: int) -> None:
        self.runner, self.budget_tokens, self.longest = runner, budget_tokens, longest
        self.slots = Slots(budget_tokens, longest)
        self._read: dict[Active, list[int]] = {}  # ids whose keys stand in its slot

    @cached_property
    def cache_bytes(self) -> int:
        """Of all keys and values that its slots may hold; found by reading a token."""
        layers = Layers()
        self.runner.read([Piece([0], 0, layers, self.runner.chunk_tokens)])
        return bytes_of_token(layers) * self.budget_tokens

    def propose(self, asked: Sequence[tuple[Active, int]]) -> list[list[int]]:
        drafts: dict[Active, list[int]] = {active: [] for active, _ in asked}
        behind = [(active, number) for active, number in asked if self._catch_up(active, number)]
        while behind:
            reads = [Read(active, len(self._read[active]),
                          [*active.context, *drafts[active]][len(self._read[active]) :]) for active, _ in behind]
            for read, scores_CV in zip(reads, self.runner.next_tokens(self.slots, reads), strict=True):
                self._read[read.active] += read.ids
                drafts[read.active].append(int(scores_CV[-1].argmax()))
            behind = [(active, number) for active, number in behind if len(drafts[active]) < number]
        return [drafts[active] for active, _ in asked]

    def _catch_up(self, active: Active, number: int) -> bool:
        """A slot with room for the guesses, holding the context but for a few tokens; False where there is none."""
        context, num_tokens = active.context, len(active.context) + number
        if active in self._read:
            read = self._read[active]
            while read and (len(read) >= len(context) or read[-1] != context[len(read) - 1]):
                read.pop()  # what was guessed wrong
            if self.slots.place[active][0].capacity >= num_tokens and len(context) - len(read) <= ROWS:
                return True
            self.forget(active)
        if not self.slots.fits(num_tokens) or not self.slots.admit(active, num_tokens):
            return False
        ids, size = context[:-1], self.runner.chunk_tokens
        if ids:
            layers = Layers()
            pieces = [Piece(ids[start : start + size], start, layers, rounded(len(ids) + size), "none")
                      for start in range(0, len(ids), size)]
            for first in range(0, len(pieces), self.runner.most_chunks):
                self.runner.read(pieces[first : first + self.runner.most_chunks])
            self.slots.fill(active, layers, len(ids))
        self._read[active] = list(ids)
        return True

    def forget(self, active: Active) -> None:
        if self._read.pop(active, None) is not None:
            self.slots.release(active)
