"""A few hundred sentences made from templates, Chinese and English, and recipes small enough for one core.

`write` leaves the same file names as `wenmo demo` does, so that the recipes in `recipes/` run on them as they are.
"""

from __future__ import annotations

import csv
import itertools
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

GOOD = ("很好", "非常满意", "令人惊喜", "值得推荐", "excellent", "wonderful", "a real pleasure", "highly recommended")
BAD = ("很差", "非常失望", "令人生气", "不值一提", "terrible", "awful", "a waste of money", "deeply disappointing")
THINGS = ("这本书", "这家酒店", "这部手机", "这台电脑", "这次服务", "this book", "this hotel", "this phone",
          "the laptop", "the service")
TIMES = ("昨天看来", "用了一周之后", "朋友都说", "第三次购买", "after a week", "my friends say that", "so far",
         "for the third time")
TOPICS = ("经济", "文化", "体育", "教育", "农业", "the economy", "culture", "sport", "education", "farming")
EVENTS = ("稳步发展", "取得新的成绩", "受到广泛关注", "面临不少困难", "is growing steadily", "has met with success",
          "is widely discussed", "faces many problems")
PLACES = ("新华社北京", "上海讯", "本报广州", "据记者报道", "From London", "Reuters, Paris", "New York",
          "Our reporter says")


def reviews(number: int, seed: int = 0) -> list[tuple[str, str]]:
    """(review, label), all different; half of them positive. The word of praise or blame decides."""
    made = [(f"{time}，{thing}{word}。", label)
            for label, words in (("positive", GOOD), ("negative", BAD))
            for time, thing, word in itertools.product(TIMES, THINGS, words)]
    halves = [random.Random(seed).sample([row for row in made if row[1] == label], number // 2)
              for label in ("positive", "negative")]
    return [row for pair in zip(*halves, strict=True) for row in pair]


def news(number: int, seed: int = 0) -> list[str]:
    """Documents of two to five sentences, all different."""
    rng = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < number:
        parts = [f"{rng.choice(TOPICS)}{rng.choice(EVENTS)}" for _ in range(rng.randint(2, 5))]
        found[f"{rng.choice(PLACES)}：" + "，".join(parts) + "。"] = None
    return list(found)


def questions(number: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows for span questions: where a thing is sold, what it costs, and who wrote it, which none says."""
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for at in range(number):
        city, price = rng.choice(("北京", "上海", "广州", "London", "Paris")), f"{rng.randint(10, 999)}元"
        facts = [f"{rng.choice(TIMES)}在{city}出售", f"价格是{price}", *rng.sample(EVENTS, rng.randint(0, 2))]
        rng.shuffle(facts)
        context = f"{rng.choice(THINGS)}{'，'.join(facts)}。"
        question, answer = (("在哪里出售？", city), ("价格是多少？", price), ("谁写的？", ""))[at % 3]
        found = [{"text": answer, "answer_start": context.index(answer)}] if answer else []
        rows.append({"question": question, "context": context, "answers": found})
    return rows


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def write(folder: Path, num_reviews: int = 200, num_news: int = 200) -> Path:
    """people.txt and reviews-train.csv (review, label)."""
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "reviews-train.csv", ("review", "label"), reviews(num_reviews))
    (folder / "people.txt").write_text("\n".join(news(num_news)) + "\n", encoding="utf-8")
    return folder


def recipe(task: str, **train: Any) -> dict[str, Any]:
    """A small model from nothing on the files of `write`, for a task by its name."""
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
            "max_position_embeddings": 64}
    kinds: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # model and tokenizer
        "causal_lm": ({"type": "llama", **size}, {"type": "bpe", "vocab_size": 400}),
        "chat": ({"type": "llama", **size}, {"type": "bpe", "vocab_size": 400}),
        "span_corruption": ({"type": "t5", "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2},
                            {"type": "bpe", "vocab_size": 500, "seq2seq": True}),
    }
    model, tokenizer = kinds.get(task, ({"type": "bert", **size}, {"type": "wordpiece", "vocab_size": 400}))
    settings = {"span_qa": {"max_question_tokens": 12, "overlap_tokens": 16},
                "chat": {"template": "chatml"}}.get(task, {})
    asked = {"path": "questions.jsonl"}
    people, rated = {"path": "people.txt"}, {"path": "reviews-train.csv", "columns": {"text": "review"}}
    return {
        "model": model,
        "tokenizer": {"train": tokenizer},
        "data": {"train": {"classification": [rated], "span_qa": [asked], "chat": [{"path": "talks.jsonl"}]}.get(
                     task, [people, rated]), "choose": {"carve": 20}, "max_tokens": 64},
        "task": {"type": task, **settings},
        "train": {"steps": 60, "batch_tokens": 512, "threads": 1, "dtype": "fp32", "optimizer": {"lr": 3e-3}, **train},
    }
