"""How surprised a language model is.

In: negative log-likelihoods in nats and what they are counted over, one number a document each. Out: ratios of sums
with intervals.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from wenmo.metrics.estimates import Estimate, ratio_of_sums


def perplexity(sum_nll_nats: ArrayLike, num_tokens: ArrayLike, seed: int) -> Estimate:
    """exp(nats per token). One number a document (or window) each, [B]; a token is what was predicted."""
    ends = ratio_of_sums(sum_nll_nats, num_tokens, seed)
    with np.errstate(over="ignore"):
        return Estimate(*(float(np.exp(end)) for end in (ends.value, ends.low, ends.high)))


def bits_per_byte(sum_nll_nats: ArrayLike, num_bytes: ArrayLike, seed: int) -> Estimate:
    """Bits per UTF-8 byte: comparable across tokenizers, for a Han character is three bytes to each of them."""
    ends = ratio_of_sums(sum_nll_nats, num_bytes, seed)
    return Estimate(*(end / math.log(2) for end in (ends.value, ends.low, ends.high)))


def bits_per_character(sum_nll_nats: ArrayLike, num_characters: ArrayLike, seed: int) -> Estimate:
    """Bits per Unicode character; comparable across tokenizers on the same text."""
    return bits_per_byte(sum_nll_nats, num_characters, seed)
