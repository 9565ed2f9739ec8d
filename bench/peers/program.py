"""The frame of every side: a line of JSON in, a line of JSON out.

Runs in the peers' environments: only the standard library.

Whatever a library prints goes to standard error, so that standard output has nothing but answers.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any


def given() -> dict[str, Any]:
    """The settings of this side: the script's only argument."""
    settings: dict[str, Any] = json.loads(sys.argv[1])
    return settings


_answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


def answer(value: dict[str, Any]) -> None:
    _answers.write(json.dumps(value) + "\n")
    _answers.flush()


def serve(ready: dict[str, Any], work: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Says that it is ready, then answers each line until there are no more."""
    answer(ready)
    for line in sys.stdin:
        answer(work(json.loads(line)))
