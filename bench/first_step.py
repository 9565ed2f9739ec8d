"""From the command to the first training step: `wenmo train` as a user types it, until the step stands in the log.

Two recipes: a classifier of 4,000 Chinese reviews on a model that there is, and a new model of 30M parameters on 10 MB
of text with a tokenizer that there is. Nothing is cached: each round is a new Run.

    python -m bench.first_step [ROUNDS]
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from bench import models
from bench.corpus import corpus, reviews
from bench.environments import ENVIRONMENTS, settings
from bench.rounds import row, spread, write
from wenmo.files import write_jsonl

ROUNDS, NUM_ROWS, MEGABYTES = 5, 4_000, 10
GOAL_SECONDS = 5.0
TRAIN = {"steps": 100, "batch_tokens": 512, "log_every": 1, "evaluate_every": 100, "save_every": 100}


def recipes() -> dict[str, dict[str, Any]]:
    rows = ENVIRONMENTS / "data" / "reviews-4000.jsonl"
    if not rows.exists():
        rows.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(rows, reviews()[:NUM_ROWS])
    new = {"type": "llama", "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8,
           "intermediate_size": 1408, "max_position_embeddings": 512, "tie_word_embeddings": True}
    return {
        f"classifier on SmolLM2-135M, {NUM_ROWS:,} reviews": {
            "model": {"from": str(models.folder())}, "task": {"type": "classification"},
            "data": {"train": [{"path": str(rows)}], "choose": {"carve": 400}, "max_tokens": 128}, "train": TRAIN},
        f"a new causal model, {MEGABYTES} MB of text": {
            "model": new, "tokenizer": {"from": str(models.folder())}, "task": {"type": "causal_lm"},
            "data": {"train": [{"path": str(corpus(MEGABYTES))}], "choose": {"carve": 100}, "max_tokens": 512},
            "train": TRAIN},
    }


def seconds(recipe: Path, out: Path) -> float:
    """Until metrics.jsonl holds the first step; the run is then stopped."""
    shutil.rmtree(out, ignore_errors=True)
    log = out / "metrics.jsonl"
    began = time.perf_counter()
    with subprocess.Popen([sys.executable, "-m", "wenmo", "train", str(recipe), "--out", str(out)], env=settings(),
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while not (log.exists() and log.stat().st_size):
            if process.poll() is not None:
                assert process.stderr is not None
                raise RuntimeError(process.stderr.read()[-2000:])
            time.sleep(0.01)
        taken = time.perf_counter() - began
        os.kill(process.pid, signal.SIGKILL)
    return taken


def run(rounds: int = ROUNDS) -> dict[str, Any]:
    folder = ENVIRONMENTS / "data"
    table, found = [], {}
    for name, recipe in recipes().items():
        path = folder / "first-step.yaml"
        path.write_text(yaml.safe_dump({"version": 1, **recipe}), encoding="utf-8")
        taken = [seconds(path, folder / "first-step") for _ in range(rounds + 1)][1:]  # the first reads from the disk
        found[name] = spread(taken)
        table.append(row(f"command to first step: {name}", "s", round(found[name]["median"], 2), "–", None, None,
                         f"≤ {GOAL_SECONDS:g} s", found[name]["median"] <= GOAL_SECONDS,
                         f"{min(taken):.2f} to {max(taken):.2f} s"))
    return {"title": "Command to first training step", "title_zh": "从命令到第一步训练",
            "about": (__doc__ or "").split("\n\n")[1:2], "versions": {}, "rows": table, "seconds": found}


if __name__ == "__main__":
    write("first_step", run(*map(int, sys.argv[1:2])))
