"""What training minimises on vectors that are compared with each other: sums over pairs, or over rows.

In: vectors of length one, [B, D] a side, and what is known of the pairs. Out: fp32 scalars; no model and no batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cosine_error(a_BD: Tensor, b_BD: Tensor, target_B: Tensor) -> Tensor:
    """Σ (cos(a_i, b_i) − y_i)² (Reimers & Gurevych 2019, §3, "regression objective")."""
    return ((a_BD * b_BD).sum(1) - target_B).square().sum()


def cosent(a_BD: Tensor, b_BD: Tensor, target_B: Tensor, temperature: float) -> Tensor:
    """log(1 + Σ exp((cos_j − cos_i) / τ)) over all (i, j) with y_i > y_j: pairs are put in order (Su 2022, CoSENT).

    The targets' order alone counts, so that any scale will do.
    """
    cosine_B = (a_BD * b_BD).sum(1) / temperature
    wrong_BB = cosine_B[None] - cosine_B[:, None]  # [i, j]: how far j lies above i
    wrong_BB = wrong_BB.masked_fill(target_B[:, None] <= target_B[None], -torch.inf)
    return torch.logsumexp(torch.cat([wrong_BB.new_zeros(1), wrong_BB.flatten()]), 0)


def info_nce(anchors_BD: Tensor, candidates_KD: Tensor, forbidden_BK: Tensor, temperature: float) -> Tensor:
    """−Σ_i log(exp(cos(a_i, p_i)/τ) / Σ_k exp(cos(a_i, c_k)/τ)), where candidate i is the right one of anchor i and the
    others are its negatives (van den Oord et al. 2018, eq. 4; in batches: Henderson et al. 2017, §4.2).

    `forbidden_BK`: candidates that are no negatives of an anchor, because they say the same.
    """
    scores_BK = (anchors_BD @ candidates_KD.T / temperature).masked_fill(forbidden_BK, -torch.inf)
    right_B = torch.arange(len(anchors_BD), device=scores_BK.device)
    return F.cross_entropy(scores_BK, right_B, reduction="sum")


def same_texts(a_B: Tensor, b_B: Tensor, candidates_K: Tensor) -> Tensor:
    """Which candidates are no negatives of which row, [B, K]: the row's own text, and whatever stands beside that text
    in any row. All are keys of texts; the first B candidates are the rows' own answers, each of which stays."""
    different_U, a_at_B = torch.unique(a_B, return_inverse=True)
    different_V, at = torch.unique(torch.cat([b_B, candidates_K]), return_inverse=True)
    b_at_B, candidates_at_K = at[: len(b_B)], at[len(b_B) :]
    together_UV = torch.zeros(len(different_U), len(different_V), dtype=torch.bool, device=a_B.device)
    together_UV[a_at_B, b_at_B] = True
    forbidden_BK = together_UV[a_at_B][:, candidates_at_K] | (candidates_K[None] == a_B[:, None])
    own_B = torch.arange(len(a_B), device=a_B.device)
    forbidden_BK[own_B, own_B] = False
    return forbidden_BK
