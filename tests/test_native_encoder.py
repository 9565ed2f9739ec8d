"""Encoders as native steps: the numbers are torch's, a sequence's bits are its own, and every verb asks them."""

from __future__ import annotations

import copy
import threading
from typing import get_args

import numpy as np
import pytest
import torch

from wenmo import device
from wenmo.engine.encoder import NativeForward, in_one_thread, pack_encoder
from wenmo.engine.packed import Format, pack
from wenmo.errors import UsageError
from wenmo.models import architecture, classify, create, read_config
from wenmo.models.lora import LoraSettings, put_on
from wenmo.native import build, encoder, step
from wenmo.native.step import Threads
from wenmo.nn.linear import Linear

VOCAB = 300
BASE = dict(hidden_size=64, num_hidden_layers=3, num_attention_heads=2, intermediate_size=96, vocab_size=VOCAB,
            max_position_embeddings=200)
MODELS = {  # name → type, and what differs from BASE
    "bert": ("bert", {}),
    "roberta": ("roberta", dict(pad_token_id=1)),
    "odd sizes": ("bert", dict(hidden_size=39, num_attention_heads=3, intermediate_size=50)),
    "tanh": ("bert", dict(hidden_act="gelu_new")),
    "relu": ("bert", dict(hidden_act="relu")),
    "silu": ("bert", dict(hidden_act="silu", layer_norm_eps=1e-5)),
}
LENGTHS = [7, 1, 130, 64, 65, 3, 16, 90, 33, 2, 12, 40, 150, 5]


def model(name: str, heads: dict[str, int] | None = None):
    kind, changes = MODELS[name]
    config, _ = read_config(architecture(kind, kind).config_class, {"model_type": kind, **BASE, **changes}, kind)
    made = create(config, {"classification": 3} if heads is None else heads, device.torch_rng("test", name)).eval()
    with torch.no_grad():
        for parameter_name, parameter in made.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
            else:  # biases and norms
                parameter.add_(torch.randn(parameter.shape, generator=device.torch_rng(parameter_name)) / 4)
    return made


def native(made, format: Format, threads: int = 1):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        made = copy.deepcopy(made)
        pack_encoder(made, format, "on")
    finally:
        torch.set_num_threads(before)
    return made


def texts(lengths: list[int]) -> torch.Tensor:
    return torch.randint(VOCAB, (sum(lengths),), generator=torch.Generator().manual_seed(sum(lengths)))


def hidden(made, ids_M: torch.Tensor, lengths: list[int], **inputs) -> torch.Tensor:
    with torch.inference_mode():
        return made(ids_M, tuple(lengths), **inputs).float()


def error(found_MD: torch.Tensor, expected_MD: torch.Tensor) -> torch.Tensor:
    return (found_MD - expected_MD).norm(dim=1) / expected_MD.norm(dim=1)


@pytest.mark.parametrize("format", get_args(Format))
@pytest.mark.parametrize("name", MODELS)
def test_hidden_states_are_torchs(name: str, format: Format) -> None:
    """In fp32; in the other formats they are as near to them as torch's own, or nearer."""
    made, ids_M = model(name), texts(LENGTHS)
    expected_MD = hidden(made, ids_M, LENGTHS)
    found_M = error(hidden(native(made, format), ids_M, LENGTHS), expected_MD)
    if format == "fp32":
        assert found_M.max() < 1e-5
    elif name == "odd sizes":  # torch's kernels for few bits take no such sizes
        assert found_M.mean() < 0.2
    else:
        torchs = copy.deepcopy(made)
        pack(torchs, format)
        most = 1.2 if format == "int8-weights" else 1.05  # here the rows have 8 bits too
        assert found_M.mean() < most * error(hidden(torchs, ids_M, LENGTHS), expected_MD).mean()


@pytest.mark.parametrize("format", ["fp32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("name", ["bert", "odd sizes"])
def test_a_sequences_bits_are_its_own(name: str, format: Format) -> None:
    """Alone, beside others, with one thread or more; where each thread has its own sequences, and where they share."""
    made = model(name)
    ids = torch.split(texts(LENGTHS), LENGTHS)
    alone = [hidden(native(made, format), own, [len(own)]) for own in ids]
    for threads in (1, 2, 3):
        packed = native(made, format, threads)
        for numbers in (range(len(ids)), range(3), [2], [12, 2], [5, 5, 5, 9, 1] * 30):
            lengths = [LENGTHS[number] for number in numbers]
            found_MD = hidden(packed, torch.cat([ids[number] for number in numbers]), lengths)
            assert torch.equal(found_MD, torch.cat([alone[number] for number in numbers])), (threads, numbers)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_the_first_tokens_alone_have_the_same_bits(name: str, threads: int) -> None:
    for lengths in (LENGTHS, [150], [9, 8, 7] * 20):
        packed, ids_M = native(model(name), "int8", threads), texts(lengths)
        found_BD = packed.first_states(ids_M, tuple(lengths), None)
        starts = np.cumsum([0, *lengths[:-1]])
        assert torch.equal(found_BD, hidden(packed, ids_M, lengths)[starts])


def test_segments_count() -> None:
    made, ids_M = model("bert"), texts(LENGTHS)
    segments_M = ids_M % 2
    expected_MD = hidden(made, ids_M, LENGTHS, segments_M=segments_M)
    assert error(hidden(native(made, "fp32"), ids_M, LENGTHS, segments_M=segments_M), expected_MD).max() < 1e-5
    assert error(hidden(made, ids_M, LENGTHS), expected_MD).max() > 1e-3


@pytest.mark.parametrize("heads", [{"classification": 3}, {"tagging": 5}, {"span_qa": 0}, {"masked_lm": 0}])
def test_heads_stand_on_it(heads: dict[str, int]) -> None:
    made, ids_M = model("bert", heads), texts(LENGTHS)
    packed = native(made, "fp32")

    def scores(of) -> torch.Tensor:
        with torch.inference_mode():
            hidden_MD = of(ids_M, tuple(LENGTHS))
            if "classification" in heads:
                return classify(of, hidden_MD, LENGTHS)
            if "masked_lm" in heads:
                return of.lm_features(hidden_MD)
            return of.tag(hidden_MD) if "tagging" in heads else of.spans(hidden_MD)

    assert torch.allclose(scores(packed), scores(made), atol=2e-5, rtol=1e-4)


def test_who_looks_inside_is_shown_it() -> None:
    made, ids_M, seen, seen_natively = model("bert"), texts(LENGTHS), {}, {}
    hidden(made, ids_M, LENGTHS, taps=lambda place, x: seen.setdefault(place, x))
    hidden(native(made, "fp32"), ids_M, LENGTHS, taps=lambda place, x: seen_natively.setdefault(place, x))
    assert list(seen) == list(seen_natively)
    assert all(torch.allclose(seen_natively[place], seen[place], atol=2e-4) for place in seen)


@pytest.mark.parametrize(("ids", "lengths"), [([VOCAB], [1]), ([-1], [1]), ([3] * 201, [201])])
def test_what_has_no_embedding_is_torchs_fault(ids: list[int], lengths: list[int]) -> None:
    for made in (model("bert"), native(model("bert"), "fp32")):
        with pytest.raises(IndexError):
            made(torch.tensor(ids), tuple(lengths))


def test_a_processor_without_wide_registers(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """The same C files in plain instructions."""
    made, ids_M = model("odd sizes"), texts(LENGTHS)
    expected_MD = hidden(made, ids_M, LENGTHS)
    monkeypatch.setattr(build, "FLAGS", tuple(flag for flag in build.FLAGS if flag != "-march=native"))
    monkeypatch.setenv("WENMO_CACHE", str(tmp_path.parent / "plain"))
    monkeypatch.setattr(step, "library", build.library.__wrapped__)
    packed = native(made, "fp32", 2)
    assert packed.forward.step.threads.library.register_width() < 16
    assert error(hidden(packed, ids_M, LENGTHS), expected_MD).max() < 1e-5


def test_threads_may_ask_at_once() -> None:
    packed = native(model("bert"), "int8", 2)
    ids = [texts([length]) for length in range(1, 41)]
    expected = [hidden(packed, own, [len(own)]) for own in ids]
    wrong = []

    def ask(number: int) -> None:
        for turn in range(20):
            own = (number * 7 + turn * 3) % len(ids)
            if not torch.equal(hidden(packed, ids[own], [len(ids[own])]), expected[own]):
                wrong.append(own)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not wrong


# Where it is not native ---------------------------------------------------------------------------------


def test_other_models_stay_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    adapted, foreign = model("bert"), model("bert")
    put_on(adapted, LoraSettings(rank=2), (), 0)
    foreign.bert.encoder["layer"][1].output.dense = type("Other", (Linear,), {})(96, 64)
    for made in (adapted, foreign):
        with pytest.raises(UsageError, match="native"):
            pack_encoder(made, "fp32", "on")
        pack_encoder(made, "fp32")
        assert not isinstance(made.forward, NativeForward)
    off = model("bert")
    pack_encoder(off, "fp32", "off")
    assert not isinstance(off.forward, NativeForward)
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setattr(step, "library", build.library.__wrapped__)
    pack_encoder(off := model("bert"), "fp32")
    assert not isinstance(off.forward, NativeForward)


def test_torch_asks_no_helpers_beside_it() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with in_one_thread(native(model("bert"), "fp32")):
            assert torch.get_num_threads() == 1
        with in_one_thread(model("bert")):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_workspace_serves_again() -> None:
    """Calls of one size take the same memory."""
    made = native(model("bert"), "fp32")
    asked: encoder.EncoderStep = made.forward.step
    for _ in range(3):
        hidden(made, texts(LENGTHS), LENGTHS)
    assert len(asked._workspaces) == 1
    assert isinstance(asked.threads, Threads)
