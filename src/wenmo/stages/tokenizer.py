"""`wenmo tokenizer train|show|compare`: a tokenizer from your text, what it does to it, and which kind fits best."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from wenmo.config import parse
from wenmo.data.given import rows_of
from wenmo.errors import DataError, UsageError, say
from wenmo.files import storage_errors
from wenmo.locate import is_adapter, locate_tokenizer
from wenmo.seeds import key
from wenmo.text import tokenizer_statistics, tokenizer_training
from wenmo.text.languages import language_shares
from wenmo.text.tokenizer import Tokenizer
from wenmo.text.tokenizer_files import has_tokenizer
from wenmo.text.tokenizer_statistics import Fit
from wenmo.text.tokenizer_training import TokenizerSettings

_log = logging.getLogger(__name__)


def train(data: Sequence[str], out: Path, settings: Mapping[str, Any], source: Mapping[str, Any]) -> dict[str, Any]:
    """Trains on all texts of the files and writes the folder; {"out", "vocab_size", characters per token, …}."""
    parsed = parse(TokenizerSettings, settings, say("the command line", "命令行"))
    if (out / "config.json").exists():
        raise UsageError(say("a model is there, whose tokenizer would be another", "该处有模型，其分词器会被替换"),
                         where=f"--out {out}",
                         mend=say("give --out a folder of its own", "请让 --out 指向单独的文件夹"))
    texts = _texts(data, source)
    with storage_errors(out):  # before the work, not after it
        out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    tokenizer = tokenizer_training.train(texts, parsed)
    seconds = time.perf_counter() - began
    tokenizer.save(out)
    _log.info(say(f"trained in {seconds:.1f} s", f"训练用时 {seconds:.1f} 秒"))
    return {"out": str(out), "vocab_size": tokenizer.vocab_size, **tokenizer_statistics.statistics(tokenizer, texts)}


def in_files_of_its_own(reference: str) -> Tokenizer | None:
    """The tokenizer that a reference names, and None for one inside a .gguf, or that of an adapter's base: to read
    those takes torch (modeldir.open_tokenizer)."""
    path = locate_tokenizer(reference)
    return Tokenizer.load(path) if has_tokenizer(path) or not (path.is_file() or is_adapter(path)) else None


def show(reference: str, tokenizer: Tokenizer, text: str | None, data: Sequence[str],
         source: Mapping[str, Any]) -> dict[str, Any]:
    """Its size and control tokens; the pieces of a text; characters per token on files."""
    facts: dict[str, Any] = {"tokenizer": reference, "vocab_size": tokenizer.vocab_size,
                             "control": {role: tokenizer.token(id) for role, id in tokenizer.control.items()},
                             "sha256": tokenizer.sha256}
    if text is not None:
        ids = tokenizer.encode(text)
        facts |= {"ids": ids, "tokens": [tokenizer.token(id) for id in ids], "decoded": tokenizer.decode(ids)}
    if data:
        facts |= tokenizer_statistics.statistics(tokenizer, _texts(data, source))
    return facts


# Comparing --------------------------------------------------------------------------------------------

_TYPES: tuple[dict[str, Any], ...] = ({"type": "bpe"}, {"type": "wordpiece"}, {"type": "unigram"})
_HELD_OUT = 10  # one text in so many


@dataclass(frozen=True)
class Comparison:
    """What `compare` found; `num_train` and `num_held_out` count texts, group by group."""

    fits: Sequence[Fit]
    num_train: Mapping[str, int]
    num_held_out: Mapping[str, int]
    seed: int

    def as_dict(self) -> dict[str, Any]:
        return {"seed": self.seed, "num_train": dict(self.num_train), "num_held_out": dict(self.num_held_out),
                "types": {fit.settings.type: {
                    "vocab_size": fit.vocab_size, "training_cpu_seconds": round(fit.training_cpu_seconds, 2),
                    "encoding_megabytes_per_cpu_second": round(fit.encoding_megabytes_per_cpu_second, 2),
                    "groups": {name: {key: round(value, 4) for key, value in group.items()}
                               for name, group in fit.groups.items()}} for fit in self.fits}}

    def table(self) -> Table:
        groups = list(self.num_held_out)
        table = Table(title=say("on texts held out", "在留出文本上"), title_justify="left")
        for heading in (say("type", "类型"), say("tokens", "词元数"), say("trained, CPU", "训练（CPU）"),
                        say("encodes", "编码")):
            table.add_column(heading)
        for name in groups:
            table.add_column(say(f"{name}: characters, bytes a token", f"{name}：每词元字符、字节"))
            table.add_column(say("unknown, words split", "未知率、词被切分"))
        for fit in self.fits:
            cells = [fit.settings.type, f"{fit.vocab_size:,}", f"{fit.training_cpu_seconds:.1f} s",
                     f"{fit.encoding_megabytes_per_cpu_second:.1f} MB/s"]
            for rates in (fit.groups[name] for name in groups):
                cells.append(f"{rates['characters_per_token']:.2f}, {rates['bytes_per_token']:.2f}")
                cells.append(f"{rates['unknown_rate']:.2%}, {rates['words_split']:.1%}")
            table.add_row(*cells)
        return table


def compare(data: Sequence[str], vocab_size: int, source: Mapping[str, Any], seed: int = 0) -> Comparison:
    """Trains every type on nine tenths of all texts and measures each group on its own last tenth.

    `data`: paths, or NAME=path for a group of that name; without a name the letters decide, zh or en. Which texts
    are held out depends on the seed and the text alone. DataError for a group without a text on one of the sides.
    """
    groups: dict[str, dict[str, None]] = {}
    for item in data:
        name, path = _named(item)
        texts = _texts([path], source)
        name = name or ("zh" if language_shares(texts)["zh"] > 0.5 else "en")
        groups.setdefault(name, {}).update(dict.fromkeys(texts))
    held_out = {name: [text for text in texts if _drawn(text, seed)] for name, texts in groups.items()}
    rest = {name: [text for text in texts if not _drawn(text, seed)] for name, texts in groups.items()}
    for name in groups:
        if not held_out[name] or not rest[name]:
            raise DataError(say(f"{len(groups[name])} texts are too few to hold some out",
                                f"只有 {len(groups[name])} 条文本，不足以留出一部分"), where=name,
                            mend=say("give more rows, files or lines", "请给出更多的行或文件"))
    candidates = [parse(TokenizerSettings, {**kind, "vocab_size": vocab_size}, say("the command line", "命令行"))
                  for kind in _TYPES]
    fits = tokenizer_statistics.compare([text for texts in rest.values() for text in texts], held_out, candidates)
    return Comparison(fits, {name: len(texts) for name, texts in rest.items()},
                      {name: len(texts) for name, texts in held_out.items()}, seed)


def _named(item: str) -> tuple[str, str]:
    name, sign, path = item.partition("=")
    return (name, path) if sign and path and name.isidentifier() else ("", item)


def _drawn(text: str, seed: int) -> bool:
    return key(seed, "held out", text) % _HELD_OUT == 0


# Texts ------------------------------------------------------------------------------------------------

_PLAIN = (".py", ".c", ".h", ".cpp", ".go", ".java", ".js", ".ts", ".rs", ".sh", ".md", ".rst")  # a file is a text


def _texts(data: Sequence[str], source: Mapping[str, Any]) -> list[str]:
    texts = []
    for path in data:
        given = {"format": "txt", "unit": "file", **source} if path.endswith(_PLAIN) else source
        texts += [str(row.values["text"]) for row in rows_of(path, ("text",), given=given, trained_on={}).rows]
    return texts
