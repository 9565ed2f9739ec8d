"""An epoch of fine-tuning a classifier by Wenmo's loop; each question is for one, from the same weights."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from program import given, serve

from wenmo import device
from wenmo.data.loader import Loader
from wenmo.modeldir import open_model
from wenmo.tasks import Lengths, create_task
from wenmo.tasks.classification import ClassificationSettings
from wenmo.training import optimizer
from wenmo.training.loop import LoopSettings, steps
from wenmo.training.schedule import LinearSchedule, Rates

settings = given()
on = device.choose("cpu", "auto", settings["threads"])
rows = [json.loads(line) for line in Path(settings["rows"]).read_text(encoding="utf-8").splitlines()]


def epoch(_: dict[str, Any]) -> dict[str, Any]:
    opened = open_model(settings["model"])
    model: Any = opened.model
    model.compute_dtype = on.dtype
    assert opened.tokenizer is not None
    task = create_task(ClassificationSettings(), opened.tokenizer, Lengths(max_tokens=512)).fitted(rows)
    began = time.perf_counter()  # Trainer's rows are encoded beforehand: ours are so within the time
    built = task.build(rows, Path(settings["out"]), 0, "bench")
    loader = Loader(built.examples, settings["batch_rows"] * built.num_tokens // built.num_rows, 1, seed=0)
    total = loader.total_steps(1)
    rates = Rates(schedule=LinearSchedule(warmup=0), total_steps=total)
    made = optimizer.build(model, optimizer.AdamW(lr=5e-5))
    losses = [result.loss for result in steps(model, made, task.objective(), loader.batches, lr_factor=rates.factor,
                                              total_steps=total, settings=LoopSettings(), device=on, seed=0)]
    seconds = time.perf_counter() - began
    # Steps have equally many tokens, and so more rows where these are short: the mean is over rows.
    loss = sum(each * len(loader.lengths(step)) for step, each in enumerate(losses)) / built.num_rows
    return {"seconds": seconds, "loss": loss, "steps": total, "tokens": built.num_tokens}


serve({"versions": {}}, epoch)
