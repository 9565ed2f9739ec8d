"""An adapter over a base that is in memory already: what the two have in common is there once.

In: the adapter's model, with its low-rank products beside copies of the base's matrices (nn/lora.py), and the base's
model, as it was loaded or packed for an engine. Out: the adapter's model, whose copies have given way to the base's own
tensors or packed maps. It computes W x + s B A x (Hu et al. 2021, §4.1), the two products apart.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wenmo.engine.packed import Format, Norm, Packed, Part
from wenmo.nn.lora import LoraLinear


class Shifted(nn.Module):
    """A packed map, or several joined, and the low-rank product of each that is adapted: stands where a Packed may."""

    def __init__(self, base: Packed, loras: Sequence[LoraLinear | None]) -> None:
        super().__init__()
        self.base, self.widths = base, base.widths
        exact: Format = "fp32" if base.format == "fp32" else "bf16"
        self.places = [place for place, lora in enumerate(loras) if lora is not None]
        adapted = [lora for lora in loras if lora is not None]
        self.ranks = [lora.how.rank for lora in adapted]
        self.down = Packed(torch.cat([lora.lora_A.weight for lora in adapted]), None, exact, tuple(self.ranks))
        self.up = nn.ModuleList(Packed(lora.lora_B.weight * lora.how.scale, None, exact, (width,))
                                for lora, width in zip(adapted, (self.widths[place] for place in self.places),
                                                       strict=True))

    def forward(self, x_MI: Tensor) -> Tensor:
        outs = list(torch.split(self.base(x_MI), list(self.widths), dim=-1))
        lows = torch.split(self.down(x_MI), self.ranks, dim=-1)
        for place, low_MR, up in zip(self.places, lows, self.up, strict=True):
            outs[place] = outs[place] + up(low_MR.contiguous())
        return outs[0] if len(outs) == 1 else torch.cat(outs, dim=-1)


def share(model: Any, base: Any, whole: Collection[str]) -> None:
    """Puts the base's own tensors and packed maps in the place of the model's copies, but for the parameters that are
    the adapter's own (`whole`: those that it has trained whole). The base must be the adapter's: nothing is compared
    but shapes. No map may be adapted in another way than by LoRA."""
    theirs = dict(base.named_parameters())
    for name, parameter in model.named_parameters():
        if name in theirs and name not in whole and theirs[name].shape == parameter.shape:
            parameter.data = theirs[name].data
    joints: dict[Packed, list[tuple[str, Part]]] = {}
    for name, module in base.named_modules():
        own = _at(model, name)
        if own is None or f"{name}.weight" in whole:
            continue
        if isinstance(module, Part):
            joints.setdefault(module.joint, []).append((name, module))
        elif isinstance(module, Packed) and not isinstance(_at(base, name.rpartition(".")[0]), Part):
            _put(model, name, Shifted(module, [own]) if isinstance(own, LoraLinear) else module)
        elif isinstance(module, Norm):
            _put(model, name, module)
    for joint, parts in joints.items():
        loras = [own if isinstance(own := _at(model, name), LoraLinear) else None for name, _ in parts]
        shifted: Any = joint if loras == [None] * len(loras) else Shifted(joint, loras)
        for name, part in parts:
            _put(model, name, Part(shifted, part.index))
    model.compute_dtype = base.compute_dtype


def _at(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    place, _, last = name.rpartition(".")
    setattr(model.get_submodule(place), last, module)
