"""Several processes that train one model: the same steps as one process makes, and what happens when one of them ends.

The processes are real and speak over loopback (gloo); they are forked from a server that has torch loaded.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import small_data
from wenmo.cli import main
from wenmo.data.examples import Rows
from wenmo.data.loader import Loader
from wenmo.data.sequence import Sequence as Tokens
from wenmo.errors import DataError, RecipeError
from wenmo.files import read_jsonl, sha256_file
from wenmo.objectives import Objective
from wenmo.recipe import parse_recipe
from wenmo.stages.train.weights import refuse_in_parts
from wenmo.tensors import load_tensors
from wenmo.training.processes import ParallelSettings, Processes, joined

CONTEXT = multiprocessing.get_context("forkserver")
DDP, FSDP = (), ("train.parallel.type=fsdp",)


# Who does what ----------------------------------------------------------------------------------------


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=60), batch_tokens=st.integers(1, 60),
       accumulation=st.integers(1, 6), size=st.integers(1, 8), seed=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_a_step_is_shared_out_and_nothing_lost(lengths: list[int], batch_tokens: int, accumulation: int, size: int,
                                               seed: int) -> None:
    """Each process plans by itself; together they have the examples of the step that one process has, in its order."""
    examples = Rows([Tokens(row, {"ids": np.full(length, row)})] for row, length in enumerate(lengths))
    alone = Loader(examples, batch_tokens, accumulation, seed)
    found = [Processes(rank, size) for rank in range(size)]
    loaders = [Loader(examples, batch_tokens, each.micro_batches(accumulation), seed) for each in found]
    for step in range(alone.steps_in_epoch(0) + 2):
        rows = []
        for process, loader in zip(found, loaders, strict=True):
            slices = loader.slices(step)
            assert len(slices) <= process.micro_batches(accumulation)
            shares = [len(other.share(len(slices))) for other in found]
            assert max(shares) - min(shares) <= 1
            rows += [row for i in process.share(len(slices)) for row in slices[i].text.rows]
        assert rows == [row for batch in alone.batches(step) for row in batch.text.rows]


@given(accumulation=st.integers(1, 64), size=st.integers(1, 16))
def test_where_the_processes_divide_the_accumulation_the_micro_batches_are_the_recipes(accumulation: int,
                                                                                     size: int) -> None:
    cut = Processes(0, size).micro_batches(accumulation)
    assert cut % size == 0
    assert accumulation <= cut < accumulation + size


# Real processes ---------------------------------------------------------------------------------------


def _be(function: Any, environment: dict[str, str], log: str, arguments: tuple[Any, ...]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    function(*arguments)


def start(function: Any, size: int, logs: Path, *arguments: Any) -> list[Any]:
    """`function(*arguments)` in `size` processes, as torchrun would start them; what each prints is in `logs`-RANK."""
    CONTEXT.set_forkserver_preload(["wenmo.cli", "wenmo.stages.folds", "torch.utils.tensorboard",
                                    "torch.distributed.fsdp"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(size):
        environment = {"WENMO_LANG": "en", "OMP_NUM_THREADS": "1"}
        if size > 1:
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
                            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        started.append(CONTEXT.Process(target=_be, args=(function, environment, f"{logs}-{rank}.log", arguments)))
        started[-1].start()
    return started


def ended(processes: Sequence[Any], seconds: float = 240.0) -> list[int]:
    """Exit codes, all within so many seconds."""
    until = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
    late = [process for process in processes if process.exitcode is None]
    for process in late:
        process.kill()
    assert not late, f"{len(late)} of {len(processes)} have not ended"
    return [process.exitcode for process in processes]


def _wenmo(arguments: Sequence[str]) -> None:
    sys.argv = ["wenmo", *arguments]
    main()


class Runs:
    """Runs of one small recipe in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = small_data.write(folder / "data", num_reviews=80, num_news=80)
        made = small_data.recipe("causal_lm", steps=6, batch_tokens=400, accumulation=4, log_every=1, evaluate_every=3,
                                 save_every=2, keep=9, ema=0.6, best={"metric": "loss"}, samples=["新华社"])
        made["model"]["attention_dropout"] = 0.1
        self.recipe = folder / "recipe.yaml"
        self.recipe.write_text(yaml.safe_dump(made), encoding="utf-8")

    def command(self, name: str, *overrides: str) -> list[str]:
        return ["train", str(self.recipe), *overrides, "--data-root", str(self.data), "--out", str(self.folder / name)]

    def start(self, name: str, size: int, *overrides: str) -> list[Any]:
        return start(_wenmo, size, self.folder / name, self.command(name, *overrides))

    def carry_out(self, name: str, size: int, *overrides: str) -> Path:
        codes = ended(self.start(name, size, *overrides))
        assert codes == [0] * size, self.said(name, 0)
        return self.folder / name

    def said(self, name: str, rank: int) -> str:
        return Path(f"{self.folder / name}-{rank}.log").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    made = Runs(tmp_path_factory.mktemp("runs"))
    made.carry_out("alone", 1)
    return made


def log(run: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "tokens_per_second"}
            for row in read_jsonl(run / "metrics.jsonl")]


def assert_alike(run: Path, other: Path) -> None:
    """Every figure of the log, samples too, and the weights of the model that is kept."""
    for row, same in zip(log(run), log(other), strict=True):
        assert row == pytest.approx(same, rel=1e-5) if "samples" not in row else row.pop("samples") == same.pop(
            "samples") and row == pytest.approx(same, rel=1e-5)
    ours, theirs = (load_tensors(each / "model" / "model.safetensors") for each in (run, other))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("size", "how"), [(2, DDP), (4, DDP), (2, FSDP), (4, FSDP)])
def test_several_processes_make_the_steps_of_one(runs: Runs, size: int, how: tuple[str, ...]) -> None:
    """With dropout, as its masks are those of the micro-batch; with averaged weights, samples, the best kept."""
    name = f"{size}-{how}"
    run = runs.carry_out(name, size, *how)
    assert_alike(run, runs.folder / "alone")
    assert f"{size} × cpu" in runs.said(name, 0)
    assert not any(runs.said(name, rank) for rank in range(1, size))  # one speaks for all
    left = [sorted(path.name for path in (each / "checkpoints" / "step-6").iterdir())
            for each in (run, runs.folder / "alone")]
    assert left[0] == left[1]


def _speak(folder: str) -> None:
    """What each process heard, saw added up, and was decided for it."""
    with joined(ParallelSettings(), torch.device("cpu")) as processes:
        rank = processes.rank
        said = processes.told({"rank": rank, "long": "文" * (0 if rank else 3000), "nan": float("nan")})
        assert [each["rank"] for each in said] == [0, 1, 2]
        assert len(said[0]["long"]) == 3000
        assert np.isnan(said[2]["nan"])
        assert processes.decided(lambda: ["the first's", rank]) == ["the first's", 0]
        with processes.in_turn():
            file = Path(folder) / "made"
            assert file.exists() == (rank > 0)
            file.touch()
        ours, never, some = (torch.nn.Parameter(torch.zeros(5)) for _ in range(3))
        ours.grad = torch.full((5,), 2.0**rank)
        some.grad = torch.ones(5) if rank == 1 else None
        processes.sum_gradients([ours, never, some])
        assert ours.grad.tolist() == [7.0] * 5
        assert never.grad is None
        assert torch.equal(some.grad, torch.ones(5)) if some.grad is not None else False
        assert processes.end_to_end(torch.full((rank, 2), rank)).tolist() == [[1, 1], [2, 2], [2, 2]]


def test_processes_speak(tmp_path: Path) -> None:
    assert ended(start(_speak, 3, tmp_path / "speak", str(tmp_path))) == [0] * 3


def _fail_first() -> None:
    with joined(ParallelSettings(), torch.device("cpu")) as processes:
        if processes.is_first:
            raise DataError("the first alone has seen it")
        processes.wait()


def test_an_error_of_one_ends_the_others(tmp_path: Path) -> None:
    assert ended(start(_fail_first, 3, tmp_path / "fail")) == [1] * 3
    said = [(tmp_path / f"fail-{rank}.log").read_text(encoding="utf-8") for rank in range(3)]
    assert "DataError: the first alone has seen it" in said[0]
    assert all("ProcessFailed: another process of this run has ended" in each for each in said[1:])


# Checkpoints, and other numbers of processes ----------------------------------------------------------


def begun(runs: Runs, source: str, name: str) -> None:
    """A copy of a run, as it stood after its first checkpoint."""
    shutil.copytree(runs.folder / source, runs.folder / name)
    for made in ("checkpoints/step-4", "checkpoints/step-6", "model"):
        shutil.rmtree(runs.folder / name / made)


@pytest.mark.parametrize(("source", "size", "how"), [("2-()", 1, DDP), ("2-()", 4, FSDP), (f"4-{FSDP}", 2, DDP),
                                                     (f"2-{FSDP}", 1, DDP)])
def test_a_checkpoint_opens_on_another_number_of_processes(runs: Runs, source: str, size: int,
                                                           how: tuple[str, ...]) -> None:
    name = f"resumed-{source}-{size}"
    begun(runs, source, name)
    run = runs.carry_out(name, size, *how)
    assert "goes on from step 2 of 6" in runs.said(name, 0)
    assert "not be bit-equal" in runs.said(name, 0)
    assert_alike(run, runs.folder / "alone")


@pytest.mark.parametrize("how", [DDP, FSDP])
def test_the_same_number_resumes_to_the_same_bits(runs: Runs, how: tuple[str, ...]) -> None:
    """And a signal to any of them saves and stops them all."""
    name = f"stopped-{how}"
    started = runs.start(name, 2, *how)
    wait_for_step(runs.folder / name, 1, started[0])
    os.kill(started[1].pid, signal.SIGTERM)
    assert ended(started) == [75, 75]
    assert not (runs.folder / name / "model").exists()
    run = runs.carry_out(name, 2, *how)
    assert "goes on from step" in runs.said(name, 0)
    assert log(run) == log(runs.folder / f"2-{how}")
    assert weights(run) == weights(runs.folder / f"2-{how}")


# What needs more than a share -------------------------------------------------------------------------


def test_rows_are_compared_with_those_of_the_other_processes(runs: Runs) -> None:
    """InfoNCE: every row of the step against every other, whichever process has read it."""
    texts = small_data.news(60)
    small_data.write_csv(runs.data / "pairs.csv", ("text_a", "text_b"), zip(texts, texts[::-1], strict=True))
    made = small_data.recipe("similarity", steps=3, batch_tokens=512, accumulation=2, log_every=1)
    made["data"]["train"] = [{"path": "pairs.csv"}]
    made["data"]["choose"] = {"carve": 0}
    made["task"] |= {"target": "pairs"}
    runs = Runs(runs.folder / "pairs") if not (runs.folder / "pairs").exists() else runs
    shutil.copy(runs.folder.parent / "data" / "pairs.csv", runs.data / "pairs.csv")
    runs.recipe.write_text(yaml.safe_dump(made), encoding="utf-8")
    assert_alike(runs.carry_out("together", 2), runs.carry_out("alone", 1))


@pytest.mark.parametrize(("overrides", "key"), [
    (("train.optimizer={type: muon}",), "train.optimizer.type"), (("train.adversarial=10%",), "train.adversarial"),
    (("train.optimizer.state_bits=8",), "train.optimizer.state_bits"),
    (("train.checkpoint_activations=true",), "train.checkpoint_activations"),
    (("train.compile=true",), "train.compile"), (("train.unfreeze={every: 1}",), "train.unfreeze")])
def test_what_needs_whole_weights_is_refused_in_parts(runs: Runs, overrides: tuple[str, ...], key: str) -> None:
    name = f"refused-{key}"
    assert ended(runs.start(name, 2, *FSDP, *overrides)) == [2, 2]
    said = runs.said(name, 0).splitlines()
    assert said[-3].startswith(f"`{key}` as it is does not go with `train.parallel: {{type: fsdp}}`")
    assert said[-2:] == [f"where: {key}", "mend:  train.parallel: {type: ddp}"]
    assert not runs.said(name, 1)
    assert not (runs.folder / name / "recipe.yaml").exists()


@pytest.mark.parametrize(("changes", "key"), [
    *(({"optimizer": {"type": name}}, "train.optimizer.type") for name in ("lamb", "muon", "adafactor")),
    ({"optimizer": {"state_bits": 8}}, "train.optimizer.state_bits"), ({"adversarial": 0.1}, "train.adversarial"),
    ({"unfreeze": {"every": 1}}, "train.unfreeze"), ({"checkpoint_activations": True}, "train.checkpoint_activations"),
    ({"compile": True}, "train.compile"), ({}, "task"), ({}, "tasks")])
def test_each_refusal_says_what_and_how_to_mend_it(changes: dict[str, Any], key: str,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """In both languages; without the processes."""
    made = small_data.recipe("classification", **changes)
    if key == "tasks":
        made["tasks"] = {"one": made.pop("task"), "other": {"type": "classification"}}
    coupled = (lambda *_: []) if key == "task" else None
    objective = Objective(lambda _: {}, lambda *_: [], coupled=coupled)
    for language, sign in (("en", "mend:  "), ("zh", "办法：")):
        monkeypatch.setenv("WENMO_LANG", language)
        with pytest.raises(RecipeError) as caught:
            refuse_in_parts(parse_recipe(made, "here"), objective)
        lines = str(caught.value).splitlines()
        assert lines[0].startswith("`task`" if key == "tasks" else f"`{key}`")
        assert lines[2] == f"{sign}train.parallel: {{type: ddp}}"
    refuse_in_parts(parse_recipe(small_data.recipe("classification"), "here"), Objective(lambda _: {}, lambda *_: []))


def test_folds_are_refused(runs: Runs) -> None:
    assert ended(runs.start("folds", 2, "data.choose={folds: 3}")) == [2, 2]
    assert "cross-validation is not for several processes" in runs.said("folds", 0)


def test_a_loss_that_is_no_number_ends_all_with_one_message(runs: Runs) -> None:
    assert ended(runs.start("nan", 2, "train.optimizer.lr=1e30", "train.clip=null")) == [1, 1]
    assert re.search(r"step \d: .*micro-batch|step \d: ", runs.said("nan", 0))
    assert not runs.said("nan", 1)


# Another ends -----------------------------------------------------------------------------------------


def wait_for_step(run: Path, step: int, process: Any) -> None:
    metrics = run / "metrics.jsonl"
    while alive(process) and not (metrics.exists() and f'"step": {step},' in metrics.read_text(encoding="utf-8")):
        time.sleep(0.005)


def alive(process: Any) -> bool:
    return process.poll() is None if isinstance(process, subprocess.Popen) else process.is_alive()


@pytest.mark.parametrize(("rank", "size", "how"), [(1, 2, DDP), (0, 4, FSDP)])
def test_one_is_killed_and_the_same_command_goes_on(runs: Runs, rank: int, size: int, how: tuple[str, ...]) -> None:
    name = f"killed-{size}"
    started = runs.start(name, size, *how)
    wait_for_step(runs.folder / name, 3, started[0])
    started[rank].kill()
    codes = ended(started, 60)
    assert codes == [-signal.SIGKILL if other == rank else 1 for other in range(size)]
    for other in set(range(size)) - {rank}:
        said = runs.said(name, other).splitlines()
        assert said[-3:] == ["another process of this run has ended",
                             f"where: process {other} of {size}, counted from 0",
                             "mend:  see what it said above; then run the same command again: it goes on from the last "
                             "checkpoint"]
    run = runs.carry_out(name, size, *how)
    assert "goes on from step 2 of 6" in runs.said(name, 0)
    assert log(run) == log(runs.folder / f"{size}-{how}")
    assert weights(run) == weights(runs.folder / f"{size}-{how}")


def weights(run: Path) -> str:
    return sha256_file(run / "model" / "model.safetensors")


class Torchrun:
    """The command as a user gives it."""

    def __init__(self, runs: Runs, name: str, size: int, *overrides: str) -> None:
        self.run = runs.folder / name
        self.process = subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size), "-m",
             "wenmo", *runs.command(name, *overrides)], stderr=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "WENMO_LANG": "en"})

    def kill(self, rank: int) -> None:
        for line in subprocess.check_output(["ps", "--ppid", str(self.process.pid), "-o", "pid="], text=True).split():
            with contextlib.suppress(OSError):
                if f"\0RANK={rank}\0" in Path(f"/proc/{line}/environ").read_text(encoding="utf-8"):
                    os.kill(int(line), signal.SIGKILL)

    def ended(self) -> tuple[float, str]:
        """(seconds until all had ended, what was said); they have a minute."""
        began = time.monotonic()
        _, said = self.process.communicate(timeout=60)
        return time.monotonic() - began, said


def test_one_of_torchruns_is_killed(runs: Runs) -> None:
    torchrun = Torchrun(runs, "torchrun", 2)
    wait_for_step(torchrun.run, 3, torchrun.process)
    torchrun.kill(1)
    _, said = torchrun.ended()
    assert torchrun.process.returncode == 1
    assert "Signal 9 (SIGKILL)" in said  # torchrun's own summary; it may end the other before that one has spoken
    assert_alike(runs.carry_out("torchrun", 2), runs.folder / "alone")


@pytest.mark.long
@pytest.mark.parametrize(("size", "how"), [(2, DDP), (4, FSDP)])
def test_killed_at_ten_random_moments(runs: Runs, size: int, how: tuple[str, ...]) -> None:
    """Any of them, at any time after the first step: the others end by themselves, the same command ends alike."""
    longer = (*how, "train.steps=60", "train.save_every=5", "train.evaluate_every=7")
    whole = Torchrun(runs, f"whole-{size}", size, *longer)
    wait_for_step(whole.run, 1, whole.process)
    seconds, said = whole.ended()
    assert whole.process.returncode == 0, said
    rng, done, slowest = random.Random(size), 0, 0.0
    while done < 10:
        name = f"random-{size}-{done}"
        killed = Torchrun(runs, name, size, *longer)
        wait_for_step(killed.run, 1, killed.process)
        time.sleep(rng.uniform(0, 0.9 * seconds))
        if not alive(killed.process) or (killed.run / "model").exists():
            killed.ended()
            shutil.rmtree(killed.run)
            continue
        killed.kill(rng.randrange(size))
        took, said = killed.ended()
        assert "another process of this run has ended" in said or "Signal 9 (SIGKILL)" in said
        again = Torchrun(runs, name, size, *longer)
        _, said = again.ended()
        assert again.process.returncode == 0, said
        assert weights(again.run) == weights(whole.run), said
        done, slowest = done + 1, max(slowest, took)
    print(f"\n{size} processes: killed {done} times, the others ended after at most {slowest:.1f} s; all resumed to "
          f"{weights(whole.run)[:12]}…")
