"""Tensors on disk: safetensors, with the errors a user can act on. Nothing here can run code.

In: names and tensors. Out: one file, or a named fault. Files get the permissions that any new file would get.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from wenmo.errors import ModelError, say
from wenmo.files import storage_errors


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a .safetensors file. StorageError when the disk is full or read-only."""
    with storage_errors(path):
        try:
            save_file(dict(tensors), path, metadata=None if metadata is None else dict(metadata))
        except SafetensorError as error:
            # The library reports the operating system's errors in words; this gives them their numbers back.
            number = re.search(r"\(os error (\d+)\)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(path, 0o666 & ~umask)  # the library makes files that only their owner can read


def load_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a .safetensors file. ModelError when it is damaged."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def count_numbers(path: Path) -> Counter[str]:
    """How many numbers of a .safetensors file stand there in each format (F32, BF16, I8, …); no tensor is read.
    ModelError when it is damaged."""
    numbers = Counter[str]()
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                found = file.get_slice(name)
                numbers[found.get_dtype()] += math.prod(found.get_shape())
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error
    return numbers


def _damaged(path: Path, error: Exception) -> ModelError:
    return ModelError(say(f"damaged weights: {error}", f"权重文件损坏：{error}"), where=str(path),
                      mend=say("copy or download the file again", "请重新复制或下载该文件"))
