"""How alike an output and its reference are in meaning: their tokens are matched in an encoder's space (BERTScore).

In: outputs, references and a `Loaded` encoder, which a report must name: scores of two encoders are not comparable.
Out: precision, recall and F for each output; `estimates` gives their means with intervals.

    P = Σ_i w(x̂_i) max_j cos(x̂_i, x_j) / Σ_i w(x̂_i)      R the same from the reference's tokens      F = 2PR / (P + R)

Zhang et al. 2020, §3. Control tokens are matched with nothing. Nothing is rescaled.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from wenmo.loaded import Loaded
from wenmo.metrics import Estimate, bootstrap
from wenmo.metrics.comparison import row_mean

Floats = NDArray[np.float64]
NAMES = ("similarity_precision", "similarity_recall", "similarity_f")


def token_matching(encoder: Loaded, outputs: Sequence[str], references: Sequence[Sequence[str]], *, idf: bool = False,
                   layer: int | None = None) -> Floats:
    """[B, 3]: precision, recall and F of each output; of several references that with the highest F counts.

    An empty text matches nothing: 0, or 1 beside an empty one. `idf`: a token weighs −log of the share of references
    that have it (smoothed by one, §3 "importance weighting"). `layer`: of the encoder, from 1; left out, the last.
    """
    assert len(outputs) == len(references)
    texts = list(dict.fromkeys([*outputs, *(text for given in references for text in given)]))
    states = dict(zip(texts, encoder.token_states(texts, layer), strict=True))
    every = [text for given in references for text in given]
    weights = _weights([states[text][0] for text in every]) if idf else {}
    rest = math.log(len(every) + 1) if idf else 1.0
    return np.asarray([max((_match(states[output], states[text], weights, rest) for text in given),
                           key=lambda found: found[2])
                       for output, given in zip(outputs, references, strict=True)], np.float64)


def estimates(scores_B3: Floats, seed: int) -> dict[str, Estimate]:
    """The means of `token_matching`'s scores over rows."""
    return {name: bootstrap(row_mean(column_B), len(column_B), seed)
            for name, column_B in zip(NAMES, scores_B3.T, strict=True)}


Weights = Mapping[int, float]
States = tuple[list[int], NDArray[np.float32]]


def _weights(references: Sequence[Sequence[int]]) -> Weights:
    """−log((n(token) + 1) / (number of references + 1))."""
    counts = Counter(id for ids in references for id in set(ids))
    return {id: math.log((len(references) + 1) / (count + 1)) for id, count in counts.items()}


def _match(output: States, reference: States, weights: Weights, rest: float) -> tuple[float, float, float]:
    """`rest`: the weight of a token that stands in no reference."""
    if not output[0] or not reference[0]:
        alike = float(output[0] == reference[0])
        return alike, alike, alike
    cosine_TS = _unit(output[1]) @ _unit(reference[1]).T
    precision = _mean(cosine_TS.max(axis=1), [weights.get(id, rest) for id in output[0]])
    recall = _mean(cosine_TS.max(axis=0), [weights.get(id, rest) for id in reference[0]])
    both = precision + recall
    return precision, recall, 2 * precision * recall / both if both > 0 else 0.0


def _mean(best: Floats, weights: Sequence[float]) -> float:
    """Plain where all weights are nothing (words that stand in every reference)."""
    return float(np.average(best, weights=weights if sum(weights) > 0 else None))


def _unit(vectors_TD: NDArray[np.float32]) -> Floats:
    vectors = np.asarray(vectors_TD, np.float64)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12))
