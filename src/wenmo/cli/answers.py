"""The verbs that give an answer to each row: predict, embed.

In: rows, from a file or stdin. Out: JSON lines.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from wenmo.cli.options import COLUMNS, DTYPE, ENCODING, MODEL, TASK, THREADS, TOGETHER, dtype_of, example, source_of
from wenmo.cli.output import quiet_pipe
from wenmo.errors import say

app = typer.Typer()


@app.command(help=example("Rows in, JSON lines out.", "读入数据行，逐行输出 JSON。",
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

    answers = run(model, file, task=task, source=source_of(columns, None, encoding), threads=threads,
                  dtype=dtype_of(dtype), together=together or ())
    with quiet_pipe():
        for answer in answers:
            print(json.dumps(answer, ensure_ascii=False), flush=True)


@app.command(help=example("Texts in, vectors out; or the texts of a file that are nearest to a query.",
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
                source=source_of(columns, None, encoding), threads=threads, dtype=dtype_of(dtype))
    with quiet_pipe():
        for line in lines:
            print(json.dumps(line, ensure_ascii=False), flush=True)
