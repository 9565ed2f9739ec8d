"""A run survives what happens to runs: kills at any moment, full disks, damage, a second process, changed recipes."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny_training import Tiny, TinySettings, train, train_and_die, write_model
from wenmo import files
from wenmo.errors import CheckpointError, RunLocked, StorageError, UsageError
from wenmo.tensors import save_tensors
from wenmo.training import checkpoint
from wenmo.training.best import BestSettings
from wenmo.training.loop import LoopSettings
from wenmo.training.optimizer import AdamW, build
from wenmo.training.run import Run, Stopper

FACTS = {"data": "d" * 64}


@pytest.fixture(autouse=True)
def english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WENMO_LANG", "en")


# Kill -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def children() -> Any:
    """Starts children that have torch in memory already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "torch.utils.tensorboard", "safetensors.torch",
                                    "wenmo.training.run", "wenmo.training.loop"])
    return context


def exit_code(
    children: Any, target: Callable[..., None], *arguments: Any, kill_after_seconds: float | None = None
) -> int:
    child = children.Process(target=target, args=arguments)
    child.start()
    if kill_after_seconds is not None:
        time.sleep(kill_after_seconds)
        child.kill()
    child.join(60)
    assert child.exitcode is not None, "the child hangs"
    return child.exitcode


def finished(run: Path) -> dict[str, Any]:
    """What must be equal at the end of two runs."""
    newest = checkpoint.latest(run / "checkpoints")
    assert newest is not None
    return {
        "weights": files.sha256_file(run / "model" / "model.safetensors"),
        "best": json.loads((run / "model" / "best.json").read_text()),
        "optimizer": files.sha256_file(newest / checkpoint.TENSORS),
        "average": [files.sha256_file(path) for path in newest.glob(checkpoint.AVERAGE)],
        "log": files.read_jsonl(run / "metrics.jsonl"),
        "checkpoints": sorted(path.name for path in (run / "checkpoints").iterdir()),
        "folder": sorted(path.name for path in run.iterdir()),
    }


def test_killed_at_every_operation_of_a_save_the_same_command_ends_in_the_same_weights(
    tmp_path: Path, children: Any
) -> None:
    settings = TinySettings(steps=6, save_every=3, keep=1, best=BestSettings(metric="tokens"))  # step-3 is pruned
    assert exit_code(children, train, tmp_path / "whole", settings) == 0
    expected = finished(tmp_path / "whole")
    for operation in range(1, 1000):
        run = tmp_path / str(operation)
        code = exit_code(children, train_and_die, run, settings, operation)
        if code != 0:
            assert code == -signal.SIGKILL
            for whole in (run / "checkpoints").glob("step-*"):
                checkpoint.verify(whole)
            assert exit_code(children, train, run, settings) == 0
        assert finished(run) == expected, operation
        if code == 0:
            break
    assert operation > 55, "these are not all operations"


def test_killed_many_times_the_same_command_ends_in_the_same_weights(tmp_path: Path, children: Any) -> None:
    settings = TinySettings(steps=30, save_every=4, keep=2, ema=0.9, loop=LoopSettings(l1=1e-3))
    assert exit_code(children, train, tmp_path / "whole", settings) == 0
    expected = finished(tmp_path / "whole")
    assert [row["step"] for row in expected["log"]] == list(range(1, 31))
    assert expected["average"]

    rng, num_killed = random.Random(0), 0
    for trial in range(2):
        run = tmp_path / str(trial)
        for _ in range(10):
            num_killed += exit_code(children, train_and_die, run, settings, rng.randint(1, 60)) == -signal.SIGKILL
            code = exit_code(children, train, run, settings, 0.01, kill_after_seconds=rng.uniform(0, 0.3))
            num_killed += code == -signal.SIGKILL
        assert exit_code(children, train, run, settings) == 0
        assert finished(run) == expected
    assert num_killed >= 5


# Damage and full disks --------------------------------------------------------------------------------


@pytest.fixture
def two_checkpoints(tmp_path: Path) -> tuple[Path, Path]:
    """The folder after a short run, with step-4 and step-8."""
    train(tmp_path / "run", TinySettings(steps=8))
    folder = tmp_path / "run" / "checkpoints"
    return folder / "step-4", folder / "step-8"


@pytest.mark.parametrize("name", ["model.safetensors", "trainer.safetensors", "trainer.json", "config.json"])
@pytest.mark.parametrize("harm", ["one bit", "cut", "gone"])
def test_damage_is_found_and_the_last_whole_checkpoint_named(
    two_checkpoints: tuple[Path, Path], name: str, harm: str
) -> None:
    good, newest = two_checkpoints
    file = newest / name
    content = bytearray(file.read_bytes())
    if harm == "one bit":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif harm == "cut":
        file.write_bytes(content[:-7])
    else:
        file.unlink()
    with pytest.raises(CheckpointError) as caught:
        train(newest.parent.parent, TinySettings(steps=8))
    assert name in caught.value.what
    assert str(newest) in caught.value.mend
    assert str(good) in caught.value.mend


def full_disk(path: Path) -> None:
    with open("/dev/full", "wb") as file:
        file.write(bytes(10_000))


def failing_safetensors(path: Path) -> None:
    (path / "weights").write_text("a file where safetensors needs a folder")
    save_tensors(path / "weights" / "model.safetensors", {"a": torch.zeros(2)})


@pytest.mark.parametrize("failure", [full_disk, failing_safetensors])
def test_a_failed_save_leaves_the_old_checkpoint_whole(
    two_checkpoints: tuple[Path, Path], failure: Callable[[Path], None]
) -> None:
    if failure is full_disk and not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    check_failed_save(two_checkpoints[1], failure)


def test_a_failed_fsync_leaves_the_old_checkpoint_whole(
    two_checkpoints: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    check_failed_save(two_checkpoints[1], lambda path: write_model(Tiny(), path))


def check_failed_save(newest: Path, write: Callable[[Path], None]) -> None:
    model = Tiny()
    before = sorted(newest.parent.iterdir())
    for step in (8, 12):  # over the old one, and beside it
        with pytest.raises(StorageError):
            checkpoint.save(newest.parent, step, write, build(model, AdamW()), model, {})
    assert sorted(newest.parent.iterdir()) == before
    assert checkpoint.latest(newest.parent) == newest
    assert checkpoint.verify(newest).step == 8


def test_prune_keeps_the_newest_and_the_protected(tmp_path: Path) -> None:
    for step in (2, 9, 10, 11):
        (tmp_path / f"step-{step}").mkdir()
    checkpoint.prune(tmp_path, 2, protect={2})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-10", "step-11", "step-2"]


@pytest.mark.parametrize("change", ["missing", "unknown", "shape", "dtype"])
def test_weights_that_do_not_fit_are_refused(two_checkpoints: tuple[Path, Path], change: str) -> None:
    weights = checkpoint.read_weights(two_checkpoints[1])
    if change == "missing":
        del weights["hidden.bias"]
    elif change == "unknown":
        weights["hidden.extra"] = torch.zeros(1)
    elif change == "shape":
        weights["hidden.bias"] = torch.zeros(3)
    else:
        weights["hidden.bias"] = weights["hidden.bias"].bfloat16()
    model = Tiny()
    before = model.hidden.weight.clone()
    with pytest.raises(CheckpointError, match=r"hidden\.(bias|extra)"):
        checkpoint.load_weights(two_checkpoints[1], model, lambda _: weights)
    assert torch.equal(model.hidden.weight, before)


# The folder -------------------------------------------------------------------------------------------


def test_a_second_process_is_refused_with_the_first_ones_pid(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from tiny_training import TinySettings
from wenmo.training.run import Run
with Run.open(Path({str(tmp_path / "run")!r}), TinySettings(), {FACTS!r}):
    print("open", flush=True)
    input()
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        with pytest.raises(RunLocked, match=str(other.pid)):
            with Run.open(tmp_path / "run", TinySettings(), FACTS):
                pass
        other.kill()
    with Run.open(tmp_path / "run", TinySettings(), FACTS):
        pass


def test_a_changed_identity_key_or_fact_is_refused_and_shown(tmp_path: Path) -> None:
    train(tmp_path, TinySettings(steps=2))
    log = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(CheckpointError) as caught:
        with Run.open(tmp_path, TinySettings(steps=2, optimizer=AdamW(lr=0.5)), {"data": "e" * 64}):
            pass
    assert "optimizer.lr: 0.01 → 0.5" in str(caught.value)
    assert "data:" in str(caught.value)
    assert (tmp_path / "metrics.jsonl").read_bytes() == log


def test_a_free_key_may_change_and_the_recipe_follows(tmp_path: Path) -> None:
    train(tmp_path, TinySettings(steps=2))
    train(tmp_path, TinySettings(steps=2, save_every=1, best=BestSettings(patience=3)))
    recipe = (tmp_path / "recipe.yaml").read_text()
    assert "save_every: 1" in recipe
    assert "patience: 3" in recipe


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    for name in (".precious.tmp", "recipe.yaml"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text("mine")
        with pytest.raises(UsageError, match=name):
            train(folder, TinySettings(steps=2))
        assert [path.name for path in folder.iterdir()] == [name]
        assert (folder / name).read_text() == "mine"


def test_rewind_drops_later_rows_and_a_torn_line(tmp_path: Path) -> None:
    with Run.open(tmp_path, TinySettings(), FACTS) as run:
        run.rewind(0)
        for step in range(1, 6):
            run.log({"step": step, "loss": float("nan") if step == 2 else 0.5})
    with open(run.metrics, "a") as file:
        file.write('{"step": 6, "lo')
    with Run.open(tmp_path, TinySettings(), FACTS) as run:
        run.rewind(3)
        run.log({"step": 4, "loss": 0.25})
    expected = [(1, 0.5), (2, None), (3, 0.5), (4, 0.25)]
    assert [(row["step"], row["loss"]) for row in files.read_jsonl(run.metrics)] == expected
    assert "NaN" not in run.metrics.read_text()  # not JSON


def test_tensorboard_shows_the_log_without_doubles(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for start in (0, 2):
        with Run.open(tmp_path, TinySettings(), FACTS) as run:
            run.rewind(start)
            for step in range(start + 1, start + 4):
                run.log({"step": step, "loss": float(10 * start + step)})
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in events] == [(1, 1), (2, 2), (3, 23), (4, 24), (5, 25)]


def test_without_tensorboard_the_log_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    train(tmp_path, TinySettings(steps=3))
    assert [record.message for record in caplog.records if "wenmo[tensorboard]" in record.message] != []
    assert len(caplog.records) == 1
    assert len(files.read_jsonl(tmp_path / "metrics.jsonl")) == 3


def test_another_number_of_threads_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with Run.open(tmp_path, TinySettings(), FACTS):
                pass
    finally:
        torch.set_num_threads(before)
    assert "threads 1, now 2" in caplog.text


# Signals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_asks_the_run_to_stop(number: signal.Signals, code: int) -> None:
    before = signal.getsignal(number)
    with Stopper() as stopper:
        assert stopper.exit_code is None
        signal.raise_signal(number)
        assert stopper.exit_code == code
    assert signal.getsignal(number) == before


def test_a_second_ctrl_c_stops_at_once() -> None:
    with Stopper():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
