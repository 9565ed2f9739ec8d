"""A whole model in few bits, layer after layer.

In: a model, and a function that runs it over calibration texts. Out: the same model, its matrices replaced by codes.
What a layer reads is what the layers before it, already in few bits, write: so it makes good some of their error too.
Only one layer's sums over inputs are in memory at a time, and the hidden states between two layers.

In `format`'s bits are the linear maps inside the layers. Word embeddings and an output vocabulary have 8 bits in any
format, for there 4 hurt most; other heads, norms and biases stay as they are: they are small.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wenmo.compress.gptq import error_compensated
from wenmo.config import Count, Settings
from wenmo.errors import ModelError, UsageError, say
from wenmo.levels import Bits, Codes, bits_for, eight_bits, eight_bits_in_groups, grid_of, nearest
from wenmo.models import TASK_HEADS
from wenmo.models.custom_head import PLACE
from wenmo.nn.linear import Conv1D, Linear
from wenmo.nn.names import layer_of
from wenmo.nn.quantized import is_quantized, matrix_of
from wenmo.nn.quantized import replace as put_in_place

_log = logging.getLogger(__name__)
Format = Literal["int8", "int4"]
BITS: dict[Format, Bits] = {"int8": 8, "int4": 4}


class CompressSettings(Settings):
    """`format` of the matrices. `method`: gptq (Frantar et al. 2022), which needs calibration texts, or rtn, rounding
    to nearest. `calibration_tokens`: so many are read of these texts, drawn by `seed`."""

    format: Format
    method: Literal["gptq", "rtn"] = "gptq"
    calibration_tokens: Count = 32768
    seed: int = 0


@dataclass(frozen=True)
class Compressed:
    """What was done: the number of matrices by their bits, and the bytes of all weights before (fp32) and after."""

    num_maps: dict[Bits, int]
    bytes_before: int
    bytes_after: int


def compress(model: Any, settings: CompressSettings, run: Callable[[], None] | None = None) -> Compressed:
    """Replaces the model's matrices in place. `run` runs it over the calibration texts.

    UsageError for gptq without such texts or on an encoder–decoder, ModelError for a model that is in few bits already.
    """
    if is_quantized(model):
        raise ModelError(say("the model is in few bits already", "该模型已是量化模型"),
                         mend=say("compress the model that it was made from", "请压缩其原模型"))
    two_stacks = getattr(model.config, "is_encoder_decoder", False)
    if settings.method == "gptq" and (run is None or two_stacks):
        raise UsageError(
            say("gptq is not done for encoder–decoders", "gptq 尚不支持编码器–解码器") if two_stacks
            else say("gptq needs texts to calibrate on", "gptq 需要校准文本"), where="method: gptq",
            mend="--method rtn" if two_stacks else "--calibration FILE, --method rtn")
    before = _num_bytes(model)
    num_maps: dict[Bits, int] = {4: 0, 8: 0}
    with torch.no_grad():
        bits = BITS[settings.format]
        for name in _vocabularies(model):
            embeddings: Any = model.get_submodule(name)
            in_8_bits = eight_bits if bits == 8 else eight_bits_in_groups
            put_in_place(model, name, in_8_bits(embeddings.weight))
        if settings.method == "rtn":
            for name in _maps(model):
                _round(model, name, bits, num_maps)
        else:
            assert run is not None
            _layer_by_layer(model, bits, run, num_maps)
    if bits == 4 and num_maps[8]:
        _log.warning(say(f"{num_maps[8]} matrices have sizes that 4 bits do not fit: they have 8",
                         f"有 {num_maps[8]} 个矩阵的尺寸不适合 4 比特，改用 8 比特"))
    return Compressed(num_maps, before, _num_bytes(model))


def _num_bytes(model: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


# Which matrices ---------------------------------------------------------------------------------------


def _vocabularies(model: Any) -> list[str]:
    """The word embeddings, and an output vocabulary of its own."""
    size = (model.config.vocab_size, model.config.width)
    return [name for name, module in model.named_modules() if layer_of(name) is None
            and isinstance(module, (nn.Embedding, Linear)) and tuple(module.weight.shape) == size]


def _maps(model: nn.Module) -> list[str]:
    """The linear maps inside the layers."""
    return [name for name, module in model.named_modules()
            if type(module) in (Linear, Conv1D) and layer_of(name) is not None
            and not name.startswith((f"{PLACE}.", f"{TASK_HEADS}."))]


def _round(model: nn.Module, name: str, bits: Bits, num_maps: dict[Bits, int], hessian_II: Tensor | None = None,
           ) -> None:
    """To nearest, or with compensation where it is known what the inputs are like."""
    matrix_OI = matrix_of(model.get_submodule(name))
    assert not isinstance(matrix_OI, Codes)
    num_outputs, num_inputs = matrix_OI.shape
    bits = bits_for(num_outputs, num_inputs, bits)
    importance_I = torch.ones(num_inputs) if hessian_II is None else hessian_II.diagonal()
    grid = grid_of(matrix_OI, bits, importance_I)
    codes = nearest(matrix_OI, grid) if hessian_II is None else error_compensated(matrix_OI, hessian_II, grid)
    put_in_place(model, name, codes)
    num_maps[bits] += 1


# Layer by layer ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Call:
    """How a layer was called for a batch; the hidden states, which come first, change from layer to layer."""

    hidden: Tensor
    others: tuple[Any, ...]
    named: dict[str, Any]

    def of(self, layer: nn.Module) -> Tensor:
        out: Tensor = layer(self.hidden, *self.others, **self.named)
        return out


def _layer_by_layer(model: nn.Module, bits: Bits, run: Callable[[], None], num_maps: dict[Bits, int]) -> None:
    names = list(dict.fromkeys(str(layer_of(name)) for name in _maps(model)))
    calls = _calls(model.get_submodule(names[0]), run)
    for number, name in enumerate(names):
        layer = model.get_submodule(name)
        for inside, hessian_II in _hessians(layer, calls):
            _round(model, f"{name}.{inside}", bits, num_maps, hessian_II)
        calls = [replace(call, hidden=call.of(layer)) for call in calls]
        _log.info(say(f"layer {number + 1} of {len(names)}", f"第 {number + 1} 层，共 {len(names)} 层"))


def _calls(layer: nn.Module, run: Callable[[], None]) -> list[_Call]:
    """What the layer is called with for all texts."""
    found: list[_Call] = []
    hook = layer.register_forward_pre_hook(
        lambda _, given, named: found.append(_Call(given[0], given[1:], named)), with_kwargs=True)
    run()
    hook.remove()
    return found


def _hessians(layer: nn.Module, calls: list[_Call]) -> Iterator[tuple[str, Tensor]]:
    """Each map of the layer, with Σ x xᵀ over its inputs; maps of the same input share one."""
    maps = {name: module for name, module in layer.named_modules() if type(module) in (Linear, Conv1D)}
    inputs: dict[str, Tensor] = {}
    hooks = [module.register_forward_pre_hook(lambda _, given, name=name: inputs.__setitem__(name, given[0]))
             for name, module in maps.items()]
    sums: dict[str, Tensor] = {}
    same_as: dict[str, str] = {}
    for call in calls:
        inputs.clear()
        call.of(layer)
        for name, x_MI in inputs.items():
            first = same_as.setdefault(name, next(other for other in inputs if inputs[other] is x_MI))
            if first == name:
                x_MI = x_MI.flatten(0, -2).float()
                sums[name] = torch.addmm(sums[name], x_MI.t(), x_MI) if name in sums else x_MI.t() @ x_MI
    for hook in hooks:
        hook.remove()
    yield from ((name, sums[same_as[name]]) for name in maps)
