"""A report beside what simple counting reaches on the same rows: is the model worth its weight?

In: a Report with the rows, the answers to them and the training rows. Out: the Report with the baseline's figure and
the paired difference. Single texts in classes: TF-IDF + linear SVM. Causal language models: Kneser–Ney 5-grams.
Span questions: the sentence nearest to the question (sentence_baselines.py). Pairs: TF-IDF again (pair_baselines.py).
Texts from texts: the source itself, or its first sentence (text_baselines.py). Tags: a CRF (crf_baseline.py).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from wenmo.errors import UsageError, say
from wenmo.evaluation.baseline import tuned_svm
from wenmo.evaluation.crf_baseline import beside_crf, main_metric_of_tags
from wenmo.evaluation.ngram import KneserNey
from wenmo.evaluation.pair_baselines import beside_cosines, beside_labels
from wenmo.evaluation.sentence_baselines import beside_sentences
from wenmo.evaluation.text_baselines import beside_sources, main_metric
from wenmo.metrics import Estimate, bits_per_character, bootstrap, paired_bootstrap, wilson
from wenmo.report import Report
from wenmo.tasks import Task
from wenmo.tasks.language_modeling import shares
from wenmo.tasks.tagging import Tagging

_log = logging.getLogger(__name__)
Rows = Sequence[Mapping[str, Any]]

Found = tuple[dict[str, Estimate], dict[str, Any]]  # metrics, one of them `difference`; and what the baseline is


@dataclass(frozen=True)
class Baseline:
    """What a task has to beat: its name, the metric of the difference, and how it is measured: (task, rows, answers to
    them, training rows, seed) → Found."""

    name: str
    metric: str
    measure: Callable[[Task, Rows, Rows, Rows, int], Found]


def baseline_of(task: Task) -> Baseline:
    """What the task has to beat. Raises UsageError where there is nothing so simple."""
    if task.name == "causal_lm":
        return Baseline(say("Kneser–Ney 5-grams", "Kneser–Ney 5 元模型"), "bits_per_character", _beside_counts)
    if task.name == "classification" and task.settings.columns == ("text",):
        return Baseline(say("TF-IDF + linear SVM", "TF-IDF + 线性 SVM"), "accuracy", _beside_svm)
    if task.settings.columns == ("text_a", "text_b") and task.settings.target_columns == ("score",):
        return Baseline(say("cosine of TF-IDF", "TF-IDF 余弦"), "spearman", beside_cosines)
    if task.name in ("classification", "similarity") and task.settings.target_columns == ("label",):
        return Baseline(say("TF-IDF + logistic regression", "TF-IDF + 逻辑回归"), "accuracy", beside_labels)
    if isinstance(task, Tagging):
        return Baseline(say("a CRF on letters and words", "基于字词特征的 CRF"), main_metric_of_tags(task), beside_crf)
    if task.name == "span_qa":
        return Baseline(say("the sentence nearest to the question", "与问题最接近的句子"), "f1", beside_sentences)
    if task.name == "text_to_text":
        return Baseline(say("the source or its first sentence", "原文或其首句"), main_metric(task), beside_sources)
    raise UsageError(
        say(f"there is no simple baseline for {task.name}", f"{task.name} 没有简单基线"), where="--baseline",
        mend=say("take it out; texts and pairs in classes, graded pairs, tags, span questions, texts from texts and "
                 "causal language models have one",
                 "请去掉它；文本与文本对的分类、打分的文本对、序列标注、抽取式问答、文本生成文本与因果语言模型才有"))


def beside(report: Report, task: Task, rows: Rows, answers: Rows, train: Rows) -> Report:
    """`answers` are those of `evaluate`, in the order of `rows`; `difference` is the model's figure less the other."""
    if known := _in_both(task, rows, train):
        _log.warning(say(f"{known:,} of the {len(rows):,} rows are among those that the baseline learns from: its "
                         "figure is too good",
                         f"{len(rows):,} 行中有 {known:,} 行也在基线的训练数据里：基线的分数偏高"))
    metrics, details = baseline_of(task).measure(task, rows, answers, train, report.seed)
    return replace(report, metrics={**report.metrics, **metrics}, details={**report.details, "baseline": details})


def _in_both(task: Task, rows: Rows, train: Rows) -> int:
    """How many of the rows have the text of a training row, whatever is to be said of it."""
    def texts_of(row: Mapping[str, Any]) -> str:
        return json.dumps([row[name] for name in task.settings.columns], ensure_ascii=False)

    learnt = set(map(texts_of, train))
    return sum(texts_of(row) in learnt for row in rows)


def _beside_svm(task: Task, rows: Rows, answers: Rows, train: Rows, seed: int) -> Found:
    labels = [str(row["label"]) for row in rows]
    theirs, chosen = tuned_svm([(row["text"], str(row["label"])) for row in train], [row["text"] for row in rows], seed)
    right = [label == answer["label"] for label, answer in zip(labels, answers, strict=True)]
    baseline_right = [label == answer for label, answer in zip(labels, theirs, strict=True)]
    return {"baseline_accuracy": wilson(sum(baseline_right), len(labels)),
            "difference": paired_bootstrap(right, baseline_right, seed)}, chosen


def _beside_counts(task: Task, rows: Rows, answers: Rows, train: Rows, seed: int) -> Found:
    """On the same characters: those of a text's first token are given to both. The alphabet that the counts know is
    that of training and test together, which is in their favour."""
    texts = [str(row["text"]) for row in rows]
    model = KneserNey([str(row["text"]) for row in train], set().union(*texts))
    nats, theirs, characters = [], [], []
    for text, answer in zip(texts, answers, strict=True):
        _, offsets = task.tokenizer.encode_with_offsets(text)
        given = len(shares(text, offsets)[0]) if offsets else 0
        if len(text) > given:
            nats.append(-answer["log_likelihood"])
            theirs.append(sum(model.bits(text)[given:]) * np.log(2))
            characters.append(len(text) - given)
    gain, size = np.asarray(nats) - np.asarray(theirs), np.asarray(characters)
    difference = bootstrap(lambda drawn: gain[drawn].sum(1) / size[drawn].sum(1) / np.log(2), len(size), seed)
    return {"baseline_bits_per_character": bits_per_character(theirs, characters, seed),
            "difference": difference}, {"order": model.order, "alphabet": model.num_characters}
