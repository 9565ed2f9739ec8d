"""`wenmo tokenizer train|show`: a tokenizer from your text, and what it does to it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wenmo.config import parse
from wenmo.errors import say
from wenmo.files import storage_errors
from wenmo.recipe import From
from wenmo.stages.prepare import existing_tokenizer, rows_of
from wenmo.text import tokenizer_training
from wenmo.text.tokenizer_training import TokenizerSettings

_log = logging.getLogger(__name__)


def train(data: Sequence[str], out: Path, settings: Mapping[str, Any], source: Mapping[str, Any]) -> dict[str, Any]:
    """Trains on all texts of the files and writes the folder; {"out", "vocab_size", characters per token, …}."""
    parsed = parse(TokenizerSettings, settings, say("the command line", "命令行"))
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    texts = _texts(data, source)
    began = time.perf_counter()
    tokenizer = tokenizer_training.train(texts, parsed)
    seconds = time.perf_counter() - began
    tokenizer.save(out)
    _log.info(say(f"trained in {seconds:.1f} s", f"训练用时 {seconds:.1f} 秒"))
    return {"out": str(out), "vocab_size": tokenizer.vocab_size, **tokenizer_training.statistics(tokenizer, texts)}


def show(reference: str, text: str | None, data: Sequence[str], source: Mapping[str, Any]) -> dict[str, Any]:
    """Its size and control tokens; the pieces of a text; characters per token on files."""
    tokenizer = existing_tokenizer(From(**{"from": reference}))
    facts: dict[str, Any] = {"tokenizer": reference, "vocab_size": tokenizer.vocab_size,
                             "control": {role: tokenizer.token(id) for role, id in tokenizer.control.items()},
                             "sha256": tokenizer.sha256}
    if text is not None:
        ids = tokenizer.encode(text)
        facts |= {"ids": ids, "tokens": [tokenizer.token(id) for id in ids], "decoded": tokenizer.decode(ids)}
    if data:
        facts |= tokenizer_training.statistics(tokenizer, _texts(data, source))
    return facts


def _texts(data: Sequence[str], source: Mapping[str, Any]) -> list[str]:
    return [str(row.values["text"]) for path in data
            for row in rows_of(path, ("text",), given=source, trained_on={}).rows]
