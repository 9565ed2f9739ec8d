"""Self-tests of learning: the loss is the right one, one batch can be learned by heart, what is saved is the model.

In: a Subject. Out: a Check each. The weights are afterwards what they were.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from wenmo.errors import say
from wenmo.modeldir import open_model, save_model
from wenmo.nn.cross_entropy import IGNORED
from wenmo.plan.by_hand import loss_by_hand, misplaced
from wenmo.plan.checks import (
    Check,
    Example,
    Subject,
    calm,
    difference,
    failed,
    hidden_states,
    loss_of,
    num_tokens,
    passed,
    skipped,
)
from wenmo.tasks import cards_of, task_from_card
from wenmo.training.loop import LoopSettings, steps
from wenmo.training.optimizer import AdamW, build

RATES = (3e-3, 5e-4, 1e-4)  # of AdamW, the first that learns the batch is enough
STEPS_EACH = 40
FALLEN, SMALL = 0.75, 0.05  # a loss is learned when it has fallen to this share, or is below this
OVERFIT_TOKENS, OVERFIT_SECONDS = 256, 20.0


def loss(subject: Subject) -> Check:
    """The loop's loss beside one computed by hand from the scores, and the targets where they belong."""
    batch = subject.batch(subject.examples)
    fault = misplaced(subject, batch)
    if fault:
        return failed("loss", fault, say("mend the task's encode and build", "请修正任务的 encode 与 build"))
    counts = subject.objective.counts(batch)
    real = [int((flat.tokens["targets"] != IGNORED).sum()) for flat in batch.roles.values()
            if "targets" in flat.tokens]
    subject.model.eval()
    with torch.no_grad():
        expected = loss_by_hand(subject, batch)
    if expected is None:
        if subject.task.settings.__class__.__name__ == "TaggingSettings" and counts.get("tags") != sum(real):
            return failed("loss", say(f"divided by {counts.get('tags')}, there are {sum(real)} targets",
                                      f"除数为 {counts.get('tags')}，而目标有 {sum(real)} 个"), _divide())
        return skipped("loss", say("this task's loss is not a mean over single targets",
                                   "该任务的损失不是单个目标上的平均"))
    found = loss_of(subject.objective, subject.model, batch)
    shown = say(f"{found:.6g}; by hand {expected:.6g}", f"{found:.6g}；手算 {expected:.6g}")
    if abs(found - expected) > 1e-4 + 2e-3 * abs(expected) or found != found:
        return failed("loss", shown, _divide())
    return passed("loss", shown)


def _divide() -> str:
    return say("counts() must give the number of real targets (not of tokens or rows), terms() the sum over them, and "
               "each score must meet its own target", "counts() 应给出真实目标的个数（而非词元数或行数），"
               "terms() 应给出其上的和，且每个得分对应自己的目标")


def overfit(subject: Subject) -> Check:
    """A few examples, read again and again without dropout: AdamW at one of three rates must bring the loss down."""
    model = subject.model
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        return failed("overfit", say("not one parameter is trained", "没有任何参数参与训练"),
                      say("take `train.groups` with `frozen` out", "请去掉 `train.groups` 中的冻结"))
    batch = subject.batch(_few(subject))
    if not any(subject.objective.counts(batch).values()):
        return skipped("overfit", say("nothing is learned from these few rows", "这几行没有可学习的内容"))
    before = [p.detach().clone() for p in trained]
    objective, began = calm(subject.objective), time.perf_counter()
    first = loss_of(subject.objective, model, batch)
    best, at = first, 0
    for rate in RATES:
        results = steps(model, build(model, AdamW(lr=rate, weight_decay=0.0)), objective, lambda _: [batch],
                        lr_factor=lambda n: min(1.0, (n + 1) / 5), total_steps=STEPS_EACH,
                        settings=LoopSettings(non_finite="skip"), device=subject.on, seed=subject.seed)
        for result in results:
            if result.loss < best:
                best, at = result.loss, result.step
            enough = result.loss < max(FALLEN * first, SMALL)
            if enough or time.perf_counter() - began > OVERFIT_SECONDS or not result.loss < 3 * abs(first) + 10:
                break
        _put_back(trained, before)
        if best < max(FALLEN * first, SMALL) or time.perf_counter() - began > OVERFIT_SECONDS:
            break
    shown = say(f"loss {first:.4g} → {best:.4g} in {at} steps", f"损失 {first:.4g} → {best:.4g}，{at} 步")
    if best < max(FALLEN * first, SMALL):
        return passed("overfit", shown)
    if time.perf_counter() - began > OVERFIT_SECONDS and best < first:
        return skipped("overfit", say(f"out of time: {shown}", f"时间不足：{shown}"))
    return failed("overfit", shown, say(
        "the gradient does not reach the weights, or points elsewhere: look at what is frozen and at the objective",
        "梯度没有到达权重或方向有误：请检查冻结的部分与目标函数"))


def _few(subject: Subject) -> list[Example]:
    chosen: list[Example] = []
    for example in subject.by_length():
        if len(chosen) < 2 or sum(map(num_tokens, chosen)) + num_tokens(example) <= OVERFIT_TOKENS:
            chosen.append(example)
    return chosen


@torch.no_grad()
def _put_back(parameters: list[Tensor], values: list[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
        parameter.grad = None


def saved(subject: Subject) -> Check:
    """Model, tokenizer and task go into a temporary folder and come back: same ids, same hidden states, same loss."""
    opened, batch = subject.opened, subject.batch(subject.examples)
    opened.card = {**opened.card, "tasks": cards_of(subject.task)}
    subject.model.eval()
    with torch.no_grad():
        before = hidden_states(subject.model, batch)
    losses = [loss_of(subject.objective, subject.model, batch)]
    with tempfile.TemporaryDirectory(prefix="wenmo-plan-") as folder:
        save_model(Path(folder) / "model", opened)
        size = sum(file.stat().st_size for file in (Path(folder) / "model").rglob("*"))
        again = open_model(str(Path(folder) / "model"), custom=subject.custom)
        again.model.to(subject.on.device)
    with torch.no_grad():
        after = hidden_states(again.model, batch)
    losses.append(loss_of(subject.objective, again.model, batch))
    mend = say("what the model needs must be in its parameters, configuration, tokenizer or task card",
               "模型所需的一切都应在其参数、配置、分词器或任务卡中")
    if again.tokenizer is not None and (name := next(iter(cards_of(subject.task)), "")) and len(
            cards_of(subject.task)) == 1:
        task = task_from_card(opened.card["tasks"][name], again.tokenizer, name, subject.custom_tasks)
        for number, row in enumerate(subject.rows[:8]):
            ids = [[sequence.tokens["ids"].tolist() for sequence in each.encode(number, row, with_targets=False)
                    .sequences] for each in (subject.task, task)]
            if ids[0] != ids[1]:
                return failed("saved", say("a row becomes other ids once task and tokenizer are opened again",
                                           "重新打开任务与分词器后，同一行得到不同的编号"), mend)
    worst = max(difference(before[role], after[role]) for role in before)
    if worst > 1 or abs(losses[0] - losses[1]) > 1e-4 + 1e-3 * abs(losses[0]):
        return failed("saved", say(f"opened again, the loss is {losses[1]:.5g} instead of {losses[0]:.5g}",
                                   f"重新打开后损失为 {losses[1]:.5g}，原为 {losses[0]:.5g}"), mend)
    return passed("saved", say(f"{size / 1e6:.1f} MB; ids, hidden states and loss are the same",
                               f"{size / 1e6:.1f} MB；编号、隐藏状态与损失均相同"))


