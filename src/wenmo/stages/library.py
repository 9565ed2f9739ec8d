"""The functions of `import wenmo`: open a model, measure it, carry out a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wenmo.config import apply_overrides, read_yaml
from wenmo.errors import DataError, say
from wenmo.evaluation import evaluate as measure
from wenmo.loaded import Loaded, load
from wenmo.models import CustomHeads
from wenmo.recipe import parse_recipe
from wenmo.report import Report
from wenmo.stages.evaluate import write_down
from wenmo.stages.folds import carry_out
from wenmo.stages.prepare import place_fault, rows_to_measure, values_of
from wenmo.stages.train import Trained
from wenmo.tasks import CustomTasks, JointSettings
from wenmo.tasks.task import row_name

__all__ = ["evaluate", "load", "train"]


def train(recipe: str | Path | Mapping[str, Any], *overrides: str, out: str | Path, data_root: str | Path = ".",
          tasks: CustomTasks | None = None, heads: CustomHeads | None = None) -> Trained:
    """Carries out a recipe (a YAML file, or a mapping of the same shape) with `a.b=c` laid over it; resumes a run.

    `tasks` ({type: (settings, task)}) and `heads` ({kind: (width, outputs) → nn.Module}) are your own, beside those
    that Wenmo has; see docs/extend.md. Raises RecipeError with every fault in the recipe, and the other errors of
    `wenmo.errors`.
    """
    given = read_yaml(Path(recipe)) if isinstance(recipe, (str, Path)) else recipe
    where = str(recipe) if isinstance(recipe, (str, Path)) else "recipe"
    parsed = parse_recipe(apply_overrides(given, overrides), where, tasks, heads)
    return carry_out(parsed, Path(out), data_root=Path(data_root), tasks=tasks, heads=heads)


def evaluate(model: str | Path | Loaded, data: str | Path | Sequence[Mapping[str, Any]], *, task: str | None = None,
             columns: Mapping[str, str | int] | None = None, seed: int = 0) -> Report:
    """The metrics of a model with 95% intervals on a file, or on rows that are at hand; those of a Run on a file are
    written down in it.

    `columns`: standard name → the file's own. Raises DataError for a missing column or a label never seen in training.
    """
    loaded = model if isinstance(model, Loaded) else load(str(model))
    settings = loaded.task(task).settings
    wanted = (*settings.columns, *settings.target_columns)
    if isinstance(data, (str, Path)):
        given = {"columns": dict(columns)} if columns else {}
        trained_on = loaded.opened.card.get("source", {})
        found, name = rows_to_measure(str(data), settings, given=given, trained_on=trained_on), str(data)
        rows = values_of(found.rows)
    else:
        mapped = {name: (columns or {}).get(name, name) for name in wanted}
        some = isinstance(settings, JointSettings)  # of several tasks a row may have what one of them needs
        rows = [_row(number, row, mapped, some=some) for number, row in enumerate(data, 1)]
        found, name = None, say("rows at hand", "给定的数据")
    if not rows:
        raise DataError(say("no rows to evaluate on", "没有可评测的数据"), where=name,
                        mend=say("check the file and its columns", "请检查文件及其列"))
    try:
        report, _ = measure(loaded, rows, name, task=task, seed=seed)
    except DataError:
        place_fault(loaded.task(task), [] if found is None else found.rows)
        raise
    if found is not None:
        write_down(loaded, found, report)
    return report


def _row(number: int, row: Mapping[str, Any], columns: Mapping[str, Any], *, some: bool) -> dict[str, Any]:
    if some:
        return {name: row[column] for name, column in columns.items() if column in row}
    for name, column in columns.items():
        if row.get(column) is None or (row[column] == "" and name != "labels"):  # a text may have none of the labels
            raise DataError(say(f"the row has no `{column}`", f"该行缺少 `{column}`"),
                            where=row_name(number - 1),
                            mend=say(f"rows need: {', '.join(columns)}; `columns` maps other names",
                                     f"数据需要：{', '.join(columns)}；其他列名用 `columns` 对应"))
    tools = {"tools": row["tools"]} if "messages" in columns and row.get("tools") is not None else {}
    return {**{name: row[column] for name, column in columns.items()}, **tools}
