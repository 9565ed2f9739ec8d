"""What every architecture's configuration shares: Hugging Face's keys, read strictly.

A key that changes the arithmetic is a field of the architecture's own configuration, and a value that is not
supported is refused there. What remains of a `config.json` is carried along and written back unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from wenmo.config import Settings, parse

C = TypeVar("C", bound="ModelConfig")


class ModelConfig(Settings):
    """`model_type` is Hugging Face's name of the architecture. A recipe may leave `vocab_size` to the tokenizer (0)."""

    model_type: str
    vocab_size: int = 0

    @classmethod
    def one_spelling(cls, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """The keys under the names of the fields, where Hugging Face has had several over the years."""
        return data

    @property
    def width(self) -> int:
        """D."""
        raise NotImplementedError

    @property
    def max_tokens(self) -> int | None:
        """The longest sequence, or None where positions are relative."""
        raise NotImplementedError


def read_config(cls: type[C], data: Mapping[str, Any], where: str) -> tuple[C, dict[str, Any]]:
    """(the configuration, the keys that it does not know). Raises RecipeError for unsupported values."""
    data = cls.one_spelling(data)
    known = {key: value for key, value in data.items() if key in cls.model_fields}
    carried = {key: value for key, value in data.items() if key not in cls.model_fields}
    return parse(cls, known, where), carried
