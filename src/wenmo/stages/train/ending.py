"""The end of a run: the best weights (or the last) become its model.

In: weights, and what was measured of them. Out: the folder `model/`, whose card has the lineage, scores and golden
prompts; what the run cost.
"""

from __future__ import annotations

import logging
import shutil
from functools import cache
from typing import Any

import torch

from wenmo import golden, modeldir
from wenmo.errors import say
from wenmo.evaluation.validation import outputs_of
from wenmo.modeldir import save_model
from wenmo.stages import prepare
from wenmo.stages.train.choosing import Choosing
from wenmo.stages.train.costs import Costs
from wenmo.stages.train.ready import Ready
from wenmo.stages.train.weights import Weights
from wenmo.tasks import cards_of
from wenmo.training import cost

_log = logging.getLogger(__name__)


def finish(ready: Ready, weights: Weights, choosing: Choosing, costs: Costs, step: int, tokens: int) -> None:
    """Every process calls it, and the first one writes. The model is no more for training then."""
    weights.settle()
    if not ready.run.writes:
        return
    if choosing.best.step is not None:
        weights.take_best()
    ready.model.eval()
    card = ready.opened.card
    card["lineage"] |= {"steps": step, "tokens": tokens, "best_step": choosing.best.step}
    card["scores"] = {"choose": {"n": len(ready.rows.choose), **choosing.metrics}} if ready.rows.choose else {}
    ready.model.compute_dtype = torch.float32  # as it will be opened
    modeldir.exact_base(ready.opened)
    _tune(ready, choosing)
    card["golden"] = golden.record(ready.model, ready.task.tokenizer)
    cost.write(ready.run.folder, "actual", costs.so_far())  # before the model: a run that has one is finished
    save_model(ready.run.model, ready.opened)
    shutil.rmtree(ready.best_folder, ignore_errors=True)
    _log.info(say("the model is in ", "模型在 ") + str(ready.run.model))


def _tune(ready: Ready, choosing: Choosing) -> None:
    """What the task chooses after training, on the rows for choosing, goes into the card."""
    examples = choosing.examples
    if examples is None or not ready.task.settings.target_columns:
        return
    values = prepare.values_of(ready.rows.choose)

    @cache
    def outputs() -> list[list[Any]]:
        return outputs_of(ready.model, ready.task, examples, len(values), ready.on)

    ready.opened.card["tasks"] = cards_of(ready.task.tuned(values, outputs))
