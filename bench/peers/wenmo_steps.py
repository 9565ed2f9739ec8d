"""Steps of training by Wenmo's own loop, on the rows of transformers_steps.py; each question is for one step."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from program import given, serve
from pydantic import TypeAdapter

from wenmo import device
from wenmo.data.sequence import Batch, Sequence, collate
from wenmo.modeldir import adapt, open_model
from wenmo.models.lora import LoraSettings, round_frozen
from wenmo.nn.block import checkpoint_activations
from wenmo.objectives import language_modeling
from wenmo.training import optimizer
from wenmo.training.loop import LoopSettings, steps

settings = given()
rank = settings["lora"]
on = device.choose("cpu", settings["dtype"], settings["threads"])
opened = open_model(settings["model"])
model: Any = opened.model
if rank:
    adapt(opened, LoraSettings(rank=rank, alpha=2 * rank, dropout=0.05), settings["model"], {}, seed=0)
    round_frozen(model, on.dtype)
if settings.get("checkpointing"):
    checkpoint_activations(model)
model.compute_dtype = on.dtype
chosen: optimizer.OptimizerSettings = TypeAdapter(optimizer.OptimizerSettings).validate_python(
    {"lr": 1e-4, **settings.get("optimizer", {})})


def batches(number: int) -> list[Batch]:
    ids_BT = torch.randint(100, 40_000, (settings["rows"], settings["tokens"]),
                           generator=torch.Generator().manual_seed(number)).numpy()
    return [collate(Sequence(i, {"ids": row, "targets": np.append(row[1:], -100)}) for i, row in enumerate(ids_BT))]


running = steps(model, optimizer.build(model, chosen), language_modeling(), batches, lr_factor=lambda _: 1.0,
                total_steps=1_000_000, settings=LoopSettings(), device=on, seed=0)


def step(question: dict[str, Any]) -> dict[str, Any]:
    result = next(running)
    assert result.step == question["step"] + 1, "steps are asked for in their order"
    return {"loss": result.loss, "seconds": result.seconds, "peak_bytes": device.peak_memory_bytes(on.device)}


serve({"versions": {}, "trained": sum(p.numel() for p in model.parameters() if p.requires_grad)}, step)
