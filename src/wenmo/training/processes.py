"""Several processes that train one model: which of them this one is, and what they tell each other.

In: the environment that torchrun makes for each process, and `train.parallel`. Out: `Processes`, by which the loop
and the training stage share a step's micro-batches out, add gradients up and come to one mind. Messages between
processes are JSON. A run by itself is `ALONE`: nothing here costs it anything.

The step is the same whatever the number of processes: each takes a run of its micro-batches, in order, and every sum
is over all of them. One process, the first, reads and writes the run's files; what it decides, it tells the others.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from wenmo.config import Settings
from wenmo.errors import ProcessFailed, UsageError, say

BUCKET_NUMBERS = 1 << 23  # gradients are added up so many at a time: 32 MB
SILENCE = timedelta(minutes=30)  # after which a machine that vanished without a word is given up
PATIENCE = timedelta(days=7)  # while the first process evaluates or writes; one that ends is noticed at once
_ROOM, _HEAD = 2048, 8  # bytes of a message that is sent at once, of which the first say how long it is

T = TypeVar("T")


class ParallelSettings(Settings):
    """What several processes do that torchrun starts. `ddp`: each has the whole model, and gradients are added up once
    a step. `fsdp`: each has a part of every weight, its gradient and the optimizer's state; a layer is gathered when it
    is computed (training/sharded.py)."""

    type: Literal["ddp", "fsdp"] = "ddp"


@dataclass(frozen=True, slots=True)
class Processes:
    """This process is number `rank` of `size`. `sharded`: the model is trained in parts, and gradients are already
    added up when they arrive. `patient` is the group in which long work is waited for."""

    rank: int = 0
    size: int = 1
    sharded: bool = False
    patient: Any = None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    # The share of a step --------------------------------------------------------------------------------

    def micro_batches(self, accumulation: int) -> int:
        """Into how many micro-batches a step is cut: `accumulation`, or the next multiple of the processes."""
        return -(-accumulation // self.size) * self.size

    def share(self, number: int) -> range:
        """Which of a step's micro-batches are this process's: a run of them, no two shares more than one apart."""
        return range(number * self.rank // self.size, number * (self.rank + 1) // self.size)

    # Messages -------------------------------------------------------------------------------------------

    def told(self, value: Any, *, patiently: bool = False) -> list[Any]:
        """What each process says, in their order; all must ask. Lists, dicts, strings and numbers, as in JSON."""
        if self.size == 1:
            return [value]
        group = self.patient if patiently else None
        text = json.dumps(value, default=float).encode()
        message = len(text).to_bytes(_HEAD, "little") + text
        found = _gathered(message[:_ROOM], _ROOM, group)
        lengths = [int.from_bytes(each[:_HEAD], "little") for each in found]
        if max(lengths) > _ROOM - _HEAD:  # one of them has more to say
            found = _gathered(message, _HEAD + max(lengths), group)
        return [json.loads(each[_HEAD : _HEAD + length]) for each, length in zip(found, lengths, strict=True)]

    def decided(self, decide: Callable[[], T]) -> T:
        """What the first process makes of it (as in JSON), told to all."""
        if self.size == 1:
            return decide()
        decision: T = self.told(decide() if self.is_first else None, patiently=True)[0]
        return decision

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        """The block is carried out by the first process, then by the others: they find what it has made."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()

    def wait(self) -> None:
        """Until all have come here."""
        self.told(None, patiently=True)

    # Tensors --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Each gradient becomes the sum of those that the processes have; one that none has stays None."""
        if self.size == 1 or self.sharded:
            return
        has = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.uint8)
        dist.all_reduce(has, dist.ReduceOp.MAX)
        for parameter, some in zip(parameters, has.tolist(), strict=True):
            if some and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(flat)
            parts = torch.split(flat, [gradient.numel() for gradient in bucket])
            for gradient, part in zip(bucket, parts, strict=True):
                gradient.copy_(part.view_as(gradient))

    @torch.no_grad()
    def begin_alike(self, model: nn.Module) -> None:
        """What is trained begins as the first process has it: other processors may draw other last bits."""
        for parameter in model.parameters() if self.size > 1 else ():
            if parameter.requires_grad:
                dist.broadcast(parameter.data, 0)

    def end_to_end(self, part: Tensor) -> Tensor:
        """The parts of all processes, [X, …] of any X each, one after the other."""
        if self.size == 1:
            return part
        lengths = self.told(len(part))
        padded = part.new_zeros(max(lengths), *part.shape[1:])
        padded[: len(part)] = part
        found = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(found, padded)
        return torch.cat([each[:length] for each, length in zip(found, lengths, strict=True)])


ALONE = Processes()


def _gathered(message: bytes, room: int, group: Any) -> list[bytes]:
    """The messages of all processes, filled up to `room` bytes."""
    own = torch.frombuffer(bytearray(message.ljust(room, b"\0")), dtype=torch.uint8)
    found = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(found, own, group)
    return [each.numpy().tobytes() for each in found]


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for gradient in gradients:
        bucket.append(gradient)
        if sum(each.numel() for each in bucket) >= BUCKET_NUMBERS:
            yield bucket
            bucket = []
    if bucket:
        yield bucket


# Beginning and end ------------------------------------------------------------------------------------


def num_processes() -> int:
    """How many torchrun has started to train one model; 1 without it."""
    given = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= set(os.environ)
    return int(os.environ["WORLD_SIZE"]) if given else 1


def several() -> bool:
    return num_processes() > 1


def own_rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ["RANK"]) if several() else 0


def refuse_several(what: str, where: str, mend: str) -> None:
    """UsageError for what only a process by itself can do."""
    if several():
        raise UsageError(say(f"{what} is not for several processes at once", f"{what} 不能由多个进程同时进行"),
                         where=where, mend=mend)


def own_device(device: str) -> str:
    """The device of this process: each on a machine has a GPU of its own. UsageError for one by its number."""
    if not several():
        return device
    if ":" in device:
        raise UsageError(say("several processes cannot share one GPU", "多个进程不能共用一块 GPU"),
                         where=f"train.device: {device}", mend="train.device: cuda")
    if device == "cpu" or not torch.cuda.is_available():
        return device
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"


@contextlib.contextmanager
def joined(settings: ParallelSettings, device: torch.device) -> Iterator[Processes]:
    """Inside the block this process is one of those that torchrun has started, or `ALONE`. The block ends for all at
    the same time; ProcessFailed where another process has ended before. All but the first speak of errors alone.
    """
    if not several():
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    follows, done = own_rank() > 0, False
    if follows:
        logging.disable(logging.WARNING)
    try:
        # Messages go by gloo whatever the device; tensors on a GPU by NCCL.
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=SILENCE)
        patient = dist.new_group(backend="gloo", timeout=PATIENCE)
        found = Processes(dist.get_rank(), dist.get_world_size(), settings.type == "fsdp", patient)
        yield found
        found.wait()
        done = True
    except RuntimeError as error:  # torch has no class of its own for it in gloo
        if not _is_of_another(error):
            raise
        raise ProcessFailed(
            say("another process of this run has ended", "该训练的另一个进程已结束"), where=_place(),
            mend=say("see what it said above; then run the same command again: it goes on from the last checkpoint",
                     "请看它在上方的报错；之后重新运行同一命令，即从最近的检查点继续")) from error
    finally:
        if follows:
            logging.disable(logging.NOTSET)
        if dist.is_initialized() and (done or device.type == "cpu"):  # NCCL may wait for what never comes
            dist.destroy_process_group()


def _is_of_another(error: RuntimeError) -> bool:
    """Whether torch could not reach another process."""
    words = ("gloo", "Gloo", "NCCL", "TCPStore", "Connection closed by peer", "Connection reset", "Socket")
    return isinstance(error, dist.DistError) or any(word in str(error) for word in words)


def _place() -> str:
    rank, size = os.environ["RANK"], os.environ["WORLD_SIZE"]
    return say(f"process {rank} of {size}, counted from 0", f"进程 {rank}（共 {size} 个，从 0 计）")
