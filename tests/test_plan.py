"""`wenmo plan`: each kind of fault, planted, is found; what is right raises no alarm; the forecast is of this run."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import small_data
from bench.training import WORKS
from command import Command, wenmo
from small_data import recipe
from wenmo import device as machine
from wenmo.data.sequence import Sequence
from wenmo.errors import UsageError
from wenmo.nn import attend
from wenmo.objectives import Objective
from wenmo.plan import TESTS, Check, Subject, self_tests, subject_of
from wenmo.plan.advice import Given, advice, fitting_tokens
from wenmo.plan.checks import timed
from wenmo.plan.forecast import Forecast, _spread
from wenmo.plan.learning import OVERFIT_SECONDS
from wenmo.plan.preview import preview
from wenmo.plan.suggest import FLOPS_PER_TOKEN, ROUTES, TOKENS_PER_SECOND, Asked, largest, suggest
from wenmo.recipe import parse_recipe
from wenmo.stages import prepare
from wenmo.stages.library import train
from wenmo.stages.plan import plan
from wenmo.text.tokenizer import Tokenizer
from wenmo.training import cost

__all__ = ["wenmo"]  # a fixture

ROOT = Path(__file__).parent.parent
TASKS = ("causal_lm", "masked_lm", "span_corruption", "classification", "span_qa", "chat")


@pytest.fixture(autouse=True)
def english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WENMO_LANG", "en")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = small_data.write(tmp_path_factory.mktemp("data"), num_reviews=60, num_news=60)
    said = ("user", "assistant", "user", "assistant")
    talks = [{"messages": [{"role": role, "content": content} for role, content in
                           zip(said, (f"{text}怎么样", f"它{label}。", "为什么？", text), strict=True)]}
             for text, label in small_data.reviews(60)]
    for name, rows in (("questions", small_data.questions(60)), ("talks", talks)):
        lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return folder


def subject(data: Path, folder: Path, task: str, seed: int = 0, *, max_tokens: int = 64,
            settings: Mapping[str, Any] | None = None) -> Subject:
    made = recipe(task)
    made |= {"seed": seed, "data": {**made["data"], "max_tokens": max_tokens}, "task": {**made["task"],
                                                                                       **(settings or {})}}
    if "max_position_embeddings" in made["model"]:
        made["model"]["max_position_embeddings"] = max_tokens
    parsed = parse_recipe(made, "here")
    rows = prepare.Corpus(parsed, data).read(folder / "quarantine.jsonl")
    task_ = prepare.task_for(parsed, prepare.tokenizer_for(parsed, rows, folder / f"tokenizer-{seed}"), rows)
    values = [row for source in rows.train for row in prepare.values_of(source.rows)]
    return subject_of(task_, prepare.model_for(parsed, task_), task_.objective(), values, folder / f"few-{seed}",
                      machine.choose("cpu", "fp32", 1), seed)


def found(subject: Subject) -> dict[str, Check]:
    return {check.name: check for check in self_tests(subject)}


def failures(subject: Subject, only: set[str] | None = None) -> set[str]:
    """The names of the tests that fail: of all, or of those in `only`."""
    tests = [test for test in TESTS if only is None or test.__name__ in only]
    checks = [timed(test, subject) for test in tests]
    for check in checks:
        assert check.what
        assert check.mend or check.status != "fail"
    return {check.name for check in checks if check.status == "fail"}


# What is right ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_no_false_alarm(tmp_path: Path, data: Path, task: str) -> None:
    made = subject(data, tmp_path, task)
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    checks = found(made)
    assert [check for check in checks.values() if check.status == "fail"] == []
    ran = {name for name, check in checks.items() if check.status == "pass"}
    assert {"special_tokens", "mask", "padding", "order", "isolation", "loss", "accumulation", "saved",
            "overfit"} <= ran
    assert ("causality" in ran) == (task in ("causal_lm", "chat", "span_corruption"))
    assert ("chat_template" in ran) == (task == "chat")
    after = made.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.long
@pytest.mark.parametrize("seed", range(40))
def test_no_false_alarm_in_forty_seeds(tmp_path: Path, data: Path, seed: int) -> None:
    for task in TASKS:
        assert failures(subject(data, tmp_path / task, task, seed)) == set()


@pytest.mark.parametrize(("task", "settings"), [
    ("tagging", {"target": "words", "crf": True}), ("tagging", {"target": "words", "label_smoothing": 0.1}),
    ("classification", {"class_weights": {"negative": 3.0, "positive": 1.0}, "label_smoothing": 0.1}),
    ("masked_lm", {"next_sentence": True}), ("causal_lm", {"label_smoothing": 0.1})])
def test_no_false_alarm_with_other_settings(tmp_path: Path, data: Path, task: str, settings: dict[str, Any]) -> None:
    if task == "tagging":
        lines = [" ".join(text) for text, _ in small_data.reviews(60)]
        (data / "words.txt").write_text("\n".join(lines), encoding="utf-8")
        made = recipe("classification")
        made["data"]["train"] = [{"path": "words.txt", "columns": {"tokens": "text"}}]
        made["task"] = {"type": "tagging", **settings}
        parsed = parse_recipe(made, "here")
        rows = prepare.Corpus(parsed, data).read(tmp_path / "quarantine.jsonl")
        tagging = prepare.task_for(parsed, prepare.tokenizer_for(parsed, rows, tmp_path / "tokenizer"), rows)
        whole = subject_of(tagging, prepare.model_for(parsed, tagging), tagging.objective(),
                           prepare.values_of(rows.train[0].rows), tmp_path, machine.choose("cpu", "fp32", 1), 0)
    else:
        whole = subject(data, tmp_path, task, settings=settings)
    assert failures(whole) == set()


def test_tests_end_in_time_and_say_what_was_left(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute is a minute: what may take longer is not begun."""
    made = subject(data, tmp_path, "classification")

    def skipped_for_time() -> set[str]:
        return {name for name, check in found(made).items() if "out of time" in check.what}

    monkeypatch.setattr("wenmo.plan.time", SimpleNamespace(perf_counter=lambda: 0.0))  # however busy the machine is
    monkeypatch.setattr("wenmo.plan.SECONDS", OVERFIT_SECONDS - 0.01)
    assert skipped_for_time() == {"overfit"}
    monkeypatch.setattr("wenmo.plan.SECONDS", -1.0)
    assert skipped_for_time() == {test.__name__ for test in TESTS}


# Faults, planted --------------------------------------------------------------------------------------


def _retold(subject: Subject, change: Callable[[Sequence], Sequence]) -> Subject:
    return replace(subject, examples=[[change(sequence) for sequence in example] for example in subject.examples])


def _with_tokens(sequence: Sequence, **tokens: np.ndarray) -> Sequence:
    return replace(sequence, tokens={**sequence.tokens, **tokens})


def _shifted(sequence: Sequence) -> Sequence:
    """Each place is to say what it reads: the labels were shifted twice, or not at all."""
    if "targets" not in sequence.tokens:
        return sequence
    ids = sequence.tokens["ids"].astype(np.int64)
    return _with_tokens(sequence, targets=np.where(sequence.tokens["targets"] == -100, -100, ids))


def _one_too_far(sequence: Sequence) -> Sequence:
    return _with_tokens(sequence, targets=np.roll(sequence.tokens["targets"], -1))


def _open(sequence: Sequence) -> Sequence:
    """Masked tokens are shown."""
    targets = sequence.tokens["targets"]
    return _with_tokens(sequence, ids=np.where(targets == -100, sequence.tokens["ids"], targets))


def _endless(sequence: Sequence) -> Sequence:
    targets = sequence.tokens["targets"].copy()
    targets[np.flatnonzero(targets != -100)[-1]] = -100
    return _with_tokens(sequence, targets=targets)


def _other_label(sequence: Sequence) -> Sequence:
    return replace(sequence, values={"label": 1 - int(sequence.values["label"])})


def _everything_learned(sequence: Sequence) -> Sequence:
    """The user's words too."""
    ids = sequence.tokens["ids"].astype(np.int64)
    targets = sequence.tokens["targets"]
    return _with_tokens(sequence, targets=np.append(ids[1:], targets[-1]))


@pytest.mark.parametrize(("task", "fault", "names"), [
    ("causal_lm", _shifted, {"loss"}), ("causal_lm", _one_too_far, {"loss"}), ("span_corruption", _shifted, {"loss"}),
    ("masked_lm", _open, {"loss"}), ("causal_lm", _endless, {"end_of_text"}), ("chat", _endless, {"end_of_text"}),
    ("classification", _other_label, {"mask"}), ("chat", _everything_learned, {"mask"}),
], ids=lambda value: getattr(value, "__name__", None) or str(value))
def test_targets_in_the_wrong_place(tmp_path: Path, data: Path, task: str, fault: Any, names: set[str]) -> None:
    assert failures(_retold(subject(data, tmp_path, task, max_tokens=128), fault), names) == names


def _over_all_tokens(objective: Objective) -> Objective:
    return replace(objective, counts=lambda batch: dict.fromkeys(objective.counts(batch), float(batch.num_tokens)))


def _mean_of_the_batch(objective: Objective) -> Objective:
    """A mean where a sum is meant, and a count of one: right for one batch, wrong for two."""
    def terms(model: Any, batch: Any) -> Any:
        counts = objective.counts(batch)
        return [replace(term, sum=term.sum / counts[term.name]) for term in objective.terms(model, batch)]

    return replace(objective, counts=lambda batch: dict.fromkeys(objective.counts(batch), 1.0), terms=terms)


def _backwards(objective: Objective) -> Objective:
    """The loss grows as it is minimised: a sign is wrong between the loss and the gradient."""
    def terms(model: Any, batch: Any) -> Any:
        return [replace(term, sum=2 * term.sum.detach() - term.sum) for term in objective.terms(model, batch)]

    return replace(objective, terms=terms)


@pytest.mark.parametrize(("fault", "names"), [
    (_over_all_tokens, {"loss"}), (_mean_of_the_batch, {"accumulation"}), (_backwards, {"overfit"})])
@pytest.mark.parametrize("task", ["masked_lm", "classification"])
def test_a_wrong_objective(tmp_path: Path, data: Path, task: str, fault: Any, names: set[str]) -> None:
    made = subject(data, tmp_path, task)
    assert failures(replace(made, objective=fault(made.objective)), names) == names


def test_a_model_that_looks_across_documents(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = subject(data, tmp_path, "causal_lm")
    packed = attend.Packed.__init__

    def one_document(self: Any, lengths: Any, **options: Any) -> None:
        packed(self, [sum(lengths)], **options)

    monkeypatch.setattr(attend.Packed, "__init__", one_document)
    names = {"padding", "order", "isolation"}
    assert failures(made, names) == names


def test_a_model_that_looks_ahead(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = subject(data, tmp_path, "causal_lm")
    packed = attend.Packed.__init__

    def both_ways(self: Any, lengths: Any, *, causal: bool, **options: Any) -> None:
        packed(self, lengths, causal=False, **options)

    monkeypatch.setattr(attend.Packed, "__init__", both_ways)
    assert failures(made, {"causality"}) == {"causality"}


def test_a_model_whose_batch_matters(tmp_path: Path, data: Path) -> None:
    """A normalisation over the batch."""
    made = subject(data, tmp_path, "classification")
    norm = next(module for module in made.model.modules() if isinstance(module, nn.LayerNorm) or hasattr(module, "eps"))
    norm.forward = lambda x_MD: (x_MD - x_MD.mean(0)) / (x_MD.std(0) + 1e-3)
    assert failures(made, {"padding", "isolation"}) == {"padding", "isolation"}


def test_nothing_is_trained(tmp_path: Path, data: Path) -> None:
    made = subject(data, tmp_path, "classification")
    made.model.requires_grad_(False)
    assert failures(made, {"overfit"}) == {"overfit"}


def test_weights_that_are_not_saved(tmp_path: Path, data: Path) -> None:
    made = subject(data, tmp_path, "classification")
    forward = made.model.forward
    extra = torch.full((32,), 0.5)  # neither a parameter nor a buffer
    made.model.forward = lambda *args, **options: forward(*args, **options) + extra * torch.linspace(-1, 1, 32)
    assert failures(made, {"saved"}) == {"saved"}


def _replaced(subject: Subject, definition: Callable[[dict[str, Any]], None]) -> Subject:
    parsed = json.loads(subject.tokenizer._definition)
    definition(parsed)
    return replace(subject, task=replace(subject.task, tokenizer=Tokenizer(json.dumps(parsed))))  # type: ignore[type-var]


def test_a_tokenizer_that_doubles_its_first_token(tmp_path: Path, data: Path) -> None:
    def doubled(definition: dict[str, Any]) -> None:
        processor = definition["post_processor"]
        processor["single"] = [processor["single"][0], *processor["single"]]

    made = subject(data, tmp_path, "classification")
    assert failures(_replaced(made, doubled), {"special_tokens"}) == {"special_tokens"}


TEMPLATES = {
    "the last word is lost": "{% for m in messages %}<|im_start|>{{ m.role }}\n"
                             "{{ m.content if m.role == 'assistant' else m.content[:-2] }}<|im_end|>\n{% endfor %}"
                             "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "asked in other words": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
                            "{% if add_generation_prompt %}<|im_start|>bot\n{% endif %}",
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_chat_template_with_a_fault(tmp_path: Path, data: Path, template: str) -> None:
    made = subject(data, tmp_path, "chat", max_tokens=128)
    task: Any = made.task
    broken = task.tokenizer.with_chat_template(TEMPLATES[template])
    settings = task.settings.model_copy(update={"template": None})
    made = replace(made, task=replace(task, settings=settings, given_tokenizer=broken))
    assert failures(made, {"chat_template"}) == {"chat_template"}


def test_a_row_that_stops_a_test_is_its_failure(tmp_path: Path, data: Path) -> None:
    made = subject(data, tmp_path, "classification")
    rows: list[Mapping[str, Any]] = [{**row, "label": "unheard of"} for row in made.rows]
    assert failures(replace(made, rows=rows), {"mask"}) == {"mask"}


def test_the_preview_shows_what_is_learned(tmp_path: Path, data: Path) -> None:
    made = subject(data, tmp_path, "chat", max_tokens=128)
    [shown] = preview(made, 1)
    row = made.rows[shown.row]["messages"]
    learned = "".join(text for text, yes in shown.parts if yes)
    assert learned == "".join(f"{message['content']}<|im_end|>" for message in row if message["role"] == "assistant")
    [masked] = preview(subject(data, tmp_path / "mlm", "masked_lm"), 1)
    assert any(yes for _, yes in masked.parts)
    assert "[MASK]" not in "".join(text for text, _ in masked.parts)


# Forecast ---------------------------------------------------------------------------------------------


def test_a_plan_of_a_recipe(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    made = recipe("classification", epochs=3, steps=None, save_every=5, best={"metric": "accuracy"})
    del made["train"]["steps"]
    planned = plan(parse_recipe(made, "here"), data_root=data)
    assert planned.passed
    assert list(tmp_path.iterdir()) == []  # nothing is left
    run = train(made, out=tmp_path / "run", data_root=data)
    measured = planned.forecast
    assert measured.steps == run.steps
    assert abs(measured.tokens - run.tokens) < 0.05 * run.tokens
    assert measured.low < measured.seconds < measured.high
    parts = (measured.start_seconds, measured.steps * measured.step_seconds, measured.evaluation_seconds,
             measured.saving_seconds)
    assert sum(parts) == pytest.approx(measured.seconds)
    kept = [path for path in (run.folder / "checkpoints").rglob("*") if path.is_file()]
    assert len(list((run.folder / "checkpoints").iterdir())) == 2
    assert sum(path.stat().st_size for path in kept) == pytest.approx(2 * measured.checkpoint_bytes, rel=0.02)
    assert measured.peak_memory_bytes >= measured.base_bytes > 0  # equal: so small a batch fits into what was held
    assert (measured.truncated, measured.targets) == (0.0, 0.0)


def test_shares_of_what_is_cut_and_learned(data: Path) -> None:
    made = recipe("classification", steps=2)
    made["data"]["max_tokens"] = 8
    assert plan(parse_recipe(made, "here"), data_root=data).forecast.truncated > 0.9
    made = recipe("masked_lm", steps=2)
    assert 0.08 < plan(parse_recipe(made, "here"), data_root=data).forecast.targets < 0.22


def test_every_beginning_is_spread_evenly() -> None:
    for number in (1, 3, 7, 12):
        places = sorted(_spread(place) for place in range(1, number + 1))
        assert max(b - a for a, b in zip([0, *places], [*places, 1], strict=True)) <= 2 / (number + 1)


def _forecast(**changes: Any) -> Forecast:
    values: dict[str, Any] = dict.fromkeys(Forecast.__dataclass_fields__, 0)
    return Forecast(**{**values, "peak_memory_bytes": 8 << 30, "base_bytes": 2 << 30, "bytes_per_token": 2**20,
                       "micro_batch_tokens": 6144, **changes})


def _given(**changes: Any) -> Given:
    on = machine.Device(torch.device("cpu"), torch.bfloat16, 4)
    return replace(Given(on, 1, 6144, 128, 512, "head", True, True, False, 16 << 30, 4), **changes)


def test_advice_follows_the_figures() -> None:
    def overrides(found: Forecast, given: Given) -> list[str]:
        return [each.override for each in advice(found, given)]

    assert overrides(_forecast(), _given()) == []
    assert fitting_tokens(_forecast(), 16 << 30) == int((0.9 * 16 - 2) * 1024)
    assert overrides(_forecast(), _given(memory_bytes=4 << 30)) == [
        "train.accumulation=4", "train.checkpoint_activations=true", "model.lora={rank: 8}"]
    assert overrides(_forecast(), _given(memory_bytes=4 << 30, checkpoints=True)) == [
        "train.accumulation=4", "model.lora={rank: 8}"]
    assert overrides(_forecast(bytes_per_token=2**16), _given(memory_bytes=4 << 30, adapts=False)) == [
        "train.accumulation=2"]
    assert overrides(_forecast(truncated=0.3), _given()) == ["data.too_long=window"]
    assert overrides(_forecast(truncated=0.3), _given(windows=False)) == ["data.max_tokens=256"]
    assert overrides(_forecast(truncated=0.3), _given(windows=False, longest=128)) == []
    assert overrides(_forecast(), _given(cores=8)) == ["train.threads=8"]
    assert overrides(_forecast(bytes_per_token=2**18), _given(accumulation=4)) == ["train.accumulation=1"]


# Forecast beside actual -------------------------------------------------------------------------------


def test_a_run_says_what_it_was_expected_to_cost(data: Path, tmp_path: Path, wenmo: Command,
                                                 caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    made = recipe("classification", steps=30, evaluate_every=10)
    run = train(made, out=tmp_path / "run", data_root=data)
    spent = cost.read(run.folder)
    assert spent["forecast"]["after_steps"] == cost.FORECAST_STEPS
    assert 0 <= spent["forecast"]["low"] <= spent["forecast"]["seconds"] <= spent["forecast"]["high"]
    assert 0 < spent["actual"]["seconds"] <= run.seconds + 0.2
    # The system's own count of pages is some hundreds of KiB off (each processor keeps a part of it).
    assert spent["actual"]["peak_memory_bytes"] >= 0.99 * spent["forecast"]["peak_memory_bytes"]
    assert "minutes in all" in caplog.text
    shown = json.loads(wenmo("show", tmp_path / "run", "--json").out)
    assert shown["cost"] == spent
    card = json.loads((run.folder / "model" / "wenmo.json").read_text(encoding="utf-8"))
    assert "cost" not in card  # the model's folder is the same whatever the machine was busy with


@pytest.mark.parametrize(("others", "threads", "advice"), [(1.0, 2, "train.threads=1"), (0.2, 2, ""), (1.5, 1, "")])
def test_a_run_says_that_other_programs_want_its_processors(
        others: float, threads: int, advice: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture) -> None:
    def computed() -> tuple[float, float]:
        return (others + threads) * time.monotonic(), threads * time.monotonic()

    assert machine.processor_seconds() is not None or not sys.platform.startswith("linux")
    monkeypatch.setattr(machine, "processor_seconds", computed)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    before = torch.get_num_threads()
    try:
        train(recipe("classification", steps=cost.FORECAST_STEPS, threads=threads), out=tmp_path / "run",
              data_root=data)
    finally:
        torch.set_num_threads(before)
    told = [each.getMessage() for each in caplog.records if "other programs" in each.getMessage()]
    assert [advice in each for each in told] == ([True] if advice else [])


def test_a_forecast_from_steps() -> None:
    steady = cost.expected([9.0] * 5 + [1.0] * 15, 120, 10.0, 30.0, 1)
    assert steady["seconds"] == pytest.approx(10 + 45 + 15 + 100 + 30)
    assert (steady["low"], steady["high"]) == (180.0, 220.0)


# Which model ------------------------------------------------------------------------------------------


def test_suggestions_follow_rows_time_and_memory() -> None:
    many = suggest(Asked("classification", 40_000, minutes=120))
    assert "0.941" in many[0].quality
    assert many[0].fits
    assert [each.fits for each in many] == sorted((each.fits for each in many), reverse=True)
    for task, figure in (("classification", "0.956"), ("similarity", "0.878"), ("joint", "0.990"),
                         ("tagging", "0.963")):
        assert any(figure in each.quality for each in suggest(Asked(task, 5_000, language="en")))
        assert not any("chinese" in each.route.start for each in suggest(Asked(task, 5_000, language="en")))
    assert not any("-zh-" in each.route.start for each in suggest(Asked("text_to_text", 5_000, language="en")))
    few = suggest(Asked("classification", 300))
    assert "lora" in few[0].route.start
    assert not suggest(Asked("classification", 40_000, minutes=1))[0].fits_time
    small = suggest(Asked("chat", 1_000, language="en", memory_bytes=1 << 30))
    assert [(each.route.parameters, each.fits_memory) for each in small] == [(135_000_000, True), (494_000_000, False)]
    assert {each.route.parameters for each in suggest(Asked("chat", 1_000, language="zh"))} == {494_000_000}
    assert suggest(Asked("chat", 10)) == []
    assert largest(240, 2) == pytest.approx(2 * largest(60, 2), rel=0.06)
    with pytest.raises(UsageError, match="no rule"):
        suggest(Asked("poetry", 10))


def test_the_figures_of_the_table_stand_in_the_results() -> None:
    results = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    sections = {part.splitlines()[0].strip(): part for part in results.split("\n## ")[1:]}
    assert any(route.quality for route in ROUTES)
    for route in ROUTES:
        assert bool(route.quality) == bool(route.row)
        if route.row:
            for figure in re.findall(r"\d+\.\d+", route.quality):
                assert figure in sections[route.row], route.quality
        if route.tokens_per_second is not None:
            assert f"{route.tokens_per_second:,} tokens" in results
        for path in route.start.split(", "):
            if path.endswith(".yaml"):
                assert (ROOT / path).exists(), path


def test_costs_are_reckoned_from_the_speed_in_the_results() -> None:
    results = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    [told] = re.findall(r"\| causal LM 30M, T 512, B 16 \| ([\d,]+) ", results)
    assert int(told.replace(",", "")) == pytest.approx(TOKENS_PER_SECOND, rel=0.1)
    shape = WORKS["30M"].shape
    matrices = shape.V * shape.D + shape.L * shape.D * (4 * shape.D + 3 * shape.FF)
    assert shape.flops_per_token(matrices) == pytest.approx(FLOPS_PER_TOKEN, rel=0.01)


# The command line -------------------------------------------------------------------------------------


def test_the_command(data: Path, tmp_path: Path, wenmo: Command) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe("causal_lm", steps=4)), encoding="utf-8")
    before = sorted(data.rglob("*"))
    done = wenmo("plan", file, "train.batch_tokens=256", "--data-root", data, "--json")
    assert done.code == 0, done.err
    planned = json.loads(done.out)
    assert planned["passed"]
    assert {test["name"] for test in planned["tests"]} >= {"overfit", "saved", "causality"}
    assert planned["forecast"]["steps"] == 4
    assert sorted(data.rglob("*")) == before
    asked = json.loads(wenmo("plan", file, "--suggest", "--data-root", data, "--cores", 4, "--json").out)
    assert asked["asked"]["task"] == "causal_lm"
    assert asked["asked"]["cores"] == 4
    text = wenmo("plan", "--suggest", "--task", "classification", "--rows", 30_000).out
    assert "docs/results.md" in text
    for wrong in (("plan",), ("plan", "--suggest"), ("plan", file, "--minutes", 3),
                  ("plan", file, "--suggest", "--rows", 3), ("plan", "--suggest", "--task", "chat", "--rows", 300,
                                                             "--language", "fr")):
        assert wenmo(*wrong).code == 2
