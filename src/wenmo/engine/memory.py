"""What a model takes of the memory: its weights, as they stand there, the keys and values of its engine, and the model
that guesses for it.

In: a model, and its engine if it has one. Out: bytes by part, so that what two models share can be counted once.
"""

from __future__ import annotations

from typing import Any

from wenmo.engine.engine import Engine
from wenmo.engine.packed import Packed
from wenmo.engine.speculate import DraftModel


def bytes_of(model: Any, engine: Engine | None = None) -> dict[int, int]:
    """The identity of a part → its bytes: tensors, packed maps, and all that the engine may keep of texts."""
    drafter = None if engine is None or engine.speculation is None else engine.speculation.drafter
    parts: dict[int, int] = {}
    if isinstance(drafter, DraftModel):
        parts = {**bytes_of(drafter.runner.model), id(drafter): drafter.cache_bytes}
        parts[id(drafter.runner.head.packed)] = drafter.runner.head.packed.num_bytes
    for tensor in (*model.parameters(), *model.buffers()):
        storage = tensor.untyped_storage()
        parts[storage.data_ptr()] = storage.nbytes()
    packed = [module for module in model.modules() if isinstance(module, Packed)]
    if engine is not None:
        parts[id(engine)] = engine.cache_bytes
        head = engine.runner.head.packed
        if engine.settings.format != "fp32" or head.matrix is not None:  # else it is the parameter itself
            packed.append(head)
    for each in packed:
        parts[id(each)] = each.num_bytes
    return parts
