"""Self-tests of the model among neighbours: what stands beside a text must not change what is made of it.

In: a Subject. Out: a Check each. All of it is computed on the user's own model and examples, in fp32, without dropout.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from wenmo.data.sequence import SOURCE, TARGET, Batch
from wenmo.errors import say
from wenmo.nn.attend import Cache
from wenmo.plan.checks import (
    Check,
    Example,
    Subject,
    calm,
    difference,
    embedded_roles,
    failed,
    hidden_states,
    loss_of,
    num_tokens,
    passed,
    places_of,
    skipped,
)
from wenmo.training.loop import LoopSettings, steps

GRADIENT = 2e-3  # how far two sums of the same gradients may lie apart, in shares of their norm


def _one_text() -> str:
    return say("one example alone: nothing stands beside it", "只有一个样本：没有相邻文本")


def padding(subject: Subject) -> Check:
    """The shortest example alone, behind the longest, before it, and (where the model generates) in the cache."""
    if len(subject.examples) < 2:
        return skipped("padding", _one_text())
    short, *_, long = subject.by_length()
    model = subject.model
    with torch.no_grad():
        alone = _own(model, subject, [short], 0)
        places = {say("behind it", "其后"): _own(model, subject, [short, long], 0),
                  say("before it", "其前"): _own(model, subject, [long, short], 1)}
        if "causal_lm" in model.heads and hasattr(model, "body"):
            places[say("in the cache", "缓存中")] = [_cached(model, subject, short, long)]
    for place, found in places.items():
        worst = difference(alone, found)
        if worst > 1:
            return failed("padding", say(
                f"a text of {num_tokens(short)} tokens has other hidden states with one of {num_tokens(long)} {place}: "
                f"{worst:.3g} times what rounding explains",
                f"{num_tokens(short)} 个词元的文本，与 {num_tokens(long)} 个词元的文本相邻（{place}）时隐藏状态不同："
                f"为舍入误差的 {worst:.3g} 倍"), _of_the_model())
    if subject.objective.coupled is None:
        apart = [_sums(subject, [each]) for each in (short, long)]
        whole = _sums(subject, [long, short])
        for name, value in whole.items():
            parts = sum(each.get(name, 0.0) for each in apart)
            if abs(value - parts) > 1e-3 + 1e-3 * abs(value):
                return failed("padding", say(
                    f"the loss `{name}` of two texts together is {value:.5g}, of each alone {parts:.5g}",
                    f"两段文本一起的损失 `{name}` 为 {value:.5g}，分别计算之和为 {parts:.5g}"), _of_the_objective())
    return passed("padding", say(f"{num_tokens(short)} tokens beside {num_tokens(long)}: " + ", ".join(places),
                                 f"{num_tokens(short)} 个词元与 {num_tokens(long)} 个相邻：" + "、".join(places)))


def _own(model: Any, subject: Subject, examples: list[Example], place: int) -> list[Tensor]:
    """The hidden states of the example at `place`, one tensor a role."""
    model.eval()
    return [torch.cat(states[places_of(examples, place, role)])
            for role, states in hidden_states(model, subject.batch(examples)).items()]


def _cached(model: Any, subject: Subject, short: Example, long: Example) -> Tensor:
    """The short text read in two pieces, in a cache whose other row is longer: as generation reads it."""
    rows = [example[0].tokens["ids"].tolist() for example in (long, short)]
    cache = Cache(2, max(map(len, rows)))
    cuts = [max(1, len(row) - 1) for row in rows]
    pieces = []
    for start, end in (([0, 0], cuts), (cuts, [len(row) for row in rows])):
        new = [row[a:b] for row, a, b in zip(rows, start, end, strict=True)]
        if not all(new):  # a text of one token has no second piece
            break
        attend = cache.extend([len(each) for each in new], subject.on.device)
        ids_M = torch.tensor([id for each in new for id in each], device=subject.on.device)
        pieces.append(model.body(ids_M, attend.positions_M, attend)[len(new[0]):])
    return torch.cat(pieces)


def _sums(subject: Subject, examples: list[Example]) -> dict[str, float]:
    with torch.no_grad():
        terms = calm(subject.objective).terms(subject.model, subject.batch(examples))
    return {term.name: float(term.sum) for term in terms}


def order(subject: Subject) -> Check:
    """The examples from first to last, and from last to first."""
    if len(subject.examples) < 2:
        return skipped("order", _one_text())
    model, examples = subject.model, subject.examples
    backwards = examples[::-1]
    model.eval()
    with torch.no_grad():
        first, second = (hidden_states(model, subject.batch(each)) for each in (examples, backwards))
    worst = max(difference(first[role][places_of(examples, place, role)],
                           second[role][places_of(backwards, len(examples) - 1 - place, role)])
                for role in first for place in range(len(examples)))
    losses = [loss_of(subject.objective, model, subject.batch(each)) for each in (examples, backwards)]
    if worst > 1:
        return failed("order", say(f"in another order hidden states differ: {worst:.3g} times what rounding explains",
                                   f"换一种顺序后隐藏状态不同，为舍入误差的 {worst:.3g} 倍"), _of_the_model())
    if abs(losses[0] - losses[1]) > 1e-3 + 1e-3 * abs(losses[0]):
        return failed("order", say(f"the loss is {losses[0]:.5g}, in another order {losses[1]:.5g}",
                                   f"损失为 {losses[0]:.5g}，换一种顺序后为 {losses[1]:.5g}"), _of_the_objective())
    return passed("order", say(f"{len(examples)} examples, backwards too", f"{len(examples)} 个样本，正序与倒序"))


def isolation(subject: Subject) -> Check:
    """The gradient of the first example's hidden states, and of the last one's, with respect to the words of all others
    is exactly zero."""
    if len(subject.examples) < 2:
        return skipped("isolation", _one_text())
    for place in (0, len(subject.examples) - 1):
        gradients, batch = _word_gradients(subject, subject.examples, place)
        if gradients is None:
            return skipped("isolation", say("this model's forward has no taps", "该模型的前向没有观测点"))
        for role, gradient_MD in zip(embedded_roles(subject.model, batch), gradients, strict=True):
            own, lengths = places_of(subject.examples, place, role), batch.roles[role].lengths
            before, until = sum(lengths[: own.start]), sum(lengths[: own.stop])
            leaked = float(gradient_MD[:before].abs().sum() + gradient_MD[until:].abs().sum())
            if leaked > 0:
                return failed("isolation", say(
                    f"a text's hidden states have a gradient to the words of its neighbours in the batch: {leaked:.3g}",
                    f"一段文本的隐藏状态对同批其他文本的词有梯度：{leaked:.3g}"), _of_the_model())
    return passed("isolation", say(f"exactly 0 towards {len(subject.examples) - 1} neighbours",
                                   f"对 {len(subject.examples) - 1} 个相邻样本的梯度恰为 0"))


def causality(subject: Subject) -> Check:
    """A causal model's hidden state at a token has no gradient to the words after it."""
    model = subject.model
    if not model.causal or not {"causal_lm", "seq2seq_lm"} & set(model.heads):
        return skipped("causality", say("a model that reads both ways", "双向模型，不适用"))
    example = subject.by_length()[-1]
    length = len(example[-1])
    if length < 3:
        return skipped("causality", say("the text is too short", "文本太短"))
    gradients, _ = _word_gradients(subject, [example], 0, until=length // 2)
    if gradients is None:
        return skipped("causality", say("this model's forward has no taps", "该模型的前向没有观测点"))
    leaked = float(gradients[-1][length // 2 :].abs().sum())
    if leaked > 0:
        return failed("causality", say(
            f"the first {length // 2} of {length} tokens have a gradient to the words after them: {leaked:.3g}",
            f"{length} 个词元中前 {length // 2} 个对其后的词有梯度：{leaked:.3g}"), _of_the_model())
    return passed("causality", say(f"token {length // 2} of {length}: exactly 0 towards what follows",
                                   f"第 {length // 2}/{length} 个词元：对后文的梯度恰为 0"))


def _word_gradients(subject: Subject, examples: list[Example], place: int, until: int | None = None,
                    ) -> tuple[list[Tensor] | None, Batch]:
    """The gradient of (a fixed projection of) an example's hidden states with respect to the embedded words of the
    whole batch, [M, D] for each role in the order of embedding; None where the model has no taps."""
    model, batch = subject.model, subject.batch(examples)
    model.eval()
    words: list[Tensor] = []

    def watch(name: str, value: Tensor) -> Tensor:
        if name.endswith("embeddings"):
            value = value.detach().requires_grad_()
            words.append(value)
        return value

    if "taps" not in inspect.signature(type(model).forward).parameters:
        return None, batch
    states: dict[str, tuple[Tensor, ...]] = {}
    if "seq2seq_lm" in model.heads:
        source, target = batch.roles[SOURCE], batch.roles[TARGET]
        hidden_MD = model(source.ids_M, source.lengths, target.ids_M, target.lengths, taps=watch)
        states[TARGET] = torch.split(hidden_MD, list(target.lengths))
    else:
        for role, flat in batch.roles.items():
            inputs = {"segments_M": flat.tokens["segments"]} if "segments" in flat.tokens else {}
            states[role] = torch.split(model(flat.ids_M, flat.lengths, taps=watch, **inputs), list(flat.lengths))
    own = torch.cat([part[:until] for role, each in states.items() for part in each[places_of(examples, place, role)]])
    draw = torch.randn(own.shape, generator=torch.Generator().manual_seed(subject.seed)).to(own)
    gradients = torch.autograd.grad((own * draw).sum(), words, allow_unused=True)
    return [torch.zeros_like(word) if gradient is None else gradient
            for word, gradient in zip(words, gradients, strict=True)], batch


# Accumulation -----------------------------------------------------------------------------------------


class _Record(torch.optim.Optimizer):
    """Keeps the gradient in place of a step."""

    def __init__(self, parameters: list[Tensor]) -> None:
        super().__init__([{"params": parameters, "is_matrices": False, "initial_lr": 0.0}], {"lr": 0.0})
        self.gradient: list[Tensor] = []

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.gradient = [torch.zeros_like(p) if p.grad is None else p.grad.clone()
                         for p in self.param_groups[0]["params"]]


def accumulation(subject: Subject) -> Check:
    """The loop's own step over one batch, and over the same examples in two micro-batches of unequal size."""
    if len(subject.examples) < 2:
        return skipped("accumulation", _one_text())
    cut = max(1, len(subject.examples) // 3)
    whole = _stepped(subject, [subject.examples])
    parts = _stepped(subject, [subject.examples[:cut], subject.examples[cut:]])
    if whole is None or parts is None:
        return skipped("accumulation", say("nothing is learned from these few rows", "这几行没有可学习的内容"))
    norm = float(torch.stack([each.norm() for each in whole[1]]).norm())
    gap = float(torch.stack([(a - b).norm() for a, b in zip(whole[1], parts[1], strict=True)]).norm())
    share = gap / max(norm, 1e-12)
    shown = say(f"loss {whole[0]:.6g} and {parts[0]:.6g}; gradients differ by {share:.2g} of their norm",
                f"损失 {whole[0]:.6g} 与 {parts[0]:.6g}；梯度相差其范数的 {share:.2g}")
    if abs(whole[0] - parts[0]) > 1e-4 + 1e-3 * abs(whole[0]) or gap > GRADIENT * norm + 1e-6:
        return failed("accumulation", say("one batch and two micro-batches differ: ", "一个批次与两个微批结果不同：")
                      + shown, _of_the_objective())
    return passed("accumulation", shown)


def _stepped(subject: Subject, micro: list[list[Example]]) -> tuple[float, list[Tensor]] | None:
    """(loss, gradient) of one step of the training loop; None where nothing is counted."""
    trained = [p for p in subject.model.parameters() if p.requires_grad]
    if not trained:
        return None
    record = _Record(trained)
    batches = [subject.batch(each) for each in micro]
    if not any(count for batch in batches for count in subject.objective.counts(batch).values()):
        return None
    [result] = steps(subject.model, record, calm(subject.objective), lambda _: batches, lr_factor=lambda _: 1.0,
                     total_steps=1, settings=LoopSettings(clip=None), device=subject.on, seed=subject.seed)
    return result.loss, record.gradient


def _of_the_model() -> str:
    return say("each sequence must see itself alone: look at the model's attend and mask, and use a model of Wenmo's "
               "until then", "每个序列只能看到自身：请检查模型的注意力与掩码，修好之前请换用文模自带的模型")


def _of_the_objective() -> str:
    return say("an objective gives sums over items and counts from the batch; a loss that compares rows says so by "
               "`coupled` (docs/extend.md)",
               "目标函数应给出各项之和及其个数；若要在各行之间比较，须用 `coupled` 声明（见 docs/extend.md）")
