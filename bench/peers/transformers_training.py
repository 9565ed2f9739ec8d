"""Steps of training as users of transformers, or of a loop like nanoGPT's, write them: {"step": n} → seconds, loss.

    {"model": "transformers" or "nanoGPT-like", "shape": …, "dtype": "fp32" or "bf16", "compiled": …}

bf16 is autocast over fp32 weights, as Trainer's `bf16=True` has it.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from program import given, serve
from shapes import Shape, ids_and_labels, shape
from torch import Tensor, nn


def of_transformers(of: Shape) -> nn.Module:
    common: dict[str, Any] = {"vocab_size": of.V, "hidden_size": of.D, "num_hidden_layers": of.L,
                              "num_attention_heads": of.N, "intermediate_size": of.FF, "max_position_embeddings": of.T,
                              "tie_word_embeddings": True}
    model: nn.Module
    if of.kind == "masked":
        model = transformers.BertForMaskedLM(transformers.BertConfig(**common))
    else:
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
            **common, num_key_value_heads=of.K, use_cache=False))
    return model


class Gpt2(nn.Module):
    """The model of a nanoGPT-like loop: fused q/k/v, SDPA, GELU, layer norm, tied output; as wide inside as makes a
    layer as large as the Llama's that it stands beside."""

    def __init__(self, of: Shape) -> None:
        super().__init__()
        D = of.D
        inner = (3 * D * of.FF + 2 * D * D * of.K // of.N - 2 * D * D) // (2 * D)
        self.heads = of.N
        self.words, self.places = nn.Embedding(of.V, D), nn.Embedding(of.T, D)
        self.blocks = nn.ModuleList(nn.ModuleDict({
            "norm1": nn.LayerNorm(D, bias=False), "qkv": nn.Linear(D, 3 * D, bias=False),
            "out": nn.Linear(D, D, bias=False), "norm2": nn.LayerNorm(D, bias=False),
            "up": nn.Linear(D, inner, bias=False), "down": nn.Linear(inner, D, bias=False)}) for _ in range(of.L))
        self.norm = nn.LayerNorm(D, bias=False)
        self.head = nn.Linear(D, of.V, bias=False)
        self.words.weight = self.head.weight
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                shrink = math.sqrt(2 * of.L) if name.endswith(("out.weight", "down.weight")) else 1
                nn.init.normal_(parameter, std=0.02 / shrink)

    def forward(self, ids_BT: Tensor) -> Tensor:
        B, T = ids_BT.shape
        x = self.words(ids_BT) + self.places(torch.arange(T))
        block: Any
        for block in self.blocks:
            q, k, v = (part.view(B, T, self.heads, -1).transpose(1, 2)
                       for part in block["qkv"](block["norm1"](x)).split(x.shape[-1], dim=2))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + block["out"](y.transpose(1, 2).reshape(B, T, -1))
            x = x + block["down"](F.gelu(block["up"](block["norm2"](x))))
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]).float(), ids_BT[:, 1:].reshape(-1))


settings = given()
of = shape(settings["shape"])
torch.manual_seed(0)
model = (Gpt2(of) if settings["model"] == "nanoGPT-like" else of_transformers(of)).train()
called: Any = torch.compile(model) if settings["compiled"] else model
adamw = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)


def loss_of(step: int) -> Tensor:
    ids_BT, labels_BT = ids_and_labels(of, step)
    with torch.autocast("cpu", torch.bfloat16, enabled=settings["dtype"] == "bf16"):
        if settings["model"] == "nanoGPT-like":
            loss: Tensor = called(ids_BT)
        else:
            loss = called(input_ids=ids_BT, labels=labels_BT).loss
    return loss


def work(asked: dict[str, Any]) -> dict[str, Any]:
    began = time.perf_counter()
    loss = loss_of(asked["step"])
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    adamw.step()
    adamw.zero_grad(set_to_none=True)
    value = loss.item()
    return {"seconds": time.perf_counter() - began, "loss": value}


serve({"parameters": sum(p.numel() for p in model.parameters()),
       "versions": {"torch": torch.__version__, "transformers": transformers.__version__}}, work)
