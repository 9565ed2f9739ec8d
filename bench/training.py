"""Causal LM training at one shape: transformers, a nanoGPT-like model, and Wenmo, in alternating rounds.

All get the same allocator settings, threads, AdamW (fused) and token ids; all run bf16, the peers by autocast as their
users do. Figures are tokens a second, medians over the rounds, and the ratio of Wenmo's to the fastest peer's, taken
round by round.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from wenmo import device
from wenmo.data.sequence import Sequence, collate
from wenmo.models import create
from wenmo.models.llama import LlamaConfig
from wenmo.objectives import language_modeling
from wenmo.training import optimizer


@dataclass(frozen=True)
class Shape:
    """V words, D wide, L layers, N heads, FF inner, T tokens a sequence, B sequences a step."""

    V: int = 8192
    D: int = 512
    L: int = 8
    N: int = 8
    FF: int = 1408
    T: int = 512
    B: int = 16


Step = Callable[[Tensor], float]


def wenmo_step(shape: Shape) -> tuple[Step, int]:
    config = LlamaConfig(vocab_size=shape.V, hidden_size=shape.D, num_hidden_layers=shape.L,
                         num_attention_heads=shape.N, intermediate_size=shape.FF, max_position_embeddings=shape.T,
                         tie_word_embeddings=True)
    model = create(config, {"causal_lm": 0}, torch.Generator().manual_seed(0))
    model.compute_dtype = torch.bfloat16
    objective = language_modeling()

    def loss_of(ids_BT: Tensor) -> Tensor:
        rows = ids_BT.numpy()
        batch = collate(Sequence(i, {"ids": row, "targets": np.append(row[1:], -100)}) for i, row in enumerate(rows))
        return objective.terms(model, batch)[0].sum / objective.counts(batch)["tokens"]

    adamw = optimizer.build(model, optimizer.AdamW())
    return _stepping(model, adamw, loss_of), sum(p.numel() for p in model.parameters())


def _stepping(model: nn.Module, adamw: torch.optim.Optimizer, loss_of: Callable[[Tensor], Tensor]) -> Step:
    """Loss, gradients, clipping, update: the same for all."""

    def step(ids_BT: Tensor) -> float:
        loss = loss_of(ids_BT)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        return float(loss)

    return step


def _peer(model: nn.Module, loss_of: Callable[[Tensor], Tensor]) -> tuple[Step, int]:
    adamw = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)

    def under_autocast(ids_BT: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return loss_of(ids_BT)

    return _stepping(model, adamw, under_autocast), sum(p.numel() for p in model.parameters())


def transformers_step(shape: Shape) -> tuple[Step, int]:
    config = transformers.LlamaConfig(
        vocab_size=shape.V, hidden_size=shape.D, num_hidden_layers=shape.L, num_attention_heads=shape.N,
        num_key_value_heads=shape.N, intermediate_size=shape.FF, max_position_embeddings=shape.T,
        tie_word_embeddings=True)
    model = transformers.LlamaForCausalLM(config).train()
    return _peer(model, lambda ids_BT: model(ids_BT, labels=ids_BT, use_cache=False).loss)


class _Gpt2(nn.Module):
    """The model of a nanoGPT-like loop: fused q/k/v, SDPA, GELU of four times the width, layer norm, tied output."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        D = shape.D
        self.heads = shape.N
        self.words, self.places = nn.Embedding(shape.V, D), nn.Embedding(shape.T, D)
        self.blocks = nn.ModuleList(nn.ModuleDict({
            "norm1": nn.LayerNorm(D, bias=False), "qkv": nn.Linear(D, 3 * D, bias=False),
            "out": nn.Linear(D, D, bias=False), "norm2": nn.LayerNorm(D, bias=False),
            "up": nn.Linear(D, 4 * D, bias=False), "down": nn.Linear(4 * D, D, bias=False)}) for _ in range(shape.L))
        self.norm = nn.LayerNorm(D, bias=False)
        self.head = nn.Linear(D, shape.V, bias=False)
        self.words.weight = self.head.weight
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                shrink = math.sqrt(2 * shape.L) if name.endswith(("out.weight", "down.weight")) else 1
                nn.init.normal_(parameter, std=0.02 / shrink)

    def loss(self, ids_BT: Tensor) -> Tensor:
        B, T = ids_BT.shape
        x = self.words(ids_BT) + self.places(torch.arange(T))
        for block in self.blocks:
            q, k, v = (part.view(B, T, self.heads, -1).transpose(1, 2)
                       for part in block["qkv"](block["norm1"](x)).split(x.shape[-1], dim=2))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + block["out"](y.transpose(1, 2).reshape(B, T, -1))
            x = x + block["down"](F.gelu(block["up"](block["norm2"](x))))
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]).float(), ids_BT[:, 1:].reshape(-1))


def nano_step(shape: Shape) -> tuple[Step, int]:
    model = _Gpt2(shape).train()
    return _peer(model, model.loss)


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


def run(shape: Shape = Shape(), rounds: int = 5) -> dict[str, object]:
    """{"tokens_per_second": {name: median}, "ratio_to_fastest_peer": median, …}."""
    device.keep_memory()
    made = {"wenmo": wenmo_step(shape), "transformers": transformers_step(shape), "nanoGPT-like": nano_step(shape)}
    rng = np.random.default_rng(0)
    speeds: dict[str, list[float]] = {name: [] for name in made}
    for number in range(rounds + 1):
        ids_BT = torch.from_numpy(rng.integers(0, shape.V, (shape.B, shape.T)))
        for name, (step, _) in made.items():
            began = time.perf_counter()
            step(ids_BT)
            if number:  # the first round warms up
                speeds[name].append(shape.B * shape.T / (time.perf_counter() - began))
    ratios = [mine / max(peers) for mine, *peers in zip(*speeds.values(), strict=True)]
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    peak = gemm_peak()
    flops_per_token = 6 * made["wenmo"][1] + 6 * shape.L * shape.T * shape.D
    return {
        "shape": vars(shape), "rounds": rounds, "threads": torch.get_num_threads(),
        "parameters": {name: count for name, (_, count) in made.items()},
        "tokens_per_second": {name: round(value) for name, value in medians.items()},
        "ratio_to_fastest_peer": round(statistics.median(ratios), 3), "ratios": [round(ratio, 3) for ratio in ratios],
        "model_flops_utilisation": round(medians["wenmo"] * flops_per_token / peak, 3), "gemm_peak_flops": round(peak),
    }


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
