"""The verbs about a model's folder: show it, or make another of it: average, merge, compress.

In: models. Out: what they are; a new folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wenmo.cli.options import COLUMNS, ENCODING, JSON, MODEL, SEED, TASK, THREADS, example, source_of
from wenmo.cli.output import print_facts, print_json, quiet_pipe
from wenmo.errors import say

app = typer.Typer()


@app.command(help=example("What a model is, and where it came from; what it makes of a text.",
                          "模型是什么、从何而来；以及它如何看待一段文本。",
                          "wenmo show runs/gpt", "wenmo show runs/encoder -t 今天天气很好"))
def show(
    model: Annotated[str, MODEL],
    text: Annotated[str | None, typer.Option("--text", "-t", help=say("its tokens and likely words",
                                                                      "显示其词元及模型认为可能的词"))] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    from wenmo.stages.show import show as run

    result = run(model, text)
    if as_json:
        print_json(result.as_dict())
    else:
        from rich.console import Console

        Console().print(result.renderable())


@app.command(help=example(
    "One model with the mean of several models' weights: runs of one recipe, or checkpoints of a run.",
    "对多个模型的权重取平均，得到一个模型：同一配方的多次训练，或一次训练的多个检查点。",
    "wenmo average runs/seed-0 runs/seed-1 runs/seed-2 --out runs/mean"))
def average(
    models: Annotated[list[str], typer.Argument(metavar="MODEL MODEL...", help=say(
        "models of one architecture, tokenizer and task", "结构、分词器与任务相同的模型"))],
    *,
    out: Annotated[Path, typer.Option(help=say("a new folder for the model", "存放模型的新文件夹"))],
    as_json: Annotated[bool, JSON] = False,
) -> None:
    from wenmo.stages.average import average as run

    print_facts(run(models, out), as_json)


@app.command(help=example("An adapter (LoRA, DoRA) and its base as one whole model.",
                          "把适配器（LoRA、DoRA）与其基础模型合并为一个完整模型。",
                          "wenmo merge runs/chat-lora --out models/chat"))
def merge(
    model: Annotated[str, MODEL],
    out: Annotated[Path, typer.Option(help=say("folder for the whole model", "存放完整模型的目录"))],
    as_json: Annotated[bool, JSON] = False,
) -> None:
    from wenmo.stages.merge import merge_into as run

    print_facts(run(model, out), as_json)


@app.command(help=example("The same model in 8 or 4 bits, and what that costs on texts held out.",
                          "将模型量化为 8 或 4 比特，并在留出文本上衡量代价。",
                          "wenmo compress runs/gpt --format int4 --calibration corpus.txt --out models/gpt-int4",
                          "wenmo compress runs/sentiment --format int8 --calibration reviews.csv --out models/small"))
def compress(
    model: Annotated[str, MODEL],
    out: Annotated[Path, typer.Option(help=say("folder for the compressed model", "存放量化模型的目录"))],
    format: Annotated[str, typer.Option(help="int8, int4")] = "int8",
    method: Annotated[str, typer.Option(help=say(
        "gptq: rounded so that the outputs change least; rtn: to nearest",
        "gptq：舍入时使输出变化最小；rtn：就近舍入"))] = "gptq",
    calibration: Annotated[str | None, typer.Option(metavar="FILE", help=say(
        "rows like those that the model will read", "与模型将读到的文本相近的数据"))] = None,
    held_out: Annotated[str | None, typer.Option(metavar="FILE", help=say(
        "rows to measure on; left out, a tenth of the calibration's",
        "用于衡量的数据；省略时取校准数据的十分之一"))] = None,
    calibration_tokens: Annotated[int, typer.Option(min=1)] = 32768,
    task: Annotated[str | None, TASK] = None,
    columns: Annotated[str | None, COLUMNS] = None,
    encoding: Annotated[str | None, ENCODING] = None,
    threads: Annotated[int | None, THREADS] = None,
    seed: Annotated[int, SEED] = 0,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    from wenmo.stages.compress import compress as run
    from wenmo.stages.compress import sentences

    settings = {"format": format, "method": method, "calibration_tokens": calibration_tokens, "seed": seed}
    facts = run(model, out, settings, calibration=calibration, held_out=held_out, task=task,
                source=source_of(columns, None, encoding), threads=threads)
    if as_json:
        print_json(facts)
    else:
        with quiet_pipe():
            print("\n".join(sentences(facts)), flush=True)
