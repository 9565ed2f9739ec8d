"""The model's two kinds of calls: a chunk of one prompt, and the next token of many rows.

In: ids. Out: fp32 scores of the vocabulary. Both have fixed shapes where a shape would change bits: chunks are padded
to their size, and no more than ROWS rows are in one call.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wenmo.engine.attend import Chunk, Segment, Step
from wenmo.engine.packed import ROWS, Format, head_of, pack
from wenmo.engine.slots import Layers
from wenmo.models import LanguageModel


class Runner:
    """Packs the model, which is its own from then on."""

    def __init__(self, model: LanguageModel, format: Format, chunk_tokens: int) -> None:
        self.head = head_of(model, format)
        pack(model, format)
        self.model, self.chunk_tokens = model, chunk_tokens
        self.last_position = (model.config.max_tokens or 1 << 30) - 1

    def read_chunk(self, ids: Sequence[int], start: int, layers: Layers, capacity: int) -> Tensor:
        """Reads at most a chunk of a prompt after the first `start` tokens; scores after its last token, [V]."""
        size = self.chunk_tokens
        with torch.inference_mode():
            ids_M = torch.zeros(size, dtype=torch.int64)
            ids_M[: len(ids)] = torch.tensor(ids)
            positions_M = torch.arange(start, start + size).clamp(max=self.last_position)
            hidden_MD = self.model.body(ids_M, positions_M, Chunk(layers, capacity, start, size))
            return self.head(hidden_MD[len(ids) - 1 : len(ids)])[0]

    def next_tokens(self, segments: Sequence[Segment], ids: Sequence[int]) -> Tensor:
        """Reads one token of each row; scores after it, [rows, V]."""
        assert len(ids) <= ROWS
        with torch.inference_mode():
            step = Step(segments)
            hidden_MD = self.model.body(torch.tensor(ids), step.positions_M, step)
            return self.head(hidden_MD)
