"""Taps: what flows inside a body is seen there, and may be replaced."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Taps = Callable[[str, Tensor], Tensor]  # (name of the place, value) → value to go on with


def tap(taps: Taps | None, name: str, value: Tensor) -> Tensor:
    return value if taps is None else taps(name, value)
