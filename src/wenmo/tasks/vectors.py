"""Texts → vectors, and how pairs of vectors are learned from: what the similarity task is made of.

In: texts and a model's hidden states. Out: sequences that fit; vectors of length one; the objective for a loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from wenmo.data.sequence import FIRST, SECOND, THIRD, Batch, Flat
from wenmo.device import key
from wenmo.errors import DataError, RecipeError, say
from wenmo.models import LanguageModel
from wenmo.nn.contrast import cosent, cosine_error, info_nce, same_texts
from wenmo.nn.pooling import Pooling, pooled, unit
from wenmo.objectives import Coupled, Objective, Term, hidden_of
from wenmo.tasks.task import Lengths, row_name
from wenmo.text.tokenizer import Tokenizer

Loss = Literal["cosine", "cosent", "infonce"]


def text_ids(tokenizer: Tokenizer, text: str, prompt: str, lengths: Lengths, number: int) -> tuple[list[int], int]:
    """(ids as the model reads them, how many tokens did not fit) of a text with its prompt before it.

    The prompt is never cut. Raises DataError for a text without a token, RecipeError where no text has room.
    """
    ids, before = tokenizer.encode(prompt + text), len(tokenizer.encode(prompt)) if prompt else 0
    room = lengths.max_tokens - tokenizer.num_wrapping(False)
    if room <= before:
        raise RecipeError(
            say(f"{lengths.max_tokens} tokens leave no room for a text", f"{lengths.max_tokens} 个词元容不下文本"),
            where="data.max_tokens", mend=say(f"at least {before + tokenizer.num_wrapping(False) + 1}",
                                              f"至少 {before + tokenizer.num_wrapping(False) + 1}"))
    if len(ids) > room:
        kept = [*ids[:before], *lengths.fit(ids[before:], room - before, text)]
    else:
        kept = ids
    wrapped, _ = tokenizer.wrap(kept)
    if not wrapped:
        raise DataError(say("a text without a single token", "文本没有任何词元"),
                        where=row_name(number), mend=say("remove it", "请删除该行"))
    return wrapped, len(ids) - len(kept)


def text_key(ids: Sequence[int]) -> int:
    """Equal for texts that a model reads alike."""
    return key("text", *ids)


def text_vectors(model: LanguageModel, flat: Flat, pooling: Pooling) -> Tensor:
    """A vector of length one for each sequence of a role, [B, D]."""
    return unit(pooled(hidden_of(model, flat), flat.lengths, pooling))


def compared(loss: Loss, pooling: Pooling, temperature: float, symmetric: bool = False) -> Objective:
    """An objective on pairs of texts, roles `text_a` and `text_b` (and `text_c`, hard negatives, if the batch has it).

    values["text"] are the texts' keys; values["target"] of the first role is what a pair is graded, for `cosine` and
    `cosent`. Texts that say the same are never each other's negatives. `symmetric`: half of `infonce` is the other way
    round, from `text_b` to `text_a` (Radford et al. 2021, fig. 3).
    """

    def counts(batch: Batch) -> dict[str, float]:
        num_pairs = float(len(batch.roles[FIRST].lengths))
        if loss == "cosent":
            return {"order": 1.0}  # one number for all pairs of pairs
        return {"pairs": num_pairs} | ({"backwards": num_pairs} if symmetric else {})

    def represent(model: LanguageModel, batch: Batch) -> dict[str, Tensor]:
        return {role: text_vectors(model, flat, pooling) for role, flat in batch.roles.items()}

    def compare(vectors: Mapping[str, Tensor], batch: Batch) -> list[Term]:
        a_BD, b_BD = vectors[FIRST], vectors[SECOND]
        if loss != "infonce":
            target_B = batch.roles[FIRST].values["target"]
            if loss == "cosine":
                return [Term("pairs", cosine_error(a_BD, b_BD, target_B))]
            return [Term("order", cosent(a_BD, b_BD, target_B, temperature))]
        a_B, b_B = batch.roles[FIRST].values["text"], batch.roles[SECOND].values["text"]
        candidates_KD, candidates_K = b_BD, b_B
        if THIRD in vectors:
            candidates_KD = torch.cat([b_BD, vectors[THIRD]])
            candidates_K = torch.cat([b_B, batch.roles[THIRD].values["text"]])
        forwards = info_nce(a_BD, candidates_KD, same_texts(a_B, b_B, candidates_K), temperature)
        if not symmetric:
            return [Term("pairs", forwards)]
        backwards = info_nce(b_BD, a_BD, same_texts(b_B, a_B, a_B), temperature)
        return [Term("pairs", forwards, weight=0.5), Term("backwards", backwards, weight=0.5)]

    def terms(model: LanguageModel, batch: Batch) -> list[Term]:
        return compare(represent(model, batch), batch)

    return Objective(counts, terms, coupled=None if loss == "cosine" else Coupled(represent, compare))


def places_of_answers(a_BD: np.ndarray, b_BD: np.ndarray, a_texts: Sequence[str], b_texts: Sequence[str]) -> np.ndarray:
    """For each row the place, from 1, of its own `text_b` among all different ones, by their cosine with `text_a`, [B].

    Other right answers to the same text are left out; of equal scores the own one comes last.
    """
    first_of: dict[str, int] = {}
    for number, text in enumerate(b_texts):
        first_of.setdefault(text, number)
    columns = {text: column for column, text in enumerate(first_of)}
    candidates_KD = b_BD[list(first_of.values())]
    right: dict[str, set[int]] = {}
    for a, b in zip(a_texts, b_texts, strict=True):
        right.setdefault(a, set()).add(columns[b])
    places = np.empty(len(a_texts), np.int64)
    for begin in range(0, len(a_texts), 512):
        scores_BK = a_BD[begin : begin + 512] @ candidates_KD.T
        for row, scores_K in enumerate(scores_BK, begin):
            own = columns[b_texts[row]]
            mine = scores_K[own]
            scores_K[list(right[a_texts[row]])] = -np.inf
            places[row] = 1 + int((scores_K >= mine).sum())
    return places
