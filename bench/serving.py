"""Writing text beside the serving peers: SmolLM2-135M, every side a process that stays up, alternating rounds.

Prompts are random ids that no side has seen before, the same for all sides of a round; no end of text, no speculation,
no prefix cache; the likeliest token. A speed is output tokens ÷ seconds from handing in to the last token (prefill:
prompt tokens ÷ seconds to the first). All sides have the same threads and allocator settings.

    python -m bench.serving [ROUNDS [WORK …]]
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from bench import models
from bench.environments import ENVIRONMENTS, Program, settings, threads
from bench.rounds import alternate, row, write
from wenmo.device import numpy_rng

ROUNDS = 5
VLLM = {"VLLM_CACHE_ROOT": str(ENVIRONMENTS / "vllm-cache"), "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}


@dataclass(frozen=True)
class Work:
    """`sides`: ours first, then the peers; the goal is over the fastest of `against` (left out: over all)."""

    title: str
    streams: int
    prompt_tokens: int
    new_tokens: int
    sides: tuple[str, ...]
    goal: float
    against: tuple[str, ...] = ()

    @property
    def prefill(self) -> bool:
        return self.new_tokens == 1


BF16_PEERS = ("vLLM bf16, compiled", "vLLM bf16, eager", "transformers bf16")
WORKS = {
    "int4": Work("one stream, 4 bits", 1, 64, 128, ("Wenmo int4", "llama.cpp Q4_1", "OpenVINO int4"), 1.5,
                 ("llama.cpp Q4_1",)),
    "int8": Work("one stream, 8 bits", 1, 64, 128, ("Wenmo int8-weights", "OpenVINO int8", "llama.cpp Q8_0"), 1.5,
                 ("OpenVINO int8",)),
    "bf16": Work("one stream, bf16", 1, 64, 128, ("Wenmo bf16", *BF16_PEERS), 1.3, BF16_PEERS[:1]),
    "32-bf16": Work("32 streams, bf16", 32, 64, 64, ("Wenmo bf16", *BF16_PEERS), 1.5, BF16_PEERS[:1]),
    "32-int8": Work("32 streams, 8 bits", 32, 64, 64, ("Wenmo int8", "vLLM bf16, compiled", "OpenVINO int8",
                                                       "llama.cpp Q8_0"), 2.5, BF16_PEERS[:1]),
    "prefill": Work("prefill, 512 tokens", 1, 512, 1, ("Wenmo bf16", *BF16_PEERS, "OpenVINO int8", "llama.cpp Q4_1"),
                    1.2, BF16_PEERS[:1]),
    "prefill-int8": Work("prefill, 512 tokens, 8 bits", 1, 512, 1, ("Wenmo int8", BF16_PEERS[0], "OpenVINO int8"),
                         1.2, BF16_PEERS[:1]),
}  # fmt: skip


def program(side: str, streams: int) -> Program:
    """A side's process, its model loaded."""
    name, _, format = side.partition(" ")
    given: dict[str, Any] = {"threads": threads(), "streams": streams, "max_tokens": 576 if streams == 1 else 128}
    if name == "Wenmo":
        return Program("wenmo", "wenmo_serving.py", {**given, "model": str(models.folder()), "format": format})
    if name == "llama.cpp":
        file = models.gguf() if format == "Q4_1" else models.gguf_q8()
        return Program("llama_cpp", "llama_cpp_serving.py", {**given, "model": str(file)})
    if name == "OpenVINO":
        model = models.openvino(int(format.removeprefix("int")))
        return Program("openvino", "openvino_serving.py", {**given, "model": str(model)})
    if name == "vLLM":
        return Program("vllm", "vllm_serving.py", {**given, "model": str(models.folder()),
                                                   "eager": format.endswith("eager")}, variables=VLLM)
    return Program("transformers", "transformers_serving.py", {**given, "model": str(models.folder())})


def speed(side: Program, work: Work) -> Callable[[], float]:
    """Each call is a round of its own, with prompts of its own: those that the other sides get in the same round."""
    calls: Iterator[int] = iter(range(1 << 30))

    def run() -> float:
        rng = numpy_rng("bench.serving", 0, work.title, next(calls))
        prompts = rng.integers(1000, models.VOCABULARY - 1000, (work.streams, work.prompt_tokens)).tolist()
        found = side.ask({"prompts": prompts, "new_tokens": work.new_tokens})
        assert found["tokens"] == work.streams * work.new_tokens, f"{side.name}: {found}"
        tokens = work.prompt_tokens if work.prefill else found["tokens"]
        return float(tokens / found["seconds"])

    return run


@contextmanager
def started(work: Work, failed: dict[str, str]) -> Iterator[dict[str, Program]]:
    """The sides that run here; `failed` takes why one does not."""
    with ExitStack() as stack:
        running = {}
        for side in work.sides:
            if side in failed:
                continue
            try:
                running[side] = stack.enter_context(program(side, work.streams))
            except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
                if side == work.sides[0]:
                    raise
                failed[side] = str(error)
                print(f"{side}: {error}", file=sys.stderr)
        yield running


def rows_of(work: Work, found: dict[str, Any], failed: dict[str, str]) -> list[dict[str, Any]]:
    ours, *peers = work.sides
    against = work.against or tuple(peers)
    shape = (f"{work.title}; Wenmo {ours.partition(' ')[2]}" if work.prefill else
             f"{work.title}, {work.prompt_tokens} in, {work.new_tokens} out; Wenmo {ours.partition(' ')[2]}")
    rows = []
    for peer in peers:
        goal = f"≥ {work.goal} ×" if peer in against else ""
        if peer in failed:
            rows.append(row(shape, "tok/s", found["medians"][ours], peer, None, goal=goal, note=failed[peer]))
            continue
        ratio = found["ratios"][peer]
        rows.append(row(shape, "tok/s", found["medians"][ours], peer, found["medians"][peer], ratio, goal,
                        ratio["median"] >= work.goal if goal else None))
    return rows


START_GOAL_SECONDS = 3.0
ALL = (*WORKS, "start")


def seconds_to_first_token(side: str) -> Callable[[], float]:
    """Starts a second, so that more is better: a whole process, from its start to its first token.

    Ours is the command, from the shell to its end, tokenizer and all; the peers' scripts get ids.
    """
    ids = list(range(1000, 1016))

    def run() -> float:
        began = time.perf_counter()
        if side.startswith("Wenmo"):
            subprocess.run([sys.executable, "-m", "wenmo", "generate", str(models.folder()), "--prompt", "Once upon a",
                            "--max-new-tokens", "1", "--format", side.partition(" ")[2]], check=True,
                           capture_output=True, env=settings())
        else:
            with program(side, 1) as running:
                running.ask({"prompts": [ids], "new_tokens": 1})
                return 1 / (time.perf_counter() - began)
        return 1 / (time.perf_counter() - began)

    return run


def start(rounds: int, failed: dict[str, str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    sides = ("Wenmo bf16", "OpenVINO int8", "llama.cpp Q4_1", "transformers bf16", "vLLM bf16, eager")
    found = alternate({side: seconds_to_first_token(side) for side in sides if side not in failed}, rounds)
    seconds = {side: 1 / value for side, value in found["medians"].items()}
    ours = seconds[sides[0]]
    title, goal = "start to first token, model on disk; Wenmo bf16, from the shell", f"≤ {START_GOAL_SECONDS:.0f} s"
    rows = [row(title, "s", ours, peer, seconds[peer], found["ratios"][peer]) for peer in sides[1:] if peer in seconds]
    rows[0] |= {"goal": goal, "reached": ours <= START_GOAL_SECONDS}  # a goal in seconds, whoever is beside
    return found, rows


def run(rounds: int = ROUNDS, names: tuple[str, ...] = ALL) -> dict[str, Any]:
    versions: dict[str, str] = {}
    failed: dict[str, str] = {}
    rows, values = [], {}
    for name in names:
        if name == "start":
            values[name], more = start(max(1, rounds // 2), failed)
            rows += more
            continue
        work = WORKS[name]
        with started(work, failed) as sides:
            for side in sides.values():
                versions |= side.ready["versions"]
            values[name] = alternate({title: speed(side, work) for title, side in sides.items()}, rounds)
        rows += rows_of(work, values[name], failed)
        print(name, values[name]["medians"], file=sys.stderr, flush=True)
    return {"title": "Writing text: SmolLM2-135M", "title_zh": "生成文本：SmolLM2-135M",
            "about": [" ".join(__doc__.split("\n\n")[1].split())], "versions": versions, "rows": rows,
            "rounds": values}


if __name__ == "__main__":
    write("serving", run(int(sys.argv[1]) if sys.argv[1:] else ROUNDS, tuple(sys.argv[2:]) or ALL))
