"""What a sweep came to: its runs, the best of them, and what may be noise; as JSON and as a table.

Where `seed` was swept, runs that differ in it alone are one setting, with the mean and the spread of its seeds. The
best setting is marked, and beside it every other whose 95% interval overlaps with its own: "within noise".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from wenmo.errors import say
from wenmo.metrics import Estimate, lower_is_better, mean_of_runs
from wenmo.report import metric_name

FINISHED, FAILED, INTERRUPTED, WAITING = "finished", "failed", "interrupted", "waiting"
SEED = "seed"

T = TypeVar("T")


@dataclass(frozen=True)
class SweptRun:
    """One combination: `values` by key, and when it has finished its `metrics` on the rows for choosing. `identity` is
    a hash of its recipe and its data; `estimates` and `deviations` are those over folds, where there are any."""

    name: str
    values: Mapping[str, Any]
    status: str
    identity: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    estimates: Mapping[str, Estimate] = field(default_factory=dict)
    deviations: Mapping[str, float] = field(default_factory=dict)
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    error: str = ""
    exit_code: int = 0

    def as_dict(self) -> dict[str, Any]:
        result = {name: getattr(self, name) for name in ("name", "values", "status", "identity", "steps", "tokens")}
        result |= {"seconds": round(self.seconds, 1),
                   "metrics": {name: _finite(value) for name, value in self.metrics.items()}}
        if self.estimates:
            result["folds"] = {name: {**estimate.as_dict(), "sd": _finite(self.deviations[name])}
                               for name, estimate in self.estimates.items()}
        return result | ({"error": self.error} if self.error else {})

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> SweptRun:
        """From what `as_dict` gave."""
        folds: Mapping[str, Mapping[str, Any]] = found.get("folds", {})
        estimates = {name: Estimate(*(_number(ends[end]) for end in ("value", "low", "high")))
                     for name, ends in folds.items()}
        return cls(found["name"], found["values"], found["status"], found["identity"],
                   {name: _number(value) for name, value in found["metrics"].items()}, estimates,
                   {name: _number(ends["sd"]) for name, ends in folds.items()}, found["steps"], found["tokens"],
                   found["seconds"], found.get("error", ""))


@dataclass(frozen=True)
class Setting:
    """Runs that differ in their seed alone: their mean by the metric that chooses, and their spread."""

    values: Mapping[str, Any]
    runs: Sequence[SweptRun]
    estimate: Estimate
    deviation: float
    complete: bool

    def as_dict(self) -> dict[str, Any]:
        return {"values": dict(self.values), "runs": [run.name for run in self.runs], "sd": _finite(self.deviation),
                **self.estimate.as_dict(), "complete": self.complete}


@dataclass(frozen=True)
class Swept:
    """The sweep in `folder`, its runs in the order of the grid; `by` is the metric that chooses."""

    folder: Path
    by: str
    runs: Sequence[SweptRun]

    @property
    def exit_code(self) -> int:
        """75 or 130 where it was interrupted, 1 where a run failed."""
        interrupted = max((run.exit_code for run in self.runs), default=0)
        return interrupted or int(any(run.status == FAILED for run in self.runs))

    @property
    def best(self) -> SweptRun | None:
        """The finished run with the best value; a tie goes to the first."""
        done = [run for run in self.runs if not math.isnan(self._value(run))]
        return _best(done, [self._value(run) for run in done], self.by)

    @property
    def settings(self) -> list[Setting]:
        """Where several seeds were tried: the finished runs of each setting together."""
        if len({run.values.get(SEED) for run in self.runs}) < 2:
            return []
        groups: dict[str, list[SweptRun]] = {}
        for run in self.runs:
            groups.setdefault(str(_without_seed(run.values)), []).append(run)
        result = []
        for runs in groups.values():
            done = [run for run in runs if not math.isnan(self._value(run))]
            if done:
                estimate, deviation = mean_of_runs([self._value(run) for run in done])
                result.append(Setting(_without_seed(runs[0].values), done, estimate, deviation, len(done) == len(runs)))
        return result

    @property
    def best_setting(self) -> Setting | None:
        """Of those with all their seeds: a mean over the seeds that did not fail would flatter."""
        whole = [setting for setting in self.settings if setting.complete]
        return _best(whole, [setting.estimate.value for setting in whole], self.by)

    def _value(self, run: SweptRun) -> float:
        return run.metrics.get(self.by, math.nan) if run.status == FINISHED else math.nan

    def within_noise(self) -> list[Mapping[str, Any]]:
        """The values of settings (or of cross-validated runs) whose interval overlaps with that of the best."""
        settings, setting, best = self.settings, self.best_setting, self.best
        if settings:
            known = [(each.values, each.estimate) for each in settings if each is not setting]
            top = None if setting is None else (setting.values, setting.estimate)
        else:
            known = [(run.values, run.estimates[self.by]) for run in self.runs if self.by in run.estimates]
            top = None if best is None or self.by not in best.estimates else (best.values, best.estimates[self.by])
        if top is None:
            return []
        return [values for values, estimate in known
                if values != top[0] and estimate.low <= top[1].high and top[1].low <= estimate.high]

    def as_dict(self) -> dict[str, Any]:
        """For sweep.json and `--json`."""
        best, setting = self.best, self.best_setting
        result: dict[str, Any] = {"sweep": str(self.folder), "by": self.by,
                                  "best": None if best is None else best.name,
                                  "runs": [run.as_dict() for run in self.runs]}
        if self.settings:
            result |= {"settings": [each.as_dict() for each in self.settings],
                       "best_setting": None if setting is None else dict(setting.values),
                       "interval": "95%, Student's t over seeds"}
        return result | {"within_noise": [dict(values) for values in self.within_noise()]}

    # Shown ----------------------------------------------------------------------------------------------

    def renderable(self) -> Group:
        """For the terminal: the runs, the settings where seeds were swept, and what follows."""
        return Group(self._runs_table(), *([self._settings_table()] if self.settings else []), *self._sentences())

    def _runs_table(self) -> Table:
        table = Table(title=Text(str(self.folder)), box=SIMPLE_HEAD)
        keys = list(self.runs[0].values)
        metrics = [self.by, *dict.fromkeys(name for run in self.runs for name in run.metrics if name != self.by)]
        for key in keys:
            table.add_column(key)
        for name in metrics:
            arrow = " ↓" if lower_is_better(name) else ""
            table.add_column(metric_name(name) + arrow, justify="right", overflow="fold")
        for heading in (say("steps", "步数"), say("seconds", "秒")):
            table.add_column(heading, justify="right")
        table.add_column("")
        best, noise = self.best, [] if self.settings else self.within_noise()
        for run in self.runs:
            shown = [f"{run.metrics[name]:.4f}" if name in run.metrics else "–" for name in metrics]
            if self.by in run.deviations:
                shown[0] += f" ± {run.deviations[self.by]:.2g}"
            table.add_row(*(Text(_shown(run.values[key])) for key in keys), *shown, f"{run.steps:,}",
                          f"{run.seconds:,.1f}", _note(run, run is best, run.values in noise),
                          style="bold" if run is best else None)
        return table

    def _settings_table(self) -> Table:
        seeds = len({run.values[SEED] for run in self.runs})
        table = Table(title=say(f"over {seeds} seeds", f"对 {seeds} 个种子"), box=SIMPLE_HEAD,
                      caption=say("Student's t over seeds", "对种子的 Student t 区间"))
        keys = [key for key in self.runs[0].values if key != SEED]
        for key in keys:
            table.add_column(key)
        arrow = " ↓" if lower_is_better(self.by) else ""
        for heading in (metric_name(self.by) + arrow, say("95% interval", "95% 区间"), say("seeds", "种子数")):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("")
        best, noise = self.best_setting, self.within_noise()
        for setting in self.settings:
            value, low, high = setting.estimate.texts()
            marked = best is not None and setting.values == best.values
            note = _best_mark() if marked else _noise_mark() if setting.values in noise else ""
            table.add_row(*(Text(_shown(setting.values[key])) for key in keys),
                          Text(f"{value} ± {setting.deviation:.2g}"), Text(f"[{low}, {high}]"),
                          f"{len(setting.runs)}", note, style="bold" if marked else None)
        return table

    def _sentences(self) -> Iterable[Text]:
        name = metric_name(self.by)
        for run in self.runs:
            if run.error:
                yield Text(f"{run.name}: {run.error}")
        best, setting = self.best, self.best_setting
        if setting is not None and setting.values:
            chosen = " ".join(f"{key}={_shown(value)}" for key, value in setting.values.items())
            yield Text(say(f"best by {name}, on average over seeds: {chosen}", f"按{name}，各种子平均最佳：{chosen}"))
        elif best is not None:
            yield Text(say(f"best by {name}: {self.folder / best.name}", f"按{name}最佳：{self.folder / best.name}"))
        if best is not None and self.within_noise():
            yield Text(say("within noise: the interval overlaps with that of the best; they cannot be told apart here",
                           "在噪声之内：区间与最佳者重叠，在此难分高下"))
        elif best is not None and len(self.runs) > 1 and not self.settings and not best.estimates:
            yield Text(say("one run each says nothing of noise: add --sweep seed=0,1,2, or data.choose.folds=5",
                           "每组只训练一次，无从得知噪声：可加 --sweep seed=0,1,2 或 data.choose.folds=5"))


def _best(of: Sequence[T], values: Sequence[float], metric: str) -> T | None:
    sign = 1 if lower_is_better(metric) else -1
    places = sorted(range(len(of)), key=lambda place: sign * values[place])  # stable: a tie keeps its order
    return of[places[0]] if places else None


def _without_seed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != SEED}


def _note(run: SweptRun, best: bool, noise: bool) -> str:
    if run.status != FINISHED:
        return {FAILED: say("failed", "失败"), INTERRUPTED: say("interrupted", "已中断"),
                WAITING: say("waiting", "未开始")}[run.status]
    return _best_mark() if best else _noise_mark() if noise else ""


def _best_mark() -> str:
    return say("★ best", "★ 最佳")


def _noise_mark() -> str:
    return say("within noise", "在噪声之内")


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
