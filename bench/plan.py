"""`wenmo plan` held to its word: time and memory forecast, beside what the runs then took.

`python -m bench.plan DATA_ROOT OUT [RECIPE …]`: for each recipe first the plan, then the whole training, in processes
of their own, one after the other; recipes that start from a run (`runs/…`) find it when OUT/runs holds it, so the order
of the five matters. Prints a table and one JSON object. Needs a quiet machine: minutes to an hour.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

RECIPES = Path(__file__).parent.parent / "recipes"
FIVE = ("tiny-mlm", "tiny-gpt", "tiny-t5", "tiny-classification", "tiny-lora")
TIME, MEMORY = 0.15, 0.10  # the goals


def measured(name: str, data_root: Path, out: Path) -> dict[str, Any]:
    """Forecast and actual of one recipe; seconds are those of the process's own work, without Python's start."""
    recipe = RECIPES / f"{name}.yaml"
    given = [str(recipe), "--data-root", str(data_root)]
    planned = subprocess.run([sys.executable, "-m", "wenmo", "plan", *given, "--json"], cwd=out, check=True,
                             stdout=subprocess.PIPE)
    forecast = json.loads(planned.stdout)["forecast"]
    run = out / "runs" / Path(name).name
    subprocess.run([sys.executable, "-m", "wenmo", "train", *given, "--out", str(run)], cwd=out, check=True)
    spent = json.loads((run / "cost.json").read_text(encoding="utf-8"))
    actual, first = spent["actual"], spent.get("forecast", {})
    disk = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    return {"recipe": name, "seconds": [forecast["seconds"], actual["seconds"]],
            "after_20_steps": first.get("seconds"),
            "peak_memory_bytes": [forecast["peak_memory_bytes"], actual["peak_memory_bytes"]],
            "disk_bytes": [forecast["disk_bytes"], disk],
            "time_off": forecast["seconds"] / actual["seconds"] - 1,
            "memory_off": forecast["peak_memory_bytes"] / actual["peak_memory_bytes"] - 1,
            "within_range": forecast["low"] <= actual["seconds"] <= forecast["high"]}


def run(data_root: Path, out: Path, names: tuple[str, ...] = FIVE) -> list[dict[str, Any]]:
    out.mkdir(parents=True, exist_ok=True)
    found = []
    for name in names:
        found.append(measured(name, data_root.resolve(), out.resolve()))
        print(_row(found[-1]), file=sys.stderr, flush=True)
    return found


def _row(each: dict[str, Any]) -> str:
    (plan_s, real_s), (plan_b, real_b) = each["seconds"], each["peak_memory_bytes"]
    return (f"| {each['recipe']} | {plan_s:.0f} s | {real_s:.0f} s | {each['time_off']:+.0%} "
            f"| {plan_b / 2**30:.2f} GiB | {real_b / 2**30:.2f} GiB | {each['memory_off']:+.0%} |")


if __name__ == "__main__":
    rows = run(Path(sys.argv[1]), Path(sys.argv[2]), tuple(sys.argv[3:]) or FIVE)
    print("| recipe | time: forecast | actual | off | memory: forecast | actual | off |\n|---|---|---|---|---|---|---|")
    print("\n".join(map(_row, rows)))
    good = all(abs(each["time_off"]) <= TIME and abs(each["memory_off"]) <= MEMORY for each in rows)
    print(json.dumps({"recipes": rows, "within_goals": good}))
