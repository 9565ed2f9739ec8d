"""`wenmo plan` held to its word: time and memory forecast, beside what the runs then took.

For each recipe first the plan, then the whole training, in processes of their own, one after the other; a recipe that
starts from a run (`runs/…`) finds it among those that were trained before it, so the order of the five matters. Time is
of the process's own work, without Python's start. A ratio is forecast ÷ actual.

    python -m bench.plan [DATA_ROOT [OUT [RECIPE …]]]
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.environments import ENVIRONMENTS, settings
from bench.rounds import row, spread, write

ROOT = Path(__file__).parent.parent
DATA, OUT = ROOT / "demo-out" / "data", ENVIRONMENTS / "plan"
FIVE = ("tiny-mlm", "tiny-gpt", "tiny-t5", "tiny-classification", "tiny-lora")
TIME, MEMORY = 0.15, 0.10  # the goals


def measured(name: str, data_root: Path, out: Path) -> dict[str, Any]:
    """Forecast and actual of one recipe. SystemExit where its run is there already: it would not be trained again."""
    given = [str(ROOT / "recipes" / f"{name}.yaml"), "--data-root", str(data_root)]
    run = out / "runs" / Path(name).name
    if run.exists():
        raise SystemExit(f"{run}: there already; name another folder")
    planned = subprocess.run([sys.executable, "-m", "wenmo", "plan", *given, "--json"], cwd=out, check=True,
                             stdout=subprocess.PIPE, env=settings())
    forecast = json.loads(planned.stdout)["forecast"]
    subprocess.run([sys.executable, "-m", "wenmo", "train", *given, "--out", str(run)], cwd=out, check=True,
                   env=settings(), stdout=sys.stderr)
    spent = json.loads((run / "cost.json").read_text(encoding="utf-8"))
    actual, first = spent["actual"], spent.get("forecast", {})
    disk = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    return {"recipe": name, "seconds": [forecast["seconds"], actual["seconds"]],
            "range": [forecast["low"], forecast["high"]], "after_20_steps": first.get("seconds"),
            "peak_memory_bytes": [forecast["peak_memory_bytes"], actual["peak_memory_bytes"]],
            "disk_bytes": [forecast["disk_bytes"], disk]}


def rows_of(each: dict[str, Any]) -> list[dict[str, Any]]:
    """Time and memory of a recipe."""
    work, (low, high) = f"recipes/{each['recipe']}.yaml", each["range"]
    facts = (("time", "s", each["seconds"], 1.0, TIME, f"range {low:.0f} to {high:.0f} s"),
             ("peak memory", "GiB", each["peak_memory_bytes"], 2.0**30, MEMORY,
              "disk {:.0f} MiB, then {:.0f}".format(*(size / 2**20 for size in each["disk_bytes"]))))
    return [row(f"{work}: {what}, forecast", unit, forecast / scale, "what it then took", actual / scale,
                spread([forecast / actual]), f"± {goal:.0%}", abs(forecast / actual - 1) <= goal, note)
            for what, unit, (forecast, actual), scale, goal, note in facts]


def run(data_root: Path = DATA, out: Path | None = None, names: tuple[str, ...] = FIVE) -> dict[str, Any]:
    if not data_root.is_dir():
        raise SystemExit(f"{data_root}: not there; `make demo` makes it, or name a folder with the recipes' texts")
    if out is None:
        out = OUT
        shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    found = []
    for name in names:
        found.append(measured(name, data_root.resolve(), out.resolve()))
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    return {"title": "Forecasts of wenmo plan", "title_zh": "wenmo plan 的预测",
            "about": (__doc__ or "").split("\n\n")[1:2], "rows": [line for each in found for line in rows_of(each)],
            "recipes": found}


if __name__ == "__main__":
    given = sys.argv[1:]
    write("plan", run(Path(given[0]) if given else DATA, Path(given[1]) if given[1:] else None,
                      tuple(given[2:]) or FIVE))
