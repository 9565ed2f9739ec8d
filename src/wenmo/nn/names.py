"""Names of parameters and modules: which of them a pattern finds, and which layer they belong to.

In: a name as PyTorch gives it (`model.layers.3.mlp.up_proj.weight`). Out: yes or no; a layer. Who chooses by name
(groups of parameters, adapters) chooses by this rule, and knows no architecture.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase

from wenmo.errors import say

MAX_NAMES_SHOWN = 12


def matches(name: str, pattern: str) -> bool:
    """Whether a name, from its beginning or from behind one of its dots, fits a pattern (* stands for anything)."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")


def layer_of(name: str) -> str | None:
    """The layer that a parameter belongs to, by the first number in its name; None for one outside the layers."""
    parts = name.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return None if number is None else ".".join(parts[: number + 1])


def shown(names: Iterable[str], pattern: str) -> str:
    """What a pattern that finds nothing may have meant: the name most like it, and then what there is, layers counted
    once (layers.*.mlp.up_proj)."""
    general = list(dict.fromkeys(".".join("*" if part.isdigit() else part for part in name.split("."))
                                 for name in names))
    ends = {".".join(name.split(".")[start:]): name for name in general for start in range(name.count(".") + 1)}
    near = difflib.get_close_matches(pattern, list(ends), n=1)
    rest = len(general) - MAX_NAMES_SHOWN
    listed = ", ".join(general[:MAX_NAMES_SHOWN]) + (f", … ({rest})" if rest > 0 else "")
    there = say("there are: ", "可选的有：") + listed
    return say(f"did you mean `{near[0]}`? ", f"你是否想写 `{near[0]}`？") + there if near else there
