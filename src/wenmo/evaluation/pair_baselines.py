"""What simple counting reaches on pairs of texts: the bar for cross-encoders and bi-encoders.

In: training pairs with scores or labels, and pairs to answer. Out: a score for each; or a label. Scores are the cosine
of TF-IDF vectors, which needs no labels; labels come from a linear model on what two texts share and how they differ.
scikit-learn does the work (extra `baseline`, by way of baseline.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wenmo.evaluation.baseline import FEATURES, sklearn_parts
from wenmo.metrics import Estimate, difference, paired_bootstrap, wilson
from wenmo.metrics.correlation import row_spearman, spearman

Rows = Sequence[Mapping[str, Any]]
Found = tuple[dict[str, Estimate], dict[str, Any]]  # metrics, one of them `difference`; and what the baseline is


def beside_cosines(task: Any, rows: Rows, answers: Rows, train: Rows, seed: int) -> Found:
    """A model of scores beside the cosines of TF-IDF: Spearman of both."""
    theirs, chosen = tfidf_cosines(train, rows)
    grades, ours = [float(row["score"]) for row in rows], [answer["score"] for answer in answers]
    gap = difference(row_spearman(ours, grades), row_spearman(theirs, grades), len(rows), seed)
    return {"baseline_spearman": spearman(theirs, grades, seed), "difference": gap}, chosen


def beside_labels(task: Any, rows: Rows, answers: Rows, train: Rows, seed: int) -> Found:
    """A model of labels beside a linear one on the same pairs: accuracy of both."""
    labels = [str(row["label"]) for row in rows]
    right = [label == answer["label"] for label, answer in zip(labels, answers, strict=True)]
    theirs = [label == answer for label, answer in zip(labels, linear_on_pairs(train, rows), strict=True)]
    return {"baseline_accuracy": wilson(sum(theirs), len(labels)),
            "difference": paired_bootstrap(right, theirs, seed)}, {"features": "|a − b|, a · b", "analyzer": "char"}


def tfidf_cosines(train: Rows, rows: Rows) -> tuple[list[float], dict[str, Any]]:
    """(the cosine of each pair, what was chosen): the features whose cosines go best with the training scores."""
    grades = [float(row["score"]) for row in train]
    best: tuple[float, Mapping[str, Any]] = (-2.0, FEATURES[0])
    for features in FEATURES:
        cosines = _cosines(features, train, train)
        found = float(row_spearman(cosines, grades)(np.arange(len(grades))[None])[0])
        best = max(best, (found, features), key=lambda tried: tried[0])
    chosen = {"analyzer": best[1]["analyzer"], "ngrams": list(best[1]["ngram_range"]), "training_spearman": best[0]}
    return _cosines(best[1], train, rows), chosen


def linear_on_pairs(train: Rows, rows: Rows) -> list[str]:
    """Labels by logistic regression on runs of one to three characters: |a − b| and a · b of the two TF-IDF vectors,
    and their cosine. The usual features of a pair without a network (compare Mou et al. 2016, §3.2)."""
    tfidf, logistic_regression, _ = sklearn_parts()
    vectorizer = tfidf(analyzer="char", ngram_range=(1, 3)).fit(_texts(train))
    model = logistic_regression(C=4.0, max_iter=300).fit(_features(vectorizer, train),
                                                          [str(row["label"]) for row in train])
    return [str(label) for label in model.predict(_features(vectorizer, rows))]


def _texts(rows: Rows) -> list[str]:
    return [str(row[column]) for row in rows for column in ("text_a", "text_b")]


def _sides(vectorizer: Any, rows: Rows) -> tuple[Any, Any]:
    a, b = (vectorizer.transform([str(row[column]) for row in rows]) for column in ("text_a", "text_b"))
    return a, b


def _cosines(features: Mapping[str, Any], train: Rows, rows: Rows) -> list[float]:
    tfidf, _, _ = sklearn_parts()
    a, b = _sides(tfidf(**features).fit(_texts(train)), rows)
    return [float(cosine) for cosine in np.asarray(a.multiply(b).sum(axis=1)).ravel()]


def _features(vectorizer: Any, rows: Rows) -> Any:
    from scipy.sparse import hstack

    a, b = _sides(vectorizer, rows)
    shared = a.multiply(b)
    return hstack([abs(a - b), shared, shared.sum(axis=1)]).tocsr()
