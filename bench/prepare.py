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

from bench.questions import prepare_questions
from wenmo.files import sha256_file, write_atomic, write_jsonl
from wenmo.stages.demo import newspaper, newspaper_tagged, newspaper_words
from wenmo.stages.split import split

REVIEWS = {"columns": {"text": "review", "label": "label"}}
LABEL_FIRST = {"format": "tsv", "separator": " ", "header": False, "fields": 2, "surplus": "join",
               "columns": {"label": 0, "text": 1}}
TITLES = {"format": "tsv", "header": False, "columns": {"text": 0, "label": 1}}
CATEGORIES = {"header": False, "columns": {"text": 1, "label": 2}}
STS = {"header": False, "surplus": "drop", "columns": {"text_a": 5, "text_b": 6, "score": 4}}
GRADED = {"format": "tsv", "header": False, "columns": {"text_a": 0, "text_b": 1, "score": 2}}
MATCHED = {"format": "tsv", "header": False, "columns": {"text_a": 0, "text_b": 1, "label": 2}}
COLUMNS = {"columns": {"tokens": 0, "tags": 1}}
WORDS = {"columns": {"tokens": "form", "tags": "upos"}}
COMMENTS = {"columns": {"text": "TEXT", "label": "label", "topic": "topic"}}
SLOTS = {"format": "txt", "columns": {"tokens": "text"}}  # beside it, line by line, the tags and the intents

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
    "sts": (["sts-b/sts-train.csv.gz"], ["choose=500", "train"], STS),
    "sts-report": (["sts-b/sts-dev.csv.gz"], ["report"], STS),
    "zh-sts": (["chinese-sts-b/sts-b-train.txt.gz"], ["choose=500", "train"], GRADED),
    "zh-sts-report": (["chinese-sts-b/sts-b-dev.txt"], ["report"], GRADED),
    "afqmc": (["afqmc/train.txt.gz"], ["choose=2000", "train"], MATCHED),
    "afqmc-report": (["afqmc/dev.txt.gz"], ["report"], MATCHED),
    "lcqmc": (["lcqmc/dev.txt.gz"], ["report=2000", "choose=800", "train"], MATCHED),
    "chat-en": (["llamafactory-demo/alpaca_en_demo.json.gz"], ["report=150", "choose=50", "train"], {}),
    "chat-zh": (["llamafactory-demo/alpaca_zh_demo.json.gz"], ["report=150", "choose=50", "train"], {}),
    "resume": (["resume-ner/train.char.bmes.gz"], ["choose=400", "train"], COLUMNS),
    "resume-report": (["resume-ner/dev.char.bmes"], ["report"], COLUMNS),
    "msra": (["msra-ner/dh_msra.txt.xz"], ["report=4000", "choose=1000", "train"], {**COLUMNS, "format": "conll"}),
    "wnut": (["wnut17/wnut17train.conll.gz"], ["choose=400", "train"], COLUMNS),
    "wnut-report": (["wnut17/emerging.dev.conll"], ["report"], COLUMNS),
    "ewt": (["ud-english-ewt/en_ewt-ud-train.conllu.xz"], ["choose=500", "train"], WORDS),
    "ewt-report": (["ud-english-ewt/en_ewt-ud-dev.conllu.gz"], ["report"], WORDS),
    "gsd": (["ud-chinese-gsd/zh-ud-train.conllu.gz"], ["choose=300", "train"], WORDS),
    "gsd-report": (["ud-chinese-gsd/zh-ud-dev.conllu.gz"], ["report"], WORDS),
    "cold": (["cold/train.csv.gz"], ["choose=1000", "train"], COMMENTS),
    "cold-report": (["cold/dev.csv.gz"], ["report"], COMMENTS),
    "snips": (["snips/train/seq.in.gz"], ["choose=700", "train"],
              {**SLOTS, "parallel": {"tags": "snips/train/seq.out.gz", "label": "snips/train/label"}}),
    "snips-report": (["snips/valid/seq.in"], ["report"],
                     {**SLOTS, "parallel": {"tags": "snips/valid/seq.out", "label": "snips/valid/label"}}),
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
    "sts": {"choose": "25d18f9c6c6e9d1734dbf856c65f49612235aa4b561ea7153cf0882ebb3cad22"},
    "sts-report": {"report": "ce538dbba017bc739a6dbef7e2e12a7140e2b1b981c2aca97ded1f6db836b8da"},
    "zh-sts": {"choose": "ba39fa4eecd4be12ee6ab9865d0dc9b1eb05f3652d14476ab8cfaf1aecb7e9cb"},
    "zh-sts-report": {"report": "c7af2e9390b1a648435806accb7c647b6bcb15e3e22c75ec7f522bca321b3fd6"},
    "afqmc": {"choose": "f26b0153fe0f7cca5faea36c1d3700dec8acacc4f096f670cb9a5156ed11e2b6"},
    "afqmc-report": {"report": "e6f8067989d49805a81380fc3859fad12a06a8958ec8b356cc369b94ea232685"},
    "lcqmc": {"report": "8e1a0efae9e47150e100b4a042eaf6f4561d36d8d9365ee53968ff2e36cdc6f1",
              "choose": "9545d72ab0d211c693321424aa625b923729fd9ed7f5a9761fb2ff7793d7914e"},
    "chat-en": {"report": "7c728fe136f4bc3ed320a3bed89c9eefbd2fb62ffeaa3f88a43cc3c5cc690edb",
                "choose": "9d6a94241efb75bac608e4f0ef9bd2f9c6bcd8bcfa13cef51b7770e605d60b68"},
    "chat-zh": {"report": "ae9efcadac4adea27a1992b0885c88f9ec89cf94754a4ef9f7d50661aaece5ca",
                "choose": "462f642984844d591432bd5a06126a497d64b6dd14f328dcab8d48e2c098b3fe"},
    "resume": {"choose": "3d23b8b890770a9ab80215d4b46f9d3c3c4dbb0bd52a1dc497fd2825456736ff"},
    "resume-report": {"report": "0701eb9080a04834b722f2ca6f7df50569b667320a8721b2f1ea1bc402bd9c59"},
    "msra": {"report": "c0a5ac3d9e9801a3e426ccccfa5a25d1edf5be58c4c9cd0052b691be86b67d08",
             "choose": "9368210bede9f5cd597b3ab42b5a49419cf9ce9f3ef756549d2fb408f61a6ee6"},
    "wnut": {"choose": "94faaa58f954b8aec22418e0bd17a8517b9e3b69ae435087ede599abd095c620"},
    "wnut-report": {"report": "100324f0cfb61552722b2aa6f9255509a3570259f10ccf799ce17092fde587f3"},
    "ewt": {"choose": "fa81ecc452624c509af29d9a116ca24e86c1fa148491f0a9b5bde2ba5cb906d9"},
    "ewt-report": {"report": "3935dba49161badb5937d5dda521439bd47c1dbf3e48698a0e82b8acd40ba442"},
    "gsd": {"choose": "5ced41584fd7c90ac488e091b6b686bd281fd17b10dac8a87b613227f72a9a9d"},
    "gsd-report": {"report": "a75947f322a1938fd2183e145d5c03bd280a0e525cf76e103fc44d25b939c981"},
    "cold": {"choose": "36ce9051a4729151f48bbb2b9cff0178c71aac0b0a8ab10103173d11f9efdc79"},
    "cold-report": {"report": "b1fb361cb16c89e8209011224c54e828de188bee165e5644846ee83bc95ff704"},
    "snips": {"choose": "0b5e1979bbe5da631b4462dc6cf652d978c164193c6756416b830a7c8d459a85"},
    "snips-report": {"report": "487b76f80ddf23f4c0239975f7b5419eecf4cd48f5575e7d6296e06d1e0c42c2"},
    "people-words": {"report": "664f0d8b61b1102027629424ce65565e2277345da1e9d8d86f41aed88b2807d0",
                     "choose": "6d2f01f069e4f21e51ebb7aefa674933872575ffcc3eebd3081cb31a315a958f"},
}
CHAPTER = re.compile(r"^第[一二三四五六七八九十百零〇]+回\s.*$", re.MULTILINE)
HELD_OUT = 10  # every tenth chapter of a novel is for reporting


def prepare(data: Path, out: Path) -> None:
    """Writes all parts. SystemExit where rows held out are other than those of the figures."""
    for name in SPLITS:
        divide(name, data, out)
    paragraphs, _ = newspaper()
    write_atomic(out / "people.txt", "\n".join(paragraphs) + "\n")
    _segmented(out / "people-words")
    prepare_questions(data, out)
    _novels(data / "classical-novels", out / "novels")
    _shakespeare(data / "tinyshakespeare" / "input.txt.gz", out / "shakespeare")


def divide(name: str, data: Path, out: Path) -> None:
    """The parts of one set in out/name, held to HASHES."""
    files, parts, source = SPLITS[name]
    beside = {name: str(data / file) for name, file in source.get("parallel", {}).items()}
    source = source | ({"parallel": beside} if beside else {})
    # What is asked before what is learned; without names it is chat data, which is found by its form.
    names = (*source.get("columns", ("messages",)), *beside)
    columns = sorted(names, key=("tags", "label", "score").__contains__)
    made = split([str(data / file) for file in files], out / name, parts, columns=columns, source=source)["parts"]
    for part, wanted in HASHES.get(name, {}).items():
        if made[part]["sha256"] != wanted:
            raise SystemExit(f"{name}/{part}: these are other rows than those of docs/results.md")


def _segmented(out: Path) -> None:
    """The newspaper in words; the paragraphs for reporting are those that `newspaper` holds out, and so stand in no
    text that an encoder was trained on. people-pos.jsonl: all others with their words' parts of speech."""
    rows = [{"tokens": words} for words in newspaper_words()]
    num_held_out = len(newspaper()[1])
    parts = {"train": rows[: -num_held_out - 500], "choose": rows[-num_held_out - 500 : -num_held_out],
             "report": rows[-num_held_out:]}
    for part, its in parts.items():
        write_jsonl(out / f"{part}.jsonl", its)
    tagged = [[*zip(*paragraph, strict=True)] for paragraph in newspaper_tagged()[:-num_held_out]]
    write_jsonl(out.parent / "people-pos.jsonl", ({"tokens": words, "tags": tags} for words, tags in tagged))
    for part, wanted in HASHES["people-words"].items():
        if sha256_file(out / f"{part}.jsonl") != wanted:
            raise SystemExit(f"people-words/{part}: these are other rows than those of docs/results.md")


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
