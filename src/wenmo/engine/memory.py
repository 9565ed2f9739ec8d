"""What a model takes of the memory: its weights, as they stand there, and the keys and values of its engine.

In: a model, and its engine if it has one. Out: bytes by part, so that what two models share can be counted once.
"""

from __future__ import annotations

from typing import Any

from wenmo.engine.engine import Engine
from wenmo.engine.packed import Packed


def bytes_of(model: Any, engine: Engine | None = None) -> dict[int, int]:
    """The identity of a part → its bytes: tensors, packed maps, and all that the engine may keep of texts."""
    parts: dict[int, int] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        storage = tensor.untyped_storage()
        parts[storage.data_ptr()] = storage.nbytes()
    packed = [module for module in model.modules() if isinstance(module, Packed)]
    if engine is not None:
        parts[id(engine)] = engine.cache_bytes
        if engine.settings.format != "fp32":  # in fp32 it is the parameter itself
            packed.append(engine.runner.head.packed)
    for each in packed:
        parts[id(each)] = each.num_bytes
    return parts
