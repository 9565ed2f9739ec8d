"""What a run costs: a forecast after its first steps, and what it has come to, earlier processes included.

In: the seconds of the first steps. Out: `forecast` in cost.json, and a line for the user; the cost so far.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from wenmo import device as machine
from wenmo.errors import say
from wenmo.stages.train.choosing import Choosing
from wenmo.stages.train.ready import Ready
from wenmo.training import cost

_log = logging.getLogger(__name__)


class Costs:
    """`began` is time.monotonic() when the command began; `earlier` is what processes before this one cost."""

    def __init__(self, ready: Ready, began: float) -> None:
        self._ready = ready
        self.began = began
        self.earlier: Mapping[str, Any] = {"seconds": 0.0, "peak_memory_bytes": 0}
        self.step_seconds: list[float] = []  # of this process, until a forecast is made of them

    def seconds(self) -> float:
        """Of this process."""
        return time.monotonic() - self.began

    def so_far(self) -> dict[str, Any]:
        """Processes before this one included."""
        return {"seconds": round(self.earlier["seconds"] + self.seconds(), 1),
                "peak_memory_bytes": max(int(self.earlier["peak_memory_bytes"]),
                                         machine.peak_memory_bytes(self._ready.on.device))}

    def forecast(self, start_seconds: float, total_steps: int, tokens: int, choosing: Choosing) -> None:
        """Written down once, to stand beside what the run will have cost. `tokens`: those of the steps so far."""
        if not self._ready.run.writes:
            return
        evaluations = choosing.expected_seconds(total_steps, sum(self.step_seconds) / max(1, tokens))
        found = cost.expected(self.step_seconds, total_steps, start_seconds, evaluations,
                              machine.peak_memory_bytes(self._ready.on.device))
        cost.write(self._ready.run.folder, "forecast", found)
        minutes = [found[name] / 60 for name in ("low", "high")]
        _log.info(say(f"about {minutes[0]:.1f} to {minutes[1]:.1f} minutes in all",
                      f"全程约 {minutes[0]:.1f} 至 {minutes[1]:.1f} 分钟"))
