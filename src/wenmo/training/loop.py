"""The training loop: the only one. A generator; the caller logs, evaluates and saves between two steps.

In: a model, an optimizer, an Objective, and `batches(step)` → the micro-batches of that step. Out: one StepResult a
step, the weights changed in place.

A step is a pure function of the weights, the optimizer's state and (seed, step). Dropout draws from
key(seed, "forward", step, micro-batch), so a resumed run draws what the first would have drawn. Each term is
divided by its count over all micro-batches of the step, so that cutting a step into slices changes nothing. Where an
objective compares the rows of a step with each other, it does so across the slices too, by gradient caching. Of
several processes (processes.py) each carries out its own slices; counts, sums and gradients are of all of them.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from wenmo.config import Settings
from wenmo.data.sequence import Batch, joined
from wenmo.device import Device, key
from wenmo.errors import NumericsError, say
from wenmo.objectives import Coupled, Objective, Term
from wenmo.training.processes import ALONE, Processes
from wenmo.training.sharded import own_part, whole

MAX_ROWS_SHOWN = 20


class LoopSettings(Settings):
    """`clip`: the largest gradient norm, null for none. `non_finite`: what a step with NaN or infinity does.

    `l1`: λ of a penalty λ Σ|w| over all trained matrices. It is minimised by its proximal step after the optimizer's,
    w ← sign(w) max(|w| − ηλ, 0) (Parikh and Boyd 2014, §6.5.2): exact zeros, and no moment or norm to bend it.
    """

    clip: float | None = Field(1.0, gt=0)
    non_finite: Literal["stop", "skip"] = "stop"
    l1: float = Field(0.0, ge=0)


@dataclass(frozen=True, slots=True)
class StepResult:
    """`step` counts the steps done, from 1. `terms` are means over the step, before their weights; `l1` is among them.

    `lr` is the recipe's, times the schedule's factor; groups may have shares of it, and Muon's matrices their own.
    `grad_norm` is the norm before clipping. A skipped step left weights and optimizer as they were.
    """

    step: int
    loss: float
    terms: Mapping[str, float]
    lr: float
    grad_norm: float
    num_tokens: int
    seconds: float
    skipped: bool = False


def steps(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    batches: Callable[[int], Sequence[Batch]],
    *,
    lr_factor: Callable[[int], float],
    total_steps: int,
    settings: LoopSettings,
    device: Device,
    seed: int,
    start_step: int = 0,
    frozen: Callable[[int], contextlib.AbstractContextManager[None]] = lambda _: contextlib.nullcontext(),
    processes: Processes = ALONE,
) -> Iterator[StepResult]:
    """Carries out the steps start_step … total_steps - 1; `batches` and `lr_factor` are asked with these numbers.

    The caller may evaluate between two steps: the model is put into training mode at each. torch's global random
    state is set anew for every micro-batch. `frozen`: what of the model is not trained in a step; it is asked with the
    step's number, and holds inside its block. `processes`: `batches` gives each of them the whole step, and it takes
    its share. Raises NumericsError under `non_finite: stop`; the weights and the optimizer are then those of the step
    before.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    matrix_groups = [group for group in optimizer.param_groups if group["is_matrices"]] if settings.l1 else []
    optimizer.zero_grad(set_to_none=True)
    for n in range(start_step, total_steps):
        began = time.perf_counter()
        model.train()
        with frozen(n):
            step = _Step(model, objective, batches(n), device, seed, n, processes)
            parts = step.backward()
            processes.sum_gradients(parameters)

            # No name for the list: it would hold the gradients while the next step makes its own.
            grad_norm = float(whole(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])))
            means = step.means(parts)
            loss = sum((part.weight * part.sum / step.totals[part.name] for part in parts), 0.0)
            if matrix_groups:
                means["l1"] = settings.l1 * _absolute_sum(matrix_groups)
                loss += means["l1"]
            finite = math.isfinite(loss) and math.isfinite(grad_norm)
            if not finite and settings.non_finite == "stop":
                error = step.non_finite(parts)
                optimizer.zero_grad(set_to_none=True)
                raise error

            factor = lr_factor(n)
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
            if finite:
                if settings.clip is not None and grad_norm > settings.clip:
                    torch.nn.utils.clip_grads_with_norm_(parameters, settings.clip, torch.tensor(grad_norm))
                optimizer.step()
                for group in matrix_groups:
                    _shrink(_trained(group), group["lr"] * settings.l1)
                for group in optimizer.param_groups:
                    if "starts" in group:  # L2-SP: see optimizer.Start
                        torch._foreach_lerp_([p.data for p in group["params"]], group["starts"],
                                             min(1.0, group["lr"] * group["start_decay"]))
            optimizer.zero_grad(set_to_none=True)
        yield StepResult(
            step=n + 1, loss=loss, terms=means, lr=optimizer.defaults["lr"] * factor, grad_norm=grad_norm,
            num_tokens=step.num_tokens,
            seconds=time.perf_counter() - began, skipped=not finite,
        )


def _trained(group: dict[str, Any]) -> list[Tensor]:
    """The parameters of a group that are trained in this step."""
    return [parameter for parameter in group["params"] if parameter.requires_grad]


@torch.no_grad()
def _absolute_sum(groups: list[dict[str, Any]]) -> float:
    """Σ|w|."""
    norms = [norm for group in groups for norm in torch._foreach_norm(_trained(group), 1)]
    return float(whole(torch.stack(norms).sum()))


@torch.no_grad()
def _shrink(parameters: list[Tensor], by: float) -> None:
    """w ← sign(w) max(|w| − by, 0)."""
    for parameter in parameters:
        own = own_part(parameter)
        own.copy_(torch.nn.functional.softshrink(own, by))


@dataclass(frozen=True, slots=True)
class _Part:
    """One term of one micro-batch (or of all together: None), as a number."""

    micro: int | None
    name: str
    weight: float
    sum: float


class _Step:
    """The forward and backward of one step over its micro-batches; it can be done again to find a fault.

    `micro`: this process's, by their numbers among all of the step.
    """

    def __init__(self, model: nn.Module, objective: Objective, batches: Sequence[Batch], device: Device, seed: int,
                 n: int, processes: Processes) -> None:
        self.model, self.objective, self.batches = model, objective, batches
        self.device, self.seed, self.n, self.processes = device, seed, n, processes
        self.micro = {i: batches[i] for i in processes.share(len(batches))}
        self.coupled = objective.coupled if len(batches) > 1 else None
        if self.coupled is None:
            told = processes.told([[batch.num_tokens, objective.counts(batch)] for batch in self.micro.values()])
            counted = [pair for each in told for pair in each]
        else:  # every process compares all rows
            self.rows = joined(batches)
            counted = [[self.rows.num_tokens, objective.counts(self.rows)]]
        self.num_tokens = sum(number for number, _ in counted)
        self.totals: dict[str, float] = {}
        for _, counts in counted:
            for name, count in counts.items():
                self.totals[name] = self.totals.get(name, 0) + count

    def terms(self, i: int) -> list[Term]:
        """The terms of micro-batch i that count something in this step; the same at every call."""
        self._draw(i)
        batch = self.micro[i] if i in self.micro else self.batches[i]
        terms = self.objective.terms(self.model, batch.to(self.device.device))
        return [term for term in terms if self.totals[term.name] > 0]

    def _draw(self, i: int) -> None:
        torch.manual_seed(key(self.seed, "forward", self.n, i))

    def backward(self) -> list[_Part]:
        """Adds the gradient of this process's share of the loss to the parameters, and gives the parts of the loss of
        all processes, in the order of their micro-batches. The numbers come over from the device at once."""
        if self.coupled is not None:  # each process has compared all rows
            return _numbers([(None, term) for term in self._cached(self.coupled)])
        found: list[tuple[int | None, Term]] = []
        for i in self.micro:
            terms = self.terms(i)
            self._backward(terms)
            found += [(i, Term(term.name, term.sum.detach(), term.weight)) for term in terms]
        if self.processes.sharded:
            self._keep_step()
        told = self.processes.told([[part.micro, part.name, part.weight, part.sum] for part in _numbers(found)])
        return [_Part(*part) for each in told for part in each]

    def _keep_step(self) -> None:
        """A model in parts is gathered by all processes together: one that has fewer micro-batches than another goes
        along with the last, and learns nothing from it."""
        most = -(-len(self.batches) // self.processes.size)
        for _ in range(most - len(self.micro)):
            self._backward(self.terms(len(self.batches) - 1), 0.0)

    def _backward(self, terms: list[Term], scale: float = 1.0) -> None:
        shares = [scale * term.weight * (term.sum / self.totals[term.name]) for term in terms]
        shares = [share for share in shares if share.requires_grad]
        if shares:
            torch.autograd.backward(sum(shares[1:], shares[0]))

    def _cached(self, coupled: Coupled) -> list[Term]:
        """Gradient caching (Gao et al. 2021, §3.2): what the model makes of all rows, without a graph; the gradient of
        the loss with respect to that; then micro-batch after micro-batch again, with a graph and this gradient. Two
        forwards for the memory of one micro-batch, and the same numbers as in a single batch."""
        parts = []
        last = len(self.batches) - 1
        for i, batch in (self.micro or {last: self.batches[last]}).items():
            self._draw(i)
            with torch.no_grad():
                parts.append(coupled.represent(self.model, batch.to(self.device.device)))
        rows, done = self._of_all(parts)
        terms = coupled.compare(rows, self.rows.to(self.device.device))
        terms = [term for term in terms if self.totals[term.name] > 0]
        self._backward(terms)
        for i, batch in self.micro.items():
            self._draw(i)
            outputs, gradients = [], []
            for role, made in coupled.represent(self.model, batch.to(self.device.device)).items():
                cached = rows[role].grad
                if cached is not None and made.requires_grad:
                    outputs.append(made)
                    gradients.append(cached[done[role] : done[role] + len(made)])
                done[role] += len(made)
            if outputs:
                torch.autograd.backward(outputs, gradients)
        return [Term(term.name, term.sum.detach(), term.weight) for term in terms]

    def _of_all(self, parts: list[dict[str, Tensor]]) -> tuple[dict[str, Tensor], dict[str, int]]:
        """By role the representations of all rows of the step, and where those of this process begin in them."""
        rows, begins = {}, {}
        for role in parts[0]:
            own = torch.cat([part[role] for part in parts])
            own = own if self.micro else own[:0]  # there are fewer micro-batches than processes
            begins[role] = sum(self.processes.told(len(own))[: self.processes.rank])
            rows[role] = self.processes.end_to_end(own).requires_grad_()
        return rows, begins

    def means(self, parts: list[_Part]) -> dict[str, float]:
        means: dict[str, float] = {}
        for part in parts:
            means[part.name] = means.get(part.name, 0.0) + part.sum / self.totals[part.name]
        return means

    # Finding a fault --------------------------------------------------------------------------------------

    def non_finite(self, parts: list[_Part]) -> NumericsError:
        """The error that names the first term, micro-batch and parameter that are not finite."""
        for part in parts:
            if not math.isfinite(part.sum):
                return self._error(part.micro, say(f"the term `{part.name}` is {part.sum}",
                                                   f"损失项 `{part.name}` 为 {part.sum}"))
        for name, parameter in self.model.named_parameters() if self.coupled is not None else ():
            if parameter.grad is not None and not _is_finite(parameter.grad):
                return self._error(None, say(f"the gradient of `{name}` is not finite", f"`{name}` 的梯度不是有限数"))
        for i in range(len(self.batches)) if self.coupled is None else ():  # each process looks at them all
            for t, term in enumerate(self.terms(i)):
                self.model.zero_grad(set_to_none=True)
                self._backward([self.terms(i)[t]])
                for name, parameter in self.model.named_parameters():
                    if parameter.grad is not None and not _is_finite(parameter.grad):
                        return self._error(i, say(
                            f"the gradient of `{name}` from the term `{term.name}` is not finite",
                            f"损失项 `{term.name}` 对 `{name}` 的梯度不是有限数",
                        ))
        return self._error(None, say("the sum over the micro-batches, or the gradient norm, overflows",
                                     "各微批之和或梯度范数溢出"))

    def _error(self, i: int | None, fault: str) -> NumericsError:
        batches = self.batches if i is None else [self.batches[i]]
        rows: dict[str, list[int]] = {}
        for batch in batches:
            for role, flat in batch.roles.items():
                rows.setdefault(role, []).extend(flat.rows)
        part = "" if i is None else say(f"micro-batch {i + 1} of {len(self.batches)}, ",
                                        f"微批 {i + 1}/{len(self.batches)}，")
        return NumericsError(
            say(f"step {self.n + 1}: {fault}; the weights were left as they were",
                f"第 {self.n + 1} 步：{fault}；权重保持原样"),
            where=part + "; ".join(f"{role}: {_shown(numbers)}" for role, numbers in rows.items()),
            mend=say("look at these rows; lower train.optimizer.lr; use train.dtype=fp32; or leave such steps out "
                     "with train.non_finite=skip",
                     "检查这些行；降低 train.optimizer.lr；使用 train.dtype=fp32；"
                     "或用 train.non_finite=skip 跳过这类步"),
        )


def _numbers(found: list[tuple[int | None, Term]]) -> list[_Part]:
    sums = torch.stack([term.sum.float() for _, term in found]).tolist() if found else []
    return [_Part(i, t.name, t.weight, value) for (i, t), value in zip(found, sums, strict=True)]


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(whole(tensor)).all())


def _shown(rows: list[int]) -> str:
    unique = sorted(set(rows))
    text = say("rows ", "行 ") + ", ".join(map(str, unique[:MAX_ROWS_SHOWN]))
    more = len(unique) - MAX_ROWS_SHOWN
    return text + (say(f" and {more} more", f" 等，另有 {more} 行") if more > 0 else "")
