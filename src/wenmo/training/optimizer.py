"""The optimizer: what turns gradients into new weights.

In: a model and its OptimizerSettings. Out: a torch optimizer whose parameter groups stand in a fixed order, and
its state as named tensors that go into a checkpoint and come back exactly. The rate that a group starts from is
its `initial_lr`; the loop multiplies it by the schedule's factor at every step.

Another kind of optimizer is another settings class with its own keys, and another branch in `_create`; the state
functions below serve every optimizer whose state is tensors.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Discriminator, Field, Tag, model_validator
from torch import Tensor, nn

from wenmo.config import Settings
from wenmo.errors import CheckpointError, say
from wenmo.nn.names import layer_of
from wenmo.training.adamw import FusedAdamW
from wenmo.training.adamw8 import EightBitAdamW
from wenmo.training.groups import GroupSettings, Trained, divide, trainable
from wenmo.training.lamb import Lamb as LambOptimizer
from wenmo.training.sharded import in_parts, part_of

Beta = Annotated[float, Field(ge=0, lt=1)]


class Sgd(Settings):
    """b ← μ b + g,  θ ← θ − η b (Polyak 1964); `nesterov`: θ ← θ − η (g + μ b) (Sutskever et al. 2013).

    `weight_decay` is L2: part of g.
    """

    type: Literal["sgd"] = "sgd"
    lr: float = Field(0.1, gt=0)
    momentum: Beta = 0.9
    nesterov: bool = False
    weight_decay: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _nesterov_acts(self) -> Sgd:
        if self.nesterov and self.momentum == 0:
            raise ValueError(say("`nesterov` does nothing without `momentum`",
                                 "没有 `momentum` 时 `nesterov` 不起作用"))
        return self


class _Moments(Settings):
    """The rate, and the two moments of Kingma and Ba."""

    lr: float = Field(3e-4, gt=0)
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    eps: float = Field(1e-8, gt=0)


class Adam(_Moments):
    """Kingma and Ba 2015, algorithm 1. `weight_decay` is L2: part of the gradient, so the moments see it too."""

    type: Literal["adam"] = "adam"
    weight_decay: float = Field(0.0, ge=0)


class AdamW(_Moments):
    """Loshchilov and Hutter 2019, algorithm 2: the decay stands apart from the moments. It acts on matrices alone.

    `state_bits: 8`: the moments of matrices take two bytes a parameter instead of eight (adamw8.py)."""

    type: Literal["adamw"] = "adamw"
    weight_decay: float = Field(0.01, ge=0)
    state_bits: Literal[32, 8] = 32


class Lamb(_Moments):
    """You et al. 2020, algorithm 2: each tensor moves in proportion to its own length; for very large batches."""

    type: Literal["lamb"] = "lamb"
    lr: float = Field(2e-3, gt=0)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: float = Field(1e-6, gt=0)
    weight_decay: float = Field(0.01, ge=0)


class Muon(_Moments):
    """The matrices of the layers move along their orthogonalised momentum (Jordan et al. 2024) at `matrix_lr`;
    embeddings, heads and vectors go by AdamW at `lr`. It learns more from each token, which is what a CPU is short of.
    """

    type: Literal["muon"] = "muon"
    matrix_lr: float = Field(0.01, gt=0)
    momentum: Beta = 0.95
    weight_decay: float = Field(0.01, ge=0)


class Adafactor(Settings):
    """Shazeer and Stern 2018, algorithm 4: of a matrix's second moment only row and column sums are kept.

    A step is at most `lr` times the tensor's own root mean square (or `eps`, where that is larger).
    """

    type: Literal["adafactor"] = "adafactor"
    lr: float = Field(1e-2, gt=0)
    decay_rate: float = Field(0.8, gt=0)
    clip_threshold: float = Field(1.0, ge=1)
    eps: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)


def _type(value: Any) -> Any:
    return value.get("type", "adamw") if isinstance(value, dict) else getattr(value, "type", "adamw")


OptimizerSettings = Annotated[
    Annotated[Sgd, Tag("sgd")] | Annotated[Adam, Tag("adam")] | Annotated[AdamW, Tag("adamw")]
    | Annotated[Lamb, Tag("lamb")] | Annotated[Muon, Tag("muon")] | Annotated[Adafactor, Tag("adafactor")],
    Discriminator(_type)]


@dataclass(frozen=True, slots=True)
class Start:
    """L2-SP (Xuhong Li et al. 2018, eq. 2): parameters decay towards the weights they began with instead of towards
    zero, w ← w − ηα(w − w⁰) after each step; those in `fresh`, which no training came before, as the optimizer says."""

    decay: float
    fresh: Collection[str] = ()


def build(model: nn.Module, settings: OptimizerSettings, groups: Sequence[GroupSettings] = (),
          layer_decay: float | None = None, start: Start | None = None) -> torch.optim.Optimizer:
    """An optimizer over the parameters to be trained: matrices (decayed) and the rest (not), each sorted by name.

    A parameter tied to another stands once, under its first name. The parameters are the fp32 masters. `groups` and
    `layer_decay`: see groups.py; RecipeError where they do not fit this model. `start`: the model's weights are those
    that it began with, and some decay towards these.
    """
    trained = divide(model, groups, layer_decay)
    assert all(each.parameter.dtype == torch.float32 for each in trained), "the masters are fp32"
    if not isinstance(settings, Muon):
        return _create(_param_groups(trained, settings.lr, settings.weight_decay, start), settings)
    in_layers = [each for each in trained if _is_layer_matrix(each)]
    rest = [each for each in trained if not _is_layer_matrix(each)]
    inner: list[torch.optim.Optimizer] = []
    if in_layers:
        groups_ = _param_groups(in_layers, settings.matrix_lr, settings.weight_decay, start)
        inner.append(torch.optim.Muon(groups_, lr=settings.matrix_lr, momentum=settings.momentum))
    if rest:
        inner.append(_create(_param_groups(rest, settings.lr, settings.weight_decay, start), settings))
    return _Both(inner, settings.lr)


def _is_layer_matrix(trained: Trained) -> bool:
    """A matrix of one of several like layers (`model.layers.3.mlp.up_proj.weight`): what Muon is for."""
    return trained.parameter.ndim == 2 and layer_of(trained.name) is not None


def _create(groups: list[dict[str, Any]], settings: OptimizerSettings) -> torch.optim.Optimizer:
    match settings:
        case Sgd():  # torch's fused kernel does not know tensors in parts
            plain = not any(in_parts(parameter) for group in groups for parameter in group["params"])
            return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.nesterov,
                                   fused=plain, foreach=not plain)
        case Adam():
            return torch.optim.Adam(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True)
        case Lamb():
            return LambOptimizer(groups, settings.lr, settings.betas, settings.eps)
        case Adafactor():
            return torch.optim.Adafactor(groups, lr=settings.lr, beta2_decay=-settings.decay_rate,
                                         eps=(None, settings.eps), d=settings.clip_threshold, foreach=True)
        case AdamW(state_bits=8):
            return EightBitAdamW(groups, settings.lr, settings.betas, settings.eps)
        case AdamW() | Muon():  # Muon's vectors, embeddings and heads
            return FusedAdamW(groups, settings.lr, settings.betas, settings.eps)


def _param_groups(trained: Sequence[Trained], lr: float, weight_decay: float,
                  start: Start | None) -> list[dict[str, Any]]:
    """Matrices before vectors; within them one group for each rate and decay. `is_matrices`: see LoopSettings.l1;
    `starts` and `start_decay`: see Start."""
    groups: dict[tuple[bool, float, float, bool], list[nn.Parameter]] = {}
    for is_matrix in (True, False):
        for each in trained:
            if (each.parameter.ndim >= 2) is is_matrix:
                has_start = start is not None and each.name not in start.fresh
                plain = 0.0 if has_start else weight_decay
                decay = (plain if each.weight_decay is None else each.weight_decay) if is_matrix else 0.0
                groups.setdefault((is_matrix, each.lr_scale, decay, has_start), []).append(each.parameter)
    return [{"params": params, "weight_decay": decay, "initial_lr": lr * scale, "is_matrices": is_matrix,
             **({"starts": [p.detach().clone() for p in params], "start_decay": start.decay}
                if start is not None and has_start else {})}
            for (is_matrix, scale, decay, has_start), params in groups.items()]


class _Both(torch.optim.Optimizer):
    """Several optimizers over different parameters, seen from outside as one: their groups, and one state."""

    def __init__(self, inner: Sequence[torch.optim.Optimizer], lr: float) -> None:
        super().__init__([p for each in inner for group in each.param_groups for p in group["params"]], {"lr": lr})
        self.inner = inner
        self.param_groups = [group for each in inner for group in each.param_groups]
        for each in inner:
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
    for name, parameter in sorted(trainable(model).items()):
        for key, value in optimizer.state.get(parameter, {}).items():
            assert isinstance(value, Tensor), f"{name}/{key} is not a tensor"
            tensors[f"{name}/{key}"] = value.detach().contiguous()
    return tensors


def load_state_tensors(
    optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]
) -> None:
    """Replaces the optimizer's state by what `state_tensors` gave. CheckpointError when it is another model's."""
    parameters = trainable(model)
    state: dict[Tensor, dict[str, Tensor]] = {}
    for full_name, value in tensors.items():
        name, _, key = full_name.rpartition("/")
        parameter = parameters.get(name)
        if parameter is None or not _fits(value, parameter):
            has = say("nothing of this name", "没有此名") if parameter is None else str(list(parameter.shape))
            raise CheckpointError(
                say(f"the optimizer state is of another model: it holds {full_name} {list(value.shape)}, "
                    f"the model has {has}",
                    f"优化器状态属于另一个模型：其中有 {full_name} {list(value.shape)}，而模型中为 {has}"),
                mend=say("resume with the model that the run was begun with", "请用开始该运行时的模型继续训练"),
            )
        if value.shape != parameter.shape:
            loaded = value.to(parameter.device, copy=True)
        else:  # laid out in memory like the parameter, as the fused kernel had it
            loaded = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False)
            loaded.copy_(part_of(value, parameter))
        state.setdefault(parameter, {})[key] = loaded
    optimizer.state.clear()
    optimizer.state.update(state)


def _fits(value: Tensor, parameter: Tensor) -> bool:
    """A number, a tensor of the parameter's shape, or Adafactor's: the same with one of the last two sizes 1."""
    if value.ndim == 0:
        return True
    return value.ndim == parameter.ndim and all(
        one == whole or (one == 1 and place >= value.ndim - 2)
        for place, (one, whole) in enumerate(zip(value.shape, parameter.shape, strict=True)))
