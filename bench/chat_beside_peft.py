"""An adapter for chat by Wenmo and by PEFT: the same model, rows, steps, rates and rank; both measured alike.

    python -m bench.prepare ../shared/data figures
    python -m bench.chat_beside_peft recipes/results/smollm2-chat-en.yaml figures ../shared/data runs/beside-peft-en

PEFT trains as its users have it: transformers' forward on padded rows, loss by labels, torch's AdamW. It gets the ids
and labels that Wenmo's own steps get. Both adapters, and the model without one, then go through the same evaluation:
bits per byte of the assistant's part on the report rows, perplexity on the beginning of wikitext-2's validation text.
About 17 minutes of one free core for 40 steps. One JSON object on stdout; a run that is there already is not repeated.
"""

from __future__ import annotations

import gzip
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from torch.nn.utils.rnn import pad_sequence

from wenmo import device
from wenmo.data.loader import Loader
from wenmo.data.sequence import Batch
from wenmo.loaded import Loaded, load
from wenmo.modeldir import open_model, open_tokenizer, save_model
from wenmo.models.lora import LoraSettings
from wenmo.recipe import FromModel, Recipe, read_recipe
from wenmo.stages import prepare
from wenmo.stages.prepare import Corpus
from wenmo.stages.train import train
from wenmo.tasks import Lengths, create_task
from wenmo.tasks.language_modeling import CausalLMSettings
from wenmo.training.schedule import Rates

STEPS = 40
WIKITEXT_CHARACTERS = 40_000


def run(path: Path, figures: Path, data: Path, out: Path, steps: int = STEPS) -> dict[str, Any]:
    base = out / "base"
    reference = read_recipe(path).model
    assert isinstance(reference, FromModel)
    if not base.exists():
        save_model(base, open_model(reference.reference))
    recipe = read_recipe(path, (f"train.steps={steps}", f"model.from={base}", "train.threads=1",
                                f"train.evaluate_every={steps}"))
    seconds = {"wenmo": train(recipe, out / "wenmo", data_root=figures).seconds}
    if not (out / "peft").exists():
        seconds["peft"] = _train_with_peft(recipe, base, figures, out)
    found = {name: _measured(load(place), recipe, figures, data)
             for name, place in (("before", base), ("wenmo", out / "wenmo"), ("peft", out / "peft"))}
    bits = {name: each["bits_per_byte"] for name, each in found.items()}
    return {"steps": steps, "seconds": seconds, **found, "ratio_to_peft": bits["wenmo"] / bits["peft"],
            "forgotten": found["wenmo"]["wikitext_perplexity"] / found["before"]["wikitext_perplexity"]}


def _train_with_peft(recipe: Recipe, base: Path, figures: Path, out: Path) -> float:
    assert isinstance(recipe.model, FromModel)
    assert recipe.model.lora is not None
    on = device.choose("cpu", recipe.train.dtype, 1)
    corpus = Corpus(recipe, figures)
    rows = corpus.read(out / "quarantine.jsonl")
    task = prepare.task_for(recipe, open_tokenizer(str(base)), rows)
    examples, _ = prepare.examples_for(task, rows, prepare.run_facts(corpus), out / "shards", recipe.seed,
                                         recipe.data)
    loader = Loader(examples, recipe.train.batch_tokens, recipe.train.accumulation, recipe.seed)
    torch.manual_seed(recipe.seed)
    plain = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=on.dtype)
    model = peft.get_peft_model(plain, _peft_config(recipe.model.lora)).train()
    settings = recipe.train.optimizer
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=settings.lr,
                                  betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay)
    assert recipe.train.steps is not None
    rates = Rates(schedule=recipe.train.schedule, total_steps=recipe.train.steps)
    began = time.perf_counter()
    for step in range(recipe.train.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * rates.factor(step)
        batches = [_padded(batch) for batch in loader.batches(step)]
        num_learned = sum(int((labels[:, 1:] != -100).sum()) for _, _, labels in batches)
        for ids, mask, labels in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=on.dtype == torch.bfloat16):
                loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
            (loss * int((labels[:, 1:] != -100).sum()) / num_learned).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.train.clip or float("inf"))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        logging.info("peft: step %d, %.0f s", step + 1, time.perf_counter() - began)
    seconds = time.perf_counter() - began
    model.save_pretrained(out / "peft")
    return seconds


def _peft_config(lora: LoraSettings) -> peft.LoraConfig:
    return peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, use_dora=lora.dora,
                           use_rslora=lora.rslora, target_modules=list(lora.targets or ()) or "all-linear",
                           task_type="CAUSAL_LM")


def _padded(batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ids, mask and labels, [B, T]; transformers shifts the labels itself."""
    lengths = list(batch.text.lengths)
    ids = batch.text.ids_M.split(lengths)
    targets = batch.text.tokens["targets"].split(lengths)
    # Our last target has no token of its own: transformers wants it at the end of the ids.
    whole = [torch.cat([row, target[-1:]]) for row, target in zip(ids, targets, strict=True)]
    labels = [torch.cat([torch.tensor([-100]), target]) for target in targets]
    mask = [torch.ones_like(row) for row in whole]
    return (pad_sequence(whole, batch_first=True), pad_sequence(mask, batch_first=True),
            pad_sequence(labels, batch_first=True, padding_value=-100))


def _measured(loaded: Loaded, recipe: Recipe, figures: Path, data: Path) -> dict[str, Any]:
    chat = create_task(recipe.task, loaded.tokenizer, recipe.data.lengths)
    rows = [json.loads(line) for source in recipe.data.report
            for line in (figures / source.path).read_text(encoding="utf-8").splitlines()]
    report = chat.measure(rows, loaded.outputs(rows, chat, with_targets=True), 0)
    texts = create_task(CausalLMSettings(), loaded.tokenizer, Lengths(max_tokens=1024))
    with gzip.open(data / "wikitext-2" / "valid.txt.gz", "rt", encoding="utf-8") as file:
        text = [{"text": file.read(WIKITEXT_CHARACTERS)}]
    wikitext = texts.measure(text, loaded.outputs(text, texts, with_targets=True), 0)
    estimate = report.metrics["bits_per_byte"]
    return {"n": report.n, "bits_per_byte": estimate.value, "low": estimate.low, "high": estimate.high,
            "perplexity": report.metrics["perplexity"].value,
            "wikitext_perplexity": wikitext.metrics["perplexity"].value}


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    places = [Path(argument) for argument in sys.argv[1:5]]
    print(json.dumps(run(*places, *map(int, sys.argv[5:6])), indent=2))
