"""The rows of a recipe: its files opened, read, and kept apart.

In: the data part of a Recipe. Out: Rows, with printed counts that add up; no text that is learned from stands, letter
for letter, among those to choose by, or in the files that are reported on.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from wenmo import device as machine
from wenmo.data.sources import (
    SourceRows,
    carve_sources,
    contents,
    fingerprint,
    fold_numbers,
    open_sources,
    read_opened,
    without,
)
from wenmo.errors import DataError, say
from wenmo.recipe import Recipe
from wenmo.stages.prepare.rows import Rows
from wenmo.tasks import JointSettings
from wenmo.text.intake import Row, Source
from wenmo.text.source import SourceSettings

_log = logging.getLogger(__name__)


class Corpus:
    """The sources of a recipe, opened (every file looked at) but not yet read; `facts` are their hashes."""

    def __init__(self, recipe: Recipe, root: Path) -> None:
        columns, targets = recipe.task.columns, recipe.task.target_columns
        self.recipe, self.columns = recipe, columns
        if isinstance(recipe.task, JointSettings):
            self.train = [open_joint(source, root, recipe.task) for source in recipe.data.train]
            self.choose = [open_joint(source, root, recipe.task) for source in recipe.data.choose.files]
            self.report = [open_joint(source, root, recipe.task) for source in recipe.data.report]
        else:
            required = (*columns, *targets)
            self.train = open_sources(recipe.data.train, root, required, ())
            self.choose = open_sources(recipe.data.choose.files, root, required, ())
            self.report = open_sources(recipe.data.report, root, columns, targets)
        self.facts = {f"data.train.{i}": fingerprint(source) for i, source in enumerate(self.train)}
        self.facts |= {f"data.choose.{i}": fingerprint(source) for i, source in enumerate(self.choose)}
        self.facts |= {f"data.report.{i}": fingerprint(source) for i, source in enumerate(self.report)}

    def read(self, quarantine: Path | None) -> Rows:
        """All rows: printed counts; held-out texts (choose, report) taken out of training. Of a cross-validation that
        names no fold, those of the first."""
        train, choose = self._read_files(quarantine)
        settings = self.recipe.data.choose
        number = settings.number(sum(len(rows.rows) for rows in train))
        if settings.folds is not None:
            train, choose = self._without_fold(train, settings.fold or 1)
        elif number:
            # Not by the recipe's seed itself: where a test set was carved by the same number before, these rows are
            # the ones that have drawn high lots, and beside another source not one of them would be chosen.
            train, choose = carve_sources(train, number, machine.key("choose", self.recipe.seed))
            _log.info(say(f"{len(choose):,} rows held out for choosing", f"留出 {len(choose):,} 行用于选择"))
            # Of a text that stands in several rows, or for several tasks, some may have been drawn.
            if self.recipe.data.duplicates == "keep" or isinstance(self.recipe.task, JointSettings):
                known = contents(choose, self.columns)
                train = [replace(rows, rows=without(rows.rows, known, self.columns)) for rows in train]
        return self._some(Rows(train, choose))

    def read_with_folds(self) -> list[tuple[int, Row]]:
        """Each training row with the fold in which it is held out, in their order."""
        train, _ = self._read_files(None)
        rows = [row for source in train for row in source.rows]
        return list(zip(self._fold_numbers(rows), rows, strict=True))

    def _read_files(self, quarantine: Path | None) -> tuple[list[SourceRows], list[Row]]:
        """The training rows whose texts stand in no file held out, and the rows of the files for choosing."""
        unique = self.columns if self.recipe.data.duplicates == "drop" else ()
        train = read_opened(self.train, unique, quarantine)
        held_out = read_opened(self.choose, unique, quarantine)
        report = read_opened(self.report, unique, quarantine)
        for source in (*self.train, *self.choose, *self.report):
            for found in source.files:
                _log.info(str(found))
        for rows in (*train, *held_out):
            _log.info(str(rows))
        held_out = [self._without(report, rows) for rows in held_out]
        train = [self._without([*held_out, *report], rows) for rows in train]
        return train, [row for rows in held_out for row in rows.rows]

    def _fold_numbers(self, rows: Sequence[Row]) -> list[int]:
        """The fold in which each of the training rows is held out."""
        choose, task = self.recipe.data.choose, self.recipe.task
        assert choose.folds is not None
        joint = isinstance(task, JointSettings)
        classes = "label" in task.target_columns and choose.stratify is not False and not joint
        return fold_numbers(rows, choose.folds, machine.key("choose", self.recipe.seed), self.columns,
                            "label" if classes else None)

    def _without_fold(self, train: Sequence[SourceRows], fold: int) -> tuple[list[SourceRows], list[Row]]:
        """The rows of the other folds, source by source, and those of this one."""
        rows = [row for source in train for row in source.rows]
        drawn = [row for row, number in zip(rows, self._fold_numbers(rows), strict=True) if number == fold]
        gone = {id(row) for row in drawn}
        _log.info(say(f"fold {fold} of {self.recipe.data.choose.folds}: {len(drawn):,} rows held out",
                      f"第 {fold}/{self.recipe.data.choose.folds} 折：留出 {len(drawn):,} 行"))
        return [replace(each, rows=[row for row in each.rows if id(row) not in gone]) for each in train], drawn

    def _without(self, held_out: Sequence[SourceRows], rows: SourceRows) -> SourceRows:
        """The rows whose texts do not stand in the files held out."""
        known = contents((row for each in held_out for row in each.rows), self.columns)
        kept = without(rows.rows, known, self.columns) if known else rows.rows
        gone = len(rows.rows) - len(kept)
        if gone:
            name = rows.source.settings.path
            _log.info(say(f"{name}: {gone:,} rows left out, since they stand in the held-out files",
                          f"{name}：{gone:,} 行因出现在留出文件中而剔除"))
        return replace(rows, rows=kept)

    def _some(self, rows: Rows) -> Rows:
        """DataError where nothing is left to learn from, or to choose by."""
        if not any(source.rows for source in rows.train):
            raise DataError(say("no training row is left: all stand in the held-out files",
                                "没有剩下训练数据：所有行都在留出文件中"), where="data.train",
                            mend=say("give files with other rows", "请给出含有其他行的文件"))
        train = self.recipe.train
        if not rows.choose and (train.best is not None or train.evaluate_every is not None or train.samples):
            raise DataError(say("there are no rows to choose by", "没有可用于选择的数据"), where="data.choose",
                            mend=say("set data.choose.carve, or name files whose rows stand nowhere else",
                                     "请设置 data.choose.carve，或指定其内容不在别处出现的文件"))
        return rows


def open_joint(settings: SourceSettings, root: Path, task: JointSettings) -> Source:
    """A source for several tasks, or for those that it names: its files must have all their columns, a row may lack
    what is learned."""
    columns, targets = task.columns_of(settings.tasks)
    [source] = open_sources([settings], root, (*columns, *targets), ())
    return replace(source, required=frozenset(columns))
