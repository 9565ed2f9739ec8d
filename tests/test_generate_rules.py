"""What may come next: transformers' processors are the oracle; whatever is set acts, or is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from oracle import VOCAB, ours, theirs
from wenmo.generate import Completion, Sampling, adjust, choose, generate, probabilities
from wenmo.text import tokenizer_training
from wenmo.text.tokenizer import Tokenizer
from wenmo.text.tokenizer_training import TokenizerSettings

PROMPTS = [[5, 6, 7, 5, 6], [8], [9, 9, 10, 11, 9, 9, 10]]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tokenizer_training.train(["abcdefgh"], TokenizerSettings(vocab_size=260))


@pytest.fixture(scope="module")
def llamas() -> tuple[nn.Module, nn.Module]:
    them = theirs("LlamaForCausalLM", max_position_embeddings=512)
    return them, ours(them, {"causal_lm": 0})


def made(llamas: tuple[nn.Module, nn.Module], tokenizer: Tokenizer, ends: frozenset[int] = frozenset(),
         **sampling: Any) -> list[Completion]:
    """One continuation for each of PROMPTS."""
    return [row[0] for row in generate(llamas[1], tokenizer, PROMPTS, Sampling(**sampling), ends)]


# Against transformers ---------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(context=st.lists(st.integers(0, 11), min_size=1, max_size=14), num_new=st.integers(0, 3),
       penalty=st.sampled_from([1.0, 0.5, 1.3, 2.0]), size=st.sampled_from([None, 1, 2, 3]),
       least=st.integers(0, 3), seed=st.integers(0, 999))
def test_rules_equal_transformers(context: list[int], num_new: int, penalty: float, size: int | None, least: int,
                                  seed: int) -> None:
    scores = torch.randn(1, 12, generator=torch.Generator().manual_seed(seed))
    num_new = min(num_new, len(context))
    ids, ends = torch.tensor([context]), [0, 7]
    theirs_list = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(penalty)])
    if size is not None:
        theirs_list.append(NoRepeatNGramLogitsProcessor(size))
    theirs_list.append(MinNewTokensLengthLogitsProcessor(len(context) - num_new, least, ends))
    expected = theirs_list(ids, scores.clone())[0]
    sampling = Sampling(repetition_penalty=penalty, no_repeat_ngram_size=size, min_new_tokens=least)
    before = scores.clone()
    torch.testing.assert_close(adjust(scores[0], context, num_new, sampling, frozenset(ends)), expected)
    assert torch.equal(scores, before)


def test_penalties_of_frequency_and_presence() -> None:
    """By OpenAI's rule: score − count · frequency − (count > 0) · presence, of what was written, not of the prompt."""
    scores, context = torch.randn(9, generator=torch.Generator().manual_seed(0)), [1, 2, 5, 5, 3, 5]
    found = adjust(scores, context, 4, Sampling(frequency_penalty=0.5, presence_penalty=-0.25), frozenset())
    expected = [score - 0.5 * context[2:].count(id) + 0.25 * (id in context[2:]) for id, score in
                enumerate(scores.tolist())]
    assert found.tolist() == pytest.approx(expected)
    assert torch.equal(adjust(scores, context, 0, Sampling(frequency_penalty=2.0), frozenset()), scores)


@pytest.mark.parametrize("changes", [{"temperature": 5e-324}, {"temperature": 1.0, "top_p": 5e-324},
                                     {"temperature": 5e-324, "top_k": 3, "min_p": 1.0}], ids=str)
def test_the_smallest_settings_leave_the_likeliest_token(changes: dict[str, Any]) -> None:
    scores = torch.randn(500, generator=torch.Generator().manual_seed(0)) * 100
    assert choose(scores, Sampling(**changes), torch.Generator().manual_seed(0)) == int(scores.argmax())


@pytest.mark.parametrize("top_p", [0.02, 0.5, 0.9, 0.9999])
@pytest.mark.parametrize("spread", [0.1, 3.0])
def test_a_nucleus_of_any_size(top_p: float, spread: float) -> None:
    """By definition, with the whole vocabulary in order, whether it is 2 or 29,000 tokens."""
    scores = torch.randn(30_000, generator=torch.Generator().manual_seed(0)) * spread
    ordered, index = scores.double().softmax(0).sort(descending=True)
    expected = set(index[ordered.cumsum(0) - ordered < top_p].tolist())
    found = probabilities(scores, Sampling(temperature=1.0, top_p=top_p))
    assert len(set(found.nonzero()[:, 0].tolist()) ^ expected) <= len(expected) // 1000  # fp32 at the very border
    torch.testing.assert_close(found[sorted(expected)[:99]], scores[sorted(expected)].softmax(0)[:99],
                               rtol=1e-3, atol=0)


@pytest.mark.parametrize("changes", [
    {"temperature": 1.0, "min_p": 0.1}, {"temperature": 2.0, "min_p": 0.3}, {"temperature": 0.5, "min_p": 0.0},
    {"temperature": 1.0, "min_p": 1.0}, {"temperature": 1.5, "top_k": 30, "top_p": 0.9, "min_p": 0.05},
], ids=str)
def test_min_p_equals_transformers(changes: dict[str, Any]) -> None:
    scores = torch.randn(50, 300, generator=torch.Generator().manual_seed(0)) * 3
    sampling = Sampling(**changes)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k is not None and sampling.top_p is not None:
        warpers += [TopKLogitsWarper(sampling.top_k), TopPLogitsWarper(sampling.top_p)]
    warpers.append(MinPLogitsWarper(sampling.min_p))
    expected = warpers(torch.zeros(50, 1, dtype=torch.long), scores.clone()).softmax(-1)
    got = torch.stack([probabilities(row, sampling) for row in scores])
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(got > 0, expected > 0)


@pytest.mark.parametrize("changes", [
    {"repetition_penalty": 1.8}, {"repetition_penalty": 0.6}, {"no_repeat_ngram_size": 2}, {"no_repeat_ngram_size": 1},
    {"min_new_tokens": 6}, {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "min_new_tokens": 9},
], ids=str)
def test_greedy_with_rules_equals_transformers(llamas: tuple[nn.Module, nn.Module], tokenizer: Tokenizer,
                                               changes: dict[str, Any]) -> None:
    eos = made(llamas, tokenizer, max_new_tokens=3)[0].ids[2]
    got = made(llamas, tokenizer, frozenset({eos}), max_new_tokens=20, **changes)
    config = GenerationConfig(max_new_tokens=20, do_sample=False, eos_token_id=eos, pad_token_id=eos, **changes)
    assert any(completion.ids != plain.ids for completion, plain in
               zip(got, made(llamas, tokenizer, frozenset({eos}), max_new_tokens=20), strict=True))
    for prompt, completion in zip(PROMPTS, got, strict=True):
        expected = llamas[0].generate(torch.tensor([prompt]), generation_config=config)[0, len(prompt):].tolist()
        assert [*completion.ids, eos][: len(expected)] == expected


# Properties -------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-30, 30), min_size=2, max_size=20), st.floats(0, 1), st.floats(0.1, 5))
def test_min_p_keeps_the_best_and_what_is_near_it(scores: list[float], min_p: float, temperature: float) -> None:
    given = torch.tensor(scores)
    chances = probabilities(given, Sampling(temperature=temperature, min_p=min_p))
    assert chances[given.argmax()] > 0
    assert float(chances.sum()) == pytest.approx(1, abs=1e-5)
    kept = chances[chances > 0]
    assert (kept >= min_p * kept.max() * (1 - 1e-5)).all()


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("changes", [{}, {"temperature": 1.5}, {"num_beams": 3}], ids=str)
def test_no_ngram_comes_twice(llamas: tuple[nn.Module, nn.Module], tokenizer: Tokenizer, size: int,
                              changes: dict[str, Any]) -> None:
    """Not even one of the prompt: what the prompt itself repeats may stand, nothing new may be added."""
    for prompt, completion in zip(PROMPTS, made(llamas, tokenizer, max_new_tokens=40, no_repeat_ngram_size=size,
                                                **changes), strict=True):
        ids = [*prompt, *completion.ids]
        ngrams = [tuple(ids[at : at + size]) for at in range(len(ids) - size + 1)]
        new = ngrams[max(0, len(prompt) - size + 1) :]
        assert all(ngrams.count(ngram) == 1 for ngram in new)


def test_when_nothing_may_follow_the_text_ends(llamas: tuple[nn.Module, nn.Module], tokenizer: Tokenizer) -> None:
    for changes in ({}, {"temperature": 1.0}):
        for prompt, done in zip(PROMPTS, made(llamas, tokenizer, max_new_tokens=200, no_repeat_ngram_size=1, **changes),
                                strict=True):
            assert sorted({*prompt, *done.ids}) == list(range(VOCAB))
            assert (len(done.ids), done.reason) == (VOCAB - len(set(prompt)), "stop")
    [[done]] = generate(llamas[1], tokenizer, [[5]], Sampling(num_beams=2, max_new_tokens=9), frozenset(),
                        frozenset(range(VOCAB)))
    assert (done.ids, done.reason) == ((), "stop")


def test_what_is_banned_never_comes(llamas: tuple[nn.Module, nn.Module], tokenizer: Tokenizer) -> None:
    [[free]] = generate(llamas[1], tokenizer, [[5]], Sampling(max_new_tokens=12), frozenset())
    banned = frozenset(free.ids[:3])
    for changes in ({}, {"temperature": 1.0}, {"num_beams": 3}):
        [[done]] = generate(llamas[1], tokenizer, [[5]], Sampling(max_new_tokens=12, **changes), frozenset(), banned)
        assert len(done.ids) == 12
        assert not banned & set(done.ids)


# Log-probabilities ------------------------------------------------------------------------------------


def test_logprobs_are_the_models_own(llamas: tuple[nn.Module, nn.Module], tokenizer: Tokenizer) -> None:
    """Whatever narrows or bends the choice; and asking for them changes no choice."""
    eos = made(llamas, tokenizer, max_new_tokens=3)[0].ids[2]
    bent = {"max_new_tokens": 12, "temperature": 1.7, "min_p": 0.01, "repetition_penalty": 1.5, "seed": 2}
    plain = made(llamas, tokenizer, frozenset({eos}), **bent)
    for prompt, done, alike in zip(PROMPTS, made(llamas, tokenizer, frozenset({eos}), **bent, logprobs=4), plain,
                                   strict=True):
        assert done.ids == alike.ids
        assert alike.logprobs is None
        assert done.logprobs is not None
        ids = [entry.id for entry in done.logprobs]
        assert ids == [*done.ids, *([eos] if len(done.ids) < 12 else [])]
        with torch.no_grad():
            own = llamas[0](torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 :].log_softmax(-1)
        for place, entry in enumerate(done.logprobs):
            assert entry.logprob == pytest.approx(float(own[place, entry.id]), abs=1e-4)
            best = own[place].topk(4)
            assert [id for id, _ in entry.top] == best.indices.tolist()
            assert [value for _, value in entry.top] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_logprobs_without_alternatives(llamas: tuple[nn.Module, nn.Module], tokenizer: Tokenizer) -> None:
    [done, *_] = made(llamas, tokenizer, max_new_tokens=4, logprobs=0)
    assert done.logprobs is not None
    assert [(entry.id, entry.top) for entry in done.logprobs] == [(id, ()) for id in done.ids]
    [greedy, *_] = made(llamas, tokenizer, max_new_tokens=4, logprobs=1)
    assert greedy.logprobs is not None
    assert [entry.top for entry in greedy.logprobs] == [((entry.id, entry.logprob),) for entry in greedy.logprobs]


# Settings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wrong", "message"), [
    ({"min_p": 0.1}, "temperature 0 draws nothing"), ({"top_p": 0.9, "top_k": 3}, "top_k, top_p narrows"),
    ({"num_beams": 3, "temperature": 1.0}, "one of the two"), ({"length_penalty": 2.0}, "in beam search only"),
    ({"early_stopping": True}, "in beam search only"), ({"num_beams": 2, "num_sequences": 3}, "2 beams cannot give 3"),
    ({"min_new_tokens": 9, "max_new_tokens": 8}, "above max_new_tokens"), ({"min_p": 1.5}, "min_p"),
    ({"repetition_penalty": 0.0}, "repetition_penalty"), ({"no_repeat_ngram_size": 0}, "no_repeat_ngram_size"),
    ({"num_beams": 0}, "num_beams"), ({"length_penalty": math.inf, "num_beams": 2}, "length_penalty"),
    ({"logprobs": -1}, "logprobs"), ({"early_stopping": "sometimes", "num_beams": 2}, "early_stopping"),
], ids=str)
def test_what_would_not_act_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Sampling(**wrong)


def test_one_forbidden_token_is_not_drawn_and_all_are_none() -> None:
    nothing = torch.full((5,), -math.inf)
    generator = torch.Generator().manual_seed(0)
    for sampling in (Sampling(), Sampling(temperature=1.0, top_p=0.5, min_p=0.1)):
        assert choose(nothing, sampling, generator) is None
        only = nothing.index_fill(0, torch.tensor([3]), -50.0)
        assert choose(only, sampling, generator) == 3
