"""Qwen3 (Yang et al. 2025, §2): Qwen2 with normed queries and keys in place of the biases.

The norm keeps scores from growing with the width of the weights, whatever the learning rate ("QK-norm", Dehghani et al.
2023, §2.1); it acts on each head, before the turn to its position. The heads' width is a key of its own, apart from
hidden_size. Names and configuration keys are Hugging Face's. Heads as Llama's.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from wenmo.models.config import PositiveInt
from wenmo.models.llama import Attention, Llama, RotaryConfig, classes_of
from wenmo.models.qwen2 import QwenConfig
from wenmo.nn.norm import RMSNorm


class Qwen3Config(QwenConfig):
    model_type: Literal["qwen3"] = "qwen3"
    head_dim: PositiveInt = 128
    attention_bias: bool = False

    @property
    def query_bias(self) -> bool:
        return self.attention_bias

    @property
    def output_bias(self) -> bool:
        return self.attention_bias


class _NormedAttention(Attention):
    def __init__(self, config: RotaryConfig) -> None:
        super().__init__(config)
        self.q_norm = RMSNorm(config.head_width, config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_width, config.rms_norm_eps)

    def queries_keys_values(self, x_MD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q_MNH, k_MKH, v_MKH = super().queries_keys_values(x_MD)
        return self.q_norm(q_MNH), self.k_norm(k_MKH), v_MKH


class Qwen3(Llama):
    config_class: ClassVar[type[RotaryConfig]] = Qwen3Config
    classes: ClassVar[dict[str, frozenset[str]]] = classes_of("Qwen3")
    attention: ClassVar[type[Attention]] = _NormedAttention
