"""Tasks that nobody has said: what a checkpoint from elsewhere is for, read off its heads and its configuration.

In: an opened model folder, most likely without a card of ours. Out: the tasks that it can be asked and measured by.
"""

from __future__ import annotations

import re
from typing import Any, get_args

from wenmo import embedding_files
from wenmo.modeldir import Opened
from wenmo.nn.pooling import Pooling
from wenmo.tasks import Lengths, Task, create_task, task_from_card
from wenmo.tasks.chat import ChatSettings
from wenmo.tasks.language_modeling import CausalLMSettings, MaskedLMSettings
from wenmo.tasks.similarity import SimilaritySettings
from wenmo.text.tokenizer import Tokenizer


def further_task(opened: Opened, name: str | None) -> Task | None:
    """A language model of any training has a likelihood for texts, and, with a chat template, for answers."""
    tokenizer, longest = opened.tokenizer, opened.max_tokens or 1024
    if tokenizer is None or "causal_lm" not in opened.model.heads:
        return None
    if name == "causal_lm":
        return create_task(CausalLMSettings(), tokenizer, Lengths(max_tokens=longest))
    if name == "chat" and tokenizer.chat_template is not None:
        return create_task(ChatSettings(), tokenizer, Lengths(max_tokens=longest, too_long="window"))
    return None


def implied_tasks(opened: Opened, tokenizer: Tokenizer) -> dict[str, Task]:
    """A checkpoint from elsewhere has no card: a language model can at least be measured as one."""
    model = opened.model
    longest = opened.max_tokens or 1024
    if "causal_lm" in model.heads:
        return {"causal_lm": create_task(CausalLMSettings(), tokenizer, Lengths(max_tokens=longest))}
    if "masked_lm" in model.heads and "mask" in tokenizer.control:
        return {"masked_lm": create_task(MaskedLMSettings(), tokenizer, Lengths(max_tokens=longest))}
    how = embedding_files.of_card(opened.card)
    if not model.heads and how.get("pooling") in get_args(Pooling) and "unsupported" not in how:
        before = how.get("default_prompt")
        settings = SimilaritySettings(pooling=how["pooling"],
                                      prompts={"query": before, "document": before} if before else {})
        lengths = Lengths(max_tokens=min(int(how.get("max_tokens") or 512), longest))
        return {"similarity": create_task(settings, tokenizer, lengths)}
    card = _implied_card(opened)
    if card is None:
        return {}
    return {card["type"]: task_from_card({**card, "lengths": {"max_tokens": longest}}, tokenizer, "config.json")}


def _implied_card(opened: Opened) -> dict[str, Any] | None:
    """What config.json says that the scores of a head mean; None where it says nothing that there is a task for."""
    if "seq2seq_lm" in opened.model.heads and opened.tokenizer is not None and {"pad", "eos"} <= set(
            opened.tokenizer.control):
        given = {**opened.carried, **opened.generation}
        generation = {key: given[key] for key in ("num_beams", "no_repeat_ngram_size") if given.get(key)}
        if generation.get("num_beams", 1) > 1 and given.get("length_penalty") is not None:
            generation["length_penalty"] = given["length_penalty"]
        # Theirs counts the token that a target begins with.
        most = int(given.get("max_new_tokens") or int(given.get("max_length") or 513) - 1)
        return {"type": "text_to_text", "generation": generation,
                "max_target_tokens": max(2, min(most, opened.max_tokens or most))}
    problem, names, heads = opened.carried.get("problem_type"), opened.carried.get("id2label") or {}, opened.model.heads
    num_classes = heads.get("classification", 0)
    labels = [str(names.get(str(index), f"LABEL_{index}")) for index in range(num_classes or heads.get("tagging", 0))]
    if "tagging" in heads:
        entities = "O" in labels and all(re.fullmatch("O|[BI]-.+", label) for label in labels)
        return {"type": "tagging", "target": "entities" if entities else "tags", "labels": labels, "units": "words"}
    if "span_qa" in heads:
        return {"type": "span_qa", "metric": "squad", "no_answer": False}
    if num_classes and problem == "multi_label_classification":
        return {"type": "multi_label", "labels": labels}
    if num_classes == 1 and problem in (None, "regression"):
        pair = "sentence_transformers" in opened.carried  # its cross-encoders read two texts
        return {"type": "regression", "pair": pair, "offset": 0.0, "scale": 1.0}
    if num_classes > 1 and problem in (None, "single_label_classification"):
        return {"type": "classification", "labels": labels}
    return None
