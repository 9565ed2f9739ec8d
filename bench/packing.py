"""A corpus of 100 MB to something that training reads, beside Hugging Face datasets: megabytes a second, and memory.

The same text (both languages) and the same tokenizer (SmolLM2's, by the same Rust library). Ours: rows streamed,
tokenised, written as token shards. datasets: `map`, batched, in two processes, to ids and then to blocks of 512, as
transformers' run_clm has it; its reading of the JSON file is not counted. Both begin with nothing cached.

    python -m bench.packing [MEGABYTES [ROUNDS]]
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from typing import Any

from bench import models
from bench.corpus import corpus
from bench.environments import ENVIRONMENTS, Program
from bench.rounds import alternate, row, write

MEGABYTES, ROUNDS = 100, 3
PROCESSES, TOKENS, SMALL = 2, 512, 10
GOAL = 2.0


def _once(peer: str, script: str, given: dict[str, Any]) -> dict[str, Any]:
    out = ENVIRONMENTS / "data" / "packed"
    shutil.rmtree(out, ignore_errors=True)
    parallel = {"TOKENIZERS_PARALLELISM": "true" if peer == "wenmo" else "false"}  # the peer has processes instead
    with Program(peer, script, {**given, "out": str(out)}, variables=parallel) as program:
        return program.ready


def run(megabytes: int = MEGABYTES, rounds: int = ROUNDS) -> dict[str, Any]:
    given = {"tokenizer": str(models.folder()), "tokens": TOKENS, "processes": PROCESSES}
    seen: dict[str, list[dict[str, Any]]] = {"wenmo": [], "datasets": []}

    def side(name: str, peer: str) -> Callable[[], float]:
        def once() -> float:
            found = _once(peer, f"{name}_packing.py", {**given, "corpus": str(corpus(megabytes))})
            seen[name].append(found)
            return float(megabytes / found["seconds"])
        return once

    found = alternate({"wenmo": side("wenmo", "wenmo"), "datasets": side("datasets", "trainer")}, rounds, warm_up=0)
    small = _once("wenmo", "wenmo_packing.py", {**given, "corpus": str(corpus(SMALL))})
    largest = {name: max(each["peak_bytes"] for each in all_) for name, all_ in seen.items()}
    ratio = found["ratios"]["datasets"]
    more = (largest["wenmo"] - small["peak_bytes"]) / 1e6
    rows = [
        row(f"{megabytes} MB of text to shards", "MB/s", round(found["medians"]["wenmo"], 2),
            f"datasets.map, batched, {PROCESSES} processes", round(found["medians"]["datasets"], 2), ratio,
            f"≥ {GOAL} ×", ratio["median"] >= GOAL),
        row(f"{megabytes} MB of text to shards: peak memory", "MB", round(largest["wenmo"] / 1e6),
            "datasets.map, its largest process", round(largest["datasets"] / 1e6), None, "flat", more < 100,
            f"{more:+.0f} MB against {SMALL} MB of text"),
    ]
    first = seen["datasets"][0]
    return {"title": "Tokenising and packing", "title_zh": "分词与打包", "about": (__doc__ or "").split("\n\n")[1:2],
            "versions": {name: first[name] for name in ("datasets", "transformers")}, "rows": rows, **found,
            "tokens": {name: all_[0]["tokens"] for name, all_ in seen.items()}}


if __name__ == "__main__":
    write("packing", run(*map(int, sys.argv[1:3])))
