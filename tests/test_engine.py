"""The engine writes what the plain reference writes, whoever is beside a request and whatever happens to it."""

from __future__ import annotations

import copy
import random
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wenmo import device
from wenmo.engine import Engine, EngineSettings, Request
from wenmo.engine.packed import Format
from wenmo.engine.scheduler import AGEING, Scheduler
from wenmo.engine.slots import SMALLEST, Slots
from wenmo.errors import NumericsError, UsageError
from wenmo.generate import Sampling, generate
from wenmo.models import architecture, create, logits, read_config
from wenmo.text import tokenizer_training
from wenmo.text.tokenizer import Tokenizer
from wenmo.text.tokenizer_training import TokenizerSettings

VOCAB = 300
SHAPES = {
    "llama": dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2, head_dim=32,
                  intermediate_size=64, max_position_embeddings=600),
    "mistral": dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
                    intermediate_size=64, max_position_embeddings=600, sliding_window=20),
    "qwen3": dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
                  intermediate_size=64, max_position_embeddings=600),
    "gpt2": dict(n_embd=64, n_layer=2, n_head=4, n_positions=600),
}
NO_ENDS: frozenset[int] = frozenset()


def model(kind: str = "llama"):
    data = {"model_type": kind, "vocab_size": VOCAB, **SHAPES[kind]}
    config, _ = read_config(architecture(kind, kind).config_class, data, kind)
    made = create(config, {"causal_lm": 0}, device.torch_rng("test", kind)).eval()
    for parameter in made.parameters():  # so that the next token depends on what came before
        parameter.data.mul_(3 if parameter.ndim > 1 else 1)
    return made


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tokenizer_training.train(["emoji 🙂, 汉字 and letters"], TokenizerSettings(type="bpe", vocab_size=VOCAB))


def prompts(number: int, seed: int, longest: int = 150) -> list[tuple[int, ...]]:
    """Some of them with beginnings in common."""
    rng = random.Random(seed)
    common = [rng.randrange(10, 260) for _ in range(longest)]
    return [(*common[: rng.choice([0, 0, 64, 100])], *(rng.randrange(10, 260) for _ in range(rng.randint(1, longest))))
            for _ in range(number)]


def engine(made, tokenizer, **given) -> Engine:
    return Engine(copy.deepcopy(made), tokenizer, EngineSettings(**given), ends=NO_ENDS)


def reference(made, tokenizer, all_prompts, sampling: Sampling) -> list[tuple[int, ...]]:
    return [generate(made, tokenizer, [prompt], sampling, NO_ENDS)[0][0].ids for prompt in all_prompts]


@pytest.mark.parametrize(("kind", "native"), [*((kind, "auto") for kind in SHAPES), ("llama", "off"), ("qwen3", "off")])
def test_it_writes_what_the_reference_writes(kind, native, tokenizer) -> None:
    made, sampling = model(kind), Sampling(max_new_tokens=12)
    asked = prompts(8, seed=1)
    found = [done.ids for done in engine(made, tokenizer, native=native).generate(
        [Request(ids, sampling) for ids in asked])]
    assert found == reference(made, tokenizer, asked, sampling)
    assert len(set(found)) > 4


def in_company(busy: Engine, asked: Sequence[tuple[int, ...]], most: int, rng: random.Random) -> list[tuple[int, ...]]:
    """What each is answered among others that come at other times, some of them cancelled."""
    waiting, handles = list(enumerate(asked)), {}
    rng.shuffle(waiting)
    while waiting or not all(handle.done.is_set() for handle in handles.values()):
        for _ in range(rng.randint(0, 3)):
            if waiting:
                number, ids = waiting.pop()
                handles[number] = busy.submit(Request(ids, Sampling(max_new_tokens=most), priority=rng.randint(0, 2)))
                if rng.random() < 0.2:
                    busy.submit(Request(ids, Sampling(max_new_tokens=most))).cancel()
        busy.step()
    return [handles[number].result().ids for number in range(len(asked))]


@pytest.mark.parametrize("native", ["on", "off"])
@pytest.mark.parametrize("format", get_args(Format))
def test_nobody_changes_what_another_gets(format, native, tokenizer) -> None:
    """Alone, and among others that come at other times, are cancelled, and take the memory away."""
    made = model()
    asked = prompts(20, seed=2)
    solo = engine(made, tokenizer, format=format, native=native, prefix_tokens=0)
    alone = [solo.generate([Request(ids, Sampling(max_new_tokens=30))])[0].ids for ids in asked]
    rng = random.Random(3)
    for settings_ in (dict(cache_tokens=2048), dict(cache_tokens=1024, prefix_tokens=256), dict(max_running=3)):
        busy = engine(made, tokenizer, format=format, native=native, **settings_)
        assert in_company(busy, asked, 30, rng) == alone
        assert busy.slots.used_tokens == 0
        if "cache_tokens" in settings_:
            assert busy.num_preempted > 0
            assert busy.prefixes.hits_tokens > 0


@pytest.mark.long
@pytest.mark.parametrize("native", ["on", "off"])
@pytest.mark.parametrize("format", get_args(Format))
def test_a_thousand_prompts(format, native, tokenizer) -> None:
    made, most = model(), 20
    asked = prompts(1000, seed=4)
    solo = engine(made, tokenizer, format=format, native=native, prefix_tokens=0)
    alone = [solo.generate([Request(ids, Sampling(max_new_tokens=most))])[0].ids for ids in asked]
    busy = engine(made, tokenizer, format=format, native=native, cache_tokens=1024, prefix_tokens=256)
    assert in_company(busy, asked, most, random.Random(5)) == alone
    assert busy.num_preempted > 100
    assert busy.prefixes.hits_tokens > 1000


def test_a_row_alone_may_fill_the_memory(tokenizer) -> None:
    """Its slot and the next larger one do not both fit: it gives way to itself once, and comes back in the larger."""
    made, sampling = model(), Sampling(max_new_tokens=100)
    [ids] = prompts(1, seed=4)
    small = engine(made, tokenizer, cache_tokens=256)
    [done] = small.generate([Request(ids[:100], sampling)])
    assert [done.ids] == reference(made, tokenizer, [ids[:100]], sampling)


def test_draws_are_the_references(tokenizer) -> None:
    made = model()
    sampling = Sampling(max_new_tokens=20, temperature=1.0, top_p=0.9, seed=5, num_sequences=3, logprobs=2)
    asked = prompts(5, seed=5)
    expected = generate(made, tokenizer, asked, sampling, NO_ENDS)
    done = engine(made, tokenizer).generate(
        [Request(ids, sampling, sample=sample) for ids in asked for sample in range(3)])
    assert [each.ids for each in done] == [each.ids for some in expected for each in some]
    for ours, theirs in zip(done, (each for some in expected for each in some), strict=True):
        assert [entry.id for entry in ours.logprobs] == [entry.id for entry in theirs.logprobs]
        assert [entry.logprob for entry in ours.logprobs] == pytest.approx(
            [entry.logprob for entry in theirs.logprobs], abs=1e-4)


def test_how_likely_a_prompt_is(tokenizer) -> None:
    """Each token after the first, in chunks, even where the beginning is known; and what is written stays the same."""
    made = model()
    [ids] = prompts(1, seed=8)
    ids = (ids * 4)[:150]
    busy = engine(made, tokenizer)
    [plain] = busy.generate([Request(ids, Sampling(max_new_tokens=5))])
    handle = busy.submit(Request(ids, Sampling(max_new_tokens=5), prompt_logprobs=2))
    while not handle.done.is_set():
        busy.step()
    events = list(handle)
    [entries] = [event.prompt_logprobs for event in events if event.prompt_logprobs]
    ids_M = torch.tensor(ids)
    with torch.inference_mode():
        expected = logits(made, made(ids_M, (len(ids),))).log_softmax(-1)[:-1].gather(1, ids_M[1:, None])[:, 0]
    assert [entry.id for entry in entries] == list(ids[1:])
    assert [entry.logprob for entry in entries] == pytest.approx(expected.tolist(), abs=1e-3)
    assert events[-1].completion.ids == plain.ids


def test_cancelled_within_one_step(tokenizer) -> None:
    """While waiting, while its prompt is read, and while it writes."""
    busy = engine(model(), tokenizer, step_tokens=64, max_running=1)
    long = Sampling(max_new_tokens=100)
    writing, reading, waiting = (busy.submit(Request(ids, long)) for ids in [(20,) * 10, (21,) * 300, (22,) * 5])
    for _ in range(3):
        busy.step()
    assert len(busy.scheduler.running) == 1
    for handle in (writing, reading, waiting):
        handle.cancel()
        busy.step()
        assert handle.done.is_set()
        assert list(handle)[-1].outcome == "cancelled"
    assert busy.slots.used_tokens == 0
    assert busy.scheduler.idle
    writing.cancel()  # nothing happens


def test_stop_strings_and_characters_come_whole(tokenizer) -> None:
    made = model()
    [free] = engine(made, tokenizer).generate([Request((20, 30), Sampling(max_new_tokens=60))])
    stop = free.text[8:11]
    handle = (busy := engine(made, tokenizer)).submit(Request((20, 30), Sampling(max_new_tokens=60, stop=(stop,))))
    while not handle.done.is_set():
        busy.step()
    events = list(handle)
    assert "".join(event.text for event in events) == free.text[: free.text.index(stop)]
    assert events[-1].completion.reason == "stop"


@pytest.mark.parametrize("speculate", ["off", "prompt"])
def test_every_id_is_in_an_event(speculate, tokenizer) -> None:
    """Also of a token whose text is held back: part of a character, or of what may become a stop string."""
    busy = engine(model(), tokenizer, speculate=speculate, cache_tokens=512)
    free = busy.generate([Request((20, 30), Sampling(max_new_tokens=60))])[0].text
    sampling = Sampling(max_new_tokens=60, stop=(free[3:7] + "never", free[20:23] + "nor"))
    handles = [busy.submit(Request(ids, sampling)) for ids in ((20, 30), *prompts(5, seed=9))]
    cut = busy.submit(Request((20, 31), sampling))
    for _ in range(9):
        busy.step()
    cut.cancel()
    while not all(handle.done.is_set() for handle in handles):
        busy.step()
    for handle in (*handles, cut):
        events = list(handle)
        assert tuple(id for event in events for id in event.ids) == events[-1].completion.ids
        assert len(events) < 60


def test_a_listener_that_fails_is_alone(tokenizer) -> None:
    busy = engine(model(), tokenizer).start()
    failing = busy.submit(Request((21,), Sampling(max_new_tokens=5)), lambda event: 1 / 0)
    assert len(busy.submit(Request((20,), Sampling(max_new_tokens=30))).result().ids) == 30
    assert failing.done.is_set()
    busy.close()


def test_a_thread_of_its_own(tokenizer) -> None:
    made, sampling = model(), Sampling(max_new_tokens=15)
    asked = prompts(24, seed=6)
    busy = engine(made, tokenizer).start()
    found: dict[int, tuple[int, ...]] = {}

    def ask(numbers: Sequence[int]) -> None:
        for number in numbers:
            found[number] = busy.submit(Request(asked[number], sampling)).result().ids

    threads = [threading.Thread(target=ask, args=(range(start, 24, 6),)) for start in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    busy.close()
    assert [found[number] for number in range(24)] == reference(made, tokenizer, asked, sampling)
    with pytest.raises(UsageError, match=r"closing|关闭"):
        busy.submit(Request((20,), sampling))


def test_what_cannot_be_served_is_refused(tokenizer) -> None:
    busy = engine(model(), tokenizer, max_context=50)
    for ids, num_beams in [((), 1), ((20,) * 50, 1), ((20,), 2)]:
        with pytest.raises(UsageError):
            busy.submit(Request(ids, Sampling(num_beams=num_beams)))


def test_damaged_weights_end_a_request_and_not_the_engine(tokenizer) -> None:
    made = model()
    busy = engine(made, tokenizer)
    weight = busy.model.model.embed_tokens.weight
    kept = weight.data.clone()
    weight.data.fill_(float("nan"))
    with pytest.raises(NumericsError):
        busy.generate([Request((20,), Sampling(max_new_tokens=3))])
    weight.data.copy_(kept)
    [done] = busy.generate([Request((20,), Sampling(max_new_tokens=3))])
    assert len(done.ids) == 3


def test_nobody_starves(tokenizer) -> None:
    """A flood of more important requests holds a lesser one up for a bounded time."""
    busy = engine(model(), tokenizer, max_running=1)
    late = busy.submit(Request((20,) * 4, Sampling(max_new_tokens=2)))
    steps = 0
    while steps < 2 * AGEING and not late.done.is_set():
        steps += 1
        busy.submit(Request((21,), Sampling(max_new_tokens=2), priority=1))
        busy.step()
    assert late.done.is_set()
    assert steps > AGEING / 2


def test_nobody_gives_way_for_ever(tokenizer) -> None:
    """Where memory is short, too: who has waited is not the first again to give way once it writes."""
    busy = engine(model(), tokenizer, cache_tokens=1024, max_context=500)
    late = busy.submit(Request((20,) * 4, Sampling(max_new_tokens=300)))
    steps = 0
    while steps < 16 * AGEING and not late.done.is_set():
        steps += 1
        if len(busy.scheduler.waiting) < 4:  # they grow out of their slots, so that somebody must give way
            busy.submit(Request((21,) * 120, Sampling(max_new_tokens=20), priority=1))
        busy.step()
    assert busy.num_preempted
    assert late.done.is_set()


@given(st.lists(st.tuples(st.sampled_from("agr"), st.integers(0, 9), st.integers(1, 700)), max_size=60))
@settings(deadline=None)
def test_slots_hold_what_was_put_there(does) -> None:
    """Whatever is admitted, grown and released: every row keeps its own keys, and the budget holds."""
    slots = Slots(2048, 1024)
    length: dict[int, int] = {}

    def marks(owner: int, number: int) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
        made = torch.arange(number).float()[None, :, None] + 1000 * owner
        return {0: (made, -made)}

    for what, owner, number in does:
        if what == "a" and owner not in length and slots.admit(owner, number):
            slots.fill(owner, marks(owner, number), number)
            length[owner] = number
        elif what == "g" and owner in length and slots.grow(owner, length[owner]):
            pool, row = slots.place[owner]
            keys, values = pool.layer(0, torch.zeros(1, 1))
            keys[row, :, length[owner]] = length[owner] + 1000 * owner
            values[row, :, length[owner]] = -(length[owner] + 1000 * owner)
            length[owner] += 1
        elif what == "r" and owner in length:
            slots.release(owner)
            del length[owner]
        assert sum(pool.capacity * pool.size for pool in slots.pools.values()) <= 2048
        for each, count in length.items():
            pool, row = slots.place[each]
            keys, values = pool.layer(0, torch.zeros(1, 1))
            assert torch.equal(keys[row, :, :count], marks(each, count)[0][0])
            assert torch.equal(values[row, :, :count], marks(each, count)[0][1])
    assert slots.capacity_for(1) == SMALLEST
    assert Scheduler(1).idle


def test_of_a_long_prompt_the_beginning_stays(tokenizer) -> None:
    """A prompt of more blocks than are kept: what was read last gives way first, and the beginning is found again."""
    busy = engine(model(), tokenizer, prefix_tokens=128)
    [ids] = prompts(1, seed=7, longest=1)
    long = Request(ids + tuple(range(20, 220)), Sampling(max_new_tokens=2))
    busy.generate([long, long])
    assert busy.prefixes.hits_tokens == 128


def test_a_result_may_be_asked_for_twice(tokenizer) -> None:
    busy = engine(model(), tokenizer)
    handle = busy.submit(Request((20,), Sampling(max_new_tokens=2)))
    while not handle.done.is_set():
        busy.step()
    assert handle.result() == handle.result()


def test_a_prompt_that_cannot_be_read_is_alone(tokenizer, monkeypatch) -> None:
    made, sampling = model(), Sampling(max_new_tokens=5)
    busy = engine(made, tokenizer)
    read = busy.runner.read

    def failing(pieces):
        if any(222 in piece.ids for piece in pieces):
            raise MemoryError
        return read(pieces)

    monkeypatch.setattr(busy.runner, "read", failing)
    good, bad, late = (busy.submit(Request((first, 30), sampling)) for first in (20, 222, 21))
    while not all(handle.done.is_set() for handle in (good, bad, late)):
        busy.step()
    with pytest.raises(MemoryError):
        bad.result()
    assert [good.result().ids, late.result().ids] == reference(made, tokenizer, [(20, 30), (21, 30)], sampling)
    assert busy.slots.used_tokens == 0


UNCLOSED = """
import tests.test_engine as at_hand
from wenmo.engine import Request
from wenmo.generate import Sampling
from wenmo.text import tokenizer_training
tokenizer = tokenizer_training.train(["letters"], at_hand.TokenizerSettings(type="bpe", vocab_size=at_hand.VOCAB))
busy = at_hand.engine(at_hand.model(), tokenizer, native="off").start()
next(iter(busy.submit(Request((20, 21), Sampling(max_new_tokens=500)))))
print("over")
"""


def test_a_program_may_end_without_closing_its_engine() -> None:
    done = subprocess.run([sys.executable, "-c", UNCLOSED], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (0, "over\n"), done.stderr
