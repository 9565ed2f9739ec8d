"""Rotary position embeddings (Su et al. 2021, §3.4) and the ways to stretch them past the trained length.

In: positions [M]. Out: cosines and sines [M, H], to turn queries and keys with. Halves are paired as Hugging Face
does: (x_0, x_{H/2}), (x_1, x_{H/2+1}), …
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.autograd.function import once_differentiable

from wenmo.config import Settings
from wenmo.errors import say
from wenmo.native.training import kernels_for

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Length = Annotated[int, Field(ge=2)]


class Linear(Settings):
    """Positions divided by `factor` (Chen et al. 2023, "position interpolation")."""

    rope_type: Literal["linear"]
    factor: Positive


class Dynamic(Settings):
    """The base grows with the length past `max_position_embeddings` ("dynamic NTK")."""

    rope_type: Literal["dynamic"]
    factor: Positive


class Yarn(Settings):
    """Interpolates slow dimensions, keeps fast ones, and sharpens attention (Peng et al. 2023, §3)."""

    rope_type: Literal["yarn"]
    factor: Positive
    original_max_position_embeddings: Length | None = None
    attention_factor: Positive | None = None
    beta_fast: Positive = 32.0
    beta_slow: Positive = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


class LongRope(Settings):
    """One searched factor a dimension, another set past the original length (Ding et al. 2024)."""

    rope_type: Literal["longrope"]
    short_factor: list[Positive]
    long_factor: list[Positive]
    factor: Positive | None = None
    original_max_position_embeddings: Length | None = None
    attention_factor: Positive | None = None


class Llama3(Settings):
    """Divides low frequencies by `factor`, keeps high ones, blends between (Llama 3.1 model card)."""

    rope_type: Literal["llama3"]
    factor: Positive
    low_freq_factor: Positive
    high_freq_factor: Positive
    original_max_position_embeddings: Length


RopeScaling = Annotated[Linear | Dynamic | Yarn | LongRope | Llama3, Field(discriminator="rope_type")]


class Rope:
    """`cos_sin(positions_M, dtype)` for one model; `rotate(x_MNH, cos_sin)` turns queries or keys."""

    def __init__(self, head_width: int, theta: float, max_positions: int, scaling: RopeScaling | None) -> None:
        self.head_width, self.theta, self.max_positions, self.scaling = head_width, theta, max_positions, scaling
        self.frequencies_X = self._frequencies(theta)
        self.attention_factor = 1.0
        if isinstance(scaling, Linear):
            self.frequencies_X = self.frequencies_X / scaling.factor
        elif isinstance(scaling, Llama3):
            self.frequencies_X = self._llama3(scaling)
        elif isinstance(scaling, Yarn):
            self.frequencies_X, self.attention_factor = self._yarn(scaling)
        elif isinstance(scaling, LongRope):
            self.attention_factor = self._longrope_attention_factor(scaling)

    @property
    def is_fixed(self) -> bool:
        """Whether how a token is turned depends on its own position alone."""
        return not isinstance(self.scaling, (Dynamic, LongRope))

    def cos_sin(self, positions_M: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """[M, 1, H] each, computed in fp32, in `dtype`; the sines of the first half with a minus (see `rotate`)."""
        frequencies_X = self._frequencies_for(positions_M).to(positions_M.device)
        angle_MX = positions_M[:, None].float() * frequencies_X
        cos_MX, sin_MX = angle_MX.cos() * self.attention_factor, angle_MX.sin() * self.attention_factor
        return (torch.cat((cos_MX, cos_MX), dim=-1)[:, None, :].to(dtype),
                torch.cat((-sin_MX, sin_MX), dim=-1)[:, None, :].to(dtype))

    def _frequencies(self, theta: float) -> Tensor:
        """θ^(-2i/H) for i = 0 … H/2 - 1."""
        exponent_X = torch.arange(0, self.head_width, 2, dtype=torch.float32) / self.head_width
        return 1.0 / theta**exponent_X

    def _frequencies_for(self, positions_M: Tensor) -> Tensor:
        """The two kinds that depend on the longest position at hand; the others are fixed."""
        if isinstance(self.scaling, Dynamic):
            length = max(int(positions_M.max()) + 1, self.max_positions)
            stretch = self.scaling.factor * length / self.max_positions - (self.scaling.factor - 1)
            return self._frequencies(self.theta * stretch ** (self.head_width / (self.head_width - 2)))
        if isinstance(self.scaling, LongRope):
            original = self.scaling.original_max_position_embeddings or self.max_positions
            past = int(positions_M.max()) + 1 > original
            factor_X = torch.tensor(self.scaling.long_factor if past else self.scaling.short_factor)
            return self.frequencies_X / factor_X
        return self.frequencies_X

    def _llama3(self, scaling: Llama3) -> Tensor:
        frequencies_X = self.frequencies_X
        wavelength_X = 2 * math.pi / frequencies_X
        original = scaling.original_max_position_embeddings
        low, high = original / scaling.low_freq_factor, original / scaling.high_freq_factor
        blend_X = (original / wavelength_X - scaling.low_freq_factor) / (
            scaling.high_freq_factor - scaling.low_freq_factor)
        blended_X = (1 - blend_X) * frequencies_X / scaling.factor + blend_X * frequencies_X
        slowed_X = torch.where(wavelength_X > low, frequencies_X / scaling.factor, frequencies_X)
        return torch.where((wavelength_X <= low) & (wavelength_X >= high), blended_X, slowed_X)

    def _yarn(self, scaling: Yarn) -> tuple[Tensor, float]:
        original = scaling.original_max_position_embeddings or self.max_positions

        def dimension(turns: float) -> float:
            """The dimension that turns `turns` times over the original length."""
            return self.head_width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(self.theta))

        low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
        if scaling.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, self.head_width - 1)
        ramp_X = (torch.arange(self.head_width // 2, dtype=torch.float32) - low) / max(high - low, 0.001)
        kept_X = 1 - ramp_X.clamp(0, 1)
        frequencies_X = self.frequencies_X / scaling.factor * (1 - kept_X) + self.frequencies_X * kept_X

        def sharpness(scale: float, mscale: float = 1.0) -> float:
            return 0.1 * mscale * math.log(scale) + 1 if scale > 1 else 1.0

        if scaling.attention_factor is not None:
            factor = scaling.attention_factor
        elif scaling.mscale and scaling.mscale_all_dim:
            factor = sharpness(scaling.factor, scaling.mscale) / sharpness(scaling.factor, scaling.mscale_all_dim)
        else:
            factor = sharpness(scaling.factor)
        return frequencies_X, factor

    def _longrope_attention_factor(self, scaling: LongRope) -> float:
        if scaling.attention_factor is not None:
            return scaling.attention_factor
        original = scaling.original_max_position_embeddings or self.max_positions
        factor = scaling.factor if scaling.factor is not None else self.max_positions / original
        return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))


def rotate(x_MNH: Tensor, cos_sin: tuple[Tensor, Tensor]) -> Tensor:
    """x · cos + (-x₂, x₁) · sin, with x₁ and x₂ the halves of H; the minus stands in the sines."""
    cos_M1H, sin_M1H = cos_sin
    if torch.is_grad_enabled() and kernels_for(x_MNH, cos_M1H, sin_M1H) is not None:
        function: Any = _Rotation.apply
        out_MNH: Tensor = function(x_MNH, cos_M1H, sin_M1H)
        return out_MNH
    return torch.addcmul(x_MNH * cos_M1H, x_MNH.roll(x_MNH.shape[-1] // 2, -1), sin_M1H)


class _Rotation(torch.autograd.Function):
    """Its gradient is turned back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos_M1H: Tensor, sin_M1H: Tensor) -> Tensor:
        kernels = kernels_for(x)
        assert kernels is not None
        ctx.save_for_backward(cos_M1H, sin_M1H)
        return kernels.rotate(x.contiguous(), cos_M1H, sin_M1H, back=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, None, None]:
        kernels = kernels_for(d_out)
        assert kernels is not None
        return kernels.rotate(d_out.contiguous(), *ctx.saved_tensors, back=True), None, None


def check_scaling(scaling: RopeScaling | None, head_width: int, theta: float) -> None:
    """What would divide by zero, or leave frequencies without a factor. Raises ValueError."""
    if isinstance(scaling, LongRope):
        for name, factors in (("short_factor", scaling.short_factor), ("long_factor", scaling.long_factor)):
            if len(factors) != head_width // 2:
                raise ValueError(say(f"rope_scaling.{name} has {len(factors)} factors, {head_width // 2} are needed",
                                     f"rope_scaling.{name} 有 {len(factors)} 个系数，应有 {head_width // 2} 个"))
    if isinstance(scaling, Llama3) and scaling.high_freq_factor <= scaling.low_freq_factor:
        raise ValueError(say("rope_scaling.high_freq_factor must be larger than low_freq_factor",
                             "rope_scaling.high_freq_factor 须大于 low_freq_factor"))
    if isinstance(scaling, Dynamic) and head_width == 2:
        raise ValueError(say("dynamic rope_scaling needs heads wider than 2", "dynamic 的 rope_scaling 要求头宽大于 2"))
    if isinstance(scaling, Yarn) and theta == 1:
        raise ValueError(say("yarn rope_scaling needs a rope_theta other than 1",
                             "yarn 的 rope_scaling 要求 rope_theta 不为 1"))
