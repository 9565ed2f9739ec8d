"""Heads of several tasks on one body.

Hugging Face has one head a class, and the same name for many of them (`classifier`). A model of several tasks keeps the
bare body in Hugging Face's layout and each task's head beside it, under `task_heads.NAME.`; transformers opens it as a
body. In: names of heads, `NAME:KIND`, with their numbers of outputs. Out: the modules, and `TaskView`: the model as one
of its tasks sees it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wenmo.nn.crf import CRF
from wenmo.nn.dropout import Dropout
from wenmo.nn.initialisation import initialise_normal
from wenmo.nn.linear import Linear
from wenmo.nn.padding import starts_of

TASK_HEADS = "task_heads"  # the attribute, and the beginning of the parameters' names
_BETWEEN = ":"


def head_name(task: str, kind: str) -> str:
    return f"{task}{_BETWEEN}{kind}"


def is_task_head(name: str) -> bool:
    return _BETWEEN in name


def split_name(name: str) -> tuple[str, str]:
    """(task, kind); the name of a model's own head is its kind, without a task."""
    task, _, kind = name.rpartition(_BETWEEN)
    return task, kind


class ClassesHead(nn.Module):
    """Scores of a text's classes. Of a bidirectional body dropout → dense → tanh → dropout → linear on the first token
    (as BERT's pooler and classifier, or RoBERTa's); of a causal one linear on the last, which alone has read all."""

    def __init__(self, width: int, num_outputs: int, rate: float, *, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.dropout = Dropout(rate)
        if not causal:
            self.dense = Linear(width, width)
        self.out_proj = Linear(width, num_outputs)

    def forward(self, hidden_MD: Tensor, lengths: Sequence[int]) -> Tensor:
        """[B, C]."""
        places_B = starts_of(lengths)
        if self.causal:
            places_B = places_B + torch.tensor(lengths) - 1
        pooled_BD = self.dropout(hidden_MD.index_select(0, places_B.to(hidden_MD.device)))
        if not self.causal:
            pooled_BD = self.dropout(torch.tanh(self.dense(pooled_BD)))
        out: Tensor = self.out_proj(pooled_BD)
        return out


class TokensHead(nn.Module):
    """Scores of each token: dropout → linear."""

    def __init__(self, width: int, num_outputs: int, rate: float) -> None:
        super().__init__()
        self.dropout = Dropout(rate)
        self.out_proj = Linear(width, num_outputs)

    def forward(self, hidden_MD: Tensor) -> Tensor:
        """[M, C]."""
        out: Tensor = self.out_proj(self.dropout(hidden_MD))
        return out


def task_heads(config: Any, heads: Mapping[str, int], *, causal: bool, generator: torch.Generator) -> nn.ModuleDict:
    """The modules of `heads` (`NAME:KIND` → number of outputs), freshly initialised."""
    modules = nn.ModuleDict()
    rate = float(getattr(config, "head_dropout", 0.0))
    transitions = {}
    for name, num_outputs in heads.items():
        task, kind = split_name(name)
        if kind == "crf":
            transitions[task] = CRF(num_outputs)
        elif kind == "classification":
            modules[task] = ClassesHead(config.width, num_outputs, rate, causal=causal)
        else:
            modules[task] = TokensHead(config.width, 2 if kind == "span_qa" else num_outputs, rate)
    initialise_normal(modules, float(getattr(config, "initializer_range", 0.02)), generator)
    for task, crf in transitions.items():  # beside the scores of its tokens; all zero at first
        modules[task].crf = crf
    return modules


class TaskView:
    """A model of several tasks as one of them sees it: the body is shared, the head its own.

    `hidden_MD`, where they are known already, are what the first call gives: several tasks then share one forward.
    """

    def __init__(self, model: Any, task: str, hidden_MD: Tensor | None = None) -> None:
        self._model, self._head, self._hidden_MD = model, getattr(model, TASK_HEADS)[task], hidden_MD
        self.config, self.causal, self.compute_dtype = model.config, model.causal, model.compute_dtype
        self.heads = {kind: number for name, number in model.heads.items()
                      for own, kind in [split_name(name)] if own == task}

    @property
    def crf(self) -> CRF:
        """Of a head that has one."""
        found: CRF = self._head.crf
        return found

    @property
    def training(self) -> bool:
        return bool(self._model.training)

    def __call__(self, ids_M: Tensor, lengths: Sequence[int], *target: Any, **inputs: Any) -> Tensor:
        """Whole sequences, end to end → hidden_MD."""
        if self._hidden_MD is not None:
            hidden_MD, self._hidden_MD = self._hidden_MD, None
            return hidden_MD
        found: Tensor = self._model(ids_M, lengths, *target, **inputs)
        return found

    def classify(self, hidden_MD: Tensor, lengths: Sequence[int]) -> Tensor:
        """[B, C]."""
        scores_BC: Tensor = self._head(hidden_MD, lengths)
        return scores_BC

    def tag(self, hidden_MD: Tensor) -> Tensor:
        """[M, C]."""
        scores_MC: Tensor = self._head(hidden_MD)
        return scores_MC

    def spans(self, hidden_MD: Tensor) -> Tensor:
        """[M, 2]."""
        scores_M2: Tensor = self._head(hidden_MD)
        return scores_M2
