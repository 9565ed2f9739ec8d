"""The machine: device, number format, threads, seeds, and the allocator set for the user.

In: what the recipe asks for. Out: a `Device` that says what was found. Nothing else asks about the machine.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import os
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from wenmo.errors import UsageError, say
from wenmo.seeds import key as key
from wenmo.seeds import numpy_rng as numpy_rng

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


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """What this thread asks of torch meanwhile, it computes by itself; other threads are not concerned.

    torch's helpers are OpenMP's: after each operation they wait for the next at full speed, for milliseconds, on the
    cores that others want who compute between torch's operations. Where there is no such runtime nothing changes.
    """
    before = torch.get_num_threads()  # asked first: a new thread's number is settled by that
    openmp = _openmp()
    if openmp is None or before == 1:
        yield
        return
    openmp.omp_set_num_threads(1)
    try:
        yield
    finally:
        openmp.omp_set_num_threads(before)


@functools.cache
def _openmp() -> ctypes.PyDLL | None:
    """The runtime that torch has loaded, where its functions can be found among the program's."""
    try:
        found = ctypes.PyDLL(None)  # which does not let other threads run meanwhile: it is a moment
    except (OSError, TypeError):
        return None
    return found if hasattr(found, "omp_set_num_threads") else None


def processor_seconds() -> tuple[float, float] | None:
    """What all programs of this machine have computed since it started, and this process of that; None where the
    system does not say."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            user, nice, system, _idle, _waiting, *others = (int(each) for each in file.readline().split()[1:9])
    except (OSError, ValueError):
        return None
    own = os.times()
    return (user + nice + system + sum(others)) / os.sysconf("SC_CLK_TCK"), own.user + own.system


def keep_memory() -> None:
    """Asks glibc to keep large blocks instead of returning them to the kernel at every step.

    By default every block above 32 MB is mapped afresh and its page faults cost more than the arithmetic
    (docs/results.md, "allocator"). Other C libraries are left as they are. oneDNN, and what torch puts around it, are
    asked to remember fewer kernels: flat batches are all of different sizes, and by default each keeps a thousand of
    them with their buffers, hundreds of MB that no later step asks for.
    """
    for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(cache, "64")
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


def large_pages(num_bytes: int) -> torch.Tensor:
    """Zeros, uint8, in pages of 2 MB where the system gives them: where much is read, finding the pages of 4 KB takes a
    tenth of the time. The memory goes back to the system with the tensor."""
    if sys.platform == "win32":
        return torch.zeros(num_bytes, dtype=torch.uint8)
    memory = mmap.mmap(-1, max(1, num_bytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel that was built without
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)[:num_bytes]


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


def torch_rng(*parts: int | str) -> torch.Generator:
    """torch's generator for `key(*parts)`."""
    return torch.Generator().manual_seed(key(*parts))
