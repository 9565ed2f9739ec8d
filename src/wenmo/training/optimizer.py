"""The optimizer: what turns gradients into new weights.

In: a model and its OptimizerSettings. Out: a torch optimizer whose parameter groups stand in a fixed order, and
its state as named tensors that go into a checkpoint and come back exactly. The rate that a group starts from is
its `initial_lr`; the loop multiplies it by the schedule's factor at every step.

Another kind of optimizer is another word in `OptimizerSettings.type` and another branch in `build`; the state
functions below serve every optimizer whose state is tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from wenmo.config import Settings
from wenmo.errors import CheckpointError, say

Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerSettings(Settings):
    """adamw: Loshchilov and Hutter 2019, algorithm 2. `weight_decay` acts on matrices alone.

    muon: the matrices of the layers move along their orthogonalised momentum (Jordan et al. 2024) at `matrix_lr`;
    embeddings, heads and vectors go by AdamW at `lr`. It learns more from each token, which is what a CPU is short of.
    """

    type: Literal["adamw", "muon"] = "adamw"
    lr: float = Field(3e-4, gt=0)
    matrix_lr: float | None = Field(None, gt=0)
    momentum: Beta | None = None
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.01, ge=0)

    @model_validator(mode="after")
    def _of_its_type(self) -> OptimizerSettings:
        if self.type == "adamw" and (self.matrix_lr is not None or self.momentum is not None):
            raise ValueError(say("`matrix_lr` and `momentum` belong to `type: muon`",
                                 "`matrix_lr` 与 `momentum` 只用于 `type: muon`"))
        return self


def build(model: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """An optimizer over the trainable parameters: matrices (decayed) and the rest (not), each sorted by name.

    A parameter tied to another stands once, under its first name. The parameters are the fp32 masters.
    """
    parameters = sorted(_trainable(model).items())
    assert parameters, "a model without trainable parameters cannot be trained"
    assert all(p.dtype == torch.float32 for _, p in parameters), "the masters are fp32"
    in_layers = [p for name, p in parameters if settings.type == "muon" and p.ndim == 2 and _in_a_layer(name)]
    chosen = {id(p) for p in in_layers}
    matrices = [p for _, p in parameters if p.ndim >= 2 and id(p) not in chosen]
    vectors = [p for _, p in parameters if p.ndim < 2]
    groups: list[dict[str, Any]] = [
        {"params": group, "weight_decay": decay, "initial_lr": settings.lr}
        for group, decay in ((matrices, settings.weight_decay), (vectors, 0.0))
        if group
    ]
    adamw = torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True)
    if not in_layers:
        return adamw
    matrix_lr = settings.matrix_lr or 0.01
    momentum = 0.95 if settings.momentum is None else settings.momentum
    muon = torch.optim.Muon([{"params": in_layers, "initial_lr": matrix_lr}], lr=matrix_lr, momentum=momentum,
                            weight_decay=settings.weight_decay)
    return _Both(muon, adamw)


def _in_a_layer(name: str) -> bool:
    """Whether a parameter belongs to one of several like layers: `model.layers.3.mlp.up_proj.weight`."""
    return any(part.isdigit() for part in name.split("."))


class _Both(torch.optim.Optimizer):
    """Two optimizers over different parameters, seen from outside as one: their groups, and one state."""

    def __init__(self, muon: torch.optim.Optimizer, adamw: torch.optim.Optimizer) -> None:
        super().__init__([p for each in (muon, adamw) for group in each.param_groups for p in group["params"]], {})
        self.inner = (muon, adamw)
        self.param_groups = [group for each in self.inner for group in each.param_groups]
        for each in self.inner:
            each.state = self.state

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None, "the loop computes gradients itself"
        for each in self.inner:
            each.step()


def state_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The whole state by parameter name: "layers.0.q.weight/exp_avg", …/exp_avg_sq, …/step.

    The rates are not part of it: they are a function of the step. A parameter that never had a gradient has none.
    """
    tensors = {}
    for name, parameter in sorted(_trainable(model).items()):
        for key, value in optimizer.state.get(parameter, {}).items():
            assert isinstance(value, Tensor), f"{name}/{key} is not a tensor"
            tensors[f"{name}/{key}"] = value.detach().contiguous()
    return tensors


def load_state_tensors(
    optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]
) -> None:
    """Replaces the optimizer's state by what `state_tensors` gave. CheckpointError when it is another model's."""
    parameters = _trainable(model)
    state: dict[Tensor, dict[str, Tensor]] = {}
    for full_name, value in tensors.items():
        name, _, key = full_name.rpartition("/")
        parameter = parameters.get(name)
        if parameter is None or (value.ndim > 0 and value.shape != parameter.shape):
            has = say("nothing of this name", "没有此名") if parameter is None else str(list(parameter.shape))
            raise CheckpointError(
                say(f"the optimizer state is of another model: it holds {full_name} {list(value.shape)}, "
                    f"the model has {has}",
                    f"优化器状态属于另一个模型：其中有 {full_name} {list(value.shape)}，而模型中为 {has}"),
                mend=say("resume with the model that the run was begun with", "请用开始该运行时的模型继续训练"),
            )
        if value.ndim == 0:
            loaded = value.to(parameter.device, copy=True)
        else:  # laid out in memory like the parameter, as the fused kernel had it
            loaded = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
        state.setdefault(parameter, {})[key] = loaded
    optimizer.state.clear()
    optimizer.state.update(state)


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
