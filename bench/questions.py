"""The questions behind docs/results.md: DRCD, CMRC 2018 and SubjQA in parts that share no article, review or product.

In: the sets as they lie in ../shared/data, and OUT/people.txt. Out: OUT/{drcd,cmrc,subjqa}/{report,choose,train}.jsonl,
held to HASHES; and, from contexts of the training parts and newspapers alone, what teaches to look things up:
wiki.jsonl, the contexts; recall.jsonl, passages below sentences of theirs that lost some words; spot.jsonl, the same
with a tag for each character, what is still there and what was lost; and cloze.jsonl, questions that nobody had to
write: such a sentence, of which one run of words is asked for (Lewis et al. 2019, §2.3).
"""

from __future__ import annotations

import csv
import gzip
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rjieba

from wenmo.device import numpy_rng
from wenmo.evaluation.sentence_baselines import sentences
from wenmo.files import read_jsonl, write_jsonl
from wenmo.stages.split import split

COLUMNS = ("question", "context", "answers")
QUESTIONS_A_CONTEXT, PASSAGE = 12, 120
SHORTEST = 12  # of the sentences that are asked about
LOST, LOST_CLAUSES = 0.2, 0.3  # of a sentence's words and clauses; of a question at most so many
ASKED, ASKED_NUMBER = ("什么", "谁", "哪里", "哪个", "哪一种", "何"), ("多少", "哪一年", "何时", "几")
NONE = "ANSWERNOTFOUND"  # SubjQA's mark: the answer where there is none, and the end of every review

# set → (file, its parts), whole articles (DRCD, CMRC) or products (SubjQA) at a time
PARTS = {
    "drcd": ("drcd/DRCD_dev.json.gz", ["report=352", "choose=352", "train"]),
    "cmrc": ("cmrc2018/cmrc2018_trial.json.gz", ["report=200", "choose=100", "train"]),
    "subjqa": ("subjqa.jsonl", ["report=300", "choose=300", "train"]),
}
# sha256 of the parts held out: a figure is comparable only where these are the rows.
HASHES = {
    "drcd": {"report": "5a49f05ad0032e04e441248ace29c73aa0aeabaf08551f836942dc2d6bbd43cb",
             "choose": "014ca3dcffe5c409f492901d70590b41315317d8a852057c372eef86bf3c8022"},
    "cmrc": {"report": "3ef9a90cdb12a202967234d85faa38b805ee46268e06a0bf6948ef1aea91a6b6",
             "choose": "53f6642219ec9478a2499328824a384561d38a630ffe696407565a126723e13c"},
    "subjqa": {"report": "65881bf0d1790b2b9c04767a74fd985f4af31cd6e69f55a09268ef419c8eca78",
               "choose": "23c5a3e0c6bf8633c28128fbd74d614e33c7ac262bcea2a7ed76840fb9e41d44"},
}


def prepare_questions(data: Path, out: Path) -> None:
    """Writes all parts and texts."""
    divide_questions(data, out)
    contexts = list(dict.fromkeys(row["context"] for name in ("drcd", "cmrc")
                                  for row in read_jsonl(out / name / "train.jsonl")))
    write_jsonl(out / "wiki.jsonl", ({"text": context} for context in contexts))
    with lzma.open(data / "msra-ner" / "dh_msra.txt.xz", "rt", encoding="utf-8") as file:
        blocks = ("".join(line.partition("\t")[0] for line in block.split("\n"))
                  for block in file.read().split("\n\n"))
        news = list(dict.fromkeys(filter(None, blocks)))
    news += (out / "people.txt").read_text(encoding="utf-8").splitlines()
    passages = [*contexts * QUESTIONS_A_CONTEXT, *_passages(news)]
    write_jsonl(out / "cloze.jsonl", filter(None, (_cloze(text, number) for number, text in enumerate(passages))))
    pieces = [piece for context in contexts for piece in _passages(sentences(context))]
    near = enumerate([*pieces * 2, *_passages(news)])
    write_jsonl(out / "spot.jsonl", filter(None, (_spotted(text, number) for number, text in near)))
    recall = (_recall(text, number) for number, text in enumerate([*pieces * 4, *_passages(news)]))
    write_jsonl(out / "recall.jsonl", ({"text": text} for text in recall if text))


def divide_questions(data: Path, out: Path) -> None:
    """The parts. SystemExit where rows held out are other than those of the figures."""
    write_jsonl(out / "subjqa.jsonl", _subjqa(data / "subjqa"))
    for name, (file, parts) in PARTS.items():
        path = out / file if name == "subjqa" else data / file
        made = split([str(path)], out / name, parts, columns=COLUMNS, group="title")["parts"]
        for part, wanted in HASHES[name].items():
            if made[part]["sha256"] != wanted:
                raise SystemExit(f"{name}/{part}: these are other rows than those of docs/results.md")


# Questions that nobody had to write -------------------------------------------------------------------


def _passages(texts: list[str]) -> Iterator[str]:
    """Neighbouring sentences of a newspaper, about PASSAGE characters together."""
    gathered = ""
    for text in texts:
        gathered += text.strip()
        if len(gathered) >= PASSAGE:
            yield gathered[: 2 * PASSAGE]
            gathered = ""


def _cloze(context: str, number: int) -> dict[str, Any] | None:
    """A question made of one sentence: words and clauses are lost, and a run of one to four words is asked for."""
    rng = numpy_rng("cloze", number)
    sentence = _drawn(context, 120, rng)
    if sentence is None:
        return None
    words = rjieba.cut(sentence)
    starts = [at for at, word in enumerate(words) if word[0].isalnum() and (len(word) > 1 or word.isdigit())]
    if not starts:
        return None
    first = starts[rng.integers(len(starts))]
    last = first
    while last - first < rng.integers(4) and last + 1 < len(words) and words[last + 1].isalnum():
        last += 1
    answer = "".join(words[first : last + 1])
    share = max(0.0, 2 * rng.random() - 1)  # half of the questions lose nothing else: the easier half
    before, after = (_with_losses(part, rng, share) for part in (words[:first], words[last + 1 :]))
    asked = ASKED_NUMBER if any(map(str.isdigit, answer)) else ASKED
    what = asked[rng.integers(len(asked))]
    question = f"{after}，{before}{what}？" if after and rng.random() < 0.4 else f"{before}{what}{after}？"
    start = context.index(sentence) + len("".join(words[:first]))
    return {"question": question, "context": context, "answers": [{"text": answer, "answer_start": start}]}


def _drawn(context: str, longest: int, rng: np.random.Generator) -> str | None:
    """One of the sentences that are long enough to ask about, and not longer than that."""
    found = [sentence for sentence in sentences(context) if SHORTEST <= len(sentence) <= longest]
    return found[rng.integers(len(found))] if found else None


def _recall(context: str, number: int) -> str:
    """Two of its sentences with losses, then the passage itself."""
    rng = numpy_rng("recall", number)
    found = sentences(context)
    drawn = [found[at] for at in rng.permutation(len(found))[:2]]
    return "".join(f"{_with_losses(rjieba.cut(sentence), rng)}。" for sentence in drawn) + context


def _with_losses(words: list[str], rng: np.random.Generator, share: float = 1.0) -> str:
    return "".join(word for word, kept in zip(words, _kept(words, rng, share), strict=True) if kept)


def _kept(words: list[str], rng: np.random.Generator, share: float = 1.0) -> list[bool]:
    """Which words stay: some are lost, and some whole clauses; the signs between them too. `share`: of the losses."""
    clauses: list[list[int]] = [[]]
    for at, word in enumerate(words):
        if word[0].isalnum():
            clauses[-1].append(at)
        elif clauses[-1]:
            clauses.append([])
    kept = {at for clause in clauses if rng.random() > share * LOST_CLAUSES
            for at in clause if rng.random() > share * LOST}
    return [at in kept for at in range(len(words))]


def _spotted(context: str, number: int) -> dict[str, list[str]] | None:
    """A sentence with losses, then the passage, each character with a tag: in the passage `SAME` where the sentence has
    it still, `LOST` where it lost it, `O` elsewhere."""
    rng = numpy_rng("spotted", number)
    sentence = _drawn(context, 60, rng)
    if sentence is None:
        return None
    words = rjieba.cut(sentence)
    kept = _kept(words, rng)
    asked = "".join(word for word, stays in zip(words, kept, strict=True) if stays) + "？"
    start = context.index(sentence)
    tags = ["SAME" if stays else "LOST" for word, stays in zip(words, kept, strict=True) for _ in word]
    after = len(context) - start - len(sentence)
    return {"tokens": [*asked, *context], "tags": ["O"] * (len(asked) + start) + tags + ["O"] * after}


def _subjqa(folder: Path) -> Iterator[dict[str, Any]]:
    """A row for each question about a review, with the answers of all annotators; none if nobody found one.

    Upstream's train and dev together: 395 of the 468 reviews in dev stand in train too.
    """
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for path in sorted(folder.glob("*/*.csv.gz")):
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            for found in csv.DictReader(file):
                context = found["review"].removesuffix(NONE).rstrip()
                row = rows.setdefault((found["question"], context), {
                    "question": found["question"], "context": context, "answers": [], "title": found["item_id"]})
                text = found["human_ans_spans"].strip()
                if text != NONE and text in context:
                    start = int(found["human_ans_indices"].strip("()").split(",")[0])
                    row["answers"].append({"text": text, "answer_start": start})
    yield from rows.values()
