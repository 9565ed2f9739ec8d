"""Classifying short Chinese texts beside ONNX Runtime: the same encoder, 8 bits, 64 clients, each with one text at a
time, in one process.

The encoder is a fine-tuned BERT of ours, which transformers exports and ONNX Runtime quantises (dynamic, per channel,
its fusions on). It runs in two ways, and the faster counts: each client calls the session, or one thread gathers what
waits into a batch. A request is from the text to its label, tokenizer and all.

    make demo && python -m bench.classification [MODEL ROWS.csv [ROUNDS]]
"""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.environments import ENVIRONMENTS, Program, threads
from bench.rounds import alternate, row, spread, write

CLIENTS = 64
ROUNDS = 7
MOST_CHARACTERS = 60
REQUESTS = 2048
GOAL = 1.2
MODEL, ROWS = Path("demo-out/sentiment"), Path("demo-out/data/reviews-test.csv")
OURS = ("Wenmo int8", "Wenmo bf16")
PEERS = ("ONNX Runtime int8, each client alone", "ONNX Runtime int8, batched")
NEEDED = ("config.json", "model.safetensors", "tokenizer.json")


def short_rows(path: Path) -> list[tuple[str, str]]:
    """(text, label) of the rows that are short, no more than are asked in a round."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [(row["review"], row["label"]) for row in csv.DictReader(file)]
    return [(text, label) for text, label in rows if len(text) <= MOST_CHARACTERS][:REQUESTS]


def program(side: str, model: Path) -> Program:
    given: dict[str, Any] = {"model": str(model), "threads": threads(), "clients": CLIENTS}
    if side in OURS:
        return Program("wenmo", "wenmo_classification.py", {**given, "format": side.split()[1]})
    if not (ENVIRONMENTS / "models").exists():
        (ENVIRONMENTS / "models").mkdir(parents=True)
    return Program("onnxruntime", "onnxruntime_classification.py", {
        **given, "batched": side.endswith("batched"), "out": str(ENVIRONMENTS / "models")})


def speed(side: Program, texts: list[str], answers: dict[str, list[str]], name: str) -> Callable[[], float]:
    """Requests a second; the labels go into `answers`."""

    def run() -> float:
        found = side.ask({"texts": texts})
        answers[name] = found["labels"]
        return float(len(texts) / found["seconds"])

    return run


def run(model: Path = MODEL, rows: Path = ROWS, rounds: int = ROUNDS) -> dict[str, Any]:
    inner = model / "model" if (model / "model" / "config.json").exists() else model
    missing = [str(path) for path in (*(inner / name for name in NEEDED), rows) if not path.exists()]
    if missing:
        raise SystemExit(f"{', '.join(missing)}: not there; `make demo` makes them, or name a model and its rows")
    pairs = short_rows(rows)
    texts, labels = [text for text, _ in pairs], [label for _, label in pairs]
    answers: dict[str, list[str]] = {}
    versions: dict[str, str] = {}
    failed: dict[str, str] = {}
    with ExitStack() as stack:
        sides: dict[str, Program] = {}
        for name in (*OURS, *PEERS):
            try:
                sides[name] = stack.enter_context(program(name, inner))
            except (RuntimeError, subprocess.CalledProcessError) as error:
                if name in OURS:
                    raise
                failed[name] = str(error)
                continue
            versions |= sides[name].ready["versions"]
        found = alternate({name: speed(side, texts, answers, name) for name, side in sides.items()}, rounds)
    right = {name: sum(map(str.__eq__, given, labels)) / len(labels) for name, given in answers.items()}
    best = max((name for name in PEERS if name in right), key=lambda name: found["medians"][name], default=None)
    table = []
    for ours in OURS:
        for peer in PEERS:
            title = f"{len(texts):,} texts of at most {MOST_CHARACTERS} characters, {CLIENTS} clients; {ours}"
            if peer in failed:
                table.append(row(title, "requests/s", found["medians"][ours], peer, None, note=failed[peer]))
                continue
            ratio = spread([a / b for a, b in zip(found["values"][ours], found["values"][peer], strict=True)])
            counts = ours == OURS[0] and peer == best
            table.append(row(title, "requests/s", found["medians"][ours], peer, found["medians"][peer], ratio,
                             f"≥ {GOAL} ×" if counts else "", ratio["median"] >= GOAL if counts else None,
                             f"accuracy {right[ours]:.4f} and {right[peer]:.4f}"))
    return {"title": "Classifying short Chinese texts", "title_zh": "短中文文本分类",
            "about": [" ".join(part.split()) for part in __doc__.split("\n\n")[:2]],
            "versions": versions, "rows": table, "accuracy": right, "n": len(texts), "rounds": found}


if __name__ == "__main__":
    if len(sys.argv) > 2:
        write("classification", run(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if sys.argv[3:] else ROUNDS))
    else:
        write("classification", run())
