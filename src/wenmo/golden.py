"""Golden prompts: two fixed texts, Chinese and English, and what the model made of them when it was saved.

They stand in `wenmo.json`. Whatever happens to a model afterwards (merged, quantised, exported, served, opened on
another machine) can be held against them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from wenmo.errors import ModelError, WenmoError, say
from wenmo.generate import Sampling, generate
from wenmo.models import TASK_HEADS, LanguageModel, TaskView, classify, logits
from wenmo.models.task_heads import split_name
from wenmo.text.chat import render
from wenmo.text.tokenizer import Tokenizer

PROMPTS = ("春天来了，天气渐渐暖和起来。", "The days are getting longer and warmer.")
GREEDY_TOKENS = 32
# What `check` compares of an entry.
_NUMBERS = ("task_heads", "scores", "next_sentence", "tags", "spans", "log_probabilities", "hidden")
_WRAPPED = {"classification", "tagging", "span_qa", "seq2seq_lm"}  # heads that read a text with what ends it
TOLERANCE = 1e-3  # log-probabilities in fp32 across machines; a lossy hop (quantising) states its own


def record(model: LanguageModel, tokenizer: Tokenizer, prompts: Sequence[str] = PROMPTS) -> list[dict[str, Any]]:
    """For each prompt: ids, the log-probability of each token (after the first, if causal; an encoder–decoder is asked
    to say the prompt again), the scores of the classes and of the next sentence, each token's highest score of a tag
    and its two of a span, the mean hidden state where there is no head, and 32 greedy tokens where the model generates.
    A model that chats is asked as a user would too ("chat": true). The model must be in eval mode."""
    asked = [_answers(model, tokenizer, prompt) for prompt in prompts]
    entries = asked + [_answers(model, tokenizer, prompt, ids) for prompt in prompts
                       if (ids := _chat_ids(model, tokenizer, prompt)) is not None]
    longest = model.config.max_tokens
    for entry in entries:
        if {"causal_lm", "seq2seq_lm"} & set(model.heads) and (longest is None or longest > len(entry["ids"])):
            [[completion]] = generate(model, tokenizer, [entry["ids"]], Sampling(max_new_tokens=GREEDY_TOKENS),
                                      frozenset())
            entry["greedy"] = list(completion.ids)
    return entries


def _chat_ids(model: LanguageModel, tokenizer: Tokenizer, prompt: str) -> list[int] | None:
    """The prompt as a user's message; None for a model that does not chat, or whose template writes down the date."""
    template = tokenizer.chat_template
    if "causal_lm" not in model.heads or template is None or "strftime_now" in template:
        return None
    try:
        ids = render(tokenizer, [{"role": "user", "content": prompt}], add_generation_prompt=True)
    except WenmoError:  # a template may want more than a question: then there is nothing to record
        return None
    longest = model.config.max_tokens
    return ids if longest is None or len(ids) < longest else None


def _answers(model: LanguageModel, tokenizer: Tokenizer, prompt: str, chat_ids: list[int] | None = None,
             ) -> dict[str, Any]:
    """What one forward says about a prompt, or about the conversation that it begins."""
    longest = model.config.max_tokens or GREEDY_TOKENS
    ids = tokenizer.encode(prompt)[: min(GREEDY_TOKENS, longest)]
    if chat_ids is not None:
        ids = chat_ids
    elif not model.causal or _WRAPPED & {split_name(name)[-1] for name in model.heads}:
        ids, _ = tokenizer.wrap(ids[: longest - tokenizer.num_wrapping(False)])
    entry: dict[str, Any] = {"prompt": prompt, "ids": ids, **({"chat": True} if chat_ids is not None else {})}
    with torch.inference_mode():
        ids_M = torch.tensor(ids, device=_device(model))
        if "seq2seq_lm" in model.heads:
            config: Any = model.config
            reads_M = torch.tensor([config.decoder_start_token_id, *ids[:-1]], device=_device(model))
            hidden_MD = model(ids_M, (len(ids),), reads_M, (len(ids),))
        else:
            hidden_MD = model(ids_M, (len(ids),))
        if "classification" in model.heads:
            entry["scores"] = _rounded(classify(model, hidden_MD, (len(ids),))[0])
        if "next_sentence" in model.heads:
            entry["next_sentence"] = _rounded(model.next_sentence(hidden_MD, (len(ids),))[0])
        if "tagging" in model.heads:
            entry["tags"] = _rounded(model.tag(hidden_MD).amax(1))
        if "span_qa" in model.heads:
            entry["spans"] = _rounded(model.spans(hidden_MD).flatten())
        if {"causal_lm", "masked_lm", "seq2seq_lm"} & set(model.heads):
            shift = 1 if "causal_lm" in model.heads else 0
            chances = logits(model, hidden_MD[: len(ids) - shift]).log_softmax(-1)
            entry["log_probabilities"] = _rounded(chances.gather(1, ids_M[shift:, None]).squeeze(1))
        for task in getattr(model, TASK_HEADS, ()):
            entry.setdefault("task_heads", []).extend(_of_head(TaskView(model, task), hidden_MD))
        if not model.heads:
            entry["hidden"] = _rounded(hidden_MD.float().mean(0))
    return entry


def _of_head(view: TaskView, hidden_MD: torch.Tensor) -> list[float]:
    """What the head of one of several tasks says: the scores of the classes, or each token's highest."""
    if "classification" in view.heads:
        return _rounded(view.classify(hidden_MD, (len(hidden_MD),))[0])
    return _rounded(view.tag(hidden_MD).amax(1))


def check(model: LanguageModel, tokenizer: Tokenizer, entries: list[dict[str, Any]], where: str,
          tolerance: float = TOLERANCE) -> float:
    """The largest difference to what was recorded; ModelError if the ids or the heads differ, or it is above
    `tolerance`, or not a number. The greedy tokens are not compared: near a tie they may differ between machines."""
    differences = [0.0]
    for old in entries:
        chat_ids = _chat_ids(model, tokenizer, old["prompt"]) if old.get("chat") else None
        if old.get("chat") and chat_ids != old["ids"]:
            raise ModelError(
                say("the chat template lays the golden prompts out differently than when the model was saved",
                    "对话模板对黄金提示的排布与保存模型时不同"), where=where,
                mend=say("restore chat_template.jinja and tokenizer.json",
                         "请恢复 chat_template.jinja 与 tokenizer.json"))
        new = _answers(model, tokenizer, old["prompt"], chat_ids)
        if old["ids"] != new["ids"]:
            raise ModelError(
                say("the tokenizer splits the golden prompts differently than when the model was saved",
                    "分词器对黄金提示的切分与保存模型时不同"), where=where,
                mend=say("restore tokenizer.json", "请恢复 tokenizer.json"))
        if [len(old.get(name, ())) for name in _NUMBERS] != [len(new.get(name, ())) for name in _NUMBERS]:
            raise ModelError(
                say("the model has other heads than when it was saved", "模型的输出头与保存时不同"), where=where,
                mend=say("open it without naming heads", "打开时不要另指定输出头"))
        differences += [abs(a - b) for name in _NUMBERS for a, b in zip(old.get(name, ()), new.get(name, ()),
                                                                        strict=True)]
    worst = math.nan if any(math.isnan(difference) for difference in differences) else max(differences)
    if not worst <= tolerance:
        raise ModelError(
            say(f"the model answers the golden prompts differently: {worst:.2g} > {tolerance:.2g}",
                f"模型对黄金提示的回答不同：{worst:.2g} > {tolerance:.2g}"), where=where,
            mend=say("the weights changed since they were saved", "权重在保存之后发生了变化"))
    return worst


def _device(model: Any) -> torch.device:
    """Where the model is: that of its first parameter."""
    device: torch.device = next(model.parameters()).device
    return device


def _rounded(values: torch.Tensor) -> list[float]:
    return [round(float(value), 5) for value in values.float().cpu()]
