"""Objectives: what training minimises, as plain functions from a model and a batch to terms.

In: a model and a Batch. Out: `Term`s, each a *sum* over its items; the loop divides by the count of the whole
global step, so that micro-batches with few or many targets weigh each item alike. `counts` reads the batch
alone, before the forward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from wenmo.data.sequence import Batch


@dataclass(frozen=True, slots=True)
class Term:
    """One part of the loss: `sum` (a scalar tensor) over the items; the loss is Σ weight · sum / count."""

    name: str
    sum: Tensor
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Objective:
    """`counts(batch)` → {term name: number of items}; `terms(model, batch)` → the sums over them."""

    counts: Callable[[Batch], dict[str, float]]
    terms: Callable[[Any, Batch], list[Term]]
