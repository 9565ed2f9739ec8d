"""Sequence → Batch: what a row becomes before it reaches a model.

In: one row's Sequences (ids, and whatever else belongs to each token or to the whole). Out: a Batch in which
the sequences of a role are laid end to end, without padding: `ids_M` with M the sum of the lengths.
A classification row is one Sequence; a long context is several (windows); a preference pair is two with the
roles `chosen` and `rejected`; a translation is `source` and `target`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wenmo.nn.cross_entropy import IGNORED

TEXT = "text"  # the role of a row that is a single sequence
SOURCE, TARGET = "source", "target"  # what an encoder reads, and what a decoder reads and is to say
FIRST, SECOND, THIRD = "text_a", "text_b", "text_c"  # texts that are read apart and compared


@dataclass(frozen=True, slots=True)
class Sequence:
    """`row` is the row's number in its source; `tokens` holds one value a token, `values` one for the whole.

    tokens["ids"] is always there; all of `tokens` have the same length. Targets that are not to be learned are -100.
    """

    row: int
    tokens: Mapping[str, np.ndarray]
    values: Mapping[str, int | float | np.ndarray] = field(default_factory=dict)
    role: str = TEXT

    def __len__(self) -> int:
        return len(self.tokens["ids"])


@dataclass(frozen=True, slots=True)
class Flat:
    """All sequences of one role in a batch, end to end: tokens[name] is [M] or [M, …], values[name] is [B] or [B, …].
    """

    tokens: Mapping[str, Tensor]
    values: Mapping[str, Tensor]
    lengths: tuple[int, ...]
    rows: tuple[int, ...]

    @property
    def ids_M(self) -> Tensor:
        return self.tokens["ids"]


@dataclass(frozen=True, slots=True)
class Batch:
    """role → Flat. `num_tokens` is the sum over the roles."""

    roles: Mapping[str, Flat]

    @property
    def text(self) -> Flat:
        return self.roles[TEXT]

    @property
    def first(self) -> Flat:
        """The role that stands first in every example, so that it has one sequence for each (see `examples_of`)."""
        return next(iter(self.roles.values()))

    @property
    def num_tokens(self) -> int:
        return sum(sum(flat.lengths) for flat in self.roles.values())

    def to(self, device: torch.device) -> Batch:
        if device.type == "cpu":
            return self
        moved = {}
        for role, flat in self.roles.items():
            tokens = {name: value.to(device, non_blocking=True) for name, value in flat.tokens.items()}
            values = {name: value.to(device, non_blocking=True) for name, value in flat.values.items()}
            moved[role] = Flat(tokens, values, flat.lengths, flat.rows)
        return Batch(moved)


def examples_of(sequences: Iterable[Sequence]) -> list[list[Sequence]]:
    """A row's sequences as examples, each of which a model sees whole: one begins wherever the first role comes again.

    The windows of a long text are an example each; a source and its target are one together.
    """
    examples: list[list[Sequence]] = []
    for sequence in sequences:
        if not examples or sequence.role == examples[0][0].role:
            examples.append([])
        examples[-1].append(sequence)
    return examples


def joined(batches: Iterable[Batch]) -> Batch:
    """Several batches as one, end to end."""
    parts: dict[str, list[Flat]] = {}
    for batch in batches:
        for role, flat in batch.roles.items():
            parts.setdefault(role, []).append(flat)
    return Batch({role: _end_to_end(flats) for role, flats in parts.items()})


def _end_to_end(flats: list[Flat]) -> Flat:
    tokens = {name: torch.cat([flat.tokens[name] for flat in flats]) for name in flats[0].tokens}
    values = {name: torch.cat([flat.values[name] for flat in flats]) for name in flats[0].values}
    return Flat(tokens, values, tuple(length for flat in flats for length in flat.lengths),
                tuple(row for flat in flats for row in flat.rows))


def collate(sequences: Iterable[Sequence]) -> Batch:
    """Lays the sequences of each role end to end. Integers become int64, floats float32.

    What some sequences of a role have and others lack (rows of several tasks) is IGNORED in these; a lacking segment is
    the first.
    """
    by_role: dict[str, list[Sequence]] = {}
    for sequence in sequences:
        by_role.setdefault(sequence.role, []).append(sequence)
    roles = {}
    for role, group in by_role.items():
        tokens = {name: _tensor(np.concatenate(_filled([s.tokens.get(name) for s in group], group,
                                                       0 if name == "segments" else IGNORED)))
                  for name in dict.fromkeys(name for s in group for name in s.tokens)}
        values = {name: _tensor(np.asarray(_filled([s.values.get(name) for s in group])))
                  for name in dict.fromkeys(name for s in group for name in s.values)}
        roles[role] = Flat(tokens, values, tuple(len(s) for s in group), tuple(s.row for s in group))
    return Batch(roles)


def _filled(values: list[Any], of: list[Sequence] | None = None, filling: int = IGNORED) -> list[np.ndarray]:
    """Arrays, with `filling` in the form of the others where there is None; one value a token of the sequences `of`."""
    known = np.asarray(next(value for value in values if value is not None))
    shape = known.shape if of is None else known.shape[1:]
    return [np.asarray(value) if value is not None
            else np.full(shape if of is None else (len(of[place]), *shape), filling, _kind(known))
            for place, value in enumerate(values)]


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=_kind(array)))


def _kind(array: np.ndarray) -> type:
    return np.int64 if array.dtype.kind in "iub" else np.float32
