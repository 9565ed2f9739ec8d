"""Sides measured in alternating rounds: what slows the machine for a while slows all of them.

In: a dict of functions, each of which does its work once and returns a speed (more is better). Out: medians, and the
ratio of the first side to each of the others, taken round by round.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.environments import threads

OUT = Path(__file__).parent / "out"


def alternate(sides: dict[str, Callable[[], float]], rounds: int, warm_up: int = 1) -> dict[str, Any]:
    """{"rounds", "medians": {side: speed}, "ratios": {other: {"median", "low", "high"}}, "values": {side: [speed]}}.

    Every second round goes backwards, so that no side always comes after the same other. Rounds of warm-up do not
    count. The ratio is first side ÷ other side.
    """
    for _ in range(warm_up):
        for run in sides.values():
            run()
    values: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        names = list(sides) if number % 2 == 0 else list(reversed(sides))
        for name in names:
            values[name].append(sides[name]())
    first, *others = sides
    ratios = {other: spread([ours / theirs for ours, theirs in zip(values[first], values[other], strict=True)])
              for other in others}
    return {"rounds": rounds, "medians": {name: statistics.median(each) for name, each in values.items()},
            "ratios": ratios, "values": values}


def spread(values: list[float]) -> dict[str, float]:
    """The median, the lowest and the highest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def row(work: str, unit: str, ours: float | str, peer: str, theirs: float | str | None,
        ratio: dict[str, float] | None = None, goal: str = "", reached: bool | None = None, note: str = ""
        ) -> dict[str, Any]:
    """One line of the page's table. `theirs` is None where there is no figure: then `note` says why.

    `ratio` is what `spread` gives; `reached` compares it with the goal, and is None where there is no goal.
    """
    return {"work": work, "unit": unit, "ours": ours, "peer": peer, "theirs": theirs, "ratio": ratio, "goal": goal,
            "reached": reached, "note": note}


def write(part: str, found: dict[str, Any]) -> None:
    """bench/out/PART.json: what was found, where, and when; the page is written from it.

    The page reads `title`, `title_zh`, `about` (a list of sentences), `rows` (of `row`), `plots` (of `plot.plot`) and
    `versions` ({name: version}); whatever else is there is for those who want every round.
    """
    OUT.mkdir(exist_ok=True)
    whole = {"part": part, "when": time.strftime("%Y-%m-%d"), "machine": machine(), "threads": threads(), **found}
    (OUT / f"{part}.json").write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{part}: {OUT / f'{part}.json'}", file=sys.stderr)


def machine() -> dict[str, Any]:
    """The processor, its cores, its memory and the units that matter here."""
    about = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in about.splitlines())}
    units = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"processor": fields.get("model name", platform.processor()), "cores": os.cpu_count(),
            "memory_bytes": memory, "units": [unit for unit in units if unit in fields.get("flags", "").split()],
            "python": platform.python_version()}
