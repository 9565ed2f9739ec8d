"""The machine: device, number format, threads, seeds, and the allocator set for the user.

In: what the recipe asks for. Out: a `Device` that says what was found. Nothing else asks about the machine.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import resource
import sys
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from wenmo.errors import UsageError, say

DType = Literal["auto", "fp32", "bf16"]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Device:
    """Where tensors live (`device`), and in which format the matrices are multiplied (`dtype`)."""

    device: torch.device
    dtype: torch.dtype
    threads: int

    def __str__(self) -> str:
        number_format, threads = str(self.dtype).removeprefix("torch."), self.threads
        return say(f"{self.device}, {number_format}, {threads} {'thread' if threads == 1 else 'threads'}",
                   f"{self.device}，{number_format}，{threads} 个线程")


def choose(device: str = "auto", dtype: DType = "auto", threads: int | None = None) -> Device:
    """`auto` takes cuda where there is one, and bf16 where the processor multiplies it natively.

    Raises UsageError for a device that this machine does not have.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(
            say("there is no CUDA device on this machine", "本机没有 CUDA 设备"),
            where=f"device: {device}", mend="device: cpu",
        )
    if threads is not None:
        torch.set_num_threads(threads)
    keep_memory()
    found = torch.device(device)
    chosen = ("bf16" if has_native_bf16(found) else "fp32") if dtype == "auto" else dtype
    return Device(found, _DTYPES[chosen], torch.get_num_threads())


def has_native_bf16(device: torch.device) -> bool:
    """AMX or AVX512-BF16 on x86, BF16 on Arm, Ampere and later on cuda."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        return False
    return any(flag in flags.split() for flag in ("amx_bf16", "avx512_bf16", "bf16"))


def keep_memory() -> None:
    """Asks glibc to keep large blocks instead of returning them to the kernel at every step.

    By default every block above 32 MB is mapped afresh and its page faults cost more than the arithmetic
    (docs/results.md, "allocator"). Other C libraries are left as they are. oneDNN is asked to remember fewer
    kernels: flat batches are all of different sizes, and by default it keeps a thousand of them with their buffers.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return  # musl and others: no such call, and nothing lost but speed
    m_trim_threshold, m_top_pad, m_mmap_threshold = -1, -2, -3
    mallopt(m_mmap_threshold, 1 << 30)
    mallopt(m_trim_threshold, (1 << 31) - 1)
    mallopt(m_top_pad, 64 << 20)


def give_back_memory() -> None:
    """The opposite, once much has been freed for good (a model that was dropped): glibc returns what it can."""
    if sys.platform.startswith("linux"):
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        except (OSError, AttributeError):
            return  # as above


def memory_bytes() -> int:
    """Of this machine, or of the container that it is run in."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(limit, encoding="utf-8") as file:
                allowed = file.read().strip()
        except OSError:
            continue
        if allowed.isdigit():
            return min(whole, int(allowed))
    return whole


def peak_memory_bytes(on: torch.device) -> int:
    """The most that this process has held in memory since it began, or since `begin_peak_memory`; on cuda, there."""
    if on.type == "cuda":
        return int(torch.cuda.max_memory_allocated(on))
    try:
        with open("/proc/self/status", encoding="utf-8") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS counts bytes, others KiB
        return most if sys.platform == "darwin" else most * 1024


def memory_held_bytes(on: torch.device) -> int:
    """What this process holds now; on cuda, there. 0 where the system does not say."""
    if on.type == "cuda":
        return int(torch.cuda.memory_allocated(on))
    try:
        with open("/proc/self/status", encoding="utf-8") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS"))
    except (OSError, StopIteration):
        return 0


def begin_peak_memory(on: torch.device) -> None:
    """Lets `peak_memory_bytes` count from what is held now; where the system cannot, it goes on as it was."""
    if on.type == "cuda":
        torch.cuda.reset_peak_memory_stats(on)
        return
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        return


def key(*parts: int | str) -> int:
    """A 63-bit number that is a pure function of its parts: the seed of everything random.

    `key(seed, "dropout", step)` needs no state to be saved: a resumed run draws what the first would have.
    """
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def numpy_rng(*parts: int | str) -> np.random.Generator:
    """numpy's generator for `key(*parts)`."""
    return np.random.default_rng(key(*parts))


def torch_rng(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """torch's generator for `key(*parts)`."""
    return torch.Generator(device=device).manual_seed(key(*parts))
