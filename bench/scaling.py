"""Cost against size: tokens a second of training from 3M to 135M parameters, beside the peers and the formula; at 30M
also for longer sequences, and for steps of more tokens.

The formula is 6 N + 6 L T D floating-point operations a token at one rate. The rate is that of the largest model; what
smaller ones fall short of it is the cost of small products and of what is not a product.

    python -m bench.scaling [ROUNDS]
"""

from __future__ import annotations

import sys
from typing import Any

from bench.peers.shapes import Shape
from bench.plot import plot
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
B_SHAPES = {f"30M, steps of {512 * B:,} tokens": Shape("causal", 8192, 512, 8, 8, 8, 1408, 512, B) for B in (2, 4, 16)}


def plots(found: dict[str, dict[str, Any]], by_formula: dict[str, float]) -> list[dict[str, Any]]:
    """Cost against parameters, against the length of a sequence, and against the tokens of a step. `by_formula`:
    seconds a token."""
    def lines(places: dict[str, float], scale: dict[str, float]) -> dict[str, list[list[float]]]:
        """Milliseconds a token, times `scale`, of each side."""
        seconds = {side: {name: 1 / found[name]["medians"][side] for name in places}
                   for side in ("Wenmo", EAGER.name, NANO.name)}
        in_order = sorted(places, key=places.__getitem__)
        return {side: [[places[name], 1000 * scale[name] * each[name]] for name in in_order] for side, each in
                {**seconds, "the formula 公式": by_formula}.items()}

    one = dict.fromkeys(found, 1.0)
    sizes = {name: found[name]["parameters"] / 1e6 for name in SHAPES}
    lengths = {name: float(shape.T) for name, shape in {"30M": SHAPES["30M"], **T_SHAPES}.items()}
    steps = {name: float(shape.B * shape.T) for name, shape in {"30M": SHAPES["30M"], **B_SHAPES}.items()}
    return [plot("cost-size", "Cost of a token against the size of the model 每词元开销与模型规模",
                 "million parameters", "ms a token", lines(sizes, one)),
            plot("cost-length", "Cost of a token against the length of sequences, 30M 每词元开销与序列长度",
                 "tokens a sequence", "ms a token", lines(lengths, one)),
            plot("cost-tokens", "Time of a step against its tokens, 30M 每步时间与词元数",
                 "tokens a step", "s a step", lines(steps, {name: each / 1000 for name, each in steps.items()}))]


def beside_each(shape: Shape, rounds: int) -> dict[str, Any]:
    """`measure` beside one peer after the other: three programs of 135M parameters do not fit into 24 GB together."""
    first, second = (measure(shape, (peer,), rounds) for peer in (EAGER, NANO))
    return {**first, **{name: {**second[name], **first[name]} for name in ("medians", "ratios", "versions")}}


def run(rounds: int) -> None:
    found: dict[str, dict[str, Any]] = {}
    versions: dict[str, str] = {}
    shapes = {**SHAPES, **T_SHAPES, **B_SHAPES}
    for name, shape in shapes.items():
        found[name] = beside_each(shape, rounds)
        versions |= found[name].pop("versions")
        print(name, {side: round(value) for side, value in found[name]["medians"].items()}, file=sys.stderr, flush=True)
    largest = list(SHAPES)[-1]
    flops = {name: shape.flops_per_token(found[name]["parameters"]) for name, shape in shapes.items()}
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
        "plots": plots(found, {name: flops[name] / rate for name in shapes}),
        "about": [f"Steps of {TOKENS:,} tokens where nothing else is said. The formula: 6 N + 6 L T D operations a "
                  f"token, at the rate that the {largest} model was trained at."]})


if __name__ == "__main__":
    run(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS)
