"""A report beside what simple counting reaches on the same rows: is the model worth its weight?

In: a Report with the rows, the answers to them and the training rows. Out: the Report with the baseline's figure and
the paired difference. Single texts in classes: TF-IDF + linear SVM. Causal language models: Kneser–Ney 5-grams.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from wenmo.errors import UsageError, say
from wenmo.evaluation.baseline import tuned_svm
from wenmo.evaluation.ngram import KneserNey
from wenmo.metrics import Estimate, bits_per_character, bootstrap, paired_bootstrap, wilson
from wenmo.report import Report
from wenmo.tasks import Task
from wenmo.tasks.language_modeling import shares
from wenmo.text.tokenizer import Tokenizer

Rows = Sequence[Mapping[str, Any]]


def baseline_name(task: Task) -> str:
    """What the task has to beat. Raises UsageError where there is nothing so simple."""
    if task.name == "causal_lm":
        return say("Kneser–Ney 5-grams", "Kneser–Ney 5 元模型")
    if task.name == "classification" and task.settings.columns == ("text",):
        return say("TF-IDF + linear SVM", "TF-IDF + 线性 SVM")
    raise UsageError(
        say(f"there is no simple baseline for {task.name}", f"{task.name} 没有简单基线"), where="--baseline",
        mend=say("take it out; single texts in classes and causal language models have one",
                 "请去掉它；单文本分类与因果语言模型才有"))


def beside(report: Report, task: Task, tokenizer: Tokenizer, rows: Rows, answers: Rows, train: Rows) -> Report:
    """`answers` are those of `evaluate`, in the order of `rows`; `difference` is the model's figure less the other."""
    if task.name == "causal_lm":
        metrics, details = _beside_counts(tokenizer, rows, answers, train, report.seed)
    else:
        metrics, details = _beside_svm(rows, answers, train, report.seed)
    return replace(report, metrics={**report.metrics, **metrics}, details={**report.details, "baseline": details})


def _beside_svm(rows: Rows, answers: Rows, train: Rows, seed: int) -> tuple[dict[str, Estimate], dict[str, Any]]:
    labels = [str(row["label"]) for row in rows]
    theirs, chosen = tuned_svm([(row["text"], str(row["label"])) for row in train], [row["text"] for row in rows], seed)
    right = [label == answer["label"] for label, answer in zip(labels, answers, strict=True)]
    baseline_right = [label == answer for label, answer in zip(labels, theirs, strict=True)]
    return {"baseline_accuracy": wilson(sum(baseline_right), len(labels)),
            "difference": paired_bootstrap(right, baseline_right, seed)}, chosen


def _beside_counts(tokenizer: Tokenizer, rows: Rows, answers: Rows, train: Rows,
                   seed: int) -> tuple[dict[str, Estimate], dict[str, Any]]:
    """On the same characters: those of a text's first token are given to both. The alphabet that the counts know is
    that of training and test together, which is in their favour."""
    texts = [str(row["text"]) for row in rows]
    model = KneserNey([str(row["text"]) for row in train], set().union(*texts))
    nats, theirs, characters = [], [], []
    for text, answer in zip(texts, answers, strict=True):
        _, offsets = tokenizer.encode_with_offsets(text)
        given = len(shares(text, offsets)[0]) if offsets else 0
        if len(text) > given:
            nats.append(-answer["log_likelihood"])
            theirs.append(sum(model.bits(text)[given:]) * np.log(2))
            characters.append(len(text) - given)
    gain, size = np.asarray(nats) - np.asarray(theirs), np.asarray(characters)
    difference = bootstrap(lambda drawn: gain[drawn].sum(1) / size[drawn].sum(1) / np.log(2), len(size), seed)
    return {"baseline_bits_per_character": bits_per_character(theirs, characters, seed),
            "difference": difference}, {"order": model.order, "alphabet": model.num_characters}
