"""What training reads: rows as examples, the sources mixed.

In: a task and its rows. Out: the examples of all sources, drawn from by weight and temperature, their texts changed
anew in each epoch where the recipe says so; and what the rows became, in tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from wenmo.data.augmentation import Augmentation, Augmented
from wenmo.data.examples import Examples, Mixture
from wenmo.data.sequence import Sequence as Tokens
from wenmo.errors import say
from wenmo.files import sha256
from wenmo.recipe import DataSettings
from wenmo.stages.prepare.rows import Rows, Values, placed, values_of
from wenmo.tasks import Built, Task

_log = logging.getLogger(__name__)


def examples_for(task: Task, rows: Rows, facts: Mapping[str, str], folder: Path, seed: int,
                 data: DataSettings) -> tuple[Examples, list[Built]]:
    """The training examples of all sources, mixed by weight and temperature; their texts changed anew in each epoch
    with `augment`."""
    held_out = sha256(*sorted(str(sorted(row.values.items())) for row in rows.choose))
    built = []
    for number, source in enumerate(rows.train):
        source_hash = sha256(facts[f"data.train.{number}"], held_out, str(len(source.rows)))
        with placed(source.rows) as values:
            built.append(task.build(values, folder, seed + number, source_hash))
    if data.augment is not None:
        built = _augmented(built, task, rows, seed, Augmentation(data.augment, rows.texts(task.settings.columns)))
    most = max(len(source.rows) for source in rows.train)
    weighted = [(each.examples, source.source.settings.weight * _more(len(source.rows) / most, data.temperature))
                for each, source in zip(built, rows.train, strict=True)]
    return Mixture(weighted, seed), built


def _more(share: float, temperature: float) -> float:
    """How many times more a source is drawn from that has this share of the largest one's rows."""
    return float(share ** (1 / temperature - 1)) if share else 1.0


def _augmented(built: Sequence[Built], task: Task, rows: Rows, seed: int, augmentation: Augmentation) -> list[Built]:
    def encode(number: int, row: Values) -> list[Tokens]:
        return task.encode(number, row, with_targets=True).sequences

    return [replace(each, examples=Augmented(values_of(source.rows), task.settings.columns, encode, augmentation,
                                             seed + number))
            for number, (each, source) in enumerate(zip(built, rows.train, strict=True))]


def print_built(built: Sequence[Built]) -> None:
    """What the rows became: tokens, and how much did not fit."""
    rows, tokens = sum(each.num_rows for each in built), sum(each.num_tokens for each in built)
    cut = sum(each.num_rows_cut for each in built)
    cut_tokens = sum(each.num_tokens_cut for each in built)
    _log.info(say(f"{rows:,} training rows, {tokens:,} tokens; {cut:,} rows truncated, {cut_tokens:,} tokens cut",
                  f"训练数据 {rows:,} 行，{tokens:,} 个词元；截断 {cut:,} 行，截去 {cut_tokens:,} 个词元"))
    for note in (note for each in built for note in each.notes):
        _log.info(note)
    skipped = sum(each.num_rows_skipped for each in built)
    if skipped:
        _log.warning(say(f"{skipped:,} rows skipped: nothing is learned from them",
                         f"跳过 {skipped:,} 行，未用于训练"))
