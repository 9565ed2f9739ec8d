"""What native code does between the products of training is what torch's own formulas give, forward and backward."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wenmo.native import build, training
from wenmo.nn.activation import gated
from wenmo.nn.attention import attention
from wenmo.nn.blocked_attention import blocked_attention
from wenmo.nn.cross_entropy import linear_cross_entropy
from wenmo.nn.norm import RMSNorm
from wenmo.nn.rope import Rope, rotate

BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
SHAPES = pytest.mark.parametrize("shape", [(700, 512), (33, 37), (3, 8), (1, 1)], ids=str)


@contextmanager
def by_torch() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_kernels", lambda _: None)
        yield


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def numbers(*shape: int, seed: int = 0, times: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * times


def found(compute: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """The result and the gradients of the inputs, as fp32."""
    leaves = [each.detach().clone().requires_grad_() for each in inputs]
    out = compute(*leaves)
    out.backward(numbers(*out.shape, seed=9).to(out.dtype))
    gradients = [leaf.grad for leaf in leaves]
    return [each.detach().float() for each in (out, *gradients) if each is not None]


def same(compute: Callable[..., Tensor], dtype: torch.dtype, *inputs: Tensor) -> None:
    """Native in `dtype` beside torch in fp32 of the same numbers; two threads give the bits that one gives."""
    assert training.kernels_for(*inputs) is not None, "no C compiler: these tests need one"
    rounded = [each.to(dtype) for each in inputs]
    with by_torch():
        expected = found(compute, *(each.float() for each in rounded))
    alone = found(compute, *rounded)
    within = 2e-6 if dtype == torch.float32 else 2e-2
    for ours, theirs in zip(alone, expected, strict=True):
        assert (ours - theirs).abs().max() <= within * theirs.abs().max().clamp(min=1e-3)
    with threads(2):
        for ours, theirs in zip(found(compute, *rounded), alone, strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


@BOTH
@SHAPES
def test_norm(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    norm = RMSNorm(shape[1], 1e-5)

    def compute(x_MD: Tensor, weight_D: Tensor) -> Tensor:
        return torch.func.functional_call(norm, {"weight": weight_D.float()}, (x_MD,))

    same(compute, dtype, numbers(*shape), numbers(shape[1], seed=1))


@BOTH
@SHAPES
def test_gate(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    same(lambda gate, up: gated(F.silu, gate, up), dtype, numbers(*shape, times=5), numbers(*shape, seed=1))


def test_gate_of_extremes() -> None:
    gate = torch.tensor([-1e4, -90.0, -20.0, 0.0, 20.0, 90.0, 1e4])
    same(lambda gate, up: gated(F.silu, gate, up), torch.float32, gate, torch.ones(7))


@BOTH
@pytest.mark.parametrize("width", [64, 48, 10, 2])
def test_rotation(dtype: torch.dtype, width: int) -> None:
    rope = Rope(width, 1e4, 4096, None)

    def compute(x_MNH: Tensor) -> Tensor:
        return rotate(x_MNH, rope.cos_sin(torch.arange(150), x_MNH.dtype))

    same(compute, dtype, numbers(150, 6, width))


@BOTH
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("words", [512, 37, 5])
def test_cross_entropy(dtype: torch.dtype, smoothing: float, words: int) -> None:
    targets = torch.randint(0, words, (300,), generator=torch.Generator().manual_seed(2))
    targets[::7] = -100

    def compute(features_XD: Tensor, weight_VD: Tensor) -> Tensor:
        return linear_cross_entropy(features_XD, weight_VD, None, targets, smoothing)

    features, weight = numbers(300, 16), numbers(words, 16, seed=1, times=2)
    same(compute, dtype, features, weight)
    expected = F.cross_entropy(features @ weight.t(), targets, reduction="sum", label_smoothing=smoothing)
    assert float(compute(features.requires_grad_(), weight).detach()) == pytest.approx(float(expected), rel=1e-5)


def test_cross_entropy_of_what_is_not_finite() -> None:
    features = torch.full((2, 4), float("nan"), requires_grad=True)
    assert linear_cross_entropy(features, torch.ones(20, 4), None, torch.tensor([1, 2]), 0.0).isnan()


@BOTH
@pytest.mark.parametrize(("tokens", "heads", "key_heads", "width", "causal", "window", "masked"), [
    (300, 4, 4, 16, True, None, False), (300, 4, 4, 16, True, None, True), (131, 6, 2, 24, True, None, False),
    (300, 4, 2, 16, True, 50, False), (77, 4, 2, 32, False, None, False), (77, 4, 2, 32, False, None, True),
    (5, 2, 1, 8, True, None, True), (5, 2, 2, 8, False, None, False), (1100, 2, 1, 8, True, None, False)])
def test_attention(dtype: torch.dtype, tokens: int, heads: int, key_heads: int, width: int, causal: bool,
                   window: int | None, masked: bool) -> None:
    mask = None
    if masked:
        mask = torch.ones(3, 1, 1, tokens, dtype=torch.bool)
        mask[1, ..., -(tokens // 2) :] = False

    def compute(*tensors: Tensor) -> Tensor:
        return blocked_attention(*tensors, causal=causal, window=window, mask=mask, scale=width**-0.5,
                                 dropout_probability=0.0)

    inputs = [numbers(3, tokens, each, width, seed=seed)
              for seed, each in enumerate((heads, key_heads, key_heads))]
    same(compute, dtype, *inputs)
    with torch.no_grad():
        expected = attention(*inputs, causal=causal, window=window, mask=mask)
    assert torch.allclose(compute(*(each.requires_grad_() for each in inputs)), expected, atol=2e-6)


def test_a_processor_without_wide_registers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The same C files in plain instructions."""
    monkeypatch.setattr(build, "FLAGS", tuple(flag for flag in build.FLAGS if flag != "-march=native"))
    monkeypatch.setenv("WENMO_CACHE", str(tmp_path.parent / "plain"))
    monkeypatch.setattr(training, "library", build.library.__wrapped__)
    monkeypatch.setattr(training, "LEAST_WIDTH", 4)
    monkeypatch.setattr(training, "_kernels", functools.cache(training.Kernels))
    for dtype in (torch.float32, torch.bfloat16):
        test_norm(dtype, (33, 37))
        test_gate(dtype, (33, 37))
        test_rotation(dtype, 10)
        test_cross_entropy(dtype, smoothing=0.1, words=37)
        test_attention(dtype, 131, 6, 2, 24, True, None, False)
        test_attention(dtype, 300, 4, 2, 16, True, 50, False)


def test_torch_computes_where_native_code_cannot() -> None:
    assert training.kernels_for(torch.ones(2), torch.ones(2, dtype=torch.float64)) is None
    assert training.kernels_for(torch.ones(2), torch.ones(2, dtype=torch.bfloat16)) is None
    assert training.kernels_for(torch.ones(2, device="meta")) is None


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    build.library.cache_clear()
    training._kernels.cache_clear()
    try:
        assert training.kernels_for(torch.ones(2)) is None
        out = gated(F.silu, torch.ones(2, requires_grad=True), torch.ones(2))
        assert torch.allclose(out, F.silu(torch.ones(2)))
    finally:
        build.library.cache_clear()
        training._kernels.cache_clear()
