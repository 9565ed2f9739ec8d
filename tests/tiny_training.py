"""A tiny model, objective and run of our own, for the proofs about `training/`; a child process can be killed in it.

`train` is the shape of every training stage: open the run, load the newest checkpoint, step, log, save, prune.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wenmo import files
from wenmo.config import Settings, free
from wenmo.data.sequence import Batch, Sequence, collate
from wenmo.device import Device, numpy_rng
from wenmo.objectives import Objective, Term
from wenmo.tensors import save_tensors
from wenmo.training import checkpoint
from wenmo.training.average import Average
from wenmo.training.best import Best, BestSettings
from wenmo.training.loop import LoopSettings, steps
from wenmo.training.optimizer import AdamW, OptimizerSettings, build
from wenmo.training.run import Run
from wenmo.training.schedule import CosineSchedule, Rates, ScheduleSettings

VOCAB, WIDTH = 23, 8
CPU = Device(torch.device("cpu"), torch.float32, 1)


class Tiny(nn.Module):
    """Embedding, dropout, matrix, norm; the output matrix is tied to the embedding."""

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)
        self.head.weight = self.embedding.weight
        self.classifier = nn.Linear(WIDTH, 2)

    def forward(self, ids_M: Tensor) -> Tensor:
        hidden_MD = F.gelu(self.hidden(self.dropout(self.embedding(ids_M))))
        return self.norm(hidden_MD)


def _counts(batch: Batch) -> dict[str, float]:
    return {"token": float((batch.text.tokens["targets"] != -100).sum()), "label": float(len(batch.text.lengths))}


def _terms(model: Tiny, batch: Batch) -> list[Term]:
    hidden_MD = model(batch.text.ids_M)
    token = F.cross_entropy(model.head(hidden_MD), batch.text.tokens["targets"], reduction="sum")
    means_BD = torch.stack([part.mean(0) for part in hidden_MD.split(batch.text.lengths)])
    label = F.cross_entropy(model.classifier(means_BD), batch.text.values["label"], reduction="sum")
    return [Term("token", token), Term("label", label, weight=0.5)]


OBJECTIVE = Objective(_counts, _terms)


def rows(step: int, num_rows: int = 8) -> list[Sequence]:
    """The rows of a step: uneven lengths, unevenly masked, some with no target at all."""
    result = []
    for i in range(num_rows):
        rng = numpy_rng("rows", step, i)
        ids = rng.integers(0, VOCAB, rng.integers(1, 12))
        keep = rng.random(len(ids)) < i / num_rows
        tokens = {"ids": ids, "targets": np.where(keep, ids, -100)}
        result.append(Sequence(100 * step + i, tokens, {"label": int(ids[0] % 2)}))
    return result


def micro_batches(step: int) -> list[Batch]:
    """Two of unequal size."""
    all_rows = rows(step)
    return [collate(all_rows[:5]), collate(all_rows[5:])]


class TinySettings(Settings):
    optimizer: OptimizerSettings = AdamW(lr=1e-2)
    schedule: ScheduleSettings = CosineSchedule()
    ema: float | None = None
    loop: LoopSettings = LoopSettings()
    best: BestSettings = BestSettings()
    steps: int = 30
    save_every: int = free(4)
    keep: int = free(2)


def write_model(model: nn.Module, folder: Path) -> None:
    """Several files, as a model directory has."""
    for name in ("config.json", "tokenizer.json", "README.md"):
        (folder / name).write_text("文" * 100, encoding="utf-8")
    tensors = {name: value for name, value in model.state_dict().items() if name != "head.weight"}
    save_tensors(folder / "model.safetensors", tensors)


def train(folder: Path, settings: TinySettings, pause_seconds: float = 0.0) -> None:
    torch.set_num_threads(1)
    with Run.open(folder, settings, {"data": "d" * 64}) as run:
        model = Tiny()
        optimizer = build(model, settings.optimizer)
        average = None if settings.ema is None else Average(model, settings.ema)
        newest = checkpoint.latest(run.checkpoints)
        state: Any = {"tokens": 0, "best": None}
        start = 0
        if newest is not None:
            saved = checkpoint.load(newest, model, optimizer, average=average)
            start, state = saved.step, saved.state
        best, num_tokens = Best(settings.best, state["best"]), state["tokens"]
        prune(run, settings, best)  # the one that a kill came before
        run.rewind(start)
        rates = Rates(schedule=settings.schedule, total_steps=settings.steps)
        for result in steps(
            model, optimizer, OBJECTIVE, micro_batches, lr_factor=rates.factor, total_steps=settings.steps,
            settings=settings.loop, device=CPU, seed=7, start_step=start,
        ):
            if average is not None:
                average.update(result.step)
            time.sleep(pause_seconds)
            num_tokens += result.num_tokens
            run.log({"step": result.step, "tokens": num_tokens, "loss": result.loss, "lr": result.lr,
                     "grad_norm": result.grad_norm})
            if result.step % settings.save_every == 0:
                best.see(result.step, {"loss": result.loss, "tokens": num_tokens})
                checkpoint.save(
                    run.checkpoints, result.step, lambda path: write_model(model, path), optimizer, model,
                    {"tokens": num_tokens, "best": best.to_dict()}, average,
                )
                prune(run, settings, best)
        with files.atomic_folder(run.model) as unfinished:
            write_model(model, unfinished)
            files.write_json(unfinished / "best.json", best.to_dict())


def prune(run: Run, settings: TinySettings, best: Best) -> None:
    checkpoint.prune(run.checkpoints, settings.keep, protect={best.step} if best.step else set())


def train_and_die(folder: Path, settings: TinySettings, after_events: int) -> None:
    """`train`, ended by SIGKILL just before its nth operation on files inside a save (open, rename, mkdir, delete)."""
    saved = (str(folder / "checkpoints"), str(folder / "model"))
    left = after_events

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        operation = event in ("open", "os.rename", "os.mkdir") and str(arguments[0]).startswith(saved)
        if operation or event in ("os.remove", "os.rmdir"):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    train(folder, settings)
