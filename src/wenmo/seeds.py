"""Randomness without state: every draw is a pure function of keys.

In: what a draw is for, the seed, the step, the row. Out: a number, or a generator. A room of its own below `device`,
so that whoever splits a file or draws texts need not load torch.
"""

from __future__ import annotations

import hashlib

import numpy as np


def key(*parts: int | str) -> int:
    """A 63-bit number that is a pure function of its parts: the seed of everything random.

    `key(seed, "dropout", step)` needs no state to be saved: a resumed run draws what the first would have.
    """
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def numpy_rng(*parts: int | str) -> np.random.Generator:
    """numpy's generator for `key(*parts)`."""
    return np.random.default_rng(key(*parts))
