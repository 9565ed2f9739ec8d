"""Beam search, and encoder–decoders: transformers' texts and scores; the best of all texts where all are searched."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GenerationConfig

from oracle import ours, theirs
from wenmo.errors import UsageError
from wenmo.generate import Completion, Sampling, generate, stream
from wenmo.text import tokenizer_training
from wenmo.text.tokenizer import Tokenizer
from wenmo.text.tokenizer_training import TokenizerSettings

PROMPTS = [[5, 6, 7, 5, 6], [8], [9, 40, 10, 11, 9, 9, 10], [30, 31]]
# (transformers' own cache fails for a T5 whose decoder has more layers than its encoder)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {}), "t5": ("T5ForConditionalGeneration", dict(num_layers=3)),
    "marian": ("MarianMTModel", dict(scale_embedding=False)),
}
NO_ENDS: frozenset[int] = frozenset()
ENDS = frozenset({3, 10, 14, 38, 43, 60, 65})  # several, so that random models come to an end


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tokenizer_training.train(["abcdefgh"], TokenizerSettings(vocab_size=260))


@pytest.fixture(scope="module", params=MODELS)
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module]:
    name, changes = MODELS[request.param]
    them = theirs(name, **changes)
    them.generation_config.forced_eos_token_id = None  # Marian's: an end of text at the limit
    return them, ours(them)


def of_theirs(model: nn.Module, prompts: list[list[int]], ends: frozenset[int] = NO_ENDS,
              **settings: Any) -> list[list[tuple[tuple[int, ...], float | None]]]:
    """For each prompt (ids without the end of text, score). Decoders are padded on the left, sources on the right."""
    from_source = model.config.is_encoder_decoder
    longest = max(map(len, prompts))
    rows, mask = [], []
    for prompt in prompts:
        fill, ones = [0] * (longest - len(prompt)), [1] * len(prompt)
        rows.append([*prompt, *fill] if from_source else [*fill, *prompt])
        mask.append([*ones, *fill] if from_source else [*fill, *ones])
    start = model.config.decoder_start_token_id if from_source else None
    config = GenerationConfig(eos_token_id=sorted(ends) or None, pad_token_id=0, decoder_start_token_id=start,
                              do_sample=False, return_dict_in_generate=True, output_scores=True, **settings)
    out = model.generate(torch.tensor(rows), attention_mask=torch.tensor(mask), generation_config=config)
    new = out.sequences[:, 1 if from_source else longest :].tolist()
    scores = [None] * len(new) if out.get("sequences_scores") is None else out.sequences_scores.tolist()
    each = len(new) // len(prompts)
    result = [(tuple(itertools.takewhile(lambda id: id not in ends, row)), score)
              for row, score in zip(new, scores, strict=True)]
    return [result[index : index + each] for index in range(0, len(result), each)]


# Against transformers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", [NO_ENDS, ENDS], ids=["no end", "ends"])
def test_greedy_equals_transformers(pair: tuple[nn.Module, nn.Module], tokenizer: Tokenizer,
                                    ends: frozenset[int]) -> None:
    them, us = pair
    expected = of_theirs(them, PROMPTS, ends, max_new_tokens=20)
    got = generate(us, tokenizer, PROMPTS, Sampling(max_new_tokens=20), ends)
    assert [[done.ids for done in row] for row in got] == [[ids[:20] for ids, _ in row] for row in expected]
    assert [generate(us, tokenizer, [prompt], Sampling(max_new_tokens=20), ends)[0] for prompt in PROMPTS] == got


@pytest.mark.parametrize("changes", [
    {"num_beams": 2}, {"num_beams": 5, "num_return_sequences": 5}, {"num_beams": 4, "length_penalty": 2.5},
    {"num_beams": 4, "length_penalty": 0.0}, {"num_beams": 4, "length_penalty": -1.5, "num_return_sequences": 2},
    {"num_beams": 4, "early_stopping": True, "num_return_sequences": 4},
    {"num_beams": 3, "early_stopping": "never", "length_penalty": 1.5},
    {"num_beams": 3, "early_stopping": "never", "length_penalty": -1.0},
    {"num_beams": 4, "repetition_penalty": 1.4, "no_repeat_ngram_size": 2, "min_new_tokens": 4},
    {"num_beams": 4, "ends": NO_ENDS, "num_return_sequences": 4},
], ids=str)
def test_beams_equal_transformers(pair: tuple[nn.Module, nn.Module], tokenizer: Tokenizer,
                                  changes: dict[str, Any]) -> None:
    """Some beams end early, others at the limit; the prompts are of different lengths."""
    them, us = pair
    changes = dict(changes)
    ends = changes.pop("ends", ENDS)
    expected = of_theirs(them, PROMPTS, ends, max_new_tokens=16, **changes)
    ours_named = {{"num_return_sequences": "num_sequences"}.get(name, name): value for name, value in changes.items()}
    sampling = Sampling(max_new_tokens=16, **ours_named)
    together = generate(us, tokenizer, PROMPTS, sampling, ends)
    for row, theirs_row in zip(together, expected, strict=True):
        assert [done.ids for done in row] == [ids for ids, _ in theirs_row]
        assert [done.score for done in row] == pytest.approx([score for _, score in theirs_row], rel=1e-6, abs=1e-5)
        assert [done.reason for done in row] == ["length" if len(done.ids) == 16 else "stop" for done in row]
    for prompt, row in zip(PROMPTS, together, strict=True):  # the others beside it change nothing
        [alone] = generate(us, tokenizer, [prompt], sampling, ends)
        assert [done.ids for done in alone] == [done.ids for done in row]


def test_some_beams_end_early_and_some_do_not(pair: tuple[nn.Module, nn.Module], tokenizer: Tokenizer) -> None:
    """That the cases above try both."""
    rows = generate(pair[1], tokenizer, PROMPTS, Sampling(max_new_tokens=16, num_beams=5, num_sequences=5), ENDS)
    assert {done.reason for row in rows for done in row} == {"stop", "length"}


# Properties -------------------------------------------------------------------------------------------


def test_with_enough_beams_nothing_is_missed(tokenizer: Tokenizer) -> None:
    """vocabulary 4, at most 3 tokens: all texts are weighed by hand."""
    them = theirs("LlamaForCausalLM", vocab_size=4)
    us, prompt, end = ours(them), [1, 2], 0
    for penalty in (0.0, 1.0, 3.0):
        weighed = {}
        for text in itertools.product(range(4), repeat=3):
            ids = text[: text.index(end) + 1] if end in text else text
            with torch.no_grad():
                own = them(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            weighed[ids] = float(own.gather(1, torch.tensor(ids)[:, None]).sum()) / len(ids) ** penalty
        best = sorted(weighed, key=lambda ids: -weighed[ids])[:5]
        sampling = Sampling(max_new_tokens=3, num_beams=40, num_sequences=5, length_penalty=penalty, logprobs=1)
        [found] = generate(us, tokenizer, [prompt], sampling, frozenset({end}))
        assert [tuple(entry.id for entry in done.logprobs or ()) for done in found] == best
        assert [done.score for done in found] == pytest.approx([weighed[ids] for ids in best], abs=1e-5)


def mean_logprob(done: Completion) -> float:
    assert done.logprobs is not None
    return sum(entry.logprob for entry in done.logprobs) / len(done.logprobs)


def test_logprobs_sum_to_the_score(pair: tuple[nn.Module, nn.Module], tokenizer: Tokenizer) -> None:
    sampling = Sampling(max_new_tokens=12, num_beams=6, num_sequences=6, logprobs=2)
    for row in generate(pair[1], tokenizer, PROMPTS, sampling, ENDS):
        assert [done.score for done in row] == pytest.approx([mean_logprob(done) for done in row], abs=1e-5)
        assert [done.score for done in row] == sorted((done.score or 0 for done in row), reverse=True)
        assert len({done.ids for done in row}) == 6


def test_a_stop_string_ends_a_beam(pair: tuple[nn.Module, nn.Module], tokenizer: Tokenizer) -> None:
    plain = Sampling(max_new_tokens=14, num_beams=4, length_penalty=0.0)  # the shorter, the likelier
    [[free]] = generate(pair[1], tokenizer, [PROMPTS[0]], plain, NO_ENDS)
    stop = next(character for character in free.text if character != "\ufffd")
    sampling = plain.model_copy(update={"stop": (stop,), "num_sequences": 4})
    [row] = generate(pair[1], tokenizer, [PROMPTS[0]], sampling, NO_ENDS)
    assert any(done.reason == "stop" for done in row)
    for done in row:
        assert stop not in done.text
        assert done.reason == ("stop" if stop in tokenizer.decode(done.ids) else "length")


# Encoder–decoders -------------------------------------------------------------------------------------


def test_draws_from_a_source_do_not_depend_on_company(pair: tuple[nn.Module, nn.Module], tokenizer: Tokenizer) -> None:
    sampling = Sampling(max_new_tokens=10, temperature=1.0, num_sequences=3, seed=5)
    together = generate(pair[1], tokenizer, PROMPTS, sampling, ENDS)
    assert generate(pair[1], tokenizer, PROMPTS[::-1], sampling, ENDS) == together[::-1]
    for prompt, row in zip(PROMPTS, together, strict=True):
        assert len({done.ids for done in row}) > 1
        assert [generate(pair[1], tokenizer, [prompt], sampling, ENDS)[0]] == [row]


def test_a_source_is_encoded_once(monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer) -> None:
    us: Any = ours(theirs("T5ForConditionalGeneration"))
    calls, encode = [], us.encode
    monkeypatch.setattr(us, "encode", lambda ids, lengths: (calls.append(lengths), encode(ids, lengths))[1])
    for changes in ({"num_beams": 3}, {"num_sequences": 3}):
        generate(us, tokenizer, PROMPTS, Sampling(max_new_tokens=6, **changes), ENDS)
    assert calls == [[5, 1, 7, 2]] * 2


def test_what_cannot_be(pair: tuple[nn.Module, nn.Module], tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="nothing to stream") as caught:
        list(stream(pair[1], tokenizer, PROMPTS, Sampling(num_beams=2), NO_ENDS))
    assert len(str(caught.value).splitlines()) == 3
    for sampling in (Sampling(), Sampling(num_beams=2)):
        with pytest.raises(UsageError, match="empty prompt"):
            generate(pair[1], tokenizer, [[5], []], sampling, NO_ENDS)
        assert generate(pair[1], tokenizer, [], sampling, NO_ENDS) == []
