"""The linear baseline that any text classifier has to beat: TF-IDF of characters, logistic regression.

In: (text, label) rows to learn from and to answer. Out: labels. scikit-learn does the work (extra `baseline`).
"""

from __future__ import annotations

from collections.abc import Sequence

from wenmo.errors import MissingExtra, say


def linear_baseline(train: Sequence[tuple[str, str]], test: Sequence[tuple[str, str]]) -> list[str]:
    """Predicted labels of the test rows; runs of one to three characters, which needs no word segmentation."""
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise MissingExtra("scikit-learn", "baseline", say("the linear baseline", "线性基线")) from error
    vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), min_df=2, sublinear_tf=True)
    features = vectorizer.fit_transform([text for text, _ in train])
    model = LogisticRegression(C=10.0, max_iter=1000).fit(features, [label for _, label in train])
    return [str(label) for label in model.predict(vectorizer.transform([text for text, _ in test]))]
