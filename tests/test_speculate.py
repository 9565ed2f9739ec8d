"""Guessing ahead changes how fast a text comes, and not one token of it."""

from __future__ import annotations

import random
from typing import get_args

import pytest
import torch

from tests import test_engine as at_hand
from wenmo import device
from wenmo.engine import Engine, EngineSettings, Request
from wenmo.engine.attend import products_keep_bits
from wenmo.engine.packed import Format
from wenmo.engine.request import activate
from wenmo.engine.speculate import PAUSE, PromptLookup, Speculation
from wenmo.errors import UsageError
from wenmo.generate import Sampling

tokenizer = at_hand.tokenizer


def prompts(number: int, seed: int) -> list[tuple[int, ...]]:
    """Of few tokens, so that their n-grams come again."""
    rng = random.Random(seed)
    return [tuple(rng.randrange(20, 26) for _ in range(rng.randint(1, 125))) for _ in range(number)]


def engine(made, tokenizer, speculate="prompt", draft=None, **given) -> Engine:
    settings = EngineSettings(speculate=speculate, **given)
    return Engine(at_hand.copy.deepcopy(made), tokenizer, settings, ends=at_hand.NO_ENDS, draft=draft)


def drafts(made):
    """The model itself, a little damaged: it is often right."""
    draft = at_hand.copy.deepcopy(made)
    generator = torch.Generator().manual_seed(0)
    for parameter in draft.parameters():
        parameter.data += 0.02 * parameter.data.abs().mean() * torch.randn(parameter.shape, generator=generator)
    return draft


def under_way(busy: Engine, requests: list[Request], seed: int) -> list[tuple[int, ...]]:
    """They come at different times; some others are cancelled in the middle."""
    rng = random.Random(seed)
    handles = []
    waiting = list(requests)
    while waiting or not all(handle.done.is_set() for handle in handles):
        for _ in range(min(len(waiting), rng.randint(0, 3))):
            request = waiting.pop(0)
            handles.append(busy.submit(request))
            if rng.random() < 0.1:
                busy.submit(request).cancel()
        busy.step()
    return [handle.result().ids for handle in handles]


@pytest.mark.parametrize("format", get_args(Format))
@pytest.mark.parametrize("way", ["prompt", "draft"])
def test_the_text_is_the_same(way, format, tokenizer) -> None:
    """55 prompts in each of five formats and two ways, with arrivals, cancelling, and memory that is taken away."""
    made = at_hand.model()
    requests = [Request(ids, Sampling(max_new_tokens=24)) for ids in prompts(55, seed=7)]
    plain = at_hand.engine(made, tokenizer, format=format).generate(requests)
    given = {} if way == "prompt" else {"speculate": {"draft": "given"}, "draft": drafts(made)}
    busy = engine(made, tokenizer, format=format, cache_tokens=640, **given)
    assert under_way(busy, requests, seed=8) == [done.ids for done in plain]
    assert busy.num_preempted > 0
    assert busy.speculation.num_accepted > 0.05 * busy.speculation.num_drafted > 5
    assert busy.slots.used_tokens == 0
    assert not busy.speculation._counts
    if way == "draft":
        assert busy.speculation.drafter.slots.used_tokens == 0


@pytest.mark.parametrize("kind", at_hand.SHAPES)
def test_every_shape_of_attention(kind, tokenizer) -> None:
    made = at_hand.model(kind)
    asked = prompts(6, seed=9)
    expected = at_hand.reference(made, tokenizer, asked, sampling := Sampling(max_new_tokens=20))
    busy = engine(made, tokenizer)
    assert under_way(busy, [Request(ids, sampling) for ids in asked], seed=1) == expected
    assert busy.speculation.num_accepted > 0


def test_draws_penalties_and_probabilities_too(tokenizer) -> None:
    """Each place is chosen as without guesses: with the same random number, penalty, and log-probability."""
    made = at_hand.model()
    for sampling in (Sampling(max_new_tokens=20, temperature=0.3, seed=3),
                     Sampling(max_new_tokens=20, repetition_penalty=1.2, logprobs=2),
                     Sampling(max_new_tokens=20, no_repeat_ngram_size=4, stop=("zz",))):
        requests = [Request(ids, sampling) for ids in prompts(8, seed=10)]
        plain = at_hand.engine(made, tokenizer).generate(requests)
        assert engine(made, tokenizer).generate(requests) == plain
        assert engine(made, tokenizer, {"draft": "given"}, drafts(made)).generate(requests) == plain


def test_a_good_guesser_saves_steps(tokenizer) -> None:
    made = at_hand.model()
    busy = engine(made, tokenizer, {"draft": "given"}, at_hand.copy.deepcopy(made), speculate_tokens=7)
    handle = busy.submit(Request((20, 30, 40), Sampling(max_new_tokens=64)))
    steps = 0
    while not handle.done.is_set():
        busy.step()
        steps += 1
    assert steps <= 12  # 1 with the prompt, 5 tokens, then 8 a step
    assert busy.speculation.num_accepted == busy.speculation.num_drafted > 50


def test_look_up(tokenizer) -> None:
    handle = at_hand.engine(at_hand.model(), tokenizer).submit(Request((1,), Sampling()))

    def guesses(context: list[int], number: int) -> list[int]:
        active = activate(handle, 1, tuple(context[:2]), tokenizer, 10)
        lookup = PromptLookup()
        lookup.propose([(active, number)])
        active.context.extend(context[2:])
        return lookup.propose([(active, number)])[0]

    assert guesses([1, 2, 3, 7, 8, 5, 1, 2, 3], 3) == [7, 8, 5]
    assert guesses([1, 2, 3, 4, 1, 2, 3, 9, 1, 2, 3], 2) == [9, 1]  # the last time counts
    assert guesses([9, 2, 3, 4, 1, 2, 3], 2) == [4, 1]  # two tokens of three
    assert guesses([5, 6, 5, 6, 5, 6], 5) == [5, 6, 5, 6, 5]
    assert guesses([1, 2, 3, 4, 5], 4) == []


def test_how_many_are_guessed(tokenizer) -> None:
    class Asked:
        def propose(self, asked):
            self.numbers = [number for _, number in asked]
            return [[1] * number for number in self.numbers]

        def forget(self, active) -> None: ...

    drafter = Asked()
    speculation = Speculation(drafter, most_tokens=8)
    handle = at_hand.engine(at_hand.model(), tokenizer).submit(Request((1,), Sampling()))
    active = activate(handle, 1, (1,), tokenizer, 100)

    def number(true: int) -> int:
        guessed = speculation.propose([(active, 100)]).get(active, [])
        if guessed:
            speculation.learn(active, len(guessed), true)
        return len(guessed)

    assert [number(4), number(8), number(3), number(0), number(0)] == [4, 8, 8, 3, 1]
    assert [number(0) for _ in range(PAUSE + 1)] == [0] * (PAUSE + 1)
    assert number(1) == 1
    assert speculation.num_accepted == 16
    speculation.propose([(activate(handle, each, (1,), tokenizer, 100), 100) for each in range(14)])
    assert drafter.numbers == [2]  # 16 rows in all


def test_what_cannot_guess_is_refused(tokenizer) -> None:
    with pytest.raises(UsageError, match=r"draft|草稿"):
        engine(at_hand.model(), tokenizer, {"draft": "missing"})


def test_products_are_taken_where_they_keep_bits() -> None:
    """A guard against a quiet fall back: on processors with bf16 the fast way was found to hold."""
    if not device.has_native_bf16(torch.device("cpu")):
        pytest.skip("this processor has no bf16")
    assert products_keep_bits(9, 64, 3)
    assert not products_keep_bits(4, 16, 1)  # too small: torch multiplies one row of it in another way
