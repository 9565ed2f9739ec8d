"""A model in memory, with what its folder says about it; and what a result made with it depends on.

In: an open model. Out: `Opened`, its digest, the versions of what computes it. It stands below opening and saving, the
ways to it and from it.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from wenmo import __version__
from wenmo import adapter as adapters
from wenmo.files import sha256
from wenmo.models import lora
from wenmo.text.tokenizer import Tokenizer


@dataclass
class Opened:
    """A model in memory, with all that its folder said about it."""

    model: Any  # a LanguageModel that is an nn.Module; Python cannot say "both"
    tokenizer: Tokenizer | None
    card: dict[str, Any] = field(default_factory=dict)  # wenmo.json: tasks, lineage, golden, scores, …
    carried: dict[str, Any] = field(default_factory=dict)  # keys of config.json that are not arithmetic
    generation: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    initialised: list[str] = field(default_factory=list)  # parameters that the files did not have
    left_out: list[str] = field(default_factory=list)  # stored tensors that these heads have no place for
    adapter: lora.Adapter | None = None  # where only what was put on the `base` is the model's own, and is saved
    base: adapters.Base | None = None

    @property
    def max_tokens(self) -> int | None:
        longest: int | None = self.model.config.max_tokens
        return longest


def versions() -> dict[str, str]:
    """What a result depends on, for the lineage."""
    return {"wenmo": __version__, "torch": str(torch.__version__), "numpy": np.__version__,
            "python": platform.python_version(), "threads": str(torch.get_num_threads())}


def weights_sha256(model: nn.Module) -> str:
    """A digest of all parameters by name, the identity of a model in memory."""
    parts: list[bytes | str] = []
    for name, tensor in sorted(model.state_dict().items()):
        parts += [name, tensor.detach().cpu().float().contiguous().numpy().tobytes()]
    return sha256(*parts)
