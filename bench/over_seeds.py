"""Ways of training beside one of them, over several seeds: mean, interval, and the difference paired by seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from wenmo.metrics import mean_of_runs, within_noise
from wenmo.stages.library import train

Found = Mapping[int, Mapping[str, Mapping[str, float]]]  # seed → way → {"accuracy", "seconds"}


def train_whole(*given: Any, **named: Any) -> None:
    """`wenmo.train`; an interrupted run ends the program, and the same command goes on."""
    if code := train(*given, **named).exit_code:
        raise SystemExit(code)


def summary(found: Found, reference: str) -> dict[str, Any]:
    """way → accuracy (mean over seeds, Student's interval), difference to `reference` paired by seed, seconds."""
    result: dict[str, Any] = {}
    seeds = list(found.values())
    for way in seeds[0]:
        accuracy, deviation = mean_of_runs([each[way]["accuracy"] for each in seeds])
        gain, _ = mean_of_runs([each[way]["accuracy"] - each[reference]["accuracy"] for each in seeds])
        result[way] = {"accuracy": accuracy.as_dict(), "sd": deviation, "difference": gain.as_dict(),
                       "within_noise": way == reference or within_noise(gain),
                       "seconds": sum(each[way]["seconds"] for each in seeds) / len(seeds)}
    return result


def table(title: str, result: Mapping[str, Any], reference: str) -> Table:
    shown = Table(title=title)
    for heading in ("", "accuracy", "95% over seeds", f"less {reference}, paired", "", "seconds"):
        shown.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    for way, row in result.items():
        accuracy, gain = row["accuracy"], row["difference"]
        told = "" if way == reference else "within noise" if row["within_noise"] else "beyond noise"
        shown.add_row(way, f"{accuracy['value']:.4f}", _ends(accuracy),
                      "" if way == reference else f"{gain['value']:+.4f} {_ends(gain)}", told, f"{row['seconds']:.0f}")
    return shown


def _ends(estimate: Mapping[str, float | None]) -> str:
    return "[" + ", ".join("–" if end is None else f"{end:.4f}" for end in (estimate["low"], estimate["high"])) + "]"
