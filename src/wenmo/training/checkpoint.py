"""A checkpoint: everything that a run needs to go on, or nothing.

In: a way to write the model, an optimizer, and the caller's state. Out: `step-N/`, a model directory with two files
more, `trainer.safetensors` (the optimizer's tensors) and `trainer.json` (the step, the caller's state, and the
SHA-256 of every file); where the weights are averaged a third, `average.safetensors`. The folder takes its name in
one rename after everything in it is on the disk, so a folder called `step-N` is complete; what is wrong inside one is
damage, and said.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wenmo import files
from wenmo.errors import CheckpointError, say
from wenmo.tensors import load_tensors, save_tensors
from wenmo.training import optimizer as optimizers
from wenmo.training.average import Average
from wenmo.training.sharded import gathered, part_of

FORMAT = 2
TENSORS = "trainer.safetensors"
AVERAGE = "average.safetensors"
RECORD = "trainer.json"
WEIGHTS = "model.safetensors"


@dataclass(frozen=True, slots=True)
class Saved:
    """What `save` was given: the number of steps done, and the caller's state (tokens seen, best, hashes)."""

    step: int
    state: Mapping[str, Any]


# Writing ----------------------------------------------------------------------------------------------


def save(
    folder: Path,
    step: int,
    write_model: Callable[[Path], None],
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    state: Mapping[str, Any],
    average: Average | None = None,
    *,
    writes: bool = True,
) -> Path:
    """Writes `folder/step-{step}` and gives its path; `write_model(path)` puts the model directory's files there.

    `writes`: of several processes one does; the others help to gather what is in parts. Whatever stops it, the
    checkpoints before it stay whole. StorageError when the disk is full or read-only.
    """
    target = folder / f"step-{step}"
    tensors = {TENSORS: gathered(optimizers.state_tensors(optimizer, model), keep=writes)}
    if average is not None:
        tensors[AVERAGE] = gathered(average.tensors(), keep=writes)
    if not writes:
        return target
    with files.atomic_folder(target) as unfinished:
        write_model(unfinished)
        for name, of_file in tensors.items():
            save_tensors(unfinished / name, of_file)
        hashes = {name: files.sha256_file(unfinished / name) for name in _names(unfinished)}
        record = {"format": FORMAT, "step": step, "state": dict(state), "files": hashes}
        record = json.loads(json.dumps(record))  # as it will be read, so that the seal is of that
        files.write_json(unfinished / RECORD, {**record, "sha256": _seal(record)})
    return target


def prune(folder: Path, keep: int, protect: set[int]) -> None:
    """Deletes all but the newest `keep` checkpoints and those of the steps in `protect`."""
    assert keep >= 1, "the newest checkpoint always stays"
    for checkpoint in _all(folder)[:-keep]:
        if _step(checkpoint) not in protect:
            # First it loses its name, so that a kill in between cannot leave half of a `step-N`.
            doomed = checkpoint.with_name(f".{checkpoint.name}.{os.getpid()}.tmp")
            with files.storage_errors(checkpoint):
                os.replace(checkpoint, doomed)
                shutil.rmtree(doomed)


# Finding and checking ---------------------------------------------------------------------------------


def latest(folder: Path) -> Path | None:
    """The checkpoint with the largest step, whole or damaged; None when there is none."""
    found = _all(folder)
    return found[-1] if found else None


def verify(checkpoint: Path) -> Saved:
    """Hashes every file again. CheckpointError names the damaged file, and the last checkpoint that is whole."""
    damage = _damage(checkpoint)
    if damage:
        older = [other for other in _all(checkpoint.parent) if _step(other) < _step(checkpoint)]
        good = next((other for other in reversed(older) if not _damage(other)), None)
        if good is not None:
            mend = say(f"delete {checkpoint}; the same command then goes on from {good}",
                       f"删除 {checkpoint} 后，同一命令会从 {good} 继续")
        else:
            mend = say("no earlier checkpoint is whole: begin again with another --out",
                       "之前没有完好的检查点：请换一个 --out 重新开始")
        raise CheckpointError(
            say(f"the checkpoint is damaged: {damage}", f"检查点已损坏：{damage}"), where=str(checkpoint), mend=mend
        )
    record = _record(checkpoint)
    if record["format"] != FORMAT:
        raise CheckpointError(
            say(f"the checkpoint has format {record['format']}, this version reads {FORMAT}",
                f"检查点格式为 {record['format']}，此版本只能读取 {FORMAT}"), where=str(checkpoint),
            mend=say("resume with the version of wenmo that wrote it", "请用写入它的 wenmo 版本继续训练"),
        )
    return Saved(record["step"], record["state"])


def _damage(checkpoint: Path) -> str:
    """What is wrong with a checkpoint's files; empty when nothing is."""
    try:
        record = _record(checkpoint)
    except FileNotFoundError:
        return say(f"{RECORD} is missing", f"缺少 {RECORD}")
    except (OSError, ValueError):
        return say(f"{RECORD} cannot be read", f"{RECORD} 无法读取")
    if not isinstance(record, dict) or record.pop("sha256", None) != _seal(record):
        return say(f"{RECORD} was changed", f"{RECORD} 内容被改动")
    for name, expected in record["files"].items():
        try:
            found = files.sha256_file(checkpoint / name)
        except FileNotFoundError:
            return say(f"{name} is missing", f"缺少 {name}")
        except OSError as error:
            return f"{name}: {error.strerror}"
        if found != expected:
            return say(f"{name} was changed", f"{name} 内容被改动")
    return ""


def _record(checkpoint: Path) -> Any:
    return json.loads((checkpoint / RECORD).read_text(encoding="utf-8"))


def _seal(record: Mapping[str, Any]) -> str:
    """The record's own hash: it holds all the others, and the step."""
    return files.sha256(json.dumps(record, ensure_ascii=False, sort_keys=True))


def _names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _all(folder: Path) -> list[Path]:
    """Every `step-N`, by N."""
    found = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted(found, key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


# Reading ----------------------------------------------------------------------------------------------


def read_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The tensors of `model.safetensors`, for models whose file holds their own parameter names."""
    return load_tensors(checkpoint / WEIGHTS)


def load(
    checkpoint: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    read_model: Callable[[Path], Mapping[str, Tensor]] = read_weights,
    average: Average | None = None,
) -> Saved:
    """Verifies a checkpoint and puts weights, optimizer state and moving average back, exactly.

    CheckpointError when it is damaged or does not fit.
    """
    saved = verify(checkpoint)
    load_weights(checkpoint, model, read_model)
    optimizers.load_state_tensors(optimizer, model, load_tensors(checkpoint / TENSORS))
    if average is not None:
        average.load(load_tensors(checkpoint / AVERAGE))
    return saved


def load_weights(
    checkpoint: Path,
    model: nn.Module,
    read_model: Callable[[Path], Mapping[str, Tensor]] = read_weights,
) -> None:
    """Copies weights and buffers into the model; names, shapes and dtypes must agree exactly.

    A tensor that the model holds under several names (tied) may come under any of them. CheckpointError tells
    what is missing, unknown or of another shape.
    """
    given = read_model(checkpoint)
    own = model.state_dict(keep_vars=True)
    names: dict[int, list[str]] = {}
    for name, tensor in own.items():
        names.setdefault(id(tensor), []).append(name)
    faults = [say(f"{tied[0]} is missing", f"缺少 {tied[0]}")
              for tied in names.values() if not any(name in given for name in tied)]
    for name, tensor in given.items():
        if name not in own:
            faults.append(say(f"{name} is unknown", f"未知的 {name}"))
        elif (own[name].shape, own[name].dtype) != (tensor.shape, tensor.dtype):
            faults.append(say(f"{name} is {_kind(tensor)}, not {_kind(own[name])}",
                              f"{name} 为 {_kind(tensor)}，应为 {_kind(own[name])}"))
    if faults:
        more = "" if len(faults) <= 10 else f"; … ({len(faults)})"
        raise CheckpointError(
            say("the weights do not fit this model: ", "权重与此模型不符：") + "; ".join(faults[:10]) + more,
            where=str(checkpoint),
            mend=say("resume with the recipe that the run was begun with", "请用开始该运行时的配方继续训练"),
        )
    with torch.no_grad():
        for name, tensor in given.items():
            own[name].copy_(part_of(tensor, own[name]))


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
