"""Forwards and gradients written by hand for training on the CPU; torch's automatic differentiation is the oracle."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wenmo.nn import blocked_attention
from wenmo.nn.attention import attention
from wenmo.nn.cross_entropy import linear_cross_entropy
from wenmo.nn.dropout import dropout
from wenmo.nn.norm import RMSNorm

Made = tuple[Tensor, ...]


def gradients(out: Tensor, *inputs: Tensor) -> Made:
    """The output, and its gradients for a fixed direction."""
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(out.dtype)
    return (out.detach(), *torch.autograd.grad(out, inputs, direction))


def close(ours: Made, theirs: Made, tolerance: float) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.double(), b.double(), atol=tolerance, rtol=tolerance)


# Attention --------------------------------------------------------------------------------------------

B, T, N, H = 3, 37, 4, 8
CASES: dict[str, dict[str, Any]] = {
    "all": {}, "causal": {"causal": True}, "grouped": {"causal": True, "K": 2}, "one key head": {"K": 1},
    "window": {"causal": True, "window": 9}, "masked": {"masked": True}, "scaled": {"scale": 0.7},
    "causal, masked": {"causal": True, "masked": True},
}


def projections(K: int = N, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(B, T, heads, H, generator=generator, dtype=dtype).requires_grad_() for heads in (N, K, K)]


def seen(case: dict[str, Any]) -> tuple[Tensor | None, Tensor]:
    """The mask that `attention` is given, and all that is seen, [B, 1, T, T]."""
    place_T = torch.arange(T)
    distance_TT = place_T[:, None] - place_T
    seen_TT = torch.ones(T, T, dtype=torch.bool)
    if case.get("causal"):
        seen_TT = (distance_TT >= 0) & (distance_TT < case.get("window", T))
    mask_B11T = (place_T < torch.tensor([T, 20, 5])[:, None])[:, None, None] if case.get("masked") else None
    return mask_B11T, seen_TT if mask_B11T is None else seen_TT & mask_B11T


@pytest.mark.parametrize("longest_kept", [1024, 0], ids=["weights kept", "weights made again"])
@pytest.mark.parametrize(("num_queries", "num_scores"), [(128, 1 << 20), (16, 1 << 20), (5, 1)],
                         ids=["one block", "blocks", "row by row"])
@pytest.mark.parametrize("name", CASES)
def test_attention_in_blocks(name: str, num_queries: int, num_scores: int, longest_kept: int,
                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked_attention, "BLOCK_TOKENS", num_queries)
    monkeypatch.setattr(blocked_attention, "BLOCK_SCORES", num_scores)
    monkeypatch.setattr(blocked_attention, "LONGEST_KEPT_TOKENS", longest_kept)
    case = CASES[name]
    q, k, v = projections(case.get("K", N))
    mask, all_seen = seen(case)
    settings = {key: case[key] for key in ("causal", "window", "scale") if key in case}
    ours = gradients(attention(q, k, v, mask=mask, **settings), q, k, v)
    heads = [x.transpose(1, 2) for x in (q, k, v)]
    theirs = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], attn_mask=all_seen, scale=case.get("scale"),
                                            enable_gqa=True)
    close(ours, gradients(theirs.transpose(1, 2), q, k, v), 1e-12)


@pytest.mark.parametrize("causal", [True, False])
def test_dropped_attention_has_the_gradient_of_its_own_mask(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked_attention, "BLOCK_TOKENS", 4)

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        torch.manual_seed(0)  # the same mask at every call
        return attention(q, k, v, causal=causal, dropout_probability=0.3)

    generator = torch.Generator().manual_seed(2)
    inputs = [torch.randn(2, 7, 2, 4, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(function, inputs)


def test_dropped_attention_is_the_same_in_the_mean() -> None:
    q, k, v = projections(dtype=torch.float32)
    torch.manual_seed(0)
    mean = torch.stack([attention(q, k, v, dropout_probability=0.2).detach() for _ in range(400)]).mean(0)
    torch.testing.assert_close(mean, attention(q, k, v).detach(), atol=0.12, rtol=0)


def test_attention_in_bf16_is_as_exact_as_torchs() -> None:
    exact = projections()
    q, k, v = (x.detach().bfloat16().requires_grad_() for x in exact)

    def off(made: Made) -> list[float]:
        return [float((a.double() - b).norm() / b.norm()) for a, b in zip(made, expected, strict=True)]

    expected = gradients(attention(*exact, causal=True), *exact)
    heads = [x.transpose(1, 2) for x in (q, k, v)]
    theirs = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True).transpose(1, 2)
    for ours, torchs in zip(off(gradients(attention(q, k, v, causal=True), q, k, v)), off(gradients(theirs, q, k, v)),
                            strict=True):
        assert ours < 1.5 * torchs + 1e-3


# Norm, dropout, loss ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 512, 1300])
def test_rms_norm(rows: int) -> None:
    generator = torch.Generator().manual_seed(3)
    norm = RMSNorm(48, 1e-5)
    with torch.no_grad():
        norm.weight.normal_(1, 0.3, generator=generator)
    x = torch.randn(rows, 48, generator=generator).mul(3).requires_grad_()
    before = x.detach().clone()
    double, weight = (each.detach().double().requires_grad_() for each in (x, norm.weight))
    close(gradients(norm(x), x, norm.weight), gradients(F.rms_norm(double, (48,), weight, 1e-5), double, weight), 2e-5)
    assert torch.equal(x, before)


def test_rms_norm_of_heads_and_of_a_frozen_weight() -> None:
    """[M, N, H], as QK-norm has it; in bf16 the weight's gradient is fp32, as the weight is."""
    norm = RMSNorm(16, 1e-6)
    x = torch.randn(9, 4, 16).bfloat16().requires_grad_()
    norm(x).float().sum().backward()
    assert norm.weight.grad is not None
    assert norm.weight.grad.dtype == torch.float32
    norm.weight.requires_grad_(False)
    (d_x,) = torch.autograd.grad(norm(x).float().sum(), x)
    assert x.grad is not None
    assert torch.equal(d_x, x.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dropout_keeps_and_passes_back_the_same_elements(dtype: torch.dtype) -> None:
    x = torch.ones(1000, 33, dtype=dtype, requires_grad=True)
    torch.manual_seed(5)
    out = dropout(x, 0.25)
    (d_x,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(out, d_x)
    assert set(out.detach().flatten().tolist()) == {0.0, float(torch.tensor(1 / 0.75, dtype=dtype))}
    assert abs(float((out == 0).double().mean()) - 0.25) < 0.01


@pytest.mark.parametrize("learns", [True, False])
def test_logits_of_a_large_vocabulary_never_stand_together(learns: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    num_words, linear, sizes = 70_000, F.linear, []

    def watched(*given: Any) -> Tensor:
        sizes.append((found := linear(*given)).numel())
        return found

    monkeypatch.setattr(F, "linear", watched)
    weight, features = torch.randn(num_words, 4, requires_grad=learns), torch.randn(1500, 4)
    targets = torch.arange(1500)
    with torch.set_grad_enabled(learns):
        ours = linear_cross_entropy(features, weight, None, targets)
    assert sum(sizes) == 1500 * num_words
    assert max(sizes) <= 1 << 25
    monkeypatch.undo()
    theirs = F.cross_entropy(features @ weight.t(), targets, reduction="sum")
    torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_loss_of_a_target_that_is_next_to_impossible(label_smoothing: float) -> None:
    """exp(-500) is 0 in fp32; its logarithm is still -500."""
    weight = torch.tensor([[500.0], [0.0], [499.0]], requires_grad=True)
    features = torch.tensor([[1.0], [1.0], [-1.0]], requires_grad=True)
    targets = torch.tensor([1, 0, -100])
    ours = linear_cross_entropy(features, weight, None, targets, label_smoothing)
    theirs = F.cross_entropy(features @ weight.t(), targets, reduction="sum", label_smoothing=label_smoothing)
    assert math.isfinite(float(theirs.detach()))
    close((ours.detach(), *torch.autograd.grad(ours, (features, weight))),
          (theirs.detach(), *torch.autograd.grad(theirs, (features, weight))), 1e-4)
