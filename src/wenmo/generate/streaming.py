"""One token after the other, shown as they come: greedy, or drawn.

In: prompts as ids, and a Sampling. Out: `Piece`s of all continuations. Every continuation draws from its own random
numbers, keyed by (seed, the prompt's ids, sample): neither the others beside it nor its place among them change it.
A prompt that stands twice is continued alike; `num_sequences` gives different ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from wenmo import device
from wenmo.errors import UsageError, say
from wenmo.generate.completion import Completion, Continuation, Logprob, Piece, logprob_of
from wenmo.generate.decoder import Decoder
from wenmo.generate.sampling import Sampling, adjust, choose
from wenmo.models import LanguageModel
from wenmo.text.tokenizer import Tokenizer


@dataclass
class _Row:
    """One continuation: `context` is all that the model has read as its own text."""

    prompt: int
    sample: int
    context: list[int]
    written: Continuation
    generator: torch.Generator
    logprobs: list[Logprob] = field(default_factory=list)


def stream(model: LanguageModel, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], sampling: Sampling,
           ends: frozenset[int], banned: frozenset[int] = frozenset()) -> Iterator[Piece]:
    """Pieces of all continuations as they come. `ends`: ids that end a text; `banned`: ids that are never chosen. For
    an encoder–decoder the prompts are sources. The model must be in eval mode.

    Raises UsageError for an empty prompt, one that leaves no room, or beams; NumericsError for scores that are NaN.
    """
    if sampling.num_beams > 1:
        raise UsageError(
            say("beam search knows its text only at the end: there is nothing to stream",
                "集束搜索到最后才能确定文本，无法逐段输出"), where=f"num_beams: {sampling.num_beams}",
            mend=say("ask for whole completions (`generate`), or give num_beams 1",
                     "请一次取得完整结果（`generate`），或令 num_beams 为 1"))
    if not prompts:
        return
    decoder = Decoder(model, prompts, sampling.max_new_tokens)
    rows = []
    for index, (prompt, start, room) in enumerate(zip(prompts, decoder.starts, decoder.rooms, strict=True)):
        for sample in range(sampling.num_sequences):
            generator = device.torch_rng("generate", sampling.seed, " ".join(map(str, prompt)), sample)
            rows.append(_Row(index, sample, list(start), Continuation(tokenizer, sampling.stop, room), generator))
    scores_BV = decoder.read(decoder.starts)
    first = [row.prompt for row in rows]  # a prompt is read once, however many continuations it has
    decoder.keep(first)
    scores_BV = scores_BV[first]
    while rows:
        going: list[int] = []
        for index, (row, scores_V) in enumerate(zip(rows, scores_BV, strict=True)):
            allowed_V = adjust(scores_V, row.context, len(row.written.ids), sampling, ends, banned)
            token = choose(allowed_V, sampling, row.generator)
            row.context += [] if token is None else [token]
            if sampling.logprobs is not None and token is not None:
                row.logprobs.append(logprob_of(scores_V.log_softmax(0), token, sampling.logprobs))
            text = row.written.push(token, ends)
            if row.written.reason is None:
                going.append(index)
                if text:
                    yield Piece(row.prompt, row.sample, text)
            else:
                yield Piece(row.prompt, row.sample, text, Completion(
                    row.written.text, tuple(row.written.ids), row.written.reason,
                    None if sampling.logprobs is None else tuple(row.logprobs)))
        rows = [rows[index] for index in going]
        if rows:
            decoder.keep(going)
            scores_BV = decoder.read([row.context[-1:] for row in rows])
