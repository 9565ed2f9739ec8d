"""Beginnings that were read before: a shared system prompt, the earlier turns of a conversation.

In: a prompt's ids. Out: the keys and values of its first blocks, where they are known. A block is a chunk of a prompt,
known by a hash of all ids up to its end; only what reading a prompt has made enters (never what was written token by
token), so that a hit changes no bit. The least recently used blocks give way, and of one prompt the last before the
first: without its beginning the rest of it is of no use.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from itertools import takewhile

import numpy as np
from torch import Tensor

from wenmo import device
from wenmo.engine.slots import Layers, bytes_of_token

Block = dict[int, tuple[Tensor, Tensor]]  # layer → keys, values [K, block, H]
SHARE = 32  # of the memory, one part is the budget where none is given


class Prefixes:
    """`budget_tokens`: None for as many as one part in SHARE of the memory holds, known once a prompt was read."""

    def __init__(self, block_tokens: int, budget_tokens: int | None) -> None:
        self.block_tokens, self.budget_tokens = block_tokens, budget_tokens
        self.blocks: OrderedDict[bytes, Block] = OrderedDict()
        self.hits_tokens = 0  # read from here instead of by the model

    def find(self, ids: Sequence[int]) -> list[Block]:
        """The known blocks at the beginning of the ids; at least one token is always left to be read."""
        known = list(takewhile(self.blocks.__contains__, self._names(ids[:-1])))
        for name in reversed(known):
            self.blocks.move_to_end(name)
        self.hits_tokens += len(known) * self.block_tokens
        return [self.blocks[name] for name in known]

    def keep(self, ids: Sequence[int], layers: Layers) -> None:
        """Takes the whole blocks of a prompt that has been read; layers: [K, S, H] each."""
        if self.budget_tokens is None:
            self.budget_tokens = tokens_within(bytes_of_token(layers))
        names = self._names(ids)[: self.budget_tokens // self.block_tokens]
        for number, name in reversed(list(enumerate(names))):
            if name in self.blocks:
                self.blocks.move_to_end(name)
                continue
            start = number * self.block_tokens
            span = slice(start, start + self.block_tokens)
            self.blocks[name] = {layer: (keys[:, span].clone(), values[:, span].clone())
                                 for layer, (keys, values) in layers.items()}
        while len(self.blocks) * self.block_tokens > self.budget_tokens:
            self.blocks.popitem(last=False)

    def _names(self, ids: Sequence[int]) -> list[bytes]:
        digest, names = blake2b(digest_size=16), []
        whole = len(ids) // self.block_tokens * self.block_tokens
        for block in np.asarray(ids[:whole], np.int64).reshape(-1, self.block_tokens):
            digest.update(block.tobytes())
            names.append(digest.copy().digest())
        return names


def tokens_within(token_bytes: int) -> int:
    """How many tokens are kept where nobody says."""
    return device.memory_bytes() // SHARE // token_bytes
