"""What `wenmo.load` returns: the only way by which predict, evaluate, the command line and a server reach a model.

In: a reference to a model. Out: `Loaded`, with the same verbs for every family: predict, generate, embed, score.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wenmo import device as machine
from wenmo import golden
from wenmo.config import parse
from wenmo.data.examples import Rows
from wenmo.data.loader import evaluation_batches
from wenmo.data.sequence import Sequence as Tokens
from wenmo.data.sequence import examples_of
from wenmo.device import Device
from wenmo.errors import DataError, ModelError, say
from wenmo.generate import Completion, Piece, Sampling, generate, stream
from wenmo.modeldir import Opened, open_model
from wenmo.models import CustomHeads
from wenmo.notebook import facts, fragment
from wenmo.objectives import hidden_of
from wenmo.tasks import CustomTasks, Lengths, Task, create_task, task_from_card
from wenmo.tasks.language_modeling import CausalLMSettings, MaskedLMSettings
from wenmo.text import chat
from wenmo.text.normalize import NormalizeSettings, normalized, normalizer
from wenmo.text.tokenizer import Tokenizer

BATCH_TOKENS = 4096  # of one forward in predict, score and embed


def load(reference: str | Path, *, device: str = "auto", dtype: machine.DType = "fp32", threads: int | None = None,
         tasks: CustomTasks | None = None, heads: CustomHeads | None = None) -> Loaded:
    """Opens a model by its reference (folder, Run, .gguf, hf:org/name, ms:org/name, pkg:NAME). Raises ModelError.

    fp32 by default: the scores are then those of the stored weights; bf16 is faster where the processor has it.
    `tasks` and `heads`: those of your own that the model was trained with (docs/extend.md).
    """
    opened = open_model(str(reference), custom=heads)
    return Loaded(opened, machine.choose(device, dtype, threads), str(reference), tasks)


class Loaded:
    """A model ready to answer. `task` is what it was trained for; a bare language model has language modelling."""

    def __init__(self, opened: Opened, on: Device, reference: str, tasks: CustomTasks | None = None) -> None:
        self.opened, self.on, self.reference = opened, on, reference
        self.model = opened.model.to(device=on.device, dtype=on.dtype).eval()
        self.model.compute_dtype = on.dtype
        self.normalize = normalizer(parse(NormalizeSettings, opened.card.get("normalize", {}), reference))
        self.tasks: dict[str, Task] = {}
        if opened.tokenizer is not None:
            for name, card in opened.card.get("tasks", {}).items():
                self.tasks[name] = task_from_card(card, opened.tokenizer, reference, tasks)
            if not self.tasks:
                self.tasks.update(_implied_tasks(opened, opened.tokenizer))

    def facts(self) -> dict[str, str]:
        """What the model is, in words."""
        config, card = self.model.config, self.opened.card
        total = sum(parameter.numel() for parameter in self.model.parameters())
        found = {
            say("architecture", "模型结构"): str(config.model_type),
            say("heads", "输出头"): ", ".join(self.model.heads) or "–",
            say("tasks", "任务"): ", ".join(self.tasks) or "–",
            say("parameters", "参数量"): f"{total:,}",
            say("longest text", "最长文本"): "–" if config.max_tokens is None
            else say(f"{config.max_tokens:,} tokens", f"{config.max_tokens:,} 个词元"),
            say("runs on", "运行于"): str(self.on),
        }
        if card.get("languages"):
            found[say("letters of its training text", "训练文本的文字")] = ", ".join(
                f"{name} {share:.1%}" for name, share in card["languages"].items() if share)
        return found

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
        """The named task, or the only one. Raises ModelError."""
        if name is None and len(self.tasks) == 1:
            return next(iter(self.tasks.values()))
        if name not in self.tasks:
            known = ", ".join(self.tasks) or say("none", "无")
            raise ModelError(
                say(f"the model has no task `{name}`" if name else "the model has not exactly one task",
                    f"模型没有任务 `{name}`" if name else "模型的任务不止一个，或没有任务"), where=self.reference,
                mend=say(f"its tasks: {known}", f"它的任务：{known}"))
        return self.tasks[name]

    # Answers --------------------------------------------------------------------------------------------

    def outputs(self, rows: Sequence[Mapping[str, Any]], task: Task, *, with_targets: bool = False) -> list[list[Any]]:
        """For each row the task's outputs of its sequences, in order. Rows are batched by length; texts are normalised
        as they were for training."""
        encoded = [self._encoded(number, row, task, with_targets) for number, row in enumerate(rows)]
        return self._run(encoded, lambda batch: task.outputs(self.model, batch))

    def _encoded(self, number: int, row: Mapping[str, Any], task: Task, with_targets: bool) -> list[Tokens]:
        change = self.normalize
        if change is not None:
            row = {**row, **{name: normalized(row[name], change) for name in task.settings.columns}}
        return task.encode(number, row, with_targets=with_targets).sequences

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

    def predict(self, rows: Sequence[Mapping[str, Any] | str], task: str | None = None) -> list[dict[str, Any]]:
        """The task's answer to each row; a string stands for {"text": …}. Raises DataError for a missing column."""
        answers = []
        for answer in self.answers(rows, task):
            if isinstance(answer, DataError):
                raise answer
            answers.append(answer)
        return answers

    def answers(self, rows: Sequence[Mapping[str, Any] | str | DataError], task: str | None = None,
                first: int = 0) -> list[dict[str, Any] | DataError]:
        """`predict` in which a row that cannot be answered costs itself: its DataError stands where its answer would.

        A DataError among the rows (one that could not be read) stays in its place. `first`: the number of the first.
        """
        chosen = self.task(task)
        encoded: list[list[Tokens] | DataError] = []
        for number, row in enumerate(rows, first):
            try:
                encoded.append(self._asked(number, {"text": row} if isinstance(row, str) else row, chosen))
            except DataError as error:
                encoded.append(error)
        good = [sequences for sequences in encoded if not isinstance(sequences, DataError)]
        outputs = iter(self._run(good, lambda batch: chosen.outputs(self.model, batch)))
        return [row if isinstance(row, DataError) else chosen.decode(next(outputs)) for row in encoded]

    def _asked(self, number: int, row: Mapping[str, Any] | DataError, task: Task) -> list[Tokens]:
        if isinstance(row, DataError):
            raise row
        for column in task.settings.columns:
            if row.get(column) in (None, "", []):
                raise DataError(
                    say(f"the row has no `{column}`", f"该行缺少 `{column}`"),
                    where=say(f"row {number + 1}", f"第 {number + 1} 行"),
                    mend=say(f"this task needs: {', '.join(task.settings.columns)}",
                             f"此任务需要：{', '.join(task.settings.columns)}"))
        return self._encoded(number, row, task, with_targets=False)

    def score(self, texts: Sequence[str]) -> list[float]:
        """For each text the natural-log likelihood of its tokens after the first, given those before.

        No special tokens are added; a text longer than the model is scored in windows that overlap by half.
        """
        self._needs("causal_lm", say("score", "打分"))
        longest = self.opened.max_tokens or 4096
        task = create_task(CausalLMSettings(), self.tokenizer, Lengths(max_tokens=longest))
        outputs = self.outputs([{"text": text} for text in texts], task)
        return [0.0 - sum(window.nll_nats for window in windows) for windows in outputs]

    def embed(self, texts: Sequence[str], *, normalise: bool = True) -> np.ndarray:
        """[number of texts, D] in fp32: the mean of the last hidden states (or the first one's, as the model's card
        says), of length 1 unless told otherwise. Longer texts are cut at the model's length."""
        pooling = self.opened.card.get("pooling", "mean")
        two_stacks = getattr(self.model.config, "is_encoder_decoder", False) and "encoder" not in self.model.heads
        if pooling not in ("mean", "cls") or two_stacks:
            raise ModelError(
                say("this model makes its vectors in a way that is not supported", "不支持此模型得到向量的方式"),
                where=self.reference, mend=say(f"use an encoder with mean or cls pooling; this one: {pooling}",
                                               f"请使用以 mean 或 cls 汇聚的编码器；此模型为 {pooling}"))
        if not texts:
            return np.zeros((0, self.model.config.width), np.float32)
        longest = min(self.opened.max_tokens or 512, int(self.opened.card.get("max_embed_tokens", 512)))
        encoded = []
        for number, text in enumerate(texts):
            ids = self.tokenizer.encode(text)[: longest - self.tokenizer.num_wrapping(False)]
            wrapped, _ = self.tokenizer.wrap(ids)
            if not wrapped:
                raise DataError(say("an empty text has no embedding", "空文本没有向量"), where=f"{number}",
                                mend=say("remove it", "请删除"))
            encoded.append([Tokens(number, {"ids": np.asarray(wrapped)})])

        def pooled(batch: Any) -> list[np.ndarray]:
            parts = torch.split(hidden_of(self.model, batch.text).float(), list(batch.text.lengths))
            return [(part[0] if pooling == "cls" else part.mean(0)).cpu().numpy() for part in parts]

        vectors = np.stack([vector for [vector] in self._run(encoded, pooled)])
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12) if normalise else vectors

    # Text out -------------------------------------------------------------------------------------------

    def generate(self, prompts: Sequence[str], **sampling: Any) -> list[list[Completion]]:
        """For each prompt its completions; the keywords are those of `generate.Sampling`. An encoder–decoder takes each
        prompt as its source."""
        return self.complete([self.prompt_ids(prompt) for prompt in prompts], **sampling)

    def complete(self, prompts: Sequence[Sequence[int]], **sampling: Any) -> list[list[Completion]]:
        """`generate` for prompts given as ids (`prompt_ids`, `chat_ids`)."""
        self._needs_to_generate()
        return generate(self.model, self.tokenizer, prompts, self.sampling(sampling), self.ends(), self.banned())

    def stream(self, ids: Sequence[int], **sampling: Any) -> Iterator[Piece]:
        """Pieces of text as they come, for one prompt given as ids (`prompt_ids`, `chat_ids`)."""
        self._needs_to_generate()
        yield from stream(self.model, self.tokenizer, [ids], self.sampling(sampling), self.ends(), self.banned())

    def prompt_ids(self, prompt: str) -> list[int]:
        """Ids of a prompt as the model saw the beginnings of texts in training; of a source with what ends it."""
        self._needs_to_generate()
        ids = self.tokenizer.encode(prompt if self.normalize is None else self.normalize(prompt))
        if "seq2seq_lm" in self.model.heads:
            return self.tokenizer.wrap(ids)[0]
        return [*self.opened.card.get("document_start", self.tokenizer.prefix), *ids]

    def chat_ids(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Ids of a conversation that ends where the model is to answer. Raises DataError without a chat template."""
        return chat.render(self.tokenizer, messages, add_generation_prompt=True)

    def sampling(self, given: Mapping[str, Any]) -> Sampling:
        """Raises RecipeError for what is no setting of `generate.Sampling`."""
        return parse(Sampling, given, "sampling")

    def ends(self) -> frozenset[int]:
        """Ids that end a text: the tokenizer's, and those that the model's folder names."""
        stored = self.opened.generation.get("eos_token_id", self.opened.carried.get("eos_token_id"))
        ids = stored if isinstance(stored, list) else [stored]
        return frozenset(id for id in (*ids, self.tokenizer.eos_id) if id is not None)

    def banned(self) -> frozenset[int]:
        """Ids that the model's folder forbids to generate; bad words of several tokens are not heeded."""
        words = self.opened.generation.get("bad_words_ids") or []
        return frozenset([*(word[0] for word in words if len(word) == 1),
                          *(self.opened.generation.get("suppress_tokens") or [])]) - self.ends()

    def _needs_to_generate(self) -> None:
        if "seq2seq_lm" not in self.model.heads:
            self._needs("causal_lm", say("generate", "生成"))

    def _needs(self, head: str, what: str) -> None:
        if head not in self.model.heads:
            heads = ", ".join(self.model.heads) or say("none", "无")
            raise ModelError(
                say(f"this model cannot {what}: it has no `{head}` head", f"此模型不能{what}：没有 `{head}` 输出头"),
                where=self.reference, mend=say(f"its heads: {heads}", f"它的输出头：{heads}"))


def _implied_tasks(opened: Opened, tokenizer: Tokenizer) -> dict[str, Task]:
    """A checkpoint from elsewhere has no card: a language model can at least be measured as one."""
    model = opened.model
    longest = opened.max_tokens or 1024
    if "causal_lm" in model.heads:
        return {"causal_lm": create_task(CausalLMSettings(), tokenizer, Lengths(max_tokens=longest))}
    if "masked_lm" in model.heads and "mask" in tokenizer.control:
        return {"masked_lm": create_task(MaskedLMSettings(), tokenizer, Lengths(max_tokens=longest))}
    several = opened.carried.get("problem_type") in (None, "single_label_classification")
    if model.heads.get("classification", 0) > 1 and several:
        names = opened.carried.get("id2label") or {}
        labels = [names.get(str(index), f"LABEL_{index}") for index in range(model.heads["classification"])]
        card = {"type": "classification", "labels": labels, "lengths": {"max_tokens": longest}}
        return {"classification": task_from_card(card, tokenizer, "config.json")}
    return {}

