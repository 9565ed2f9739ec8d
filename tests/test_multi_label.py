"""Multi-label classification: any number of labels a text, each with a threshold; scorers as scikit-learn's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score, label_ranking_average_precision_score
from transformers import AutoModelForSequenceClassification

import small_data
import wenmo
from wenmo.data.given import rows_of
from wenmo.errors import DataError, RecipeError
from wenmo.loaded import load
from wenmo.metrics.multi_label import best_f1_threshold, multi_label_report
from wenmo.tasks.multi_label import MultiLabel, MultiLabelSettings


def rows(number: int = 160) -> list[tuple[str, list[str]]]:
    """Praise, and Chinese; a third of the texts has neither."""
    def of(text: str, label: str) -> list[str]:
        return [name for name, yes in (("praise", label == "positive"), ("中文", "书" in text)) if yes]

    return [(text, of(text, label)) for text, label in small_data.reviews(number)]


def recipe(**task: object) -> dict:
    made = small_data.recipe("classification", steps=150, evaluate_every=75, best={"metric": "loss"})
    made["data"]["train"] = [{"path": "labelled.jsonl"}]
    return {**made, "task": {"type": "multi_label", **task}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("labelled")
    text = "\n".join(json.dumps({"text": text, "labels": labels}, ensure_ascii=False) for text, labels in rows())
    (root / "labelled.jsonl").write_text(text, encoding="utf-8")
    wenmo.train(recipe(), out=root / "run", data_root=root)
    return root / "run"


def test_it_learns_and_the_thresholds_lie_in_the_card(run: Path) -> None:
    card = json.loads((run / "model" / "wenmo.json").read_text(encoding="utf-8"))["tasks"]["multi_label"]
    assert card["labels"] == ["praise", "中文"]
    assert set(card["thresholds"]) == {"praise", "中文"}
    model = load(run)
    report = wenmo.evaluate(model, str(run.parent / "labelled.jsonl"))
    assert report.metrics["micro_f1"].value > 0.85
    assert set(report.metrics) == {"micro_f1", "macro_f1", "subset_accuracy", "lrap"}
    assert wenmo.evaluate(model, [{"text": "无", "labels": ""}]).n == 1  # a text may have none of them
    [answer] = model.predict(["昨天看来，这本书很好。"])
    assert set(answer["labels"]) == {name for name, score in answer["scores"].items()
                                     if score >= card["thresholds"][name]}


def test_a_threshold_of_ones_own_is_kept(run: Path) -> None:
    model = load(run)
    task = model.task()
    assert isinstance(task, MultiLabel)
    fixed = MultiLabelSettings(labels=("praise", "中文"), thresholds={"praise": 0.9, "中文": 0.1})
    mine = MultiLabel(fixed, task.tokenizer, task.lengths)
    assert mine.tuned([{"text": "a", "labels": []}], lambda: pytest.fail("asked for outputs")) is mine
    assert mine.decode({}, [np.array([0.8, 0.2])])["labels"] == ["中文"]


def test_transformers_reads_it_as_multi_label_and_gives_the_same(run: Path, tmp_path: Path) -> None:
    theirs = AutoModelForSequenceClassification.from_pretrained(run / "model").eval()
    assert theirs.config.problem_type == "multi_label_classification"
    assert theirs.config.id2label == {0: "praise", 1: "中文"}
    model = load(run)
    ids, _ = model.tokenizer.wrap(model.tokenizer.encode("这本书很好"))
    with torch.no_grad():
        found = torch.sigmoid(theirs(torch.tensor([ids])).logits[0]).numpy()
    [ours] = model.predict(["这本书很好"])
    assert np.allclose(found, list(ours["scores"].values()), atol=1e-5)
    theirs.save_pretrained(tmp_path)  # without wenmo.json
    model.tokenizer.save(tmp_path)
    [implied] = load(tmp_path).predict(["这本书很好"])
    assert implied["scores"] == pytest.approx(ours["scores"], abs=1e-5)


def test_the_scores_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    true = rng.random((200, 5)) < [0.5, 0.3, 0.1, 0.05, 0.9]
    probabilities = (0.6 * true + rng.random((200, 5))) / 1.6
    probabilities = probabilities.round(2)  # ties
    thresholds = np.array([0.5, 0.4, 0.6, 0.5, 0.5])
    metrics, details = multi_label_report(true, probabilities, thresholds, list("abcde"), seed=0)
    said = probabilities >= thresholds
    assert metrics["micro_f1"].value == pytest.approx(f1_score(true, said, average="micro"))
    assert metrics["macro_f1"].value == pytest.approx(f1_score(true, said, average="macro"))
    assert metrics["subset_accuracy"].value == pytest.approx((true == said).all(1).mean())
    assert metrics["lrap"].value == pytest.approx(label_ranking_average_precision_score(true, probabilities))
    for row, expected in zip(details["per_class"], f1_score(true, said, average=None), strict=True):
        assert row["f1"].value == pytest.approx(expected)
        assert row["f1"].low <= row["f1"].value <= row["f1"].high
    for estimate in metrics.values():
        assert estimate.low < estimate.value < estimate.high


def test_a_perfect_score_on_few_rows_is_not_certain() -> None:
    true = np.eye(2, dtype=bool)[[0, 1] * 5]
    metrics, _ = multi_label_report(true, true.astype(float), np.array([0.5, 0.5]), ["a", "b"], seed=0)
    assert metrics["micro_f1"].value == 1
    assert metrics["micro_f1"].low < 0.99
    assert metrics["macro_f1"].low < 0.99


def test_the_threshold_is_the_best_of_all() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        true = rng.random(12) < 0.3
        true[0] = True
        probabilities = ((true * 0.3 + rng.random(12)) / 1.3).round(1)

        def f1(threshold: float, true: np.ndarray = true, probabilities: np.ndarray = probabilities) -> float:
            said = probabilities >= threshold
            return float(2 * (true & said).sum() / (true.sum() + said.sum()))

        best = max(map(f1, np.linspace(-0.01, 1.01, 103)))
        assert f1(best_f1_threshold(probabilities, true)) == pytest.approx(best)
    assert best_f1_threshold([0.1, 0.2], [False, False]) == 0.5


def test_a_threshold_of_rare_labels_is_not_rounded_to_none() -> None:
    task = MultiLabel(MultiLabelSettings(labels=("x", "y")), None, None)
    said = [[np.array([chance, 0.9])] for chance in (3e-7, 1e-7, 1e-8)]
    tuned = task.tuned([{"labels": ["x", "y"]}, {"labels": ["y"]}, {"labels": ["y"]}], lambda: said)
    assert tuned.settings.thresholds["x"] == pytest.approx(2e-7)


def test_the_loss_is_torchs() -> None:
    from wenmo.data.sequence import Sequence, collate
    from wenmo.objectives import multi_label

    class Two:
        training = False

        def __call__(self, ids_M: torch.Tensor, lengths: object, **inputs: object) -> torch.Tensor:
            return ids_M[:, None].float()

        def classify(self, hidden_MD: torch.Tensor, lengths: object) -> torch.Tensor:
            return hidden_MD * torch.tensor([[0.1, -0.2]])

    labels = np.array([[1, 0], [1, 1], [0, 0]], np.float32)
    batch = collate(Sequence(i, {"ids": np.array([i + 1])}, {"labels": labels[i]}) for i in range(3))
    [term] = multi_label((2.0, 3.0)).terms(Two(), batch)
    scores = torch.tensor([[1.0], [2.0], [3.0]]) * torch.tensor([[0.1, -0.2]])
    expected = F.binary_cross_entropy_with_logits(scores, torch.tensor(labels), pos_weight=torch.tensor([2.0, 3.0]),
                                                  reduction="sum")
    assert float(term.sum) == pytest.approx(float(expected))
    assert multi_label().counts(batch) == {"labels": 6}


def test_labels_may_be_one_string_and_none_at_all(tmp_path: Path) -> None:
    small_data.write_csv(tmp_path / "a.csv", ("text", "labels"), [("甲", "x|y"), ("乙", ""), ("丙", "y")])
    found = rows_of(str(tmp_path / "a.csv"), ("text", "labels"), given={}, trained_on={})
    assert found.counts.quarantined == 0  # a text none of the labels holds of is a good row
    task = MultiLabel(MultiLabelSettings(separator="|"), None, None).fitted(  # type: ignore[arg-type]
        row.values for row in found.rows)
    assert task.settings.labels == ("x", "y")
    assert [task.targets(row.values)["labels"].tolist() for row in found.rows] == [[1, 1], [0, 0], [0, 1]]
    balanced = MultiLabel(MultiLabelSettings(separator="|", pos_weight="balanced"), None, None).fitted(  # type: ignore[arg-type]
        row.values for row in found.rows)
    assert balanced.weights == (2.0, 0.5)


@pytest.mark.parametrize(("settings", "labels", "error", "message"), [
    ({}, {"a": 1}, DataError, "neither a list"),
    ({"labels": ["x"]}, ["x", "y"], RecipeError, "not listed"),
    ({"pos_weight": {"z": 2.0}}, ["x", "y"], RecipeError, "pos_weight"),
    ({"thresholds": {"x": 0.2}}, ["x", "y"], RecipeError, "thresholds"),
    ({}, [], DataError, "has a label"),
])
def test_what_does_not_fit_is_refused(settings: dict, labels: object, error: type[Exception], message: str) -> None:
    task = MultiLabel(MultiLabelSettings(**settings), None, None)  # type: ignore[arg-type]
    with pytest.raises(error, match=message):
        task.fitted([{"text": "甲", "labels": labels}])
