"""A model on its device with its tasks and its way of reading, as every verb needs it.

In: `Opened`. Out: what the model is, its tasks, rows read and run in batches. The verbs are beside it: answers.py,
vectors.py, text_out.py, each knowing this room alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from wenmo import golden
from wenmo.config import parse
from wenmo.data.examples import Rows
from wenmo.data.loader import evaluation_batches
from wenmo.data.sequence import Sequence as Tokens
from wenmo.data.sequence import examples_of
from wenmo.device import Device
from wenmo.engine import Format
from wenmo.engine.adapted import share
from wenmo.errors import ModelError, say
from wenmo.modeldir import QUANTIZATION, Opened, merge
from wenmo.models import is_task_head
from wenmo.nn.quantized import num_weights
from wenmo.notebook import facts, fragment
from wenmo.tasks import CustomTasks, Encoded, Joint, Task, joint_of, task_from_card
from wenmo.tasks.implied import further_task, implied_tasks
from wenmo.text.normalize import NormalizeSettings, normalized, normalizer
from wenmo.text.source import STRINGS
from wenmo.text.tokenizer import Tokenizer

BATCH_TOKENS = 4096  # of one forward in predict, score and embed


class Held:
    """The model in use; `task` is what it was trained for. What each way of asking it stands on."""

    def __init__(self, opened: Opened, on: Device, reference: str, tasks: CustomTasks | None = None,
                 base: Held | None = None) -> None:
        self.opened, self.on, self.reference = opened, on, reference
        if base is None:
            merge(opened)  # an adapter costs nothing to answer with
        self.model = opened.model.to(device=on.device, dtype=on.dtype).eval()
        self.model.compute_dtype = on.dtype
        if base is not None and opened.adapter is not None:
            share(self.model, base.model, opened.adapter.whole)
        self.normalize = normalizer(parse(NormalizeSettings, opened.card.get("normalize", {}), reference))
        self.tasks: dict[str, Task] = {}
        self.joint: Joint | None = None  # of a model of several tasks: all of them in one
        if opened.tokenizer is not None:
            for name, card in opened.card.get("tasks", {}).items():
                self.tasks[name] = task_from_card(card, opened.tokenizer, reference, tasks)
            if any(map(is_task_head, self.model.heads)):
                self.joint = joint_of(opened.card["tasks"], self.tasks, opened.tokenizer, reference)
                self.tasks = {name: self.joint.only(name) for name in self.tasks}
            if not self.tasks:
                self.tasks.update(implied_tasks(opened, opened.tokenizer))

    def facts(self) -> dict[str, str]:
        """What the model is, in words."""
        config, card = self.model.config, self.opened.card
        total = num_weights(self.model)
        found = {
            say("architecture", "模型结构"): str(config.model_type),
            say("heads", "输出头"): ", ".join(self.model.heads) or "–",
            say("tasks", "任务"): ", ".join(self.tasks) or "–",
            say("parameters", "参数量"): f"{total:,}",
            say("longest text", "最长文本"): "–" if config.max_tokens is None
            else say(f"{config.max_tokens:,} tokens", f"{config.max_tokens:,} 个词元"),
            say("runs on", "运行于"): str(self.on),
        }
        if self.stored_format is not None:
            found[say("number format of the weights", "权重的数值格式")] = self.stored_format
        if card.get("languages"):
            found[say("letters of its training text", "训练文本的文字")] = ", ".join(
                f"{name} {share:.1%}" for name, share in card["languages"].items() if share)
        return found

    @property
    def stored_format(self) -> Format | None:
        """int8 or int4, where `wenmo compress` has made the model."""
        format: Format | None = self.opened.card.get(QUANTIZATION, {}).get("format")
        return format

    def __repr__(self) -> str:
        return f"<wenmo.Loaded {self.reference}: " + ", ".join(f"{k} {v}" for k, v in self.facts().items()) + ">"

    def _repr_html_(self) -> str:
        """In a notebook: what the model is."""
        return fragment(facts(self.reference, self.facts().items()))

    def check(self) -> float | None:
        """The largest difference to the golden prompts recorded when the model was saved; None where none were.

        Raises ModelError where it is another model by now. In bf16 the difference is that of the number format.
        """
        entries = self.opened.card.get("golden")
        if not entries or self.on.dtype != torch.float32:
            return None
        return golden.check(self.model, self.tokenizer, entries, self.reference)

    @property
    def tokenizer(self) -> Tokenizer:
        if self.opened.tokenizer is None:
            raise ModelError(say("the model folder has no tokenizer", "模型目录中没有分词器"), where=self.reference,
                             mend=say("add its tokenizer.json", "请补上 tokenizer.json"))
        return self.opened.tokenizer

    def task(self, name: str | None = None) -> Task:
        """The named task, or the only one, or all that there are in one (tasks/joint.py); by name also what a language
        model can be measured at without having been trained for it. Raises ModelError."""
        if name is None and self.joint is not None:
            return self.joint
        if name is None and len(self.tasks) == 1:
            return next(iter(self.tasks.values()))
        further = None if name in self.tasks else further_task(self.opened, name)
        if further is not None:
            return further
        if name not in self.tasks:
            known = ", ".join(self.tasks) or say("none", "无")
            raise ModelError(
                say(f"the model has no task `{name}`" if name else "the model has not exactly one task",
                    f"模型没有任务 `{name}`" if name else "模型的任务不止一个，或没有任务"), where=self.reference,
                mend=say(f"its tasks: {known}", f"它的任务：{known}"))
        return self.tasks[name]

    def _encoded(self, number: int, row: Mapping[str, Any], task: Task, with_targets: bool) -> Encoded:
        row = self._as_learned(row, (*task.settings.columns, *_target_texts(task)))
        return task.encode(number, row, with_targets=with_targets)

    def targets_as_learned(self, row: Mapping[str, Any], task: Task) -> Mapping[str, Any]:
        """The row, with the texts that answers are held against normalised as those that the model learned from."""
        return self._as_learned(row, _target_texts(task))

    def _as_learned(self, row: Mapping[str, Any], names: tuple[str, ...]) -> Mapping[str, Any]:
        change = self.normalize
        if change is None:
            return row
        return {**row, **{name: normalized(row[name], change) for name in names if name in row}}

    def _run(self, encoded: list[list[Tokens]], forward: Any) -> list[list[Any]]:
        """The windows of a long text are spread over batches: its length is no matter of memory."""
        flat = [(row, example) for row, sequences in enumerate(encoded) for example in examples_of(sequences)]
        examples = Rows([[replace(sequence, row=number) for sequence in example]
                         for number, (_, example) in enumerate(flat)])
        outputs: list[Any] = [None] * len(flat)
        for batch in evaluation_batches(examples, BATCH_TOKENS):
            batch = batch.to(self.on.device)
            with torch.inference_mode():
                for number, output in zip(batch.first.rows, forward(batch), strict=True):
                    outputs[number] = output
        results: list[list[Any]] = [[] for _ in encoded]
        for (row, _), output in zip(flat, outputs, strict=True):
            results[row].append(output)
        return results

    def _needs(self, head: str, what: str) -> None:
        if head not in self.model.heads:
            heads = ", ".join(self.model.heads) or say("none", "无")
            raise ModelError(
                say(f"this model cannot {what}: it has no `{head}` head", f"此模型不能{what}：没有 `{head}` 输出头"),
                where=self.reference, mend=say(f"its heads: {heads}", f"它的输出头：{heads}"))


def _target_texts(task: Task) -> tuple[str, ...]:
    """Targets that are texts of their own: no labels, and no pieces of a text, which keep its places."""
    return tuple(name for name in task.settings.target_columns if name in STRINGS)
