"""A run as a notebook shows it: what came of it, and the curve of its loss."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from wenmo.chart import Series
from wenmo.errors import say
from wenmo.files import read_jsonl, sha256
from wenmo.notebook import curve, facts, fragment


def run_html(folder: Path, rows: Iterable[tuple[str, str]]) -> str:
    """A fragment with the facts given and, where the run has logged any, its losses."""
    title = say("run", "训练") + f" {folder}"
    log = folder / "metrics.jsonl"
    series = loss_series(read_jsonl(log)) if log.exists() else []
    drawn = curve(say("loss", "损失"), series, say("step", "步"), say("loss", "损失"),
                  f"run-{sha256(str(folder.absolute()))[:8]}") if series else []
    return fragment(facts(title, rows), *drawn)


def loss_series(log: list[dict[str, Any]]) -> list[Series]:
    """The losses in a run's metrics.jsonl: of the steps, and of the rows for choosing where there are any."""
    training = [(row["step"], row["loss"]) for row in log if row.get("loss") is not None]
    held_out = [(row["step"], row["val_loss"]) for row in log if row.get("val_loss") is not None]
    series = [Series(say("training", "训练"), training, smooth=True),
              Series(say("rows for choosing", "用于选择的数据"), held_out)]
    return [one for one in series if one.points]
