"""Regularisers of any objective: R-Drop and adversarial embeddings.

In: an Objective. Out: an Objective whose terms, in training, say more; in evaluation they are what they were. The loop
and the tasks know nothing of it. (Penalties on the weights themselves act where the weights change: `Start` of
optimizer.py, in loop.py.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from wenmo.config import Fraction, Settings
from wenmo.data.sequence import Batch
from wenmo.errors import RecipeError, say
from wenmo.objectives import Objective, Term

AGREEMENT, ADVERSARIAL = "agreement", "adversarial"  # added to the names of terms


class RegulariserSettings(Settings):
    """`r_drop`: how much two readings of a text under different dropouts must agree. `adversarial`: how far the word
    embeddings are moved against the loss, as a share of their norm. Each costs a second forward and backward."""

    r_drop: float = Field(0.0, ge=0, allow_inf_nan=False)
    adversarial: Fraction = 0.0


def regularised(objective: Objective, settings: RegulariserSettings) -> Objective:
    """The objective with what the settings ask for. RecipeError where it cannot have it."""
    asked = [name for name, value in settings if name in RegulariserSettings.model_fields and value]
    if asked and objective.coupled is not None:
        raise RecipeError(
            say(f"`{asked[0]}` does nothing here: the rows of a batch are learned from together",
                f"`{asked[0]}` 在此不起作用：一批中的各行是一起学习的"), where=f"train.{asked[0]}",
            mend=say("take it out", "请去掉它"))
    if settings.r_drop:
        objective = r_drop(objective, settings.r_drop)
    return adversarial(objective, settings.adversarial) if settings.adversarial else objective


# R-Drop -----------------------------------------------------------------------------------------------


def r_drop(objective: Objective, weight: float) -> Objective:
    """Each batch is read twice, under two dropouts (Wu et al. 2021, eq. 4): both answers are learned from (their mean
    loss), and `weight` weighs ½ KL(P₁‖P₂) + ½ KL(P₂‖P₁), over the decisions as the term itself counts them.

    Of numbers (regression) it is ½ (ŷ₁ − ŷ₂)², the same of two normal distributions with variance 1. It acts on the
    terms that give their `scores`. Costs a second forward and backward.
    """

    def counts(batch: Batch) -> dict[str, float]:
        own = objective.counts(batch)
        return own | {f"{name}_{AGREEMENT}": count for name, count in own.items()}

    def terms(model: Any, batch: Batch) -> list[Term]:
        first = objective.terms(model, batch)
        if not model.training:
            return first
        second = objective.terms(model, batch)
        pairs = list(zip(first, second, strict=True))
        agreements = [Term(f"{a.name}_{AGREEMENT}", _disagreement(a.scores, b.scores), a.weight * weight)
                      for a, b in pairs if a.scores is not None and b.scores is not None]
        if not agreements:
            raise RecipeError(
                say("`r_drop` does nothing: what this task learns has no scores to compare",
                    "`r_drop` 不起作用：该任务的学习目标没有可比较的分数"), where="train.r_drop",
                mend=say("take it out", "请去掉它"))
        return [replace(a, sum=(a.sum + b.sum) / 2) for a, b in pairs] + agreements

    return replace(objective, counts=counts, terms=terms)


def _disagreement(first_XC: Tensor, second_XC: Tensor) -> Tensor:
    """½ KL(P‖Q) + ½ KL(Q‖P), summed over the decisions, or numbers. RecipeError where the two can never differ."""
    if first_XC.numel() and torch.equal(first_XC, second_XC):
        raise RecipeError(
            say("`r_drop` does nothing: this model has no dropout", "`r_drop` 不起作用：该模型没有 dropout"),
            where="train.r_drop", mend="model: {from: …, config: {hidden_dropout_prob: 0.1}}")
    if first_XC.shape[-1] == 1:
        return 0.5 * (first_XC - second_XC).square().sum()
    p_XC, q_XC = first_XC.log_softmax(-1), second_XC.log_softmax(-1)
    return 0.5 * ((p_XC.exp() - q_XC.exp()) * (p_XC - q_XC)).sum()


# Adversarial embeddings -------------------------------------------------------------------------------


def adversarial(objective: Objective, size: float) -> Objective:
    """Beside each loss the same on embeddings that were moved where it grows fastest (Miyato et al. 2017, eq. 5–6):

        r = ε ‖s‖ g / ‖g‖,  g = ∂L/∂s,  s the word embeddings of one whole sequence

    `size` is ε, a share of the sequence's own norm: so it means the same for every model (there the embeddings are
    normalised instead). Costs a second forward, and a backward to the embeddings and one through all.
    """

    def counts(batch: Batch) -> dict[str, float]:
        own = objective.counts(batch)
        return own | {f"{name}_{ADVERSARIAL}": count for name, count in own.items()}

    def terms(model: Any, batch: Batch) -> list[Term]:
        if not model.training:
            return objective.terms(model, batch)
        lengths = {id(flat.ids_M): flat.lengths for flat in batch.roles.values()}
        seen: list[tuple[Tensor, Sequence[int]]] = []

        def remember(words_MD: Tensor, ids_M: Tensor) -> Tensor:
            words_MD = words_MD if words_MD.requires_grad else words_MD.detach().requires_grad_()  # a frozen table
            seen.append((words_MD, lengths[id(ids_M)]))
            return words_MD

        with _word_embeddings(model, lengths, remember):
            plain = objective.terms(model, batch)
        moves = iter(_moves(seen, _loss(plain, counts(batch)), size))
        with _word_embeddings(model, lengths, lambda words_MD, _: words_MD + next(moves)):
            moved = objective.terms(model, batch)
        return plain + [Term(f"{term.name}_{ADVERSARIAL}", term.sum, term.weight) for term in moved]

    return replace(objective, counts=counts, terms=terms)


@contextmanager
def _word_embeddings(model: nn.Module, lengths: Mapping[int, Sequence[int]],
                     change: Callable[[Tensor, Tensor], Tensor]) -> Iterator[None]:
    """Inside it, what a table of embeddings gives for the ids of a batch goes through `change(words_MD, ids_M)`.

    Tables of positions and segments are asked other tensors than the batch's ids.
    """
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return change(output, inputs[0]) if id(inputs[0]) in lengths else output

    handles = [module.register_forward_hook(hook) for module in model.modules() if isinstance(module, nn.Embedding)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _loss(terms: Sequence[Term], counts: Mapping[str, float]) -> Tensor:
    """The loss of the micro-batch by itself: it only gives directions."""
    parts = [term.weight * term.sum / counts[term.name] for term in terms if counts[term.name]]
    return torch.stack(parts).sum() if parts else torch.stack([0 * term.sum for term in terms]).sum()


def _moves(seen: Sequence[tuple[Tensor, Sequence[int]]], loss: Tensor, size: float) -> list[Tensor]:
    """r of each sequence, end to end like the embeddings. RecipeError where the loss depends on no embedding."""
    words = [words_MD for words_MD, _ in seen]
    gradients = torch.autograd.grad(loss, words, retain_graph=True, allow_unused=True) if words else ()
    if all(gradient is None for gradient in gradients):
        raise RecipeError(
            say("`adversarial` does nothing: what is learned does not reach the word embeddings",
                "`adversarial` 不起作用：学习目标的梯度到不了词向量"), where="train.adversarial",
            mend=say("take it out", "请去掉它"))
    return [torch.zeros_like(words_MD) if gradient_MD is None else _move(words_MD.detach(), gradient_MD, lengths, size)
            for (words_MD, lengths), gradient_MD in zip(seen, gradients, strict=True)]


def _move(words_MD: Tensor, gradient_MD: Tensor, lengths: Sequence[int], size: float) -> Tensor:
    device = words_MD.device
    numbers_M = torch.repeat_interleave(torch.arange(len(lengths), device=device), torch.tensor(lengths, device=device))

    def norms(values_MD: Tensor) -> Tensor:
        squares_M = values_MD.float().square().sum(1)
        return torch.zeros(len(lengths), device=device).index_add_(0, numbers_M, squares_M).sqrt()

    gradient_norms_B = norms(gradient_MD)
    scale_B = torch.where(gradient_norms_B > 0, size * norms(words_MD) / gradient_norms_B, 0.0)
    return gradient_MD * scale_B[numbers_M, None].to(gradient_MD.dtype)
