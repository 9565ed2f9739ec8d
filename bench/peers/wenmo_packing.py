"""A corpus to token shards by Wenmo: the rows streamed, tokenised on all cores, written as they come.

    python wenmo_packing.py '{"corpus": FILE.jsonl, "tokenizer": DIR, "tokens": 512, "out": DIR}'
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from program import answer, given

from wenmo import device
from wenmo.tasks import Lengths, create_task
from wenmo.tasks.language_modeling import CausalLMSettings
from wenmo.text.tokenizer import Tokenizer

settings = given()
device.keep_memory()
task = create_task(CausalLMSettings(), Tokenizer.load(Path(settings["tokenizer"])),
                   Lengths(max_tokens=settings["tokens"]))


def rows() -> Iterator[dict[str, str]]:
    with open(settings["corpus"], encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


before = device.peak_memory_bytes(torch.device("cpu"))
began = time.perf_counter()
built = task.build(rows(), Path(settings["out"]), 0, "bench")
seconds = time.perf_counter() - began
answer({"seconds": seconds, "tokens": built.num_tokens, "before_bytes": before,
        "peak_bytes": device.peak_memory_bytes(torch.device("cpu"))})
