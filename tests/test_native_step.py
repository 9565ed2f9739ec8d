"""Native steps: the numbers are the reference's, a row's bits are its own, and where nothing can be compiled torch
computes."""

from __future__ import annotations

import copy
import gc
import os
from pathlib import Path
from typing import get_args

import pytest
import torch

from wenmo import device
from wenmo.engine.native import NativeRunner, runner_for
from wenmo.engine.packed import Format
from wenmo.engine.runner import Piece, Read, Runner
from wenmo.engine.slots import Slots
from wenmo.errors import UsageError
from wenmo.models import architecture, create, logits, read_config
from wenmo.native import build, step
from wenmo.native.build import Unavailable
from wenmo.native.step import Threads

VOCAB = 300
BASE = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2, head_dim=32,
            intermediate_size=96, max_position_embeddings=600, vocab_size=VOCAB)
MODELS = {  # name → type, and what differs from BASE
    "llama": ("llama", {}),
    "every head its own keys": ("llama", dict(num_key_value_heads=6, head_dim=64)),
    "odd sizes": ("llama", dict(hidden_size=36, intermediate_size=50, head_dim=22, vocab_size=301)),
    "a stretched rotary": ("llama", dict(rope_scaling={
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64})),
    "biases everywhere": ("llama", dict(attention_bias=True, mlp_bias=True)),
    "a window": ("mistral", dict(sliding_window=20)),
    "a long window": ("mistral", dict(sliding_window=100)),
    "qwen2": ("qwen2", {}),
    "normed queries and keys": ("qwen3", dict(head_dim=16)),
}
IDS = [int(id) for id in torch.randint(10, VOCAB, (230,), generator=torch.Generator().manual_seed(1))]


def model(name: str):
    kind, changes = MODELS[name]
    config, _ = read_config(architecture(kind, kind).config_class, {"model_type": kind, **BASE, **changes}, kind)
    made = create(config, {"causal_lm": 0}, device.torch_rng("test", name)).eval()
    with torch.no_grad():
        for parameter_name, parameter in made.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
            elif parameter_name.endswith("bias"):
                parameter.normal_(generator=device.torch_rng("bias", parameter_name))
    return made


def native(made, format: Format, threads: int = 1) -> NativeRunner:
    return NativeRunner(copy.deepcopy(made), format, 64, Threads(threads))


def read(runner: Runner, ids: list[int], sizes: list[int], layers=None) -> torch.Tensor:
    """Scores after each id, read in pieces of these sizes, two in a call."""
    layers, pieces, start = {} if layers is None else layers, [], 0
    for size in sizes:
        pieces.append(Piece(ids[start : start + size], start, layers, 256, "each"))
        start += size
    assert start == len(ids)
    calls = (pieces[first : first + 2] for first in range(0, len(pieces), 2))
    return torch.cat([scores for call in calls for scores in runner.read(call)])


def prompt_and_after(runner: Runner) -> torch.Tensor:
    """Scores of a prompt in pieces, and of tokens after it."""
    layers, slots = {}, Slots(1024, 1024)
    found = read(runner, IDS[:200], [64, 64, 64, 8], layers)
    slots.admit("row", 230)
    slots.fill("row", layers, 200)
    return torch.cat([found, *runner.next_tokens(slots, [Read("row", 200, IDS[200:])])])


@pytest.mark.parametrize("format", get_args(Format))
@pytest.mark.parametrize("name", MODELS)
def test_scores_are_the_references(name: str, format: Format) -> None:
    """In fp32; in the other formats they are as near to them as torch's own, or nearer."""
    made = model(name)
    with torch.inference_mode():
        expected = logits(made, made(torch.tensor(IDS), [len(IDS)]))

    def error(runner: Runner) -> torch.Tensor:
        return (prompt_and_after(runner) - expected).norm(dim=1) / expected.norm(dim=1)

    found = error(native(made, format))
    if format == "fp32":
        assert found.max() < 1e-4
    elif name == "odd sizes":  # torch's kernels for few bits take no such sizes
        assert found.mean() < 0.1
    else:
        # Where torch has the weights alone in 8 bits, rows have them here too, in groups.
        most = 1.2 if format == "int8-weights" else 1.05
        assert found.mean() < most * error(Runner(copy.deepcopy(made), format, 64)).mean()


@pytest.mark.parametrize("format", get_args(Format))
@pytest.mark.parametrize("name", ["llama", "odd sizes", "a window"])
def test_a_rows_bits_are_its_own(name: str, format: Format) -> None:
    """However a prompt is cut, whoever is beside it, one token after the other or several at once, with one thread or
    two."""
    made = model(name)
    alone = native(made, format)
    expected = read(alone, IDS[:200], [200])
    for threads in (1, 2):
        runner = native(made, format, threads)
        for sizes in ([64, 64, 64, 8], [1, 7, 33, 100, 59], [199, 1]):
            layers = {}
            assert torch.equal(read(runner, IDS[:200], sizes, layers), expected), sizes
        slots = Slots(8192, 1024)
        starts = {f"row {number}": 1 + 5 * number for number in range(30)}  # of pools of two sizes
        for owner, start in starts.items():
            slots.admit(owner, start + 3)
            slots.fill(owner, layers, start)
        reads = [Read(owner, start, IDS[start : start + 1 + start % 3]) for owner, start in starts.items()]
        for count in (30, 1, 17):
            for each, scores in zip(reads[:count], runner.next_tokens(slots, reads[:count]), strict=True):
                assert torch.equal(scores, expected[each.start : each.start + len(each.ids)])


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_rows_that_nobody_asks_for_change_nothing(threads: int) -> None:
    """Of a long call the last layer computes what is scored alone, and its chunks go to whoever is free: more threads
    than processors, too."""
    runner = native(model("a window"), "bf16", threads)
    expected = read(native(model("a window"), "bf16"), IDS[:200], [1] * 200)
    for asked in (("none", "last", "each", "none"), ("last", "none", "none", "last"), ("none", "none", "none", "none")):
        layers, others = {}, {}
        pieces = [Piece(IDS[:130], 0, layers, 256, asked[0]), Piece(IDS[:150], 0, others, 256, asked[1]),
                  Piece(IDS[130:160], 130, layers, 256, asked[2]), Piece(IDS[150:200], 150, others, 256, asked[3])]
        for _ in range(20):  # whose turn it is differs each time
            layers.clear()  # keys of the round before would hide that somebody did not wait for them
            others.clear()
            for piece, scores in zip(pieces, runner.read(pieces), strict=True):
                end = piece.start + len(piece.ids)
                first = {"none": end, "last": end - 1, "each": piece.start}[piece.scores]
                assert torch.equal(scores, expected[first:end])


@pytest.mark.parametrize("format", get_args(Format))
def test_a_processor_without_wide_registers(format: Format, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The same C files in plain instructions."""
    expected = read(native(model("llama"), format), IDS, [230])
    monkeypatch.setattr(build, "FLAGS", tuple(flag for flag in build.FLAGS if flag != "-march=native"))
    monkeypatch.setenv("WENMO_CACHE", str(tmp_path.parent / "plain"))
    monkeypatch.setattr(step, "library", build.library.__wrapped__)
    runner = native(model("llama"), format)
    assert runner.steps.threads.library.register_width() < 16
    whole = read(runner, IDS, [230])
    assert (whole - expected).norm() / expected.norm() < (1e-5 if format == "fp32" else 2e-2)
    assert torch.equal(read(runner, IDS, [64, 100, 1, 65]), whole)


# Where it is not native ---------------------------------------------------------------------------------


def plain(kind: str, **changes):
    config, _ = read_config(architecture(kind, kind).config_class, {"model_type": kind, "vocab_size": VOCAB, **changes},
                            kind)
    return create(config, {"causal_lm": 0}, device.torch_rng("test", kind)).eval()


@pytest.mark.parametrize(("kind", "changes"), [
    ("gpt2", dict(n_embd=64, n_layer=2, n_head=4, n_positions=600)),
    ("llama", {**BASE, "hidden_act": "gelu"}),
    ("llama", {**BASE, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}),
])
def test_other_models_stay_with_torch(kind: str, changes: dict) -> None:
    assert type(runner_for(plain(kind, **changes), "fp32", 64)) is Runner
    with pytest.raises(UsageError, match="native"):
        runner_for(plain(kind, **changes), "fp32", 64, "on")


def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has loaded none yet."""
    monkeypatch.setattr(step, "library", build.library.__wrapped__)


def test_without_a_compiler_torch_computes(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    no_library(monkeypatch)
    monkeypatch.setenv("CC", "no-such-compiler")
    with caplog.at_level("INFO"):
        assert type(runner_for(model("llama"), "fp32", 64)) is Runner
    assert "no-such-compiler" in caplog.text
    with pytest.raises(UsageError, match="no-such-compiler") as caught:
        runner_for(model("llama"), "fp32", 64, "on")
    assert len(str(caught.value).splitlines()) == 3


def test_a_compiler_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\n[ \"$1\" = --version ] && exit 0\necho 'cannot do this' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setenv("WENMO_CACHE", str(tmp_path / "cache"))
    with pytest.raises(Unavailable, match="cannot do this"):
        build.library.__wrapped__()
    assert list((tmp_path / "cache" / "native").iterdir()) == []


def test_a_cache_that_others_may_write_is_not_trusted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WENMO_CACHE", str(tmp_path))
    (tmp_path / "native").mkdir()
    (tmp_path / "native").chmod(0o777)
    with pytest.raises(Unavailable, match="native"):
        build.library.__wrapped__()


def test_half_a_library_is_made_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WENMO_CACHE", str(tmp_path))
    build.library.__wrapped__()
    [made] = (tmp_path / "native").iterdir()
    copied = made.read_bytes()
    other = tmp_path / "other"
    monkeypatch.setenv("WENMO_CACHE", str(other))
    (other / "native").mkdir(parents=True)
    (other / "native").chmod(0o700)
    (other / "native" / made.name).write_bytes(copied[:100])
    build.library.__wrapped__().pool_new  # noqa: B018
    assert (other / "native" / made.name).read_bytes() == copied


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads as Linux lists them")
def test_threads_end_with_the_runner() -> None:
    before = set(os.listdir("/proc/self/task"))  # of which some may end meanwhile: those of earlier tests
    runner = native(model("llama"), "fp32", threads=3)
    read(runner, IDS[:10], [10])
    own = set(os.listdir("/proc/self/task")) - before
    assert len(own) == 2
    del runner
    gc.collect()
    assert not own & set(os.listdir("/proc/self/task"))
