"""What a run was expected to cost, and what it cost: cost.json in the Run, beside the log.

In: the seconds of the first steps, and of what came between them. Out: a forecast, made once, and what it came to. It
stands in the Run and not in the model's card: a model's folder is a pure function of recipe and data, to the last byte
(tests/test_kill.py), and time is not.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wenmo.files import write_json

COST = "cost.json"
FORECAST_STEPS = 20  # after which a new run says how long it will take; the first few are slower and are left out
UNUSUAL_STEPS = 5
LEAST_RANGE = 0.10


def expected(step_seconds: Sequence[float], total_steps: int, start_seconds: float, evaluations_seconds: float,
             peak_memory_bytes: int) -> dict[str, Any]:
    """The whole run from its first steps, with a range of at least a tenth. Saving is not in it: none has been seen."""
    usual = step_seconds[UNUSUAL_STEPS:] or step_seconds
    step = statistics.fmean(usual)
    spread = 2 * statistics.stdev(usual) / math.sqrt(len(usual)) / step if len(usual) > 1 and step else 0.0
    share = max(LEAST_RANGE, min(spread, 0.5))
    seconds = start_seconds + sum(step_seconds) + step * (total_steps - len(step_seconds)) + evaluations_seconds
    return {"after_steps": len(step_seconds), "seconds": round(seconds, 1), "low": round(seconds * (1 - share), 1),
            "high": round(seconds * (1 + share), 1), "peak_memory_bytes": peak_memory_bytes}


def read(run: Path) -> dict[str, Any]:
    """What stands there; empty for a Run of which nothing is known."""
    path = run / COST
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def write(run: Path, part: str, value: dict[str, Any]) -> None:
    """`part` is `forecast` or `actual`; the other stays."""
    write_json(run / COST, {**read(run), part: value})
