"""Two models side by side, several as one, one of several: differences with intervals, means of scores and weights;
and texts that are too long."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import small_data
from command import Command, wenmo
from every_task import CASES, recipe_of
from small_data import recipe, write_csv
from wenmo.ensemble import Ensemble, load_all
from wenmo.errors import DataError, ModelError, UsageError
from wenmo.evaluation.comparison import compare
from wenmo.files import read_jsonl
from wenmo.loaded import load
from wenmo.metrics import Estimate, difference, paired_bootstrap
from wenmo.metrics.comparison import row_macro_f1, row_mean, row_ratio
from wenmo.metrics.correlation import row_pearson
from wenmo.stages.average import average
from wenmo.stages.compress import compress
from wenmo.stages.evaluate import evaluate
from wenmo.stages.library import train
from wenmo.stages.predict import predict

__all__ = ["wenmo"]  # the fixture

# Statistics -------------------------------------------------------------------------------------------


def test_statistics_are_what_they_say() -> None:
    rng = np.random.default_rng(0)
    labels, said = rng.integers(4, size=60), rng.integers(4, size=60)
    above, below = rng.random(60), rng.random(60)
    drawn = rng.integers(60, size=(7, 60))
    sklearn = pytest.importorskip("sklearn.metrics")
    for rows, mean, ratio, f1 in zip(drawn, row_mean(above)(drawn), row_ratio(above, below)(drawn),
                                     row_macro_f1(labels, said, 4)(drawn), strict=True):
        assert mean == pytest.approx(above[rows].mean())
        assert ratio == pytest.approx(above[rows].sum() / below[rows].sum())
        assert f1 == pytest.approx(sklearn.f1_score(labels[rows], said[rows], average="macro", labels=range(4),
                                                    zero_division=0))
    assert row_ratio([1.0, 0.0], [2.0, 0.0])(np.array([[1, 1], [0, 1]])).tolist() == [0.0, 0.5]


def test_a_difference_of_right_and_wrong_is_that_of_pairs() -> None:
    a, b = np.arange(50) % 3 > 0, np.arange(50) % 2 > 0
    assert difference(row_mean(a), row_mean(b), 50, seed=3) == paired_bootstrap(a, b, seed=3)


def test_a_difference_covers_the_truth() -> None:
    """Rows whose a is better by 0.1 on average, strongly paired: the interval knows, and 95% of them hold 0.1."""
    rng = np.random.default_rng(1)
    held, widths, apart = 0, [], []
    for seed in range(200):
        b = rng.normal(size=30)
        a = b + rng.normal(0.1, 0.2, size=30)
        found = difference(row_mean(a), row_mean(b), 30, seed)
        assert found.value == pytest.approx(a.mean() - b.mean())
        held += found.low <= 0.1 <= found.high
        widths.append(found.high - found.low)
        unpaired = difference(row_mean(a), row_mean(rng.permutation(b)), 30, seed)
        apart.append(unpaired.high - unpaired.low)
    assert 181 <= held <= 198
    assert np.mean(widths) < 0.3 * np.mean(apart)


def test_questions_about_one_text_are_drawn_together() -> None:
    """Twenty texts, ten questions each, which a model gets all right or all wrong: twenty observations, not 200."""
    rng = np.random.default_rng(0)
    a, b = (np.repeat(rng.random(20) < share, 10) for share in (0.7, 0.4))
    texts = np.repeat(np.arange(20), 10).tolist()
    apart = difference(row_mean(a), row_mean(b), 200, seed=0)
    together = difference(row_mean(a, texts), row_mean(b, texts), 200, seed=0)
    of_texts = difference(row_mean(a[::10] + 0.0), row_mean(b[::10] + 0.0), 20, seed=0)
    assert together.value == pytest.approx(apart.value)
    assert together.high - together.low > 2.5 * (apart.high - apart.low)
    assert together.high - together.low == pytest.approx(of_texts.high - of_texts.low, rel=0.15)
    alone = list(range(200))  # each text has one question: nothing falls together
    assert difference(row_mean(a, alone), row_mean(b, alone), 200, seed=0) == apart
    assert difference(row_mean(a, ["one"] * 200), row_mean(b, ["one"] * 200), 200, seed=0).high == np.inf


def test_one_row_tells_nothing() -> None:
    found = difference(row_ratio([1.0], [2.0]), row_ratio([1.0], [4.0]), 1, 0)
    assert found == Estimate(0.25, -np.inf, np.inf)
    x = np.arange(9.0)
    same = difference(row_pearson(x, x), row_pearson(x, 2 * x), 9, 0)
    assert abs(same.value) < 1e-12


# Models -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs of one recipe (two of them alike but for the seed), one of other labels, a writer, a cross-validation.
    """
    folder = tmp_path_factory.mktemp("work")
    data = small_data.write(folder / "data", num_reviews=120, num_news=20)
    write_csv(data / "test.csv", ("text", "label"), small_data.reviews(160, seed=5))
    classes = recipe("classification", steps=40, threads=1)
    (folder / "classes.yaml").write_text(yaml.safe_dump(classes, allow_unicode=True), encoding="utf-8")
    train(classes, out=folder / "a", data_root=data)
    tuned = {name: part for name, part in classes.items() if name != "tokenizer"} | {
        "model": {"from": str(folder / "a")}}
    for name, steps in (("b", 1), ("c", 3)):
        train(tuned, f"train.steps={steps}", "train.best=null", f"seed={steps}", out=folder / name, data_root=data)
    train(classes, "train.steps=1", "seed=9", out=folder / "poor", data_root=data)
    train(classes, "train.steps=1", "task.labels=[positive, negative]", out=folder / "other", data_root=data)
    train(recipe("causal_lm", steps=1, threads=1), out=folder / "gpt", data_root=data)
    train(recipe("causal_lm", steps=8, threads=1), out=folder / "gpt2", data_root=data)
    return folder


@pytest.fixture(autouse=True)
def there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("WENMO_LANG", "en")


def test_the_better_of_two(wenmo: Command, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    result = wenmo("evaluate", "a", "poor", "data/test.csv", "--json")
    assert result.code == 0
    found = json.loads(result.out)
    assert (found["models"], found["task"], found["n"], found["seed"]) == (["a", "poor"], "classification", 160, 0)
    accuracy = found["metrics"]["accuracy"]
    assert accuracy["difference"]["value"] == pytest.approx(accuracy["a"]["value"] - accuracy["b"]["value"], abs=2e-6)
    assert accuracy["difference"]["low"] > 0
    assert accuracy["within_noise"] is False
    assert set(found["metrics"]["ece"]) == {"a", "b"}  # no function of rows: shown, not judged
    assert "a is better than poor: accuracy differs by" in caplog.text
    one = json.loads(wenmo("evaluate", "a", "data/test.csv", "--json").out)
    assert one["metrics"]["accuracy"] == accuracy["a"]
    assert [row["data"] for row in read_jsonl(Path("poor/evaluations.jsonl"))] == ["data/test.csv"]


def test_a_model_and_itself_are_within_noise(wenmo: Command, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    result = wenmo("evaluate", "a", "a", "data/test.csv")
    assert result.code == 0
    assert result.out.count("within noise") == 2  # accuracy and macro F1
    assert "cannot be told apart here" in caplog.text
    swapped = compare(load("poor"), load("a"), rows(), "rows").differences["accuracy"]
    assert swapped.high < 0


def rows() -> list[dict[str, str]]:
    return [{"text": text, "label": label} for text, label in small_data.reviews(160, seed=5)]


def test_language_models_are_compared_by_bits(wenmo: Command) -> None:
    found = json.loads(wenmo("evaluate", "gpt2", "gpt", "data/people.txt", "--json").out)["metrics"]
    assert found["bits_per_byte"]["difference"]["high"] < 0
    assert set(found["perplexity"]) == {"a", "b"}


@pytest.mark.parametrize(("command", "what"), [
    (("a", "b", "c", "data/test.csv"), "two can be compared"),
    (("a", "gpt", "data/test.csv"), "not of one task"),
    (("a", "b", "data/test.csv", "--with", "c"), "are for one model"),
    (("a", "b", "data/test.csv", "--predictions", "p.jsonl"), "are for one model"),
])
def test_what_cannot_be_compared_is_refused(wenmo: Command, command: tuple[str, ...], what: str) -> None:
    result = wenmo("evaluate", *command)
    assert result.code == 2
    assert what in result.err


# Ensembles --------------------------------------------------------------------------------------------


def test_an_ensemble_answers_with_the_mean(wenmo: Command) -> None:
    texts = [row["text"] for row in rows()[:6]]
    together = load_all(["a", "poor", "b"])
    answers = together.answers(texts)
    of_each = [load(name).predict(texts) for name in ("a", "poor", "b")]
    for number, answer in enumerate(answers):
        assert isinstance(answer, dict)
        mean = {label: np.mean([found[number]["scores"][label] for found in of_each]) for label in answer["scores"]}
        assert answer["scores"] == pytest.approx(mean, abs=2e-6)
        assert answer["label"] == max(mean, key=lambda label: mean[label])
    said = wenmo("predict", "a", "--with", "poor", "--with", "b", stdin="\n".join(texts).encode())
    assert [json.loads(line) for line in said.out.splitlines()] == answers
    report = evaluate("a", "data/test.csv", together=["poor", "b"])
    assert report.model == "a + poor + b"
    outputs, _ = together.outputs_and_cuts(rows(), together.task(), with_targets=True)
    right = np.mean([{"label": together.task().decode(row, found)["label"]} == {"label": row["label"]}
                     for row, found in zip(rows(), outputs, strict=True)])
    assert report.metrics["accuracy"].value == pytest.approx(right)


def of_two(name: str, folder: Path) -> tuple[Ensemble, list[Any], list[dict[str, Any]]]:
    """Models of two seeds as one, what each of them gives, and the rows."""
    made = recipe_of(name, folder, steps=6)
    for seed in (0, 1):
        train({**made, "seed": seed}, out=folder / str(seed), data_root=folder)
    together = load_all([str(folder / "0"), str(folder / "1")], threads=1)
    assert isinstance(together, Ensemble)
    rows = list(CASES[name][3])
    return together, [each.outputs(rows, each.task(), with_targets=True) for each in together.loaded], rows


@pytest.mark.parametrize("name", ["tagging", "tagging with a CRF"])
def test_an_ensemble_of_taggers(name: str, tmp_path: Path) -> None:
    """The mean probability of each tag, over windows; of CRFs the mean of all scores. One with itself stays itself."""
    together, (first, second), rows = of_two(name, tmp_path)
    task: Any = together.task()
    found, _ = together.outputs_and_cuts(rows, task, with_targets=True)
    alone = load_all([str(tmp_path / "0"), str(tmp_path / "0")], threads=1)
    assert [task.decode(row, its) for row, its in zip(rows, alone.outputs_and_cuts(rows, task)[0], strict=True)] == [
        task.decode(row, its) for row, its in zip(rows, first, strict=True)]
    a, b, both = (np.concatenate([task.pooled(its).scores for its in each]) for each in (first, second, found))
    expected = (a + b) / 2 if "CRF" in name else np.log((np.exp(a) + np.exp(b)) / 2)
    assert both == pytest.approx(expected, abs=1e-5)
    answers = together.answers([{"tokens": row["tokens"]} for row in rows])
    assert answers == [task.decode(row, its) for row, its in zip(rows, found, strict=True)]
    assert evaluate(str(tmp_path / "0"), str(tmp_path / "rows.jsonl"), together=[str(tmp_path / "1")]).n == len(rows)


def test_an_ensemble_of_vectors_has_the_mean_cosine(tmp_path: Path) -> None:
    together, each, rows = of_two("similarity", tmp_path)
    task = together.task()
    cosines = [[float(np.dot(*its[0])) for its in outputs] for outputs in each]
    answers = together.answers(rows)
    assert [answer["score"] for answer in answers if isinstance(answer, dict)] == pytest.approx(
        np.mean(cosines, axis=0), abs=2e-6)
    found, _ = together.outputs_and_cuts(rows, task, with_targets=True)
    assert task.measure(rows, found, seed=0).n == len(rows)


def test_an_ensemble_of_several_tasks(tmp_path: Path) -> None:
    together, each, rows = of_two("joint", tmp_path)
    answers = together.answers(rows)
    told = [[each.task().decode(row, its) for row, its in zip(rows, outputs, strict=True)]
            for each, outputs in zip(together.loaded, each, strict=True)]
    for answer, one, other in zip(answers, *told, strict=True):
        assert isinstance(answer, dict)
        assert answer["stars"]["score"] == pytest.approx((one["stars"]["score"] + other["stars"]["score"]) / 2,
                                                         abs=2e-6)
        for label, score in answer["sentiment"]["scores"].items():
            both = one["sentiment"]["scores"][label] + other["sentiment"]["scores"][label]
            assert score == pytest.approx(both / 2, abs=2e-6)
    report = evaluate(str(tmp_path / "0"), str(tmp_path / "rows.jsonl"), together=[str(tmp_path / "1")])
    assert {"sentiment.accuracy", "stars.mae"} <= set(report.metrics)
    assert evaluate(str(tmp_path / "0"), str(tmp_path / "rows.jsonl"), task="stars",
                    together=[str(tmp_path / "1")]).n == len(rows)


def test_a_row_that_cannot_be_answered_costs_itself() -> None:
    found = load_all(["a", "b"]).answers(["很好", "", "很差"])
    assert [isinstance(answer, dict) for answer in found] == [True, False, True]


def test_the_folds_of_a_cross_validation(folder: Path) -> None:
    train(recipe("classification", steps=2, threads=1), "data.choose={folds: 2, refit: false}", out="cv",
          data_root="data")
    together = load_all(["cv/folds"])
    assert isinstance(together, Ensemble)
    assert [each.reference for each in together.loaded] == ["cv/folds/fold-1", "cv/folds/fold-2"]
    assert len(list(predict("cv/folds", "data/test.csv"))) == 160


@pytest.mark.parametrize(("other", "what"), [("other", "different questions"), ("gpt", "have no mean")])
def test_models_that_do_not_belong_together_are_refused(other: str, what: str) -> None:
    with pytest.raises(ModelError, match=what):
        load_all(["a", other]).task()


# Averages ---------------------------------------------------------------------------------------------


def test_the_mean_of_weights(wenmo: Command, tmp_path: Path) -> None:
    result = wenmo("average", "a", "b", "c", "--out", tmp_path / "mean", "--json")
    assert result.code == 0
    facts = json.loads(result.out)
    assert facts["averaged"] == ["a", "b", "c"]
    assert 0 < facts["distance"] < 0.1
    mean = load(tmp_path / "mean")
    of_each = [dict(load(name).model.named_parameters()) for name in ("a", "b", "c")]
    for name, parameter in mean.model.named_parameters():
        expected = torch.stack([found[name].detach() for found in of_each]).double().mean(0).float()
        torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=0)
    assert mean.check() == pytest.approx(0, abs=1e-6)  # golden prompts of its own
    assert len(mean.opened.card["lineage"]["average_of"]) == 3
    assert "scores" not in mean.opened.card
    assert mean.predict(["很好"])[0]["label"] == load("a").predict(["很好"])[0]["label"]


def test_the_mean_of_a_model_with_itself_is_it(tmp_path: Path) -> None:
    assert average(["a", "a"], tmp_path / "same")["distance"] == 0
    ours, theirs = (dict(load(name).model.named_parameters()) for name in ("a", tmp_path / "same"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(("other", "what"), [("other", "tasks: classification"), ("gpt", "configuration: "),
                                             ("poor", "tokenizer")])
def test_models_of_other_kinds_are_refused(other: str, what: str, tmp_path: Path) -> None:
    if other == "poor":  # the same tokenizer by the same text: another by another
        train(recipe("classification", steps=1), "tokenizer.train.min_frequency=9", out=tmp_path / "poor",
              data_root="data")
        other = str(tmp_path / "poor")
    with pytest.raises(ModelError, match=what):
        average(["a", other], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def test_weights_in_few_bits_have_no_mean(tmp_path: Path) -> None:
    compress("a", tmp_path / "small", {"format": "int8", "method": "rtn"})
    with pytest.raises(ModelError, match="few bits"):
        average([str(tmp_path / "small")] * 2, tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def test_what_was_tuned_may_differ_and_is_left_out(tmp_path: Path) -> None:
    shutil.copytree("a/model", tmp_path / "tuned")
    card = json.loads((tmp_path / "tuned" / "wenmo.json").read_text(encoding="utf-8"))
    card["tasks"]["classification"]["thresholds"] = {"positive": 0.3}
    (tmp_path / "tuned" / "wenmo.json").write_text(json.dumps(card), encoding="utf-8")
    average([str(tmp_path / "tuned"), "b"], tmp_path / "mean")
    mean = json.loads((tmp_path / "mean" / "wenmo.json").read_text(encoding="utf-8"))
    assert "thresholds" not in mean["tasks"]["classification"]
    assert mean["tasks"]["classification"]["labels"] == card["tasks"]["classification"]["labels"]


@pytest.mark.parametrize("command", [
    ("compress", "M", "--format", "int8", "--out", "M"), ("average", "a", "M", "--out", "M"),
    ("compress", "M", "--format", "int8", "--out", "R/model"), ("tokenizer", "train", "data/people.txt", "--out", "M"),
    ("evaluate", "M", "T", "--predictions", "T"), ("embed", "M", "T", "--out", "T"),
])
def test_nothing_that_is_read_is_replaced(command: tuple[str, ...], wenmo: Command, tmp_path: Path) -> None:
    shutil.copytree("a", tmp_path / "R")
    shutil.copytree("a/model", tmp_path / "M")
    (tmp_path / "T.jsonl").write_text('{"text": "很好", "label": "positive"}\n', encoding="utf-8")
    there = {"M": tmp_path / "M", "R/model": tmp_path / "R" / "model", "T": tmp_path / "T.jsonl"}
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    result = wenmo(*(there.get(part, part) for part in command))
    assert result.code == 2, result.err
    assert len(result.message) == 3
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.parametrize("row", [5, None, {"text": 5}, {"text": ["a"]}, {"text": "  "}, {"text": True}])
def test_what_is_no_text_is_refused_from_python_too(row: Any) -> None:
    with pytest.raises(DataError) as caught:
        load("a").predict([row])
    assert len(str(caught.value).splitlines()) == 3


def test_an_average_needs_two_and_a_new_folder(tmp_path: Path) -> None:
    for references, out in ((["a"], tmp_path / "mean"), (["a", "b"], Path("a"))):
        with pytest.raises(UsageError):
            average(references, out)


# Texts that are too long ------------------------------------------------------------------------------


def long_rows() -> list[dict[str, Any]]:
    return [{"text": row["text"] * (1 + number % 4), "label": row["label"]} for number, row in enumerate(rows()[:24])]


def test_what_was_not_read_is_said(wenmo: Command, tmp_path: Path) -> None:
    train(recipe("classification", steps=1), "data.max_tokens=16", out=tmp_path / "short", data_root="data")
    write_csv(tmp_path / "long.csv", ("text", "label"), [tuple(row.values()) for row in long_rows()])
    tokenizer = load(tmp_path / "short").tokenizer
    expected = [max(0, len(tokenizer.encode(row["text"])) - 14) for row in long_rows()]
    found = json.loads(wenmo("evaluate", tmp_path / "short", tmp_path / "long.csv", "--json").out)
    assert found["details"]["truncated"] == {"rows": sum(map(bool, expected)), "tokens": sum(expected)}
    assert f"{sum(expected):,} tokens were not read" in " ".join(
        wenmo("evaluate", tmp_path / "short", tmp_path / "long.csv").out.split())
    said = wenmo("predict", tmp_path / "short", tmp_path / "long.csv").out.splitlines()
    assert [json.loads(line).get("truncated_tokens", 0) for line in said] == expected


def test_windows_read_it_all(wenmo: Command, tmp_path: Path) -> None:
    """Each window is answered as a text of its own would be; the row's scores are their mean, or their largest."""
    answers: dict[str, Any] = {}
    for pool in ("mean", "max"):
        train(recipe("classification", steps=20), "data.max_tokens=16", "data.too_long=window", "data.overlap_tokens=4",
              f"data.pool={pool}", out=tmp_path / pool, data_root="data")
        model = load(tmp_path / pool)
        task = model.task()
        for row in long_rows():
            encoded = task.encode(0, row, with_targets=True)
            assert encoded.cut_tokens == 0
            ids = [sequence.tokens["ids"][1:-1].tolist() for sequence in encoded.sequences]
            assert all(len(sequence) <= 16 for sequence in encoded.sequences)
            assert all(sequence.values == encoded.sequences[0].values for sequence in encoded.sequences)
            assert ids[0][: len(ids[0])] == model.tokenizer.encode(row["text"])[: len(ids[0])]
            outputs = [model.outputs([row], task)[0]][0]
            assert len(outputs) == len(ids)
            pooled = np.mean(outputs, axis=0) if pool == "mean" else np.max(outputs, axis=0) / np.max(outputs, 0).sum()
            assert list(model.predict([row])[0]["scores"].values()) == pytest.approx(pooled.tolist(), abs=1e-5)
        answers[pool] = model.predict(long_rows())
        assert not any("truncated_tokens" in answer for answer in answers[pool])
        write_csv(tmp_path / "long.csv", ("text", "label"), [tuple(row.values()) for row in long_rows()])
        report = evaluate(str(tmp_path / pool), str(tmp_path / "long.csv"))
        assert (report.n, "truncated" in report.details) == (24, False)
    assert answers["mean"] != answers["max"]
