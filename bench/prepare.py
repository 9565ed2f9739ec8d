"""The data behind docs/results.md, made ready: parts that share no text, with their hashes.

    python -m bench.prepare ../shared/data figures

`figures/` is then the data root of the recipes in recipes/results/. Every part is drawn by seed 0 after duplicates are
dropped (`wenmo split`); HASHES below are those of the parts that the figures were measured on.
"""

from __future__ import annotations

import gzip
import json
import logging
import re
import sys
from pathlib import Path
from typing import Any

from wenmo.files import write_atomic, write_jsonl
from wenmo.stages.demo import newspaper
from wenmo.stages.split import split

REVIEWS = {"columns": {"text": "review", "label": "label"}}
LABEL_FIRST = {"format": "tsv", "separator": " ", "header": False, "fields": 2, "surplus": "join",
               "columns": {"label": 0, "text": 1}}
TITLES = {"format": "tsv", "header": False, "columns": {"text": 0, "label": 1}}
CATEGORIES = {"header": False, "columns": {"text": 1, "label": 2}}

# name → (files, parts, how to read them)
SPLITS: dict[str, tuple[list[str], list[str], dict[str, Any]]] = {
    "shop": (["online-shopping-9-cats/train.csv.xz"], ["report=5000", "choose=2000", "train"], REVIEWS),
    "hotel": (["chnsenticorp-hotel/train.csv.gz"], ["report=1000", "choose=500", "train"], REVIEWS),
    "titles": (["thucnews-titles/dev.txt.gz"], ["report=1000", "choose=1000", "train"], TITLES),
    "csl": (["csl-category/train.tsv.gz"], ["choose=500", "train"], CATEGORIES),
    "csl-report": (["csl-category/dev.tsv"], ["report"], CATEGORIES),
    "sst": (["sst/stsa.binary.train.gz"], ["choose=500", "train"], LABEL_FIRST),
    "sst-report": (["sst/stsa.binary.dev"], ["report"], LABEL_FIRST),
    "trec": (["trec/TREC.train.gz"], ["report=500", "choose=500", "train"], {**LABEL_FIRST, "before": {"label": ":"}}),
}
CHAPTER = re.compile(r"^第[一二三四五六七八九十百零〇]+回\s.*$", re.MULTILINE)
HELD_OUT = 10  # every tenth chapter of a novel is for reporting


def prepare(data: Path, out: Path) -> dict[str, dict[str, str]]:
    """Writes all parts; gives name → part → sha256."""
    hashes = {}
    for name, (files, parts, source) in SPLITS.items():
        made = split([str(data / file) for file in files], out / name, parts, source=source)
        hashes[name] = {part: str(found["sha256"]) for part, found in made["parts"].items()}
    paragraphs, _ = newspaper()
    write_atomic(out / "people.txt", "\n".join(paragraphs) + "\n")
    _novels(data / "classical-novels", out / "novels")
    _shakespeare(data / "tinyshakespeare" / "input.txt.gz", out / "shakespeare")
    return hashes


def _novels(folder: Path, out: Path) -> None:
    """A chapter is a document; its lines without the indentation."""
    parts: dict[str, list[dict[str, str]]] = {"train": [], "report": []}
    for file in sorted(folder.glob("*.txt.gz")):
        with gzip.open(file, "rt", encoding="utf-8") as opened:
            text = opened.read()
        starts = [found.start() for found in CHAPTER.finditer(text)]
        for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(text)], strict=True), 1):
            lines = [line.strip() for line in text[start:end].splitlines()]
            chapter = "\n".join(line for line in lines if line)
            parts["train" if number % HELD_OUT else "report"].append({"text": chapter})
    for part, rows in parts.items():
        write_jsonl(out / f"{part}.jsonl", rows)


def _shakespeare(file: Path, out: Path) -> None:
    """The first nine tenths for training, the last tenth for validation, as nanoGPT has it."""
    with gzip.open(file, "rt", encoding="utf-8") as opened:
        text = opened.read()
    cut = int(len(text) * 0.9)
    for part, rows in (("train", text[:cut]), ("val", text[cut:])):
        write_jsonl(out / f"{part}.jsonl", [{"text": rows}])


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    print(json.dumps(prepare(Path(sys.argv[1]), Path(sys.argv[2])), indent=1))
