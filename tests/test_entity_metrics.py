"""Entity-level scores: equal to counting by hand, sure of themselves only as far as the sentences tell."""

from __future__ import annotations

import numpy as np
import pytest
import seqeval.scheme
from hypothesis import assume, given
from hypothesis import strategies as st
from seqeval.metrics import classification_report

from wenmo.errors import DataError
from wenmo.metrics.entities import share_of_rows, span_report
from wenmo.text.tagging_schemes import Scheme, all_tags, entities_of

X, Y = "X", "Y"
TRUE = [[(0, 2, X), (3, 4, Y)], [(0, 1, X)], [], [(2, 5, Y)]]
FOUND = [[(0, 2, X), (3, 4, X)], [(0, 1, X)], [(1, 2, Y)], [(2, 4, Y)]]


def test_counted_by_hand() -> None:
    report = span_report(TRUE, FOUND, seed=0)
    values = {name: estimate.value for name, estimate in report["metrics"].items()}
    assert values == pytest.approx({"precision": 2 / 5, "recall": 2 / 4, "f1": 4 / 9, "macro_f1": (4 / 5 + 0) / 2})
    per_type = {row["label"]: row for row in report["details"]["per_class"]}
    assert per_type[X]["precision"].value == pytest.approx(2 / 3)
    assert (per_type[X]["recall"].value, per_type[Y]["f1"].value) == (1.0, 0.0)
    assert [per_type[kind]["support"] for kind in (X, Y)] == [2, 2]


@pytest.mark.parametrize(("scheme", "theirs"), [("bio", "IOB2"), ("bioes", "IOBES"), ("bilou", "BILOU"), ("bio", None)])
@given(data=st.data())
def test_the_scores_are_seqevals(scheme: Scheme, theirs: str | None, data: st.DataObject) -> None:
    """Of any tags, well-formed or not: in its strict mode, and (None) in its lenient one, that of CoNLL's script."""
    tags = st.sampled_from(all_tags("XY", scheme))
    rows = data.draw(st.lists(st.lists(st.tuples(tags, tags), min_size=1, max_size=9), min_size=1, max_size=5))
    true, found = ([[pair[side] for pair in row] for row in rows] for side in (0, 1))
    strict = {} if theirs is None else {"mode": "strict", "scheme": getattr(seqeval.scheme, theirs)}
    wanted, given = ([entities_of(row, None if theirs is None else scheme) for row in side] for side in (true, found))
    assume(any(wanted) or any(given))
    expected = classification_report(true, found, output_dict=True, zero_division=0, **strict)
    report = span_report(wanted, given, seed=0)
    metrics = report["metrics"]
    for ours, name in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
        assert metrics[ours].value == pytest.approx(expected["micro avg"][name])
    for row in report["details"].get("per_class", ()):
        its = expected[row["label"]]
        assert (row["precision"].value, row["recall"].value, row["f1"].value, row["support"]) == pytest.approx(
            (its["precision"], its["recall"], its["f1-score"], its["support"]))
    if "macro_f1" in metrics:
        assert metrics["macro_f1"].value == pytest.approx(expected["macro avg"]["f1-score"])


def test_the_statistic_of_all_rows_once_is_the_value() -> None:
    statistic = span_report(TRUE, FOUND, seed=0)["statistics"]["f1"]
    assert statistic(np.arange(4)[None])[0] == pytest.approx(4 / 9)
    assert statistic(np.array([[0, 0, 0, 0], [1, 1, 1, 1]])).tolist() == [0.5, 1.0]


def test_intervals_hold_the_value_and_a_perfect_score_is_not_certain() -> None:
    for estimate in span_report(TRUE, FOUND, seed=0)["metrics"].values():
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    perfect = span_report(TRUE, TRUE, seed=0)["metrics"]["f1"]
    assert perfect.value == 1
    assert perfect.low < 1
    many = span_report(TRUE * 200, TRUE * 200, seed=0)["metrics"]["f1"]
    assert 0.98 < many.low < 1


def test_of_a_rare_type_a_few_found_are_no_proof() -> None:
    rare, often = [(0, 1, Y)], [(0, 1, X), (2, 3, X)]
    report = span_report([rare] * 3 + [often] * 97, [rare] * 3 + [often] * 97, seed=0)
    lows = {row["label"]: row["f1"].low for row in report["details"]["per_class"]}
    assert lows[Y] < 0.8 < 0.97 < lows[X]


def test_more_sentences_make_a_narrower_interval() -> None:
    few, many = (span_report(TRUE * n, FOUND * n, seed=0)["metrics"]["f1"] for n in (5, 125))
    assert (many.high - many.low) == pytest.approx((few.high - few.low) / 5, rel=0.25)


def test_words_are_spans_without_a_type() -> None:
    report = span_report([[(0, 2, ""), (2, 3, "")]], [[(0, 2, ""), (2, 3, "")]], seed=0)
    assert set(report["metrics"]) == {"precision", "recall", "f1"}
    assert report["details"] == {}


def test_the_share_of_rows() -> None:
    estimate = share_of_rows([3, 5, 0], [4, 5, 1], seed=0)
    assert estimate.value == pytest.approx(0.8)
    assert estimate.low < 0.8 < estimate.high


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(DataError):
        span_report([], [], seed=0)
