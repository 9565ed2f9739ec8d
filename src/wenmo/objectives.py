"""Objectives: what training minimises, as plain functions from a model and a batch to terms.

In: a model and a Batch. Out: `Term`s, each a *sum* over its items; the loop divides by the count of the whole
global step, so that micro-batches with few or many targets weigh each item alike. `counts` reads the batch
alone, before the forward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from wenmo.data.sequence import SOURCE, TARGET, Batch, Flat
from wenmo.models import LanguageModel, classify
from wenmo.nn.crf import Rules
from wenmo.nn.cross_entropy import IGNORED, linear_cross_entropy
from wenmo.nn.padding import positions_of

IMPOSSIBLE = -1e9  # a score whose softmax is 0; not -inf, whose difference to itself is no number
SPARSE = 0.5  # below this share of positions with a target, gathering them first costs less than the head on all


@dataclass(frozen=True, slots=True)
class Term:
    """One part of the loss: `sum` (a scalar tensor) over the items; the loss is Σ weight · sum / count.

    `scores`, where a term has them: what the decisions were made by, one a line, for regularisers that compare two
    readings (training/regularisers.py): [X, C] before the softmax, or [X, 1], numbers.
    """

    name: str
    sum: Tensor
    weight: float = 1.0
    scores: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Coupled:
    """The two halves of `terms` where the rows of a batch are compared with each other: what a model makes of each
    (role → [B, …]), and the comparison, which needs no model. So a step in several micro-batches can still compare all
    of its rows."""

    represent: Callable[[Any, Batch], dict[str, Tensor]]
    compare: Callable[[Mapping[str, Tensor], Batch], list[Term]]


@dataclass(frozen=True, slots=True)
class Objective:
    """`counts(batch)` → {term name: number of items}; `terms(model, batch)` → the sums over them.

    `coupled`, where a row's loss depends on the rows beside it (contrastive losses); None where it does not.
    """

    counts: Callable[[Batch], dict[str, float]]
    terms: Callable[[Any, Batch], list[Term]]
    coupled: Coupled | None = None


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


def classification(*, class_weights: tuple[float, ...] | None = None, label_smoothing: float = 0.0) -> Objective:
    """-Σ w_y log P(y | x), over Σ w_y (as torch's weighted mean): with all weights one, the plain mean."""
    weights_C = None if class_weights is None else torch.tensor(class_weights)

    def counts(batch: Batch) -> dict[str, float]:
        labels_B = batch.text.values["label"].cpu()
        return {"classes": float(len(labels_B) if weights_C is None else weights_C[labels_B].sum())}

    def terms(model: LanguageModel, batch: Batch) -> list[Term]:
        flat = batch.text
        weights = None if weights_C is None else weights_C.to(flat.ids_M.device)
        scores_BC = class_scores(model, flat)
        loss = F.cross_entropy(scores_BC, flat.values["label"], weight=weights, reduction="sum",
                               label_smoothing=label_smoothing)
        return [Term("classes", loss, scores=scores_BC)]

    return Objective(counts, terms)


def regression(loss: Literal["mse", "mae", "huber"], delta: float) -> Objective:
    """Σ (ŷ − y)², Σ |ŷ − y|, or Huber's Σ ½e² up to |e| = δ and δ(|e| − ½δ) beyond (Huber 1964, §4), over the rows.

    The batch has values["score"]; ŷ is the one output of the classification head.
    """

    def counts(batch: Batch) -> dict[str, float]:
        return {"scores": float(len(batch.text.lengths))}

    def terms(model: LanguageModel, batch: Batch) -> list[Term]:
        predicted_B, score_B = class_scores(model, batch.text)[:, 0], batch.text.values["score"].float()
        if loss == "huber":
            error = F.huber_loss(predicted_B, score_B, reduction="sum", delta=delta)
        else:
            error = (F.mse_loss if loss == "mse" else F.l1_loss)(predicted_B, score_B, reduction="sum")
        return [Term("scores", error, scores=predicted_B[:, None])]

    return Objective(counts, terms)


def multi_label(pos_weight: tuple[float, ...] | None = None) -> Objective:
    """Σ over rows and labels of -w_c y log σ(s) - (1 - y) log(1 - σ(s)): each label a yes or no of its own.

    The batch has values["labels"], [B, C] of ones and zeros; w_c weighs the rows that have the label.
    """
    weight_C = None if pos_weight is None else torch.tensor(pos_weight)

    def counts(batch: Batch) -> dict[str, float]:
        return {"labels": float(batch.text.values["labels"].numel())}

    def terms(model: LanguageModel, batch: Batch) -> list[Term]:
        scores_BC = class_scores(model, batch.text)
        weight = None if weight_C is None else weight_C.to(scores_BC.device)
        loss = F.binary_cross_entropy_with_logits(scores_BC, batch.text.values["labels"].float(), pos_weight=weight,
                                                  reduction="sum")
        yes_or_no_X2 = F.pad(scores_BC.reshape(-1, 1), (0, 1))  # σ(s) is the softmax of s and 0
        return [Term("labels", loss, scores=yes_or_no_X2)]

    return Objective(counts, terms)


def span_selection() -> Objective:
    """-½ (log P(s) + log P(e)) of a span's first and last token, over the sequences (Devlin et al. 2019, §4.2).

    The batch has values["start"] and ["end"], places in the sequence; see `span_log_probabilities` for which there are.
    """

    def counts(batch: Batch) -> dict[str, float]:
        return {"spans": float((batch.text.values["start"] != IGNORED).sum())}

    def terms(model: LanguageModel, batch: Batch) -> list[Term]:
        flat = batch.text
        scores_BT2 = _span_scores(model, flat)
        learnt_X = (flat.values["start"] != IGNORED).nonzero().squeeze(1)
        targets_X2 = torch.stack([flat.values["start"], flat.values["end"]], dim=1)[learnt_X]
        scores_X2T = scores_BT2[learnt_X].transpose(1, 2)
        loss = F.cross_entropy(scores_X2T.flatten(0, 1), targets_X2.flatten(), reduction="sum")
        return [Term("spans", loss / 2, scores=scores_X2T.flatten(0, 1))]

    return Objective(counts, terms)


def span_log_probabilities(model: LanguageModel, flat: Flat) -> Tensor:
    """log P(begins here), log P(ends here) at each token: [M, 2] in fp32, each a softmax over its sequence.

    Only tokens with tokens["begins"] ≥ 0 and the first of the sequence ("not here") can be chosen; others have next to
    nothing.
    """
    scores_BT2 = _span_scores(model, flat)
    lengths_B = torch.tensor(flat.lengths, device=scores_BT2.device)
    real_BT = torch.arange(scores_BT2.shape[1], device=scores_BT2.device) < lengths_B[:, None]
    return scores_BT2.log_softmax(1)[real_BT]


def _span_scores(model: LanguageModel, flat: Flat) -> Tensor:
    """Scores of first and last token, [B, T, 2] in fp32; IMPOSSIBLE where there is no choice."""
    positions_M = positions_of(flat.lengths, flat.ids_M.device)
    scores_M2 = model.spans(hidden_of(model, flat)).float()
    possible_M = (flat.tokens["begins"] >= 0) | (positions_M == 0)
    parts = torch.split(scores_M2.masked_fill(~possible_M[:, None], IMPOSSIBLE), list(flat.lengths))
    return pad_sequence(list(parts), batch_first=True, padding_value=IMPOSSIBLE)


def tagging(rules: Rules | None = None, label_smoothing: float = 0.0) -> Objective:
    """A tag for each word: tokens["targets"] is its number at the word's token, -100 at those not learned from.

    Without `rules` -Σ log P(y_t | x), each tag by itself. With them −Σ log P(y | x) of whole sequences by the model's
    CRF (nn/crf.py), among those that the rules allow; values["begins"] and ["ends"] say whether the sentence does so in
    this window. Both count words, so that losses compare.
    """

    def counts(batch: Batch) -> dict[str, float]:
        return {"tags": float((batch.text.tokens["targets"] != IGNORED).sum())}

    def terms(model: Any, batch: Batch) -> list[Term]:
        flat = batch.text
        targets_M = flat.tokens["targets"]
        learnt_M = targets_M != IGNORED
        scores_XC = model.tag(hidden_of(model, flat))[learnt_M].float()
        targets_X = targets_M[learnt_M]
        if rules is None:
            loss = F.cross_entropy(scores_XC, targets_X, reduction="sum", label_smoothing=label_smoothing)
            return [Term("tags", loss, scores=scores_XC)]
        lengths = [int(part.sum()) for part in torch.split(learnt_M, list(flat.lengths))]
        whole = flat.values["begins"].float(), flat.values["ends"].float()
        return [Term("tags", -model.crf.log_likelihood(scores_XC, targets_X, lengths, rules, whole).sum())]

    return Objective(counts, terms)


def class_scores(model: LanguageModel, flat: Flat) -> Tensor:
    """The scores of the classes of a role's sequences, whichever head the model has for them: [B, C], in fp32."""
    first_states = getattr(model, "first_states", None)  # where that is all the head reads (engine/encoder.py)
    states_BD = None if first_states is None else first_states(flat.ids_M, flat.lengths, flat.tokens.get("segments"))
    if states_BD is not None:
        return classify(model, states_BD, (1,) * len(states_BD)).float()
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
