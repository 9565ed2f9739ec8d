"""A corpus tokenised and cut into blocks by datasets.map, batched and in processes, as transformers' run_clm does it.

    python datasets_packing.py '{"corpus": FILE.jsonl, "tokenizer": DIR, "tokens": 512, "processes": 2, "out": DIR}'
"""

from __future__ import annotations

import itertools
import os
import resource
import time
from typing import Any

from program import answer, given

settings = given()
os.environ["HF_DATASETS_CACHE"] = settings["out"]

import datasets  # noqa: E402 (its cache is named before)
import transformers  # noqa: E402

datasets.disable_progress_bars()
tokenizer = transformers.AutoTokenizer.from_pretrained(settings["tokenizer"])
length = settings["tokens"]


def tokenise(rows: dict[str, list[Any]]) -> Any:
    return tokenizer([text + tokenizer.eos_token for text in rows["text"]])


def in_blocks(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    whole = {name: list(itertools.chain(*parts)) for name, parts in rows.items()}
    end = len(whole["input_ids"]) // length * length
    made = {name: [ids[i : i + length] for i in range(0, end, length)] for name, ids in whole.items()}
    made["labels"] = made["input_ids"].copy()
    return made


rows = datasets.load_dataset("json", data_files=settings["corpus"], split="train")
began = time.perf_counter()
encoded = rows.map(tokenise, batched=True, num_proc=settings["processes"], remove_columns=rows.column_names)
packed = encoded.map(in_blocks, batched=True, num_proc=settings["processes"])
seconds = time.perf_counter() - began
peaks = [resource.getrusage(who).ru_maxrss * 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
answer({"seconds": seconds, "tokens": len(packed) * length, "peak_bytes": max(peaks), "datasets": datasets.__version__,
        "transformers": transformers.__version__})
