"""Losses computed a second time, plainly, from the model's scores: what an objective is held against.

In: a Subject and a batch. Out: the mean over the real targets, written out with log-probabilities and sums, one target
after the other; None for a task whose loss is not a mean over targets. Nothing here is shared with objectives.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wenmo.data.sequence import TARGET, TEXT, Batch, Flat
from wenmo.errors import say
from wenmo.models import classify, logits
from wenmo.nn.cross_entropy import IGNORED
from wenmo.objectives import hidden_of, target_hidden_of
from wenmo.plan.checks import Subject

MASKED_AT_LEAST = 0.4  # of the predicted tokens stand as the mask: 80% by the published rule


def loss_by_hand(subject: Subject, batch: Batch) -> float | None:
    """The mean over real targets. Without labels smoothed or classes weighed: Σ −log P(target) / their number."""
    settings: Any = subject.task.settings
    kind = settings.type
    smoothing = float(getattr(settings, "label_smoothing", 0.0))
    model = subject.model
    if TARGET in batch.roles and "seq2seq_lm" in model.heads:
        flat = batch.roles[TARGET]
        return _cross_entropy(logits(model, target_hidden_of(model, batch)), flat.tokens["targets"], smoothing)
    if TEXT not in batch.roles or (kind == "tagging" and settings.crf):
        return None
    flat, values = batch.text, batch.text.values
    if {"causal_lm", "masked_lm"} & set(model.heads) and "targets" in flat.tokens:
        hidden_MD = hidden_of(model, flat)
        loss = _cross_entropy(logits(model, hidden_MD), flat.tokens["targets"], smoothing)
        if "is_random" in values:
            loss += _cross_entropy(model.next_sentence(hidden_MD, flat.lengths).float(), values["is_random"], 0.0)
        return loss
    if kind == "tagging":
        return _cross_entropy(model.tag(hidden_of(model, flat)).float(), flat.tokens["targets"], smoothing)
    if kind == "span_qa":
        return _spans(subject, flat)
    if kind not in ("classification", "regression", "multi_label"):
        return None
    scores_BC = classify(model, hidden_of(model, flat), flat.lengths).float()
    weights = getattr(subject.task, "weights", None)
    if kind == "classification":
        return _cross_entropy(scores_BC, values["label"], smoothing, weights)
    if kind == "multi_label":
        yes_BC, chance_BC = values["labels"].double(), torch.sigmoid(scores_BC.double())
        weight_C = torch.ones(scores_BC.shape[1]) if weights is None else torch.tensor(weights)
        log_yes, log_no = torch.log(chance_BC), torch.log(1 - chance_BC)
        return float(-(weight_C.to(yes_BC) * yes_BC * log_yes + (1 - yes_BC) * log_no).mean())
    errors_B = (scores_BC[:, 0] - values["score"].float()).abs()
    if settings.loss == "mse":
        return float((errors_B ** 2).mean())
    if settings.loss == "mae":
        return float(errors_B.mean())
    delta = 1.0 if settings.delta is None else settings.delta
    return float(torch.where(errors_B <= delta, errors_B ** 2 / 2, delta * (errors_B - delta / 2)).mean())


def _cross_entropy(scores_XV: Tensor, targets_X: Tensor, smoothing: float, weights: Sequence[float] | None = None,
                   ) -> float:
    """(1 − ε) · −log P(target) + ε · the mean over all of −log P; classes weighed as torch does it."""
    real_X = targets_X != IGNORED
    log_XV = torch.log_softmax(scores_XV[real_X].double(), dim=-1)
    said_X = targets_X[real_X]
    weight_V = torch.ones(scores_XV.shape[-1], dtype=torch.float64, device=said_X.device)
    if weights is not None:
        weight_V = torch.tensor(weights, dtype=torch.float64, device=said_X.device)
    own_X = -log_XV.gather(1, said_X[:, None])[:, 0] * weight_V[said_X]
    all_X = -(log_XV * weight_V).mean(-1)
    return float(((1 - smoothing) * own_X + smoothing * all_X).sum() / weight_V[said_X].sum())


def _spans(subject: Subject, flat: Flat) -> float | None:
    """−½ (log P(first) + log P(last)), each among the tokens that may be chosen, sequence by sequence."""
    scores_M2 = subject.model.spans(hidden_of(subject.model, flat)).double()
    total, number, at = 0.0, 0, 0
    for index, length in enumerate(flat.lengths):
        ends = [int(flat.values[name][index]) for name in ("start", "end")]
        if ends[0] != IGNORED:
            possible = [place for place in range(length) if place == 0 or int(flat.tokens["begins"][at + place]) >= 0]
            for column, place in enumerate(ends):
                log_X = torch.log_softmax(scores_M2[[at + each for each in possible], column], dim=0)
                total -= float(log_X[possible.index(place)]) / 2
            number += 1
        at += length
    return total / number if number else None


def misplaced(subject: Subject, batch: Batch) -> str:
    """What is wrong with where the targets stand (a shift by one, a target in the open); empty where nothing is."""
    heads = set(subject.model.heads)
    role = TARGET if "seq2seq_lm" in heads else TEXT
    if role not in batch.roles or "targets" not in batch.roles[role].tokens:
        return ""
    flat = batch.roles[role]
    ids, targets = (torch.split(each.cpu(), list(flat.lengths)) for each in (flat.ids_M, flat.tokens["targets"]))
    if {"causal_lm", "seq2seq_lm"} & heads:
        for ids_T, targets_T in zip(ids, targets, strict=True):
            told = targets_T[:-1] != IGNORED
            if bool((targets_T[:-1][told] != ids_T[1:][told]).any()):
                return say("a target is not the token that follows: labels are shifted by more or less than one",
                           "目标不是紧接着的词元：标签错位")
    elif "masked_lm" in heads:
        mask = subject.tokenizer.control["mask"]
        ids_M, targets_M = torch.cat(ids), torch.cat(targets)
        told = targets_M != IGNORED
        if bool((ids_M[~told] == mask).any()):
            return say("a masked token has no target", "被掩盖的词元没有目标")
        if int(told.sum()) >= 20 and float((ids_M[told] == mask).float().mean()) < MASKED_AT_LEAST:
            return say("most targets stand where nothing is masked: the model can read them off",
                       "多数目标处并未掩盖：模型可以直接读到答案")
    return ""
