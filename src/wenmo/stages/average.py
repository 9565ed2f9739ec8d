"""`wenmo average`: several models of one shape → one with the mean of their weights.

In: references to models (Runs, checkpoints) of one architecture, tokenizer and task, most often from one parent. Out: a
ModelDir that costs what one of them costs: a uniform soup (Wortsman et al. 2022, §2), or the mean of a run's last
checkpoints (Polyak and Juditsky 1992). Whether it is better must be measured; models from different parents lie in
different valleys, and their mean is worth nothing.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from wenmo import golden
from wenmo.errors import ModelError, UsageError, say
from wenmo.locate import locate
from wenmo.modeldir import CARD, Opened, merge, open_model, save_model, weights_sha256
from wenmo.nn.quantized import is_quantized
from wenmo.stages.out_folder import refuse_other_things

_log = logging.getLogger(__name__)


def average(references: Sequence[str], out: Path) -> dict[str, Any]:
    """Writes the mean model to `out`: {"model", "averaged", "parameters", "distance"}.

    `distance` is how far the models lie from their mean, as a share of its norm: ‖w_i − w̄‖ / ‖w̄‖, the mean over i.
    Raises UsageError for fewer than two models, or an `out` with other things in it; ModelError where they are not of
    one kind, or in few bits.
    """
    if len(references) < 2:
        raise UsageError(say("an average needs two models at least", "平均至少需要两个模型"), where="wenmo average",
                         mend="wenmo average runs/a runs/b --out runs/mean")
    refuse_other_things(out, CARD, "config.json", read=tuple(map(locate, references)))
    first = _opened(references[0])
    parameters = dict(first.model.named_parameters())
    sums = {name: parameter.detach().double() for name, parameter in parameters.items()}
    hashes = [weights_sha256(first.model)]
    for reference in references[1:]:
        other = _opened(reference)
        _refuse_other(first, other, references[0], reference)
        hashes.append(weights_sha256(other.model))
        for name, parameter in other.model.named_parameters():
            sums[name] += parameter.detach().double()
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(sums[name] / len(references))
    first.card.pop("scores", None)  # of the first alone
    if "tasks" in first.card:
        first.card["tasks"] = {name: _untuned(task) for name, task in first.card["tasks"].items()}
    first.card["lineage"] = {
        "average_of": [{"reference": reference, "weights_sha256": digest}
                       for reference, digest in zip(references, hashes, strict=True)]}
    if first.tokenizer is not None:
        first.card["golden"] = golden.record(first.model, first.tokenizer)
    save_model(out, first)
    number = sum(parameter.numel() for parameter in parameters.values())
    distance = _distance(references, parameters)
    _log.info(say(f"the mean of {len(references)} models is in {out}; they lie {distance:.1%} of its norm from it",
                  f"{len(references)} 个模型的平均在 {out}；它们与平均的距离为其范数的 {distance:.1%}"))
    return {"model": str(out), "averaged": list(references), "parameters": number, "distance": round(distance, 6)}


def _opened(reference: str) -> Opened:
    opened = open_model(reference)
    if is_quantized(opened.model):
        raise ModelError(say("weights in few bits have no mean", "低比特权重无法平均"), where=reference,
                         mend=say("average the models that it was made from, then wenmo compress",
                                  "请先平均压缩之前的模型，再用 wenmo compress 压缩"))
    merge(opened)
    return opened


def _refuse_other(first: Opened, other: Opened, name: str, other_name: str) -> None:
    """ModelError with what differs between two models."""
    tokenizers = [None if each.tokenizer is None else each.tokenizer.sha256 for each in (first, other)]
    differing = {
        say("configuration", "配置"): _differences(first.model.config.model_dump(), other.model.config.model_dump()),
        say("heads", "输出头"): _differences(first.model.heads, other.model.heads),
        say("tokenizer", "分词器"): [] if tokenizers[0] == tokenizers[1] else ["tokenizer.json"],
        say("tasks", "任务"): _differences(*({name: _untuned(task) for name, task in each.card.get("tasks", {}).items()}
                                           for each in (first, other))),
    }
    faults = [f"{what}{say(': ', '：')}{', '.join(names)}" for what, names in differing.items() if names]
    if faults:
        raise ModelError(
            say("these models cannot be averaged: they differ in ", "这些模型不能平均，差别在于：") + "; ".join(faults),
            where=f"{name} | {other_name}",
            mend=say("average runs that began with one model (`model.from`; other seeds, folds or `train:`), or let "
                     "the models answer together: wenmo predict A --with B",
                     "请平均从同一模型（`model.from`）开始的多次训练（不同种子、折或 `train:` 设定），"
                     "或让模型一起作答：wenmo predict A --with B"))


_TUNED = ("threshold", "thresholds", "null_threshold")  # to one model's scores, when its training ended


def _untuned(task: Any) -> Any:
    """A task's part of the card, and of those inside it, without what was tuned."""
    if not isinstance(task, Mapping):
        return task
    return {name: _untuned(value) for name, value in task.items() if name not in _TUNED}


_MAY_DIFFER = ("dropout", "_pdrop")  # in training alone


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    return [name for name in sorted({*a, *b}) if a.get(name) != b.get(name)
            and not any(part in name for part in _MAY_DIFFER)]


def _distance(references: Sequence[str], mean: Mapping[str, torch.nn.Parameter]) -> float:
    norm = math.sqrt(sum(float(parameter.detach().double().square().sum()) for parameter in mean.values()))
    total = 0.0  # of models opened one after another, so that two at most are in memory
    for reference in references:
        own = dict(_opened(reference).model.named_parameters())
        apart = sum(float((own[name].detach() - parameter.detach()).double().square().sum())
                    for name, parameter in mean.items())
        total += math.sqrt(apart)
    return total / (len(references) * norm)
