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
from wenmo.data.sources import SourceRows, fingerprint
from wenmo.device import DType
from wenmo.ensemble import Answering, Ensemble, load_all
from wenmo.errors import DataError, StorageError, UsageError, say
from wenmo.evaluation import evaluate as measure
from wenmo.evaluation.beside import baseline_of, beside
from wenmo.evaluation.comparison import compare as both
from wenmo.evaluation.token_matching import estimates, token_matching
from wenmo.files import append_jsonl, read_jsonl, storage_errors, write_jsonl
from wenmo.loaded import Loaded, load
from wenmo.locate import RUN_RECORD
from wenmo.report import Comparison, Report, verdict
from wenmo.stages.out_folder import refuse_inputs
from wenmo.stages.prepare import place_fault, rows_to_measure, values_of
from wenmo.tasks import Joint, Task
from wenmo.tasks.task import TaskSettings
from wenmo.tasks.text_to_text import references_of

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
    found = _rows(data, chosen.settings, source or {}, loaded)
    values = values_of(found.rows)
    try:
        report, answers = measure(loaded, values, data, task=task, seed=seed)
    except DataError:
        place_fault(chosen, found.rows)
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
    write_down(loaded, found, report)
    if predictions is not None:
        write_jsonl(predictions, ({**row, **named(answer, row)} for row, answer in zip(values, answers, strict=True)))
    return report


def compare(model: str, other: str, data: str, *, task: str | None = None, source: Mapping[str, Any] | None = None,
            seed: int = 0, threads: int | None = None, dtype: DType = "fp32") -> Comparison:
    """Two models on the rows of a file, and the paired differences. Raises DataError, UsageError as `evaluate`."""
    a, b = (load_all([each], threads=threads, dtype=dtype) for each in (model, other))
    chosen = a.task(task)
    found = _rows(data, chosen.settings, source or {}, a)
    try:
        comparison = both(a, b, values_of(found.rows), data, task=task, seed=seed)
    except DataError:
        place_fault(chosen, found.rows)
        raise
    for sentence in comparison.sentences():
        _log.info(sentence)
    for each, report in ((a, comparison.a), (b, comparison.b)):
        write_down(each, found, report)
    return comparison


def _rows(data: str, settings: TaskSettings, source: Mapping[str, Any], loaded: Answering) -> SourceRows:
    """The rows of a file, those that cannot be read counted. DataError where there is none."""
    found = rows_to_measure(data, settings, given=source, trained_on=loaded.opened.card.get("source", {}))
    if found.counts.quarantined:
        _log.warning(say(f"{found.counts.quarantined:,} rows could not be read and are not in the score",
                         f"{found.counts.quarantined:,} 行无法读取，未计入评分"))
    if not found.rows:
        raise DataError(say("no rows to evaluate on", "没有可评测的数据"), where=data,
                        mend=say("check the file and its columns", "请检查文件及其列"))
    return found


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


def write_down(loaded: Answering, found: SourceRows, report: Report) -> None:
    """In the evaluations.jsonl of each model's Run: which data were looked at, and how often (a test set seen twice is
    one no more). Warns of that, and where a model has learned from these data."""
    digest = fingerprint(found.source)
    for one in loaded.loaded if isinstance(loaded, Ensemble) else [loaded]:
        learned = one.opened.card.get("lineage", {}).get("data_sha256", {})
        if any(name.startswith("data.train.") and its == digest for name, its in learned.items()):
            _log.warning(say(f"{one.reference} was trained on these data: the score says nothing of rows that it has "
                             "not seen", f"{one.reference} 正是用这些数据训练的：该分数不能说明它在未见数据上的表现"))
        folder = one.opened.folder
        within = () if folder is None else folder.resolve().parents[:2]  # RUN/model, RUN/checkpoints/step-N
        run = next((above for above in within if (above / RUN_RECORD).exists()), None)
        if run is not None:
            _append(run / "evaluations.jsonl", digest, report)


def _append(log: Path, data_sha256: str, report: Report) -> None:
    before = sum(row["data_sha256"] == data_sha256 for row in read_jsonl(log)) if log.exists() else 0
    if before:
        _log.warning(say(f"this model was evaluated on these data before ({before}×)",
                         f"该模型此前已在这些数据上评测过 {before} 次"))
    try:
        append_jsonl(log, {"time": time.strftime("%Y-%m-%dT%H:%M:%S"), "data_sha256": data_sha256, **report.as_dict()})
    except StorageError as error:  # a model in someone else's folder can be measured too
        _log.warning(say(f"not written down: {error.what} ({error.where})", f"未记录：{error.what}（{error.where}）"))
