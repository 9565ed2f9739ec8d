"""The verbs below `wenmo tokenizer`: train, compare, show.

In: text. Out: a tokenizer; what one makes of a text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wenmo.cli.options import COLUMNS, ENCODING, JSON, example, source_of
from wenmo.cli.output import print_facts, print_json
from wenmo.errors import say

app = typer.Typer(no_args_is_help=True, help=say("Train a tokenizer, look at one, compare the kinds.",
                                                 "训练、查看或比较分词器。"))


@app.command("train", help=example("Train byte-level BPE, WordPiece or Unigram on your text.",
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

    print_facts(run(data, out, {"type": kind, "vocab_size": vocab_size, "lowercase": lowercase},
                    source_of(columns, None, encoding)), as_json)


@app.command("compare", help=example(
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

    result = run(data, vocab_size, source_of(columns, None, encoding), seed)
    if as_json:
        print_json(result.as_dict())
    else:
        from rich.console import Console

        Console().print(result.table())


@app.command("show", help=example("What a tokenizer is, and how it splits a text.",
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
    from wenmo.stages.tokenizer import in_files_of_its_own
    from wenmo.stages.tokenizer import show as run

    found = in_files_of_its_own(tokenizer)
    if found is None:
        from wenmo.modeldir import open_tokenizer

        found = open_tokenizer(tokenizer)
    print_facts(run(tokenizer, found, text, data or [], source_of(columns, None, encoding)), as_json)
