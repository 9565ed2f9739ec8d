"""The moving average of the weights: what is validated and kept, where a recipe says `ema`.

In: a model whose weights change from step to step. Out: their exponential average, which can stand in the model's
place for an evaluation. The weights that are trained never see it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from wenmo.errors import CheckpointError, say
from wenmo.training.groups import trainable
from wenmo.training.sharded import part_of


class Average:
    """a ← d a + (1 − d) w after each step t, with d = min(decay, (1 + t)/(10 + t)), so that the first weights, which
    have learnt nothing, are soon forgotten (Polyak and Juditsky 1992; the warm-up is TensorFlow's)."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._parameters = trainable(model)
        self._averages = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after step `step` (counted from 1)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self._averages.values()), list(self._parameters.values()), 1 - decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside the block the model has the averaged weights; then its own again, bit for bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def settle(self) -> None:
        """The model takes the averaged weights for good."""
        self._swap()

    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            parameter.data, self._averages[name] = self._averages[name], parameter.data

    def tensors(self) -> dict[str, Tensor]:
        """By the parameters' names, for a checkpoint."""
        return {name: tensor.contiguous() for name, tensor in self._averages.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Puts back what `tensors` gave. CheckpointError when it is another model's."""
        shapes = {name: tensor.shape for name, tensor in self._averages.items()}
        if shapes != {name: tensor.shape for name, tensor in tensors.items()}:
            raise CheckpointError(
                say("the averaged weights are of another model", "平均权重属于另一个模型"),
                mend=say("resume with the model that the run was begun with", "请用开始该运行时的模型继续训练"))
        for name, tensor in tensors.items():
            self._averages[name].copy_(part_of(tensor, self._averages[name]))
