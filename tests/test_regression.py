"""Regression: a number for a text, in the user's units; one output that transformers reads as such."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

import small_data
import wenmo
from wenmo.errors import DataError, RecipeError
from wenmo.loaded import load
from wenmo.metrics.regression import regression_report

RATINGS = {"positive": 4.0, "negative": 1.0}


def rows(number: int = 120) -> list[tuple[str, float]]:
    """Praise is rated 4, blame 1, and a hundredth for each character."""
    return [(text, 1000 + RATINGS[label] + len(text) / 100) for text, label in small_data.reviews(number)]


def recipe(**task: object) -> dict:
    made = small_data.recipe("classification", steps=60, evaluate_every=30, best={"metric": "mae"})
    made["data"]["train"] = [{"path": "rated.csv"}]
    return {**made, "task": {"type": "regression", **task}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rated")
    small_data.write_csv(root / "rated.csv", ("text", "score"), rows())
    wenmo.train(recipe(), out=root / "run", data_root=root)
    return root / "run"


def test_the_scores_come_back_in_the_users_units(run: Path) -> None:
    model = load(run)
    good, bad = model.predict(["这本书很好", "terrible"])
    assert abs(good["score"] - 1004.2) < 0.6
    assert abs(bad["score"] - 1001.2) < 0.6
    report = wenmo.evaluate(model, str(run.parent / "rated.csv"))
    assert report.metrics["pearson"].value > 0.95
    assert report.metrics["mae"].low < report.metrics["mae"].value < 0.5


def test_the_card_says_how_the_scores_are_scaled_and_config_what_they_are(run: Path) -> None:
    task = json.loads((run / "model" / "wenmo.json").read_text(encoding="utf-8"))["tasks"]["regression"]
    scores = [score for _, score in rows()]
    assert task["offset"] == pytest.approx(np.mean(scores), abs=0.5)  # of the rows that were not carved out
    assert task["scale"] == pytest.approx(np.std(scores), abs=0.3)
    config = json.loads((run / "model" / "config.json").read_text(encoding="utf-8"))
    assert config["problem_type"] == "regression"
    assert len(config["id2label"]) == 1


def test_transformers_gives_the_same_number_before_scaling(run: Path) -> None:
    theirs = AutoModelForSequenceClassification.from_pretrained(run / "model").eval()
    assert theirs.config.problem_type == "regression"
    model = load(run)
    ids, _ = model.tokenizer.wrap(model.tokenizer.encode("这本书很好"))
    with torch.no_grad():
        found = float(theirs(torch.tensor([ids])).logits[0, 0])
    task = model.task().settings
    assert found * task.scale + task.offset == pytest.approx(model.predict(["这本书很好"])[0]["score"], abs=1e-4)


def test_a_field_checkpoint_with_one_output_is_regression(run: Path, tmp_path: Path) -> None:
    theirs = AutoModelForSequenceClassification.from_pretrained(run / "model")
    theirs.save_pretrained(tmp_path)
    load(run).tokenizer.save(tmp_path)
    model = load(tmp_path)
    assert list(model.tasks) == ["regression"]
    [answer] = model.predict(["这本书很好"])
    task = load(run).task().settings
    assert answer["score"] * task.scale + task.offset == pytest.approx(
        load(run).predict(["这本书很好"])[0]["score"], abs=1e-4)


@pytest.mark.parametrize(("loss", "delta"), [("mse", 1.0), ("mae", 1.0), ("huber", 0.5)])
def test_the_losses_are_torchs(loss: str, delta: float) -> None:
    from wenmo.data.sequence import Sequence, collate
    from wenmo.objectives import regression

    class One:
        training = False

        def __call__(self, ids_M: torch.Tensor, lengths: object, **inputs: object) -> torch.Tensor:
            return ids_M[:, None].float()

        def classify(self, hidden_MD: torch.Tensor, lengths: object) -> torch.Tensor:
            return hidden_MD / 10

    batch = collate(Sequence(i, {"ids": np.array([id])}, {"score": score})
                    for i, (id, score) in enumerate([(3, 0.0), (40, 1.5), (7, 0.8)]))
    objective = regression(loss, delta)  # type: ignore[arg-type]
    [term] = objective.terms(One(), batch)
    x, y = torch.tensor([0.3, 4.0, 0.7]), torch.tensor([0.0, 1.5, 0.8])
    error = (x - y).abs()
    huber = torch.where(error < delta, 0.5 * error**2, delta * (error - 0.5 * delta))
    expected = {"mse": error**2, "mae": error, "huber": huber}[loss].sum()
    assert float(term.sum) == pytest.approx(float(expected), rel=1e-6)
    assert objective.counts(batch) == {"scores": 3}


def test_errors_are_those_of_numpy() -> None:
    true, said = np.array([1.0, 2.0, 4.0, 8.0]), np.array([1.5, 2.0, 3.0, 9.0])
    report = regression_report(true, said, seed=0)
    assert report["mae"].value == pytest.approx(0.625)
    assert report["rmse"].value == pytest.approx(np.sqrt(np.mean((true - said) ** 2)))
    assert report["pearson"].value == pytest.approx(np.corrcoef(true, said)[0, 1])


def test_an_answer_beyond_the_range_is_cut_to_it(tmp_path: Path) -> None:
    small_data.write_csv(tmp_path / "rated.csv", ("text", "score"), rows(40))
    made = {**recipe(range=[1001, 1005]), "train": {**recipe()["train"], "steps": 2, "best": None}}
    wenmo.train(made, out=tmp_path / "run", data_root=tmp_path)
    model = load(tmp_path / "run")
    model.model.classifier.bias.data.fill_(50.0)
    assert model.predict(["这本书很好"]) == [{"score": 1005.0}]


@pytest.mark.parametrize(("score", "message"), [("good", "no number"), ("nan", "no number"), (7, "beyond 1 to 5")])
def test_a_score_that_is_none_is_refused(tmp_path: Path, score: object, message: str) -> None:
    small_data.write_csv(tmp_path / "rated.csv", ("text", "score"), [("很好", 5), ("很差", 1), ("一般", score)])
    made = recipe(range=[1, 5])
    made["data"]["choose"] = {"carve": 0}
    made["train"] = {**made["train"], "best": None, "evaluate_every": None}
    with pytest.raises(DataError, match=message):
        wenmo.train(made, out=tmp_path / "run", data_root=tmp_path)


def test_keys_that_do_nothing_are_refused() -> None:
    with pytest.raises(RecipeError, match="delta"):
        wenmo.train(recipe(delta=0.5), out="nowhere")
    with pytest.raises(RecipeError, match="lowest"):
        wenmo.train(recipe(range=[5, 1]), out="nowhere")
