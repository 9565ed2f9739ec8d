"""Options that several verbs share, what is read out of them, and the form of a verb's help.

In: what was typed. Out: settings, or a UsageError that says what can be typed there.
"""

from __future__ import annotations

from typing import Any

import typer

from wenmo.errors import UsageError, say


def example(help_en: str, help_zh: str, *examples: str) -> str:
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


def source_of(columns: str | None, unit: str | None, encoding: str | None) -> dict[str, Any]:
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


def dtype_of(value: str) -> Any:
    if value not in ("auto", "fp32", "bf16"):
        raise UsageError(say("there is no such number format", "没有这种数值格式"), where=f"--dtype {value}",
                         mend="--dtype auto, fp32, bf16")
    return value


def format_of(value: str) -> Any:
    known = ("auto", "fp32", "bf16", "int8", "int8-weights", "int4")
    if value not in known:
        raise UsageError(say("there is no such number format", "没有这种数值格式"), where=f"--format {value}",
                         mend=f"--format {', '.join(known)}")
    return value
