"""The linear baselines beside our own models: they learn, they are tuned on training rows alone, they are reported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import small_data
from command import Command, wenmo
from wenmo.evaluation.baseline import STRENGTHS, linear_baseline, tuned_svm
from wenmo.files import write_jsonl

__all__ = ["wenmo"]  # the fixture


def test_both_learn_what_words_say() -> None:
    rows = small_data.reviews(400)
    train, test = rows[:300], rows[300:]
    wanted = [label for _, label in test]
    labels, chosen = tuned_svm(train, [text for text, _ in test], seed=0)
    assert labels == wanted == linear_baseline(train, [text for text, _ in test])
    assert chosen["C"] in STRENGTHS
    assert chosen["held_out_rows"] == 30
    assert (labels, chosen) == tuned_svm(train, [text for text, _ in test], seed=0)


def test_evaluate_reports_it_on_the_same_rows(tmp_path: Path, wenmo: Command, monkeypatch: pytest.MonkeyPatch,
                                              caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    monkeypatch.chdir(tmp_path)
    rows = small_data.reviews(300)
    small_data.write_csv(tmp_path / "reviews-train.csv", ("review", "label"), rows[:240])
    small_data.write_csv(tmp_path / "test.csv", ("review", "label"), rows[240:])
    recipe = yaml.safe_dump(small_data.recipe("classification", steps=4))
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    assert wenmo("train", "recipe.yaml", "--out", "run").code == 0
    result = wenmo("evaluate", "run", "test.csv", "--baseline", "reviews-train.csv", "--json")
    report = json.loads(result.out)
    metrics = report["metrics"]
    assert metrics["baseline_accuracy"]["value"] == 1.0
    assert metrics["difference"]["value"] == pytest.approx(metrics["accuracy"]["value"] - 1.0, abs=1e-6)
    assert report["details"]["baseline"]["C"] in STRENGTHS
    assert "worse than TF-IDF + linear SVM" in caplog.text
    caplog.clear()
    wenmo("evaluate", "run", "test.csv", "--baseline", "test.csv", "--json")
    assert "60 of the 60 rows are among those that the baseline learns from" in caplog.text


@pytest.mark.parametrize("few", [[("好", "positive")], [("很好的书", "positive"), ("不好的书", "positive")] * 9])
def test_too_few_rows_for_a_baseline(few: list[tuple[str, str]], tmp_path: Path, wenmo: Command,
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small_data.write_csv(tmp_path / "reviews-train.csv", ("review", "label"), small_data.reviews(60))
    small_data.write_csv(tmp_path / "few.csv", ("review", "label"), few)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(small_data.recipe("classification", steps=1)), "utf-8")
    assert wenmo("train", "recipe.yaml", "--out", "run").code == 0
    result = wenmo("evaluate", "run", "reviews-train.csv", "--baseline", "few.csv")
    assert result.code == 1
    assert "a linear baseline cannot learn from these" in result.message[0]


def test_a_language_model_stands_beside_counts(tmp_path: Path, wenmo: Command, monkeypatch: pytest.MonkeyPatch,
                                               caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    monkeypatch.chdir(small_data.write(tmp_path))
    (tmp_path / "test.txt").write_text("\n".join(small_data.news(240)[200:]), encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(small_data.recipe("causal_lm", steps=1)), encoding="utf-8")
    assert wenmo("train", "recipe.yaml", "--out", "run").code == 0
    result = wenmo("evaluate", "run", "test.txt", "--baseline", "people.txt", "--json")
    metrics = json.loads(result.out)["metrics"]
    assert 0 < metrics["baseline_bits_per_character"]["value"] < 3 < metrics["bits_per_character"]["value"]
    assert metrics["difference"]["value"] == pytest.approx(
        metrics["bits_per_character"]["value"] - metrics["baseline_bits_per_character"]["value"], abs=1e-5)
    assert metrics["difference"]["low"] > 0
    assert "worse than Kneser–Ney" in caplog.text


def test_only_where_there_is_one(tmp_path: Path, wenmo: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(small_data.write(tmp_path))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(small_data.recipe("masked_lm", steps=1)), encoding="utf-8")
    assert wenmo("train", "recipe.yaml", "--out", "run").code == 0
    result = wenmo("evaluate", "run", "people.txt", "--baseline", "people.txt")
    assert result.code == 2
    assert "no simple baseline" in result.message[0]


def test_a_tagger_stands_beside_a_crf(tmp_path: Path, wenmo: Command, monkeypatch: pytest.MonkeyPatch,
                                      caplog: pytest.LogCaptureFixture) -> None:
    """Words that always carry the same tag: the CRF has them all, an untrained model has not."""
    caplog.set_level("INFO")
    monkeypatch.chdir(tmp_path)
    rows = [{"tokens": [*thing, *verb, *place], "tags": ["B-THING", *["I-THING"] * (len(thing) - 1), *["O"] * len(verb),
                                                       "B-PLACE", *["I-PLACE"] * (len(place) - 1)]}
            for thing in ("这本书", "手机", "电脑") for verb in ("来自", "产于", "运往", "到达了")
            for place in ("北京", "上海市")]
    write_jsonl(tmp_path / "train.jsonl", rows[4:])
    write_jsonl(tmp_path / "test.jsonl", rows[:4])
    recipe = small_data.recipe("tagging", steps=1)
    recipe["data"] |= {"train": [{"path": "train.jsonl"}], "choose": {"carve": 2}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert wenmo("train", "recipe.yaml", "--out", "run").code == 0
    metrics = json.loads(wenmo("evaluate", "run", "test.jsonl", "--baseline", "train.jsonl", "--json").out)["metrics"]
    assert metrics["baseline_f1"]["value"] == 1.0
    assert metrics["difference"]["value"] == pytest.approx(metrics["f1"]["value"] - 1.0, abs=1e-6)
    assert "a CRF on letters and words" in caplog.text


def test_a_crf_with_other_tags_than_the_model_is_refused(tmp_path: Path, wenmo: Command,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"tokens": [thing, verb], "tags": ["n", "v"]} for thing in ("书", "笔", "纸") for verb in ("来", "去")]
    write_jsonl(tmp_path / "train.jsonl", rows)
    write_jsonl(tmp_path / "other.jsonl", [*rows, {"tokens": ["好"], "tags": ["adj"]}])
    recipe = small_data.recipe("tagging", steps=1)
    recipe["data"] |= {"train": [{"path": "train.jsonl"}], "choose": {"carve": 0}}
    recipe["task"] |= {"target": "tags"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert wenmo("train", "recipe.yaml", "--out", "run").code == 0
    result = wenmo("evaluate", "run", "train.jsonl", "--baseline", "other.jsonl")
    assert result.code != 0
    assert "tags that the model does not know: adj" in result.message[0]
