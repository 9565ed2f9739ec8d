"""Fine-tuning a classifier on real Chinese reviews of mixed lengths, one epoch, beside transformers' Trainer.

The same encoder (12M parameters), the same tokenizer, the same rows, truncated at 512 tokens, AdamW from 5e-5
(Trainer's default) down to zero. Trainer as it is (fp32, 8 rows a step, rows in any order, padded to the longest of a
step), and at its best (bf16, 32 rows a step, grouped by length). Ours: the loop of `wenmo train`, with as many tokens a
step as 32 rows have; tokenising is within its time and not within theirs. Trainer as it is has the allocator that users
have, the other two have ours. Each round is an epoch from the same weights.

    python -m bench.fine_tuning [ROWS [ROUNDS]]
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from bench.corpus import reviews
from bench.environments import ENVIRONMENTS, Program, threads
from bench.rounds import alternate, row, write
from wenmo.files import write_jsonl
from wenmo.modeldir import Opened, save_model
from wenmo.models import create
from wenmo.models.bert import BertConfig
from wenmo.text import tokenizer_training
from wenmo.text.tokenizer_training import TokenizerSettings

NUM_ROWS, ROUNDS = 1_024, 3
DEFAULT, BEST = "Trainer, its defaults", "Trainer, bf16, grouped by length, 32 rows"
GOALS = {DEFAULT: 6.0, BEST: 1.6}
PEERS: dict[str, dict[str, Any]] = {DEFAULT: {"best": False}, BEST: {"best": True}}


def encoder() -> Path:
    """Weights by chance: what is measured does not depend on them."""
    out = ENVIRONMENTS / "models" / "encoder"
    if not (out / "config.json").exists():
        tokenizer = tokenizer_training.train([each["text"] for each in reviews()[:20_000]],
                                             TokenizerSettings(type="wordpiece", vocab_size=6_000))
        config = BertConfig(vocab_size=tokenizer.vocab_size, hidden_size=384, num_hidden_layers=6,
                            num_attention_heads=6, intermediate_size=1536, max_position_embeddings=512)
        model = create(config, {"classification": 2}, torch.Generator().manual_seed(0))
        save_model(out, Opened(model, tokenizer))
    return out


def rows(number: int) -> Path:
    """Every so many of the reviews, so that all kinds of goods are among them."""
    out = ENVIRONMENTS / "data" / f"reviews-{number}.jsonl"
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        found = reviews()
        write_jsonl(out, found[:: len(found) // number][:number])
    return out


def epoch(program: Program, number: int, seen: list[dict[str, Any]]) -> Callable[[], float]:
    """Rows a second."""

    def run() -> float:
        seen.append(program.ask({}))
        return float(number / seen[-1]["seconds"])

    return run


def run(number: int = NUM_ROWS, rounds: int = ROUNDS) -> dict[str, Any]:
    given = {"model": str(encoder()), "rows": str(rows(number)), "threads": threads(), "batch_rows": 32,
             "out": str(ENVIRONMENTS / "data" / "trainer")}
    seen: dict[str, list[dict[str, Any]]] = {name: [] for name in ("wenmo", *PEERS)}
    with ExitStack() as stack:
        ours = stack.enter_context(Program("wenmo", "wenmo_fine_tuning.py", given))
        theirs = {name: stack.enter_context(Program("trainer", "transformers_fine_tuning.py", {**given, **changes},
                                                    allocator=changes["best"])) for name, changes in PEERS.items()}
        sides = {"wenmo": epoch(ours, number, seen["wenmo"])}
        sides |= {name: epoch(program, number, seen[name]) for name, program in theirs.items()}
        found = alternate(sides, rounds)
        versions = theirs[DEFAULT].ready["versions"]
    table = [row(f"classification of {number:,} Chinese reviews, one epoch", "rows/s",
                 round(found["medians"]["wenmo"], 1), name, round(found["medians"][name], 1), found["ratios"][name],
                 f"≥ {goal} ×", found["ratios"][name]["median"] >= goal,
                 "mean loss of the epoch: {:.3f}, theirs {:.3f}".format(
                     *(statistics.fmean(each["loss"] for each in seen[side]) for side in ("wenmo", name))))
             for name, goal in GOALS.items()]
    return {"title": "Fine-tuning a classifier", "title_zh": "微调分类器", "about": (__doc__ or "").split("\n\n")[1:2],
            "versions": versions, "rows": table, **found, "epochs": seen}


if __name__ == "__main__":
    write("fine_tuning", run(*map(int, sys.argv[1:3])))
