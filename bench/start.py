"""How long `wenmo --help` and `import wenmo` take: whole processes, beside Python's own start.

    python -m bench.start
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from bench.rounds import alternate, row, write

COMMANDS = {"wenmo --help": ("-m", "wenmo", "--help"), "import wenmo": ("-c", "import wenmo"),
            "python -c pass": ("-c", "pass")}


def speed(*arguments: str) -> Callable[[], float]:
    """Runs a second."""

    def run() -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        return 1 / (time.perf_counter() - began)

    return run


def run(rounds: int = 11) -> dict[str, Any]:
    rows, values = [], {}
    *ours, nothing = COMMANDS
    for name in ours:
        found = alternate({name: speed(*COMMANDS[name]), nothing: speed(*COMMANDS[nothing])}, rounds)
        rows.append(row(name, "s", 1 / found["medians"][name], nothing, 1 / found["medians"][nothing],
                        found["ratios"][nothing]))
        values[name] = found
    return {"title": "Start of a process", "title_zh": "进程启动", "rows": rows, "rounds": values}


if __name__ == "__main__":
    write("start", run())
