"""Qwen2 (Yang et al. 2024): Llama with a bias on queries, keys and values.

The upper layers may look back over a window of tokens alone, which long texts ask for. Names and configuration keys are
Hugging Face's. Heads as Llama's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from wenmo.errors import say
from wenmo.models.config import PositiveInt
from wenmo.models.llama import Llama, RotaryConfig, classes_of

SLIDING, FULL = "sliding_attention", "full_attention"


class QwenConfig(RotaryConfig):
    """What Qwen 2 and 3 share. With `use_sliding_window`, the layers from `max_window_layers` on see `sliding_window`
    tokens each, or those that `layer_types` names, one word a layer."""

    num_key_value_heads: PositiveInt | None = 32
    intermediate_size: PositiveInt = 22016
    max_position_embeddings: PositiveInt = 32768
    use_sliding_window: bool = False
    sliding_window: PositiveInt | None = None
    max_window_layers: Annotated[int, Field(ge=0)] = 28
    layer_types: tuple[Literal["full_attention", "sliding_attention"], ...] | None = None

    @classmethod
    def one_spelling(cls, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """A window that is not used means nothing; one that is has a width, and transformers 5 names its layers."""
        data = dict(super().one_spelling(data))
        if not data.get("use_sliding_window"):
            data["sliding_window"] = None
        elif data.setdefault("sliding_window", 4096) is not None and data.get("layer_types") is None:
            num_layers = data.get("num_hidden_layers", cls.model_fields["num_hidden_layers"].default)
            first = data.get("max_window_layers", cls.model_fields["max_window_layers"].default)
            data["layer_types"] = [SLIDING if layer >= first else FULL for layer in range(num_layers)]
        return data

    @model_validator(mode="after")
    def _windows_fit(self) -> QwenConfig:
        if self.layer_types is not None and len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(say(f"layer_types names {len(self.layer_types)} layers of {self.num_hidden_layers}",
                                 f"layer_types 列了 {len(self.layer_types)} 层，而模型有 {self.num_hidden_layers} 层"))
        if self.use_sliding_window != (self.sliding_window is not None):
            raise ValueError(say("use_sliding_window: true and sliding_window: N go together",
                                 "use_sliding_window: true 与 sliding_window: N 须同时给出"))
        slides = any(self._slides(layer) for layer in range(self.num_hidden_layers))
        if self.layer_types is None and self.use_sliding_window and not slides:
            raise ValueError(say(f"no layer would have the window: max_window_layers is {self.max_window_layers}",
                                 f"没有任何层会用到窗口：max_window_layers 为 {self.max_window_layers}"))
        if slides and self.sliding_window is None:
            raise ValueError(say("layer_types names sliding layers: give use_sliding_window and sliding_window",
                                 "layer_types 中有滑动窗口层：请给出 use_sliding_window 与 sliding_window"))
        return self

    def _slides(self, layer: int) -> bool:
        if self.layer_types is not None:
            return self.layer_types[layer] == SLIDING
        return self.use_sliding_window and layer >= self.max_window_layers

    def window(self, layer: int) -> int | None:
        return self.sliding_window if self._slides(layer) else None


class Qwen2Config(QwenConfig):
    model_type: Literal["qwen2"] = "qwen2"
    # transformers takes a null here for a width.
    head_dim: PositiveInt | None = Field(None, exclude_if=lambda value: value is None)

    @property
    def query_bias(self) -> bool:
        return True


class Qwen2(Llama):
    config_class: ClassVar[type[RotaryConfig]] = Qwen2Config
    classes: ClassVar[dict[str, frozenset[str]]] = classes_of("Qwen2")
