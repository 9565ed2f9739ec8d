"""Mistral 7B (Jiang et al. 2023): Llama whose layers each see the last `sliding_window` tokens alone (§2).

What a token learns from further back it learns through the layers: L of them reach L · window tokens. Names and
configuration keys are Hugging Face's. Heads as Llama's.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from wenmo.models.config import PositiveInt
from wenmo.models.llama import Llama, RotaryConfig, classes_of


class MistralConfig(RotaryConfig):
    """`sliding_window: null` looks back to the beginning, as the later versions do."""

    model_type: Literal["mistral"] = "mistral"
    intermediate_size: PositiveInt = 14336
    num_key_value_heads: PositiveInt = 8
    max_position_embeddings: PositiveInt = 4096 * 32
    sliding_window: PositiveInt | None = 4096
    # transformers reads this key for the cache but not for the mask: a model with layers of two kinds is Ministral.
    layer_types: Literal[None] = Field(None, exclude=True)

    def window(self, layer: int) -> int | None:
        return self.sliding_window


class Mistral(Llama):
    config_class: ClassVar[type[RotaryConfig]] = MistralConfig
    classes: ClassVar[dict[str, frozenset[str]]] = classes_of("Mistral")
