"""The two functions of `import wenmo`: open a model, carry out a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wenmo.config import apply_overrides
from wenmo.loaded import load
from wenmo.recipe import parse_recipe, read_recipe
from wenmo.stages.train import Trained
from wenmo.stages.train import train as carry_out

__all__ = ["load", "train"]


def train(recipe: str | Path | Mapping[str, Any], *overrides: str, out: str | Path,
          data_root: str | Path = ".") -> Trained:
    """Carries out a recipe (a YAML file, or a mapping of the same shape) with `a.b=c` laid over it; resumes a run.

    Raises RecipeError with every fault in the recipe, and the other errors of `wenmo.errors`.
    """
    parsed = (read_recipe(Path(recipe), overrides) if isinstance(recipe, (str, Path))
              else parse_recipe(apply_overrides(recipe, overrides), "recipe"))
    return carry_out(parsed, Path(out), data_root=Path(data_root))
