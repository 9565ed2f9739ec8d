"""The verbs around a recipe: demo, train, plan, find-lr.

In: a recipe and what is laid over it. Out: a Run; or, before one, what it would be.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from wenmo.cli.options import JSON, example
from wenmo.cli.output import print_json
from wenmo.errors import UsageError, say

app = typer.Typer()
_RECIPE = typer.Argument(help=say("a YAML recipe", "YAML 配方"))
_OVERRIDES = typer.Argument(metavar="[KEY=VALUE]...", help=say("laid over the recipe", "覆盖配方中的值"))
_DATA_ROOT = typer.Option(envvar="WENMO_DATA_ROOT", help=say("where the recipe's data paths begin",
                                                             "配方中数据路径的起点"))


@app.command(help=example("Raw text → model → answers, on real text.", "从原始文本到模型到答案，用真实文本演示。",
                          "wenmo demo --out demo-out"))
def demo(
    out: Annotated[Path, typer.Option(help=say("folder for everything made", "存放全部产物的目录"))] = Path("demo-out"),
    text: Annotated[list[str] | None, typer.Option(help=say("a sentence of yours to judge",
                                                            "你想让模型判断的句子"))] = None,
    question: Annotated[str, typer.Option(help=say("what to ask the chat model", "向对话模型提的问题"))]
    = "What is the capital of France?",
) -> None:
    from wenmo.stages.demo import demo as run

    if code := run(out, texts=text or [], question=question):
        raise typer.Exit(code)


@app.command(help=example(
    "Pre-train or fine-tune: the recipe says which; the same command resumes.",
    "预训练或微调，由配方决定；同一命令可续训。",
    "wenmo train recipes/sentiment.yaml --out runs/sentiment", "wenmo train recipes/sentiment.yaml train.epochs=5 "
    "data.max_tokens=256 --out runs/longer",
    "wenmo train recipes/sentiment.yaml data.choose='{folds: 5}' --out runs/folds",
    "wenmo train recipes/sentiment.yaml --sweep lr=1e-4,3e-4 --sweep seed=0,1,2 --out runs/sweep"))
def train(
    recipe: Annotated[Path, _RECIPE],
    overrides: Annotated[list[str] | None, _OVERRIDES] = None,
    *,
    out: Annotated[Path, typer.Option(help=say("the run's folder", "训练目录"))],
    data_root: Annotated[Path, _DATA_ROOT] = Path("."),
    sweep: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE,VALUE", help=say(
        "a run in OUT for each value; with several --sweep for each combination",
        "为每个值在 OUT 中各训练一次；多个 --sweep 则为每种组合"))] = None,
    sweep_by: Annotated[str | None, typer.Option(metavar="METRIC", help=say(
        "the metric that chooses among them", "用来选择的指标"))] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    if sweep_by is not None and not sweep:
        raise UsageError(say("--sweep-by does nothing without --sweep", "没有 --sweep 时 --sweep-by 不起作用"),
                         where=f"--sweep-by {sweep_by}", mend="--sweep lr=1e-4,3e-4")
    if sweep:
        _sweep(recipe, overrides or [], sweep, sweep_by, out, data_root, as_json)
        return
    from rich.console import Console

    from wenmo.recipe import read_recipe
    from wenmo.stages.folds import CrossValidated, carry_out

    trained = carry_out(read_recipe(recipe, overrides or []), out, data_root=data_root)
    if isinstance(trained, CrossValidated):
        if as_json:
            print_json(trained.as_dict())
        elif trained.estimates:
            Console().print(trained.table())
    elif as_json:
        print_json({"run": str(trained.folder), "steps": trained.steps, "tokens": trained.tokens,
                    "seconds": round(trained.seconds, 1), "metrics": dict(trained.metrics)})
    if trained.exit_code:
        raise typer.Exit(trained.exit_code)


def _sweep(recipe: Path, overrides: list[str], sweeps: list[str], by: str | None, out: Path, data_root: Path,
           as_json: bool) -> None:
    from wenmo.config import read_yaml
    from wenmo.stages.sweep import sweep as run

    swept = run(read_yaml(recipe), sweeps, out, overrides=overrides, where=str(recipe), by=by, data_root=data_root)
    if as_json:
        print_json(swept.as_dict())
    else:
        from rich.console import Console

        Console().print(swept.renderable())
    if swept.exit_code:
        raise typer.Exit(swept.exit_code)


@app.command(help=example(
    "Before training: self-tests on your own model and rows, and a forecast of time, memory and disk. Writes nothing.",
    "训练之前：在你自己的模型与数据上自检，并预测时间、内存与磁盘。不写入任何文件。",
    "wenmo plan recipes/tiny-gpt.yaml --data-root demo-out/data",
    "wenmo plan --suggest --task classification --rows 20000 --minutes 60"))
def plan(
    recipe: Annotated[Path | None, _RECIPE] = None,
    overrides: Annotated[list[str] | None, _OVERRIDES] = None,
    *,
    suggest: Annotated[bool, typer.Option("--suggest", help=say(
        "which model to begin with: for the recipe's task and rows, or for --task and --rows",
        "建议从哪种模型开始：依据配方的任务与数据，或 --task 与 --rows"))] = False,
    task: Annotated[str | None, typer.Option(help=say("with --suggest: classification, chat, …",
                                                      "配合 --suggest：classification、chat 等"))] = None,
    rows: Annotated[int | None, typer.Option(min=0, help=say("with --suggest: how many there are",
                                                             "配合 --suggest：数据行数"))] = None,
    language: Annotated[str | None, typer.Option(help="--suggest: zh, en")] = None,
    minutes: Annotated[float | None, typer.Option(min=0.1, help=say("with --suggest: the time there is",
                                                                    "配合 --suggest：可用的时间（分钟）"))] = None,
    cores: Annotated[int | None, typer.Option(min=1, help=say("with --suggest: of another machine",
                                                              "配合 --suggest：另一台机器的核心数"))] = None,
    memory_gib: Annotated[float | None, typer.Option(min=0.1, help=say("with --suggest: of another machine",
                                                                       "配合 --suggest：另一台机器的内存"))] = None,
    data_root: Annotated[Path, _DATA_ROOT] = Path("."),
    as_json: Annotated[bool, JSON] = False,
) -> None:
    given = {"--task": task, "--rows": rows, "--language": language, "--minutes": minutes, "--cores": cores,
             "--memory-gib": memory_gib}
    named = [name for name, value in given.items() if value is not None]
    if named and not suggest:
        raise UsageError(say(f"{named[0]} does nothing without --suggest", f"没有 --suggest 时 {named[0]} 不起作用"),
                         where=named[0], mend="wenmo plan --suggest --task classification --rows 20000")
    if language not in (None, "zh", "en"):
        raise UsageError(say(f"no rules for `{language}`", f"没有针对 `{language}` 的规则"), where="--language",
                         mend="--language zh, --language en")
    if recipe is None and (not suggest or task is None or rows is None):
        raise UsageError(say("which recipe?", "请给出配方"), where="wenmo plan", mend=say(
            "wenmo plan RECIPE, or wenmo plan --suggest --task classification --rows 20000",
            "wenmo plan 配方，或 wenmo plan --suggest --task classification --rows 20000"))
    if recipe is not None and (task is not None or rows is not None):
        raise UsageError(say("--task and --rows are the recipe's", "--task 与 --rows 由配方决定"), where=str(recipe),
                         mend=say("take them out, or the recipe", "请去掉它们，或去掉配方"))
    from rich.console import Console

    from wenmo.recipe import read_recipe
    from wenmo.stages import plan as stage

    if suggest:
        machine: dict[str, Any] = {"language": language, "minutes": minutes, "cores": cores,
                                   "memory_bytes": None if memory_gib is None else int(memory_gib * 2**30)}
        if recipe is not None:
            found = stage.suggest_for_recipe(read_recipe(recipe, overrides or []), data_root=data_root, **machine)
        else:
            found = stage.suggest_for(task or "", rows or 0, **machine)
        if as_json:
            print_json(found.as_dict())
        else:
            Console().print(found.renderable())
        return
    assert recipe is not None
    planned = stage.plan(read_recipe(recipe, overrides or []), data_root=data_root)
    if as_json:
        print_json(planned.as_dict())
    else:
        Console().print(planned.renderable())
    if not planned.passed:
        raise typer.Exit(1)


@app.command("find-lr", help=example(
    "Which learning rate the recipe's own model and data bear: the rate grows until the loss diverges.",
    "测试配方的模型与数据能承受的学习率：逐步增大学习率，直到损失发散。",
    "wenmo find-lr recipes/tiny-gpt.yaml --out lr.html"))
def find_lr(
    recipe: Annotated[Path, _RECIPE],
    overrides: Annotated[list[str] | None, _OVERRIDES] = None,
    *,
    steps: Annotated[int, typer.Option(min=10, help=say("from the lowest rate to the highest",
                                                        "从最低到最高学习率的步数"))] = 100,
    low: Annotated[float, typer.Option(help=say("the lowest rate", "最低学习率"))] = 1e-7,
    high: Annotated[float, typer.Option(help=say("the highest rate", "最高学习率"))] = 10.0,
    out: Annotated[Path | None, typer.Option(help=say("write the curve as .html or .json",
                                                      "把曲线写成 .html 或 .json"))] = None,
    data_root: Annotated[Path, _DATA_ROOT] = Path("."),
    as_json: Annotated[bool, JSON] = False,
) -> None:
    from wenmo.recipe import read_recipe
    from wenmo.stages.find_lr import find_lr as run

    found = run(read_recipe(recipe, overrides or []), data_root=data_root, num_steps=steps, low=low, high=high, out=out)
    if as_json:
        print_json(found.as_dict())
    else:
        from rich.console import Console

        Console().print(found.renderable())
