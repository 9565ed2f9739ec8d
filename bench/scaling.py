"""Cost against size: tokens a second of training from 3M to 135M parameters, beside the peers and the formula.

The formula is 6 N + 6 L T D floating-point operations a token at one rate. The rate is that of the largest model; what
smaller ones fall short of it is the cost of small products and of what is not a product.

    python -m bench.scaling [ROUNDS]
"""

from __future__ import annotations

import sys
from typing import Any

from bench.peers.shapes import Shape
from bench.rounds import row, write
from bench.training import EAGER, NANO, measure

ROUNDS = 5
TOKENS = 4096  # a step
SHAPES = {
    "3M": Shape("causal", 4096, 192, 5, 3, 3, 512, 512, TOKENS // 512),
    "10M": Shape("causal", 8192, 320, 6, 5, 5, 832, 512, TOKENS // 512),
    "30M": Shape("causal", 8192, 512, 8, 8, 8, 1408, 512, TOKENS // 512),
    "70M": Shape("causal", 16384, 704, 10, 11, 11, 1920, 512, TOKENS // 512),
    "135M": Shape("causal", 49152, 576, 30, 9, 3, 1536, 512, TOKENS // 512),
}
T_SHAPES = {f"30M, T {T}": Shape("causal", 8192, 512, 8, 8, 8, 1408, T, TOKENS // T) for T in (256, 1024, 2048)}


def run(rounds: int) -> None:
    found: dict[str, dict[str, Any]] = {}
    versions: dict[str, str] = {}
    for name, shape in {**SHAPES, **T_SHAPES}.items():
        found[name] = measure(shape, (EAGER, NANO), rounds)
        versions |= found[name].pop("versions")
        print(name, {side: round(value) for side, value in found[name]["medians"].items()}, file=sys.stderr, flush=True)
    largest = list(SHAPES)[-1]
    flops = {name: shape.flops_per_token(found[name]["parameters"]) for name, shape in {**SHAPES, **T_SHAPES}.items()}
    rate = found[largest]["medians"]["Wenmo"] * flops[largest]
    rows = []
    for name, each in found.items():
        work = f"{name} ({each['parameters'] / 1e6:.1f}M parameters)"
        ours = each["medians"]["Wenmo"]
        for peer in (EAGER, NANO):
            rows.append(row(work, "tok/s", ours, peer.name, each["medians"][peer.name], each["ratios"][peer.name]))
        rows.append(row(work, "tok/s", ours, "the formula", rate / flops[name], None,
                        note=f"{flops[name] / 1e6:.0f} MFLOP a token"))
    write("scaling", {
        "title": "Cost against size", "title_zh": "规模与开销", "rows": rows, "versions": versions, "rounds": found,
        "about": [f"Steps of {TOKENS:,} tokens. The formula: 6 N + 6 L T D operations a token, at the rate that the "
                  f"{largest} model was trained at."]})


if __name__ == "__main__":
    run(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS)
