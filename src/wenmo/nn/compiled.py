"""Layers compiled by torch.compile, for training: what lies between two products becomes one loop each.

In: a model. Out: the same model, whose blocks run compiled code wherever something is learned from them; evaluation and
generation stay as they are. A block is compiled once for all layers and all lengths: the number of tokens is a symbol
in it. Attention stays outside, since its rectangles are of another shape at every step; norm and dropout take torch's
own formulas inside, so that last bits, and the masks drawn, are others than without.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from wenmo.errors import UsageError, say
from wenmo.nn.attend import Packed
from wenmo.nn.block import Block
from wenmo.nn.cross import Cross

COMPILERS = ("g++", "clang++")


def refuse_without_compiler() -> None:
    """UsageError where torch.compile would find no C++ compiler for the CPU."""
    named = os.environ.get("CXX")
    if not any(map(shutil.which, (named,) if named else COMPILERS)):
        raise UsageError(say("torch.compile needs a C++ compiler, and there is none",
                             "torch.compile 需要 C++ 编译器，本机没有"), where="train.compile",
                         mend=say("install g++, name another in CXX, or leave train.compile out",
                                  "请安装 g++，或在 CXX 中指定，或去掉 train.compile"))


class _Place:
    """In place of a layer's number, by which caches know it: a number would stand in compiled code, and each layer be
    compiled for itself."""


def compile_blocks(model: nn.Module, backend: str | Callable[..., Any] = "inductor") -> int:
    """Compiles every Block of a model, at its first call; how many there are."""
    leave_out: Any = torch.compiler.disable
    kind: Any
    for kind in (Packed, Cross):
        if not getattr(kind.__call__, "_torchdynamo_disable", False):
            kind.__call__ = leave_out(kind.__call__)
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    module: Any
    for block in blocks:
        for module in block.modules():
            if isinstance(getattr(module, "index", None), int):
                module.index = _Place()
        block.compile(dynamic=True, backend=backend)
    return len(blocks)
