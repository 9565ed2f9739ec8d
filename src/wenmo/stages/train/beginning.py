"""A recipe → a Run, locked, with all that its steps need.

In: a recipe and a folder. Out: the finished run, through running.py. Other processes of the same run come this way
too, each after the one before, and find on the disk what the first has made.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

from wenmo import device as machine
from wenmo.errors import DataError, ModelError, RecipeError, TokenizerError, UsageError, say
from wenmo.files import sweep_unfinished
from wenmo.models import CustomHeads
from wenmo.recipe import Recipe, context
from wenmo.stages import prepare
from wenmo.stages.prepare import Corpus
from wenmo.stages.train.card import card_before
from wenmo.stages.train.ready import Ready
from wenmo.stages.train.running import Running
from wenmo.stages.train.trained import Trained
from wenmo.tasks import CustomTasks
from wenmo.training.processes import Processes, joined, own_device
from wenmo.training.run import RECORD, Run, Stopper

_log = logging.getLogger(__name__)


def train(recipe: Recipe, out: Path, *, data_root: Path = Path("."), tasks: CustomTasks | None = None,
          heads: CustomHeads | None = None) -> Trained:
    """Carries out a recipe in the folder `out`. Raises WenmoError; nothing of an earlier run there is lost.

    `tasks` and `heads`: those handed in beside Wenmo's own, as the recipe was parsed with.
    """
    began = time.monotonic()
    on = machine.choose(own_device(recipe.train.device), recipe.train.dtype, recipe.train.threads)
    with joined(recipe.train.parallel, on.device) as processes:
        return _train(recipe, out, data_root, tasks, heads, on, processes, began)


def _train(recipe: Recipe, out: Path, data_root: Path, tasks: CustomTasks | None, heads: CustomHeads | None,
           on: machine.Device, processes: Processes, began: float) -> Trained:
    _log.info(f"{processes.size} × {on}" if processes.size > 1 else str(on))
    if out.exists() and not out.is_dir():
        raise UsageError(say("--out is a file, not a folder", "--out 是文件，不是文件夹"), where=str(out),
                         mend=say("give --out a new or an empty folder", "请让 --out 指向新的或空的文件夹"))
    with processes.in_turn():
        known = prepare.refuse_misfit(recipe, tasks)
        corpus = Corpus(recipe, data_root)
        facts = prepare.run_facts(corpus, heads)
    chosen = {"device": on.device.type, "dtype": str(on.dtype).removeprefix("torch.")}
    opening = (Run.open(out, recipe, facts, context(tasks, heads), chosen) if processes.is_first
               else nullcontext(Run(out)))
    with opening as run, Stopper() as stopper, _begun_anew(run):
        with processes.in_turn():
            if run.writes:
                sweep_unfinished(run.folder / "shards")
            _refuse_unseen(run)
            rows = corpus.read(run.folder / "quarantine.jsonl" if run.writes else None)
            tokenizer = prepare.tokenizer_for(recipe, rows, run.folder / "tokenizer", known)
            task = prepare.task_for(recipe, tokenizer, rows, tasks)
            opened = prepare.model_for(recipe, task, heads)
        opened.card = card_before(recipe, task, rows, facts)
        prepare.place_on(opened, on)
        ready = Ready(recipe, run, on, processes, task, opened, rows)
        return Running(ready, stopper, facts, began).carry_out()


def _refuse_unseen(run: Run) -> None:
    """UsageError where this process is on another machine than the first, and its folder another than that one's."""
    if not (run.folder / RECORD).exists():
        raise UsageError(say("this machine does not see the run's folder", "本机看不到训练目录"), where=str(run.folder),
                         mend=say("give --out a folder that all machines share", "请让 --out 指向各机器共享的文件夹"))


@contextlib.contextmanager
def _begun_anew(run: Run) -> Iterator[None]:
    """Where a fault of the recipe or the data comes before the first step, the run is as if it had not begun: once
    the fault is mended, the same command is not refused for being another."""
    try:
        yield
    except (DataError, ModelError, RecipeError, TokenizerError):
        if run.writes and not run.metrics.exists() and not run.has_weights:
            run.undo()
        raise
