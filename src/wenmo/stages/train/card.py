"""wenmo.json before the first step: what the model is for, and where it came from. Its scores come when training ends.

In: the recipe, its task, the rows, the hashes of what the run is made from. Out: a dict of plain values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wenmo import modeldir
from wenmo.config import to_yaml
from wenmo.files import sha256
from wenmo.recipe import FromModel, Recipe
from wenmo.stages import prepare
from wenmo.stages.prepare import Rows
from wenmo.tasks import Task, cards_of
from wenmo.tasks.language_modeling import document_start
from wenmo.text.languages import SAMPLE_TEXTS, language_shares


def card_before(recipe: Recipe, task: Task, rows: Rows, facts: Mapping[str, str]) -> dict[str, Any]:
    """Tasks, how the data was read, languages, lineage. A pure function of recipe and data."""
    card: dict[str, Any] = {
        "tasks": cards_of(task),
        "source": prepare.source_card(recipe),
        "normalize": prepare.normalization_card(recipe),
        "languages": language_shares(rows.texts(recipe.task.columns), every=1 + rows.num_train // SAMPLE_TEXTS),
        "lineage": {
            "parent": {"reference": recipe.model.reference, "sha256": facts["model"]}
            if isinstance(recipe.model, FromModel) else None,
            "recipe_sha256": sha256(to_yaml(recipe)), "data_sha256": dict(facts),
            "tokenizer_sha256": task.tokenizer.sha256, "versions": modeldir.versions(), "seed": recipe.seed,
        },
    }
    if task.name == "causal_lm":
        card["document_start"] = document_start(task.tokenizer)
    return card
