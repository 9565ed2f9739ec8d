"""A small model, rows and a recipe for every task: what tests about all of them go through."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import small_data
from wenmo.files import write_jsonl

NUM_ROWS = 24
REVIEWS = [{"text": text * (1 + number % 3), "label": label}
           for number, (text, label) in enumerate(small_data.reviews(NUM_ROWS))]
NEWS = small_data.news(NUM_ROWS, seed=3)
PAIRS = [{"text_a": row["text"], "text_b": news, "label": row["label"], "score": float(number % 5)}
         for number, (row, news) in enumerate(zip(REVIEWS, NEWS, strict=True))]
TAGGED = [{"tokens": list(text), "tags": ["B-PLACE", *["I-PLACE"] * 2, *["O"] * (len(text) - 3)]} for text in NEWS]
TALKS = [{"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": news}]}
         for text, news in zip((row["text"] for row in REVIEWS), NEWS, strict=True)]
BERT = {"type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
        "max_position_embeddings": 64}
LLAMA = {**BERT, "type": "llama"}
T5 = {"type": "t5", "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
WORDS, BYTES, ENDED = ({"type": "wordpiece", "vocab_size": 400}, {"type": "bpe", "vocab_size": 400},
                       {"type": "bpe", "vocab_size": 500, "seq2seq": True})

# name → model, tokenizer, task, rows, keys of data
CASES: dict[str, tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any], Any, Mapping[str, Any]]] = {
    "classification": (BERT, WORDS, {"type": "classification"}, REVIEWS, {}),
    "classification of windows": (BERT, WORDS, {"type": "classification"}, REVIEWS,
                                  {"max_tokens": 16, "too_long": "window", "overlap_tokens": 4}),
    "classification by a decoder": (LLAMA, BYTES, {"type": "classification"}, REVIEWS, {}),
    "classification of pairs": (BERT, WORDS, {"type": "classification", "pair": True}, PAIRS, {}),
    "multi_label": (BERT, WORDS, {"type": "multi_label"},
                    [{"text": row["text"], "labels": [row["label"], "any"]} for row in REVIEWS], {}),
    "regression": (BERT, WORDS, {"type": "regression", "pair": True}, PAIRS, {}),
    "joint": (BERT, WORDS, {"type": "joint", "tasks": {
        "sentiment": {"type": "classification"}, "stars": {"type": "regression"}}},
        [{**row, "score": float(number % 5)} for number, row in enumerate(REVIEWS)], {}),
    "similarity": (BERT, WORDS, {"type": "similarity"}, PAIRS, {}),
    "tagging": (BERT, WORDS, {"type": "tagging"}, TAGGED, {"max_tokens": 16}),
    "tagging with a CRF": (BERT, WORDS, {"type": "tagging", "crf": True}, TAGGED, {}),
    "span_qa": (BERT, WORDS, {"type": "span_qa", "max_question_tokens": 12, "overlap_tokens": 16},
                small_data.questions(NUM_ROWS), {}),
    "causal_lm": (LLAMA, BYTES, {"type": "causal_lm"}, [{"text": text} for text in NEWS], {"max_tokens": 24}),
    "masked_lm": (BERT, WORDS, {"type": "masked_lm"}, [{"text": text} for text in NEWS], {"max_tokens": 24}),
    "span_corruption": (T5, ENDED, {"type": "span_corruption"}, [{"text": text} for text in NEWS], {"max_tokens": 24}),
    "text_to_text": (T5, ENDED, {"type": "text_to_text", "generation": {"max_new_tokens": 8}},
                     [{"source": text, "target": text[:6]} for text in NEWS], {}),
    "text_to_text by a decoder": (LLAMA, BYTES,
                                 {"type": "text_to_text", "separator": " → ", "generation": {"max_new_tokens": 8}},
                                 [{"source": text[:20], "target": text[:6]} for text in NEWS], {}),
    "chat": (LLAMA, BYTES, {"type": "chat", "template": "chatml"}, TALKS, {}),
}


def recipe_of(name: str, folder: Path, **changes: Any) -> dict[str, Any]:
    """A few steps of the case; its rows are written into the folder. `changes`: keys of `train`."""
    model, tokenizer, task, rows, data = CASES[name]
    write_jsonl(folder / "rows.jsonl", rows)
    return {"model": model, "tokenizer": {"train": tokenizer}, "task": task,
            "data": {"train": [{"path": "rows.jsonl"}], "choose": {"carve": 0}, "max_tokens": 64, **data},
            "train": {"steps": 12, "batch_tokens": 512, "threads": 1, "dtype": "fp32", "optimizer": {"lr": 3e-3},
                      **changes}}


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The numbers, names and texts that a value is made of."""
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from leaves(item, f"{path}.{name}")
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from leaves(item, f"{path}.{number}")
    elif hasattr(value, "tolist") and getattr(value, "ndim", 0):
        yield from leaves(value.tolist(), path)
    else:
        yield path, value


def differences(before: Any, after: Any) -> tuple[float, int]:
    """(the largest difference between scores, as a share of those above 1; how many rows were decided otherwise)."""
    largest, turned = 0.0, 0
    for one, other in zip(before, after, strict=True):
        found, expected = dict(leaves(one)), dict(leaves(other))
        same = found.keys() == expected.keys()
        for path in found.keys() & expected.keys():
            a, b = found[path], expected[path]
            if isinstance(a, (float, np.floating)) and isinstance(b, (float, np.floating)):
                largest = max(largest, abs(a - b) / max(1.0, abs(a)))
            else:
                same = same and a == b
        turned += not same
    return largest, turned
