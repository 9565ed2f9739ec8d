"""Wenmo 文模: the whole life of a language model in one small package. See `wenmo --help` and docs/atlas.md.

    loaded = wenmo.load("runs/sentiment")        a folder, a Run, a .gguf file, hf:org/name, ms:… or pkg:NAME
    loaded.predict(["很好看的一本书"])
    wenmo.evaluate(loaded, "reviews-test.csv")
    wenmo.train("recipes/sentiment.yaml", out="runs/sentiment")

`import wenmo` loads neither torch nor anything heavy; the three functions do, when they are first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wenmo.stages.library import evaluate, load, train

__version__ = "0.1.0"
__all__ = ["__version__", "evaluate", "load", "train"]


def __getattr__(name: str) -> Any:
    if name in ("evaluate", "load", "train"):
        from wenmo.stages import library

        return getattr(library, name)
    raise AttributeError(f"module 'wenmo' has no attribute '{name}'")
