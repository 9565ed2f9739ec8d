"""The modules that hold a matrix in 8 or 4 bits (levels.py) in its place, and how such a matrix is stored.

In: `Codes`. Out: modules for a model, and tensors for a file: a matrix `X.weight` is there `X.codes` ([O, I], or two
codes of 4 bits in a byte, [O, I/2], the first one low), `X.scales` and, of 4 bits, `X.minima`, [O, groups] each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wenmo.levels import Codes, Grid
from wenmo.nn.linear import Conv1D, Linear

PARTS = ("codes", "scales", "minima")


class Quantized(nn.Module):
    """A matrix as it is stored, in the place of one with a `weight`."""

    minima: Tensor | None

    def __init__(self, codes: Codes) -> None:
        super().__init__()
        self.bits, self.shape = codes.bits, codes.shape
        for part, tensor in stored(codes).items():
            self.register_buffer(part, tensor)
        if codes.bits == 8:
            self.minima = None

    def quantized(self) -> Codes:
        """The codes, a byte each."""
        return restored({part: getattr(self, part) for part in PARTS})

    @property
    def weight(self) -> Tensor:
        """[O, I] in fp32, made anew."""
        return self.quantized().weight()

    def extra_repr(self) -> str:
        return f"{'×'.join(map(str, self.shape))}, {self.bits} bits"


class QuantizedLinear(Quantized):
    """x_MI → x W^T + b; the matrix is made at each use. `transposed`: a Conv1D stood here."""

    def __init__(self, codes: Codes, bias: nn.Parameter | None, *, transposed: bool = False) -> None:
        super().__init__(codes)
        self.bias, self.transposed = bias, transposed

    def forward(self, x_MI: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x_MI.dtype)
        return F.linear(x_MI, self.weight.to(x_MI.dtype), bias)


class QuantizedEmbedding(Quantized):
    """ids → rows of the matrix, in fp32. 8 bits alone."""

    def forward(self, ids: Tensor) -> Tensor:
        codes: Any = self.codes
        scales: Any = self.scales
        scales_XG = F.embedding(ids, scales).float()
        grouped_XGI = F.embedding(ids, codes).float().view(*scales_XG.shape, -1)
        return (grouped_XGI * scales_XG.unsqueeze(-1)).flatten(-2)


def stored(codes: Codes) -> dict[str, Tensor]:
    """What stands in a file (or a module) for a matrix, by the part of its name."""
    scales_OG, minima_OG = codes.grid.scales, codes.grid.minima
    if minima_OG is None:
        return {"codes": codes.numbers, "scales": scales_OG.half() if codes.is_grouped else scales_OG.bfloat16()}
    nibbles_OI = codes.numbers.to(torch.uint8)
    packed = nibbles_OI[:, 0::2] | (nibbles_OI[:, 1::2] << 4)
    return {"codes": packed, "scales": scales_OG.half(), "minima": minima_OG.half()}


def restored(parts: Mapping[str, Tensor | None]) -> Codes:
    codes, scales, minima = (parts.get(part) for part in PARTS)
    assert codes is not None
    assert scales is not None
    if minima is None:
        return Codes(codes, Grid(scales.float(), None))
    nibbles = torch.stack([codes & 15, codes >> 4], -1).view(codes.shape[0], -1)
    return Codes(nibbles.to(torch.int8), Grid(scales.float(), minima.float()))


def replacement(module: nn.Module, codes: Codes) -> Quantized:
    """What stands in a module's place; its bias goes along."""
    if isinstance(module, nn.Embedding):
        return QuantizedEmbedding(codes)
    assert isinstance(module, (Linear, Conv1D))
    return QuantizedLinear(codes, module.bias, transposed=isinstance(module, Conv1D))


def matrix_of(module: Any) -> Tensor | Codes:
    """The matrix [O, I] of a linear map or an embedding, in the form in which it is there."""
    if isinstance(module, Quantized):
        return module.quantized()
    weight: Tensor = module.weight
    return weight.t() if isinstance(module, Conv1D) else weight


def replace(model: nn.Module, name: str, codes: Codes) -> None:
    """Puts codes in the place of a module's matrix, wherever in the model that module stands (tied embeddings)."""
    module = model.get_submodule(name)
    instead = replacement(module, codes)
    for parent in list(model.modules()):
        for child_name, child in list(parent.named_children()):
            if child is module:
                setattr(parent, child_name, instead)


# Whole models -----------------------------------------------------------------------------------------


def names_of(state: Mapping[str, Tensor]) -> list[str]:
    """The modules whose matrices are stored in few bits."""
    return [name.removesuffix(".codes") for name in state if name.endswith(".codes")]


def put_back(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Makes the places for stored codes, which are then to be loaded as any others. Modules that the model does not
    have are left to who loads."""
    for name in names_of(state):
        module = _module(model, name)
        if module is not None:
            replace(model, name, restored({part: state.get(f"{name}.{part}") for part in PARTS}))


def plain(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a model with the matrices that the codes stand for, in the form of the model's own modules."""
    result = dict(state)
    for name in names_of(state):
        weight_OI = restored({part: result.pop(f"{name}.{part}", None) for part in PARTS}).weight()
        result[f"{name}.weight"] = weight_OI.t() if isinstance(_module(model, name), Conv1D) else weight_OI
    return result


def _module(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def is_quantized(model: nn.Module) -> bool:
    return any(isinstance(module, Quantized) for module in model.modules())


def weight_shapes(model: nn.Module) -> dict[str, torch.Size]:
    """Of all that the model has learnt, however many bits a number has, by parameter name. Matrices in few bits are
    [O, I]."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    return shapes | {f"{name}.weight": module.shape for name, module in model.named_modules()
                     if isinstance(module, Quantized)}


def num_weights(model: nn.Module) -> int:
    return sum(shape.numel() for shape in weight_shapes(model).values())
