"""`wenmo find-lr`: which learning rate a recipe's own model and data would bear.

The recipe is prepared as for training, in a folder that is thrown away; for some steps the rate grows exponentially
until the loss diverges. Nothing is kept but what is printed, or written to the file that was asked for.
"""

from __future__ import annotations

import logging
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from wenmo import device as machine
from wenmo.chart import Series
from wenmo.data.loader import Loader
from wenmo.errors import UsageError, say
from wenmo.files import write_atomic, write_json
from wenmo.page import Facts, LineChart, html_page
from wenmo.recipe import Recipe
from wenmo.stages import prepare
from wenmo.training import optimizer
from wenmo.training.loop import steps
from wenmo.training.lr_range import Suggestion, Watch, rate_at, smoothed, suggest
from wenmo.training.optimizer import Muon, OptimizerSettings
from wenmo.training.progress import Progress
from wenmo.training.regularisers import regularised
from wenmo.training.unfreezing import waiting_in

ROWS_SHOWN = 12

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """The curve (a loss for each rate, up to where it diverged) and what it suggests: None where nothing was learnt."""

    rates: list[float]
    losses: list[float]
    diverged: bool
    suggestion: Suggestion | None
    settings: OptimizerSettings

    def overrides(self) -> list[str]:
        """The suggestion as it is given to `wenmo train`. Muon's two rates keep their ratio."""
        if self.suggestion is None:
            return []
        result = [f"train.optimizer.lr={self.suggestion.lr:.2g}"]
        if isinstance(self.settings, Muon):
            ratio = self.settings.matrix_lr / self.settings.lr
            result.append(f"train.optimizer.matrix_lr={self.suggestion.lr * ratio:.2g}")
        return result

    def facts(self) -> list[tuple[str, str]]:
        found = self.suggestion
        if found is None:
            return [(say("suggestion", "建议"), say("none: the loss never fell; try another --low and --high",
                                                   "无：损失从未下降；请换用其他 --low 与 --high"))]
        rows = [(say("suggestion", "建议"), " ".join(self.overrides())),
                (say("steepest descent at", "下降最快处"), f"{found.steepest:.2g}"),
                (say("a tenth of the lowest loss's rate", "最低损失处学习率的十分之一"), f"{found.tenth:.2g}"),
                (say("diverged", "已发散"), f"> {self.rates[-1]:.2g}" if self.diverged else say("no", "否"))]
        if found.at_the_end and not self.diverged:
            rows.append((say("note", "注意"), say("the loss still fell at the highest rate: raise --high",
                                                 "在最高学习率处损失仍在下降：请提高 --high")))
        return rows

    def as_dict(self) -> dict[str, Any]:
        found = self.suggestion
        return {"suggested": None if found is None else found.lr, "steepest": None if found is None else found.steepest,
                "tenth_of_minimum": None if found is None else found.tenth, "overrides": self.overrides(),
                "diverged": self.diverged, "rates": self.rates, "losses": self.losses,
                "smoothed": smoothed(self.losses)}

    def renderable(self) -> Group:
        """A few points of the curve, and below them what it suggests."""
        table = Table()
        for heading in (say("rate", "学习率"), say("loss", "损失"), say("smoothed", "平滑后")):
            table.add_column(heading, justify="right")
        curve = smoothed(self.losses)
        for i in range(0, len(self.losses), max(1, len(self.losses) // ROWS_SHOWN)):
            table.add_row(f"{self.rates[i]:.2e}", f"{self.losses[i]:.4f}", f"{curve[i]:.4f}")
        return Group(table, *(Text(f"{name}: {value}") for name, value in self.facts()))

    def page(self, title: str) -> str:
        powers = [math.log10(rate) for rate in self.rates]
        series = [Series(say("loss", "损失"), list(zip(powers, self.losses, strict=True))),
                  Series(say("smoothed", "平滑后"), list(zip(powers, smoothed(self.losses), strict=True)))]
        chart = LineChart(say("loss while the rate grows", "学习率增大时的损失"), series,
                          say("log₁₀ of the rate", "学习率的 log₁₀"), say("loss", "损失"))
        return html_page(title, [chart, Facts(say("learning rate", "学习率"), self.facts())])


def find_lr(recipe: Recipe, *, data_root: Path = Path("."), num_steps: int = 100, low: float = 1e-7, high: float = 10.0,
            out: Path | None = None) -> Found:
    """Raises WenmoError; UsageError for a range or a file name that cannot be."""
    if not 0 < low < high:
        raise UsageError(say("--low must be above 0 and below --high", "--low 须大于 0 且小于 --high"),
                         where=f"--low {low:g} --high {high:g}", mend="--low 1e-7 --high 10")
    if out is not None and out.suffix not in (".html", ".json"):
        raise UsageError(say("--out is written as .html or .json", "--out 只能是 .html 或 .json"), where=str(out),
                         mend="--out lr.html")
    on = machine.choose(recipe.train.device, recipe.train.dtype, recipe.train.threads)
    _log.info(str(on))
    with tempfile.TemporaryDirectory(prefix="wenmo-find-lr-") as folder:
        found = _carried_out(recipe, Path(folder), data_root, on, [rate_at(i, num_steps, low, high)
                                                                  for i in range(num_steps)])
    if out is not None and out.suffix == ".json":
        write_json(out, found.as_dict())
    elif out is not None:
        write_atomic(out, found.page(say("Learning-rate range test", "学习率范围测试")))
    return found


def _carried_out(recipe: Recipe, folder: Path, data_root: Path, on: machine.Device, rates: list[float]) -> Found:
    prepare.refuse_misfit(recipe)
    corpus = prepare.Corpus(recipe, data_root)
    facts = {**corpus.facts, **prepare.model_facts(recipe)}
    rows = corpus.read(folder / "quarantine.jsonl")
    task = prepare.task_for(recipe, prepare.tokenizer_for(recipe, rows, folder / "tokenizer"), rows)
    opened = prepare.model_for(recipe, task)
    model, settings = prepare.place_on(opened, on), recipe.train
    examples, _ = prepare.examples_for(task, rows, facts, folder / "shards", recipe.seed, recipe.data)
    loader = Loader(examples, settings.batch_tokens, settings.accumulation, recipe.seed)
    results = steps(
        model, optimizer.build(model, settings.optimizer, settings.groups, settings.layer_decay,
                               prepare.start_of(recipe, opened)),
        regularised(task.objective(), settings), loader.batches,
        lr_factor=lambda step: rates[step] / settings.optimizer.lr, total_steps=len(rates),
        settings=settings.model_copy(update={"non_finite": "skip"}), device=on, seed=recipe.seed,
        frozen=waiting_in(model, settings.unfreeze, len(rates)))
    watch = Watch()
    with Progress(len(rates)) as progress:
        for result in results:
            progress.show(result)
            watch.see(float("nan") if result.skipped else result.loss)
            if watch.diverged:
                break
    seen = rates[: len(watch.losses)]
    return Found(seen, watch.losses, watch.diverged, suggest(seen, watch.losses), settings.optimizer)
