"""What longer pre-training is worth: sentiment of shop reviews by the tokens that the encoder has read.

    python -m bench.pretraining_curve figures --out runs/curve

`figures` is the data root that bench.prepare makes. One encoder, that of recipes/results/shop-encoder.yaml, is trained
at a constant rate, and longer from point to point; at each point a copy of it goes on while its rate falls (a fifth of
all that the copy has read: WSD, Hu et al. 2024, §4), and is fine-tuned by recipes/results/shop-sentiment.yaml with each
seed. The same command goes on where it was stopped; `--only` divides the work between two processes, of which the
second waits for what the first has not made yet.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.over_seeds import train_whole
from wenmo.config import read_yaml
from wenmo.ensemble import load_all
from wenmo.evaluation import evaluate
from wenmo.files import read_jsonl, write_json
from wenmo.metrics import mean_of_runs

RECIPES = Path(__file__).parent.parent / "recipes" / "results"
POINTS = (1_500, 10_000)  # steps of 4,096 tokens, those of the falling rate among them
FALLING = 0.2
WARMUP = 150
WAIT = 20  # seconds
PARTS = ("choose", "report")


def encoder(threads: int) -> dict[str, Any]:
    recipe = read_yaml(RECIPES / "shop-encoder.yaml")
    recipe["train"].update(threads=threads, save_every=500, evaluate_every=500)
    return recipe


def stable_steps(steps: int) -> int:
    return steps - round(FALLING * steps)


def longer(figures: Path, out: Path, steps: int, threads: int) -> None:
    """The one encoder up to where the rate of the point falls, and a copy of its Run from there."""
    copy = branch(out, steps)
    if copy.exists():
        return
    stable = stable_steps(steps)
    train_whole(encoder(threads), f"train.steps={stable}", f"train.schedule={{type: constant, warmup: {WARMUP}}}",
                out=out / "trunk", data_root=figures)
    unfinished = copy.with_name(f"{copy.name}.copying")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(out / "trunk", unfinished, ignore=shutil.ignore_patterns("model", "best", ".lock*"))
    unfinished.rename(copy)


def branch(out: Path, steps: int) -> Path:
    return out / f"encoder-{steps}"


def falling(figures: Path, out: Path, steps: int, threads: int) -> dict[str, float]:
    """The copy goes on while its rate falls → what it came to: seconds of this machine, those before it included."""
    folder = branch(out, steps)
    train_whole(encoder(threads), f"train.steps={steps}",
                f"train.schedule={{type: wsd, warmup: {WARMUP}, decay: {steps - stable_steps(steps)}}}",
                out=folder, data_root=figures)
    card = json.loads((folder / "model" / "wenmo.json").read_text(encoding="utf-8"))
    return {"tokens": card["lineage"]["tokens"], "loss": card["scores"]["choose"]["loss"],
            "seconds": json.loads((folder / "cost.json").read_text(encoding="utf-8"))["actual"]["seconds"]}


def tuned(figures: Path, out: Path, steps: int, seed: int, threads: int) -> dict[str, float]:
    """Fine-tuned → accuracy on the rows for choosing, and on those reported."""
    folder = out / f"sentiment-{steps}-{seed}"
    train_whole(read_yaml(RECIPES / "shop-sentiment.yaml"), f"seed={seed}", f"train.threads={threads}",
                f"model.from={branch(out, steps).resolve()}", out=folder, data_root=figures)
    found = {}
    for part in PARTS:
        rows = read_jsonl(figures / "shop" / f"{part}.jsonl")
        score, _ = evaluate(load_all([str(folder)], threads=threads), rows, part, seed=0)
        found[part] = score.metrics["accuracy"].value
    return found


def once(record: Path, make: Callable[..., dict[str, float]], *given: Any) -> dict[str, float]:
    """What stands in the file, made first if there is none."""
    if not record.exists():
        write_json(record, make(*given))
    found: dict[str, float] = json.loads(record.read_text(encoding="utf-8"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--points", type=int, nargs="+", default=POINTS, help="steps of 4,096 tokens")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=("encoder", "points"), help="one half of the work, beside a second process")
    given = parser.parse_args()
    for steps in sorted(given.points):
        if given.only != "points":
            longer(given.figures, given.out, steps, given.threads)
        if given.only == "encoder":
            continue
        while not branch(given.out, steps).exists():
            time.sleep(WAIT)
        found = once(given.out / f"encoder-{steps}.json", falling, given.figures, given.out, steps, given.threads)
        each = [once(given.out / f"sentiment-{steps}-{seed}.json", tuned, given.figures, given.out, steps, seed,
                     given.threads) for seed in range(given.seeds)]
        accuracies = {part: [one[part] for one in each] for part in PARTS}
        print(json.dumps({"steps": steps, **found, **{
            part: {"each": each, **mean_of_runs(each)[0].as_dict()} for part, each in accuracies.items()}}), flush=True)


if __name__ == "__main__":
    main()
