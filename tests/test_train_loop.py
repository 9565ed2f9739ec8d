"""One training step: its gradient, its rate, its state, and what NaN can do to it (nothing)."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tiny_training import CPU, OBJECTIVE, Tiny, micro_batches, rows
from wenmo.data.sequence import Batch, Sequence, collate
from wenmo.errors import NumericsError, RecipeError
from wenmo.objectives import Objective, Term
from wenmo.training.best import Best, BestSettings
from wenmo.training.loop import LoopSettings, StepResult, steps
from wenmo.training.optimizer import AdamW, build
from wenmo.training.progress import Progress
from wenmo.training.schedule import CosineSchedule, LinearSchedule, Rates, ScheduleSettings, lr_factor

LR = 1e-2


@pytest.fixture(autouse=True)
def english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WENMO_LANG", "en")


def run(
    model: Tiny,
    batches: Callable[[int], list[Batch]] = micro_batches,
    objective: Objective = OBJECTIVE,
    *,
    total_steps: int = 3,
    schedule: ScheduleSettings | None = None,
    settings: LoopSettings | None = None,
    watch: Callable[[dict[str, Tensor]], None] | None = None,
) -> Iterator[StepResult]:
    """`watch` sees the gradients that the optimizer sees."""
    optimizer = build(model, AdamW(lr=LR))
    if watch is not None:
        optimizer.register_step_pre_hook(
            lambda *_: watch({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        )
    return steps(model, optimizer, objective, batches, device=CPU, seed=7, total_steps=total_steps,
                 lr_factor=Rates(schedule=schedule or CosineSchedule(), total_steps=total_steps).factor,
                 settings=settings or LoopSettings(clip=None))


# Gradients --------------------------------------------------------------------------------------------


def test_no_gradient_outlives_its_step() -> None:
    """They are as large as the weights, and the next backward makes its own."""
    model = Tiny()
    seen: list[weakref.ref[Tensor]] = []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: seen.append(weakref.ref(p.grad)))
    results = run(model)
    next(results)
    assert len(seen) > 5
    assert [reference for reference in seen if reference() is not None] == []


def sliced(num_slices: int) -> Callable[[int], list[Batch]]:
    def batches(step: int) -> list[Batch]:
        all_rows = rows(step)
        size = len(all_rows) // num_slices
        return [collate(all_rows[i : i + size]) for i in range(0, len(all_rows), size)]

    return batches


@pytest.mark.parametrize("num_slices", [1, 2, 4, 8])
def test_a_step_has_the_gradient_of_the_mean_however_it_is_sliced(num_slices: int) -> None:
    model, gradients = Tiny(dropout=0.0), {}
    result = next(run(model, sliced(num_slices), watch=gradients.update))

    # The mean of each term over the whole step, in float64 and the way a textbook writes it.
    oracle = Tiny(dropout=0.0).double()
    whole = collate(rows(0)).text
    hidden = oracle(whole.ids_M)
    token = F.cross_entropy(oracle.head(hidden), whole.tokens["targets"])
    pooled = torch.stack([part.mean(0) for part in hidden.split(whole.lengths)])
    label = F.cross_entropy(oracle.classifier(pooled), whole.values["label"])
    loss = token + 0.5 * label
    loss.backward()

    assert result.loss == pytest.approx(loss.item(), rel=1e-6)
    assert result.terms == pytest.approx({"token": token.item(), "label": label.item()}, rel=1e-6)
    assert gradients.keys() == dict(oracle.named_parameters()).keys()
    for name, parameter in oracle.named_parameters():
        torch.testing.assert_close(gradients[name].double(), parameter.grad, rtol=2e-5, atol=1e-7)
    squares = sum((p.grad**2).sum() for p in oracle.parameters())
    assert result.grad_norm == pytest.approx(math.sqrt(squares), rel=1e-5)
    assert result.num_tokens == len(whole.ids_M)


def test_a_term_without_items_contributes_nothing() -> None:
    def unlabelled(step: int) -> list[Batch]:
        return [collate([Sequence(s.row, {**s.tokens, "targets": s.tokens["targets"] * 0 - 100}, s.values)
                         for s in rows(step)])]

    model = Tiny()
    before = model.hidden.weight.clone()
    result = next(run(model, unlabelled))
    assert set(result.terms) == {"label"}
    assert result.loss == pytest.approx(0.5 * result.terms["label"])
    assert not result.skipped
    assert not torch.equal(model.hidden.weight, before)


def test_clipping_scales_the_gradient_to_the_norm() -> None:
    free: dict[str, Tensor] = {}
    clipped: dict[str, Tensor] = {}
    norm = next(run(Tiny(), watch=free.update)).grad_norm
    result = next(run(Tiny(), settings=LoopSettings(clip=norm / 4), watch=clipped.update))
    assert result.grad_norm == norm
    for name, gradient in free.items():
        torch.testing.assert_close(clipped[name], gradient / 4, rtol=1e-4, atol=1e-8)
    loose: dict[str, Tensor] = {}
    next(run(Tiny(), settings=LoopSettings(clip=norm * 2), watch=loose.update))
    assert all(torch.equal(loose[name], gradient) for name, gradient in free.items())


def test_what_happens_between_two_steps_changes_nothing() -> None:
    plain, disturbed = Tiny(dropout=0.5), Tiny(dropout=0.5)
    list(run(plain))
    for _ in run(disturbed):
        disturbed.eval()
        torch.rand(5)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), disturbed.parameters(), strict=True))


def test_dropout_differs_by_step_and_micro_batch() -> None:
    masks = []

    def terms(model: Tiny, batch: Batch) -> list[Term]:
        masks.append(model.dropout(torch.ones(64)))
        return OBJECTIVE.terms(model, batch)

    list(run(Tiny(dropout=0.5), objective=Objective(OBJECTIVE.counts, terms), total_steps=2))
    assert len({tuple(mask.tolist()) for mask in masks}) == 4


# NaN --------------------------------------------------------------------------------------------------


def spoilt(fault: str) -> Objective:
    """From the third call on (step 2), the term `label` of rows 105–107 is at fault."""

    def terms(model: Tiny, batch: Batch) -> list[Term]:
        token, label = OBJECTIVE.terms(model, batch)
        if 105 in batch.text.rows:
            if fault == "gradient":  # the root's slope at 0 is infinite, its value is 0
                label = Term("label", label.sum + (model.hidden.weight * 0).abs().sqrt().sum(), 0.5)
            else:  # "inf" has a gradient without fault
                label = Term("label", label.sum * math.nan if fault == "nan" else label.sum + math.inf, 0.5)
        return [token, label]

    return Objective(OBJECTIVE.counts, terms)


@pytest.mark.parametrize("fault", ["nan", "inf", "gradient"])
def test_nan_stops_the_run_before_the_weights_and_names_its_rows(fault: str) -> None:
    model = Tiny()
    training = run(model, objective=spoilt(fault))
    next(training)
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(NumericsError) as caught:
        next(training)
    assert "step 2" in caught.value.what
    assert "`label`" in caught.value.what
    assert ("`hidden.weight`" in caught.value.what) == (fault == "gradient")
    assert caught.value.where == "micro-batch 2 of 2, text: rows 105, 106, 107"
    assert "train.non_finite=skip" in caught.value.mend
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters())


@pytest.mark.parametrize("fault", ["nan", "inf", "gradient"])
def test_nan_steps_are_left_out_on_demand(fault: str) -> None:
    model = Tiny()
    seen = []
    results = []
    for result in run(model, objective=spoilt(fault), settings=LoopSettings(non_finite="skip")):
        results.append(result)
        seen.append(model.hidden.weight.clone())
    assert [result.skipped for result in results] == [False, True, False]
    assert torch.equal(seen[0], seen[1])
    assert torch.isfinite(seen[2]).all()
    assert not torch.equal(seen[1], seen[2])


def test_at_most_twenty_rows_are_shown() -> None:
    def nan(model: Tiny, batch: Batch) -> list[Term]:
        return [Term("token", model.hidden.weight.sum() * float("nan"))]

    with pytest.raises(NumericsError, match="18, 19 and 10 more"):
        next(run(Tiny(), lambda step: [collate(rows(0, num_rows=30))], Objective(OBJECTIVE.counts, nan)))


# Rate -------------------------------------------------------------------------------------------------


def test_the_loop_reports_the_rate_that_it_used() -> None:
    schedule = LinearSchedule(warmup=1)
    results = list(run(Tiny(), schedule=schedule, total_steps=5))
    assert [result.lr for result in results] == [LR * lr_factor(schedule, step, 5) for step in range(5)]
    assert [result.step for result in results] == [1, 2, 3, 4, 5]


# Best, progress ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [("loss", [3.0, 2.0, math.nan, 2.0, 2.5], 2), ("mlm_perplexity", [9.0, 3.0, 4.0], 2),
     ("accuracy", [math.nan, 0.5, 0.9, 0.9, 0.7], 3)],
)
def test_best_knows_the_direction_and_survives_a_resume(metric: str, values: list[float], best: int) -> None:
    settings = BestSettings(metric=metric)
    judge = Best(settings)
    told = []
    for step, value in enumerate(values, start=1):
        judge = Best(settings, judge.to_dict())  # as if resumed before each evaluation
        told.append(judge.see(step, {metric: value, "other": 0.0}))
    assert (judge.step, judge.value) == (best, values[best - 1])
    assert told[best - 1]
    assert not any(told[best:])


def test_patience_counts_evaluations_since_the_best() -> None:
    settings = BestSettings(metric="accuracy", patience=2)
    judge = Best(settings)
    stops = []
    for step, value in enumerate([0.1, 0.0, 0.2, 0.2, 0.1]):
        judge = Best(settings, judge.to_dict())
        judge.see(step, {"accuracy": value})
        stops.append(judge.should_stop)
    assert stops == [False, False, False, False, True]


def test_an_unknown_metric_is_refused_with_what_there_is() -> None:
    with pytest.raises(RecipeError, match="accuracy, loss"):
        Best(BestSettings(metric="acuracy")).see(1, {"loss": 1.0, "accuracy": 0.5})


def test_no_color_means_plain_lines_even_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    with Progress(3) as progress:
        progress.show(next(run(Tiny())))
    assert capsys.readouterr().err.startswith("step 1/3  loss")


@pytest.mark.parametrize(("language", "words"), [("en", ("step 3/3", "tokens/s", "left 0:00:00")),
                                                 ("zh", ("第 3/3 步", "词元/秒", "剩余 0:00:00"))])
def test_progress_writes_plain_lines_to_stderr_in_both_languages(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, language: str, words: tuple[str, ...]
) -> None:
    monkeypatch.setenv("WENMO_LANG", language)
    with Progress(3) as progress:
        for result in run(Tiny()):
            progress.show(result)
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 2  # the first and the last; the pause between lines is ten seconds
    assert all(word in err.splitlines()[-1] for word in words)
