"""Optimizers against their papers, groups of parameters, the moving average, and the state that a resume needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tiny_training import CPU, OBJECTIVE, Tiny, micro_batches
from wenmo.config import Settings, parse
from wenmo.errors import CheckpointError, RecipeError
from wenmo.training.average import Average
from wenmo.training.groups import GroupSettings, divide
from wenmo.training.loop import LoopSettings, StepResult, steps
from wenmo.training.optimizer import (
    Adafactor,
    Adam,
    AdamW,
    Lamb,
    Muon,
    OptimizerSettings,
    Sgd,
    build,
    load_state_tensors,
    state_tensors,
)

Array = np.ndarray
ALL = [Sgd(lr=0.01), Sgd(lr=0.01, momentum=0, weight_decay=0.1), Sgd(lr=0.01, nesterov=True), Adam(), AdamW(), Lamb(),
       Muon(), Adafactor()]


@pytest.fixture(autouse=True)
def english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WENMO_LANG", "en")


class Layers(nn.Module):
    """Embedding, three numbered layers, head: what the rates of layers and Muon look for."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embeddings = nn.Embedding(7, 6)
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.head = nn.Linear(6, 2)


def turn(model: nn.Module, optimizer: torch.optim.Optimizer, times: int) -> None:
    for _ in range(times):
        loss: Any = sum((p**3).sum() for p in model.parameters() if p.requires_grad)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


# Arithmetic -------------------------------------------------------------------------------------------


def sgd(w: Array, g: Array, s: dict[str, Any], t: int, decay: float) -> Array:
    g = g + decay * w
    s["b"] = g if t == 1 else 0.5 * s["b"] + g
    return w - 0.1 * (g + 0.5 * s["b"])


def moments(g: Array, s: dict[str, Any], t: int) -> tuple[Array, Array]:
    """Bias-corrected, with betas 0.5 and 0.25."""
    s["m"], s["v"] = 0.5 * s.get("m", 0) + 0.5 * g, 0.25 * s.get("v", 0) + 0.75 * g**2
    return s["m"] / (1 - 0.5**t), s["v"] / (1 - 0.25**t)


def adam(w: Array, g: Array, s: dict[str, Any], t: int, decay: float) -> Array:
    m, v = moments(g + decay * w, s, t)
    return w - 0.1 * m / (np.sqrt(v) + 1e-3)


def adamw(w: Array, g: Array, s: dict[str, Any], t: int, decay: float) -> Array:
    m, v = moments(g, s, t)
    return w - 0.1 * (m / (np.sqrt(v) + 1e-3) + decay * w)


def lamb(w: Array, g: Array, s: dict[str, Any], t: int, decay: float) -> Array:
    m, v = moments(g, s, t)
    r = m / (np.sqrt(v) + 1e-3) + decay * w
    size, length = np.linalg.norm(w), np.linalg.norm(r)
    return w - 0.1 * (size / length if size > 0 and length > 0 else 1.0) * r


def adafactor(w: Array, g: Array, s: dict[str, Any], t: int, decay: float) -> Array:
    """Shazeer and Stern 2018, algorithms 4 and 5; row and column means in place of their sums."""
    beta = 1 - t**-0.6
    if g.ndim == 2:
        s["r"] = beta * s.get("r", 0) + (1 - beta) * (g**2).mean(1, keepdims=True)
        s["c"] = beta * s.get("c", 0) + (1 - beta) * (g**2).mean(0, keepdims=True)
        v = s["r"] @ s["c"] / s["r"].mean()
    else:
        v = s["v"] = beta * s.get("v", 0) + (1 - beta) * g**2
    u = g / np.sqrt(v)
    u = u / max(1.0, np.sqrt((u**2).mean()) / 1.1)
    size = max(1e-2, np.sqrt((w**2).mean()))
    return w * (1 - 0.1 * decay) - size * min(0.1, t**-0.5) * u


MOMENTS = {"lr": 0.1, "betas": (0.5, 0.25), "eps": 1e-3, "weight_decay": 0.2}


@pytest.mark.parametrize(("settings", "reference"), [
    (Sgd(lr=0.1, momentum=0.5, nesterov=True, weight_decay=0.2), sgd), (Adam(**MOMENTS), adam),
    (AdamW(**MOMENTS), adamw), (Lamb(**MOMENTS), lamb),
    (Adafactor(lr=0.1, decay_rate=0.6, clip_threshold=1.1, eps=1e-2, weight_decay=0.2), adafactor)])
def test_five_steps_are_those_of_the_paper(settings: OptimizerSettings, reference: Callable[..., Array]) -> None:
    model = Layers()
    with torch.no_grad():
        model.head.bias.zero_()  # LAMB's ratio has no size to go by
    optimizer = build(model, settings)
    rng = np.random.default_rng(0)
    expected = {name: p.detach().double().numpy() for name, p in model.named_parameters()}
    states: dict[str, dict[str, Any]] = {name: {} for name in expected}
    for t in range(1, 6):
        for name, p in model.named_parameters():
            gradient = rng.normal(size=tuple(p.shape)) * 0.1
            p.grad = torch.tensor(gradient, dtype=torch.float32)
            decay = settings.weight_decay if p.ndim == 2 else 0.0
            expected[name] = reference(expected[name], gradient, states[name], t, decay)
        optimizer.step()
    for name, p in model.named_parameters():
        np.testing.assert_allclose(p.detach().numpy(), expected[name], rtol=2e-4, atol=2e-6, err_msg=name)


def test_muon_is_torchs_on_the_matrices_of_the_layers_and_adamw_elsewhere() -> None:
    ours, theirs = Layers(), Layers()
    first = build(ours, Muon(lr=0.02, matrix_lr=0.03, momentum=0.8, weight_decay=0.1))
    inside = [layer.weight for layer in theirs.layers]
    outside = [p for p in theirs.parameters() if all(p is not q for q in inside)]
    second = [torch.optim.Muon(inside, lr=0.03, momentum=0.8, weight_decay=0.1),
              torch.optim.AdamW([{"params": [p for p in outside if p.ndim == 2], "weight_decay": 0.1},
                                 {"params": [p for p in outside if p.ndim < 2], "weight_decay": 0.0}],
                                lr=0.02, betas=(0.9, 0.98))]
    for _ in range(4):
        for model in (ours, theirs):
            sum((p**3).sum() for p in model.parameters()).backward()
        first.step()
        for each in second:
            each.step()
        ours.zero_grad()
        theirs.zero_grad()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


# State ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", ALL, ids=lambda each: each.type)
def test_the_state_comes_back_exactly(tmp_path: Path, settings: OptimizerSettings) -> None:
    def transposed() -> Layers:  # a layout in memory that is not the plain one
        model = Layers()
        model.layers[0].weight = nn.Parameter(model.layers[0].weight.detach().t().contiguous().t())
        return model

    one, other = transposed(), transposed()
    first, second = build(one, settings), build(other, settings)
    turn(one, first, 3)
    save_file(state_tensors(first, one), tmp_path / "state.safetensors")
    other.load_state_dict(one.state_dict())
    load_state_tensors(second, other, load_file(tmp_path / "state.safetensors"))
    turn(one, first, 2)
    turn(other, second, 2)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    states = [state_tensors(optimizer, model) for optimizer, model in ((first, one), (second, other))]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert (states[0] == {}) == (settings == ALL[1])  # SGD without momentum remembers nothing


def test_adafactor_keeps_rows_and_columns_alone() -> None:
    model = Layers()
    optimizer = build(model, Adafactor())
    turn(model, optimizer, 1)
    shapes = {name: list(value.shape) for name, value in state_tensors(optimizer, model).items()}
    assert shapes["embeddings.weight/row_var"] == [7, 1]
    assert shapes["embeddings.weight/col_var"] == [1, 6]
    assert "embeddings.weight/variance" not in shapes


@pytest.mark.parametrize(("name", "shape"), [
    ("hidden.weight/exp_avg", [3]), ("other.weight/step", []), ("hidden.weight/row_var", [1, 8, 1]),
    ("hidden.weight/row_var", [7, 1])])
def test_the_state_of_another_model_is_refused(name: str, shape: list[int]) -> None:
    model = Tiny()
    with pytest.raises(CheckpointError, match=name.split("/")[0]):
        load_state_tensors(build(model, AdamW()), model, {name: torch.zeros(shape)})


# Settings ---------------------------------------------------------------------------------------------


class Holder(Settings):
    optimizer: OptimizerSettings = AdamW()


@pytest.mark.parametrize(("given", "fault"), [
    ({"lr": 0}, "optimizer.lr"), ({"betas": [0.9, 1.0]}, "optimizer.betas.1"), ({"type": "sgdd"}, "did you mean `sgd`"),
    ({"weight_decay": -1}, "optimizer.weight_decay"), ({"matrix_lr": 0.1}, "`matrix_lr` belongs to muon"),
    ({"type": "sgd", "betas": [0.9, 0.9]}, "`betas` belongs to adam, adamw, lamb, muon"),
    ({"type": "adafactor", "clip_treshold": 1}, "did you mean `clip_threshold`"),
    ({"type": "sgd", "momentum": 0, "nesterov": True}, "`nesterov` does nothing")])
def test_settings_out_of_range_or_of_another_type_are_refused(given: dict[str, Any], fault: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse(Holder, {"optimizer": given}, "recipe")
    assert fault in str(caught.value)


def test_a_recipe_without_a_type_is_adamw() -> None:
    assert parse(Holder, {"optimizer": {"lr": 0.5}}, "recipe").optimizer == AdamW(lr=0.5)


# Groups -----------------------------------------------------------------------------------------------


def by_name(model: nn.Module, optimizer: torch.optim.Optimizer, key: str) -> dict[str, float]:
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: group[key] for group in optimizer.param_groups for p in group["params"]}


def test_without_groups_matrices_decay_and_each_parameter_stands_once() -> None:
    model = Tiny()
    model.classifier.weight.requires_grad_(False)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = build(model, AdamW(weight_decay=0.3)).param_groups
    assert [(group["weight_decay"], [names[id(p)] for p in group["params"]]) for group in groups] == [
        (0.3, ["embedding.weight", "hidden.weight"]),
        (0.0, ["classifier.bias", "hidden.bias", "norm.bias", "norm.weight"]),
    ]


@pytest.mark.parametrize("settings", [AdamW(lr=0.2), Muon(lr=0.2, matrix_lr=0.2), Sgd(lr=0.2)],
                         ids=lambda each: each.type)
def test_the_first_group_that_matches_has_a_parameter(settings: OptimizerSettings) -> None:
    model = Layers()
    groups = [GroupSettings(match="layers.0.*", freeze=True), GroupSettings(match="*.bias", lr_scale=2),
              GroupSettings(match="1.weight", lr_scale=0.5, weight_decay=0.7)]
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = build(model, settings, groups)
    rates = by_name(model, optimizer, "initial_lr")
    assert rates == {"embeddings.weight": 0.2, "head.weight": 0.2, "head.bias": 0.4, "layers.1.bias": 0.4,
                     "layers.2.bias": 0.4, "layers.1.weight": 0.1, "layers.2.weight": 0.2}
    decays = by_name(model, optimizer, "weight_decay")
    assert {name: decay for name, decay in decays.items() if decay != settings.weight_decay} == {
        "layers.1.weight": 0.7} | {name: 0.0 for name in decays if name.endswith("bias") and settings.weight_decay}
    turn(model, optimizer, 2)
    still = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    assert still == {"layers.0.weight", "layers.0.bias"}
    assert not [name for name in state_tensors(optimizer, model) if name.startswith("layers.0.")]


def test_rates_fall_from_layer_to_layer() -> None:
    model = Layers()
    rates = by_name(model, build(model, AdamW(lr=1.0), [GroupSettings(match="layers.2.bias", lr_scale=10)], 0.5),
                    "initial_lr")
    assert rates == {"embeddings.weight": 1 / 16, "layers.0.weight": 1 / 8, "layers.0.bias": 1 / 8,
                     "layers.1.weight": 1 / 4, "layers.1.bias": 1 / 4, "layers.2.weight": 1 / 2, "layers.2.bias": 5.0,
                     "head.weight": 1.0, "head.bias": 1.0}


@pytest.mark.parametrize(("groups", "layer_decay", "model", "fault"), [
    ([{"match": "emb*", "lr_scale": 2}, {"match": "embeddings.*", "lr_scale": 3}], None, Layers,
     "there are: layers.*.weight"),
    ([{"match": "nothing", "freeze": True}], None, Layers, "matches `nothing`"),
    ([{"match": "*", "freeze": True}], None, Layers, "nothing to train"),
    ([{"match": "*.bias", "weight_decay": 0.1}], None, Layers, "vectors alone"),
    ([], 0.5, Tiny, "no numbered layers")])
def test_groups_that_do_not_fit_the_model_are_refused(
    groups: list[dict[str, Any]], layer_decay: float | None, model: type[nn.Module], fault: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        divide(model(), [GroupSettings(**group) for group in groups], layer_decay)
    assert fault in str(caught.value)


@pytest.mark.parametrize("group", [{"match": "*"}, {"match": "*", "lr_scale": 1}, {"match": "*", "freeze": False},
                                   {"match": "*", "freeze": True, "lr_scale": 2}, {"match": "", "freeze": True}])
def test_a_group_that_does_nothing_is_refused(group: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        parse(GroupSettings, group, "recipe")


# L1 ---------------------------------------------------------------------------------------------------


def run(model: Tiny, settings: LoopSettings, lr: float = 0.1) -> list[StepResult]:
    return list(steps(model, build(model, Sgd(lr=lr, momentum=0)), OBJECTIVE, micro_batches, lr_factor=lambda n: 0.5,
                      total_steps=1, settings=settings, device=CPU, seed=7))


def test_l1_is_one_proximal_step_on_the_matrices() -> None:
    plain, shrunk = Tiny(), Tiny()
    before = {name: p.detach().clone() for name, p in plain.named_parameters()}
    [without], [result] = run(plain, LoopSettings()), run(shrunk, LoopSettings(l1=2.0))
    size = sum(float(p.abs().sum()) for p in before.values() if p.ndim == 2)
    assert result.terms["l1"] == pytest.approx(2 * size, rel=1e-5)
    assert result.loss == pytest.approx(without.loss + 2 * size, rel=1e-5)
    assert result.grad_norm == without.grad_norm  # two micro-batches, one penalty
    for (name, a), b in zip(plain.named_parameters(), shrunk.parameters(), strict=True):
        expected = a.sign() * (a.abs() - 0.1 * 0.5 * 2).clamp(min=0) if a.ndim == 2 else a
        torch.testing.assert_close(b, expected, msg=name)
    assert (shrunk.hidden.weight == 0).any()
    assert not (plain.hidden.weight == 0).any()


# The moving average -----------------------------------------------------------------------------------


def test_the_average_is_that_of_the_formula_and_leaves_the_weights_alone() -> None:
    model = Layers()
    optimizer, average = build(model, AdamW(lr=0.1)), Average(model, 0.5)
    expected = model.head.weight.detach().clone()
    for step in range(1, 30):
        turn(model, optimizer, 1)
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.head.weight.detach()
    own = {name: p.clone() for name, p in model.named_parameters()}
    with average.in_place():
        torch.testing.assert_close(model.head.weight.detach(), expected)
        assert not torch.equal(model.head.weight, own["head.weight"])
    assert all(torch.equal(p, own[name]) for name, p in model.named_parameters())
    average.settle()
    torch.testing.assert_close(model.head.weight.detach(), expected)


def test_the_average_comes_back_exactly_and_is_refused_for_another_model() -> None:
    one, other = Layers(), Layers()
    optimizer, first, second = build(one, AdamW(lr=0.1)), Average(one, 0.9), Average(other, 0.9)
    turn(one, optimizer, 2)
    first.update(1)
    saved: dict[str, Tensor] = {name: tensor.clone() for name, tensor in first.tensors().items()}
    second.load(saved)
    assert all(torch.equal(tensor, second.tensors()[name]) for name, tensor in saved.items())
    with pytest.raises(CheckpointError):
        second.load({name: tensor for name, tensor in saved.items() if name != "head.bias"})
    frozen = Layers()
    frozen.head.requires_grad_(False)
    assert "head.weight" not in Average(frozen, 0.9).tensors()
