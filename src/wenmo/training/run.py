"""A Run: the folder where a recipe was carried out, and the signals that end one.

In: a folder, the resolved settings, and facts (hashes of the data and the tokenizer). Out: a Run that this process
alone writes to, either new or the one that these same settings and facts began:

    recipe.yaml      the resolved settings          checkpoints/step-N/   see checkpoint.py
    run.json         the facts; marks a Run         model/                what the run is for
    metrics.jsonl    one object a log               tensorboard/          the same, when the extra is installed
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch

import wenmo
from wenmo import config, files
from wenmo.errors import CheckpointError, UsageError, say
from wenmo.locate import RUN_RECORD
from wenmo.training.cost import COST
from wenmo.training.processes import num_processes, several

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FORMAT = 1
RECIPE = "recipe.yaml"
RECORD = RUN_RECORD
BEFORE_WEIGHTS = ("tokenizer", "shards", "tensorboard", "checkpoints")  # folders that a run can make again
FOLDS = "folds"  # of the cross-validation that came before: a Run for each

_log = logging.getLogger(__name__)


class Run:
    """Made by `Run.open`. `folder`, `checkpoints`, `model` and `metrics` are where things lie. One that is not `writes`
    is for the other processes that train the same model: they know where things lie, and write nothing."""

    def __init__(self, folder: Path, *, writes: bool = False) -> None:
        self.folder, self.writes = folder, writes
        self.checkpoints = folder / "checkpoints"
        self.model = folder / "model"
        self.metrics = folder / "metrics.jsonl"
        self._first_step = 0
        self._recipe: str | None = None  # to be written when the run goes on
        self._writer: SummaryWriter | None = None
        self._has_tensorboard = True

    @classmethod
    @contextlib.contextmanager
    def open(cls, folder: Path, settings: config.Settings, facts: Mapping[str, str],
             context: Mapping[str, Any] | None = None, machine: Mapping[str, str] | None = None) -> Iterator[Run]:
        """Begins a Run in `folder`, or goes on with the one there; holds its lock until the block ends.

        `context` is what the settings were parsed with; `machine` what was chosen for this one (the number format) and
        decides the last bits: it is written down, and another is warned of. Keys marked `free` may have changed since;
        recipe.yaml then follows, at `rewind`: call it before the first log, and after all that may yet refuse to go on.
        A Run that came to no checkpoint has nothing to go on with: it begins anew with these settings.
        Raises RunLocked (another process writes here), CheckpointError (begun with other settings or facts; each
        difference is shown), UsageError (a folder with other things in it), StorageError.
        """
        recipe, here = config.to_yaml(settings), {**_machine(), **(machine or {})}
        refuse_foreign(folder, recipe)
        with files.locked(folder):
            run = cls(folder, writes=True)
            files.sweep_unfinished(folder)
            files.sweep_unfinished(run.checkpoints)
            if (folder / RECORD).exists() and not run.has_weights and _differences(folder, settings, facts, context):
                _log.info(say("what was begun here with something else came to no checkpoint: the run begins anew",
                              "此前在此以其他设定开始的训练没有检查点：重新开始"))
                run.undo()
            if (folder / RECORD).exists():
                _refuse_other(folder, settings, facts, context)
                _warn_of_another_machine(folder, here)
                if (folder / RECIPE).read_text(encoding="utf-8") != recipe:
                    run._recipe = recipe
            else:
                files.write_atomic(folder / RECIPE, recipe)
                files.write_json(folder / RECORD, {
                    "format": FORMAT, "wenmo": wenmo.__version__, "facts": dict(facts), "machine": here,
                })
            try:
                yield run
            finally:
                if run._writer is not None:
                    with files.storage_errors(folder):
                        run._writer.close()

    @property
    def has_weights(self) -> bool:
        """Whether something was learned that could be lost: a checkpoint, the best so far, a model."""
        return self.model.exists() or (self.folder / "best").exists() or any(self.checkpoints.glob("step-*"))

    def undo(self) -> None:
        """Takes away what a run makes before its first checkpoint: as if it had not begun."""
        for name in BEFORE_WEIGHTS:
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for name in (self.metrics.name, COST, RECIPE, RECORD):  # the mark of a Run is the last to go
            (self.folder / name).unlink(missing_ok=True)

    def rewind(self, step: int) -> None:
        """Takes the log back to `step`, where the run goes on: later rows, and a line cut short, are dropped."""
        self._first_step = step + 1
        if not self.writes:
            return
        if self._recipe is not None:
            files.write_atomic(self.folder / RECIPE, self._recipe)
        if not self.metrics.exists():
            return
        try:
            rows = files.read_jsonl(self.metrics)
        except ValueError as error:
            raise CheckpointError(
                say(f"the log has a line that is not JSON: {error}", f"日志中有一行不是 JSON：{error}"),
                where=str(self.metrics),
                mend=say("take that line out, or move the file away", "请删去该行，或移走此文件"),
            ) from error
        files.write_jsonl(self.metrics, [row for row in rows if row["step"] <= step])

    def log(self, row: Mapping[str, Any]) -> None:
        """Adds one row to metrics.jsonl and TensorBoard; it has a `step`. NaN and infinity become null there."""
        if not self.writes:
            return
        files.append_jsonl(self.metrics, {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in row.items()
        })
        writer = self._tensorboard()
        if writer is not None:
            with files.storage_errors(self.folder):
                for name, value in row.items():
                    if name != "step" and isinstance(value, (int, float)):
                        writer.add_scalar(name, value, row["step"])
                for number, sample in enumerate(row.get("samples", ())):
                    writer.add_text(f"samples/{number}", _preformatted(sample["prompt"] + sample["text"]), row["step"])

    def _tensorboard(self) -> SummaryWriter | None:
        if self._writer is None and self._has_tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                self._has_tensorboard = False
                _log.warning(say("no TensorBoard events: pip install 'wenmo[tensorboard]' (metrics.jsonl has it all)",
                                 "未写 TensorBoard 事件：pip install 'wenmo[tensorboard]'（metrics.jsonl 中应有尽有）"))
                return None
            with files.storage_errors(self.folder):
                self._writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self._first_step)
        return self._writer


def _preformatted(text: str) -> str:
    """As Markdown that shows a text as it is: lines set in by four spaces."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def refuse_foreign(folder: Path, recipe: str) -> None:
    """A Run sweeps its folder and rewrites recipe.yaml, so it does not begin where that could hurt: UsageError.

    What a Run killed in its first moments leaves is no hindrance, nor are files such as a log of the command, nor the
    runs of a cross-validation.
    """
    if not folder.is_dir() or (folder / RECORD).exists():
        return
    others = []
    for path in folder.iterdir():
        if path.name == RECIPE:
            harmless = path.read_text(encoding="utf-8") == recipe
        elif path.name.startswith("."):
            harmless = path.name.startswith((".lock", f".{RECIPE}.", f".{RECORD}."))
        else:
            harmless = path.name == FOLDS or (path.is_file() and path.name != "metrics.jsonl")
        if not harmless:
            others.append(path.name)
    if others:
        raise UsageError(
            say(f"the folder holds other things: {', '.join(sorted(others)[:5])}",
                f"该文件夹里有其他内容：{'、'.join(sorted(others)[:5])}"), where=str(folder),
            mend=say("give --out a new or an empty folder", "请让 --out 指向新的或空的文件夹"),
        )


def _refuse_other(folder: Path, settings: config.Settings, facts: Mapping[str, str],
                  context: Mapping[str, Any] | None) -> None:
    """CheckpointError when the Run was begun with other identity keys or facts."""
    differences = _differences(folder, settings, facts, context)
    if differences:
        lines = "".join(f"\n  {name}: {_shown(a)} → {_shown(b)}" for name, a, b in differences)
        raise CheckpointError(
            say("this run was begun with something else:", "该运行开始时的设定与现在不同：") + lines,
            where=str(folder),
            mend=say("choose another --out for a new run, or change these back",
                     "换一个 --out 开始新的运行，或改回原值"),
        )


def _warn_of_another_machine(folder: Path, now: Mapping[str, Any]) -> None:
    for name, before in _record(folder)["machine"].items():
        if name in now and now[name] != before:
            _log.warning(say(f"the run was begun with {name} {before}, now {now[name]}: the weights will not be "
                             f"bit-equal", f"该运行开始时 {name} 为 {before}，现为 {now[name]}：权重将不会逐位相同"))


def _differences(folder: Path, settings: config.Settings, facts: Mapping[str, str],
                 context: Mapping[str, Any] | None) -> list[tuple[str, Any, Any]]:
    """(name, then, now) of each identity key and fact in which the Run there is another."""
    then = _record(folder)["facts"]
    old = config.parse(type(settings), config.read_yaml(folder / RECIPE), str(folder / RECIPE), context)
    return [*config.identity_differences(old, settings),
            *((name, then.get(name), facts.get(name)) for name in sorted({*then, *facts})
              if then.get(name) != facts.get(name))]


def _record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    return found


def _machine() -> dict[str, Any]:
    """What the last bits of the weights depend on beside the recipe, as far as it is known here."""
    return {"torch": torch.__version__, "threads": torch.get_num_threads(), "processes": num_processes()}


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:12] + "…"


class Stopper:
    """SIGTERM and Ctrl-C inside the block ask the run to save and stop; look at `exit_code` after each step.

    `exit_code` is None until then, 75 (saved, run again) after SIGTERM, 130 after Ctrl-C. A second Ctrl-C raises
    KeyboardInterrupt at once. Outside the main thread, where Python allows no handlers, it does nothing.
    Where torchrun has started the process, it hands a Ctrl-C on that the terminal has already sent: one alone counts.
    """

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self._interrupted = False
        self._once = several()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stopper:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._asked)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _asked(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._interrupted and not self._once:
                raise KeyboardInterrupt
            self._interrupted = True
        if self.exit_code is None:
            self.exit_code = 130 if number == signal.SIGINT else 75
            message = say("saving after this step, then stopping (Ctrl-C a second time stops at once)",
                          "本步完成后保存并停止（第二次 Ctrl-C 立即停止）")
            os.write(2, f"\n{message}\n".encode())  # safe inside a handler, where a buffered write may not be
