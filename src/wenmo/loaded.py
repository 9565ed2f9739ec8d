"""What `wenmo.load` returns: the only way by which predict, evaluate, the command line and a server reach a model.

In: a reference to a model. Out: `Loaded`, with the same verbs for every family: predict, generate, embed, score.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from wenmo import device as machine
from wenmo.config import parse
from wenmo.data.examples import Rows
from wenmo.data.loader import evaluation_batches
from wenmo.data.sequence import Sequence as Tokens
from wenmo.device import Device
from wenmo.errors import DataError, ModelError, say
from wenmo.generate import Completion, Piece, Sampling, generate, stream
from wenmo.modeldir import Opened, open_model
from wenmo.objectives import hidden_of
from wenmo.tasks import Lengths, Task, create_task, task_from_card
from wenmo.tasks.language_modeling import CausalLMSettings, MaskedLMSettings
from wenmo.text import chat
from wenmo.text.normalize import NormalizeSettings, normalizer
from wenmo.text.tokenizer import Tokenizer

BATCH_TOKENS = 4096  # of one forward in predict, score and embed


def load(reference: str, *, device: str = "auto", dtype: machine.DType = "fp32", threads: int | None = None) -> Loaded:
    """Opens a model by its reference (folder, Run, .gguf, hf:org/name, pkg:NAME). Raises ModelError.

    fp32 by default: the scores are then those of the stored weights; bf16 is faster where the processor has it.
    """
    return Loaded(open_model(reference), machine.choose(device, dtype, threads), reference)


class Loaded:
    """A model ready to answer. `task` is what it was trained for; a bare language model has language modelling."""

    def __init__(self, opened: Opened, on: Device, reference: str) -> None:
        self.opened, self.on, self.reference = opened, on, reference
        self.model = opened.model.to(device=on.device, dtype=on.dtype).eval()
        self.model.compute_dtype = on.dtype
        self.normalize = normalizer(parse(NormalizeSettings, opened.card.get("normalize", {}), reference))
        self.tasks: dict[str, Task] = {}
        if opened.tokenizer is not None:
            for name, card in opened.card.get("tasks", {}).items():
                self.tasks[name] = task_from_card(card, opened.tokenizer, reference)
            if not self.tasks:
                self.tasks.update(_implied_tasks(opened, opened.tokenizer))

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
        change = self.normalize
        if change is not None:
            texts = task.settings.columns
            rows = [{**row, **{name: change(str(row[name])) for name in texts}} for row in rows]
        encoded = [task.encode(number, row, with_targets=with_targets).sequences for number, row in enumerate(rows)]
        return self._run(encoded, lambda batch: task.outputs(self.model, batch))

    def _run(self, encoded: list[list[Tokens]], forward: Any) -> list[list[Any]]:
        """The windows of a long text are spread over batches: its length is no matter of memory."""
        flat = [(row, sequence) for row, sequences in enumerate(encoded) for sequence in sequences]
        examples = Rows([[replace(sequence, row=number)] for number, (_, sequence) in enumerate(flat)])
        outputs: list[Any] = [None] * len(flat)
        for batch in evaluation_batches(examples, BATCH_TOKENS):
            batch = batch.to(self.on.device)
            with torch.inference_mode():
                for number, output in zip(batch.text.rows, forward(batch), strict=True):
                    outputs[number] = output
        results: list[list[Any]] = [[] for _ in encoded]
        for (row, _), output in zip(flat, outputs, strict=True):
            results[row].append(output)
        return results

    def predict(self, rows: Sequence[Mapping[str, Any] | str], task: str | None = None) -> list[dict[str, Any]]:
        """The task's answer to each row; a string stands for {"text": …}. Raises DataError for a missing column."""
        chosen = self.task(task)
        given = [{"text": row} if isinstance(row, str) else row for row in rows]
        for number, row in enumerate(given):
            for column in chosen.settings.columns:
                if row.get(column) in (None, ""):
                    raise DataError(
                        say(f"the row has no `{column}`", f"该行缺少 `{column}`"),
                        where=say(f"row {number + 1}", f"第 {number + 1} 行"),
                        mend=say(f"this task needs: {', '.join(chosen.settings.columns)}",
                                 f"此任务需要：{', '.join(chosen.settings.columns)}"))
        return [chosen.decode(outputs) for outputs in self.outputs(given, chosen)]

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
        if pooling not in ("mean", "cls") or getattr(self.model.config, "is_encoder_decoder", False):
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
        """For each prompt its completions; the keywords are those of `generate.Sampling`."""
        return generate(self.model, self.tokenizer, [self.prompt_ids(prompt) for prompt in prompts],
                        self.sampling(sampling), self.ends())

    def stream(self, ids: Sequence[int], **sampling: Any) -> Iterator[Piece]:
        """Pieces of text as they come, for one prompt given as ids (`prompt_ids`, `chat_ids`)."""
        self._needs("causal_lm", say("generate", "生成"))
        yield from stream(self.model, self.tokenizer, [ids], self.sampling(sampling), self.ends())

    def prompt_ids(self, prompt: str) -> list[int]:
        """Ids of a prompt as the model saw the beginnings of texts in training."""
        self._needs("causal_lm", say("generate", "生成"))
        start = self.opened.card.get("document_start", self.tokenizer.prefix)
        return [*start, *self.tokenizer.encode(prompt if self.normalize is None else self.normalize(prompt))]

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

