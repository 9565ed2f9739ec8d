"""What the recipe says about a source of rows."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StrictFloat, StrictInt, StrictStr

from wenmo.config import Count, Settings
from wenmo.errors import RecipeError, say
from wenmo.text.encoding import Encoding
from wenmo.text.normalize import NormalizeSettings
from wenmo.text.records import Format, Unit


class SourceSettings(Settings):
    """One source: a file, or a glob whose files are read in the order of their names; `a.zip/*.csv` looks inside."""

    path: str  # under the data root, or absolute
    format: Literal["auto"] | Format = "auto"  # by the extension, and the shape of a .json
    encoding: Encoding = "auto"
    columns: dict[str, StrictStr | Annotated[StrictInt, Field(ge=0)]] = Field({})  # {standard name: name or number}
    constants: dict[str, StrictStr | StrictInt | StrictFloat] = Field({})  # for every row: {label: positive}
    parallel: dict[str, str] = Field({})  # txt: {standard name: a file whose n-th line belongs to the n-th of `path`}
    header: bool = True  # csv, tsv: the first row holds the names; without it, columns are numbers from 0
    separator: str | None = Field(None, min_length=1)  # csv: found out (, ; | or a tab); tsv: a tab; conll: white space
    quoting: Literal["auto", "double", "none"] = "auto"  # a " within quotes is doubled; auto: none between tabs
    fields: Count | None = Field(None, ge=1)  # csv, tsv without header: columns of a row; else as the first row has
    surplus: Literal["quarantine", "join", "drop"] = "quarantine"  # fields beyond them: join makes the last one longer
    before: dict[str, StrictStr] = Field({})  # {standard name: mark}: only what stands before the mark's first place
    unit: Unit = "line"  # txt: what a row is; paragraphs end at a blank line
    fill: dict[str, StrictStr] = Field({})  # {name: what to put wherever a text of a row says {{name}}}
    join: str | None = None  # puts between the strings of a list (JSON, Parquet, CoNLL) that stands for a text
    limit: Count | None = Field(None, ge=1)  # rows to use, from the first; the others are read and counted as cut
    tasks: tuple[str, ...] = ()  # of several tasks: those that these rows are for; all, if left out
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)  # how many times an epoch sees each row
    normalize: NormalizeSettings = NormalizeSettings()


def useless(key: str, why: str, settings: SourceSettings) -> RecipeError:
    """A key that would do nothing is refused."""
    return RecipeError(say(f"`{key}` cannot be used here: {why}", f"此处不能使用 `{key}`：{why}"), where=settings.path,
                       mend=say(f"take out `{key}`", f"请去掉 `{key}`"))
