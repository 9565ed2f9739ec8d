"""Real text in both languages, drawn into one corpus of any size: what packing and the first step read.

Reviews of online shops and a month of a newspaper in Chinese, encyclopaedia, plays and school problems in English, the
public sets of WENMO_TEST_DATA or ../shared/data. A document is a score of paragraphs drawn by seed, so paragraphs
repeat (there are about 13 MB of different text), in ever other company.
"""

from __future__ import annotations

import csv
import gzip
import json
import lzma
import os
from pathlib import Path

from bench.environments import ENVIRONMENTS
from wenmo.device import numpy_rng
from wenmo.stages.demo import newspaper

DATA = Path(os.environ.get("WENMO_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
PARAGRAPHS = 20


def reviews() -> list[dict[str, str]]:
    """{"text", "label"} of the 50,774 Chinese reviews of shops, of 1 to 3,000 characters."""
    with lzma.open(DATA / "online-shopping-9-cats" / "train.csv.xz", "rt", encoding="utf-8") as file:
        return [{"text": row["review"], "label": row["label"]} for row in csv.DictReader(file) if row["review"].strip()]


def paragraphs() -> list[str]:
    found = [row["text"] for row in reviews()]
    found += newspaper()[0]
    for name in ("wikitext-2/valid.txt.gz", "tinyshakespeare/input.txt.gz"):
        with gzip.open(DATA / name, "rt", encoding="utf-8") as file:
            found += file.read().split("\n\n" if "shakespeare" in name else "\n")
    with gzip.open(DATA / "gsm8k" / "train.jsonl.gz", "rt", encoding="utf-8") as file:
        found += [f"{row['question']}\n{row['answer']}" for row in map(json.loads, file)]
    return [text for text in found if text.strip()]


def corpus(megabytes: int) -> Path:
    """A file of JSON lines with so many million bytes of text in it, made once."""
    out = ENVIRONMENTS / "data" / f"corpus-{megabytes}.jsonl"
    if out.exists():
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    drawn_from, rng, size = paragraphs(), numpy_rng("bench.corpus"), 0
    unfinished = out.with_suffix(".unfinished")
    with unfinished.open("w", encoding="utf-8") as file:
        while size < megabytes * 1_000_000:
            text = "\n".join(drawn_from[number] for number in rng.integers(0, len(drawn_from), PARAGRAPHS))
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            size += len(text.encode())
    unfinished.rename(out)
    return out
