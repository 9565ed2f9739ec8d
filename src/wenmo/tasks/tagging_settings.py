"""What a recipe may say of a tagging task: the keys under `task:` with `type: tagging`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from wenmo.config import Count, Fraction, Settings
from wenmo.errors import say
from wenmo.models import CRF_KIND
from wenmo.tasks.labels import all_different
from wenmo.tasks.tagged import Conflicts, Rows, Target, Units
from wenmo.text.tagging_schemes import Scheme


class TaggingSettings(Settings):
    """target: what the tags say: `entities` (names, slots), `tags` (a label of its own for each word, such as its part
    of speech), `words` (where words begin and end).
    rows: `tokens` and `tags`, or `text` and `entities` (a list of {start, end, type}, counting characters).
    scheme: of the model's own tags; those of the rows may be in any. labels: the tags, in the order of the outputs.
    crf: also learn which tag follows which. learn: from the first token of each word, or from all of them.
    units: what a text is split into: `characters`, `words` (Chinese by rjieba), or `mixed`, Chinese by characters and
    all else by words; left out, what the training rows' tokens are, and of texts the mixture.
    conflicts: of entities that overlap. overlap_tokens: what the windows of a long sentence share; left out, a
    quarter."""

    type: Literal["tagging"] = "tagging"
    target: Target = "entities"
    rows: Rows = "tokens"
    scheme: Scheme | None = None
    labels: tuple[str, ...] | None = Field(None, min_length=2)
    crf: bool = False
    label_smoothing: Fraction = 0.0
    learn: Literal["first", "all"] = "first"
    units: Units | None = None
    conflicts: Conflicts = "refuse"
    overlap_tokens: Count | None = None

    _all_different = field_validator("labels")(all_different)

    @model_validator(mode="after")
    def _acts(self) -> TaggingSettings:
        """Each key acts, or is refused."""
        faults = [
            ("label_smoothing", self.crf and self.label_smoothing > 0, "with `crf`", "有 `crf` 时"),
            ("learn: all", self.crf and self.learn == "all", "with `crf`, whose steps go from word to word",
             "有 `crf` 时（它逐词转移）"),
            ("scheme", self.scheme is not None and self.target == "tags", "with `target: tags`", "`target: tags` 时"),
            ("rows: text", self.rows == "text" and self.target != "entities", "without `target: entities`",
             "没有 `target: entities` 时"),
            ("conflicts", self.conflicts == "drop" and self.rows == "tokens", "without `rows: text`",
             "没有 `rows: text` 时"),
            ("units", self.units not in (None, "characters") and self.target == "words", "with `target: words`",
             "`target: words` 时"),
        ]
        for key, useless, en, zh in faults:
            if useless:
                raise ValueError(say(f"`{key}` does nothing {en}", f"{zh} `{key}` 不起作用"))
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.rows,)

    @property
    def target_columns(self) -> tuple[str, ...]:
        if self.target == "words":
            return ("tokens",)
        return ("entities",) if self.rows == "text" else ("tags",)

    @property
    def head_kinds(self) -> frozenset[str]:
        return frozenset({"tagging", CRF_KIND} if self.crf else {"tagging"})

    @property
    def own_scheme(self) -> Scheme | None:
        """That of the model's tags; None where they make no entities."""
        if self.target == "tags":
            return None
        return self.scheme or ("bmes" if self.target == "words" else "bio")
