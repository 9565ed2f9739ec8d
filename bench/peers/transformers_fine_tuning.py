"""An epoch of fine-tuning a classifier by transformers' Trainer; each question is for one, from the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from program import given, serve

settings = given()
torch.set_num_threads(settings["threads"])
tokenizer = transformers.AutoTokenizer.from_pretrained(settings["model"])
rows = [json.loads(line) for line in Path(settings["rows"]).read_text(encoding="utf-8").splitlines()]
labels = sorted({row["label"] for row in rows})
encoded = [{**tokenizer(row["text"], truncation=True, max_length=512), "labels": labels.index(row["label"])}
           for row in rows]
best = {"bf16": True, "train_sampling_strategy": "group_by_length",
        "per_device_train_batch_size": settings["batch_rows"]} if settings["best"] else {}


def epoch(_: dict[str, Any]) -> dict[str, Any]:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(settings["model"])
    arguments = transformers.TrainingArguments(
        settings["out"], num_train_epochs=1, use_cpu=True, report_to="none", save_strategy="no",
        logging_strategy="no", disable_tqdm=True, **best)
    trainer = transformers.Trainer(model, arguments, train_dataset=encoded,
                                   data_collator=transformers.DataCollatorWithPadding(tokenizer))
    found = trainer.train()
    return {"seconds": found.metrics["train_runtime"], "loss": found.training_loss, "steps": found.global_step}


serve({"versions": {"transformers": transformers.__version__, "torch": torch.__version__}}, epoch)
