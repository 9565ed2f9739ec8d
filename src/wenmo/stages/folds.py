"""`wenmo train` with `data.choose.folds`: cross-validation, and then a model of all rows.

In: a recipe. Out, in the run's folder:

    folds/fold-1 …      a Run for each fold, trained on the rows of all the others
    predictions.jsonl   each training row once, with the answer of the model that has not seen it
    report.json         each metric: mean over folds, standard deviation, Student's 95% interval
    model/ …            the Run of the final model, trained on all rows (`refit: false` leaves it out)

Each is what `wenmo train` makes of a recipe of its own, so that the same command goes on wherever it was stopped.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from wenmo.config import to_yaml
from wenmo.errors import say
from wenmo.files import locked, sha256, write_json, write_jsonl
from wenmo.loaded import load
from wenmo.metrics import Estimate, lower_is_better, mean_of_runs
from wenmo.modeldir import CARD
from wenmo.models import CustomHeads
from wenmo.recipe import Choose, Recipe, context
from wenmo.report import metric_name
from wenmo.stages.evaluate import named
from wenmo.stages.prepare import Corpus, run_facts
from wenmo.stages.train import Trained, train
from wenmo.tasks import CustomTasks
from wenmo.training.processes import refuse_several
from wenmo.training.run import FOLDS, RECORD, Run, refuse_foreign

REPORT = "report.json"
PREDICTIONS = "predictions.jsonl"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CrossValidated(Trained):
    """`metrics` are means over the folds, `estimates` the same with their intervals, `deviations` their spread;
    steps, tokens and seconds those of all runs together. Interrupted, it has only the folds that were reached."""

    folds: Sequence[Trained] = ()
    estimates: Mapping[str, Estimate] = field(default_factory=dict)
    deviations: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For report.json and `--json`."""
        return {
            "run": str(self.folder), "steps": self.steps, "tokens": self.tokens, "seconds": round(self.seconds, 1),
            "folds": [{"run": str(fold.folder), "rows": _card(fold.folder)["scores"]["choose"]["n"],
                       "steps": fold.steps, "metrics": dict(fold.metrics)}
                      for fold in self.folds if not fold.exit_code],
            "interval": f"95%, Student's t over {len(self.folds)} folds",
            "metrics": {name: {**estimate.as_dict(), "sd": _rounded(self.deviations[name])}
                        for name, estimate in self.estimates.items()},
        }

    def table(self) -> Table:
        """For the terminal: a line for each metric, with its mean, spread and interval."""
        number = len(self.folds)
        caption = say(f"Student's t over {number} folds; as they share training rows it tends to be too narrow",
                      f"对 {number} 折的 Student t 区间；各折共用训练数据，区间往往偏窄")
        table = Table(title=Text(f"{self.folder} · {number} × {say('fold', '折')}"), caption=Text(caption),
                      box=SIMPLE_HEAD)
        table.add_column(say("metric", "指标"))
        for heading in (say("mean ± sd", "均值 ± 标准差"), say("95% interval", "95% 区间"),
                        say("lowest … highest fold", "最低…最高一折")):
            table.add_column(heading, justify="right", no_wrap=True)
        for name, estimate in self.estimates.items():
            value, low, high = estimate.texts()
            found = [fold.metrics[name] for fold in self.folds]
            table.add_row(Text(metric_name(name) + (" ↓" if lower_is_better(name) else "")),
                          Text(f"{value} ± {self.deviations[name]:.2g}", "bold"), Text(f"[{low}, {high}]"),
                          f"{min(found):.4g} … {max(found):.4g}")
        return table


def carry_out(recipe: Recipe, out: Path, *, data_root: Path = Path("."), tasks: CustomTasks | None = None,
              heads: CustomHeads | None = None) -> Trained:
    """One run, or where the recipe says so the runs of a cross-validation. Raises WenmoError."""
    run = cross_validate if recipe.data.choose.cross_validates else train
    return run(recipe, out, data_root=data_root, tasks=tasks, heads=heads)


def cross_validate(recipe: Recipe, out: Path, *, data_root: Path = Path("."), tasks: CustomTasks | None = None,
                   heads: CustomHeads | None = None) -> CrossValidated:
    """Carries out all folds in `out`, then the final model. Raises WenmoError; what is done stays done."""
    choose = recipe.data.choose
    assert choose.folds is not None
    refuse_several(say("cross-validation", "交叉验证"), "data.choose.folds",
                   say("one fold after the other: data.choose.fold=1, each in a folder of its own",
                       "逐折运行：data.choose.fold=1，各用自己的目录"))
    if choose.refit:  # before the work, not after it
        _refuse_other(out, of_all_rows(recipe), data_root, tasks, heads)
    done: list[Trained] = []
    with locked(out / FOLDS):
        for number in range(1, choose.folds + 1):
            _log.info(say(f"── fold {number} of {choose.folds}", f"── 第 {number}/{choose.folds} 折"))
            done.append(train(one_fold(recipe, number), out / FOLDS / f"fold-{number}", data_root=data_root,
                              tasks=tasks, heads=heads))
            if done[-1].exit_code:
                return _together(out, done, done[-1].exit_code)
        result = _together(out, done)
        if recipe.task.target_columns:
            write_jsonl(out / PREDICTIONS, _out_of_fold(recipe, done, data_root, tasks, heads))
            _log.info(say("each row with the answer of the model that has not seen it: ",
                          "每行数据及未见过它的模型的答案：") + str(out / PREDICTIONS))
        write_json(out / REPORT, {"recipe_sha256": sha256(to_yaml(recipe)), **result.as_dict()})
    if not choose.refit:
        return result
    final = of_all_rows(recipe, _refit_steps(recipe, done))
    _log.info(say("── the final model, of all rows", "── 用全部数据训练最终模型"))
    last = train(final, out, data_root=data_root, tasks=tasks, heads=heads)
    return _together(out, done, last.exit_code, last)


def one_fold(recipe: Recipe, number: int) -> Recipe:
    """The recipe of one fold, as `data.choose.fold=…` would have it."""
    return _with(recipe, recipe.data.choose.model_copy(update={"fold": number, "refit": True}), {})


def of_all_rows(recipe: Recipe, steps: int | None = None) -> Recipe:
    """The recipe of the final model: nothing is held out, so nothing is measured and the last weights are kept.
    `steps` takes the place of the recipe's length."""
    train = {"best": None, "evaluate_every": None, "samples": ()}
    return _with(recipe, Choose(carve=0), train if steps is None else {**train, "steps": steps, "epochs": None})


def _with(recipe: Recipe, choose: Choose, train: Mapping[str, Any]) -> Recipe:
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"choose": choose}),
                                     "train": recipe.train.model_copy(update=train)})


def _refit_steps(recipe: Recipe, done: Sequence[Trained]) -> int | None:
    """Where the folds kept their best weights: as long as these took on average, in passes over the data if the
    recipe's length is given so. None for the recipe's own length."""
    best = [_card(fold.folder)["lineage"]["best_step"] for fold in done]
    if recipe.train.best is None or None in best:
        return None
    more_rows = 1.0 if recipe.train.epochs is None else len(done) / (len(done) - 1)
    steps = max(1, round(more_rows * float(sum(best)) / len(best)))
    _log.info(say(f"the folds were best after {', '.join(map(str, best))} steps: the final model makes {steps}",
                  f"各折分别在第 {'、'.join(map(str, best))} 步最佳：最终模型训练 {steps} 步"))
    return steps


def _together(out: Path, done: Sequence[Trained], exit_code: int = 0, last: Trained | None = None) -> CrossValidated:
    runs = [*done, *([last] if last is not None else [])]
    complete = [fold for fold in done if not fold.exit_code]
    measured = {} if len(complete) < len(done) else {
        name: mean_of_runs([fold.metrics[name] for fold in done])
        for name in done[0].metrics if all(name in fold.metrics for fold in done)}
    estimates = {name: estimate for name, (estimate, _) in measured.items()}
    return CrossValidated(
        out, sum(run.steps for run in runs), sum(run.tokens for run in runs), sum(run.seconds for run in runs),
        {name: estimate.value for name, estimate in estimates.items()}, exit_code, tuple(done), estimates,
        {name: deviation for name, (_, deviation) in measured.items()})


def _out_of_fold(recipe: Recipe, done: Sequence[Trained], data_root: Path, tasks: CustomTasks | None,
                 heads: CustomHeads | None) -> list[dict[str, Any]]:
    """Each training row, in order, with its fold and the answer of that fold's model."""
    rows = Corpus(recipe, data_root).read_with_folds()
    result: list[dict[str, Any]] = [{} for _ in rows]
    for number, trained in enumerate(done, 1):
        places = [place for place, (fold, _) in enumerate(rows) if fold == number]
        loaded = load(str(trained.folder), device=recipe.train.device, threads=recipe.train.threads, tasks=tasks,
                      heads=heads)
        task, values = loaded.task(), [rows[place][1].values for place in places]
        for place, row, outputs in zip(places, values, loaded.outputs(values, task), strict=True):
            result[place] = {"fold": number, **row, **named(task.decode(row, outputs), row)}
    return result


def _refuse_other(out: Path, final: Recipe, data_root: Path, tasks: CustomTasks | None,
                  heads: CustomHeads | None) -> None:
    """The errors with which the final run would end, where `out` holds another one or other things."""
    if (out / RECORD).exists():
        with Run.open(out, final, run_facts(Corpus(final, data_root), heads), context(tasks, heads)):
            return
    refuse_foreign(out, to_yaml(final))


def _card(folder: Path) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((folder / "model" / CARD).read_text(encoding="utf-8"))
    return card


def _rounded(number: float) -> float | None:
    return round(number, 6) if math.isfinite(number) else None
