"""Cross-validation: every row is held out once, nothing leaks, the means are those of the folds, and it resumes."""

from __future__ import annotations

import json
import math
import shutil
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import small_data
from small_data import recipe, write_csv
from wenmo.config import parse_yaml
from wenmo.data.sources import fold_numbers
from wenmo.errors import CheckpointError, DataError, UsageError
from wenmo.files import read_jsonl, sha256_file
from wenmo.loaded import load
from wenmo.metrics import mean_of_runs
from wenmo.stages.folds import CrossValidated
from wenmo.stages.library import train
from wenmo.text.intake import Row

LABELS = st.sampled_from(["好", "坏", "一般"])
TEXTS = st.lists(st.tuples(st.text(min_size=1, max_size=3), LABELS), min_size=8, max_size=60)


@pytest.fixture(autouse=True)
def english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WENMO_LANG", "en")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_data.write(tmp_path_factory.mktemp("data"), num_reviews=90)


def small(choose: str, **train_settings: Any) -> dict[str, Any]:
    settings = {"steps": 6, "save_every": 100, "evaluate_every": 3, **train_settings}
    made = recipe("classification", **settings)
    made["model"]["hidden_size"] = 16
    made["data"]["choose"] = parse_yaml(choose, "here")
    return made


def run(made: dict[str, Any], out: Path, data: Path, *overrides: str) -> CrossValidated:
    result = train(made, *overrides, out=out, data_root=data)
    assert isinstance(result, CrossValidated)
    return result


@pytest.fixture(scope="module")
def whole(data: Path) -> CrossValidated:
    return run(small("{folds: 3}"), data.parent / "whole", data)


# Which rows -------------------------------------------------------------------------------------------


def rows_of(texts: list[tuple[str, str]]) -> list[Row]:
    return [Row({"text": text, "label": label}, "here", number) for number, (text, label) in enumerate(texts)]


@given(texts=TEXTS, folds=st.integers(2, 5), seed=st.integers(0, 9), shuffle=st.randoms())
def test_folds_are_even_keep_equal_texts_together_and_do_not_depend_on_order(
        texts: list[tuple[str, str]], folds: int, seed: int, shuffle: Any) -> None:
    different = len({text for text, _ in texts})
    if different < folds:
        with pytest.raises(DataError, match="cannot make"):
            fold_numbers(rows_of(texts), folds, seed)
        return
    fold_of = dict(zip((text for text, _ in texts), fold_numbers(rows_of(texts), folds, seed), strict=True))
    assert [fold_of[text] for text, _ in texts] == fold_numbers(rows_of(texts), folds, seed)
    sizes = Counter(fold_of.values())
    assert set(sizes) == set(range(1, folds + 1))
    assert max(sizes.values()) - min(sizes.values()) <= 1
    mixed = shuffle.sample(texts, len(texts))
    assert fold_numbers(rows_of(mixed), folds, seed) == [fold_of[text] for text, _ in mixed]


@given(sizes=st.lists(st.integers(2, 23), min_size=2, max_size=4), folds=st.integers(2, 5))
def test_stratified_folds_have_their_share_of_each_class(sizes: list[int], folds: int) -> None:
    rows = rows_of([(f"{label} {i}", str(label)) for label, size in enumerate(sizes) for i in range(size)])
    if len(rows) < folds:
        return
    numbers = fold_numbers(rows, folds, 0, class_column="label")
    counts = Counter((row.values["label"], number) for row, number in zip(rows, numbers, strict=True))
    for label, size in enumerate(sizes):
        assert {counts[str(label), fold] for fold in range(1, folds + 1)} <= {size // folds, -(-size // folds)}
    totals = Counter(numbers).values()
    assert max(totals) - min(totals) <= 1


def test_another_seed_makes_other_folds() -> None:
    rows = rows_of([(str(i), "x") for i in range(60)])
    same = sum(a == b for a, b in zip(fold_numbers(rows, 3, 0), fold_numbers(rows, 3, 1), strict=True))
    assert same < 40


def test_a_class_of_one_text_is_said() -> None:
    with pytest.raises(DataError, match="one text only is `odd`"):
        fold_numbers(rows_of([*((str(i), "x") for i in range(9)), ("9", "odd")]), 3, 0, class_column="label")


def test_each_row_is_held_out_once_and_answered_by_a_model_that_has_not_seen_it(
        whole: CrossValidated, data: Path) -> None:
    told = read_jsonl(whole.folder / "predictions.jsonl")
    assert sorted((row["text"], row["label"]) for row in told) == sorted(small_data.reviews(90))
    assert set(Counter(row["fold"] for row in told).values()) == {30}
    assert {(row["fold"], row["label"]): 0 for row in told}.keys() == {
        (fold, label) for fold in (1, 2, 3) for label in ("positive", "negative")}
    for number, fold in enumerate(whole.folds, 1):
        held_out = [row for row in told if row["fold"] == number]
        right = sum(row["prediction"] == row["label"] for row in held_out)
        assert right / 30 == pytest.approx(fold.metrics["accuracy"])  # the very rows that the run was validated on
        answers = load(str(fold.folder)).predict([row["text"] for row in held_out[:5]])
        assert [answer["label"] for answer in answers] == [row["prediction"] for row in held_out[:5]]


def test_equal_texts_that_are_kept_stay_on_one_side(tmp_path: Path) -> None:
    rows = small_data.reviews(40)
    write_csv(tmp_path / "reviews-train.csv", ("review", "label"), [*rows, *rows])
    run(small("{folds: 2, refit: false}"), tmp_path / "run", tmp_path, "data.duplicates=keep")
    told = read_jsonl(tmp_path / "run" / "predictions.jsonl")
    assert len(told) == 80
    assert len({(row["text"], row["fold"]) for row in told}) == 40


# What comes of it -------------------------------------------------------------------------------------


def test_the_report_has_mean_spread_and_students_interval(whole: CrossValidated) -> None:
    report = json.loads((whole.folder / "report.json").read_text(encoding="utf-8"))
    assert report["interval"] == "95%, Student's t over 3 folds"
    assert [fold["rows"] for fold in report["folds"]] == [30, 30, 30]
    for name, told in report["metrics"].items():
        values = [fold["metrics"][name] for fold in report["folds"]]
        assert told["value"] == pytest.approx(statistics.fmean(values), abs=1e-6)
        assert told["sd"] == pytest.approx(statistics.stdev(values), abs=1e-6)
        half = 4.3027 * statistics.stdev(values) / math.sqrt(3)  # t with two degrees of freedom
        assert told["high"] - told["value"] == pytest.approx(half, abs=1e-5)
        assert whole.metrics[name] == pytest.approx(told["value"], abs=1e-6)


def test_of_one_run_the_spread_is_not_known() -> None:
    estimate, deviation = mean_of_runs([0.5])
    assert (estimate.value, estimate.low, estimate.high) == (0.5, -math.inf, math.inf)
    assert math.isnan(deviation)


def test_the_final_model_has_learned_from_all_rows(whole: CrossValidated, tmp_path: Path, data: Path) -> None:
    alone = train(small("{carve: 0}", evaluate_every=None), out=tmp_path / "alone", data_root=data)
    assert weights(whole.folder) == weights(alone.folder)
    assert load(str(whole.folder)).predict(["昨天看来，这本书很好。"])


def test_without_refit_there_is_no_final_model(tmp_path: Path, data: Path) -> None:
    run(small("{folds: 2, refit: false, stratify: false}"), tmp_path / "run", data)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["folds", "predictions.jsonl", "report.json"]


def test_the_final_model_stops_where_the_folds_were_best(tmp_path: Path, data: Path) -> None:
    made = small("{folds: 3}", steps=None, epochs=4.0, evaluate_every=2, batch_tokens=256,
                 best={"metric": "accuracy", "patience": 1})
    result = run(made, tmp_path / "run", data)
    cards = [json.loads((folder / "model" / "wenmo.json").read_text())["lineage"]
             for folder in (*(fold.folder for fold in result.folds), result.folder)]
    *folds, final = cards
    assert final["steps"] == max(1, round(1.5 * sum(fold["best_step"] for fold in folds) / 3))


def test_one_fold_alone_is_that_of_the_whole(whole: CrossValidated, tmp_path: Path, data: Path) -> None:
    """So that folds can be trained on several machines."""
    alone = train(small("{folds: 3, fold: 2}"), out=tmp_path / "alone", data_root=data)
    assert weights(alone.folder) == weights(whole.folds[1].folder)


# Resuming ---------------------------------------------------------------------------------------------


def weights(folder: Path) -> str:
    return sha256_file(folder / "model" / "model.safetensors")


def result_of(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_file(path) for path in folder.rglob("*")
            if path.name in ("model.safetensors", "predictions.jsonl")}


def test_what_is_missing_is_made_again_and_the_same(whole: CrossValidated, tmp_path: Path, data: Path) -> None:
    """As a kill between two folds, in the middle of one, and before the final model would leave it."""
    shutil.copytree(whole.folder, tmp_path / "run")
    for name in ("folds/fold-3", "folds/fold-2/model", "model", "checkpoints", "predictions.jsonl"):
        path = tmp_path / "run" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    run(small("{folds: 3}"), tmp_path / "run", data)
    assert result_of(tmp_path / "run") == result_of(whole.folder)


def test_another_recipe_in_the_same_folder_is_refused_before_a_fold_is_trained(
        whole: CrossValidated, tmp_path: Path, data: Path) -> None:
    before = result_of(whole.folder)
    with pytest.raises(CheckpointError, match=r"train\.batch_tokens"):
        run(small("{folds: 3}"), whole.folder, data, "train.batch_tokens=256")
    assert result_of(whole.folder) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photos").mkdir()
    with pytest.raises(UsageError, match="other things: photos"):
        run(small("{folds: 3}"), tmp_path / "mine", data)
    assert not (tmp_path / "mine" / "folds").exists()
