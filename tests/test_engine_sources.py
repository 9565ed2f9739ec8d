"""Encoder–decoders in the engine: what the plain reference writes, whoever is beside a request."""

from __future__ import annotations

import copy
import random
from typing import Any, get_args

import pytest
import torch

from wenmo import device
from wenmo.engine import Engine, EngineSettings, Handle, Request
from wenmo.engine.engine import SOURCE_TOKENS
from wenmo.engine.packed import Format
from wenmo.errors import UsageError
from wenmo.generate import Sampling, generate
from wenmo.models import architecture, create, read_config
from wenmo.text import tokenizer_training
from wenmo.text.tokenizer import Tokenizer
from wenmo.text.tokenizer_training import TokenizerSettings

VOCAB = 300
SHAPES: dict[str, dict[str, Any]] = {
    "t5": dict(model_type="t5", d_model=64, d_kv=16, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0,
               relative_attention_num_buckets=8, relative_attention_max_distance=20),
    "t5 gated, untied": dict(model_type="t5", d_model=64, d_kv=32, d_ff=96, num_layers=2, num_heads=2,
                             feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0),
    "marian": dict(model_type="marian", d_model=64, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=64,
                   decoder_layers=2, decoder_attention_heads=2, decoder_ffn_dim=96, max_position_embeddings=256,
                   scale_embedding=True, pad_token_id=0, decoder_start_token_id=0),
}
NO_ENDS: frozenset[int] = frozenset()


def model(name: str) -> Any:
    data = {"vocab_size": VOCAB, **SHAPES[name]}
    config, _ = read_config(architecture(data["model_type"], name).config_class, data, name)
    made: Any = create(config, {"seq2seq_lm": 0}, device.torch_rng("test", name)).eval()
    for parameter in made.parameters():  # so that the next token depends on the source, and on what came before
        parameter.data.mul_((10 if data["model_type"] == "marian" else 2) if parameter.ndim > 1 else 1)
    return made


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tokenizer_training.train(["emoji 🙂, 汉字 and letters"], TokenizerSettings(type="bpe", vocab_size=VOCAB))


def sources(number: int, seed: int) -> list[tuple[int, ...]]:
    """Some within one slot's length, some beyond."""
    rng = random.Random(seed)
    lengths = rng.choices([1, 5, 40, 64, 65, 130, 200], k=number)
    return [tuple(rng.randrange(10, 260) for _ in range(length)) for length in lengths]


def engine(made: Any, tokenizer: Tokenizer, **given: Any) -> Engine:
    return Engine(copy.deepcopy(made), tokenizer, EngineSettings(**given), ends=NO_ENDS)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("sampling", [Sampling(max_new_tokens=40, no_repeat_ngram_size=1),
                                      Sampling(max_new_tokens=20, temperature=1.0, seed=3, logprobs=1)])
def test_it_writes_what_the_reference_writes(name: str, sampling: Sampling, tokenizer: Tokenizer) -> None:
    made, asked = model(name), sources(12, seed=1)
    done = engine(made, tokenizer).generate([Request(ids, sampling) for ids in asked])
    [*expected] = (generate(made, tokenizer, [ids], sampling, NO_ENDS)[0][0] for ids in asked)
    assert [each.ids for each in done] == [each.ids for each in expected]
    assert len({each.ids for each in done}) > 8
    for ours, theirs in zip(done, expected, strict=True):
        assert [entry.logprob for entry in ours.logprobs or ()] == pytest.approx(
            [entry.logprob for entry in theirs.logprobs or ()], abs=1e-3)  # large scores


@pytest.mark.parametrize(("name", "format"), [
    *(("t5", format) for format in get_args(Format)), ("marian", "fp32"), ("marian", "int8")])
def test_nobody_changes_what_another_gets(name: str, format: Format, tokenizer: Tokenizer) -> None:
    """Alone, and among others that come at other times, are cancelled, and take the memory away."""
    made, asked, sampling = model(name), sources(7, seed=2), Sampling(max_new_tokens=132, no_repeat_ngram_size=1)
    solo = engine(made, tokenizer, format=format)
    alone = [solo.generate([Request(ids, sampling)])[0] for ids in asked]
    rng = random.Random(4)
    for given in (dict(cache_tokens=512), dict(max_running=3)):
        busy = engine(made, tokenizer, format=format, **given)
        waiting: list[tuple[int, tuple[int, ...]]] = list(enumerate(asked))
        handles: dict[int, Handle] = {}
        rng.shuffle(waiting)
        while waiting or not all(handle.done.is_set() for handle in handles.values()):
            for _ in range(rng.randint(0, 3)):
                if waiting:
                    number, ids = waiting.pop()
                    handles[number] = busy.submit(Request(ids, sampling, priority=rng.randint(0, 2)))
                    if rng.random() < 0.2:
                        busy.submit(Request(ids, sampling)).cancel()
            busy.step()
        assert [handles[number].result().ids for number in range(len(asked))] == [each.ids for each in alone]
        assert busy.sources is not None
        assert busy.slots.used_tokens == busy.sources.used_tokens == 0
        assert busy.num_preempted > 0 or "cache_tokens" not in given


def test_a_source_is_bounded_by_itself(tokenizer: Tokenizer) -> None:
    """As in generate/: the source may be as long as the model allows, and so may what is written."""
    made = model("marian")
    ids, sampling = tuple(range(10, 266))[:256], Sampling(max_new_tokens=1000)
    [done] = engine(made, tokenizer).generate([Request(ids, sampling)])
    assert done == generate(made, tokenizer, [ids], sampling, NO_ENDS)[0][0]
    assert len(done.ids) == 255
    for wrong in (Request((), sampling), Request((*ids, 10), sampling), Request(ids, sampling, prompt_logprobs=0)):
        with pytest.raises(UsageError):
            engine(made, tokenizer).submit(wrong)


def test_a_model_without_a_limit_gets_one(tokenizer: Tokenizer) -> None:
    """One source as long as the cache would take more memory than a machine has."""
    made = model("t5")
    assert made.config.max_tokens is None
    assert engine(made, tokenizer, cache_tokens=32768).longest == SOURCE_TOKENS
    assert engine(made, tokenizer, cache_tokens=32768, max_context=4096).longest == 4096


def test_memory_is_counted(tokenizer: Tokenizer) -> None:
    """Keys and values of the target, and as many of the source: layers × heads × width × 2 × bytes."""
    made = engine(model("t5"), tokenizer, cache_tokens=1024, prefix_tokens=0)
    assert made.cache_bytes == 2 * 1024 * 2 * 4 * 16 * 2 * 4
    assert torch.equal(made.runner.read_source([5, 6], 0, {}, {}, 64), made.runner.read_source([5, 6], 0, {}, {}, 64))
