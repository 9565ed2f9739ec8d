"""The memory of training all of SmolLM2-135M: the peak of Wenmo's process beside transformers' with torch's AdamW.

bf16 arithmetic over fp32 weights on both sides, four sequences of 512 tokens a step. The peer has the allocator that
users have, with which it takes less than with ours. Ours as it is by default, and with what a recipe can ask for:
activations computed twice, optimizer states factored or in eight bits. Each in a process of its own; the most that it
has held after three steps (VmHWM); losses beside them.

    python -m bench.memory
"""

from __future__ import annotations

from typing import Any

from bench import models
from bench.environments import Program, threads
from bench.rounds import row, write

ROWS, TOKENS, STEPS = 4, 512, 3
GOAL = 0.75
PEERS: dict[str, dict[str, Any]] = {
    "transformers + AdamW": {},
    "transformers + AdamW, gradient checkpointing": {"checkpointing": True},
}
OURS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "checkpoint_activations": {"checkpointing": True},
    "checkpoint_activations, AdamW with state_bits: 8": {"checkpointing": True, "optimizer": {"state_bits": 8}},
    "checkpoint_activations, Adafactor": {"checkpointing": True, "optimizer": {"type": "adafactor", "lr": 1e-2}},
}


def measured(peer: str, script: str, changes: dict[str, Any]) -> dict[str, Any]:
    given = {"model": str(models.folder()), "lora": 0, "dtype": "bf16", "tokens": TOKENS, "rows": ROWS,
             "threads": threads(), **changes}
    with Program(peer, script, given, allocator=peer == "wenmo") as program:
        answers = [program.ask({"step": step}) for step in range(STEPS)]
        return {"peak_bytes": answers[-1]["peak_bytes"], "losses": [each["loss"] for each in answers],
                "seconds": answers[-1]["seconds"], "versions": program.ready["versions"]}


def run() -> dict[str, Any]:
    theirs = {name: measured("trainer", "transformers_steps.py", changes) for name, changes in PEERS.items()}
    ours = {name: measured("wenmo", "wenmo_steps.py", changes) for name, changes in OURS.items()}
    first, rows = next(iter(PEERS)), []
    for name, found in ours.items():
        for peer, other in theirs.items():
            share, has_goal = found["peak_bytes"] / other["peak_bytes"], peer == first
            rows.append(row(f"all of SmolLM2-135M, {ROWS} × {TOKENS} tokens; {name}", "GB peak",
                            round(found["peak_bytes"] / 1e9, 2), peer, round(other["peak_bytes"] / 1e9, 2),
                            {"median": share, "low": share, "high": share},
                            f"≤ {GOAL} × with options" if has_goal else "", share <= GOAL if has_goal else None,
                            f"{found['seconds']:.1f} s a step, theirs {other['seconds']:.1f} s"))
    return {"title": "Memory of full fine-tuning", "title_zh": "全参数微调的内存",
            "about": (__doc__ or "").split("\n\n")[1:2], "versions": theirs[first]["versions"], "rows": rows,
            "ours": ours, "theirs": theirs}


if __name__ == "__main__":
    write("memory", run())
