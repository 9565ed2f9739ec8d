"""Generating text: the plain reference. Greedy, drawn, or searched for with beams; decoders and encoder–decoders alike.

In: prompts as ids, and a `Sampling`. Out: a stream of new text, or whole completions.

    sampling.py     settings → which token comes next
    completion.py   ids → text; what is given back
    decoder.py      the model with its cache: new ids → scores
    streaming.py    token after token, each continuation on its own
    search.py       the likeliest whole text
"""

from __future__ import annotations

from collections.abc import Sequence

from wenmo.generate.completion import Completion, Logprob, Piece, Reason
from wenmo.generate.sampling import Sampling, adjust, choose, probabilities
from wenmo.generate.search import search
from wenmo.generate.streaming import stream
from wenmo.models import LanguageModel
from wenmo.text.tokenizer import Tokenizer


def generate(model: LanguageModel, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], sampling: Sampling,
             ends: frozenset[int], banned: frozenset[int] = frozenset()) -> list[list[Completion]]:
    """For each prompt its `num_sequences` completions; with beams the best first. As `stream` otherwise."""
    if sampling.num_beams > 1:
        return search(model, tokenizer, prompts, sampling, ends, banned)
    results: dict[tuple[int, int], Completion] = {}
    for piece in stream(model, tokenizer, prompts, sampling, ends, banned):
        if piece.completion is not None:
            results[piece.prompt, piece.sample] = piece.completion
    return [[results[index, sample] for sample in range(sampling.num_sequences)] for index in range(len(prompts))]


__all__ = ["Completion", "Logprob", "Piece", "Reason", "Sampling", "adjust", "choose", "generate", "probabilities",
           "search", "stream"]
