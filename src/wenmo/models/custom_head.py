"""Heads put on a bare body: of the user's own in the place of an architecture's, or of several tasks (task_heads.py).

One's own is any `nn.Module` from hidden states to scores. In: head kind → a function `(width, number of outputs) →
nn.Module`, whose forward takes (hidden_MD, lengths) and gives [B, outputs]. Out: a model whose weights include the
head's, under `custom_heads.KIND.`; whatever asks for the scores of the kind gets the module's. Nothing is registered:
who opens such a model hands its head in again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wenmo.errors import ModelError, UsageError, say
from wenmo.models.task_heads import TASK_HEADS, is_task_head, task_heads
from wenmo.nn.crf import CRF

PLACE = "custom_heads"  # the attribute, and the beginning of the parameters' names
KINDS = ("classification",)
CRF_KIND = "crf"  # what follows what among tags, beside any architecture's `tagging` (nn/crf.py)
CustomHeads = Mapping[str, Callable[[int, int], nn.Module]]


def check_kinds(custom: CustomHeads, heads: Mapping[str, int]) -> None:
    """UsageError for a kind that no head can be handed in for, or that is not asked for."""
    for kind in custom:
        if kind not in KINDS:
            raise UsageError(say(f"no head of the kind `{kind}` can be handed in", f"`{kind}` 这一类输出头不能自定义"),
                             where="heads=", mend=say("one of: ", "可选：") + ", ".join(KINDS))
        if kind not in heads:
            raise UsageError(say(f"the task uses no head of the kind `{kind}`", f"任务不使用 `{kind}` 输出头"),
                             where="heads=", mend=say("take it out; used: ", "请去掉它；所用的有：") + ", ".join(heads))


def put_on(model: Any, heads: Mapping[str, int], custom: CustomHeads, generator: torch.Generator) -> None:
    """Builds the heads of several tasks, and the modules of `custom`, with weights drawn from `generator` whatever
    calls they use, and makes them the model's."""
    named = {name: number for name, number in heads.items() if is_task_head(name)}
    if named:
        if getattr(model.config, "is_encoder_decoder", False):
            raise ModelError(
                say("several tasks in one model need an encoder or a decoder, not both",
                    "一个模型承担多个任务时，须为编码器或解码器，不能两者兼有"), where=model.config.model_type,
                mend=say("train one model for each task, or choose another architecture",
                         "请为每个任务各训练一个模型，或换用其他结构"))
        setattr(model, TASK_HEADS, task_heads(model.config, named, causal=model.causal, generator=generator))
        model.heads = dict(heads)
    if CRF_KIND in heads:
        model.crf = CRF(heads[CRF_KIND])
        model.heads = dict(heads)
    if not custom:
        return
    modules = nn.ModuleDict()
    for kind, make in custom.items():
        seed = int(torch.randint(2**62, (), generator=generator))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            modules[kind] = make(model.config.width, heads[kind])
    setattr(model, PLACE, modules)
    model.heads = dict(heads)


def kinds_on(model: Any) -> frozenset[str]:
    """The heads that were put on the model's body: kinds that were handed in, and those of several tasks."""
    heads = getattr(model, "heads", {})
    of_tasks = frozenset(filter(is_task_head, heads))
    return frozenset(getattr(model, PLACE, {})) | of_tasks | ({CRF_KIND} & set(heads))


def classify(model: Any, hidden_MD: Tensor, lengths: Sequence[int]) -> Tensor:
    """Scores of the classes, [B, C]: by the head that was handed in, or else by the architecture's own."""
    if "classification" not in kinds_on(model):
        scores_BC: Tensor = model.classify(hidden_MD, lengths)
        return scores_BC
    head: nn.Module = getattr(model, PLACE)["classification"]
    format = next(head.parameters(), hidden_MD).dtype  # such a head need not know that there are two number formats
    scores_BC = head(hidden_MD.to(format), lengths)
    if scores_BC.shape != (len(lengths), model.heads["classification"]):
        raise ModelError(
            say(f"the head gives {list(scores_BC.shape)}, not [sequences, outputs] "
                f"{[len(lengths), model.heads['classification']]}",
                f"输出头给出 {list(scores_BC.shape)}，应为 [序列数, 输出数] "
                f"{[len(lengths), model.heads['classification']]}"),
            where=type(head).__name__, mend=say("one row for each of `lengths`, one column for each output",
                                                "每个序列一行（见 `lengths`），每个输出一列"))
    return scores_BC
