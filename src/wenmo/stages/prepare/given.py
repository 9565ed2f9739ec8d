"""What a task reads of a file that a command line names, for evaluate, predict and the like.

In: a path, a task's settings, source settings from the command line. Out: the columns that are there, or the rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wenmo.data.given import only, open_given, rows_of
from wenmo.data.sources import SourceRows
from wenmo.errors import DataError
from wenmo.tasks import JointSettings
from wenmo.tasks.task import TaskSettings


def rows_to_measure(path: str, settings: TaskSettings, *, given: Mapping[str, Any],
                    trained_on: Mapping[str, Any]) -> SourceRows:
    """The rows of a file with all that the task reads and learns; of several tasks, what the file has for each."""
    columns = columns_in(path, settings, given, trained_on, with_targets=True)
    optional = settings.target_columns if isinstance(settings, JointSettings) else ()
    return rows_of(path, columns, given=given, trained_on=trained_on, optional=optional)


def columns_in(path: str, settings: TaskSettings, given: Mapping[str, Any], trained_on: Mapping[str, Any], *,
               with_targets: bool) -> tuple[str, ...]:
    """The columns that a task reads (and learns); of several tasks, those of each for which the file has them all."""
    found: dict[str, None] = {}
    for part in settings.tasks.values() if isinstance(settings, JointSettings) else ():
        wanted = (*part.inputs, *(part.targets if with_targets else ()))
        try:
            open_given(path, wanted, only(wanted, given), only(wanted, trained_on))
        except DataError:
            continue
        found |= dict.fromkeys(wanted)
    return tuple(found) or (*settings.columns, *(settings.target_columns if with_targets else ()))
