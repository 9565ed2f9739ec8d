"""Regularisers of any objective, and decay towards the starting weights, against their formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tiny_training import CPU, OBJECTIVE, Tiny, micro_batches
from wenmo.data.sequence import SOURCE, TARGET, Batch, Sequence, collate
from wenmo.errors import RecipeError
from wenmo.models import create
from wenmo.models.bert import BertConfig
from wenmo.models.t5 import T5Config
from wenmo.objectives import (
    Objective,
    Term,
    class_scores,
    classification,
    language_modeling,
    multi_label,
    regression,
    sequence_to_sequence,
)
from wenmo.training.groups import GroupSettings
from wenmo.training.loop import LoopSettings, steps
from wenmo.training.optimizer import AdamW, Sgd, Start, build
from wenmo.training.regularisers import RegulariserSettings, adversarial, r_drop, regularised

SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
         "max_position_embeddings": 20}


def model_with(dropout: float, **heads: int) -> Any:
    config = BertConfig(**SIZES, hidden_dropout_prob=dropout, attention_probs_dropout_prob=0)
    return create(config, heads or {"classification": 3}, torch.Generator().manual_seed(0)).train()


def rows(number: int = 5) -> Batch:
    rng = np.random.default_rng(0)
    return collate(Sequence(i, {"ids": rng.integers(5, 50, 4 + i)}, {"label": i % 3}) for i in range(number))


# R-Drop -----------------------------------------------------------------------------------------------


def test_two_readings_that_should_agree() -> None:
    """Wu et al. 2021, eq. 4, from the two readings themselves."""
    model, batch = model_with(0.3), rows()
    objective = r_drop(classification(), 0.7)
    torch.manual_seed(1)
    terms = {term.name: term for term in objective.terms(model, batch)}
    torch.manual_seed(1)
    first, second = (class_scores(model, batch.text) for _ in range(2))
    p, q = first.softmax(1), second.softmax(1)
    labels = batch.text.values["label"]
    losses = F.cross_entropy(first, labels, reduction="sum") + F.cross_entropy(second, labels, reduction="sum")
    divergence = (p * (p / q).log()).sum() + (q * (q / p).log()).sum()
    torch.testing.assert_close(terms["classes"].sum, losses / 2)
    torch.testing.assert_close(terms["classes_agreement"].sum, divergence / 2)
    assert terms["classes_agreement"].weight == 0.7
    assert objective.counts(batch) == {"classes": 5.0, "classes_agreement": 5.0}
    assert [term.name for term in objective.terms(model.eval(), batch)] == ["classes"]


def test_numbers_and_labels_agree_too() -> None:
    """Two readings of a number: their squared difference; of labels: the divergence of each yes or no."""
    model = model_with(0.3, classification=1)
    batch = collate(Sequence(i, {"ids": np.arange(5, 9 + i)}, {"score": float(i)}) for i in range(5))
    torch.manual_seed(1)
    terms = {term.name: term for term in r_drop(regression("mse", 1.0), 0.5).terms(model, batch)}
    torch.manual_seed(1)
    first, second = (class_scores(model, batch.text) for _ in range(2))
    torch.testing.assert_close(terms["scores_agreement"].sum, (first - second).square().sum() / 2)

    model = model_with(0.3)
    batch = collate(Sequence(i, {"ids": np.arange(5, 9 + i)}, {"labels": np.array([1.0, 0, i % 2], np.float32)})
                    for i in range(5))
    torch.manual_seed(1)
    terms = {term.name: term for term in r_drop(multi_label(), 0.5).terms(model, batch)}
    torch.manual_seed(1)
    p, q = (class_scores(model, batch.text).sigmoid() for _ in range(2))
    divergence = sum((a * (a / b).log() + (1 - a) * ((1 - a) / (1 - b)).log()).sum() for a, b in ((p, q), (q, p)))
    torch.testing.assert_close(terms["labels_agreement"].sum, divergence / 2)
    assert r_drop(multi_label(), 0.5).counts(batch) == {"labels": 15.0, "labels_agreement": 15.0}


def test_readings_that_cannot_differ_are_refused() -> None:
    with pytest.raises(RecipeError, match="no dropout"):
        r_drop(classification(), 1.0).terms(model_with(0.0), rows())


def test_an_objective_without_scores_is_refused() -> None:
    batch = collate(Sequence(i, {"ids": np.arange(6), "targets": np.arange(6)}) for i in range(2))
    with pytest.raises(RecipeError, match="no scores to compare"):
        r_drop(language_modeling(), 1.0).terms(model_with(0.1, masked_lm=0), batch)


# Adversarial embeddings -------------------------------------------------------------------------------


def test_embeddings_move_where_the_loss_grows() -> None:
    """Miyato et al. 2017, eq. 5–6, with embeddings put in by hand; each sequence has its own step."""
    model, batch = model_with(0.0), rows()
    table, flat = model.bert.embeddings.word_embeddings, batch.text
    words = table(flat.ids_M).detach().requires_grad_()

    def loss_of(embeddings: Tensor) -> Tensor:
        scores = model.classify(model(embeddings, flat.lengths), flat.lengths)
        return F.cross_entropy(scores, flat.values["label"], reduction="sum")

    [gradient] = torch.autograd.grad(loss_of(words), words)
    moved = [s + 0.1 * s.norm() * g / g.norm() for s, g in zip(words.split(flat.lengths), gradient.split(flat.lengths),
                                                               strict=True)]
    plain, other = adversarial(classification(), 0.1).terms(model, batch)
    torch.testing.assert_close(plain.sum, loss_of(words))
    torch.testing.assert_close(other.sum, loss_of(torch.cat(moved)))
    assert other.name == "classes_adversarial"
    assert other.sum > plain.sum
    for small, large in ((0.01, 0.1), (0.1, 0.5)):
        less, more = (adversarial(classification(), size).terms(model, batch)[1].sum for size in (small, large))
        assert plain.sum < less < more
    assert [term.name for term in adversarial(classification(), 0.1).terms(model.eval(), batch)] == ["classes"]
    assert not any(module._forward_hooks for module in model.modules())


def test_a_sequence_moves_alone() -> None:
    """Whatever stands beside it in the batch: the term of many is the sum of the terms of each."""
    model = model_with(0.0)
    together = adversarial(classification(), 0.2).terms(model, rows())[1].sum
    sequences = [Sequence(0, {"ids": part.numpy()}, {"label": int(label)}) for part, label in
                 zip(rows().text.ids_M.split(rows().text.lengths), rows().text.values["label"], strict=True)]
    alone = [adversarial(classification(), 0.2).terms(model, collate([each]))[1].sum for each in sequences]
    torch.testing.assert_close(together, torch.stack(alone).sum())


@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_reach_the_parameters_twice(frozen: bool) -> None:
    """The plain term's gradient is what it is without the other; a frozen table is no obstacle."""
    model, batch = model_with(0.0), rows()
    model.bert.embeddings.word_embeddings.weight.requires_grad_(not frozen)

    def gradient(term: Any) -> Tensor:
        model.zero_grad()
        term.sum.backward(retain_graph=True)
        return model.classifier.weight.grad.clone()

    plain, other = adversarial(classification(), 0.1).terms(model, batch)
    torch.testing.assert_close(gradient(plain), gradient(classification().terms(model, batch)[0]))
    assert not torch.allclose(gradient(other), gradient(plain))


def test_source_and_target_of_an_encoder_decoder() -> None:
    config = T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.0)
    model = create(config, {"seq2seq_lm": 0}, torch.Generator().manual_seed(0)).train()
    rng = np.random.default_rng(0)
    batch = collate(sequence for i in range(3) for sequence in (
        Sequence(i, {"ids": rng.integers(1, 50, 5 + i)}, role=SOURCE),
        Sequence(i, {"ids": rng.integers(1, 50, 4), "targets": rng.integers(1, 50, 4)}, role=TARGET)))
    plain, other = adversarial(sequence_to_sequence(), 0.3).terms(model, batch)
    assert other.sum > plain.sum


def test_what_does_not_reach_the_embeddings_is_refused() -> None:
    class Numbers(torch.nn.Module):
        weight = torch.nn.Parameter(torch.ones(3))

    def terms(model: Any, batch: Batch) -> Any:
        return [Term("numbers", model.weight.sum())]

    with pytest.raises(RecipeError, match="does not reach the word embeddings"):
        adversarial(Objective(lambda batch: {"numbers": 1.0}, terms), 0.1).terms(Numbers().train(), rows())


def test_both_together_through_the_loop() -> None:
    """Every term is counted, and the weights come to something else."""
    def trained(**settings: float) -> tuple[Tensor, set[str]]:
        model = model_with(0.2)
        objective = regularised(classification(), RegulariserSettings(**settings))
        results = list(steps(model, build(model, AdamW(lr=1e-2)), objective, lambda n: [rows(), rows(3)],
                             lr_factor=lambda n: 1.0, total_steps=2, settings=LoopSettings(), device=CPU, seed=1))
        return model.classifier.weight.detach().clone(), set(results[-1].terms)

    outcomes = [trained(), trained(r_drop=1.0), trained(adversarial=0.1), trained(r_drop=1.0, adversarial=0.1)]
    assert outcomes[0][1] == {"classes"}
    assert outcomes[3][1] == {"classes", "classes_agreement", "classes_adversarial", "classes_agreement_adversarial"}
    for i, (weight, _) in enumerate(outcomes):
        assert not any(torch.equal(weight, other) for other, _ in outcomes[:i])


# Decay towards the starting weights -------------------------------------------------------------------


def weights_after(model: Tiny, optimizer: torch.optim.Optimizer, num_steps: int = 3) -> dict[str, Tensor]:
    list(steps(model, optimizer, OBJECTIVE, micro_batches, lr_factor=lambda n: 0.5, total_steps=num_steps,
               settings=LoopSettings(clip=None), device=CPU, seed=3))
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_one_step_of_l2_sp() -> None:
    """w¹ = w' − η α (w' − w⁰), w' what the plain step leads to; a fresh head keeps the optimizer's decay."""
    start = {name: parameter.detach().clone() for name, parameter in Tiny().named_parameters()}
    lr, alpha = 0.1, 2.0
    plain, decayed = Tiny(), Tiny()
    without = weights_after(plain, build(plain, Sgd(lr=lr, momentum=0)), 1)
    optimizer = build(decayed, Sgd(lr=lr, momentum=0), start=Start(alpha, {"classifier.weight", "classifier.bias"}))
    found = weights_after(decayed, optimizer, 1)
    for name in start:
        fresh = name.startswith("classifier")
        expected = without[name] if fresh else without[name] - 0.5 * lr * alpha * (without[name] - start[name])
        torch.testing.assert_close(found[name], expected)
        assert fresh or not torch.equal(found[name], without[name])


def test_l2_sp_takes_the_place_of_weight_decay() -> None:
    model = Tiny()
    optimizer = build(model, AdamW(weight_decay=0.3), [GroupSettings(match="hidden.*", weight_decay=0.2)],
                      start=Start(0.1, {"classifier.weight"}))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decays = {names[id(p)]: (group["weight_decay"], "starts" in group)
              for group in optimizer.param_groups for p in group["params"]}
    assert decays == {"embedding.weight": (0.0, True), "hidden.weight": (0.2, True), "hidden.bias": (0.0, True),
                      "norm.weight": (0.0, True), "norm.bias": (0.0, True), "classifier.weight": (0.3, False),
                      "classifier.bias": (0.0, True)}


def test_strong_decay_keeps_the_weights() -> None:
    model = Tiny()
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    found = weights_after(model, build(model, Sgd(lr=0.1, momentum=0), start=Start(1e6)))
    assert all(torch.equal(found[name], start[name]) for name in start)
