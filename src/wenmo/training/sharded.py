"""A model in parts, one for each of several processes (fully sharded data parallel: FSDP2, torch's own).

In: a whole model. Out: a copy whose every parameter is cut along its first size, so that each process keeps, updates
and remembers (gradient, optimizer state) one part of it. A layer is gathered for the time of its forward and again of
its backward, and what its gradient comes to is added up part by part (Rajbhandari et al. 2020, stage 3; Zhao et al.
2023). The whole model stays beside it in the first process alone: there it is evaluated, sampled from and saved.

A tensor in parts is a DTensor. `whole` and `part_of` go between it and a plain one; for plain tensors they do nothing.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from wenmo.errors import RecipeError, say
from wenmo.nn.block import Block


def shard(model: nn.Module) -> nn.Module:
    """A copy of the model, in parts; every process calls it with the same weights.

    Each layer is gathered by itself, all else (embeddings, heads) together. Gradients are sums over the processes.
    """
    # These take half a second, which a run by itself saves.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    warnings.filterwarnings("ignore", "FSDP2-wrapped module")  # of views, which nothing here changes in place
    mesh = init_device_mesh(next(model.parameters()).device.type, (dist.get_world_size(),))
    copied = copy.deepcopy(model)
    for block in _separate(copied):
        fully_shard(block, mesh=mesh)
    fully_shard(copied, mesh=mesh)
    for module in copied.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # the loop divides by counts over all processes
            module.set_force_sum_reduction_for_comms(True)  # gloo knows sums alone
            module.set_reduce_scatter_unused_params(True)  # a head that no row of this process needs
    return copied


def _separate(model: nn.Module) -> list[nn.Module]:
    """The layers that can be gathered each by itself. One that has more than the last of its row (T5's first, whose
    table of distances serves them all) is not among them."""
    found: list[nn.Module] = []
    for row in model.modules():
        if isinstance(row, nn.ModuleList) and len(row) and all(isinstance(layer, Block) for layer in row):
            names = {name for name, _ in row[-1].named_parameters()}
            found += [layer for layer in row if {name for name, _ in layer.named_parameters()} == names]
    return found


def in_parts(tensor: Tensor) -> bool:
    """Whether it is a DTensor, told without importing what makes them."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Any) -> Tensor:
    """A tensor in parts, gathered: all processes must ask. A plain one as it is."""
    full: Tensor = tensor.full_tensor() if in_parts(tensor) else tensor
    return full


def own_part(tensor: Any) -> Tensor:
    """What this process has of a tensor, sharing its memory."""
    part: Tensor = tensor.to_local() if in_parts(tensor) else tensor
    return part


def part_of(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor that each process has, in parts as `like` is; as it is where `like` is plain."""
    if not in_parts(like):
        return value
    from torch.distributed.tensor import distribute_tensor

    sharded: Any = like
    return distribute_tensor(value.to(like.device), sharded.device_mesh, sharded.placements, src_data_rank=None)


def gathered(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """The tensors whole, those in parts in the memory of the processor; a process that does not `keep` them only helps,
    and never holds more than one."""
    result = {}
    for name, tensor in tensors.items():
        full = whole(tensor)
        if keep:
            result[name] = full if full is tensor else full.cpu()
    return result


@torch.no_grad()
def gather_into(model: nn.Module | None, tensors: Mapping[str, Tensor]) -> None:
    """Copies what is in parts into the tensors of a whole model, by name; where it is None, this process only helps."""
    own = {} if model is None else model.state_dict()
    for name, tensor in tensors.items():
        full = whole(tensor)
        if model is not None:
            own[name].copy_(full)


def refuse(key: str) -> RecipeError:
    """The error for a key of the recipe as it stands there."""
    return RecipeError(
        say(f"`{key}` as it is does not go with `train.parallel: {{type: fsdp}}`, which has the weights in parts",
            f"`{key}` 的当前设置不能与 `train.parallel: {{type: fsdp}}` 同用：后者把权重切成了份"),
        where=key, mend="train.parallel: {type: ddp}")
