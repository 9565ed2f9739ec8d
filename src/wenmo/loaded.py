"""What `wenmo.load` returns: the only way by which predict, evaluate, the command line and a server reach a model.

In: a reference to a model. Out: `Loaded`, with the same verbs for every family: predict, generate, embed, score.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from wenmo import device as machine
from wenmo import embedding_files, golden
from wenmo.config import parse
from wenmo.data.examples import Rows
from wenmo.data.loader import evaluation_batches
from wenmo.data.sequence import Sequence as Tokens
from wenmo.data.sequence import examples_of
from wenmo.device import Device
from wenmo.engine import DraftSettings, Engine, EngineSettings, Format
from wenmo.engine.adapted import share
from wenmo.errors import DataError, ModelError, UsageError, say
from wenmo.generate import Completion, Piece, Sampling, generate, stream
from wenmo.modeldir import QUANTIZATION, Opened, merge, open_model
from wenmo.models import CustomHeads, is_task_head
from wenmo.nn.pooling import Pooling, pooled
from wenmo.nn.quantized import num_weights
from wenmo.notebook import facts, fragment
from wenmo.objectives import hidden_of
from wenmo.tasks import CustomTasks, Encoded, Joint, Lengths, Task, create_task, joint_of, task_from_card
from wenmo.tasks.chat import Chat
from wenmo.tasks.implied import further_task, implied_tasks
from wenmo.tasks.language_modeling import CausalLMSettings
from wenmo.tasks.tagging import Tagging
from wenmo.tasks.vectors import text_ids
from wenmo.text import chat
from wenmo.text.messages import asked as asked_messages
from wenmo.text.messages import with_system
from wenmo.text.normalize import NormalizeSettings, normalized, normalizer
from wenmo.text.source import text_column
from wenmo.text.tokenizer import Tokenizer

BATCH_TOKENS = 4096  # of one forward in predict, score and embed


def load(reference: str | Path, *, device: str = "auto", dtype: machine.DType = "fp32", threads: int | None = None,
         tasks: CustomTasks | None = None, heads: CustomHeads | None = None, base: Loaded | None = None) -> Loaded:
    """Opens a model by its reference (folder, Run, .gguf, hf:org/name, ms:org/name, pkg:NAME). Raises ModelError.

    fp32 by default: the scores are then those of the stored weights; bf16 is faster where the processor has it.
    `tasks` and `heads`: those of your own that the model was trained with (docs/extend.md). base: of an adapter, the
    model below it if that is loaded already; the two then share its tensors (not with DoRA or adapted embeddings).
    """
    opened = open_model(str(reference), custom=heads)
    return Loaded(opened, machine.choose(device, dtype, threads), str(reference), tasks, base)


@dataclass(frozen=True, slots=True)
class Asked:
    """A row, and what the model reads of it."""

    row: Mapping[str, Any]
    encoded: Encoded

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.encoded.sequences))


@dataclass(frozen=True, slots=True)
class Answered:
    """A row, the task's outputs of its sequences, and how many of its tokens were not read."""

    row: Mapping[str, Any]
    outputs: list[Any]
    cut_tokens: int


class Loaded:
    """A model ready to answer. `task` is what it was trained for; a bare language model has language modelling."""

    def __init__(self, opened: Opened, on: Device, reference: str, tasks: CustomTasks | None = None,
                 base: Loaded | None = None) -> None:
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

    # Answers --------------------------------------------------------------------------------------------

    def outputs(self, rows: Sequence[Mapping[str, Any]], task: Task, *, with_targets: bool = False) -> list[list[Any]]:
        """For each row the task's outputs of its sequences, in order. Rows are batched by length; texts are normalised
        as they were for training."""
        return self.outputs_and_cuts(rows, task, with_targets=with_targets)[0]

    def outputs_and_cuts(self, rows: Sequence[Mapping[str, Any]], task: Task, *,
                         with_targets: bool = False) -> tuple[list[list[Any]], list[int]]:
        """`outputs`, and how many tokens of each row were not read, since it is longer than the task reads."""
        encoded = [self._encoded(number, row, task, with_targets) for number, row in enumerate(rows)]
        outputs = self._run([row.sequences for row in encoded], lambda batch: task.outputs(self.model, batch))
        return outputs, [row.cut_tokens for row in encoded]

    def _encoded(self, number: int, row: Mapping[str, Any], task: Task, with_targets: bool) -> Encoded:
        change = self.normalize
        if change is not None:
            row = {**row, **{name: normalized(row[name], change) for name in task.settings.columns if name in row}}
        return task.encode(number, row, with_targets=with_targets)

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
        """The task's answer to each row; a string stands for {"text": …} or {"source": …}. Raises DataError for a
        missing column."""
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
        return [found if isinstance(found, DataError) else decoded(chosen, found)
                for found in self.answered(rows, chosen, first)]

    def answered(self, rows: Sequence[Mapping[str, Any] | str | DataError], chosen: Task,
                 first: int = 0) -> list[Answered | DataError]:
        """What `answers` decodes."""
        asked = self.asked(rows, chosen, first)
        answered = iter(self.answer([row for row in asked if isinstance(row, Asked)], chosen))
        return [row if isinstance(row, DataError) else next(answered) for row in asked]

    def asked(self, rows: Sequence[Mapping[str, Any] | str | DataError], chosen: Task,
              first: int = 0) -> list[Asked | DataError]:
        """Rows as the model reads them; calls no model."""
        asked: list[Asked | DataError] = []
        for number, given in enumerate(rows, first):
            try:
                if isinstance(given, DataError):
                    raise given
                row = {text_column(chosen.settings.columns): given} if isinstance(given, str) else given
                asked.append(Asked(row, self._asked(number, row, chosen)))
            except DataError as error:
                asked.append(error)
        return asked

    def answer(self, asked: Sequence[Asked], chosen: Task) -> list[Answered]:
        """The model's outputs for rows that `asked` gave, of one call or of many."""
        outputs = self._run([row.encoded.sequences for row in asked], lambda batch: chosen.outputs(self.model, batch))
        return [Answered(row.row, found, row.encoded.cut_tokens) for row, found in zip(asked, outputs, strict=True)]

    def _asked(self, number: int, row: Mapping[str, Any], task: Task) -> Encoded:
        if "messages" in task.settings.columns:
            row = asked_messages(row)
        if isinstance(task, Tagging):
            row = task.question(row)
        for column in () if isinstance(task, Joint) else task.settings.columns:  # a joint task takes what is there
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

    def embed(self, texts: Sequence[str], *, normalise: bool | None = None, prompt: str | None = None) -> np.ndarray:
        """[number of texts, D] in fp32, pooled as the model's folder says, else the mean of the last hidden states; of
        length one unless the folder says otherwise (`normalise` wins). `prompt`: the name of one that the model has
        (`query`, `document`), to stand before each text. Longer texts are cut at the model's length.
        """
        return self.vectors(self.texts_to_embed(texts, prompt), normalise)

    def texts_to_embed(self, texts: Sequence[str], prompt: str | None = None) -> list[Tokens]:
        """Texts as `vectors` reads them; calls no model."""
        how = embedding_files.of_card(self.opened.card)
        before, longest = self._prompt(prompt, how), self.opened.max_tokens or 512
        lengths = Lengths(max_tokens=min(longest, int(how.get("max_tokens") or 512)))
        encoded = []
        for number, text in enumerate(texts):
            text = text if self.normalize is None else self.normalize(text)
            ids, _ = text_ids(self.tokenizer, text, before, lengths, number)
            encoded.append(Tokens(number, {"ids": np.asarray(ids)}))
        return encoded

    def vectors(self, texts: Sequence[Tokens], normalise: bool | None = None) -> np.ndarray:
        """`embed` for texts that `texts_to_embed` gave, of one call or of many."""
        how = embedding_files.of_card(self.opened.card)
        pooling, two_stacks = how.get("pooling", "mean"), getattr(self.model.config, "is_encoder_decoder", False)
        unsupported = [*how.get("unsupported", ()), *(() if pooling in get_args(Pooling) else (pooling,)),
                       *(("encoder–decoder",) if two_stacks and "encoder" not in self.model.heads else ())]
        if unsupported:
            raise ModelError(
                say("this model makes its vectors in a way that is not supported", "不支持此模型得到向量的方式"),
                where=f"{self.reference}: {', '.join(unsupported)}",
                mend=say("use an encoder whose vectors are pooled by mean, cls, max or last, without further steps",
                         "请使用以 mean、cls、max 或 last 汇聚、没有其他步骤的编码器"))

        def vectors(batch: Any) -> list[np.ndarray]:
            return list(pooled(hidden_of(self.model, batch.text), batch.text.lengths, pooling).cpu().numpy())

        if not texts:
            return np.zeros((0, self.model.config.width), np.float32)
        found = np.stack([vector for [vector] in self._run([[text] for text in texts], vectors)])
        one_long = how.get("normalise", True) if normalise is None else normalise
        return found / np.linalg.norm(found, axis=1, keepdims=True).clip(1e-12) if one_long else found

    def token_states(self, texts: Sequence[str], layer: int | None = None) -> list[tuple[list[int], np.ndarray]]:
        """For each text the ids of its own tokens, and a vector for each: (ids, [T, D] in fp32). They are those after
        the last layer, or after that `layer`, counted from 1. Control tokens are read but not given; longer texts are
        cut."""
        if getattr(self.model.config, "is_encoder_decoder", False):
            raise ModelError(
                say("an encoder–decoder has no states of a text alone", "编码器–解码器没有单独一段文本的隐状态"),
                where=self.reference, mend=say("name an encoder such as a BERT", "请指定编码器，如 BERT"))
        room = (self.opened.max_tokens or 512) - self.tokenizer.num_wrapping(False)
        ids = [self.tokenizer.encode(text if self.normalize is None else self.normalize(text))[:room] for text in texts]
        encoded = [[Tokens(number, {"ids": np.asarray(self.tokenizer.wrap(own)[0])})] if own else []
                   for number, own in enumerate(ids)]
        seen: dict[str, torch.Tensor] = {}

        def states(batch: Any) -> list[np.ndarray]:
            hidden_MD = self.model(batch.text.ids_M, batch.text.lengths, taps=lambda name, x: seen.setdefault(name, x))
            if layer is not None and f"layers.{layer - 1}" not in seen:
                number = sum(name.startswith("layers.") for name in seen)
                raise ModelError(say(f"the model has {number} layers", f"模型有 {number} 层"), where=f"layer {layer}",
                                 mend=f"1 … {number}")
            hidden_MD = hidden_MD if layer is None else seen[f"layers.{layer - 1}"]
            seen.clear()
            return [part.cpu().numpy() for part in torch.split(hidden_MD.float(), list(batch.text.lengths))]

        before = len(self.tokenizer.prefix)
        none = np.zeros((0, self.model.config.width), np.float32)
        return [(own, found[0][before : before + len(own)] if found else none)
                for own, found in zip(ids, self._run(encoded, states), strict=True)]

    def _prompt(self, name: str | None, how: Mapping[str, Any]) -> str:
        """Raises ModelError for a prompt that the model does not have."""
        prompts = how.get("prompts", {})
        if name is None:
            return str(how.get("default_prompt", ""))
        if name not in prompts:
            known = ", ".join(prompts) or say("none", "无")
            raise ModelError(say(f"the model has no prompt `{name}`", f"模型没有提示 `{name}`"), where=self.reference,
                             mend=say(f"its prompts: {known}", f"它的提示：{known}"))
        return str(prompts[name])

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

    def engine(self, settings: EngineSettings | Mapping[str, Any] | None = None) -> Engine:
        """An engine, which continues many texts at once, for a model that was loaded in fp32 on the CPU. The format of
        the engine's settings says how it computes. It packs the weights in place: the model is its own from then on.

        Raises UsageError for another device or number format, RecipeError for what is no setting.
        """
        self._needs_to_generate()
        if self.on.device.type != "cpu" or self.on.dtype != torch.float32:
            raise UsageError(
                say("the engine takes a model in fp32 on the CPU, and changes the format itself",
                    "引擎接受 CPU 上的 fp32 模型，并自行转换格式"), where=str(self.on),
                mend='wenmo.load(…, device="cpu", dtype="fp32").engine({"format": "bf16"})')
        chosen = settings if isinstance(settings, EngineSettings) else parse(EngineSettings, settings or {}, "engine")
        guess = chosen.speculate
        draft = load(guess.draft, device="cpu").model if isinstance(guess, DraftSettings) else None
        return Engine(self.model, self.tokenizer, chosen, ends=self.ends(), banned=self.banned(), draft=draft)

    def prompt_ids(self, prompt: str) -> list[int]:
        """Ids of a prompt as the model saw the beginnings of texts in training; of a source with what ends it."""
        self._needs_to_generate()
        ids = self.tokenizer.encode(prompt if self.normalize is None else self.normalize(prompt))
        if "seq2seq_lm" in self.model.heads:
            return self.tokenizer.wrap(ids)[0]
        return [*self.opened.card.get("document_start", self.tokenizer.prefix), *ids]

    def chat_ids(self, messages: Sequence[Mapping[str, Any]],
                 tools: Sequence[Mapping[str, Any]] | None = None) -> list[int]:
        """Ids of a conversation that ends where the model is to answer, with the system message of its training above
        one that has none. `tools`: the functions that it may call, as JSON schemas. Raises DataError for what are no
        messages, TokenizerError without a chat template."""
        system = next((task.settings.system for task in self.tasks.values() if isinstance(task, Chat)), "")
        change = self.normalize
        given = with_system(messages, system)
        return chat.render(self.tokenizer, given if change is None else normalized(given, change), tools=tools,
                           add_generation_prompt=True)

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


def decoded(task: Task, answered: Answered) -> dict[str, Any] | DataError:
    """The answer, with `truncated_tokens` where a part of the row was not read."""
    try:
        answer = task.decode(answered.row, answered.outputs)
    except DataError as error:  # a row that cannot be answered costs itself
        return error
    return {**answer, "truncated_tokens": answered.cut_tokens} if answered.cut_tokens else answer
