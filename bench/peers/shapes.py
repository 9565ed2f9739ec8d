"""The shapes that training is measured at, and the ids of a step: the same for every side.

Runs in the peers' environments: torch and the standard library alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MASKED_SHARE, IGNORED = 0.15, -100


@dataclass(frozen=True)
class Shape:
    """V words, D wide, L layers, N heads over K key heads, FF inner, T tokens a sequence, B sequences a step.

    kind: "causal" (Llama, tied output) or "masked" (BERT, dropout 0.1, 15% of the tokens predicted).
    """

    kind: str
    V: int
    D: int
    L: int
    N: int
    K: int
    FF: int
    T: int
    B: int

    def flops_per_token(self, num_parameters: int) -> int:
        """6 N + 6 L T D, of a causal model: products by weights, and half of attention's T × T; backward included."""
        return 6 * num_parameters + 6 * self.L * self.T * self.D


def shape(given: dict[str, Any]) -> Shape:
    return Shape(**given)


def ids_and_labels(of: Shape, step: int) -> tuple[Tensor, Tensor]:
    """[B, T] each; a causal model's labels are the ids, which it shifts; else -100 where nothing is masked."""
    generator = torch.Generator().manual_seed(step)
    ids_BT = torch.randint(of.V, (of.B, of.T), generator=generator)
    if of.kind == "causal":
        return ids_BT, ids_BT
    chosen_BT = torch.rand((of.B, of.T), generator=generator) < MASKED_SHARE
    return ids_BT.masked_fill(chosen_BT, 3), ids_BT.masked_fill(~chosen_BT, IGNORED)
