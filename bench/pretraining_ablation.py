"""What pre-training is worth, and which kind: sentiment of shop reviews from encoders that read equally many tokens.

    python -m bench.pretraining_ablation figures --out runs/pretraining

`figures` is the data root that bench.prepare makes. Each way pre-trains an encoder of the shape of
recipes/results/shop-encoder.yaml for the same number of steps; all are then fine-tuned alike on the seed's own 10,000
training rows and measured on the 2,000 rows of shop/choose.jsonl, which nothing here learns from or is chosen by. The
difference to plain masked language modelling is paired by seed. The same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.over_seeds import summary, table, train_whole
from wenmo.device import numpy_rng
from wenmo.ensemble import load_all
from wenmo.evaluation import evaluate
from wenmo.files import read_jsonl, write_json, write_jsonl

NUM_ROWS = 10_000
SHAPE = {"type": "bert", "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
         "intermediate_size": 1024, "max_position_embeddings": 256}
DROPOUT = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.1}
MASKED = "masked words"
SCRATCH = "from scratch"
WAYS: dict[str, tuple[str, ...]] = {
    MASKED: (),
    "whole words": ("task.whole_word=true",),
    "next sentences": ("task.next_sentence=true",),
    "People's Daily": ("data.train=[{path: people.txt, weight: 0.4}, {path: shop/train.jsonl}]",),
}


def encoder(seed: int, steps: int) -> dict[str, Any]:
    return {
        "seed": seed,
        "model": {**SHAPE, "hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0},
        "tokenizer": {"train": {"type": "bpe", "vocab_size": 12_000, "masked": True}},
        "data": {"train": [{"path": "shop/train.jsonl"}], "choose": {"carve": 300},
                 "max_tokens": 128},
        "task": {"type": "masked_lm", "probability": "25%"},
        "train": {"steps": steps, "batch_tokens": 4096, "threads": 1,
                  "optimizer": {"type": "muon", "lr": 2e-3, "matrix_lr": 0.01},
                  "schedule": {"type": "cosine", "warmup": "3%"}},
    }


def classifier(rows: Path, seed: int, start: dict[str, Any]) -> dict[str, Any]:
    return {
        "seed": seed,
        **start,
        "data": {"train": [{"path": str(rows.resolve())}], "choose": {"carve": 0}, "max_tokens": 128,
                 "too_long": "both"},
        "task": {"type": "classification"},
        "train": {"epochs": 2, "batch_tokens": 2048, "optimizer": {"type": "adamw", "lr": 4e-4}, "ema": 0.99,
                  "schedule": {"type": "cosine", "warmup": "6%"}, "threads": 1, "save_every": 10_000},
    }


def one_seed(figures: Path, out: Path, seed: int, steps: int) -> dict[str, dict[str, float]]:
    """way → {"accuracy", "seconds"}: of the pre-training and the fine-tuning together."""
    rows, choose = out / f"rows-{seed}.jsonl", read_jsonl(figures / "shop" / "choose.jsonl")
    if not rows.exists():
        pool = read_jsonl(figures / "shop" / "train.jsonl")
        drawn = numpy_rng("pre-training", seed).choice(len(pool), NUM_ROWS, replace=False)
        write_jsonl(rows, [pool[number] for number in sorted(drawn.tolist())])

    def tuned(way: str, start: dict[str, Any], began: float) -> dict[str, float]:
        folder = out / f"seed-{seed}" / f"{_name(way)}-tuned"
        train_whole(classifier(rows, seed, start), out=folder)
        seconds = time.perf_counter() - began
        score, _ = evaluate(load_all([str(folder)], threads=1), choose, "choose", seed=0)
        return {"accuracy": score.metrics["accuracy"].value, "seconds": seconds}

    found: dict[str, dict[str, float]] = {}
    for way, overrides in WAYS.items():
        began, folder = time.perf_counter(), out / f"seed-{seed}" / _name(way)
        train_whole(encoder(seed, steps), *overrides, out=folder, data_root=figures)
        found[way] = tuned(way, {"model": {"from": str(folder), "config": DROPOUT}}, began)
    tokenizer = {"from": str(out / f"seed-{seed}" / _name(MASKED))}
    found[SCRATCH] = tuned(SCRATCH, {"model": {**SHAPE, **DROPOUT}, "tokenizer": tokenizer}, time.perf_counter())
    return found


def _name(way: str) -> str:
    return way.replace("'", "").replace(" ", "-")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000, help="of pre-training, 4,096 tokens each")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    found: dict[int, Any] = {}
    for seed in range(given.seeds):
        record = given.out / f"seed-{seed}.json"
        if not record.exists():
            write_json(record, one_seed(given.figures, given.out, seed, given.steps))
        found[seed] = json.loads(record.read_text(encoding="utf-8"))
        result = summary(found, MASKED)
        write_json(given.out / "pretraining.json", {"seeds": seed + 1, "steps": given.steps, "ways": result})
        title = f"{given.steps * 4096 / 1e6:.1f}M tokens, {NUM_ROWS:,} reviews, {seed + 1} seeds"
        Console(stderr=True, width=130).print(table(title, result, MASKED))
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
