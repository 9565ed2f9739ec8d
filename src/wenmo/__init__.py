"""Wenmo 文模: the whole life of a language model in one small package. See `wenmo --help` and docs/atlas.md."""

from __future__ import annotations

__version__ = "0.1.0"
