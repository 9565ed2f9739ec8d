"""The proof: a run of a shipped recipe, killed at any moment, ends with the same weights when its command is repeated.

Every trial is a process of its own, ended by SIGKILL, and then the same command line until it exits with 0. The sizes
of the recipes are cut down so that a run takes seconds; all else is as shipped: two sources, two epochs, dropout,
accumulation, a tokenizer trained on the way, the best checkpoint, samples.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

import small_data
from wenmo.cli import main
from wenmo.config import read_yaml
from wenmo.files import read_jsonl, sha256_file
from wenmo.training import checkpoint

RECIPES = Path(__file__).parent.parent / "recipes"
NAMES = ("tiny-mlm", "tiny-gpt", "tiny-classification", "tiny-t5")
SIZES = ("tokenizer.train.vocab_size=600", "data.choose.carve=20", "train.threads=1")


@dataclass
class Trial:
    """A command line and the Run that it writes; `log` is what it said on stderr, all processes together."""

    run: Path
    command: list[str]
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.log = self.run.with_suffix(".log")

    def start(self) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "WENMO_LANG": "en"}
        with open(self.log, "ab") as log:
            return subprocess.Popen([*self.command, "--out", str(self.run)], env=environment, stderr=log)

    def finish(self) -> None:
        assert self.start().wait() == 0, self.log.read_text()

    def kill_after(self, seconds: float) -> bool:
        """Whether the process still lived."""
        process = self.start()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=seconds)
        return end(process)

    def kill_at_step(self, step: int) -> bool:
        process = self.start()
        while process.poll() is None and f'"step": {step},' not in self.text_of_log():
            time.sleep(0.002)
        return end(process)

    def kill_while_written(self, kind: str, *, after_seconds: float = 0.0, pause_seconds: float = 0.0) -> bool:
        """Kills `pause_seconds` into the first writing of a checkpoint ("step"), of "best" or of "model" that begins
        after `after_seconds`. Whether that was still inside it."""
        process = self.start()
        began = time.monotonic()
        while process.poll() is None and (time.monotonic() - began < after_seconds or kind not in self.being_written()):
            time.sleep(0.0005)
        time.sleep(pause_seconds)
        return end(process) and kind in self.being_written()

    def text_of_log(self) -> str:
        path = self.run / "metrics.jsonl"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def being_written(self) -> set[str]:
        """"best", "model", and "step" for a checkpoint newer than every complete one (older ones are being deleted)."""
        names = [path.name for path in (*self.run.glob(".*.tmp"), *(self.run / "checkpoints").glob("*"))]
        complete = [int(name.removeprefix("step-")) for name in names if re.fullmatch(r"step-\d+", name)]
        unfinished = [found for name in names
                      if (found := re.fullmatch(r"\.(best|model|step)(?:-(\d+))?\.\d+\.tmp", name))]
        return {found[1] for found in unfinished if found[2] is None or int(found[2]) > max(complete, default=0)}

    def result(self) -> dict[str, Any]:
        """All that must not depend on the kills: weights, tokenizer, card, and the log but for its times."""
        log = [{key: value for key, value in row.items() if key != "tokens_per_second"}
               for row in read_jsonl(self.run / "metrics.jsonl")]
        newest = checkpoint.latest(self.run / "checkpoints")
        assert newest is not None
        files = {f"model/{path.name}": path for path in (self.run / "model").iterdir()}
        files["optimizer"] = newest / checkpoint.TENSORS
        left = sorted(str(path.relative_to(self.run)) for path in self.run.rglob("*")
                      if "tensorboard" not in path.parts)
        return {"log": log, "left": left} | {name: sha256_file(path) for name, path in files.items()}


def end(process: subprocess.Popen[bytes]) -> bool:
    process.kill()
    return process.wait() == -signal.SIGKILL


def trial(folder: Path, name: str, run: str, *sizes: str) -> Trial:
    command = [sys.executable, "-m", "wenmo", "train", str(RECIPES / f"{name}.yaml"), *SIZES,
               f"model.{'d_model' if name == 'tiny-t5' else 'hidden_size'}=32", *sizes,
               "--data-root", str(folder / "data")]
    return Trial(folder / run, command)


def test_the_recipes_are_what_the_proof_is_about() -> None:
    for name in NAMES:
        recipe = read_yaml(RECIPES / f"{name}.yaml")
        train = recipe["train"]
        assert len(recipe["data"]["train"]) == 2
        assert (train["epochs"], train["accumulation"]) == (2, 2)
        assert "best" in train
        assert recipe["model"].get("attention_dropout", 0.1) == 0.1  # BERT's is 0.1 unless told otherwise
        assert ("samples" in train) == (name == "tiny-gpt")
    assert read_yaml(RECIPES / "tiny-mlm.yaml")["task"] == {
        "type": "masked_lm", "whole_word": True, "next_sentence": True}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "tiny-t5"])  # test_span_corruption.py resumes one
def test_killed_three_times_in_a_row(tmp_path: Path, name: str) -> None:
    small_data.write(tmp_path / "data", num_reviews=80, num_news=60)
    sizes = (f"train.batch_tokens={120 if name == 'tiny-classification' else 200}", "train.save_every=4",
             "train.evaluate_every=9", "train.log_every=1")
    whole = trial(tmp_path, name, "whole", *sizes)
    whole.finish()
    expected = whole.result()
    rng, last = random.Random(name), expected["log"][-1]["step"]
    assert last >= 20
    killed = trial(tmp_path, name, "killed", *sizes)
    assert killed.kill_at_step(rng.randint(1, last // 2))
    assert killed.kill_while_written("step")
    assert killed.kill_at_step(rng.randint(last // 2, last - 2))
    killed.finish()
    assert killed.result() == expected


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_killed_at_twenty_random_moments(tmp_path: Path, name: str) -> None:
    """8 of them inside the writing of a checkpoint, 2 of the best weights, 2 of the final model, 8 at any time."""
    small_data.write(tmp_path / "data", num_reviews=320, num_news=300)
    # Each makes a little over 300 steps.
    batch_tokens = {"tiny-mlm": 120, "tiny-gpt": 105, "tiny-classification": 64, "tiny-t5": 150}
    sizes = (f"train.batch_tokens={batch_tokens[name]}",)
    whole = trial(tmp_path, name, "whole", *sizes)
    began = time.monotonic()
    whole.finish()
    seconds = time.monotonic() - began
    expected = whole.result()
    last = expected["log"][-1]["step"]
    assert last >= 300

    rng = random.Random(name)
    moments = ["step"] * 8 + ["best"] * 2 + ["model"] * 2 + ["any"] * 8
    rng.shuffle(moments)
    done: Counter[str] = Counter()
    while moments:
        kind = moments[-1]
        killed = trial(tmp_path, name, f"killed-{len(moments)}", *sizes)
        if kind == "any":
            happened = killed.kill_after(rng.uniform(0, seconds))
        else:
            latest = 0.0 if kind == "model" else 0.7 * seconds
            happened = killed.kill_while_written(kind, after_seconds=rng.uniform(0, latest),
                                                 pause_seconds=rng.choice((0, rng.uniform(0, 0.01))))
        if not happened:
            shutil.rmtree(killed.run, ignore_errors=True)  # too late: another moment
            continue
        done[moments.pop()] += 1
        killed.finish()
        assert killed.result() == expected, killed.log.read_text()
    print(f"\n{name}: {last} steps in {seconds:.1f} s; killed {done.total()} times ({dict(done)}); "
          f"all resumed to {expected['model/model.safetensors'][:12]}…")
    assert done.total() == 20
    assert done["step"] >= 6


def run_and_die(arguments: list[str], run: str, operation: int) -> None:
    """`wenmo …` in a child, ended by SIGKILL just before its nth operation on the run's files; 0 for never."""
    left = operation

    def count(event: str, about: tuple[Any, ...]) -> None:
        nonlocal left
        writes = event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir") or (
            event == "open" and about[2] & (os.O_WRONLY | os.O_RDWR))
        if writes and str(about[0]).startswith(run) and "tensorboard" not in str(about[0]):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (the process's own)
    sys.addaudithook(count)
    sys.argv = ["wenmo", *arguments]
    main()


@pytest.mark.long
def test_killed_before_every_operation_on_files(tmp_path: Path) -> None:
    """From the first file that a run writes to its last: recipe, tokenizer, shards, log, checkpoints, best, model."""
    small_data.write(tmp_path / "data", num_reviews=60, num_news=40)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["wenmo.cli", "wenmo.stages.train", "torch.utils.tensorboard"])
    sizes = ("train.epochs=null", "train.steps=2", "train.save_every=1", "train.keep=1", "train.batch_tokens=130",
             "train.evaluate_every=2", "train.log_every=1")

    def ended(run: Trial, operation: int) -> int:
        arguments = [*run.command[3:], "--out", str(run.run)]
        child = context.Process(target=run_and_die, args=(arguments, str(run.run), operation))
        child.start()
        child.join()
        assert child.exitcode is not None
        return child.exitcode

    whole = trial(tmp_path, "tiny-gpt", "whole", *sizes)
    assert ended(whole, 0) == 0
    expected = whole.result()
    for operation in range(1, 1000):
        killed = trial(tmp_path, "tiny-gpt", f"killed-{operation}", *sizes)
        code = ended(killed, operation)
        if code != 0:
            assert code == -signal.SIGKILL
            assert ended(killed, 0) == 0
        assert killed.result() == expected, operation
        if code == 0:
            break
        shutil.rmtree(killed.run)
    print(f"\nkilled before each of {operation - 1} operations on files")
    assert operation > 80, "these are not all operations"
