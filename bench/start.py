"""How long `wenmo --help` and `import wenmo` take: whole processes, medians of ten."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time


def seconds(*command: str) -> float:
    """Median wall time of ten runs after one warm-up."""
    times = []
    for _ in range(11):
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def run() -> dict[str, float]:
    return {
        "wenmo --help": round(seconds(sys.executable, "-m", "wenmo", "--help"), 3),
        "import wenmo": round(seconds(sys.executable, "-c", "import wenmo"), 3),
        "python -c pass": round(seconds(sys.executable, "-c", "pass"), 3),
    }


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
