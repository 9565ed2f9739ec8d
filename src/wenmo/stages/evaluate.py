"""`wenmo evaluate`: a model and a file of rows → a Report; every evaluation of a Run is written down in it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wenmo.device import DType
from wenmo.errors import DataError, StorageError, say
from wenmo.evaluation import evaluate as measure
from wenmo.evaluation.beside import baseline_name, beside
from wenmo.files import append_jsonl, read_jsonl, sha256_file, storage_errors, write_jsonl
from wenmo.loaded import load
from wenmo.report import Report, verdict
from wenmo.stages.prepare import rows_of, values_of

_log = logging.getLogger(__name__)


def evaluate(model: str, data: str, *, task: str | None = None, source: Mapping[str, Any] | None = None,
             predictions: Path | None = None, baseline: str | None = None, seed: int = 0, threads: int | None = None,
             dtype: DType = "fp32") -> Report:
    """Scores of a model on a file; beside the task's simple baseline, learnt from the rows of the file `baseline`.

    Raises DataError for a missing column or a label never seen in training.
    """
    if predictions is not None:  # before the work, not after it
        with storage_errors(predictions):
            predictions.parent.mkdir(parents=True, exist_ok=True)
    loaded = load(model, threads=threads, dtype=dtype)
    chosen = loaded.task(task)
    columns = (*chosen.settings.columns, *chosen.settings.target_columns)
    other = None if baseline is None else baseline_name(chosen)
    rows = rows_of(data, columns, given=source or {}, trained_on=loaded.opened.card.get("source", {}))
    if rows.counts.quarantined:
        _log.warning(say(f"{rows.counts.quarantined:,} rows could not be read and are not in the score",
                         f"{rows.counts.quarantined:,} 行无法读取，未计入评分"))
    values = values_of(rows.rows)
    if not values:
        raise DataError(say("no rows to evaluate on", "没有可评测的数据"), where=data,
                        mend=say("check the file and its columns", "请检查文件及其列"))
    report, answers = measure(loaded, values, data, task=task, seed=seed)
    if baseline is not None and other is not None:
        learnt = rows_of(baseline, columns, given=source or {}, trained_on=loaded.opened.card.get("source", {}))
        report = beside(report, chosen, loaded.tokenizer, values, answers, values_of(learnt.rows))
        metric = "bits_per_character" if chosen.name == "causal_lm" else "accuracy"
        _log.info(verdict(model, other, metric, report.metrics["difference"])[1])
    _write_down(Path(model), Path(data), report)
    if predictions is not None:
        write_jsonl(predictions, ({**row, **named(answer)} for row, answer in zip(values, answers, strict=True)))
    return report


def named(answer: Mapping[str, Any]) -> dict[str, Any]:
    """An answer beside the row's own columns: what was predicted never overwrites what was given."""
    return {"prediction" if name == "label" else name: value for name, value in answer.items()}


def _write_down(model: Path, data: Path, report: Report) -> None:
    """A Run's evaluations.jsonl: which data were looked at, and how often (a test set seen twice is one no more)."""
    if not (model / "run.json").exists() or not data.is_file():
        return
    log = model / "evaluations.jsonl"
    digest = sha256_file(data)
    before = sum(row["data_sha256"] == digest for row in read_jsonl(log)) if log.exists() else 0
    if before:
        _log.warning(say(f"this model was evaluated on these data before ({before}×)",
                         f"该模型此前已在这些数据上评测过 {before} 次"))
    try:
        append_jsonl(log, {"time": time.strftime("%Y-%m-%dT%H:%M:%S"), "data_sha256": digest, **report.as_dict()})
    except StorageError as error:  # a model in someone else's folder can be measured too
        _log.warning(say(f"not written down: {error.what} ({error.where})", f"未记录：{error.what}（{error.where}）"))
