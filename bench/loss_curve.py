"""Is what is fast still the same training? The losses of 200 steps beside the plain path.

A small Llama reads the bytes of this repository's pages, from the same weights on the same batches: in Wenmo's bf16, in
transformers' fp32 with eager attention (the plain path: every formula written out), and in transformers' bf16, which
shows how far two ways of rounding part.

    python -m bench.loss_curve [STEPS]
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from bench.environments import ENVIRONMENTS, python, settings
from bench.plot import plot
from bench.rounds import row, write
from wenmo import device
from wenmo.data.sequence import Batch, Sequence, collate
from wenmo.models import create
from wenmo.models.llama import LlamaConfig
from wenmo.objectives import language_modeling
from wenmo.training import optimizer
from wenmo.training.loop import LoopSettings
from wenmo.training.loop import steps as training_steps

STEPS, B, T, LR = 200, 8, 256, 3e-4
WINDOW = 20  # the mean over as many steps is compared
PAGES = Path(__file__).parent.parent
CONFIG: dict[str, Any] = {"vocab_size": 256, "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
                          "num_key_value_heads": 2, "intermediate_size": 704, "max_position_embeddings": T,
                          "tie_word_embeddings": True}


def ids(num_steps: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """[steps, B, T] bytes of the pages, cut out at random places."""
    pages = sorted([*PAGES.glob("*.md"), *PAGES.glob("docs/*.md")])
    text = np.frombuffer(b"\n".join(page.read_bytes() for page in pages), dtype=np.uint8)
    starts = device.numpy_rng("loss curve").integers(0, len(text) - T, (num_steps, B))
    found: np.ndarray[Any, np.dtype[np.int64]] = text[starts[:, :, None] + np.arange(T)].astype(np.int64)
    return found


def ours(all_ids: np.ndarray[Any, np.dtype[np.int64]], weights: Path) -> list[float]:
    model = create(LlamaConfig(**CONFIG), {"causal_lm": 0}, torch.Generator().manual_seed(0))
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, weights)
    on = device.choose("cpu", "bf16")
    model.compute_dtype = on.dtype

    def batches(step: int) -> list[Batch]:
        return [collate(Sequence(i, {"ids": each, "targets": np.append(each[1:], -100)})
                        for i, each in enumerate(all_ids[step]))]

    results = training_steps(model, optimizer.build(model, optimizer.AdamW(lr=LR)), language_modeling(), batches,
                             lr_factor=lambda _: 1.0, total_steps=len(all_ids), settings=LoopSettings(), device=on,
                             seed=0)
    return [result.loss for result in results]


def run(num_steps: int = STEPS) -> None:
    folder = ENVIRONMENTS / "loss-curve"
    folder.mkdir(parents=True, exist_ok=True)
    all_ids = ids(num_steps)
    np.save(folder / "ids.npy", all_ids)
    curves = {"Wenmo, bf16": ours(all_ids, folder / "weights.safetensors")}
    versions: dict[str, str] = {}
    for dtype in ("fp32", "bf16"):
        given = {"config": CONFIG, "weights": str(folder / "weights.safetensors"), "ids": str(folder / "ids.npy"),
                 "dtype": dtype, "lr": LR}
        script = Path(__file__).parent / "peers" / "transformers_losses.py"
        done = subprocess.run([python("transformers"), script, json.dumps(given)], env=settings(), check=True,
                              text=True, stdout=subprocess.PIPE)
        found = json.loads(done.stdout.splitlines()[-1])
        curves[f"transformers, {dtype}"] = found["losses"]
        versions |= found["versions"]
    plain = np.array(curves["transformers, fp32"])
    off = {name: np.abs(np.array(curve) - plain) for name, curve in curves.items()}
    bound = float(off["transformers, bf16"].max())
    rows = []
    for end in range(max(WINDOW, num_steps // 5), num_steps + 1, max(1, num_steps // 5)):
        means = {name: float(np.mean(curve[end - WINDOW : end])) for name, curve in curves.items()}
        rows.append(row(f"mean loss of the steps {end - WINDOW + 1} to {end}", "", f"{means['Wenmo, bf16']:.4f}",
                        "transformers, fp32, eager", f"{means['transformers, fp32']:.4f}",
                        note=f"transformers, bf16: {means['transformers, bf16']:.4f}"))
    furthest = float(off["Wenmo, bf16"].max())
    rows.append(row(f"furthest from that curve in {num_steps} steps", "", f"{furthest:.4f}", "transformers, bf16",
                    f"{bound:.4f}", goal="≤ 1.5 × its bf16", reached=furthest <= 1.5 * bound))
    write("loss_curve", {
        "title": "Losses beside the plain path", "title_zh": "损失与朴素实现的比较", "rows": rows, "versions": versions,
        "curves": curves,
        "plots": [plot("loss-curve", "Losses of the same training, step by step 逐步损失", "step", "nats a byte",
                       {name: [[step, loss] for step, loss in enumerate(curve, 1)] for name, curve in curves.items()},
                       smooth=True),
                  plot("loss-difference", "Loss minus that of transformers in fp32 与 fp32 朴素实现的损失之差", "step",
                       "nats a byte", {name: [[step, loss - exact] for step, (loss, exact) in
                                             enumerate(zip(curve, curves["transformers, fp32"], strict=True), 1)]
                                      for name, curve in curves.items() if name != "transformers, fp32"})],
        "about": ["The same weights, batches and optimizer; nats a byte of this repository's pages, a Llama of 3M "
                  "parameters, from the first step at the full rate."]})


if __name__ == "__main__":
    run(int(sys.argv[1]) if len(sys.argv) > 1 else STEPS)
