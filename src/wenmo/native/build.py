"""The C files of this room, compiled on first use for this very processor, and loaded.

Out: a ctypes library. It is kept in the user's cache folder (WENMO_CACHE, or wenmo/ in the system's place for caches)
under a hash of all that it depends on: the sources, the flags, the compiler and the processor. A few seconds, once.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

from wenmo.errors import say
from wenmo.files import sha256

_log = logging.getLogger(__name__)
SOURCES = Path(__file__).parent
COMPILERS = ("cc", "gcc", "clang")
# No contraction of a · b + c by the compiler: it could take it in one place and not in another, and bits would differ.
FLAGS = ("-std=gnu11", "-O3", "-march=native", "-ffp-contract=off", "-fPIC", "-shared", "-pthread")
LEAST_WIDTH = 8  # fp32 numbers in a register, from which on it is faster than torch
SECONDS = 120  # after which a compiler is given up


class Unavailable(Exception):
    """There is no native library on this machine; the message says why."""


@functools.cache
def library() -> ctypes.CDLL:
    """Raises Unavailable."""
    if os.name != "posix":
        raise Unavailable(say("native steps are for Linux and macOS", "原生计算仅支持 Linux 与 macOS"))
    compiler = find_compiler()
    sources = sorted([*SOURCES.glob("*.c"), *SOURCES.glob("*.h")])
    version = _run([compiler, "--version"])
    name = sha256(*(path.read_bytes() for path in sources), " ".join(FLAGS), compiler, version, _processor())
    try:
        target = _own_folder() / f"{name}.so"
        if target.exists():
            with contextlib.suppress(OSError):  # half of one, after a crash of the machine
                return ctypes.CDLL(str(target))
        _compile(compiler, [path for path in sources if path.suffix == ".c"], target)
        return ctypes.CDLL(str(target))
    except (OSError, RuntimeError) as error:  # a full disk, no home, a library that does not load
        raise Unavailable(str(error)) from error


def find_compiler() -> str:
    """The path of the first that there is: the variable CC, then the usual names."""
    named = os.environ.get("CC")
    for name in (named,) if named else COMPILERS:
        found = shutil.which(name)
        if found is not None:
            return found
    raise Unavailable(say(f"no C compiler ({named or ', '.join(COMPILERS)})",
                          f"没有 C 编译器（{named or '、'.join(COMPILERS)}）"))


def cache_folder() -> Path:
    """Where libraries are kept."""
    chosen, system = os.environ.get("WENMO_CACHE"), os.environ.get("XDG_CACHE_HOME")
    above = Path(chosen) if chosen else (Path(system) if system else Path.home() / ".cache") / "wenmo"
    return above / "native"


def _own_folder() -> Path:
    """The folder, made if need be. What is loaded from it is run: nobody else may write there."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Unavailable(say(f"others may write to {folder}", f"其他用户可写入 {folder}"))
    return folder


def _compile(compiler: str, sources: list[Path], target: Path) -> None:
    """Beside its place, then renamed: several processes may do this at once."""
    _log.info(say("compiling the native steps for this processor, once: a few seconds",
                  "正在为本机处理器编译原生计算（仅此一次，需数秒）"))
    with tempfile.TemporaryDirectory(dir=target.parent) as beside:
        made = Path(beside) / target.name
        _run([compiler, *FLAGS, *map(str, sources), "-o", str(made), "-lm"])
        os.replace(made, target)


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(str(error)) from error
    if done.returncode != 0:
        raise Unavailable(f"{command[0]}: {(done.stderr or done.stdout).strip()[:500]}")
    return done.stdout


def _processor() -> str:
    """What `-march=native` goes by."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = [line for line in file.read().split("\n\n")[0].splitlines()
                     if line.startswith(("model", "vendor", "cpu family", "flags", "Features", "CPU"))]
    except OSError:
        lines = []
    return "\n".join([platform.machine(), platform.processor(), *lines])
