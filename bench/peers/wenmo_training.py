"""Steps of training by Wenmo's own loop: {"step": n} → seconds, loss; {"peak": true} → the rate of a bf16 product.

    {"shape": …, "dtype": …, "compiled": … (a recipe's train.compile)}
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from program import given, serve
from shapes import ids_and_labels, shape

import wenmo
from wenmo import device
from wenmo.data.sequence import Batch, Sequence, collate
from wenmo.models import create
from wenmo.models.bert import BertConfig
from wenmo.models.llama import LlamaConfig
from wenmo.nn.compiled import compile_blocks
from wenmo.objectives import language_modeling
from wenmo.training import optimizer
from wenmo.training.loop import LoopSettings, StepResult
from wenmo.training.loop import steps as training_steps

MOST_STEPS = 1_000_000

settings = given()
of = shape(settings["shape"])
on = device.choose("cpu", settings["dtype"])
common: dict[str, Any] = {"vocab_size": of.V, "hidden_size": of.D, "num_hidden_layers": of.L,
                          "num_attention_heads": of.N, "intermediate_size": of.FF, "max_position_embeddings": of.T,
                          "tie_word_embeddings": True}
config = BertConfig(**common) if of.kind == "masked" else LlamaConfig(**common, num_key_value_heads=of.K)
head = "masked_lm" if of.kind == "masked" else "causal_lm"
model = create(config, {head: 0}, torch.Generator().manual_seed(0))
model.compute_dtype = on.dtype
if settings.get("compiled"):
    compile_blocks(model)
asked_step = 0


def batches(_: int) -> list[Batch]:
    ids_BT, labels_BT = ids_and_labels(of, asked_step)
    if of.kind == "causal":
        labels_BT = torch.cat([labels_BT[:, 1:], torch.full((of.B, 1), -100)], dim=1)
    rows = zip(ids_BT.numpy(), labels_BT.numpy(), strict=True)
    return [collate(Sequence(i, {"ids": ids, "targets": labels}) for i, (ids, labels) in enumerate(rows))]


steps: Iterator[StepResult] = training_steps(
    model, optimizer.build(model, optimizer.AdamW()), language_modeling(), batches, lr_factor=lambda _: 1.0,
    total_steps=MOST_STEPS, settings=LoopSettings(), device=on, seed=0)


def gemm_peak() -> float:
    """FLOP/s of the best of ten bf16 products at 4096³."""
    a, b = (torch.randn(4096, 4096).bfloat16() for _ in range(2))
    c = torch.empty(4096, 4096, dtype=torch.bfloat16)
    best = math.inf
    for _ in range(10):
        began = time.perf_counter()
        torch.mm(a, b, out=c)
        best = min(best, time.perf_counter() - began)
    return 2 * 4096**3 / best


def work(asked: dict[str, Any]) -> dict[str, Any]:
    global asked_step
    if "peak" in asked:
        return {"peak": gemm_peak()}
    asked_step = asked["step"]
    result = next(steps)
    return {"seconds": result.seconds, "loss": result.loss}


parameters = sum(p.numel() for p in model.parameters())
serve({"parameters": parameters, "flops_per_token": of.flops_per_token(parameters),
       "versions": {"wenmo": wenmo.__version__, "torch": torch.__version__}}, work)
