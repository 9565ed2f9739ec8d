"""What every architecture's configuration shares: Hugging Face's keys, read strictly.

A key that changes the arithmetic is a field of the architecture's own configuration, and a value that is not
supported is refused there. What remains of a `config.json` is carried along and written back unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self, TypeVar

from pydantic import Field

from wenmo.config import Settings, parse
from wenmo.errors import say

C = TypeVar("C", bound="ModelConfig")

# Sizes and rates that a network can have; anything else is refused before the first tensor is made.
PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, lt=1)]  # of dropout: at 1 nothing would be left
TokenId = Annotated[int, Field(ge=0)]
VocabSize = Annotated[int, Field(ge=0)]  # 0: as large as the tokenizer, which a recipe's model may leave it to


class ModelConfig(Settings):
    """`model_type` is Hugging Face's name of the architecture. A recipe may leave `vocab_size` to the tokenizer (0)."""

    model_type: str
    vocab_size: VocabSize = 0

    @classmethod
    def one_spelling(cls, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """The keys under the names of the fields, where Hugging Face has had several over the years."""
        return data

    def for_tokenizer(self, vocab_size: int, control: Mapping[str, int]) -> Self:
        """With what a recipe has left to its tokenizer. `control`: role of a control token (pad, …) → its id."""
        ids = {name: control.get("pad") for name in ("pad_token_id", "decoder_start_token_id")}
        left = {name: id for name, id in ids.items() if name in type(self).model_fields and getattr(self, name) is None}
        return parse(type(self), {**self.model_dump(), **left, "vocab_size": self.vocab_size or vocab_size}, "model")

    @property
    def width(self) -> int:
        """D."""
        raise NotImplementedError

    @property
    def max_tokens(self) -> int | None:
        """The longest sequence, or None where positions are relative."""
        raise NotImplementedError


def check_multiple(whole: int, part: int, whole_name: str, part_name: str) -> None:
    """`whole` must be a multiple of `part`. Raises ValueError."""
    if whole % part:
        raise ValueError(say(f"{whole_name} ({whole}) must be a multiple of {part_name} ({part})",
                             f"{whole_name}（{whole}）须是 {part_name}（{part}）的整数倍"))


def read_config(cls: type[C], data: Mapping[str, Any], where: str) -> tuple[C, dict[str, Any]]:
    """(the configuration, the keys that it does not know). Raises RecipeError for unsupported values."""
    data = cls.one_spelling(data)
    known = {key: value for key, value in data.items() if key in cls.model_fields}
    carried = {key: value for key, value in data.items() if key not in cls.model_fields}
    return parse(cls, known, where), carried
