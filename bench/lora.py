"""An adapter beside SmolLM2-135M: a step of Wenmo and of transformers with PEFT, in time and in memory.

Rank 16 on every linear map, dropout 0.05, bf16, sequences of 512 tokens, four a step, AdamW, the whole vocabulary's
loss. Both programs stay up, with the same allocator settings and threads, and take turns. Memory is the most that a
process has held (VmHWM), PEFT's with the allocator that users have: it then takes less. PEFT runs as its users have it:
base loaded as bf16, autocast, padded rows (none is short).

    python -m bench.lora [ROUNDS]
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from bench import models
from bench.environments import Program, threads
from bench.rounds import alternate, row, write

ROUNDS = 20
ROWS, TOKENS, RANK = 4, 512, 16
FASTER, SMALLER = 1.5, 0.8
PEER = "transformers + PEFT, bf16"


def stepper(program: Program, tokens: int, seen: list[dict[str, Any]]) -> Callable[[], float]:
    """Tokens a second of one more step; its answer goes into `seen`."""

    def run() -> float:
        seen.append(program.ask({"step": len(seen)}))
        return float(tokens / seen[-1]["seconds"])

    return run


def run(rounds: int = ROUNDS) -> dict[str, Any]:
    given = {"model": str(models.folder()), "lora": RANK, "dtype": "bf16", "tokens": TOKENS, "rows": ROWS,
             "threads": threads()}
    seen: dict[str, list[dict[str, Any]]] = {"wenmo": [], PEER: []}
    with (Program("wenmo", "wenmo_steps.py", given) as ours,
          Program("trainer", "transformers_steps.py", given) as theirs):
        assert ours.ready["trained"] == theirs.ready["trained"], "both train the same parameters"
        found = alternate({"wenmo": stepper(ours, ROWS * TOKENS, seen["wenmo"]),
                           PEER: stepper(theirs, ROWS * TOKENS, seen[PEER])}, rounds)
        versions = theirs.ready["versions"]
    with Program("trainer", "transformers_steps.py", given, allocator=False) as theirs:
        least = min(seen[PEER][-1], [theirs.ask({"step": step}) for step in range(3)][-1],
                    key=lambda answer: float(answer["peak_bytes"]))
    peak = {"wenmo": seen["wenmo"][-1]["peak_bytes"] / 1e9, PEER: least["peak_bytes"] / 1e9}
    share = peak["wenmo"] / peak[PEER]
    ratio, medians = found["ratios"][PEER], found["medians"]
    work = f"LoRA, SmolLM2-135M, {ROWS} × {TOKENS} tokens"
    rows = [row(work, "tokens/s", round(medians["wenmo"]), PEER, round(medians[PEER]), ratio, f"≥ {FASTER} ×",
                ratio["median"] >= FASTER),
            row(f"{work}: peak memory", "GB", round(peak["wenmo"], 2), PEER, round(peak[PEER], 2),
                {"median": share, "low": share, "high": share}, f"≤ {SMALLER} ×", share <= SMALLER)]
    return {"title": "Training an adapter", "title_zh": "训练 LoRA 适配器", "about": (__doc__ or "").split("\n\n")[1:2],
            "versions": versions, "rows": rows, **found,
            "losses": {name: [each["loss"] for each in answers] for name, answers in seen.items()}}


if __name__ == "__main__":
    write("lora", run(*map(int, sys.argv[1:2])))
