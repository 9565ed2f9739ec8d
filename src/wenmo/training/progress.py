"""What a person sees while a run goes on.

In: StepResults. Out: on a terminal a bar on stderr; elsewhere (a file, a log, NO_COLOR) one plain line every few
seconds. stdout is left alone. Nothing where the logger of this module is set above INFO, as --quiet does.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections import deque
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from wenmo.errors import say
from wenmo.training.loop import StepResult

_log = logging.getLogger(__name__)
EVERY_SECONDS = 10.0  # a plain line
WINDOW_STEPS = 100  # speed and time left are those of the last steps, pauses for evaluation and saving included


class Progress:
    """A context manager; `show` each StepResult. `silent`: of several processes all but the first are."""

    def __init__(self, total_steps: int, *, silent: bool = False) -> None:
        self.total_steps, self.silent = total_steps, silent or _log.level > logging.INFO
        self._past: deque[tuple[float, int]] = deque(maxlen=WINDOW_STEPS)  # (when, num_tokens) of each step
        self._line_at = -math.inf
        self._bar: Bar | None = None
        if not self.silent and sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
            self._bar = Bar(
                BarColumn(), TextColumn("{task.description}"), console=Console(stderr=True),
                redirect_stdout=False, refresh_per_second=4,
            )

    def __enter__(self) -> Progress:
        self._past.append((time.monotonic(), 0))
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("", total=self.total_steps)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, result: StepResult) -> None:
        now = time.monotonic()
        self._past.append((now, result.num_tokens))
        if self._bar is not None:
            self._bar.update(self._task, completed=result.step, description=self.line(result))
        elif self.silent:
            return
        elif now - self._line_at >= EVERY_SECONDS or result.step == self.total_steps:
            self._line_at = now
            print(self.line(result), file=sys.stderr, flush=True)

    def line(self, result: StepResult) -> str:
        """step, loss, lr, tokens a second, time left."""
        seconds = self._past[-1][0] - self._past[0][0]
        num_tokens = sum(count for _, count in list(self._past)[1:])
        speed = num_tokens / seconds if seconds > 0 else 0.0
        left = timedelta(seconds=round(seconds / (len(self._past) - 1) * (self.total_steps - result.step)))
        loss = say("skipped", "已跳过") if result.skipped else f"{result.loss:.4f}"
        return say(
            f"step {result.step}/{self.total_steps}  loss {loss}  lr {result.lr:.2e}  "
            f"{speed:,.0f} tokens/s  left {left}",
            f"第 {result.step}/{self.total_steps} 步  损失 {loss}  学习率 {result.lr:.2e}  "
            f"{speed:,.0f} 词元/秒  剩余 {left}",
        )
