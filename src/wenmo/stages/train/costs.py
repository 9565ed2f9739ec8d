"""What a run costs: a forecast after its first steps, and what it has come to, earlier processes included.

In: the seconds of the first steps. Out: `forecast` in cost.json, and a line for the user; the cost so far; a warning
where other programs want the processors that this one computes on.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from typing import Any

from wenmo import device as machine
from wenmo.errors import say
from wenmo.stages.train.choosing import Choosing
from wenmo.stages.train.ready import Ready
from wenmo.training import cost

_log = logging.getLogger(__name__)
UNNOTICED = 0.3  # of a processor: what a desktop, or the system itself, may take


class Costs:
    """`began` is time.monotonic() when the command began; `earlier` is what processes before this one cost."""

    def __init__(self, ready: Ready, began: float) -> None:
        self._ready = ready
        self.began = began
        self.earlier: Mapping[str, Any] = {"seconds": 0.0, "peak_memory_bytes": 0}
        self.step_seconds: list[float] = []  # of this process, until a forecast is made of them
        self._at_first: tuple[float, float, float] | None = None  # the time, and `processor_seconds`, then

    def seconds(self) -> float:
        """Of this process."""
        return time.monotonic() - self.began

    def so_far(self) -> dict[str, Any]:
        """Processes before this one included."""
        return {"seconds": round(self.earlier["seconds"] + self.seconds(), 1),
                "peak_memory_bytes": max(int(self.earlier["peak_memory_bytes"]),
                                         machine.peak_memory_bytes(self._ready.on.device))}

    def begin_steps(self) -> None:
        computed = machine.processor_seconds()
        self._at_first = None if computed is None else (time.monotonic(), *computed)

    def forecast(self, start_seconds: float, total_steps: int, tokens: int, choosing: Choosing) -> None:
        """Written down once, to stand beside what the run will have cost. `tokens`: those of the steps so far."""
        if not self._ready.run.writes:
            return
        evaluations = choosing.expected_seconds(total_steps, sum(self.step_seconds) / max(1, tokens))
        found = cost.expected(self.step_seconds, total_steps, start_seconds, evaluations,
                              machine.peak_memory_bytes(self._ready.on.device))
        cost.write(self._ready.run.folder, "forecast", found)
        minutes = [found[name] / 60 for name in ("low", "high")]
        self._warn_of_others()
        _log.info(say(f"about {minutes[0]:.1f} to {minutes[1]:.1f} minutes in all",
                      f"全程约 {minutes[0]:.1f} 至 {minutes[1]:.1f} 分钟"))

    def _warn_of_others(self) -> None:
        """torch's threads wait for each other after each operation: if one of them is kept from its processor by
        another program, all stand still until it has one again, many times a step."""
        on, now, processors = self._ready.on, machine.processor_seconds(), os.cpu_count() or 1
        alone = on.device.type == "cpu" and on.threads > 1 and self._ready.processes.size == 1
        if now is None or self._at_first is None or not alone:
            return
        began, all_before, own_before = self._at_first
        busy = (now[0] - all_before - (now[1] - own_before)) / (time.monotonic() - began)
        left = max(1, int(processors - busy + UNNOTICED))
        if on.threads > left:
            _log.warning(say(
                f"other programs keep {busy:.1f} of {processors} processors busy, and {on.threads} threads then wait "
                f"for each other: train.threads={left} may be many times faster",
                f"其他程序占用了 {processors} 个处理器中的 {busy:.1f} 个，{on.threads} 个线程因此互相等待："
                f"train.threads={left} 可能快许多倍"))
