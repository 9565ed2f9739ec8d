"""What a run will cost, from a few of its own steps.

In: what a run is made of (`Setup`): model, optimizer, the loader with its real lengths, the rows for choosing. Out: a
`Forecast`: time with a range, memory, disk, and what the batches are like. The steps are real ones: forward, backward,
clipping and update at the recipe's batch size, as are the evaluation and the save that are timed; what is measured
here is multiplied, nothing is assumed about the machine. Weights and optimizer are then no longer what they were.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wenmo import device as machine
from wenmo import golden
from wenmo.data.examples import Examples
from wenmo.data.loader import Loader
from wenmo.data.sequence import Batch, Sequence
from wenmo.evaluation.validation import validate
from wenmo.modeldir import Opened, save_model, write_into
from wenmo.nn.attend import groups_of_like_length
from wenmo.nn.cross_entropy import IGNORED
from wenmo.objectives import Objective
from wenmo.tasks import Built, Task
from wenmo.training import checkpoint
from wenmo.training.average import Average
from wenmo.training.loop import LoopSettings, steps

STEPS, LEAST_STEPS = 12, 3  # measured, as the time allows; two at the largest batches come before
STEP_SECONDS, EVALUATION_SECONDS = 20.0, 10.0
LEAST_RANGE = 0.10  # of the forecast: a machine is never as quiet as that
KNOWN_STEPS = 4096  # whose lengths are looked at to choose from


@dataclass(frozen=True)
class Setup:
    """All that a run's cost depends on. `num_evaluations` and `num_saves` over the whole run; `shard_bytes` are on the
    disk already; `start_seconds` is what went by before the first step."""

    task: Task
    opened: Opened
    objective: Objective
    loader: Loader
    optimizer: torch.optim.Optimizer
    settings: LoopSettings
    lr_factor: Callable[[int], float]
    total_steps: int
    epochs: float
    num_evaluations: int
    num_saves: int
    keep: int
    keeps_best: bool
    average: Average | None
    choose: Examples | None
    choose_rows: list[Mapping[str, Any]]
    built: list[Built]
    shard_bytes: int
    start_seconds: float
    on: machine.Device
    seed: int


@dataclass(frozen=True)
class Forecast:
    """Seconds, bytes, shares. `seconds` is the whole run, from `low` to `high`; its parts are added up in it.

    `base_bytes`: what stands whatever the batch (program, weights, gradients, optimizer); `bytes_per_token`: of a
    micro-batch, on top of that."""

    steps: int
    epochs: float
    tokens: int
    tokens_per_second: float
    seconds: float
    low: float
    high: float
    start_seconds: float
    step_seconds: float
    evaluation_seconds: float
    saving_seconds: float
    peak_memory_bytes: int
    base_bytes: int
    bytes_per_token: float
    micro_batch_tokens: int
    disk_bytes: int
    checkpoint_bytes: int
    truncated: float
    tokens_cut: float
    targets: float
    padding: float
    measured_steps: int

    def as_dict(self) -> dict[str, Any]:
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in vars(self).items()}


def forecast(setup: Setup) -> Forecast:
    """Carries out the steps, an evaluation and a save (in a temporary folder)."""
    on, model = setup.on, setup.opened.model
    before, held = machine.peak_memory_bytes(on.device), machine.memory_held_bytes(on.device)
    machine.begin_peak_memory(on.device)
    chosen, sampled = _chosen(setup)
    seconds, tokens, batches = _stepped(setup, chosen)
    state = sum(value.numel() * value.element_size() for each in setup.optimizer.state.values()
                for value in each.values() if torch.is_tensor(value))
    step_peak = machine.peak_memory_bytes(on.device)
    evaluation = _evaluated(setup) if setup.num_evaluations else 0.0
    saving, best, checkpoint_bytes, model_bytes = _saved(setup)
    began = time.perf_counter()
    model.eval()
    dtype, model.compute_dtype = model.compute_dtype, torch.float32
    golden.record(model, setup.task.tokenizer)
    model.compute_dtype = dtype
    finish = time.perf_counter() - began + best

    micro_tokens = max(batch.num_tokens for batch in batches)
    gradients = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    base = min(step_peak, held + gradients + state)  # program, rows and weights were there before
    step = statistics.fmean(seconds)
    spread = 2 * statistics.stdev(seconds) / math.sqrt(len(seconds)) / step if len(seconds) > 1 else 1.0
    evaluations = setup.num_evaluations * (evaluation + (best if setup.keeps_best else 0.0))
    whole = setup.start_seconds + setup.total_steps * step + evaluations + setup.num_saves * saving + finish
    share = max(LEAST_RANGE, min(spread, 0.5))
    rows = sum(each.num_rows for each in setup.built)
    all_tokens = sum(each.num_tokens for each in setup.built)
    cut = sum(each.num_tokens_cut for each in setup.built)
    per_step = float(np.mean([lengths.sum() for lengths in sampled]))
    return Forecast(
        steps=setup.total_steps, epochs=setup.epochs, tokens=round(setup.total_steps * per_step),
        tokens_per_second=sum(tokens) / sum(seconds), seconds=whole, low=whole * (1 - share), high=whole * (1 + share),
        start_seconds=setup.start_seconds, step_seconds=step, evaluation_seconds=evaluations,
        saving_seconds=setup.num_saves * saving + finish,
        peak_memory_bytes=max(before, machine.peak_memory_bytes(on.device)), base_bytes=base,
        bytes_per_token=(step_peak - base) / micro_tokens, micro_batch_tokens=micro_tokens,
        # One checkpoint more stands while the oldest is still there.
        disk_bytes=(setup.keep + 1) * checkpoint_bytes + (2 if setup.keeps_best else 1) * model_bytes
        + setup.shard_bytes, checkpoint_bytes=checkpoint_bytes,
        truncated=sum(each.num_rows_cut for each in setup.built) / max(rows, 1),
        tokens_cut=cut / max(all_tokens + cut, 1), targets=_share_of_targets(batches),
        padding=_share_of_padding(batches), measured_steps=len(seconds))


# Steps ------------------------------------------------------------------------------------------------


def _chosen(setup: Setup) -> tuple[list[int], list[np.ndarray]]:
    """The two steps that need most memory, then steps spread evenly over all by what attention costs in them, in an
    order in which every beginning is spread evenly too (van der Corput 1935); and the lengths in each step known."""
    num = min(setup.total_steps, setup.loader.steps_in_epoch(0), KNOWN_STEPS)
    lengths = [setup.loader.lengths(step).astype(np.int64) for step in range(num)]
    by_cost = sorted(range(num), key=lambda step: int((lengths[step] ** 2).sum()))
    largest = max(range(num), key=lambda step: int(lengths[step].sum()))
    spread = [by_cost[int(_spread(place) * num)] for place in range(1, STEPS + 1)]
    return [by_cost[-1], largest, *spread], lengths


def _spread(number: int) -> float:
    """½, ¼, ¾, ⅛, …: the binary digits of the number behind the point, turned round."""
    result, part = 0.0, 0.5
    while number:
        result += part * (number % 2)
        number //= 2
        part /= 2
    return result


def _stepped(setup: Setup, chosen: list[int]) -> tuple[list[float], list[int], list[Batch]]:
    """Seconds and tokens of the measured steps, and the micro-batches of all."""
    seen: list[Batch] = []

    def batches(number: int) -> list[Batch]:
        micro = setup.loader.batches(chosen[number])
        seen.extend(micro)
        return micro

    results = steps(setup.opened.model, setup.optimizer, setup.objective, batches, lr_factor=setup.lr_factor,
                    total_steps=len(chosen), settings=setup.settings.model_copy(update={"non_finite": "skip"}),
                    device=setup.on, seed=setup.seed)
    seconds, tokens = [], []
    began = time.perf_counter()
    before = began
    for result in results:
        now = time.perf_counter()
        if setup.average is not None:
            setup.average.update(result.step)
        if result.step > 2:
            seconds.append(now - before)
            tokens.append(result.num_tokens)
        before = time.perf_counter()
        if len(seconds) >= LEAST_STEPS and before - began > STEP_SECONDS:
            break
    return seconds, tokens, seen


# Evaluating and saving --------------------------------------------------------------------------------


class _Some:
    """Every n-th example by length."""

    def __init__(self, examples: Examples, every: int) -> None:
        self._examples = examples
        order = np.argsort(examples.lengths(0), kind="stable")
        self._chosen = order[every // 2 :: every] if every > 1 else order

    def __len__(self) -> int:
        return len(self._chosen)

    @property
    def row_end(self) -> int:
        return self._examples.row_end

    def lengths(self, epoch: int) -> np.ndarray:
        found: np.ndarray = self._examples.lengths(epoch)[self._chosen]
        return found

    def sequences(self, index: int, epoch: int) -> list[Sequence]:
        return self._examples.sequences(int(self._chosen[index]), epoch)


def _evaluated(setup: Setup) -> float:
    """Seconds of one evaluation: of a sixteenth of the examples, and of more as long as there is time."""
    assert setup.choose is not None
    total = float(setup.choose.lengths(0).sum())
    seconds, every = 0.0, max(1, min(16, len(setup.choose.lengths(0)) // 8))
    began = time.perf_counter()
    while True:
        some = _Some(setup.choose, every)
        start = time.perf_counter()
        validate(setup.opened.model, setup.task, setup.objective, some, setup.choose_rows, setup.on)
        one = time.perf_counter() - start
        seconds = one * total / float(some.lengths(0).sum())
        following = max(1, every // 4)
        if every == 1 or time.perf_counter() - began + one * every / following > EVALUATION_SECONDS:
            return seconds
        every = following


def _saved(setup: Setup) -> tuple[float, float, int, int]:
    """Seconds of a checkpoint and of the model alone, and their bytes."""
    with tempfile.TemporaryDirectory(prefix="wenmo-plan-") as folder:
        began = time.perf_counter()
        checkpoint.save(Path(folder), 1, partial(write_into, opened=setup.opened), setup.optimizer, setup.opened.model,
                        {}, setup.average)
        saving = time.perf_counter() - began
        save_model(Path(folder) / "model", setup.opened)
        best = time.perf_counter() - began - saving
        return saving, best, bytes_in(Path(folder) / "step-1"), bytes_in(Path(folder) / "model")


def bytes_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


# What the batches are like ----------------------------------------------------------------------------


def _share_of_targets(batches: list[Batch]) -> float:
    """Tokens that something is learned at, among all of the sequences that have targets; 0 where rows have labels."""
    real = total = 0
    for batch in batches:
        for flat in batch.roles.values():
            if "targets" in flat.tokens:
                real += int((flat.tokens["targets"] != IGNORED).sum())
                total += sum(flat.lengths)
    return real / total if total else 0.0


def _share_of_padding(batches: list[Batch]) -> float:
    """Of the slots of attention's rectangles; nothing else is padded."""
    real = slots = 0
    for batch in batches:
        for flat in batch.roles.values():
            for group in groups_of_like_length(flat.lengths):
                slots += len(group) * max(flat.lengths[place] for place in group)
                real += sum(flat.lengths[place] for place in group)
    return 1 - real / slots if slots else 0.0
