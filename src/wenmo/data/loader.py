"""Loader: examples → the batches of a step.

In: Examples, a budget of tokens for an optimizer step, a seed. Out: the micro-batches of any step, as a pure function
of (seed, step): a resumed run asks for the next step and there is nothing to restore.

Sequences lie end to end without padding and attend only to themselves, so packing is no more than filling the budget
with whole examples. Building a batch takes less than a hundredth of the step that uses it; there is no worker.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import overload

import numpy as np

from wenmo.data.examples import Examples
from wenmo.data.sequence import Batch, collate
from wenmo.device import numpy_rng
from wenmo.errors import DataError, say


@dataclass(frozen=True, slots=True)
class _Plan:
    """An epoch: batch i holds the examples order[starts[i]:ends[i]]."""

    epoch: int
    order: np.ndarray
    lengths: np.ndarray  # in that order
    starts: np.ndarray
    ends: np.ndarray


@dataclass(frozen=True, slots=True)
class _Slices(Sequence[Batch]):
    """The micro-batches of a step; `build` makes the one of a number."""

    number: int
    build: Callable[[int], Batch]

    def __len__(self) -> int:
        return self.number

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Batch]: ...
    def __getitem__(self, index: int | slice) -> Batch | Sequence[Batch]:
        if isinstance(index, slice):
            return [self.build(number) for number in range(self.number)[index]]
        return self.build(range(self.number)[index])


class Loader:
    """The batches of `examples`, shuffled anew in each epoch.

    `batch_tokens` is the budget of one optimizer step; `accumulation` the number of micro-batches it is cut into.
    `bucket_pool`: batches are filled in order of length within pools of that many batches, so that the examples of a
    batch are about equally long, and then shuffled; 0 leaves the lengths of a batch to chance.
    """

    def __init__(
        self, examples: Examples, batch_tokens: int, accumulation: int, seed: int, bucket_pool: int = 16
    ) -> None:
        assert batch_tokens > 0, "a batch has room for tokens"
        assert accumulation > 0, "a step has at least one micro-batch"
        self._examples = examples
        self._batch_tokens, self._accumulation = batch_tokens, accumulation
        self._seed, self._bucket_pool = seed, bucket_pool
        self._plan: _Plan | None = None  # of the latest epoch asked for
        self._first_step = [0]  # of each epoch, as far as known

    def batches(self, step: int) -> list[Batch]:
        """The micro-batches of a step, counted from 0 through all epochs; at least one, none empty.

        They hold the examples of the step in order, cut where the tokens are most evenly shared: each has at most
        1/accumulation of the tokens and one example more. There are fewer where there are too few examples.
        """
        return list(self.slices(step))

    def slices(self, step: int) -> Sequence[Batch]:
        """The same, each built when it is asked for: of several processes each asks for its own."""
        epoch, index = self.where(step)
        plan = self._planned(epoch)
        part = slice(plan.starts[index], plan.ends[index])
        cuts = _cuts(plan.lengths[part], self._accumulation)
        rows, lengths = np.split(plan.order[part], cuts), np.split(plan.lengths[part], cuts)
        return _Slices(len(rows), lambda number: _built(self._examples, rows[number], lengths[number], epoch))

    def lengths(self, step: int) -> np.ndarray:
        """Tokens of each example of a step, without building any."""
        epoch, index = self.where(step)
        plan = self._planned(epoch)
        return plan.lengths[plan.starts[index] : plan.ends[index]]

    def where(self, step: int) -> tuple[int, int]:
        """(epoch, number of the batch within it) of a step."""
        assert step >= 0, "steps count from 0"
        while self._first_step[-1] <= step:
            self._count_epoch()
        epoch = bisect_right(self._first_step, step) - 1
        return epoch, step - self._first_step[epoch]

    def steps_in_epoch(self, epoch: int) -> int:
        while len(self._first_step) <= epoch + 1:
            self._count_epoch()
        return self._first_step[epoch + 1] - self._first_step[epoch]

    def total_steps(self, epochs: float) -> int:
        """Steps of so many epochs, at least one: a part of an epoch is that part of its steps, rounded."""
        whole = int(epochs)
        steps = sum(self.steps_in_epoch(epoch) for epoch in range(whole))
        if epochs > whole:
            steps += round((epochs - whole) * self.steps_in_epoch(whole))
        return max(1, steps)

    def _count_epoch(self) -> None:
        # Epochs differ by a few batches, as the examples fall differently: an epoch's first step is known only
        # when all epochs before it are planned.
        plan = self._planned(len(self._first_step) - 1)
        self._first_step.append(self._first_step[-1] + len(plan.starts))

    def _planned(self, epoch: int) -> _Plan:
        if self._plan is None or self._plan.epoch != epoch:
            self._plan = self._make_plan(epoch)
        return self._plan

    def _make_plan(self, epoch: int) -> _Plan:
        lengths = self._examples.lengths(epoch)
        if not len(lengths):
            raise DataError(
                say("there are no examples to train on", "没有可供训练的样本"), where=f"epoch {epoch}",
                mend=say("check how many rows were kept, and the weights of the sources",
                         "请检查保留下来的行数，以及各数据源的权重"),
            )
        rng = numpy_rng(self._seed, "order", epoch)
        order = rng.permutation(len(lengths))
        if self._bucket_pool:
            shuffled = lengths[order]
            pool = (np.cumsum(shuffled) - shuffled) // (self._bucket_pool * self._batch_tokens)
            order = order[np.lexsort((shuffled, pool))]
        lengths = lengths[order]
        bounds = _filled(lengths, self._batch_tokens)
        batch = rng.permutation(len(bounds) - 1)
        return _Plan(epoch, order, lengths, bounds[batch], bounds[batch + 1])


def evaluation_batches(examples: Examples, batch_tokens: int) -> Iterator[Batch]:
    """All examples once, the longest first: what does not fit into memory fails at once.

    `Flat.rows` says which row each sequence belongs to, so that results can be put back in order.
    """
    lengths = examples.lengths(0)
    if 0 < lengths.sum() <= batch_tokens:  # a server's: numpy's sort lets other threads run, which is long here
        order = np.array(sorted(range(len(lengths)), key=lengths.tolist().__getitem__, reverse=True), np.int64)
        yield _built(examples, order, lengths, 0)
        return
    order = np.argsort(-lengths, kind="stable")
    bounds = _filled(lengths[order], batch_tokens)
    for start, end in pairwise(bounds):
        yield _built(examples, order[start:end], lengths[order[start:end]], 0)


def _built(examples: Examples, indices: np.ndarray, lengths: np.ndarray, epoch: int) -> Batch:
    batch = collate(sequence for index in indices.tolist() for sequence in examples.sequences(index, epoch))
    assert batch.num_tokens <= lengths.sum(), "an example has more tokens than lengths() said"
    return batch


def _filled(lengths: np.ndarray, batch_tokens: int) -> np.ndarray:
    """Bounds of batches, [batches + 1]: each as many examples in a row as fit; a longer example stands alone."""
    total = np.concatenate([[0], np.cumsum(lengths)])
    bounds = [0]
    while bounds[-1] < len(lengths):
        fits = int(np.searchsorted(total, total[bounds[-1]] + batch_tokens, side="right")) - 1
        bounds.append(max(fits, bounds[-1] + 1))
    return np.array(bounds)


def _cuts(lengths: np.ndarray, parts: int) -> np.ndarray:
    """Where to cut a run of examples into at most `parts` parts of about equal tokens: at the examples' middles."""
    ends = np.cumsum(lengths)
    part = (2 * ends - lengths) * parts // (2 * ends[-1])
    return np.flatnonzero(np.diff(part)) + 1
