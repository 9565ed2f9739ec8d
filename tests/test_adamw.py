"""AdamW: torch's own numbers without torch's compiler; and in eight bits, near them."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from wenmo.training import optimizer
from wenmo.training.adamw8 import code_positive, code_signed, positive, signed
from wenmo.training.optimizer import AdamW


def learn(made: torch.optim.Optimizer, model: nn.Module, steps: int) -> list[float]:
    """A small regression; the losses."""
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(steps):
        x = torch.randn(64, 32, generator=generator)
        loss = ((model(x) - torch.sin(x[:, :4])) ** 2).mean()
        loss.backward()
        made.step()
        made.zero_grad()
        losses.append(loss.item())
    return losses


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 48), nn.Tanh(), nn.Linear(48, 4))


def groups(model: nn.Module) -> list[dict[str, object]]:
    return [{"params": [p for p in model.parameters() if p.ndim == 2], "weight_decay": 0.1},
            {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0}]


def test_the_numbers_are_torchs() -> None:
    ours, theirs = network(), network()
    settings = AdamW(lr=1e-2, weight_decay=0.1)
    mine = optimizer.build(ours, settings)
    for group in mine.param_groups:
        group["lr"] = group["initial_lr"]
    reference = torch.optim.AdamW(groups(theirs), lr=1e-2, betas=settings.betas, eps=settings.eps, fused=True)
    assert learn(mine, ours, 10) == learn(reference, theirs, 10)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(mine.state[a]["exp_avg_sq"], reference.state[b]["exp_avg_sq"])


def test_the_compiler_is_not_imported() -> None:
    """0.8 s of the time to the first step."""
    code = """
import sys, torch
from wenmo.training import optimizer
model = torch.nn.Linear(3, 2)
made = optimizer.build(model, optimizer.AdamW())
model(torch.ones(1, 3)).sum().backward()
made.step()
made.zero_grad()
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# Eight bits -------------------------------------------------------------------------------------------


def coded(x_RC: Tensor, uniform: float, positively: bool) -> Tensor:
    scale_R1, uniform_RC = torch.empty(len(x_RC), 1), torch.full_like(x_RC, uniform)
    code_RC = torch.empty_like(x_RC, dtype=torch.uint8 if positively else torch.int8)
    (code_positive if positively else code_signed)(x_RC, uniform_RC, code_RC, scale_R1)
    return (positive if positively else signed)(code_RC, scale_R1)


ORDINARY = st.floats(-1e4, 1e4, width=32).filter(lambda value: value == 0 or abs(value) > 1e-15)


@given(st.lists(ORDINARY, min_size=1, max_size=30), st.floats(0, 0.999), st.booleans())
def test_a_code_is_near_what_it_stands_for(values: list[float], uniform: float, positively: bool) -> None:
    x = torch.tensor([values, [value / 1000 for value in reversed(values)]])
    x = x.abs() if positively else x
    power, levels = (4, 255) if positively else (2, 127)
    found, largest = coded(x, uniform, positively), x.abs().amax(1, keepdim=True).clamp(min=1e-37)
    places = (found.abs() / largest) ** (1 / power) - (x.abs() / largest) ** (1 / power)
    assert places.abs().max() <= 1.001 / levels
    assert bool((found * x >= 0).all())
    if positively:
        assert bool((found[x > 0] > 0).all())  # nothing becomes zero that was not


def test_rounding_is_fair() -> None:
    """The mean over all chances is the value, so that moving averages move."""
    x = torch.linspace(-1, 1, 201)[None]
    mean = torch.stack([coded(x, (i + 0.5) / 256, False) for i in range(256)]).mean(0)
    assert (mean - x).abs().max() < 1e-4


def test_it_learns_as_well() -> None:
    whole, coded_ = network(), network()
    losses = [learn(_at_rate(optimizer.build(model, AdamW(lr=3e-3, state_bits=bits))), model, 300)
              for model, bits in ((whole, 32), (coded_, 8))]
    assert losses[0][-1] < losses[0][0] / 5
    assert np.mean(losses[1][-20:]) == pytest.approx(np.mean(losses[0][-20:]), rel=0.1)


def test_two_bytes_a_parameter_and_again_the_same() -> None:
    model = nn.Linear(512, 256)
    made = _at_rate(optimizer.build(model, AdamW(state_bits=8)))
    model(torch.ones(2, 512)).square().sum().backward()
    made.step()
    size = sum(value.numel() * value.element_size() for value in made.state[model.weight].values())
    assert size < 2.1 * model.weight.numel()
    saved = {name: value.clone() for name, value in optimizer.state_tensors(made, model).items()}
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    made.step()
    once = model.weight.detach().clone()
    model.load_state_dict(weights)
    again = _at_rate(optimizer.build(model, AdamW(state_bits=8)))
    optimizer.load_state_tensors(again, model, saved)
    again.step()
    assert torch.equal(model.weight, once)


def _at_rate(made: torch.optim.Optimizer) -> torch.optim.Optimizer:
    for group in made.param_groups:
        group["lr"] = group["initial_lr"]
    return made
