"""A linear-chain conditional random field over the tags of a sentence (Lafferty et al. 2001; Lample et al. 2016, §2.2).

In: scores of the tags of each word, end to end, sentence after sentence. Out: log-likelihoods of tag sequences, summed
over all possible ones by the forward algorithm; and the best sequence, by Viterbi's. Sums in fp32, in logarithms.

    s(x, y) = start[y₁] + Σ_t emission[t, y_t] + Σ_t transition[y_{t−1}, y_t] + end[y_n]
    log P(y | x) = s(x, y) − log Σ_y' exp s(x, y')

`Rules` say which tags may begin, follow each other and end; what they forbid has no probability.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

FORBIDDEN = -1e4  # a score below every other; −∞ would make gradients of what is forbidden NaN
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Rules:
    """Scores to be added, 0 where something is allowed and FORBIDDEN where not: `transitions` [C, C] from the tag of
    the row to that of the column, `start` [C], `end` [C]."""

    transitions: Floats
    start: Floats
    end: Floats

    @classmethod
    def of(cls, tags: Sequence[str], may_follow: Callable[[str | None, str | None], bool]) -> Rules:
        """`may_follow(before, after)`, where None is the beginning or the end."""
        def scores(allowed: list[bool]) -> Floats:
            return np.where(allowed, 0.0, FORBIDDEN).astype(np.float32)

        between = [may_follow(before, after) for before in tags for after in tags]
        return cls(scores(between).reshape(len(tags), len(tags)), scores([may_follow(None, tag) for tag in tags]),
                   scores([may_follow(tag, None) for tag in tags]))

    def plus(self, other: Rules) -> Rules:
        return Rules(self.transitions + other.transitions, self.start + other.start, self.end + other.end)


class CRF(nn.Module):
    """The learned part: transitions [C, C], start [C] and end [C], all zero at first."""

    def __init__(self, num_tags: int) -> None:
        super().__init__()
        self.transitions = nn.Parameter(torch.zeros(num_tags, num_tags))
        self.start = nn.Parameter(torch.zeros(num_tags))
        self.end = nn.Parameter(torch.zeros(num_tags))

    def log_likelihood(self, emissions_MC: Tensor, tags_M: Tensor, lengths: Sequence[int], rules: Rules,
                       whole: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """log P(tags) of each sentence, [B]. `whole`: for each chain whether the sentence begins and whether it ends in
        it ([B] each), where long sentences come in pieces; scores of beginning and end count only there."""
        emissions_MC = emissions_MC.float()
        device = emissions_MC.device
        begins_B, ends_B = whole or (torch.ones(len(lengths), device=device),) * 2
        start_BC = begins_B[:, None] * (self.start.float() + torch.from_numpy(rules.start).to(device))
        end_BC = ends_B[:, None] * (self.end.float() + torch.from_numpy(rules.end).to(device))
        between_CC = self.transitions.float() + torch.from_numpy(rules.transitions).to(device)

        lengths_B = torch.tensor(lengths, device=device)
        place_BT = torch.arange(max(lengths), device=device).expand(len(lengths), -1)
        real_BT = place_BT < lengths_B[:, None]
        flat_BT = ((lengths_B.cumsum(0) - lengths_B)[:, None] + place_BT.clamp(max=int(lengths_B.max()) - 1))
        flat_BT = torch.where(real_BT, flat_BT, 0)
        emissions_BTC, tags_BT = emissions_MC[flat_BT], tags_M[flat_BT]

        rows_B = torch.arange(len(lengths), device=device)
        alpha_BC = start_BC + emissions_BTC[:, 0]
        score_B = alpha_BC[rows_B, tags_BT[:, 0]]
        for t in range(1, emissions_BTC.shape[1]):
            going_on_B = real_BT[:, t]
            summed_BC = torch.logsumexp(alpha_BC[:, :, None] + between_CC, dim=1) + emissions_BTC[:, t]
            alpha_BC = torch.where(going_on_B[:, None], summed_BC, alpha_BC)
            step_B = between_CC[tags_BT[:, t - 1], tags_BT[:, t]] + emissions_BTC[rows_B, t, tags_BT[:, t]]
            score_B = score_B + torch.where(going_on_B, step_B, 0.0)
        last_B = tags_M[lengths_B.cumsum(0) - 1]
        score_B = score_B + end_BC[rows_B, last_B]
        return score_B - torch.logsumexp(alpha_BC + end_BC, dim=1)

    def rules(self) -> Rules:
        """What it has learned, as scores to be added to those that forbid."""
        return Rules(*(parameter.detach().float().cpu().numpy() for parameter in
                       (self.transitions, self.start, self.end)))


def viterbi(emissions_UC: Floats, rules: Rules) -> list[int]:
    """The tags of the best sequence of a sentence of U words (Viterbi 1967). Of equals the lower number."""
    best_C = rules.start + emissions_UC[0]
    came_from = []
    for emission_C in emissions_UC[1:]:
        reached_CC = best_C[:, None] + rules.transitions
        from_C = reached_CC.argmax(0)
        came_from.append(from_C)
        best_C = reached_CC[from_C, np.arange(len(from_C))] + emission_C
    path = [int((best_C + rules.end).argmax())]
    for from_C in reversed(came_from):
        path.append(int(from_C[path[-1]]))
    return path[::-1]
