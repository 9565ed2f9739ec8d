"""Block: a layer of a model that can be computed a second time instead of being remembered (activation checkpointing).

In: a layer and its inputs. Out: its output, the same bits either way. A backward needs what the forward computed on
its way; by default all of that is kept, which in a small model is most of the memory. A checkpointed block keeps its
inputs alone and, when its backward asks for the rest, runs its forward once more: a third more arithmetic for the
memory of one layer instead of all (Chen et al. 2016, §3.1, with a segment for each layer).

Dropout draws the same masks the second time, since torch's random state at the block's beginning is kept, and put
back. What the block reads beside its arguments (parameters, an encoder's memory, a shared bias) gets its gradient as
ever: only tensors kept for the backward are exchanged, the graph is that of the first forward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


class Block(nn.Module):
    """A layer among several alike. `checkpointed`: its activations are computed anew in the backward."""

    checkpointed = False

    def __call__(self, *inputs: Any) -> Any:
        learns = self.training and torch.is_grad_enabled()
        if self.checkpointed and learns:
            return recomputed(super().__call__, *inputs)
        if self._compiled_call_impl is not None and not learns:  # compiled.py: for training alone
            plain: Any = self._call_impl
            return plain(*inputs)
        return super().__call__(*inputs)


def checkpoint_activations(model: nn.Module) -> int:
    """Lets every Block of a model be computed twice from now on, in training; how many there are."""
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    for block in blocks:
        block.checkpointed = True
    return len(blocks)


def recomputed(function: Callable[..., Any], *inputs: Any) -> Any:
    """function(*inputs), of which nothing is kept for the backward but the inputs; it is called again there.

    It must do the same again: the n-th tensor that its second run would keep stands for the n-th of the first.
    """
    cards = list({each.device for each in inputs if isinstance(each, Tensor) and each.is_cuda})
    drawn_from = torch.get_rng_state(), [torch.cuda.get_rng_state(card) for card in cards]
    count = 0
    held: dict[int, Tensor] = {}  # of the second run, until the backward has taken them

    def number(_: Tensor) -> int:
        nonlocal count
        count += 1
        return count - 1

    def tensor(wanted: int) -> Tensor:
        if wanted not in held:  # the first to be asked for; or this is one more backward through the same graph
            with torch.random.fork_rng(cards):
                torch.set_rng_state(drawn_from[0])
                for card, state in zip(cards, drawn_from[1], strict=True):
                    torch.cuda.set_rng_state(state, card)
                held.update(_second_run(function, inputs, count))
        return held.pop(wanted)

    with saved_tensors_hooks(number, tensor):
        return function(*inputs)


class _AllKept(BaseException):
    """Ends a second run once it has kept what is needed: its last product is for nobody."""


def _second_run(function: Callable[..., Any], inputs: tuple[Any, ...], count: int) -> dict[int, Tensor]:
    kept: dict[int, Tensor] = {}

    def keep(value: Tensor) -> None:
        kept[len(kept)] = value.detach()
        if len(kept) == count:
            raise _AllKept

    def never(_: None) -> Tensor:
        raise AssertionError("no backward goes through a second run")

    apart = [each.detach().requires_grad_(each.requires_grad) if isinstance(each, Tensor) else each for each in inputs]
    with torch.enable_grad(), saved_tensors_hooks(keep, never):
        try:
            function(*apart)
        except _AllKept:
            return kept
    raise AssertionError(f"the second run kept {len(kept)} tensors, the first {count}: it did something else")
