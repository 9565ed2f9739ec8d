"""The command line: one command a verb. Bodies import late, so that `wenmo --help` answers at once.

In: what was typed. Out: exit codes; errors as three lines on stderr.

    options.py       options that several verbs share; the form of a help text
    output.py        JSON and facts on stdout
    training.py      demo, train, plan, find-lr
    measuring.py     split, evaluate
    answers.py       predict, embed
    text_out.py      generate, chat, serve
    models.py        show, average, merge, compress
    tokenizers.py    wenmo tokenizer …
"""

from __future__ import annotations

import logging
import re
import signal
import sys
from typing import Annotated, Any, NoReturn

import typer

from wenmo import __version__
from wenmo.cli import answers, measuring, models, text_out, tokenizers, training
from wenmo.cli.output import follows
from wenmo.errors import CheckpointError, NumericsError, StorageError, UsageError, WenmoError, say
from wenmo.faults import of_reading

# What a misspelt option raises. typer brings a click of its own, and which one it is depends on its version.
_BadCommandLine: Any = typer.BadParameter.__mro__[1]
_IN_CHINESE = (  # what typer says of a command line, and how Chinese says it
    (r"No such option: (\S+)", r"没有选项 \1"), (r"No such command '([^']+)'\.? ?", r"没有命令 \1。"),
    (r"Missing (?:argument|option) '([^']+)'(?: / '[^']+')?\.?", r"缺少参数 \1"),
    (r"Got unexpected extra argument(?:s|\(s\))? \((.+)\)", r"多出的参数：\1"),
    (r"Invalid value for '(.+?)': ", r"\1 的值不合适："),
    (r"Option '(.+?)' requires an argument\.?", r"选项 \1 后须有值"),
    (r"\(Possible options: (.+)\)", r"（是否想写：\1）"), (r"Did you mean '([^']+)'\?", r"是否想写 \1？"),
    (r"'(.+)' is not a valid (?:int|integer|float)( range)?\.?", r"`\1` 不是合适的数字"),
    (r"(\S+) is not in the range (.+?)\.?$", r"\1 不在范围 \2 之内"),
    (r"Input should be greater than or equal to (\S+)", r"不得小于 \1"),
    (r"Input should be less than or equal to (\S+)", r"不得大于 \1"),
    (r"Input should be a valid (?:integer|number).*", "应为数字"),
)
app = typer.Typer(
    name="wenmo", no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help=say("From your text to a language model you can trust, on the machine you have.",
             "从你的文本，到可信、可用的语言模型——就在你手边的机器上。"))
for _verbs in (training, measuring, answers, text_out, models):
    app.add_typer(_verbs.app)
app.add_typer(tokenizers.app, name="tokenizer")


def _version(shown: bool) -> None:
    if shown:
        print(f"wenmo {__version__}")
        raise typer.Exit


@app.callback()
def _global(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True,
                                          help=say("print the version", "打印版本号"))] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help=say("warnings and errors only",
                                                                  "只显示警告和错误"))] = False,
) -> None:
    logging.basicConfig(level=logging.WARNING if quiet else logging.INFO, format="%(message)s", stream=sys.stderr)
    if quiet:
        progress = logging.getLogger("wenmo.training.progress")
        progress.setLevel(logging.WARNING)
        context.call_on_close(lambda: progress.setLevel(logging.NOTSET))


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
        message = error.format_message()
        _fail(UsageError(say(message, _in_chinese(message)), where=command, mend=f"{command} --help"))
    except OSError as error:
        if error.filename is None:
            raise
        _fail(StorageError(
            say(f"cannot read or write: {of_reading(error)}", f"无法读写：{of_reading(error)}"),
            where=str(error.filename),
            mend=say("check that the path exists, and that you may read and write there",
                     "请检查路径是否存在，以及是否有读写权限")))
    sys.exit(code if isinstance(code, int) else 0)


def _in_chinese(message: str) -> str:
    for english, chinese in _IN_CHINESE:
        message = re.sub(english, chinese, message)
    return message


def _fail(error: WenmoError) -> NoReturn:
    if not (follows() and isinstance(error, (UsageError, CheckpointError, NumericsError))):  # the first has said it
        print(error, file=sys.stderr)
    sys.exit(error.exit_code)
