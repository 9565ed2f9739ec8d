"""`wenmo compress`: a model → the same in 8 or 4 bits, with what that costs measured on texts held out.

The measure is the task's own, before in fp32 and after as the engine computes it: with activations in 8 bits for int8,
in 16 for int4. What was measured stands in the new folder's wenmo.json, and so does what it was made from.
"""

from __future__ import annotations

import copy
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from wenmo import golden
from wenmo.compress import CompressSettings
from wenmo.compress import compress as in_few_bits
from wenmo.config import parse
from wenmo.data.examples import Rows
from wenmo.data.given import rows_of
from wenmo.data.loader import evaluation_batches
from wenmo.data.sequence import Sequence as Tokens
from wenmo.data.sequence import examples_of
from wenmo.device import numpy_rng
from wenmo.engine.native import threads_for
from wenmo.engine.packed import pack
from wenmo.errors import DataError, say
from wenmo.evaluation import evaluate
from wenmo.files import sha256
from wenmo.levels import GROUP
from wenmo.loaded import BATCH_TOKENS, Asked, Loaded, load
from wenmo.locate import locate
from wenmo.metrics import lower_is_better
from wenmo.modeldir import CARD, mark_quantized, save_model, weights_sha256
from wenmo.objectives import hidden_of
from wenmo.stages.out_folder import refuse_other_things
from wenmo.stages.prepare import columns_in, values_of
from wenmo.tasks import Task

_log = logging.getLogger(__name__)
HELD_OUT = 10  # of so many rows one is held out, where no file for it is given


def compress(reference: str, out: Path, settings: Mapping[str, Any], *, calibration: str | None = None,
             held_out: str | None = None, task: str | None = None, source: Mapping[str, Any] | None = None,
             threads: int | None = None) -> dict[str, Any]:
    """Writes OUT and says what it is: the part `quantization` of its wenmo.json, and "model".

    Rows to measure on are those of the file `held_out`, or a tenth of those of `calibration`, which are then not
    calibrated on. UsageError where a method has no texts to calibrate on; DataError for a file without enough rows.
    """
    chosen_settings = parse(CompressSettings, settings, "compress")
    refuse_other_things(out, CARD, "config.json", read=(locate(reference),))
    loaded = load(reference, device="cpu", threads=threads)
    chosen, opened = loaded.task(task), loaded.opened
    learn, rows = _rows(loaded, chosen, calibration, held_out, source or {}, chosen_settings.seed)
    sequences = _sequences(loaded, chosen, learn, chosen_settings)
    parent = {"reference": reference, "sha256": weights_sha256(loaded.model)}
    before = _measured(loaded, task, rows)
    entries = opened.card.get("golden")
    if not entries and opened.tokenizer is not None:
        entries = golden.record(loaded.model, opened.tokenizer)
    made = in_few_bits(loaded.model, chosen_settings, _runs(loaded, sequences) if sequences else None)
    facts: dict[str, Any] = {
        "format": chosen_settings.format, "method": chosen_settings.method, **({"group": GROUP} if made.num_maps[4]
                                                                               else {}),
        "matrices": {f"int{bits}": number for bits, number in made.num_maps.items() if number},
        "bytes": {"before": made.bytes_before, "after": made.bytes_after}, "parent": parent}
    if chosen_settings.method == "gptq":
        ids = [np.asarray(part.tokens["ids"]).tobytes() for example in sequences for part in example]
        facts["calibration"] = {"data": calibration, "tokens": sum(len(part) for each in sequences for part in each),
                                "sha256": sha256(*ids)}
    if rows:
        facts["held_out"] = {"data": held_out or calibration, "rows": len(rows), "task": chosen.name,
                             "sha256": sha256(*(json.dumps(row, sort_keys=True, default=str) for row in rows))}
        facts |= {"before": before, "after": _measured(_as_served(loaded, chosen_settings.format), task, rows)}
    if entries and opened.tokenizer is not None:
        facts["golden_difference"] = golden.check(loaded.model, opened.tokenizer, entries, reference, math.inf)
        opened.card["golden"] = golden.record(loaded.model, opened.tokenizer)
    opened.card = {name: value for name, value in opened.card.items() if name != "scores"}  # they were the parent's
    opened.card["lineage"] = {**opened.card.get("lineage", {}), "compressed": parent}
    mark_quantized(opened, facts)
    save_model(out, opened)
    return {"model": str(out), **facts}


def sentences(facts: Mapping[str, Any]) -> list[str]:
    """What `compress` gives, in words."""
    size, matrices = facts["bytes"], ", ".join(f"{name} × {number}" for name, number in facts["matrices"].items())
    found = [f"{facts['model']}: {facts['format']} ({facts['method']}), {matrices}",
             say(f"{size['before'] / 1e6:.1f} MB → {size['after'] / 1e6:.1f} MB",
                 f"{size['before'] / 1e6:.1f} MB → {size['after'] / 1e6:.1f} MB")]
    for name, value in facts.get("before", {}).items():
        after = facts["after"][name]
        change = f" ({(after / value - 1):+.2%})" if value and lower_is_better(name) else f" ({after - value:+.4f})"
        found.append(f"{name}: {value:.4f} → {after:.4f}{change}")
    if "golden_difference" in facts:
        found.append(say(f"golden prompts: the largest difference is {facts['golden_difference']:.3g}",
                         f"黄金提示：最大差异为 {facts['golden_difference']:.3g}"))
    return found


def _rows(loaded: Loaded, task: Task, calibration: str | None, held_out: str | None, source: Mapping[str, Any],
          seed: int) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """(to calibrate on, to measure on)."""
    trained_on = loaded.opened.card.get("source", {})

    def read(path: str, *, with_targets: bool) -> list[Mapping[str, Any]]:
        columns = columns_in(path, task.settings, source, trained_on, with_targets=with_targets)
        return values_of(rows_of(path, columns, given=source, trained_on=trained_on).rows)

    measured = [] if held_out is None else read(held_out, with_targets=True)
    if calibration is None:
        return [], measured
    rows = read(calibration, with_targets=held_out is None)
    if held_out is not None:
        return rows, measured
    if len(rows) < 2:
        raise DataError(
            say("of a single row none can be held out to measure on", "仅有一行，无法留出用于衡量的数据"),
            where=calibration, mend=say("give a file of other texts: --held-out FILE", "请另给文本：--held-out 文件"))
    apart = numpy_rng("compress", "held out", seed).permutation(len(rows))
    cut = max(1, len(rows) // HELD_OUT)
    return [rows[index] for index in sorted(apart[cut:])], [rows[index] for index in sorted(apart[:cut])]


def _sequences(loaded: Loaded, task: Task, rows: Sequence[Mapping[str, Any]], settings: CompressSettings,
               ) -> list[list[Tokens]]:
    """Windows of the rows, drawn by the seed, until there are enough tokens."""
    if not rows or settings.method != "gptq":
        return []
    asked = loaded.asked(rows, task)
    examples = [example for row in asked if isinstance(row, Asked) for example in examples_of(row.encoded.sequences)]
    if not examples:
        raise DataError(say("no row can be calibrated on", "没有可用于校准的数据"),
                        mend=say("check the file and its columns", "请检查文件及其列"))
    chosen: list[list[Tokens]] = []
    num_tokens = 0
    for index in numpy_rng("compress", "calibration", settings.seed).permutation(len(examples)):
        chosen.append([replace(part, row=len(chosen)) for part in examples[index]])
        num_tokens += sum(map(len, chosen[-1]))
        if num_tokens >= settings.calibration_tokens:
            break
    return chosen


def _runs(loaded: Loaded, sequences: list[list[Tokens]]) -> Callable[[], None]:
    """Runs the model's body over the sequences."""

    def run() -> None:
        for batch in evaluation_batches(Rows(sequences), BATCH_TOKENS):
            for flat in batch.roles.values():
                hidden_of(loaded.model, flat)

    return run


def _as_served(loaded: Loaded, format: Any) -> Loaded:
    """A copy that computes as the engine does."""
    served = Loaded(replace(loaded.opened, model=copy.deepcopy(loaded.model)), loaded.on, loaded.reference)
    pack(served.model, format, threads_for(served.model, "auto"))
    return served


def _measured(loaded: Loaded, task: str | None, rows: list[Mapping[str, Any]]) -> dict[str, float]:
    if not rows:
        return {}
    report, _ = evaluate(loaded, rows, "", task=task)
    return {name: round(estimate.value, 6) for name, estimate in report.metrics.items()}
