"""Objectives: what training minimises, as plain functions from a model and a batch to terms.

In: a model and a Batch. Out: `Term`s, each a *sum* over its items; the loop divides by the count of the whole
global step, so that micro-batches with few or many targets weigh each item alike. `counts` reads the batch
alone, before the forward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wenmo.data.sequence import SOURCE, TARGET, Batch, Flat
from wenmo.errors import RecipeError, say
from wenmo.models import LanguageModel, classify
from wenmo.nn.cross_entropy import IGNORED, linear_cross_entropy

SPARSE = 0.5  # below this share of positions with a target, gathering them first costs less than the head on all


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


def language_modeling(*, next_sentence: bool = False, label_smoothing: float = 0.0) -> Objective:
    """Cross-entropy at every position with a target: masked, next-token or any other prediction of tokens.

    The batch says what is to be predicted where: tokens["targets"], -100 elsewhere. Masked LM: -Σ log P(x_i | x');
    causal LM: -Σ log P(x_i | x_<i). With `next_sentence`, values["is_random"] is a second term (Devlin et al. 2019).
    """

    def counts(batch: Batch) -> dict[str, float]:
        result = {"tokens": float((batch.text.tokens["targets"] != IGNORED).sum())}
        if next_sentence:
            result["next_sentence"] = float((batch.text.values["is_random"] != IGNORED).sum())
        return result

    def terms(model: LanguageModel, batch: Batch) -> list[Term]:
        flat = batch.text
        hidden_MD = hidden_of(model, flat)
        result = [Term("tokens", _cross_entropy(model, hidden_MD, flat.tokens["targets"], label_smoothing))]
        if next_sentence:
            scores_B2 = model.next_sentence(hidden_MD, flat.lengths).float()
            result.append(Term("next_sentence", F.cross_entropy(scores_B2, flat.values["is_random"], reduction="sum")))
        return result

    return Objective(counts, terms)


def sequence_to_sequence(*, label_smoothing: float = 0.0) -> Objective:
    """-Σ_t log P(y_t | y_<t, x) over the target's tokens (Sutskever et al. 2014, §2), y_<t as they are and not as the
    model would have said them (teacher forcing: Williams & Zipser 1989).

    The batch has a source and a target for each row; what the decoder reads and what it is to say stand beside each
    other in the target (ids and targets, -100 where nothing is learned). Span corruption, translation, summaries.
    """

    def counts(batch: Batch) -> dict[str, float]:
        return {"tokens": float((batch.roles[TARGET].tokens["targets"] != IGNORED).sum())}

    def terms(model: LanguageModel, batch: Batch) -> list[Term]:
        targets_M = batch.roles[TARGET].tokens["targets"]
        return [Term("tokens", _cross_entropy(model, target_hidden_of(model, batch), targets_M, label_smoothing))]

    return Objective(counts, terms)


def classification(*, class_weights: tuple[float, ...] | None = None, label_smoothing: float = 0.0,
                   r_drop: float = 0.0) -> Objective:
    """-Σ w_y log P(y | x), over Σ w_y (as torch's weighted mean): with all weights one, the plain mean.

    r_drop (Wu et al. 2021, eq. 4): in training each text is read twice, under two dropouts; both answers are learned
    from (their mean loss), and `r_drop` weighs the second term, ½ KL(P₁‖P₂) + ½ KL(P₂‖P₁), a mean over texts.
    """
    weights_C = None if class_weights is None else torch.tensor(class_weights)

    def counts(batch: Batch) -> dict[str, float]:
        labels_B = batch.text.values["label"].cpu()
        result = {"classes": float(len(labels_B) if weights_C is None else weights_C[labels_B].sum())}
        return result | ({"agreement": float(len(labels_B))} if r_drop else {})

    def terms(model: Any, batch: Batch) -> list[Term]:
        flat = batch.text
        weights = None if weights_C is None else weights_C.to(flat.ids_M.device)
        readings = 2 if r_drop and model.training else 1
        scores = [class_scores(model, flat) for _ in range(readings)]
        losses = [F.cross_entropy(scores_BC, flat.values["label"], weight=weights, reduction="sum",
                                  label_smoothing=label_smoothing) for scores_BC in scores]
        result = [Term("classes", sum(losses[1:], losses[0]) / readings)]
        if readings == 2:
            result.append(Term("agreement", _disagreement(*scores), weight=r_drop))
        return result

    return Objective(counts, terms)


def _disagreement(first_BC: Tensor, second_BC: Tensor) -> Tensor:
    """½ KL(P‖Q) + ½ KL(Q‖P), summed over the rows. RecipeError where the two can never differ."""
    if torch.equal(first_BC, second_BC):
        raise RecipeError(
            say("`r_drop` does nothing: this model has no dropout", "`r_drop` 不起作用：该模型没有 dropout"),
            where="task.r_drop", mend="model: {from: …, config: {hidden_dropout_prob: 0.1}}")
    p_BC, q_BC = first_BC.log_softmax(1), second_BC.log_softmax(1)
    return 0.5 * ((p_BC.exp() - q_BC.exp()) * (p_BC - q_BC)).sum()


def class_scores(model: LanguageModel, flat: Flat) -> Tensor:
    """The scores of the classes of a role's sequences, whichever head the model has for them: [B, C], in fp32."""
    return classify(model, hidden_of(model, flat), flat.lengths).float()


def hidden_of(model: LanguageModel, flat: Flat) -> Tensor:
    """The model's hidden states of a role's sequences, with segments where the batch has them: [M, D]."""
    segments_M = flat.tokens.get("segments")
    inputs = {} if segments_M is None else {"segments_M": segments_M}
    return model(flat.ids_M, flat.lengths, **inputs)


def target_hidden_of(model: LanguageModel, batch: Batch) -> Tensor:
    """An encoder–decoder's hidden states of the target, given source and target: [M of the target, D]."""
    source, target = batch.roles[SOURCE], batch.roles[TARGET]
    return model(source.ids_M, source.lengths, target.ids_M, target.lengths)


def _cross_entropy(model: LanguageModel, hidden_MD: Tensor, targets_M: Tensor, label_smoothing: float) -> Tensor:
    """Σ over the positions with a target of the head's -log P(target)."""
    learnt_X = (targets_M != IGNORED).nonzero().squeeze(1)
    if len(learnt_X) < SPARSE * len(targets_M):  # most positions have no target: the head sees the others alone
        hidden_MD, targets_M = hidden_MD.index_select(0, learnt_X), targets_M[learnt_X]
    weight_VD, bias_V = model.lm_output()
    return linear_cross_entropy(model.lm_features(hidden_MD), weight_VD, bias_V, targets_M, label_smoothing)
