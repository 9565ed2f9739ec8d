"""Pairs of texts behind docs/results.md, in parts that share neither a source nor a target.

In: the sets of translations and summaries. Out: NAME/train.jsonl, choose.jsonl, report.jsonl with `source` and
`target`; in the latter two a source that has several translations is one row with all of them. And
pretended-titles.jsonl: texts made for titles of science that have none, since only 750 abstracts have a title.

    python -m bench.pairs ../shared/data figures
"""

from __future__ import annotations

import gzip
import json
import logging
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import rjieba

from wenmo.config import parse
from wenmo.device import key, numpy_rng
from wenmo.files import sha256_file, write_jsonl
from wenmo.stages.demo import newspaper
from wenmo.text.normalize import NormalizeSettings, normalizer

Pair = tuple[str, str]
PARTS = ("choose", "report")
VERSIONS, SHORTEST, MOST_CLAUSES, LOST = 4, 40, 16, 0.15  # of pretended texts; LOST: of the pieces of their titles
# sha256 of the parts held out: a figure is comparable only where these are the rows.
HASHES: dict[str, str] = {
    "csl-title/choose": "9ac100e7edcf838108d8b50cd5acbe09e04c9abf6ab0f507c54ae9994fac0eb2",
    "csl-title/report": "2308c8561cc2c0e80afcc7ace0e6cb573bf88f25e99e045d9cc5fcfa639137af",
    "multi30k/choose": "86ebf6fbcc87afcf5ba26f5efcbb4cf87e18d8eea431f4b31084bb2435f07716",
    "multi30k/report": "75656125bf08c811554b092726b9e3d74ce2272710bc779c30b2e05b522802ef",
    "scitldr/choose": "827d8a562b11db80b258a9786460d9c5f04b33c6e7ddb3cc6e53a295a6ed5ceb",
    "scitldr/report": "f9be43e74f7467ba352714b2e3d329098f809b6a0f6d7a29fbf4ca2b68ead6ad",
    "tatoeba-en-zh/choose": "e491fd1f96e8b1fdb5e87f3116cf74ec42a609b8b8af85558db163dd4cda4539",
    "tatoeba-en-zh/report": "6e6fa6ffe3eeb7b950c42b3434184bf6d32e4388bdf612aac96292159e665394",
    "tatoeba-zh-en/choose": "58629e785990fb9a99c1e91a9eba0b298910703ffe6102b6d1cd4dd72711daf2",
    "tatoeba-zh-en/report": "2edbd97c63196cd86aebb1af869b09b611281ecebf8de1f46ff4b94c30224e30",
}


def prepare(data: Path, out: Path) -> None:
    """Writes all parts. SystemExit where rows held out are other than those of the figures."""
    train, val = ([*zip(*(_lines(data / f"multi30k/{part}.{language}.gz") for language in ("en", "de")), strict=True)]
                  for part in ("train", "val"))
    _write(out / "multi30k", _divided(train, {"choose": 500}, known={"report": val}))

    simplify = normalizer(parse(NormalizeSettings, {"simplify": True}, "bench"))
    assert simplify is not None
    pairs = [tuple(line.split("\t")[:2]) for line in _lines(data / "tatoeba-cmn-eng/train.tsv.gz")]
    en_zh = [(en, simplify(zh)) for en, zh in pairs]
    _write(out / "tatoeba-en-zh", _divided(en_zh, {"report": 1000, "choose": 300}))
    _write(out / "tatoeba-zh-en", _divided([(zh, en) for en, zh in en_zh], {"report": 1000, "choose": 300}))

    titles = [tuple(line.split("\t")[1:3]) for line in _lines(data / "csl-title/dev.tsv.gz")]
    abstracts = [(abstract, title) for abstract, title in titles]
    divided = _divided(abstracts, {"report": 200, "choose": 50})
    _write(out / "csl-title", divided)
    held_out = {title for part in PARTS for _, title in divided[part]}
    others = [line.split("\t")[1] for line in _lines(data / "csl-category/train.tsv.gz")]
    texts = [*(abstract for abstract, _ in divided["train"]), *newspaper()[0]]
    write_jsonl(out / "pretended-titles.jsonl",
                _pretended([title for title in others if title not in held_out], texts))

    summaries: dict[str, list[Pair]] = {}
    for part in ("train", "dev"):
        rows = [json.loads(line) for line in _lines(data / f"scitldr-a/{part}.jsonl.gz")]
        summaries[part] = [(" ".join(row["source"]), target) for row in rows for target in row["target"]]
    _write(out / "scitldr", _divided(summaries["train"], {"choose": 100}, known={"report": summaries["dev"]}))


def _pretended(titles: list[str], texts: list[str]) -> Iterator[dict[str, str]]:
    """Pairs that teach to gather a title out of a text: pieces of the title stand, once or twice each and some of them
    not at all, among clauses of an abstract or newspaper that has nothing to do with it. Among few in most pairs, and
    none in two of five: from long sources with short targets copying is not learned."""
    texts = [text for text in texts if len(text) >= SHORTEST]
    for number, title in enumerate(titles * VERSIONS):
        rng = numpy_rng("pretended", number)
        words, pieces = rjieba.cut(title), []
        while words:
            size = int(rng.integers(1, 4))
            pieces.append("".join(words[:size]))
            words = words[size:]
        clauses = re.findall(r"[^，。；,;]+[，。；,;]?", texts[rng.integers(len(texts))])
        clauses = clauses[: int(MOST_CLAUSES * rng.random() ** 3)]
        for piece in pieces:
            for _ in range(int(rng.choice(3, p=[LOST, 0.5, 0.5 - LOST]))):
                clauses.insert(int(rng.integers(len(clauses) + 1)), piece)
        if clauses:
            yield {"source": "".join(clauses), "target": title}


def _lines(file: Path) -> list[str]:
    with gzip.open(file, "rt", encoding="utf-8") as opened:
        return [line.strip() for line in opened.read().split("\n") if line.strip()]


def _divided(pairs: Iterable[Pair], numbers: dict[str, int],
             known: dict[str, list[Pair]] | None = None) -> dict[str, list[Pair]]:
    """Name → pairs. Pairs that share a text, through others too, stay together; those that share one with `known`
    parts are left out. Which ones a part gets depends on their texts alone."""
    unique = list(dict.fromkeys(pairs))
    taken = {text for part in (known or {}).values() for pair in part for text in pair}
    groups: dict[str, list[Pair]] = {}
    for pair, group in zip(unique, _groups(unique), strict=True):
        groups.setdefault(group, []).append(pair)
    parts: dict[str, list[Pair]] = {**(known or {}), **{name: [] for name in numbers}, "train": []}
    free = [group for group, members in groups.items() if not any(text in taken for pair in members for text in pair)]
    for group in sorted(free, key=lambda group: key("pairs", group)):
        members = groups[group]
        name = next((name for name, number in numbers.items() if len(parts[name]) + len(members) <= number), "train")
        parts[name] += members
    return parts


def _groups(pairs: list[Pair]) -> list[str]:
    """For each pair the smallest source that it hangs together with (union–find, Tarjan 1975)."""
    parent: dict[tuple[int, str], tuple[int, str]] = {}

    def root(node: tuple[int, str]) -> tuple[int, str]:
        while parent.setdefault(node, node) != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for source, target in pairs:
        low, high = sorted((root((0, source)), root((1, target))))
        parent[high] = low
    return [root((0, source))[1] for source, _ in pairs]


def _write(folder: Path, parts: dict[str, list[Pair]]) -> None:
    for name, pairs in parts.items():
        rows: list[dict[str, str | list[str]]] = [{"source": source, "target": target} for source, target in pairs]
        if name in PARTS:
            targets: dict[str, list[str]] = {}
            for source, target in pairs:
                targets.setdefault(source, []).append(target)
            rows = [{"source": source, "target": found} for source, found in targets.items()]
        write_jsonl(folder / f"{name}.jsonl", rows)
        digest, place = sha256_file(folder / f"{name}.jsonl"), f"{folder.name}/{name}"
        logging.info("%s: %d rows, %s", place, len(rows), digest)
        if place in HASHES and HASHES[place] != digest:
            raise SystemExit(f"{place}: these are other rows than those of docs/results.md")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    prepare(Path(sys.argv[1]), Path(sys.argv[2]))
