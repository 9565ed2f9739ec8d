"""Beyond a plain run: it is made longer, averages its weights, freezes some, shows samples, finds its rate."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import small_data
from command import Command, wenmo
from every_task import recipe_of
from small_data import recipe
from wenmo.errors import CheckpointError, UsageError
from wenmo.files import read_jsonl, sha256_file
from wenmo.loaded import load
from wenmo.recipe import parse_recipe
from wenmo.stages.find_lr import find_lr
from wenmo.stages.library import train
from wenmo.tensors import load_tensors
from wenmo.training import checkpoint
from wenmo.training.lr_range import Watch, rate_at, suggest
from wenmo.training.run import Run
from wenmo.training.unfreezing import UnfreezeSettings

__all__ = ["wenmo"]  # a fixture

CONSTANT = "train.schedule={type: constant, warmup: 2}"
WSD = "train.schedule={type: wsd, warmup: 2, decay: 50%}"


@pytest.fixture(autouse=True)
def english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WENMO_LANG", "en")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_data.write(tmp_path_factory.mktemp("data"), num_reviews=60, num_news=60)


def run(out: Path, data: Path, *overrides: str, **changes: Any) -> Path:
    made = recipe("classification", **{"steps": 8, "batch_tokens": 256, "log_every": 1, "evaluate_every": 2,
                                       "save_every": 2, **changes})
    return train(made, *overrides, out=out, data_root=data).folder


def outcome(folder: Path) -> dict[str, Any]:
    """All that must be equal in two runs of the same recipe."""
    newest = checkpoint.latest(folder / "checkpoints")
    assert newest is not None
    card = json.loads((folder / "model" / "wenmo.json").read_text(encoding="utf-8"))
    rows = [{name: value for name, value in row.items() if name != "tokens_per_second"}
            for row in read_jsonl(folder / "metrics.jsonl")]
    files = [newest / name for name in (checkpoint.TENSORS, checkpoint.AVERAGE) if (newest / name).exists()]
    return {"rows": rows, "weights": sha256_file(folder / "model" / "model.safetensors"),
            "state": [sha256_file(file) for file in files], "best": card["lineage"]["best_step"],
            "scores": card["scores"], "folder": sorted(path.name for path in folder.iterdir())}


# Longer -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [(), ("train.best={metric: loss}", "train.ema=0.5")])
def test_a_finished_run_made_longer_is_the_longer_run(tmp_path: Path, data: Path, more: tuple[str, ...]) -> None:
    whole = run(tmp_path / "whole", data, CONSTANT, *more, steps=12)
    grown = run(tmp_path / "grown", data, CONSTANT, *more)
    first = outcome(grown)
    run(tmp_path / "grown", data, CONSTANT, *more, steps=12)
    assert outcome(grown) == outcome(whole)
    assert first["state"] != outcome(whole)["state"]
    assert "steps: 12" in (grown / "recipe.yaml").read_text()


def test_a_constant_run_may_be_given_a_decay_after_all(tmp_path: Path, data: Path) -> None:
    whole = run(tmp_path / "whole", data, WSD, steps=16)
    run(tmp_path / "grown", data, CONSTANT)
    assert outcome(run(tmp_path / "grown", data, WSD, steps=16)) == outcome(whole)


def test_best_weights_of_before_survive_though_none_better_comes(tmp_path: Path, data: Path) -> None:
    opposite = [(text, {"positive": "negative", "negative": "positive"}[label])
                for text, label in small_data.reviews(40, seed=1)]
    small_data.write_csv(data / "contrary.csv", ("review", "label"), opposite)
    choose = "data.choose={files: [{path: contrary.csv, columns: {text: review}}]}"
    more = (CONSTANT, choose, "train.best={metric: loss}", "train.optimizer.lr=1e-2")  # the better, the worse there
    folder = run(tmp_path / "run", data, *more, steps=20)
    before = outcome(folder)
    assert before["best"] < 20
    run(tmp_path / "run", data, *more, steps=24)
    assert (outcome(folder)["best"], outcome(folder)["weights"]) == (before["best"], before["weights"])


@pytest.mark.parametrize("killed_at", ["after the last checkpoint", "between"])
def test_killed_while_made_longer_the_old_model_is_not_taken_for_the_new(
    tmp_path: Path, data: Path, killed_at: str
) -> None:
    whole = run(tmp_path / "whole", data, CONSTANT, steps=12)
    folder = run(tmp_path / "run", data, CONSTANT)
    old = {path.name: path.read_bytes() for path in (folder / "model").iterdir()}
    run(tmp_path / "run", data, CONSTANT, steps=12)
    for name, content in old.items():
        (folder / "model" / name).write_bytes(content)
    if killed_at == "between":
        checkpoint.prune(folder / "checkpoints", 1, {10})
        for path in (folder / "checkpoints" / "step-12").iterdir():
            path.unlink()
        (folder / "checkpoints" / "step-12").rmdir()
    assert outcome(run(tmp_path / "run", data, CONSTANT, steps=12)) == outcome(whole)


@pytest.mark.parametrize(("before", "after", "steps", "fault"), [
    ("train.schedule={type: cosine}", "train.schedule={type: cosine}", 12, "train.steps: 8 → 12"),
    (WSD, WSD, 12, "step 6 of the 8 done"),
    (CONSTANT, "train.schedule={type: linear, warmup: 2}", 8, "train.schedule: "),
    (CONSTANT, CONSTANT, 6, "8 steps are done")])
def test_another_past_is_refused_and_nothing_changed(
    tmp_path: Path, data: Path, before: str, after: str, steps: int, fault: str
) -> None:
    folder = run(tmp_path / "run", data, before)
    state, written = outcome(folder), (folder / "recipe.yaml").read_bytes()
    with pytest.raises(CheckpointError) as caught:
        run(tmp_path / "run", data, after, steps=steps)
    assert fault in str(caught.value)
    assert (outcome(folder), (folder / "recipe.yaml").read_bytes()) == (state, written)


# The average ------------------------------------------------------------------------------------------


def test_averaged_weights_are_validated_and_kept_and_checkpoints_hold_both(tmp_path: Path, data: Path) -> None:
    plain, averaged = run(tmp_path / "plain", data), run(tmp_path / "averaged", data, "train.ema=0.9")
    one, other = outcome(plain), outcome(averaged)
    losses = [[row["loss"] for row in each["rows"] if "loss" in row] for each in (one, other)]
    assert losses[0] == losses[1]  # training is as without
    validated = [[row["val_loss"] for row in each["rows"] if "val_loss" in row] for each in (one, other)]
    assert validated[0] != validated[1]
    newest = checkpoint.latest(averaged / "checkpoints")
    assert newest is not None
    kept = load_tensors(averaged / "model" / "model.safetensors")
    average, own = load_tensors(newest / checkpoint.AVERAGE), load_tensors(newest / checkpoint.WEIGHTS)
    assert all(torch.equal(kept[name], tensor) for name, tensor in average.items())
    assert not torch.equal(own["classifier.weight"], average["classifier.weight"])
    assert sha256_file(newest / checkpoint.WEIGHTS) == one["weights"]


@pytest.mark.parametrize("settings", ["{type: sgd}", "{type: lamb}", "{type: muon}", "{type: adafactor}"])
def test_stopped_and_resumed_every_optimizer_ends_in_the_same_weights(
    tmp_path: Path, data: Path, settings: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = (f"train.optimizer={settings}", "train.ema=0.9", "train.l1=0.01", "train.layer_decay=0.9")
    whole = run(tmp_path / "whole", data, *more)
    stopped = []

    def log(self: Run, row: dict[str, Any]) -> None:  # as a kill in step 5
        if row["step"] == 5 and not stopped:
            stopped.append(row)
            raise KeyboardInterrupt
        write(self, row)

    write = Run.log
    monkeypatch.setattr(Run, "log", log)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", data, *more)
    assert outcome(run(tmp_path / "run", data, *more)) == outcome(whole)


def test_frozen_parameters_stay_and_have_no_state(tmp_path: Path, data: Path) -> None:
    folder = run(tmp_path / "run", data, "train.groups=[{match: 'embeddings.*', freeze: true}]")
    other = run(tmp_path / "one", data, "train.groups=[{match: 'embeddings.*', freeze: true}]", "train.steps=1")
    ends = [load_tensors(each / "model" / "model.safetensors") for each in (folder, other)]
    for name, tensor in ends[0].items():
        assert torch.equal(tensor, ends[1][name]) == ("embeddings" in name), name
    newest = checkpoint.latest(folder / "checkpoints")
    assert newest is not None
    assert not [name for name in load_tensors(newest / checkpoint.TENSORS) if "embeddings" in name]


def test_samples_are_logged_shown_and_in_tensorboard(
    tmp_path: Path, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    caplog.set_level(logging.INFO)
    made = recipe("causal_lm", steps=2, evaluate_every=2, samples=["新华社"])
    folder = train(made, out=tmp_path / "run", data_root=data).folder
    [samples] = [row["samples"] for row in read_jsonl(folder / "metrics.jsonl") if "samples" in row]
    assert samples[0]["prompt"] == "新华社"
    assert f"» 新华社{samples[0]['text']}" in caplog.text
    events = accumulator.EventAccumulator(str(folder / "tensorboard"), {"tensors": 0}).Reload()
    [event] = events.Tensors("samples/0/text_summary")
    assert event.step == 2
    assert event.tensor_proto.string_val[0].decode().startswith("    新华社")


@pytest.mark.parametrize("name", ["chat", "text_to_text", "text_to_text by a decoder"])
def test_samples_of_a_task_that_answers_are_its_answers(name: str, tmp_path: Path) -> None:
    """What the finished model says to a question is what the last evaluation showed."""
    made = recipe_of(name, tmp_path, steps=4, evaluate_every=2, samples=["问：天气？", "Why?"])
    made["data"]["choose"] = {"carve": 4}
    made["data"]["max_tokens"] = 48
    made["task"] = {**made["task"], **({"max_new_tokens": 6} if name == "chat" else {})}
    made["model"] = {**made["model"], **({} if made["model"]["type"] == "t5" else {"max_position_embeddings": 128})}
    folder = train(made, out=tmp_path / "run", data_root=tmp_path).folder
    *_, samples = [row["samples"] for row in read_jsonl(folder / "metrics.jsonl") if "samples" in row]
    answers = load(folder, threads=1).predict(["问：天气？", "Why?"] if name != "chat" else
                                              [{"question": "问：天气？"}, {"question": "Why?"}])
    assert samples == [{"prompt": f"{text} → ", "text": answer["output"]}
                       for text, answer in zip(("问：天气？", "Why?"), answers, strict=True)]


# The rate ---------------------------------------------------------------------------------------------


def test_on_a_quadratic_the_suggestion_is_stable_and_useful() -> None:
    """Gradient descent on h w²/2 is stable below 2/h."""
    h, w = 50.0, np.ones(20)
    rates = [rate_at(i, 100, 1e-6, 10.0) for i in range(100)]
    watch = Watch()
    for rate in rates:
        watch.see(0.1 + float(h * (w**2).mean() / 2))
        if watch.diverged:
            break
        w = w - rate * h * w
    found = suggest(rates, watch.losses)
    assert watch.diverged
    assert found is not None
    assert 1e-2 / h < found.lr < 2 / h
    assert rates[0] == 1e-6
    assert rates[-1] == pytest.approx(10.0)


def test_no_rate_is_suggested_where_nothing_was_learnt() -> None:
    rates = [rate_at(i, 40, 1e-9, 1e-8) for i in range(40)]
    assert suggest(rates, [2.0 + 0.001 * (i % 3) for i in range(40)]) is None
    assert suggest(rates, [1.0 + 0.1 * i for i in range(40)]) is None
    falling = suggest(rates, [5.0 - 0.1 * i for i in range(40)])
    assert falling is not None
    assert falling.at_the_end


def test_find_lr_suggests_a_rate_that_trains_and_leaves_nothing_behind(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(data.rglob("*"))
    made = parse_recipe(recipe("causal_lm", steps=1, batch_tokens=256), "here")
    found = find_lr(made, data_root=data, num_steps=50, low=1e-5, out=tmp_path / "lr.json")
    assert found.suggestion is not None
    assert 1e-4 < found.suggestion.lr < 0.1
    assert found.diverged
    assert found.overrides() == [f"train.optimizer.lr={found.suggestion.lr:.2g}"]
    assert sorted(data.rglob("*")) == before
    assert [path.name for path in tmp_path.iterdir() if path != data.parent] == ["lr.json"]
    assert json.loads((tmp_path / "lr.json").read_text()) == found.as_dict()
    page = found.page("Learning-rate range test")
    assert page.count("<svg") >= 2
    assert found.overrides()[0] in page
    # the state of the loop alone decides: asked again, the same curve
    assert find_lr(made, data_root=data, num_steps=50, low=1e-5).losses == found.losses


def test_find_lr_steps_as_training_would(data: Path) -> None:
    made = parse_recipe(recipe("classification"), "here")
    frozen = made.model_copy(update={"train": made.train.model_copy(update={"unfreeze": UnfreezeSettings(every=1000)})})
    assert find_lr(frozen, data_root=data, num_steps=8).losses != find_lr(made, data_root=data, num_steps=8).losses


def test_the_command_prints_a_table_or_one_json_object(tmp_path: Path, data: Path, wenmo: Command) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe("causal_lm", batch_tokens=256, optimizer={"type": "muon"})))
    arguments = ("find-lr", file, "--steps", 12, "--low", 1e-5, "--data-root", data)
    shown = wenmo(*arguments, "--out", tmp_path / "lr.html")
    assert shown.code == 0
    assert "suggestion: train.optimizer.lr=" in shown.out
    assert "train.optimizer.matrix_lr=" in shown.out
    assert (tmp_path / "lr.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    found = json.loads(wenmo(*arguments, "--json").out)
    assert len(found["rates"]) == len(found["losses"]) == len(found["smoothed"])
    assert found["suggested"] == min(found["steepest"], found["tenth_of_minimum"])


@pytest.mark.parametrize("wrong", [{"low": 0.0}, {"low": 1.0, "high": 0.1}, {"out": Path("lr.png")}])
def test_find_lr_refuses_what_cannot_be(data: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        find_lr(parse_recipe(recipe("causal_lm"), "here"), data_root=data, **wrong)
