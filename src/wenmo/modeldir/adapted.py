"""An adapter on a model, and off again.

In: an open model. Out: the same, with an adapter that from then on is what is saved; or whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wenmo import adapter as adapters
from wenmo.modeldir.opened import Opened
from wenmo.models import lora


def adapt(opened: Opened, settings: lora.LoraSettings, reference: str, changes: Mapping[str, Any], seed: int) -> None:
    """Freezes a model that was opened from `reference` and puts an adapter on it, which from here on is what is saved.

    `changes`: keys of its configuration that are not as stored. RecipeError where the settings do not fit this model.
    """
    opened.base = adapters.base_of(reference, changes)
    opened.adapter = lora.put_on(opened.model, settings, opened.initialised, seed)


def merge(opened: Opened) -> None:
    """Adds the adapter to its base: a whole model, as any other. Nothing happens to one that has no adapter."""
    if opened.adapter is not None:
        lora.merge(opened.model)
        opened.adapter = opened.base = None
        opened.card = {name: value for name, value in opened.card.items() if name != adapters.CARD}
