"""How often the encoding of a short real text is told right: ours beside charset-normalizer.

`python -m bench.encodings DATA`: DATA holds the sets of `docs/intake.md`. Pieces of real text of several lengths are
written in each encoding that can hold them, and a piece counts as right where the reading gives its characters back.
"""

from __future__ import annotations

import gzip
import json
import lzma
import sys
import tempfile
from collections import Counter
from pathlib import Path

from wenmo.device import numpy_rng
from wenmo.errors import DataError
from wenmo.text.encoding import detect, open_text

SIMPLIFIED = ("online-shopping-9-cats/train.csv.xz", "thucnews-titles/dev.txt.gz")
TRADITIONAL = ("drcd/DRCD_dev.json.gz", "ud-chinese-gsd/zh-ud-train.conllu.gz", "chinese-poetry/poet.tang.0.json.gz")
WESTERN = ("multi30k/train.de.gz",)
KINDS = {
    "utf-8": (*SIMPLIFIED, *TRADITIONAL, *WESTERN), "gb18030": (*SIMPLIFIED, *TRADITIONAL), "big5hkscs": TRADITIONAL,
    "utf-16-le": (*SIMPLIFIED, *TRADITIONAL, *WESTERN), "utf-16-be": (*SIMPLIFIED, *TRADITIONAL, *WESTERN),
    "utf-16": (*SIMPLIFIED, *TRADITIONAL, *WESTERN), "cp1252": WESTERN,
}  # fmt: skip
LENGTHS = (20, 100, 500, 5000)  # characters
PIECES = 30  # of each length from each file


def prose(path: Path) -> str:
    """The text of a file without the frame of its format, which would help to tell the encoding."""
    with (lzma if path.suffix == ".xz" else gzip).open(path) as file:
        text = file.read().decode("utf-8")
    if "drcd" in path.parts:
        paragraphs = [paragraph for article in json.loads(text)["data"] for paragraph in article["paragraphs"]]
        return "\n".join(paragraph["context"] for paragraph in paragraphs)
    if "chinese-poetry" in path.parts:
        return "\n".join("".join(poem["paragraphs"]) for poem in json.loads(text))
    if path.name.endswith(".conllu.gz"):
        sentences = ([line.split("\t") for line in block.splitlines()] for block in text.split("\n\n"))
        return "\n".join("".join(row[1] for row in rows if len(row) == 10) for rows in sentences)
    return text


def theirs(data: bytes) -> str:
    """What charset-normalizer reads."""
    import charset_normalizer

    best = charset_normalizer.from_bytes(data).best()
    return "" if best is None else str(best)


def ours(path: Path) -> str:
    try:
        with open_text(path, detect(path), newline="") as stream:
            return stream.read()
    except (DataError, UnicodeDecodeError):
        return ""


def run(folder: Path) -> dict[str, dict[str, str]]:
    """encoding → length → "ours / theirs of n"."""
    texts = {name: prose(folder / name) for kind in KINDS.values() for name in kind}
    table = {}
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "a.txt"
        for encoding, names in KINDS.items():
            table[encoding] = {}
            for length in LENGTHS:
                count: Counter[str] = Counter()
                for name in names:
                    rng = numpy_rng("bench", 0, name, length)
                    for start in rng.integers(0, len(texts[name]) - length, PIECES):
                        piece = texts[name][start : start + length].lstrip("\ufeff")
                        try:
                            data = piece.encode(encoding)
                        except UnicodeEncodeError:
                            continue
                        if data.isascii() and b"\0" not in data:
                            continue
                        file.write_bytes(data)
                        count["n"] += 1
                        count["ours"] += ours(file) == piece
                        count["theirs"] += theirs(data) == piece
                table[encoding][str(length)] = f"{count['ours']} / {count['theirs']} of {count['n']}"
                print(encoding, length, table[encoding][str(length)], file=sys.stderr, flush=True)
    return table


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1])), indent=1))
