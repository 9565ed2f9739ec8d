"""What needs no model where a text is made of a text: to say the source again, or its first sentence.

In: rows with sources and targets, and a model's answers to them. Out: the figures of both rules, and the paired
difference to the better one. A summary has to beat the first sentence (Nenkova 2005), a translation its own source.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from wenmo.evaluation.sentence_baselines import sentences
from wenmo.metrics import Estimate, difference
from wenmo.tasks import Task
from wenmo.tasks.text_to_text import measured, metric_names, references_of
from wenmo.text.words import HAN

Rows = Sequence[Mapping[str, Any]]


_FULL_STOP = re.compile(rf"(?<=[{HAN}）)])\.")  # as scientific abstracts in Chinese have it, with no space after it


def first_sentence(text: str) -> str:
    """Of Chinese or English; a text without an end of sentence is one whole."""
    return sentences(_FULL_STOP.sub("。", text))[0]


def beside_sources(task: Task, rows: Rows, answers: Rows, train: Rows,
                   seed: int) -> tuple[dict[str, Estimate], dict[str, Any]]:
    """`copy_…`, `lead_…` and the `difference` in the task's first metric. Nothing is learned: `train` is not read."""
    settings: Any = task.settings
    references = [references_of(row) for row in rows]
    sources = [str(row["source"]) for row in rows]
    given = {"model": [str(answer["output"]) for answer in answers], "copy": sources,
             "lead": [first_sentence(source) for source in sources]}
    found = {name: measured(texts, references, settings.metrics, seed) for name, texts in given.items()}
    metrics = {f"{name}_{metric}": estimate for name in ("copy", "lead")
               for metric, estimate in found[name].metrics.items()}
    main = main_metric(task)
    better = max(("copy", "lead"), key=lambda name: found[name].metrics[main].value)
    metrics["difference"] = difference(found["model"].statistics[main], found[better].statistics[main], len(rows), seed)
    return metrics, {"better": better, "metric": main}


def main_metric(task: Task) -> str:
    """The one that the task names first; of ROUGE's, ROUGE-L."""
    settings: Any = task.settings
    return metric_names(settings.metrics[:1])[-1]
