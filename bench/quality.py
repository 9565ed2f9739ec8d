"""What few bits cost: perplexity of SmolLM2-135M on the beginning of wikitext-2's validation text, in windows of equal
length, the same ids for all sides. Ours is what the engine computes; llama.cpp reads the same 4-bit file.

A window is read from its own first token on, each further token is scored. The interval of a ratio is over windows
(a paired bootstrap).

    python -m bench.quality [DATA [WINDOWS]]
"""

from __future__ import annotations

import gzip
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

import wenmo
from bench import models
from bench.environments import Program, threads
from bench.rounds import row, write
from wenmo.device import numpy_rng

WINDOW_TOKENS = 512
WINDOWS = 64
FORMATS = ("fp32", "bf16", "int8", "int8-weights", "int4")
# ours, over what, the goal for the ratio of perplexities
GOALS = (("int8", "bf16", 1.01), ("int8-weights", "bf16", 1.01), ("int4", "bf16", 1.06),
         ("int4", "llama.cpp Q4_1", 1.0))


def windows(data: Path, number: int) -> list[list[int]]:
    with gzip.open(data / "wikitext-2" / "valid.txt.gz", "rt", encoding="utf-8") as file:
        text = file.read(number * WINDOW_TOKENS * 8)
    ids = wenmo.load(models.REFERENCE, device="cpu").tokenizer.encode(text)
    assert len(ids) >= number * WINDOW_TOKENS, "the text is too short"
    return [ids[at : at + WINDOW_TOKENS] for at in range(0, number * WINDOW_TOKENS, WINDOW_TOKENS)]


def surprise(side: str, texts: list[list[int]]) -> tuple[np.ndarray, dict[str, str]]:
    """Nats of each window, and versions."""
    given: dict[str, Any] = {"threads": threads(), "window_tokens": WINDOW_TOKENS}
    if side == "llama.cpp Q4_1":
        started = Program("llama_cpp", "llama_cpp_quality.py", {**given, "model": str(models.gguf())})
    else:
        started = Program("wenmo", "wenmo_quality.py", {**given, "model": str(models.folder()), "format": side})
    with started as program:
        return np.array([program.ask({"ids": ids})["nats"] for ids in texts]), program.ready["versions"]


def ratio(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """Of the perplexities, with the 95% interval of 2,000 draws of windows."""
    differences = (ours - theirs) / (WINDOW_TOKENS - 1)
    draws = numpy_rng("bench.quality", 0).integers(0, len(ours), (2000, len(ours)))
    low, high = np.quantile(np.exp(differences[draws].mean(1)), [0.025, 0.975])
    return {"median": math.exp(differences.mean()), "low": float(low), "high": float(high)}


def run(data: Path, number: int = WINDOWS) -> dict[str, Any]:
    texts = windows(data, number)
    nats: dict[str, np.ndarray] = {}
    versions: dict[str, str] = {}
    failed: dict[str, str] = {}
    for side in (*FORMATS, "llama.cpp Q4_1"):
        try:
            nats[side], used = surprise(side, texts)
        except (RuntimeError, subprocess.CalledProcessError) as error:
            if side in FORMATS:
                raise
            failed[side] = str(error)
            continue
        versions |= used
        print(f"{side}: {perplexity(nats[side]):.3f}", file=sys.stderr, flush=True)
    rows = []
    for ours, theirs, goal in GOALS:
        title = f"perplexity, Wenmo {ours}"
        wanted = f"≤ {goal} ×"
        if theirs in failed:
            rows.append(row(title, "", perplexity(nats[ours]), theirs, None, goal=wanted, note=failed[theirs]))
            continue
        found = ratio(nats[ours], nats[theirs])
        name = theirs if theirs in GOALS[-1] else f"Wenmo {theirs}"
        rows.append(row(title, "", perplexity(nats[ours]), name, perplexity(nats[theirs]), found, wanted,
                        found["median"] <= goal))
    return {"title": "What few bits cost", "title_zh": "低比特的代价",
            "about": [" ".join(__doc__.split("\n\n    ")[0].split()) + f" {number} windows of {WINDOW_TOKENS} tokens."],
            "versions": versions, "rows": rows, "perplexity": {side: perplexity(each) for side, each in nats.items()}}


def perplexity(nats: np.ndarray) -> float:
    return math.exp(nats.mean() / (WINDOW_TOKENS - 1))


if __name__ == "__main__":
    write("quality", run(Path(sys.argv[1] if sys.argv[1:] else "../shared/data"), *map(int, sys.argv[2:3])))
