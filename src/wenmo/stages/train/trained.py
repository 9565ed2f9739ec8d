"""What `train` gives back: where the run lies, and its figures; a notebook draws its curve too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wenmo.errors import say
from wenmo.report import metric_name
from wenmo.stages.run_view import run_html


@dataclass(frozen=True)
class Trained:
    """The finished (or interrupted: `exit_code` 75 or 130) run; `metrics` are those of the weights that it keeps."""

    folder: Path
    steps: int
    tokens: int
    seconds: float
    metrics: Mapping[str, float]
    exit_code: int = 0

    def _repr_html_(self) -> str:
        """In a notebook: the figures, and the curve of the loss."""
        rows = [(say("steps", "步数"), f"{self.steps:,}"), (say("tokens", "词元"), f"{self.tokens:,}"),
                (say("seconds", "秒"), f"{self.seconds:,.1f}"), (say("model", "模型"), str(self.folder / "model"))]
        if self.exit_code:
            rows.append((say("interrupted", "已中断"), say("the same command goes on", "同一命令可继续")))
        rows += [(say("validation ", "验证 ") + metric_name(name), f"{value:.4f}")
                 for name, value in self.metrics.items()]
        return run_html(self.folder, rows)
