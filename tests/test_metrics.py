"""Metrics equal scikit-learn's and scipy's, and the 95% intervals hold the truth about 95 times in a hundred."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from scipy.stats import t as student
from sklearn import metrics as sk

from wenmo import metrics
from wenmo.errors import DataError, NumericsError
from wenmo.metrics import Estimate, lower_is_better, paired_bootstrap, wilson, within_noise


@st.composite
def _answers(draw: st.DrawFn) -> tuple[int, list[int], list[int]]:
    num_classes, n = draw(st.integers(2, 7)), draw(st.integers(1, 40))
    classes = st.lists(st.integers(0, num_classes - 1), min_size=n, max_size=n)
    return num_classes, draw(classes), draw(classes)


@given(_answers())
@settings(max_examples=150, deadline=None)
def test_classification_equals_scikit_learn(case: tuple[int, list[int], list[int]]) -> None:
    """Also for classes without a row, and for classes that nobody predicted."""
    num_classes, labels, predictions = case
    every = list(range(num_classes))
    confusion = metrics.confusion_matrix(labels, predictions, num_classes)
    np.testing.assert_array_equal(confusion, sk.confusion_matrix(labels, predictions, labels=every))
    assert metrics.accuracy(confusion).value == pytest.approx(sk.accuracy_score(labels, predictions))

    ours = metrics.precision_recall_f1(confusion)
    theirs = sk.precision_recall_fscore_support(labels, predictions, labels=every, zero_division=0)
    for mine, his in zip((ours.precision, ours.recall, ours.f1, ours.support), theirs, strict=True):
        np.testing.assert_allclose(mine, his, atol=1e-12)
    for mean, name in ((ours.macro(), "macro"), (ours.weighted(), "weighted")):
        his = sk.precision_recall_fscore_support(labels, predictions, labels=every, average=name, zero_division=0)
        np.testing.assert_allclose(mean, his[:3], atol=1e-12)

    macro, per_class = metrics.f1_estimates(confusion, seed=1, resamples=20)
    assert macro.value == pytest.approx(ours.macro()[2])
    for one in (macro, *per_class):
        assert 0 <= one.low <= one.value <= one.high <= 1


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_equals_scipy(case: tuple[int, int]) -> None:
    successes, n = case
    theirs = binomtest(successes, n).proportion_ci(method="wilson")
    ours = wilson(successes, n)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_calibration_error_equals_its_definition() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(4), 300)
    labels = rng.integers(4, size=300)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    expected = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert metrics.expected_calibration_error(probabilities, labels, seed=0).value == pytest.approx(expected)
    on_the_edge = metrics.expected_calibration_error([[0.5, 0.3, 0.2], [0.6, 0.4, 0.0]], [1, 0], seed=0, bins=2)
    assert on_the_edge.value == pytest.approx((0.5 + 0.4) / 2)  # 0.5 belongs to the lower bin


def test_classification_report() -> None:
    labels = np.array([0] * 50 + [1] * 50)
    probabilities = np.where(np.arange(100)[:, None] % 10 == 0, [[0.3, 0.6, 0.1]], [[0.8, 0.1, 0.1]])
    probabilities[50:] = probabilities[50:, [1, 0, 2]]
    report = metrics.classification_report(labels, probabilities, ["差评", "好评", "无关"], seed=0)
    assert report["metrics"]["accuracy"].value == pytest.approx(0.9)
    assert report["metrics"]["macro_f1"].value == pytest.approx(0.6)  # the class without rows counts as zero
    assert report["metrics"]["ece"].value == pytest.approx(0.9 * (1 - 0.8) + 0.1 * 0.6)
    assert report["details"]["confusion"] == [[45, 5, 0], [5, 45, 0], [0, 0, 0]]
    assert [(row["label"], row["support"]) for row in report["details"]["per_class"]] == [
        ("差评", 50), ("好评", 50), ("无关", 0)]
    assert report["details"]["per_class"][2]["recall"] == Estimate(0.0, 0.0, 1.0)  # nothing is known of it
    assert report == metrics.classification_report(labels, probabilities, ["差评", "好评", "无关"], seed=0)


def test_language_model_metrics() -> None:
    text = "文模 is small"
    nll_nats, tokens = np.array([10.0, 30.0, 0.0]), np.array([5, 15, 0])
    assert metrics.perplexity(nll_nats, tokens, seed=0).value == pytest.approx(math.exp(2))
    per_byte = metrics.bits_per_byte([math.log(2) * len(text.encode())] * 2, [len(text.encode())] * 2, seed=0)
    assert per_byte.value == pytest.approx(1) == metrics.bits_per_character([math.log(2)] * 2, [1, 1], seed=0).value
    single = metrics.perplexity([10.0], [5], seed=0)
    assert (single.low, single.high) == (1, math.inf)  # one document tells nothing of its spread
    assert json.loads(json.dumps(single.as_dict()))["high"] is None
    assert metrics.estimates.student(9) == pytest.approx(student.ppf(0.975, 9), rel=0.005)
    assert metrics.estimates.student(3) == pytest.approx(student.ppf(0.975, 3), rel=0.001)


# Coverage: each interval against a truth that is known. Bounds are wide enough for 200–300 trials' own noise.


def test_accuracy_and_macro_f1_intervals_hold_the_truth() -> None:
    rng = np.random.default_rng(0)
    for truth, n in (([[0.45, 0.05], [0.05, 0.45]], 200), ([[0.49, 0.01], [0.01, 0.49]], 50),
                     ([[0.3, 0.02, 0.02], [0.05, 0.25, 0.03], [0.02, 0.03, 0.28]], 300)):
        cells = np.array(truth)
        macro = float(metrics.precision_recall_f1(cells * 10_000).f1.mean())
        held = np.zeros(2)
        for trial in range(200):
            confusion = rng.multinomial(n, cells.ravel()).reshape(cells.shape)
            accuracy, f1 = metrics.accuracy(confusion), metrics.f1_estimates(confusion, trial, resamples=200)[0]
            held += [accuracy.low <= np.trace(cells) <= accuracy.high, f1.low <= macro <= f1.high]
        assert (held / 200 > 0.89).all(), (n, held / 200)


def test_a_perfect_score_on_few_rows_is_not_certain() -> None:
    confusion = np.diag([10, 10])
    assert metrics.accuracy(confusion).low < 0.9
    assert metrics.f1_estimates(confusion, seed=0)[0].low < 0.95


def test_a_calibrated_model_is_not_accused() -> None:
    """The plain percentile interval never holds the truth of the first model, and of the second in 44 of 100."""
    rng = np.random.default_rng(0)
    held = np.zeros(2)
    for trial in range(80):
        chance = 1 / (1 + np.exp(-rng.normal(0, 1.5, 1000)))
        labels = (rng.random(1000) < chance).astype(int)
        calibrated, slightly, overconfident = (
            metrics.expected_calibration_error(np.stack([1 - p, p], 1), labels, trial, resamples=200)
            for p in (chance**sharp / (chance**sharp + (1 - chance) ** sharp) for sharp in (1, 1.2, 2.5)))
        held += [calibrated.low == 0, slightly.low <= 0.028 <= slightly.high]  # 0.028: of four million rows
        assert overconfident.low > 0
    assert (held / 80 > 0.82).all(), held / 80


@pytest.mark.parametrize("num_documents", [5, 30])
def test_perplexity_interval_holds_the_truth(num_documents: int) -> None:
    rng = np.random.default_rng(num_documents)
    held = 0
    for trial in range(200):
        tokens = rng.lognormal(5, 1, num_documents).astype(int) + 1
        ppl = metrics.perplexity(tokens * rng.normal(3, 0.3, num_documents), tokens, trial)
        held += ppl.low <= math.exp(3) <= ppl.high
    assert 0.88 < held / 200 < 0.995


def test_paired_bootstrap_sees_what_unpaired_intervals_miss() -> None:
    rng = np.random.default_rng(0)
    b = rng.random(1000) < 0.8
    a = b.copy()
    a[np.flatnonzero(~b)[:25]] = True  # right wherever b is, and on 25 more rows
    difference = paired_bootstrap(a, b, seed=0)
    assert difference.value == pytest.approx(0.025)
    assert not within_noise(difference)
    assert wilson(int(a.sum()), 1000).low < wilson(int(b.sum()), 1000).high
    assert within_noise(paired_bootstrap(a, a, seed=0))
    assert within_noise(paired_bootstrap([True] * 3, [False] * 3, seed=0))  # three wins in three rows prove nothing

    held = 0
    for trial in range(300):
        table = rng.choice(3, size=100, p=[0.1, 0.85, 0.05])
        difference = paired_bootstrap(table < 2, table > 0, trial)
        held += difference.low <= 0.05 <= difference.high
    assert 0.91 < held / 300 < 0.995


def test_bootstrap_of_a_mean_is_the_textbook_interval() -> None:
    values = np.random.default_rng(0).normal(5, 2, 400)
    estimate = metrics.bootstrap(lambda rows: values[rows].mean(axis=1), 400, seed=0, resamples=4000)
    half = 1.96 * values.std() / 20
    assert estimate.value == pytest.approx(values.mean())
    assert (estimate.low, estimate.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)
    assert estimate == metrics.bootstrap(lambda rows: values[rows].mean(axis=1), 400, seed=0, resamples=4000)
    assert estimate != metrics.bootstrap(lambda rows: values[rows].mean(axis=1), 400, seed=1, resamples=4000)


# Faults -----------------------------------------------------------------------------------------------


def test_nothing_to_measure_and_numbers_that_are_none() -> None:
    with pytest.raises(DataError):
        metrics.classification_report([], np.zeros((0, 2)), ["a", "b"], seed=0)
    with pytest.raises(DataError):
        metrics.perplexity([0.0, 0.0], [0, 0], seed=0)
    with pytest.raises(NumericsError, match="1 of 2"):
        metrics.classification_report([0, 1], [[0.5, 0.5], [math.nan, 1]], ["a", "b"], seed=0)
    with pytest.raises(NumericsError):
        metrics.perplexity([1.0, math.inf], [1, 1], seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert metrics.perplexity([5000.0, 5000.0], [1, 1], seed=0).as_dict()["value"] is None


@pytest.mark.parametrize(("estimate", "shown"), [
    (Estimate(0.91234, 0.9051, 0.9189), "0.912 [0.905, 0.919]"),
    (Estimate(28.1666, 26.29, 30.1), "28.2 [26.3, 30.1]"),
    (Estimate(-0.0042, -0.013, 0.004), "−0.004 [−0.013, 0.004]"),
    (Estimate(12345.6, 12000, 12700), "12,346 [12,000, 12,700]"),
    (Estimate(7.389056, 1, math.inf), "7.3891 [1.0000, ∞]"),
])
def test_as_many_decimals_as_the_interval_warrants(estimate: Estimate, shown: str) -> None:
    assert str(estimate) == shown


def test_metrics_need_numpy_alone() -> None:
    code = "import sys, wenmo.metrics; print([m for m in ('torch', 'sklearn', 'scipy') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.mark.parametrize(("name", "lower"), [
    ("loss", True), ("mlm_loss", True), ("val_perplexity", True), ("bits_per_character", True), ("ece", True),
    ("baseline_bits_per_character", True), ("accuracy", False), ("macro_f1", False), ("baseline_accuracy", False)])
def test_which_metrics_want_to_be_low(name: str, lower: bool) -> None:
    assert lower_is_better(name) is lower
