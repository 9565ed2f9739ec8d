"""`wenmo evaluate`: a model and a file of rows → a Report, or two models → a Comparison; every evaluation of a Run is
written down in it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from wenmo.data.given import rows_of
from wenmo.device import DType
from wenmo.ensemble import Answering, load_all
from wenmo.errors import DataError, StorageError, UsageError, say
from wenmo.evaluation import evaluate as measure
from wenmo.evaluation.beside import baseline_of, beside
from wenmo.evaluation.comparison import compare as both
from wenmo.evaluation.token_matching import estimates, token_matching
from wenmo.files import append_jsonl, read_jsonl, sha256_file, storage_errors, write_jsonl
from wenmo.loaded import Loaded, load
from wenmo.locate import RUN_RECORD
from wenmo.report import Comparison, Report, verdict
from wenmo.stages.out_folder import refuse_inputs
from wenmo.stages.prepare import place_fault, rows_to_measure, values_of
from wenmo.tasks import Joint, Task
from wenmo.tasks.task import TaskSettings
from wenmo.tasks.text_to_text import references_of
from wenmo.text.intake import Row

_log = logging.getLogger(__name__)


def evaluate(model: str, data: str, *, task: str | None = None, source: Mapping[str, Any] | None = None,
             predictions: Path | None = None, baseline: str | None = None, seed: int = 0, threads: int | None = None,
             dtype: DType = "fp32", together: Sequence[str] = (), similarity_model: str | None = None) -> Report:
    """Scores of a model on a file; beside the task's simple baseline, learnt from the rows of the file `baseline`.
    `together`: more models, which answer with it as one (ensemble.py). `similarity_model`: an encoder in whose space
    the texts that a model made are matched with their references.

    Raises DataError for a missing column or a label never seen in training.
    """
    if predictions is not None:  # before the work, not after it
        refuse_inputs(predictions, data, *([] if baseline is None else [baseline]))
        with storage_errors(predictions):
            predictions.parent.mkdir(parents=True, exist_ok=True)
    loaded = load_all([model, *together], threads=threads, dtype=dtype)
    chosen = loaded.task(task)
    columns = (*chosen.settings.columns, *chosen.settings.target_columns)
    simple, as_known = chosen.plain() if isinstance(chosen, Joint) and baseline is not None else (chosen, dict)
    other = None if baseline is None else baseline_of(simple)
    encoder = None if similarity_model is None else _encoder(similarity_model, chosen, threads, dtype)
    rows = _rows(data, chosen.settings, source or {}, loaded)
    values = values_of(rows)
    try:
        report, answers = measure(loaded, values, data, task=task, seed=seed)
    except DataError:
        place_fault(chosen, rows)
        raise
    if baseline is not None and other is not None:
        learnt = rows_of(baseline, columns, given=source or {}, trained_on=loaded.opened.card.get("source", {}))
        report = beside(report, simple, list(map(as_known, values)), answers,
                        list(map(as_known, values_of(learnt.rows))))
        _log.info(verdict(model, other.name, other.metric, report.metrics["difference"])[1])
    if encoder is not None:
        outputs = [str(answer["output"]) for answer in answers]
        scores = token_matching(encoder, outputs, list(map(references_of, values)))
        report = replace(report, metrics={**report.metrics, **estimates(scores, seed)},
                         details={**report.details, "similarity_model": similarity_model})
    _write_down(Path(model), Path(data), report)
    if predictions is not None:
        write_jsonl(predictions, ({**row, **named(answer, row)} for row, answer in zip(values, answers, strict=True)))
    return report


def compare(model: str, other: str, data: str, *, task: str | None = None, source: Mapping[str, Any] | None = None,
            seed: int = 0, threads: int | None = None, dtype: DType = "fp32") -> Comparison:
    """Two models on the rows of a file, and the paired differences. Raises DataError, UsageError as `evaluate`."""
    a, b = (load_all([each], threads=threads, dtype=dtype) for each in (model, other))
    chosen = a.task(task)
    rows = _rows(data, chosen.settings, source or {}, a)
    try:
        comparison = both(a, b, values_of(rows), data, task=task, seed=seed)
    except DataError:
        place_fault(chosen, rows)
        raise
    for sentence in comparison.sentences():
        _log.info(sentence)
    for each, report in ((model, comparison.a), (other, comparison.b)):
        _write_down(Path(each), Path(data), report)
    return comparison


def _rows(data: str, settings: TaskSettings, source: Mapping[str, Any], loaded: Answering) -> list[Row]:
    """The rows of a file, those that cannot be read counted. DataError where there is none."""
    rows = rows_to_measure(data, settings, given=source, trained_on=loaded.opened.card.get("source", {}))
    if rows.counts.quarantined:
        _log.warning(say(f"{rows.counts.quarantined:,} rows could not be read and are not in the score",
                         f"{rows.counts.quarantined:,} 行无法读取，未计入评分"))
    if not rows.rows:
        raise DataError(say("no rows to evaluate on", "没有可评测的数据"), where=data,
                        mend=say("check the file and its columns", "请检查文件及其列"))
    return rows.rows


def _encoder(reference: str, task: Task, threads: int | None, dtype: DType) -> Loaded:
    """UsageError where there are no texts to be compared."""
    if task.name != "text_to_text":
        raise UsageError(
            say(f"{task.name} makes no texts that could be like their references",
                f"{task.name} 不生成可与参考比较的文本"), where=f"--similarity-model {reference}",
            mend=say("take it out", "请去掉它"))
    return load(reference, threads=threads, dtype=dtype)


def named(answer: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """An answer beside the row's own columns: what was predicted never overwrites what was given. A label becomes
    `prediction`, anything else that the row has too `predicted_NAME`."""
    return {"prediction" if name == "label" else f"predicted_{name}" if name in row else name: value
            for name, value in answer.items()}


def _write_down(model: Path, data: Path, report: Report) -> None:
    """A Run's evaluations.jsonl: which data were looked at, and how often (a test set seen twice is one no more)."""
    if not (model / RUN_RECORD).exists() or not data.is_file():
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
