"""The weights that the steps change, and every way that they go: into a checkpoint and back, into `best/`, into the
model that is evaluated.

In: a model ready to be trained. Out: what trains it (a learner, its optimizer), and that model with the weights that
are asked for. Where several processes train in parts, the model stands beside the learner, and is filled from it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from wenmo import modeldir
from wenmo.errors import say
from wenmo.modeldir import Opened, save_model, write_into
from wenmo.objectives import Objective
from wenmo.recipe import Recipe
from wenmo.stages import prepare
from wenmo.stages.train.ready import Ready
from wenmo.tasks import JointSettings
from wenmo.training import checkpoint, optimizer, sharded
from wenmo.training.average import Average
from wenmo.training.groups import trainable
from wenmo.training.unfreezing import waiting_in

_log = logging.getLogger(__name__)


class Weights:
    """`learner` and `optimizer` are what the steps use, `frozen` is what waits in a step for its turn to be trained."""

    def __init__(self, ready: Ready, objective: Objective, total_steps: int) -> None:
        settings = ready.recipe.train
        self._ready = ready
        self.learner = _learner(ready, objective)
        self.optimizer = optimizer.build(self.learner, settings.optimizer, settings.groups, settings.layer_decay,
                                         prepare.start_of(ready.recipe, ready.opened))
        _count_trained(ready.opened, self.learner)
        self.frozen = waiting_in(self.learner, settings.unfreeze, total_steps)
        self.average = None if settings.ema is None else Average(self.learner, settings.ema)

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """Inside it the model has the weights that are validated and kept: the averaged ones, where there are any."""
        self._gather(self.average)
        return nullcontext() if self.average is None or self._ready.processes.sharded else self.average.in_place()

    def settle(self) -> None:
        """The model takes for good what it has inside `averaged`."""
        if self.average is None or self._ready.processes.sharded:
            self._gather(self.average)
        else:
            self.average.settle()

    def keep(self) -> None:
        """The model as it now is becomes the best so far."""
        save_model(self._ready.best_folder, self._ready.opened)

    def take_best(self) -> None:
        """The model takes the weights that were kept."""
        checkpoint.load_weights(self._ready.best_folder, self._ready.model, self._saved_tensors)

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """A checkpoint of the weights in training, with `state`; older ones go. Every process calls it."""
        self._gather()
        run = self._ready.run
        checkpoint.save(run.checkpoints, step, partial(write_into, opened=self._ready.opened), self.optimizer,
                        self.learner, state, self.average, writes=run.writes)
        self.prune()

    def load(self, found: Path) -> checkpoint.Saved:
        """Puts back what a checkpoint has of weights, optimizer and average; gives the rest."""
        return checkpoint.load(found, self.learner, self.optimizer, self._saved_tensors, average=self.average)

    def prune(self) -> None:
        """Keeps the newest checkpoints, as many as the recipe says."""
        if self._ready.run.writes:
            checkpoint.prune(self._ready.run.checkpoints, self._ready.recipe.train.keep, set())

    def _gather(self, average: Average | None = None) -> None:
        """Brings the model that is evaluated and saved up to the weights in training, or to their average."""
        processes = self._ready.processes
        if processes.sharded:
            tensors = {**self.learner.state_dict(), **({} if average is None else average.tensors())}
            sharded.gather_into(self._ready.model if processes.is_first else None, tensors)

    def _saved_tensors(self, folder: Path) -> dict[str, torch.Tensor]:
        return modeldir.saved_tensors(folder, self._ready.opened)


def _learner(ready: Ready, objective: Objective) -> torch.nn.Module:
    """What the steps train: the model itself, or where several processes train it in parts a copy that is so, from
    which `Weights` brings the weights back."""
    whole: torch.nn.Module = ready.model
    ready.processes.begin_alike(whole)
    if not ready.processes.sharded:
        return whole
    refuse_in_parts(ready.recipe, objective)
    learner = sharded.shard(whole)
    if not ready.processes.is_first and ready.opened.adapter is None:
        whole.to("meta")  # only the first needs it: to evaluate, and to save
    return learner


def refuse_in_parts(recipe: Recipe, objective: Objective) -> None:
    """RecipeError for what cannot be done with weights in parts: what looks at a whole matrix, or at gradients before
    they are added up, and rows that need other heads than those of the next process."""
    settings = recipe.train
    faults = {"train.optimizer.type": settings.optimizer.type not in ("sgd", "adam", "adamw"),
              "train.optimizer.state_bits": getattr(settings.optimizer, "state_bits", 32) != 32,
              "train.adversarial": settings.adversarial > 0, "train.unfreeze": settings.unfreeze is not None,
              "task": objective.coupled is not None or isinstance(recipe.task, JointSettings),
              "train.checkpoint_activations": settings.checkpoint_activations, "train.compile": settings.compile}
    for where, found in faults.items():
        if found:
            raise sharded.refuse(where)


def _count_trained(opened: Opened, learner: torch.nn.Module) -> None:
    """Says, and writes into the lineage, how many of the parameters are trained, where it is not all of them."""
    trained = sum(parameter.numel() for parameter in trainable(learner).values())
    total = sum(parameter.numel() for parameter in learner.parameters())
    if trained < total:
        opened.card["lineage"] |= {"parameters": {"trained": trained, "all": total}}
        _log.info(say(f"trainable parameters: {trained:,} of {total:,} ({trained / total:.2%})",
                      f"可训练参数：{trained:,}，共 {total:,}（{trained / total:.2%}）"))
