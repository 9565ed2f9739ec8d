"""Peers in virtual environments of their own, and programs that stay up between two questions.

`python(peer)` makes .bench/PEER/ once from bench/peers/PEER.txt and returns its interpreter. The file is a whole lock
(pip gets `--no-deps`), so that no peer draws in a CUDA build. The environment variable WENMO_BENCH_PYTHON_PEER names an
interpreter to take instead. `Program` starts one script, which loads its model, and then asks it again and again.

    python -m bench.environments llama_cpp openvino
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

BENCH = Path(__file__).parent
ENVIRONMENTS = BENCH.parent / ".bench"
# What wenmo.device.keep_memory sets from within: glibc keeps large blocks instead of mapping them afresh each time.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str((1 << 31) - 1),
             "MALLOC_TOP_PAD_": str(64 << 20)}
SELF = "wenmo"


def python(peer: str) -> Path:
    """The interpreter of a peer's environment, made where it is not there or its file has changed; for "wenmo" ours."""
    if peer == SELF:
        return Path(sys.executable)
    if given := os.environ.get(f"WENMO_BENCH_PYTHON_{peer.upper()}"):
        return Path(given)
    wanted = BENCH / "peers" / f"{peer}.txt"
    folder = ENVIRONMENTS / peer
    interpreter, stamp = folder / "bin" / "python", folder / "made-from"
    digest = hashlib.sha256(wanted.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text(encoding="utf-8") == digest:
        return interpreter
    print(f"{folder}: made from {wanted.name}", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    subprocess.run([interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
                    "--no-compile", "-r", wanted], check=True, stdout=sys.stderr)
    stamp.write_text(digest, encoding="utf-8")
    return interpreter


def threads() -> int:
    """OMP_NUM_THREADS where it is set, else the cores that this process may use."""
    return int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))


def settings(allocator: bool = True) -> dict[str, str]:
    """The environment variables that every side gets: threads, allocator, and no look at the network."""
    own = {"OMP_NUM_THREADS": str(threads()), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **(ALLOCATOR if allocator else {}), **own}


class Program:
    """A script in a peer's environment: a line of JSON in, a line of JSON out; its first line says that it is ready."""

    def __init__(self, peer: str, script: str, given: dict[str, Any], *, allocator: bool = True,
                 variables: Mapping[str, str] = MappingProxyType({})) -> None:
        self.name = f"{peer}: {script}"
        command = [str(python(peer)), str(BENCH / "peers" / script), json.dumps(given)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                         env={**settings(allocator), **variables})
        self.ready = self._answer()

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """RuntimeError where the program has ended: its own words are on standard error."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # _answer says so, with the exit code
        return self._answer()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Program:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with exit code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


if __name__ == "__main__":
    for each in sys.argv[1:]:
        print(python(each))
