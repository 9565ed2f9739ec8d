"""Several tasks in one model: one forward for all that read the same, each row counts where it has targets alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel

import small_data
import wenmo
from wenmo.config import parse
from wenmo.data.sequence import IGNORED, Batch, Sequence, collate
from wenmo.errors import DataError, RecipeError
from wenmo.evaluation import validation
from wenmo.loaded import load
from wenmo.models import TaskView
from wenmo.objectives import hidden_of
from wenmo.recipe import parse_recipe
from wenmo.stages.evaluate import evaluate
from wenmo.stages.prepare import Corpus
from wenmo.stages.sweep import _refuse_unmeasured as refuse_unmeasured
from wenmo.tasks import Joint, JointSettings, Lengths

CITIES = ("paris", "london", "rome", "berlin", "madrid", "vienna")
ASKED = {"weather": ("is it raining in {}", "weather in {} please", "how hot is {} today"),
         "travel": ("book a train to {}", "a ticket to {} please", "fly me to {} tonight")}
MOOD_AND_LENGTH = {"mood": {"type": "classification", "columns": {"label": "mood"}},
                   "length": {"type": "regression", "columns": {"score": "length"}, "weight": 0.01}}


def sentences() -> list[dict[str, Any]]:
    """Words, a slot for the city, and what is wanted."""
    found = []
    for label, patterns in ASKED.items():
        for city in CITIES:
            for pattern in patterns:
                tokens = pattern.format(city).split()
                found.append({"tokens": tokens, "tags": ["B-city" if token == city else "O" for token in tokens],
                              "label": label})
    return found


def write(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")


def recipe(tasks: dict[str, Any], **train: Any) -> dict[str, Any]:
    made = small_data.recipe("classification", **{"steps": 60, "evaluate_every": 30, **train})
    del made["task"]
    made["data"]["train"] = [{"path": "rows.jsonl"}]
    made["data"]["choose"] = {"carve": 8}
    return {**made, "tasks": tasks}


JOINT = {"intent": {"type": "classification", "columns": {"text": "tokens"}}, "slots": {"type": "tagging"}}


@pytest.fixture(scope="module")
def slots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on intents and slots: both of the same words."""
    root = tmp_path_factory.mktemp("slots")
    write(root, sentences())
    wenmo.train(recipe(JOINT, steps=80, batch_tokens=400, evaluate_every=40, optimizer={"lr": 1e-2},
                       best={"metric": {"intent.accuracy": 1, "slots.f1": 2}}), out=root / "run", data_root=root)
    return root / "run"


def moods(number: int = 120, every: int = 1) -> list[dict[str, Any]]:
    """Reviews with their mood, and their length; only some have a mood."""
    return [{"text": text, "length": len(text), **({"mood": label} if i % every == 0 else {"mood": None})}
            for i, (text, label) in enumerate(small_data.reviews(number))]


def test_one_answer_from_one_forward(slots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(slots)
    forwards = []
    body = type(model.model).forward
    monkeypatch.setattr(type(model.model), "forward",
                        lambda self, *args, **rest: forwards.append(1) or body(self, *args, **rest))
    [answer] = model.predict([{"tokens": ["book", "a", "train", "to", "rome"]}])
    assert len(forwards) == 1
    assert answer["label"] == "travel"
    assert answer["tags"] == ["O", "O", "O", "O", "B-city"]
    assert answer["entities"] == [{"start": 4, "end": 5, "type": "city", "text": "rome"}]
    [of_text] = model.predict(["book a train to rome"])  # a text without tokens is split as the training rows were
    assert of_text["label"] == "travel"
    assert of_text["entities"] == [{"start": 16, "end": 20, "type": "city", "text": "rome"}]
    assert of_text["scores"] == pytest.approx(answer["scores"], abs=1e-5)


def test_metrics_of_each_and_of_both(slots: Path) -> None:
    report = evaluate(str(slots), str(slots.parent / "rows.jsonl"))
    assert report.task == "joint"
    assert {"intent.accuracy", "slots.f1", "exact"} <= set(report.metrics)
    both = report.metrics["exact"].value
    assert both <= min(report.metrics["intent.accuracy"].value, report.metrics["slots.exact"].value)
    assert both > 0.9
    alone = evaluate(str(slots), str(slots.parent / "rows.jsonl"), task="slots")
    assert alone.task == "slots"
    assert alone.metrics["f1"] == report.metrics["slots.f1"]
    assert load(slots).predict([{"tokens": ["rome"]}], task="intent")[0].keys() == {"label", "scores"}


def test_transformers_opens_the_body(slots: Path) -> None:
    config = json.loads((slots / "model" / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["BertModel"]
    model = load(slots)
    theirs = AutoModel.from_pretrained(slots / "model").eval()
    ids = torch.tensor([model.tokenizer.wrap(model.tokenizer.encode("book a train to rome"))[0]])
    with torch.no_grad():
        expected, found = theirs(ids).last_hidden_state[0], model.model(ids[0], (ids.shape[1],))
    assert torch.allclose(found, expected, atol=1e-5)
    card = json.loads((slots / "model" / "wenmo.json").read_text(encoding="utf-8"))
    assert card["task_heads"] == {"intent:classification": 2, "slots:tagging": 3}
    assert set(card["tasks"]) == {"intent", "slots"}
    assert model.check() == pytest.approx(0, abs=1e-4)
    model.model.task_heads["slots"].out_proj.weight.data.add_(1.0)
    with pytest.raises(wenmo.errors.ModelError, match="golden"):
        model.check()


def test_a_row_without_a_target_counts_for_nothing_there() -> None:
    model, joint = built(MOOD_AND_LENGTH, moods(8))
    rows = moods(8, every=2)
    batch = batch_of(joint, rows)
    objective = joint.objective()
    assert objective.counts(batch) == {"mood.classes": 4, "length.scores": 8}
    of_all = {term.name: term for term in objective.terms(model, batch)}
    mood_alone = {term.name: term for term in objective.terms(model, batch_of(joint, rows[::2]))}
    assert torch.allclose(of_all["mood.classes"].sum, mood_alone["mood.classes"].sum, atol=1e-5)
    assert (of_all["mood.classes"].weight, of_all["length.scores"].weight) == (1.0, 0.01)
    grads = gradients(model, of_all["mood.classes"].sum)
    assert torch.allclose(grads, gradients(model, mood_alone["mood.classes"].sum), atol=1e-5)
    nothing = joint.build([{"text": "很好", "mood": None, "length": None}, *rows], Path(), 0, "")
    assert (nothing.num_rows, nothing.num_rows_skipped) == (8, 1)


def test_a_view_is_the_model_with_one_head() -> None:
    model, joint = built(MOOD_AND_LENGTH, moods(8))
    batch = batch_of(joint, moods(8))
    hidden = hidden_of(model, batch.text)
    view = TaskView(model, "length", hidden)
    assert view.heads == {"classification": 1}
    assert view(batch.text.ids_M, batch.text.lengths) is hidden  # once; then it is computed
    assert torch.allclose(view(batch.text.ids_M, batch.text.lengths), hidden, atol=1e-6)
    with torch.inference_mode():
        outputs = joint.outputs(model, batch)
        expected = joint.parts["length"].outputs(TaskView(model, "length"), batch)
    assert np.allclose([output["length"] for output in outputs], expected, atol=1e-5)


def test_parts_over_different_columns_are_sequences_of_their_own() -> None:
    tasks = {"mood": {"type": "classification"},
             "same": {"type": "classification", "pair": True, "columns": {"label": "same"}}}
    rows = [{"text": "很好", "label": "good"}, {"text": "很差", "label": "bad"},
            {"text_a": "很好", "text_b": "不错", "same": "yes"}, {"text_a": "很好", "text_b": "很差", "same": "no"}]
    model, joint = built(tasks, rows)
    batch = batch_of(joint, rows)
    assert joint.objective().counts(batch) == {"mood.classes": 2, "same.classes": 2}
    assert len(batch.text.lengths) == 4
    assert (batch.text.tokens["segments"] >= 0).all()
    one_by_one = [sum(float(term.sum.detach()) for term in joint.objective().terms(model, batch_of(joint, [row])))
                  for row in rows]
    assert sum(one_by_one) == pytest.approx(
        sum(float(term.sum.detach()) for term in joint.objective().terms(model, batch)), abs=1e-4)


def test_a_mixture_of_sources_for_different_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, [{"text": row["text"], "mood": row["mood"]} for row in moods()], "moods.jsonl")
    write(tmp_path, [{"text": row["text"], "length": row["length"]} for row in moods()[:30]], "lengths.jsonl")
    made = recipe(MOOD_AND_LENGTH, steps=6, evaluate_every=3, best={"metric": {"mood.accuracy": 1}})
    made["data"]["train"] = [{"path": "moods.jsonl", "tasks": ["mood"]}, {"path": "lengths.jsonl", "tasks": ["length"]}]
    wenmo.train(made, out=tmp_path / "run", data_root=tmp_path)
    corpus = Corpus(parse_recipe(made, "test"), tmp_path)
    rows = corpus.read(tmp_path / "quarantine.jsonl")
    chosen = {row.values["text"] for row in rows.choose}
    assert not chosen & {row.values["text"] for source in rows.train for row in source.rows}
    assert len(rows.train[1].rows) > 15  # the same texts stand in both sources, for another task
    monkeypatch.setattr(validation, "BATCH_TOKENS", 8)  # so that the first batch has no row of the other task
    for name in ("mood.accuracy", "length.mae"):
        refuse_unmeasured(parse_recipe(made, "test"), name, tmp_path, None, None)
    with pytest.raises(RecipeError, match="no metric"):
        refuse_unmeasured(parse_recipe(made, "test"), "length.accuracy", tmp_path, None, None)
    report = evaluate(str(tmp_path / "run"), str(tmp_path / "moods.jsonl"))
    assert {name.split(".")[0] for name in report.metrics} == {"mood"}


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, 1.0), (2.0, 2.0), (1e9, 4.0)])
def test_temperature_draws_small_sources_more_often(tmp_path: Path, temperature: float, expected: float) -> None:
    """A quarter of the rows is drawn 4^(1 − 1/T) times."""
    from wenmo.stages.prepare.examples import _more

    assert _more(0.25, temperature) == pytest.approx(expected)
    assert _more(1.0, temperature) == 1.0


def test_interrupted_it_goes_on_to_the_same_weights(tmp_path: Path, slots: Path) -> None:
    write(tmp_path, sentences())
    short = recipe(JOINT, steps=6, evaluate_every=3, save_every=3, schedule={"type": "constant"})
    wenmo.train({**short, "train": {**short["train"], "steps": 3}}, out=tmp_path / "a", data_root=tmp_path)
    wenmo.train(short, out=tmp_path / "a", data_root=tmp_path)
    wenmo.train(short, out=tmp_path / "b", data_root=tmp_path)
    a, b = (load(tmp_path / name).model.state_dict() for name in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("tasks", "message"), [
    ({"a": {"type": "classification"}}, "for several"),
    ({"a": {"type": "classification"}, "b": {"type": "causal_lm"}}, "no kind `causal_lm`"),
    ({"a": {"type": "classification"}, "b": {"type": "tagging", "labls": ["x"]}}, "labls"),
    ({"a": {"type": "classification"}, "keys": {"type": "tagging"}}, "cannot be the name"),
    ({"a": {"type": "classification", "columns": {"labl": "x"}}, "b": {"type": "tagging"}}, "reads no `labl`"),
])
def test_recipes_that_make_no_sense(tasks: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_recipe(recipe(tasks), "test")


def test_more_recipes_that_make_no_sense() -> None:
    with pytest.raises(RecipeError, match="one of the two"):
        parse_recipe({**recipe(JOINT), "task": {"type": "classification"}}, "test")
    made = recipe(JOINT)
    made["data"]["train"] = [{"path": "rows.jsonl", "tasks": ["intnt"]}]
    with pytest.raises(RecipeError, match="no task `intnt`"):
        parse_recipe(made, "test")
    made = small_data.recipe("classification")
    made["data"]["temperature"] = 2
    with pytest.raises(RecipeError, match="several sources"):
        parse_recipe(made, "test")
    with pytest.raises(RecipeError, match="have no mean"):
        parse_recipe(recipe(JOINT, best={"metric": {"intent.accuracy": 1, "loss": 1}}), "test")


def test_rows_that_have_nothing_to_ask() -> None:
    _, joint = built(MOOD_AND_LENGTH, moods(8))
    with pytest.raises(DataError, match="nothing that one of the tasks reads"):
        joint.encode(0, {"title": "很好"}, with_targets=False)


def test_collating_fills_what_is_lacking() -> None:
    a = Sequence(0, {"ids": np.array([1, 2])}, {"x": 1})
    b = Sequence(1, {"ids": np.array([3]), "first": np.array([1], np.uint8), "segments": np.array([1])},
                 {"y": np.array([0.5, 0.5], np.float32)})
    flat = collate([a, b]).text
    assert flat.tokens["first"].tolist() == [IGNORED, IGNORED, 1]
    assert flat.tokens["segments"].tolist() == [0, 0, 1]
    assert flat.values["x"].tolist() == [1, IGNORED]
    assert flat.values["y"].tolist() == [[IGNORED, IGNORED], [0.5, 0.5]]


def test_heads_of_checkpoints_from_elsewhere_have_their_task(tmp_path: Path, slots: Path) -> None:
    """Without wenmo.json, config.json says what the scores of a head mean."""
    from transformers import BertConfig, BertForQuestionAnswering, BertForTokenClassification

    tokenizer = load(slots).tokenizer
    size = {"vocab_size": tokenizer.vocab_size, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 32, "max_position_embeddings": 128}
    text = {"text": "a rome"}
    cases = [(BertForTokenClassification, {"id2label": {0: "O", 1: "B-PER", 2: "I-PER"}}, text, "entities"),
             (BertForTokenClassification, {"id2label": {0: "NOUN", 1: "VERB"}}, text, "tags"),
             (BertForQuestionAnswering, {}, {"question": "how hot", "context": "is it raining"}, "answer")]
    for number, (cls, labels, row, key) in enumerate(cases):
        folder = tmp_path / str(number)
        cls(BertConfig(**size, **labels)).save_pretrained(folder)
        tokenizer.save(folder)
        assert key in load(folder).predict([row])[0]


# Without a run ----------------------------------------------------------------------------------------


def built(tasks: dict[str, Any], rows: list[dict[str, Any]]) -> tuple[Any, Joint]:
    """A tiny model with random weights and the joint task fitted to the rows."""
    from wenmo.models import create, read_config
    from wenmo.models.bert import BertConfig
    from wenmo.text.tokenizer_training import TokenizerSettings, train

    texts = [str(value) for row in rows for value in row.values()]
    tokenizer = train(texts, TokenizerSettings(type="wordpiece", vocab_size=200))
    joint = Joint(parse(JointSettings, {"tasks": tasks}, "test"), tokenizer, Lengths(max_tokens=64)).fitted(rows)
    config, _ = read_config(BertConfig, {
        "vocab_size": tokenizer.vocab_size, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": 64}, "test")
    return create(config, joint.heads, torch.Generator().manual_seed(0)).eval(), joint


def batch_of(joint: Joint, rows: list[dict[str, Any]]) -> Batch:
    return collate(sequence for number, row in enumerate(rows)
                   for sequence in joint.encode(number, row, with_targets=True).sequences)


def gradients(model: Any, loss: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    loss.backward(retain_graph=True)
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
