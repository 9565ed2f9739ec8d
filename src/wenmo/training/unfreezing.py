"""Gradual unfreezing: first the head is trained, then one layer more after the other, from the top down.

In: the parameters that a run trains, and after how many steps the next layer joins. Out: for a step, a block inside
which the layers whose turn has not come have no gradient: none is computed for them, nor for what lies below, and no
optimizer touches them. A pure function of the step: nothing to save, and outside the block nothing is changed.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator

from pydantic import Field
from torch import nn

from wenmo.config import Count, Settings
from wenmo.errors import RecipeError, say
from wenmo.training.groups import depths, trainable

_log = logging.getLogger(__name__)


class UnfreezeSettings(Settings):
    """`every`: so many steps after the one above it a layer joins (Howard and Ruder 2018, §3.3, where it is an epoch).
    The head is trained from the first step on; what comes before the layers, such as embeddings, joins last."""

    every: Count = Field(gt=0)


class Unfreezing:
    """`stages`: the parameters that join together, the topmost first."""

    def __init__(self, model: nn.Module, settings: UnfreezeSettings) -> None:
        self.settings = settings
        height, parameters = depths(model), trainable(model)
        self.stages = [[parameter for name, parameter in parameters.items() if height[name] == depth]
                       for depth in sorted({height[name] for name in parameters}, reverse=True)]
        if len(self.stages) < 2:
            raise RecipeError(
                say("`unfreeze` does nothing here: all that is trained lies on one level",
                    "`unfreeze` 在此不起作用：所训练的参数都在同一层"), where="train.unfreeze",
                mend=say("take it out", "请去掉"))

    def num_joined(self, step: int) -> int:
        """How many of the stages are trained in step `step`, counted from 0."""
        return min(step // self.settings.every + 1, len(self.stages))

    @contextlib.contextmanager
    def __call__(self, step: int) -> Iterator[None]:
        waiting = [parameter for stage in self.stages[self.num_joined(step):] for parameter in stage]
        try:
            for parameter in waiting:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in waiting:
                parameter.requires_grad_(True)


def waiting_in(model: nn.Module, settings: UnfreezeSettings | None,
               total_steps: int) -> Callable[[int], contextlib.AbstractContextManager[None]]:
    """What waits in a step for its turn to be trained: nothing without settings."""
    if settings is None:
        return lambda _: contextlib.nullcontext()
    found = Unfreezing(model, settings)
    joined = found.num_joined(total_steps - 1)
    _log.info(say(f"one layer more every {settings.every} steps; {joined} of {len(found.stages)} levels in the end",
                  f"每 {settings.every} 步多训练一层；最终训练 {joined}/{len(found.stages)} 级"))
    return found
