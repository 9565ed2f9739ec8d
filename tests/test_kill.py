"""The proof: a run of a shipped recipe, killed at any moment, ends with the same weights when its command is repeated.

Every trial is a process of its own, ended by SIGKILL, and then the same command line until it exits with 0. The sizes
of the recipes are cut down so that a run takes seconds; all else is as shipped: two sources, two epochs, dropout,
accumulation, a tokenizer trained on the way, the best checkpoint, samples.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import small_data
from wenmo.config import read_yaml
from wenmo.files import read_jsonl, sha256_file
from wenmo.train import checkpoint

RECIPES = Path(__file__).parent.parent / "recipes"
NAMES = ("tiny-mlm", "tiny-gpt", "tiny-classification")
SIZES = ("model.hidden_size=32", "tokenizer.train.vocab_size=600", "data.choose.carve=20", "train.threads=1")


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

    def kill_in_a_save(self, *, from_step: int = 0, pause_seconds: float = 0.0) -> bool:
        """Kills `pause_seconds` into the first save from that step on; whether that was still inside it."""
        process = self.start()
        while process.poll() is None and max(self.unfinished_saves(), default=-1) < from_step:
            time.sleep(0.0005)
        time.sleep(pause_seconds)
        return end(process) and bool(self.unfinished_saves())

    def text_of_log(self) -> str:
        path = self.run / "metrics.jsonl"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def unfinished_saves(self) -> list[int]:
        """Steps of checkpoints being written: newer than every complete one (older ones are being deleted)."""
        try:
            names = os.listdir(self.run / "checkpoints")
        except FileNotFoundError:
            return []
        complete = [int(name.removeprefix("step-")) for name in names if re.fullmatch(r"step-\d+", name)]
        unfinished = [int(found[1]) for name in names if (found := re.fullmatch(r"\.step-(\d+)\.\d+\.tmp", name))]
        return [step for step in unfinished if step > max(complete, default=0)]

    def result(self) -> dict[str, Any]:
        """All that must not depend on the kills: weights, tokenizer, card, and the log but for its times."""
        log = [{key: value for key, value in row.items() if key != "tokens_per_second"}
               for row in read_jsonl(self.run / "metrics.jsonl")]
        newest = checkpoint.latest(self.run / "checkpoints")
        assert newest is not None
        files = {f"model/{path.name}": path for path in (self.run / "model").iterdir()}
        files["optimizer"] = newest / checkpoint.TENSORS
        left = sorted(str(path.relative_to(self.run)) for path in self.run.rglob("*")
                      if "tensorboard" not in path.parts and path.name != ".lock")
        return {"log": log, "left": left} | {name: sha256_file(path) for name, path in files.items()}


def end(process: subprocess.Popen[bytes]) -> bool:
    process.kill()
    return process.wait() == -signal.SIGKILL


def trial(folder: Path, name: str, run: str, *sizes: str) -> Trial:
    command = [sys.executable, "-m", "wenmo", "train", str(RECIPES / f"{name}.yaml"), *SIZES, *sizes,
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


@pytest.mark.parametrize("name", NAMES)
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
    assert killed.kill_in_a_save(from_step=last // 2)
    assert killed.kill_at_step(rng.randint(last // 2, last - 2))
    killed.finish()
    assert killed.result() == expected


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_killed_at_twenty_random_moments(tmp_path: Path, name: str) -> None:
    """12 at any time from the start of the process on, 8 at the beginning of a save or a few milliseconds later."""
    small_data.write(tmp_path / "data", num_reviews=320, num_news=300)
    sizes = (f"train.batch_tokens={64 if name == 'tiny-classification' else 130}",)
    whole = trial(tmp_path, name, "whole", *sizes)
    began = time.monotonic()
    whole.finish()
    seconds = time.monotonic() - began
    expected = whole.result()
    last = expected["log"][-1]["step"]
    assert last >= 300

    rng = random.Random(name)
    num_killed = num_inside = 0
    while num_killed < 20:
        killed = trial(tmp_path, name, f"killed-{num_killed}", *sizes)
        if num_killed % 5 < 2:
            num_inside += killed.kill_in_a_save(from_step=rng.randint(0, last * 9 // 10),
                                                pause_seconds=rng.uniform(0, 0.01))
        elif not killed.kill_after(rng.uniform(0, seconds)):
            shutil.rmtree(killed.run)  # it had finished: another moment
            continue
        num_killed += 1
        killed.finish()
        assert killed.result() == expected, killed.log.read_text()
    print(f"\n{name}: {last} steps in {seconds:.1f} s; killed 20 times, {num_inside} of them inside a save; "
          f"20 of 20 resumed to {expected['model/model.safetensors'][:12]}…")
    assert num_inside >= 6
