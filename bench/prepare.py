"""The data behind docs/results.md, made ready: parts that share no text, with their hashes.

    python -m bench.prepare ../shared/data figures

`figures/` is then the data root of the recipes in recipes/results/. Every part is drawn by seed 0 after duplicates are
dropped (`wenmo split`); HASHES below are those of the parts that the figures were measured on.
"""

from __future__ import annotations

import gzip
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
# sha256 of the parts held out: a figure is comparable only where these are the rows.
HASHES = {
    "shop": {"report": "0a2bc7f04328a12a2c32569b4ba556b54f844328842b8e199399265b8d5858fb",
             "choose": "07e953e0aa06f0416740783852de27535a1ec40460a4b7e4161070b41337afed"},
    "hotel": {"report": "aa51659f5a1371e40809099ca742a60e15f8bb206e6f5a0c0b4fcf7575a34990",
              "choose": "ae93e89767ab666a2229c9a61eec6014ed003fecef479887b00c3fa3cd307132"},
    "titles": {"report": "7e2793c454b904890d5e86f6ddc81a04cef780f4467e8ba111e62e85905648cf",
               "choose": "d90b9db00bb8df9e471c34b1388125a6c33d4da5a7e925bcb9a7457c441f1e38"},
    "csl": {"choose": "7fa7d77178c94ed4b8083a939184312ece0be98a32f8a399ff5c13564210532a"},
    "csl-report": {"report": "10db059a17305623d3397a94cc7aaece40d493f268262a67809eef3987225d22"},
    "sst": {"choose": "fdcc57b15bf3afd7fd49d9cd727dfe6d38c43fc26e5a3aaf56e0530ad4a34173"},
    "sst-report": {"report": "4317d8edccc74d13dde7a106567a860a1f348389acbc9bd37b329d0a27ecdd4c"},
    "trec": {"report": "489d172d2cb7e3c39a285819bd74dfab1be55c41039d7dbd7f675ad883296f09",
             "choose": "b50d99e988072a591f09e693513336635ee3a4bdd8a1b1382f1cba80e42c225b"},
}
CHAPTER = re.compile(r"^第[一二三四五六七八九十百零〇]+回\s.*$", re.MULTILINE)
HELD_OUT = 10  # every tenth chapter of a novel is for reporting


def prepare(data: Path, out: Path) -> None:
    """Writes all parts. SystemExit where rows held out are other than those of the figures."""
    for name in SPLITS:
        divide(name, data, out)
    paragraphs, _ = newspaper()
    write_atomic(out / "people.txt", "\n".join(paragraphs) + "\n")
    _novels(data / "classical-novels", out / "novels")
    _shakespeare(data / "tinyshakespeare" / "input.txt.gz", out / "shakespeare")


def divide(name: str, data: Path, out: Path) -> None:
    """The parts of one set in out/name, held to HASHES."""
    files, parts, source = SPLITS[name]
    made = split([str(data / file) for file in files], out / name, parts, source=source)["parts"]
    for part, wanted in HASHES[name].items():
        if made[part]["sha256"] != wanted:
            raise SystemExit(f"{name}/{part}: these are other rows than those of docs/results.md")


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
    prepare(Path(sys.argv[1]), Path(sys.argv[2]))
