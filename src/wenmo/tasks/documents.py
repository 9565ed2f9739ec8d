"""Documents: what pre-training tasks have in common. A row is a document, and nothing but its text is needed.

In: the arrays of each document (ids, perhaps the beginnings of words). Out: token shards, made once for a corpus and a
tokenizer, and opened ever after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from wenmo.config import Settings
from wenmo.data import shards as token_shards
from wenmo.data.shards import Column, Shards
from wenmo.files import sha256
from wenmo.text.tokenizer import Tokenizer

Arrays = dict[str, np.ndarray]


class DocumentSettings(Settings):
    @property
    def columns(self) -> tuple[str, ...]:
        return ("text",)

    @property
    def target_columns(self) -> tuple[str, ...]:
        return ()


def open_shards(documents: Callable[[], Iterable[Arrays]], folder: Path, tokenizer: Tokenizer, source_hash: str,
                more_columns: Sequence[str] = ()) -> Shards:
    """Shards of the documents in a folder of their own in `folder`, under the name of what they are made from.

    `documents` is asked only where there are none yet. `more_columns`: beside the ids, of one byte a token.
    """
    columns: dict[str, Column] = {"ids": token_shards.id_dtype(tokenizer.vocab_size)}
    columns |= dict.fromkeys(more_columns, "uint8")
    target = folder / sha256(source_hash, tokenizer.sha256, " ".join(columns))[:16]
    if target.exists():
        return Shards.open(target)
    meta = {"source_sha256": source_hash, "tokenizer_sha256": tokenizer.sha256}
    return token_shards.write(target, documents(), columns=columns, meta=meta)
