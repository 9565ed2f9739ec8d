"""The linear baselines that any text classifier has to beat: TF-IDF and a linear model.

In: (text, label) rows to learn from and texts to answer. Out: labels. scikit-learn does the work (extra `baseline`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from wenmo.device import numpy_rng
from wenmo.errors import DataError, MissingExtra, say

Rows = Sequence[tuple[str, str]]

# What is tried: runs of characters, which need no word segmentation; words and their pairs, for spaced languages.
FEATURES: tuple[Mapping[str, Any], ...] = (
    {"analyzer": "char", "ngram_range": (1, 3)}, {"analyzer": "char", "ngram_range": (1, 4)},
    {"analyzer": "word", "ngram_range": (1, 2), "token_pattern": r"(?u)\b\w+\b"},
)
STRENGTHS = (0.1, 0.25, 0.5, 1.0, 2.0)
MOST_HELD_OUT = 2000


def linear_baseline(train: Rows, texts: Sequence[str]) -> list[str]:
    """Logistic regression on runs of one to three characters, nothing tuned: quick enough for a demonstration."""
    tfidf, logistic_regression, _ = sklearn_parts()
    vectorizer = tfidf(analyzer="char", ngram_range=(1, 3))
    features = vectorizer.fit_transform([text for text, _ in train])
    model = logistic_regression(C=10.0, max_iter=1000).fit(features, [label for _, label in train])
    return [str(label) for label in model.predict(vectorizer.transform(texts))]


def tuned_svm(train: Rows, texts: Sequence[str], seed: int) -> tuple[list[str], dict[str, Any]]:
    """A linear SVM (Joachims 1998) → (labels, what was chosen). FEATURES and STRENGTHS are tried on a tenth of the
    training rows held out by the seed; the best is fitted on all of them."""
    tfidf, _, svm = sklearn_parts()
    try:
        return _tuned_svm(tfidf, svm, train, texts, seed)
    except ValueError as error:  # one class alone, or no piece of text that stands in two rows
        raise DataError(say(f"a linear baseline cannot learn from these {len(train):,} rows: {error}",
                            f"线性基线无法从这 {len(train):,} 行中学习：{error}"), where="--baseline",
                        mend=say("give more training rows, of two labels at least",
                                 "请给出更多训练数据，至少包含两种标签")) from error


def _tuned_svm(tfidf: Any, svm: Any, train: Rows, texts: Sequence[str], seed: int) -> tuple[list[str], dict[str, Any]]:
    order = numpy_rng("baseline", seed).permutation(len(train))
    num_held = max(1, min(len(train) // 10, MOST_HELD_OUT))
    held, rest = [train[i] for i in order[:num_held]], [train[i] for i in order[num_held:]]
    best: tuple[float, Mapping[str, Any], float] = (-1.0, FEATURES[0], STRENGTHS[0])
    for features in FEATURES:
        vectorizer = tfidf(**features)
        learnt = vectorizer.fit_transform([text for text, _ in rest])
        asked = vectorizer.transform([text for text, _ in held])
        for strength in STRENGTHS:
            model = svm(C=strength).fit(learnt, [label for _, label in rest])
            right = float(np.mean(model.predict(asked) == np.asarray([label for _, label in held])))
            best = max(best, (right, features, strength), key=lambda tried: tried[0])
    right, features, strength = best
    vectorizer = tfidf(**features)
    model = svm(C=strength).fit(vectorizer.fit_transform([text for text, _ in train]), [label for _, label in train])
    chosen = {"analyzer": features["analyzer"], "ngrams": list(features["ngram_range"]), "C": strength,
              "held_out_rows": num_held, "held_out_accuracy": right}
    return [str(label) for label in model.predict(vectorizer.transform(texts))], chosen


def sklearn_parts() -> tuple[Any, Any, Any]:
    """TfidfVectorizer, LogisticRegression, LinearSVC."""
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.svm import LinearSVC
    except ImportError as error:
        raise MissingExtra("scikit-learn", "baseline", say("the linear baseline", "线性基线")) from error
    return partial(TfidfVectorizer, min_df=2, sublinear_tf=True), LogisticRegression, LinearSVC
