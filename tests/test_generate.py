"""Generating: transformers' tokens when greedy, its distributions when not; what is shown is whole and never a stop."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from oracle import LLAMAS, ours, theirs
from wenmo.errors import NumericsError, UsageError
from wenmo.generate import Completion, Piece, Sampling, choose, generate, probabilities, stream
from wenmo.generate import streaming as room
from wenmo.text import tokenizer_training
from wenmo.text.tokenizer import Tokenizer
from wenmo.text.tokenizer_training import TokenizerSettings

TEXT = "春天来了，天气渐渐暖和起来。The days are getting longer and warmer. 你好，世界！Hello, world! 😀"
NO_ENDS: frozenset[int] = frozenset()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Most Han characters are three byte tokens, some tokens hold one and a half."""
    return tokenizer_training.train([TEXT] * 3, TokenizerSettings(vocab_size=300))


def pair(**changes: Any) -> tuple[nn.Module, nn.Module]:
    them = theirs("LlamaForCausalLM", vocab_size=300, **changes)
    return them, ours(them, {"causal_lm": 0})


@pytest.fixture(scope="module")
def llamas() -> tuple[nn.Module, nn.Module]:
    return pair()


@pytest.fixture(scope="module")
def prompts(tokenizer: Tokenizer) -> list[list[int]]:
    texts = ("春天", "The days are", "你", "Hello, world! 春天来了", "a")
    return [tokenizer.encode(text) for text in texts]


def greedy_of_theirs(model: nn.Module, prompts: list[list[int]], num_tokens: int, eos: int | None) -> list[list[int]]:
    """Their new tokens for a batch padded on the left, without end and padding."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    config = GenerationConfig(max_new_tokens=num_tokens, do_sample=False, eos_token_id=eos, pad_token_id=0)
    out = model.generate(ids, attention_mask=mask, generation_config=config)[:, ids.shape[1]:].tolist()
    return [row[: row.index(eos)] if eos in row else row for row in out]


# The next token ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["grouped, tied", "untied, biases", "linear", "yarn", "llama3"])
def test_greedy_equals_transformers(kind: str, tokenizer: Tokenizer, prompts: list[list[int]]) -> None:
    them, us = pair(**LLAMAS[kind])
    first = greedy_of_theirs(them, prompts, 24, None)
    eos = first[1][7]  # some rows end early, the others go on
    expected = greedy_of_theirs(them, prompts, 24, eos)
    assert len({len(row) for row in expected}) > 1
    sampling = Sampling(max_new_tokens=24)
    together = generate(us, tokenizer, prompts, sampling, frozenset({eos}))
    assert [list(completion.ids) for [completion] in together] == expected
    for row, [completion] in zip(expected, together, strict=True):
        assert completion.reason == ("stop" if len(row) < 24 else "length")
    alone = [generate(us, tokenizer, [prompt], sampling, frozenset({eos}))[0] for prompt in prompts]
    assert alone == together


@pytest.mark.parametrize("changes", [
    {"temperature": 0.7}, {"temperature": 1.0, "top_k": 1}, {"temperature": 2.5, "top_k": 20},
    {"temperature": 1.0, "top_p": 0.9}, {"temperature": 0.8, "top_p": 0.01},
    {"temperature": 1.3, "top_k": 40, "top_p": 0.6}, {"temperature": 1.0, "top_k": 5000, "top_p": 1.0},
], ids=str)
def test_probabilities_equal_transformers(changes: dict[str, Any]) -> None:
    scores = torch.randn(50, 300, generator=torch.Generator().manual_seed(0)) * 3
    sampling = Sampling(**changes)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k is not None:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p is not None:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    expected = warpers(torch.zeros(50, 1, dtype=torch.long), scores.clone()).softmax(-1)
    got = torch.stack([probabilities(row, sampling) for row in scores])
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(got > 0, expected > 0)


def test_what_is_chosen_follows_the_probabilities() -> None:
    scores = torch.tensor([2.0, 1.0, 0.0, -1.0, float("-inf")])
    sampling = Sampling(temperature=1.0, top_k=3)
    generator = torch.Generator().manual_seed(0)
    counts = torch.bincount(torch.tensor([choose(scores, sampling, generator) for _ in range(4000)]), minlength=5)
    expected = probabilities(scores, sampling)
    noise = (expected * (1 - expected) / 4000).sqrt()
    assert ((counts / 4000 - expected).abs() <= 4 * noise).all()
    assert counts[3:].sum() == 0


# Seeds ------------------------------------------------------------------------------------------------

DRAWN = Sampling(temperature=1.0, max_new_tokens=12, seed=3)


def test_a_seed_repeats_itself_and_another_does_not(
    llamas: tuple[nn.Module, nn.Module], tokenizer: Tokenizer, prompts: list[list[int]]
) -> None:
    one = generate(llamas[1], tokenizer, prompts, DRAWN, NO_ENDS)
    torch.manual_seed(17)  # torch's own state plays no part
    assert generate(llamas[1], tokenizer, prompts, DRAWN, NO_ENDS) == one
    other = generate(llamas[1], tokenizer, prompts, DRAWN.model_copy(update={"seed": 4}), NO_ENDS)
    assert all(a != b for a, b in zip(one, other, strict=True))


def test_companions_and_places_change_nothing(
    llamas: tuple[nn.Module, nn.Module], tokenizer: Tokenizer, prompts: list[list[int]]
) -> None:
    together = generate(llamas[1], tokenizer, prompts, DRAWN, NO_ENDS)
    assert generate(llamas[1], tokenizer, prompts[::-1], DRAWN, NO_ENDS) == together[::-1]
    for prompt, expected in zip(prompts, together, strict=True):
        assert generate(llamas[1], tokenizer, [prompt], DRAWN, NO_ENDS) == [expected]


def test_several_sequences_differ_and_begin_with_the_one(
    llamas: tuple[nn.Module, nn.Module], tokenizer: Tokenizer, prompts: list[list[int]]
) -> None:
    several = generate(llamas[1], tokenizer, prompts, DRAWN.model_copy(update={"num_sequences": 3}), NO_ENDS)
    assert [len(row) for row in several] == [3] * len(prompts)
    assert all(len({completion.ids for completion in row}) == 3 for row in several)
    assert [row[:1] for row in several] == generate(llamas[1], tokenizer, prompts, DRAWN, NO_ENDS)
    greedy = generate(llamas[1], tokenizer, prompts, Sampling(max_new_tokens=4, num_sequences=2), NO_ENDS)
    assert all(a == b for a, b in greedy)


# Text -------------------------------------------------------------------------------------------------


def scripted(monkeypatch: pytest.MonkeyPatch, model: nn.Module, tokenizer: Tokenizer, ids: Iterable[int],
             **sampling: Any) -> tuple[list[Piece], Completion]:
    """The pieces and the completion when the model "chooses" these ids."""
    script = iter(ids)
    monkeypatch.setattr(room, "choose", lambda *_: next(script))
    limits = {"max_new_tokens": 60, **sampling}
    pieces = list(stream(model, tokenizer, [[5]], Sampling(**limits), frozenset({0})))
    done = pieces[-1].completion
    assert done is not None
    assert [piece.completion for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert "".join(piece.text for piece in pieces) == done.text
    return pieces, done


@pytest.fixture(scope="module")
def tiny() -> nn.Module:
    return pair(num_hidden_layers=1, max_position_embeddings=512)[1]


def whole_characters(tokenizer: Tokenizer, ids: list[int]) -> str:
    """The text of the ids, without a character that they end within."""
    decoder = tokenizer.stream()
    return "".join(decoder.push(id) for id in ids)


def until_a_stop(tokenizer: Tokenizer, ids: list[int], stops: list[str]) -> tuple[str, bool]:
    """The slow definition: after each token all text is looked through."""
    for length in range(1, len(ids) + 1):
        text = whole_characters(tokenizer, ids[:length])
        found = [text.find(stop) for stop in stops if stop in text]
        if found:
            return text[: min(found)], True
    return whole_characters(tokenizer, ids), False


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="春天来了，ab 😀é", min_size=1, max_size=12),
       st.lists(st.text(alphabet="春天来了，ab 😀é", min_size=1, max_size=3), max_size=3))
def test_stops_are_found_across_tokens_and_never_shown(tokenizer: Tokenizer, tiny: nn.Module, text: str,
                                                       stops: list[str]) -> None:
    ids = tokenizer.encode(text)
    with pytest.MonkeyPatch.context() as patch:
        pieces, done = scripted(patch, tiny, tokenizer, [*ids, 0], stop=tuple(stops))
    expected, stopped = until_a_stop(tokenizer, ids, stops)
    assert done.text == expected
    assert done.reason == "stop"
    assert done.ids == (tuple(ids) if not stopped else tuple(ids[: len(done.ids)]))
    assert not any(stop in done.text for stop in stops)
    assert not any("\ufffd" in piece.text for piece in pieces)


def test_a_stop_over_three_tokens(monkeypatch: pytest.MonkeyPatch, tiny: nn.Module, tokenizer: Tokenizer) -> None:
    ids = [tokenizer.encode(character)[0] for character in "abXYZcd"]
    pieces, done = scripted(monkeypatch, tiny, tokenizer, ids, stop=("XYZ",))
    assert [piece.text for piece in pieces] == ["a", "b", ""]
    assert (done.text, done.reason, len(done.ids)) == ("ab", "stop", 5)
    pieces, done = scripted(monkeypatch, tiny, tokenizer, [*ids[:4], *ids[5:], 0], stop=("XYZ", "Zc"))
    assert [piece.text for piece in pieces] == ["a", "b", "XYc", "d", ""]
    pieces, _ = scripted(monkeypatch, tiny, tokenizer, [ids[0], ids[2], ids[2], ids[3]], stop=("XXY",))
    assert [piece.text for piece in pieces] == ["a", ""]


def test_the_stop_that_ends_first_counts(monkeypatch: pytest.MonkeyPatch, tiny: nn.Module,
                                         tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("x") + tokenizer.encode("y") + tokenizer.encode("z")
    assert scripted(monkeypatch, tiny, tokenizer, ids, stop=("xyz", "y"))[1].text == "x"
    assert scripted(monkeypatch, tiny, tokenizer, ids, stop=("z", "yz"))[1].text == "x"


def test_a_stop_within_one_token_leaves_what_is_before_it(monkeypatch: pytest.MonkeyPatch, tiny: nn.Module,
                                                          tokenizer: Tokenizer) -> None:
    word = next(id for id in range(3, tokenizer.vocab_size) if len(tokenizer.decode([id])) > 1)
    text = tokenizer.decode([word])
    _, done = scripted(monkeypatch, tiny, tokenizer, [word], stop=(text[1:],))
    assert (done.text, done.ids, done.reason) == (text[0], (word,), "stop")


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1, max_size=8).filter(lambda text: "\ufffd" not in text and "\ud800" not in text))
def test_a_character_is_shown_whole_or_not(tokenizer: Tokenizer, tiny: nn.Module, text: str) -> None:
    ids = tokenizer.encode(text)
    with pytest.MonkeyPatch.context() as patch:
        pieces, done = scripted(patch, tiny, tokenizer, [*ids, 0])
        assert done.text == text
        assert not any("\ufffd" in piece.text for piece in pieces)
        cut = max(1, len(ids) - 1)
        pieces, done = scripted(patch, tiny, tokenizer, ids, max_new_tokens=cut)  # often in the middle of one
        assert done.text == whole_characters(tokenizer, ids[:cut])
        assert text.startswith(done.text)
        assert done.reason == "length"


def test_bytes_that_are_no_text_become_a_sign_between_texts(monkeypatch: pytest.MonkeyPatch, tiny: nn.Module,
                                                            tokenizer: Tokenizer) -> None:
    """What a bad model writes is shown as damage, not hidden, where text follows it."""
    first, *_ = tokenizer.encode("语")
    letter = tokenizer.encode("a")
    assert scripted(monkeypatch, tiny, tokenizer, [first, *letter, 0])[1].text == "\ufffda"


def test_streams_of_several_rows_join_to_their_completions(
    llamas: tuple[nn.Module, nn.Module], tokenizer: Tokenizer, prompts: list[list[int]]
) -> None:
    """A random model writes bytes at random: every kind of broken character comes by."""
    sampling = DRAWN.model_copy(update={"num_sequences": 2, "max_new_tokens": 30, "stop": ("a", "天")})
    texts: dict[tuple[int, int], str] = {}
    finished: dict[tuple[int, int], Completion] = {}
    for piece in stream(llamas[1], tokenizer, prompts, sampling, frozenset({0, 9})):
        key = piece.prompt, piece.sample
        assert key not in finished
        texts[key] = texts.get(key, "") + piece.text
        if piece.completion is not None:
            finished[key] = piece.completion
    assert finished.keys() == set(itertools.product(range(len(prompts)), range(2)))
    for key, done in finished.items():
        assert texts[key] == done.text
        expected, stopped = until_a_stop(tokenizer, list(done.ids), ["a", "天"])
        assert done.text == expected
        assert done.reason == ("stop" if stopped or len(done.ids) < 30 else "length")


# Limits -----------------------------------------------------------------------------------------------


def test_the_end_of_the_context_is_a_limit(tokenizer: Tokenizer) -> None:
    them, us = pair(max_position_embeddings=16)
    prompts = [[5, 6, 7], [8] * 15]
    [long], [short] = generate(us, tokenizer, prompts, Sampling(max_new_tokens=100), NO_ENDS)
    assert (len(long.ids), long.reason) == (13, "length")
    assert (len(short.ids), short.reason) == (1, "length")
    assert list(long.ids) == greedy_of_theirs(them, prompts[:1], 13, None)[0]


def test_prompts_that_cannot_be_continued(tokenizer: Tokenizer) -> None:
    _, us = pair(max_position_embeddings=16)
    with pytest.raises(UsageError, match="empty prompt") as caught:
        generate(us, tokenizer, [[5], []], Sampling(), NO_ENDS)
    assert "prompt 1" in caught.value.where
    with pytest.raises(UsageError, match="16 tokens leaves no room") as caught:
        generate(us, tokenizer, [[5] * 16], Sampling(), NO_ENDS)
    assert "1 to 15 tokens" in caught.value.mend
    assert generate(us, tokenizer, [], Sampling(), NO_ENDS) == []


@pytest.mark.parametrize("wrong", [{"max_new_tokens": 0}, {"temperature": -1}, {"top_k": 0}, {"top_p": 0.0},
                                   {"top_p": 1.5}, {"num_sequences": 0}, {"stop": ("",)}, {"topp": 0.5}], ids=str)
def test_settings_without_meaning_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Sampling(**wrong)


def test_scores_that_are_no_numbers_are_said(tokenizer: Tokenizer) -> None:
    _, us = pair()
    us.model.norm.weight.data[0] = math.nan
    with pytest.raises(NumericsError, match="NaN"):
        generate(us, tokenizer, [[5]], Sampling(), NO_ENDS)


# One arithmetic ---------------------------------------------------------------------------------------


def test_the_fused_kernel_of_long_texts_gives_the_same(
    llamas: tuple[nn.Module, nn.Module], tokenizer: Tokenizer, prompts: list[list[int]],
    monkeypatch: pytest.MonkeyPatch
) -> None:
    def scores() -> list[Tensor]:
        seen: list[Tensor] = []
        monkeypatch.setattr(room, "choose", lambda scores_V, *_: (seen.append(scores_V), 7)[1])
        generate(llamas[1], tokenizer, prompts, Sampling(max_new_tokens=5), NO_ENDS)
        return seen

    plain = scores()
    monkeypatch.setattr("wenmo.nn.attention.LONGEST_PLAIN_TOKENS", 0)
    torch.testing.assert_close(torch.stack(scores()), torch.stack(plain), atol=1e-5, rtol=1e-5)
