"""Pooling: the hidden states of a text's tokens → one vector for the text.

In: flat tokens and the lengths of the sequences. Out: [B, D], in fp32 whatever the activations' format.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from wenmo.nn.padding import starts_of

Pooling = Literal["mean", "cls", "max", "last"]


def pooled(hidden_MD: Tensor, lengths: Sequence[int], pooling: Pooling) -> Tensor:
    """The mean over all tokens, control tokens included (Reimers & Gurevych 2019, §3), or the largest value of each
    feature (`max`); or the state of the first token (`cls`), or of the last (`last`: a causal model's last token alone
    has seen the whole text)."""
    hidden_MD = hidden_MD.float()
    if pooling in ("cls", "last"):
        at_B = starts_of(lengths) if pooling == "cls" else torch.tensor(lengths).cumsum(0) - 1
        return hidden_MD.index_select(0, at_B.to(hidden_MD.device))
    parts = torch.split(hidden_MD, list(lengths))
    return torch.stack([part.mean(0) if pooling == "mean" else part.amax(0) for part in parts])


def unit(vectors_BD: Tensor) -> Tensor:
    """Of length one, so that a product of two is the cosine of the angle between them."""
    return F.normalize(vectors_BD, dim=-1)
