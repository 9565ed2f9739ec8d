"""What helps when rows are few: each way against over-fitting alone, on 500 hotel reviews, over several seeds.

    python -m bench.small_data figures runs/shop-encoder --out runs/small-data

`figures` is the data root that bench.prepare makes, `runs/shop-encoder` the Run of recipes/results/shop-encoder.yaml.
Every seed draws its own 500 rows of hotel/train.jsonl, its own head and its own order; each way starts from the same.
Nothing is chosen by them: the last weights are measured on the 1,000 rows of hotel/report.jsonl; with `--on choose`,
for trying sizes out, on hotel/choose.jsonl. The difference to the plain run is paired by seed. The same command goes
on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.over_seeds import summary, table, train_whole
from wenmo.device import numpy_rng
from wenmo.ensemble import load_all
from wenmo.evaluation import evaluate
from wenmo.files import read_jsonl, write_json, write_jsonl
from wenmo.stages.average import average

NUM_ROWS = 500
WAYS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "EDA: delete, swap, insert, replace": ("data.augment={delete: 10%, swap: 10%, insert: 10%, replace: 10%}",),
    "homophone noise": ("data.augment={homophone: 10%}",),
    "span deletion": ("data.augment={span: 20%}",),
    "R-Drop": ("train.r_drop=3",),
    "FGM": ("train.adversarial=2%",),
    "L2-SP": ("train.l2_sp=3",),
    "label smoothing": ("task.label_smoothing=0.1",),
    "EMA": ("train.ema=0.98",),
}
FOLDS = "5 folds, mean of probabilities"
SOUP = "5 folds, mean of weights"


def recipe(encoder: str, rows: Path, seed: int) -> dict[str, Any]:
    return {
        "seed": seed,
        "model": {"from": encoder, "config": {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}},
        "data": {"train": [{"path": str(rows.resolve())}], "choose": {"carve": 0}, "max_tokens": 64,
                 "too_long": "both"},
        "task": {"type": "classification"},
        "train": {"epochs": 6, "batch_tokens": 1024, "optimizer": {"type": "adamw", "lr": 4e-4},
                  "schedule": {"type": "cosine", "warmup": "6%"}, "threads": 1, "save_every": 10_000},
    }


def one_seed(figures: Path, encoder: str, out: Path, seed: int, ways: Mapping[str, tuple[str, ...]], folds: bool,
             on: str) -> dict[str, dict[str, float]]:
    """way → {"accuracy", "seconds"} of the models trained with this seed."""
    rows = out / f"rows-{seed}.jsonl"
    if not rows.exists():
        pool = read_jsonl(figures / "hotel" / "train.jsonl")
        drawn = numpy_rng("small data", seed).choice(len(pool), NUM_ROWS, replace=False)
        write_jsonl(rows, [pool[number] for number in sorted(drawn.tolist())])
    given, report = recipe(encoder, rows, seed), read_jsonl(figures / "hotel" / f"{on}.jsonl")
    found: dict[str, dict[str, float]] = {}

    def measured(way: str, began: float, *models: str) -> None:
        seconds = time.perf_counter() - began  # of the training
        score, _ = evaluate(load_all(models, threads=1), report, on, seed=0)
        found[way] = {"accuracy": score.metrics["accuracy"].value, "seconds": seconds}

    for way, overrides in ways.items():
        began, folder = time.perf_counter(), out / f"seed-{seed}" / way.partition(":")[0].replace(" ", "-")
        train_whole(given, *overrides, out=folder)
        measured(way, began, str(folder))
    if folds:
        began, folder = time.perf_counter(), out / f"seed-{seed}" / "folds"
        train_whole(given, "data.choose={folds: 5, refit: false}", out=folder)
        measured(FOLDS, began, str(folder / "folds"))
        mean = out / f"seed-{seed}" / "mean"
        if not mean.exists():
            average([str(folder / "folds" / f"fold-{i}") for i in range(1, 6)], mean)
        measured(SOUP, began, str(mean))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", type=Path)
    parser.add_argument("encoder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="*", choices=list(WAYS), help="these ways, beside plain, and no folds")
    parser.add_argument("--on", choices=("report", "choose"), default="report")
    given = parser.parse_args()
    ways = WAYS if given.only is None else {way: WAYS[way] for way in WAYS if way in ("plain", *given.only)}
    given.out.mkdir(parents=True, exist_ok=True)
    found: dict[int, Any] = {}
    for seed in range(given.seeds):
        record = given.out / f"seed-{seed}.json"
        if not record.exists() or given.only is not None:
            write_json(record, one_seed(given.figures, given.encoder, given.out, seed, ways, given.only is None,
                                        given.on))
        found[seed] = json.loads(record.read_text(encoding="utf-8"))
        result = summary(found, "plain")
        write_json(given.out / "small-data.json", {"seeds": seed + 1, "rows": NUM_ROWS, "ways": result})
        Console(stderr=True, width=130).print(
            table(f"{NUM_ROWS} hotel reviews, {seed + 1} seeds", result, "plain"))
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
