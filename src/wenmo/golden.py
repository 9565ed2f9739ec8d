"""Golden prompts: two fixed texts, Chinese and English, and what the model made of them when it was saved.

They stand in `wenmo.json`. Whatever happens to a model afterwards (merged, quantised, exported, served, opened on
another machine) can be held against them.
"""

from __future__ import annotations

from typing import Any

import torch

from wenmo.errors import ModelError, say
from wenmo.generate import Sampling, generate
from wenmo.models import LanguageModel, logits
from wenmo.text.tokenizer import Tokenizer

PROMPTS = ("春天来了，天气渐渐暖和起来。", "The days are getting longer and warmer.")
GREEDY_TOKENS = 32
TOLERANCE = 1e-3  # log-probabilities in fp32 across machines; a lossy hop (quantising) states its own


def record(model: LanguageModel, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """For each prompt: ids, the log-probability of each token (after the first, if causal), the classes' scores, and
    32 greedy tokens where the model generates. The model must be in eval mode."""
    entries = []
    longest: Any = model.config.max_tokens
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt)[: min(GREEDY_TOKENS, longest or GREEDY_TOKENS)]
        if "masked_lm" in model.heads or "classification" in model.heads:
            ids, _ = tokenizer.wrap(ids[: (longest or GREEDY_TOKENS) - tokenizer.num_wrapping(False)])
        entry: dict[str, Any] = {"prompt": prompt, "ids": ids}
        device = model.lm_output()[0].device if "classification" not in model.heads else None
        ids_M = torch.tensor(ids, device=device)
        with torch.inference_mode():
            hidden_MD = model(ids_M, (len(ids),))
            if "classification" in model.heads:
                entry["scores"] = _rounded(model.classify(hidden_MD, (len(ids),))[0])
            if {"causal_lm", "masked_lm"} & set(model.heads):
                shift = 1 if model.causal else 0
                chances = logits(model, hidden_MD[: len(ids) - shift]).log_softmax(-1)
                entry["log_probabilities"] = _rounded(chances.gather(1, ids_M[shift:, None]).squeeze(1))
        if "causal_lm" in model.heads and (longest is None or longest > len(ids)):
            [[completion]] = generate(model, tokenizer, [ids], Sampling(max_new_tokens=GREEDY_TOKENS), frozenset())
            entry["greedy"] = list(completion.ids)
        entries.append(entry)
    return entries


def check(model: LanguageModel, tokenizer: Tokenizer, entries: list[dict[str, Any]], where: str,
          tolerance: float = TOLERANCE) -> float:
    """The largest difference to what was recorded; ModelError if the ids differ or it is above `tolerance`."""
    worst = 0.0
    for old, new in zip(entries, record(model, tokenizer), strict=True):
        if old["ids"] != new["ids"]:
            raise ModelError(
                say("the tokenizer splits the golden prompts differently than when the model was saved",
                    "分词器对黄金提示的切分与保存模型时不同"), where=where,
                mend=say("restore tokenizer.json", "请恢复 tokenizer.json"))
        for name in ("scores", "log_probabilities"):
            worst = max([worst, *(abs(a - b) for a, b in zip(old.get(name, []), new.get(name, []), strict=True))])
    if worst > tolerance:
        raise ModelError(
            say(f"the model answers the golden prompts differently: {worst:.2g} > {tolerance:.2g}",
                f"模型对黄金提示的回答不同：{worst:.2g} > {tolerance:.2g}"), where=where,
            mend=say("the weights changed since they were saved", "权重在保存之后发生了变化"))
    return worst


def _rounded(values: torch.Tensor) -> list[float]:
    return [round(float(value), 5) for value in values.float().cpu()]
