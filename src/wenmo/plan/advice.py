"""What could be done about a forecast: changes of the recipe, each with its reason.

In: a Forecast, and what of the recipe and the machine it does not say (`Given`). Out: `Advice`, an override as it is
given to `wenmo train`, and why. Only keys that the recipe knows are suggested.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import torch

from wenmo import device as machine
from wenmo.errors import say
from wenmo.plan.forecast import Forecast

FULL = 0.9  # of the memory: above this the system begins to swap or to kill
ROOMY = 0.5
MUCH = 0.25  # of a run's memory: what the activations must take for a second forward to be worth its time
CUT = 0.10  # of the rows truncated: above this it is worth a word


@dataclass(frozen=True)
class Given:
    """`max_tokens` of the data and the most that the model reads (None: any); `windows`: whether the task can read a
    long text in windows; `adapts`: whether the model is a trained one without an adapter; `checkpoints`: whether each
    layer's activations are computed a second time already."""

    on: machine.Device
    accumulation: int
    batch_tokens: int
    max_tokens: int
    longest: int | None
    too_long: str
    windows: bool
    adapts: bool
    checkpoints: bool
    memory_bytes: int
    cores: int


@dataclass(frozen=True)
class Advice:
    override: str
    why: str

    def as_dict(self) -> dict[str, Any]:
        return vars(self)


def given_machine() -> tuple[int, int]:
    """(bytes of memory, cores that this process may use)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return machine.memory_bytes(), cores


def fitting_tokens(found: Forecast, memory_bytes: int) -> int:
    """The largest micro-batch that leaves a tenth of the memory free: 0 where not even the model fits."""
    room = FULL * memory_bytes - found.base_bytes
    return max(0, int(room / max(found.bytes_per_token, 1.0)))


def advice(found: Forecast, given: Given) -> list[Advice]:
    """The most urgent first."""
    result: list[Advice] = []
    fits = fitting_tokens(found, given.memory_bytes)
    share = found.peak_memory_bytes / given.memory_bytes
    if share > FULL and fits:
        parts = given.accumulation * math.ceil(found.micro_batch_tokens / fits)
        result.append(Advice(f"train.accumulation={max(parts, given.accumulation + 1)}", say(
            f"{share:.0%} of the memory would be used; micro-batches of {fits:,} tokens fit, and change no number",
            f"将占用 {share:.0%} 的内存；微批不超过 {fits:,} 个词元即可放下，且结果不变")))
    activations = found.bytes_per_token * found.micro_batch_tokens
    if share > FULL and not given.checkpoints and activations > MUCH * found.peak_memory_bytes:
        result.append(Advice("train.checkpoint_activations=true", say(
            f"{activations / 2**30:.1f} GB are activations: computed twice they are those of about one layer, for a "
            "third more time and the same weights",
            f"其中 {activations / 2**30:.1f} GB 是激活值：计算两遍则只需约一层的量，时间多约三分之一，权重不变")))
    if share > FULL and given.adapts:
        result.append(Advice("model.lora={rank: 8}", say(
            "gradients and optimizer states only for an adapter", "只需适配器的梯度与优化器状态")))
    if share <= ROOMY and given.accumulation > 1 and fits > given.batch_tokens * 2:
        result.append(Advice("train.accumulation=1", say(
            f"the whole batch fits ({fits:,} tokens would): fewer and larger products",
            f"整个批次放得下（可达 {fits:,} 个词元）：矩阵更大、次数更少")))
    if given.on.dtype == torch.float32 and machine.has_native_bf16(given.on.device):
        result.append(Advice("train.dtype=bf16", say(
            "this processor multiplies bf16 natively: two to four times as fast",
            "本机处理器原生支持 bf16，速度为两到四倍")))
    if given.on.device.type == "cpu" and given.on.threads < given.cores:
        result.append(Advice(f"train.threads={given.cores}", say(
            f"{given.on.threads} of {given.cores} cores are used",
            f"{given.cores} 个核心只用了 {given.on.threads} 个")))
    if found.truncated > CUT and given.too_long != "window":
        more = 2 * given.max_tokens
        if given.windows:
            result.append(Advice("data.too_long=window", say(
                f"{found.truncated:.0%} of the rows are cut: in windows nothing is lost",
                f"{found.truncated:.0%} 的行被截断：分窗口读取则无损失")))
        elif given.longest is None or more <= given.longest:
            result.append(Advice(f"data.max_tokens={more}", say(
                f"{found.truncated:.0%} of the rows are cut, and {found.tokens_cut:.0%} of the tokens",
                f"{found.truncated:.0%} 的行、{found.tokens_cut:.0%} 的词元被截去")))
    return result
