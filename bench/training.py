"""A step of training beside transformers and a nanoGPT-like loop: causal language models and a small BERT.

Every side is a process of its own that makes one step when asked, on the same random ids: forward, backward, clipping,
fused AdamW; bf16 by autocast, as the peers' users have it. "As users run it" means without the allocator settings; all
other rows of a peer have them. torch.compile has rows of its own, and its compilation is not counted.

    python -m bench.training [ROUNDS [WORK …]]
"""

from __future__ import annotations

import shutil
import statistics
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from bench.environments import Program
from bench.peers.shapes import Shape
from bench.rounds import alternate, row, write

ROUNDS = 20
FEW = 4  # rounds where a step takes many seconds


@dataclass(frozen=True)
class Peer:
    """What runs beside Wenmo. `as_users`: without the allocator settings."""

    name: str
    model: str = "transformers"
    dtype: str = "bf16"
    compiled: bool = False
    as_users: bool = False


FP32 = Peer("transformers, fp32: Trainer's default, as users run it", dtype="fp32", as_users=True)
USERS = Peer("transformers, bf16, as users run it", as_users=True)
EAGER = Peer("transformers, bf16")
COMPILED = Peer("transformers, bf16, torch.compile", compiled=True)
NANO = Peer("nanoGPT-like, bf16", model="nanoGPT-like")
NANO_COMPILED = Peer("nanoGPT-like, bf16, torch.compile", model="nanoGPT-like", compiled=True)
OURS_COMPILED = Peer("Wenmo itself, train.compile", model="wenmo", compiled=True)


@dataclass(frozen=True)
class Work:
    """One shape, the peers that are up together, and how many times their speed is the goal (as users run it; best)."""

    name: str
    shape: Shape
    together: tuple[tuple[Peer, ...], ...]
    goal_users: float | None
    goal_best: float
    goal_used: float | None = None


WORKS = {
    "30M": Work("causal LM 30M, T 512, B 16", Shape("causal", 8192, 512, 8, 8, 8, 1408, 512, 16),
                ((USERS, EAGER, NANO), (COMPILED, NANO_COMPILED, OURS_COMPILED), (FP32,)), 2.5, 1.4, 0.4),
    "T1024": Work("causal LM, D 384, V 16k, T 1024, B 8", Shape("causal", 16384, 384, 8, 6, 6, 1024, 1024, 8),
                  ((EAGER, NANO), (COMPILED,)), None, 1.3),
    "135M": Work("causal LM 135M (SmolLM2's shape), T 512, B 4", Shape("causal", 49152, 576, 30, 9, 3, 1536, 512, 4),
                 ((EAGER, NANO), (COMPILED,)), None, 1.3),
    "BERT": Work("BERT-small MLM, D 256, 6 layers, T 128, B 64", Shape("masked", 8192, 256, 6, 4, 4, 1024, 128, 64),
                 ((USERS, EAGER), (COMPILED,)), 2.5, 1.4),
}


def speed(program: Program, of: Shape) -> Callable[[], float]:
    """Tokens a second of the next step."""
    number = 0

    def step() -> float:
        nonlocal number
        number += 1
        return float(of.B * of.T / program.ask({"step": number})["seconds"])

    return step


def measure(of: Shape, peers: tuple[Peer, ...], rounds: int) -> dict[str, Any]:
    """`alternate` of Wenmo and these peers, and what Wenmo's process says of itself."""
    with ExitStack() as stack:
        shape = asdict(of)
        ours = stack.enter_context(Program("wenmo", "wenmo_training.py", {"shape": shape, "dtype": "bf16"}))
        theirs = {peer.name: stack.enter_context(Program(*_program(peer), {
            "shape": shape, "model": peer.model, "dtype": peer.dtype, "compiled": peer.compiled,
        }, allocator=not peer.as_users)) for peer in peers}
        sides = {"Wenmo": speed(ours, of), **{name: speed(each, of) for name, each in theirs.items()}}
        found = alternate(sides, rounds, warm_up=2)
        peak = ours.ask({"peak": True})["peak"]
        versions = dict(pair for each in (*theirs.values(), ours) for pair in each.ready["versions"].items())
    used = found["medians"]["Wenmo"] * ours.ready["flops_per_token"] / peak
    return {**found, "parameters": ours.ready["parameters"], "peak_flops": peak, "model_flops_utilisation": used,
            "versions": versions}


def _program(peer: Peer) -> tuple[str, str]:
    """Whose environment, and which script."""
    own = peer == OURS_COMPILED
    return ("wenmo", "wenmo_training.py") if own else ("transformers", "transformers_training.py")


def rows_of(work: Work, groups: list[tuple[tuple[Peer, ...], dict[str, Any] | None]]) -> list[dict[str, Any]]:
    """A row for each peer; the goal beside the fastest stands at the one whose ratio is lowest."""
    measured = [(peer, found) for peers, found in groups if found is not None for peer in peers]
    slowest_lead = min((found["ratios"][peer.name]["median"] for peer, found in measured if peer != OURS_COMPILED),
                       default=None)
    rows = []
    for peers, found in groups:
        for peer in peers:
            if found is None:
                rows.append(row(work.name, "tok/s", "", peer.name, None, note="torch.compile needs g++"))
                continue
            ratio = found["ratios"][peer.name]
            goals = [f"≥ {work.goal_users} ×"] if peer == USERS and work.goal_users else []
            reached = [ratio["median"] >= work.goal_users] if peer == USERS and work.goal_users else []
            if ratio["median"] == slowest_lead:
                goals.append(f"≥ {work.goal_best} × the fastest")
                reached.append(ratio["median"] >= work.goal_best)
            medians = found["medians"]
            rows.append(row(work.name, "tok/s", medians["Wenmo"], peer.name, medians[peer.name], ratio,
                            "; ".join(goals), all(reached) if reached else None))
    if work.goal_used is not None:
        used = statistics.median(found["model_flops_utilisation"] for _, found in groups if found is not None)
        rows.append(row(work.name, "", used, "the machine's best bf16 product, 4096³", None, None,
                        f"≥ {work.goal_used}", used >= work.goal_used, "model FLOPs utilisation"))
    return rows


def run(rounds: int, names: list[str]) -> None:
    rows: list[dict[str, Any]] = []
    versions: dict[str, str] = {}
    whole: dict[str, Any] = {}
    for name in names:
        work = WORKS[name]
        groups: list[tuple[tuple[Peer, ...], dict[str, Any] | None]] = []
        for peers in work.together:
            if any(peer.compiled for peer in peers) and shutil.which("g++") is None:
                groups.append((peers, None))
                continue
            found = measure(work.shape, peers, min(rounds, FEW) if FP32 in peers else rounds)
            versions |= found.pop("versions")
            groups.append((peers, found))
            print(name, {side: round(value) for side, value in found["medians"].items()}, file=sys.stderr, flush=True)
        rows += rows_of(work, groups)
        whole[name] = [found for _, found in groups]
    write("training", {
        "title": "A step of training", "title_zh": "训练一步", "rows": rows, "versions": versions, "rounds": whole,
        "about": ["Tokens a second of whole steps (forward, backward, clipping, AdamW) on random ids. Model FLOPs are "
                  "6 N + 6 L T D a token, a tied head counted once."]})


if __name__ == "__main__":
    run(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS, sys.argv[2:] or list(WORKS))
