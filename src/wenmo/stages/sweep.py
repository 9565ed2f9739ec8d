"""`wenmo train RECIPE --out DIR --sweep KEY=VALUE,VALUE`: every combination a Run in DIR/NAME, one after another.

In: a recipe and the values to be tried. Out: a Swept with what each run came to on its rows for choosing; the same
stands in DIR/sweep.json, written after every run. The same command goes on: finished runs are not repeated, the one
that was interrupted goes on from its checkpoint, those that failed are tried again. Report files are opened by no run
but to leave their texts out of training.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wenmo import device as machine
from wenmo.config import to_yaml
from wenmo.errors import RecipeError, StorageError, WenmoError, say
from wenmo.evaluation.validation import measures_of
from wenmo.files import locked, sha256, write_json
from wenmo.models import CustomHeads
from wenmo.recipe import Recipe
from wenmo.stages import prepare
from wenmo.stages.folds import CrossValidated, carry_out
from wenmo.stages.grid import Combination, combinations, read_axes
from wenmo.stages.swept import FAILED, FINISHED, INTERRUPTED, WAITING, Swept, SweptRun
from wenmo.tasks import CustomTasks
from wenmo.training.best import BestSettings
from wenmo.training.processes import refuse_several

RECORD = "sweep.json"

_log = logging.getLogger(__name__)


def sweep(given: Mapping[str, Any], sweeps: Sequence[str], out: Path, *, overrides: Sequence[str] = (),
          where: str = "recipe", by: str | None = None, data_root: Path = Path("."),
          tasks: CustomTasks | None = None, heads: CustomHeads | None = None) -> Swept:
    """Carries out the recipe in `given`, with `overrides` laid over it, once for each combination of the `sweeps`.

    `by`: the metric that chooses; left out, that of `train.best`, or the loss. Each run of a cross-validating recipe is
    judged by its mean over the folds, and no final model is trained. A run that fails, or that `out` holds from another
    recipe, is a line of the result. Raises RecipeError with the faults of all combinations, and DataError, before the
    first is trained; RunLocked, StorageError.
    """
    refuse_several(say("a sweep", "扫描"), "--sweep",
                   say("start each combination as a run of its own", "把每种组合作为单独的训练来运行"))
    axes = read_axes(sweeps)
    grid = combinations(given, overrides, axes, where, tasks, heads)
    grid = [Combination(each.values, _without_refit(each.recipe)) for each in grid]
    metric = _metric([each.recipe for each in grid], by)
    identities = _identities([each.recipe for each in grid], data_root, tasks, heads)
    with locked(out):
        before = _read(out / RECORD)
        runs = {each.name: _again(before.get(each.name), each, identity)
                for each, identity in zip(grid, identities, strict=True)}
        if by is not None and not any(run.status == FINISHED for run in runs.values()):
            _refuse_unmeasured(grid[0].recipe, by, data_root, tasks, heads)
        others = [run for name, run in before.items() if name not in runs]
        swept = Swept(out, metric, tuple(runs.values()))
        for number, (combination, identity) in enumerate(zip(grid, identities, strict=True), 1):
            _log.info(f"── {number}/{len(grid)} · {combination.name}")
            known = runs[combination.name]
            if known.status == FINISHED and known.identity == identity and _has_result(out / known.name, combination):
                _log.info(say("finished before", "此前已完成"))
                continue
            runs[known.name] = _carried_out(known, identity, combination.recipe, out, data_root, tasks, heads)
            swept = Swept(out, metric, tuple(runs.values()))
            write_json(out / RECORD, {**swept.as_dict(), "runs": [run.as_dict() for run in swept.runs],
                                      "others": [run.as_dict() for run in others]})
            if runs[known.name].status == INTERRUPTED:
                break
    return swept


def _without_refit(recipe: Recipe) -> Recipe:
    """In a sweep the folds only measure: the final model is for the values that are chosen."""
    choose = recipe.data.choose
    if not choose.cross_validates:
        return recipe
    data = recipe.data.model_copy(update={"choose": choose.model_copy(update={"refit": False})})
    return recipe.model_copy(update={"data": data})


def _metric(recipes: Sequence[Recipe], by: str | None) -> str:
    """RecipeError where there is nothing to choose by, or more than one metric."""
    for recipe in recipes:
        choose = recipe.data.choose
        if choose.carve == 0 and not choose.files and choose.folds is None:
            raise _nothing_to_choose_by()
    metrics = {name for recipe in recipes for name in (recipe.train.best or BestSettings()).names}
    if by is None and len(metrics) > 1:
        raise RecipeError(say(f"the runs keep their best by different metrics: {', '.join(sorted(metrics))}",
                              f"各次训练的选择指标不同：{'、'.join(sorted(metrics))}"), where="train.best.metric",
                          mend=f"--sweep-by {min(metrics)}")
    return by or metrics.pop()


def _nothing_to_choose_by() -> RecipeError:
    return RecipeError(say("a sweep needs rows to choose by", "扫描需要用于选择的数据"), where="data.choose",
                       mend="data.choose.carve=1000")


def _identities(recipes: Sequence[Recipe], data_root: Path, tasks: CustomTasks | None,
                heads: CustomHeads | None) -> list[str]:
    """A hash of all that each run is made from. Errors of files and columns, and of a tokenizer that does not fit, come
    here, before the first run."""
    facts: dict[str, dict[str, str]] = {}
    result = []
    for recipe in recipes:
        same = recipe.model_dump_json(include={"model", "tokenizer", "data", "task"})
        if same not in facts:
            prepare.refuse_misfit(recipe, tasks)
            facts[same] = prepare.run_facts(prepare.Corpus(recipe, data_root), heads)
        result.append(sha256(to_yaml(recipe), json.dumps(facts[same], sort_keys=True)))
    return result


def _refuse_unmeasured(recipe: Recipe, by: str, data_root: Path, tasks: CustomTasks | None,
                       heads: CustomHeads | None) -> None:
    """RecipeError for a metric that no run would measure: the first batch is measured, or all rows where it lacks that
    metric, in a folder that is thrown away."""
    on = machine.choose(recipe.train.device, recipe.train.dtype, recipe.train.threads)
    with tempfile.TemporaryDirectory(prefix="wenmo-sweep-") as name:
        rows = prepare.Corpus(recipe, data_root).read(Path(name) / "quarantine.jsonl")
        if not rows.choose:
            raise _nothing_to_choose_by()
        task = prepare.task_for(recipe, prepare.tokenizer_for(recipe, rows, Path(name) / "tokenizer"), rows, tasks)
        model = prepare.place_on(prepare.model_for(recipe, task, heads), on)
        values = prepare.values_of(rows.choose)
        examples = task.build(values, Path(name) / "shards", recipe.seed, "choose").examples
        measured = measures_of([by], model, task, task.objective(), examples, values, on)
    if by not in measured:
        raise RecipeError(say(f"there is no metric `{by}` here", f"这里没有指标 `{by}`"), where=f"--sweep-by {by}",
                          mend=say("choose one of: ", "可选：") + ", ".join(sorted(measured)))


def _read(path: Path) -> dict[str, SweptRun]:
    """The runs of an earlier sweep in the same folder, by name."""
    if not path.exists():
        return {}
    record = json.loads(path.read_text(encoding="utf-8"))
    return {run["name"]: SweptRun.of(run) for run in (*record["runs"], *record["others"])}


def _again(before: SweptRun | None, combination: Combination, identity: str) -> SweptRun:
    if before is not None and before.identity == identity:
        return before
    return SweptRun(combination.name, combination.values, WAITING)


def _has_result(folder: Path, combination: Combination) -> bool:
    name = "report.json" if combination.recipe.data.choose.cross_validates else "model/wenmo.json"
    return (folder / name).exists()


def _carried_out(known: SweptRun, identity: str, recipe: Recipe, out: Path, data_root: Path, tasks: CustomTasks | None,
                 heads: CustomHeads | None) -> SweptRun:
    try:
        trained = carry_out(recipe, out / known.name, data_root=data_root, tasks=tasks, heads=heads)
    except StorageError:  # the next run would find the disk as full
        raise
    except WenmoError as error:
        _log.error(str(error))
        return SweptRun(known.name, known.values, FAILED, identity, error=error.what)
    intervals, deviations = (trained.estimates, trained.deviations) if isinstance(trained, CrossValidated) else ({}, {})
    return SweptRun(known.name, known.values, INTERRUPTED if trained.exit_code else FINISHED, identity, trained.metrics,
                    intervals, deviations, trained.steps, trained.tokens, known.seconds + trained.seconds,
                    exit_code=trained.exit_code)
