"""A run that trains an adapter, or freezes and thaws: what is kept, that it resumes exactly, and what it saves."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import small_data
from command import Command, wenmo
from every_task import BERT, BYTES, CASES, ENDED, LLAMA, NEWS, T5, WORDS, differences, recipe_of
from small_data import recipe
from wenmo.data.sequence import Sequence, collate
from wenmo.errors import ModelError, RecipeError
from wenmo.files import read_jsonl, sha256_file
from wenmo.loaded import load
from wenmo.modeldir import open_model
from wenmo.models.bert import Bert, BertConfig
from wenmo.models.lora import adapted_names
from wenmo.stages.library import train
from wenmo.stages.merge import merge_into
from wenmo.tensors import load_tensors
from wenmo.training import checkpoint
from wenmo.training.groups import GroupSettings, divide
from wenmo.training.run import Run
from wenmo.training.unfreezing import UnfreezeSettings, Unfreezing

__all__ = ["wenmo"]  # a fixture

TASKS = {"classification": "masked_lm", "masked_lm": "masked_lm", "causal_lm": "causal_lm",
         "span_corruption": "span_corruption"}  # the task, and what its base was trained for


@pytest.fixture(autouse=True)
def english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WENMO_LANG", "en")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = small_data.write(tmp_path_factory.mktemp("data"), num_reviews=60, num_news=60)
    for task in set(TASKS.values()):
        train(recipe(task, steps=2), out=folder / "bases" / task, data_root=folder)
    return folder


def run(out: Path, data: Path, *overrides: str, task: str = "classification", lora: dict[str, Any] | None = None,
        **changes: Any) -> Path:
    made = recipe(task, **{"steps": 8, "batch_tokens": 256, "log_every": 1, "evaluate_every": 2, "save_every": 2,
                           "optimizer": {"lr": 1e-2}, **changes})
    made["model"] = {"from": str(data / "bases" / TASKS[task]), **({"lora": lora} if lora is not None else {})}
    del made["tokenizer"]
    return train(made, *overrides, out=out, data_root=data).folder


def outcome(folder: Path) -> dict[str, Any]:
    """All that must be equal in two runs of the same recipe."""
    newest = checkpoint.latest(folder / "checkpoints")
    assert newest is not None
    rows = [{name: value for name, value in row.items() if name != "tokens_per_second"}
            for row in read_jsonl(folder / "metrics.jsonl")]
    weights = sorted(path for path in (folder / "model").iterdir() if path.suffix == ".safetensors")
    card = json.loads((folder / "model" / "wenmo.json").read_text(encoding="utf-8"))
    return {"rows": rows, "weights": [sha256_file(path) for path in weights], "golden": card["golden"],
            "state": sha256_file(newest / checkpoint.TENSORS), "files": [path.name for path in weights]}


def stopped_in_step_5(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a kill."""
    stopped = []
    write = Run.log

    def log(self: Run, row: dict[str, Any]) -> None:
        if row["step"] == 5 and not stopped:
            stopped.append(row)
            raise KeyboardInterrupt
        write(self, row)

    monkeypatch.setattr(Run, "log", log)


# Adapters ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_every_task_trains_an_adapter_alone(task: str, data: Path, tmp_path: Path,
                                            caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    base = data / "bases" / TASKS[task] / "model" / "model.safetensors"
    before = sha256_file(base)
    folder = run(tmp_path / "run", data, task=task, lora={"rank": 4, "dora": task == "masked_lm"})
    assert sha256_file(base) == before
    assert "trainable parameters: " in caplog.text
    kept = sorted(path.name for path in (folder / "model").iterdir())
    assert "model.safetensors" not in kept
    assert "config.json" not in kept
    own = load_tensors(folder / "model" / "adapter_model.safetensors")
    card = json.loads((folder / "model" / "wenmo.json").read_text(encoding="utf-8"))
    trained, all_ = card["lineage"]["parameters"]["trained"], card["lineage"]["parameters"]["all"]
    assert trained == sum(tensor.numel() for tensor in own.values()) < all_ / 2
    newest = checkpoint.latest(folder / "checkpoints")
    assert newest is not None
    assert sha256_file(newest / "adapter_model.safetensors") == sha256_file(folder / "model" /
                                                                            "adapter_model.safetensors")
    states = {name.rpartition("/")[0] for name in load_tensors(newest / checkpoint.TENSORS)}
    assert states == {name.removeprefix("base_model.model.") for name in own}
    assert all(tensor.any() for tensor in own.values())  # every B has left zero
    loaded = load(folder)
    assert loaded.check() is not None
    assert not adapted_names(loaded.model)


@pytest.fixture(scope="module")
def bodies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model of each kind that tasks begin from."""
    folder = tmp_path_factory.mktemp("bodies")
    (folder / "news.txt").write_text("\n".join(NEWS), encoding="utf-8")
    for task, model, tokenizer in (("masked_lm", BERT, WORDS), ("causal_lm", LLAMA, BYTES),
                                   ("span_corruption", T5, ENDED)):
        train({"model": model, "tokenizer": {"train": tokenizer}, "task": {"type": task},
               "data": {"train": [{"path": "news.txt"}], "choose": {"carve": 0}, "max_tokens": 24},
               "train": {"steps": 2, "batch_tokens": 512, "threads": 1, "dtype": "fp32"}},
              out=folder / model["type"], data_root=folder)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_merged_and_apart_are_the_same_whatever_the_task(name: str, bodies: Path, tmp_path: Path) -> None:
    """Heads, a CRF, rows for new tokens: what a task adds to its base comes along."""
    made = recipe_of(name, tmp_path, steps=4)
    base, dora = bodies / made["model"]["type"], made["model"]["type"] == "llama"
    made = {**made, "model": {"from": str(base), "lora": {"rank": 4, "dora": dora}}}
    del made["tokenizer"]
    folder = train(made, out=tmp_path / "run", data_root=tmp_path).folder
    assert not (folder / "model" / "model.safetensors").exists()
    merge_into(str(folder), tmp_path / "merged")
    rows = CASES[name][3]
    apart, merged = load(folder, threads=1, base=load(base, threads=1)), load(tmp_path / "merged", threads=1)
    assert adapted_names(apart.model)
    assert not adapted_names(merged.model)
    before, after = (model.outputs(rows, model.task(), with_targets=True) for model in (apart, merged))
    largest, turned = differences(before, after)
    assert largest < 1e-5
    assert turned == 0


@pytest.mark.parametrize(("optimizer", "more"), [
    ("{lr: 1e-2}", ("train.ema=0.9", "train.layer_decay=0.9", "train.best={metric: loss}")),
    ("{type: muon}", ("train.l1=1e-3", "train.dtype=bf16"))])
def test_stopped_and_resumed_an_adapter_is_the_same(optimizer: str, more: tuple[str, ...], data: Path, tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    more = (f"train.optimizer={optimizer}", *more)
    lora = {"rank": 2, "dropout": 0.2, "dora": True}
    whole = run(tmp_path / "whole", data, *more, lora=lora)
    stopped_in_step_5(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", data, *more, lora=lora)
    assert outcome(run(tmp_path / "run", data, *more, lora=lora)) == outcome(whole)
    before = sha256_file(whole / "model" / "wenmo.json")
    run(tmp_path / "whole", data, *more, lora=lora)  # finished: nothing is done again
    assert sha256_file(whole / "model" / "wenmo.json") == before


def test_trained_in_bf16_it_answers_on_the_exact_base(data: Path, tmp_path: Path) -> None:
    folder = run(tmp_path / "run", data, "train.dtype=bf16", lora={"rank": 4})
    difference = load(folder).check()
    assert difference is not None
    assert difference < 2e-5  # with a rounded base it would be some hundred times that


def test_merged_it_answers_alike_and_stands_alone(wenmo: Command, data: Path, tmp_path: Path) -> None:
    folder = run(tmp_path / "run", data, lora={"rank": 4, "rslora": True})
    result = wenmo("merge", folder, "--out", tmp_path / "merged", "--json")
    assert result.code == 0, result.err
    facts = json.loads(result.out)
    assert facts["largest_difference"] < 2e-5
    (data / "bases" / "masked_lm").rename(data / "bases" / "away")
    try:
        merged = load(tmp_path / "merged").predict(["很好", "terrible"])
    finally:
        (data / "bases" / "away").rename(data / "bases" / "masked_lm")
    for one, other in zip(merged, load(folder).predict(["很好", "terrible"]), strict=True):
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-5)
    assert "adapter" not in json.loads((tmp_path / "merged" / "wenmo.json").read_text(encoding="utf-8"))
    again = wenmo("merge", tmp_path / "merged", "--out", tmp_path / "twice")
    assert (again.code, "this is no adapter" in again.message[0]) == (1, True)
    for out in (folder, folder / "model", data / "bases" / "masked_lm", data / "bases" / "masked_lm" / "model"):
        refused = wenmo("merge", folder, "--out", out)
        assert (refused.code, len(refused.message)) == (2, 3), out
    assert wenmo("show", folder).code == 0


def test_a_merge_that_changes_the_answers_fails(wenmo: Command, data: Path, tmp_path: Path) -> None:
    folder = run(tmp_path / "run", data, lora={"rank": 4})
    config = folder / "model" / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 16.0', '"lora_alpha": 160.0'))
    result = wenmo("merge", folder, "--out", tmp_path / "merged")
    assert result.code == 1
    assert "answers the golden prompts differently" in result.message[0]
    assert not (tmp_path / "merged").exists()


def test_an_adapter_is_no_base_for_an_adapter_but_for_a_whole_model(data: Path, tmp_path: Path) -> None:
    first = run(tmp_path / "first", data, lora={"rank": 4})
    made = recipe("classification", steps=1, optimizer={"lr": 1e-9})
    del made["tokenizer"]
    made["model"] = {"from": str(first)}
    second = train(made, out=tmp_path / "second", data_root=data).folder
    weights = load_tensors(second / "model" / "model.safetensors")
    one, other = load(first).model.state_dict(), open_model(str(second)).model.state_dict()
    assert set(weights) == set(one)
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, atol=1e-6, rtol=1e-6)
    made["model"] = {"from": str(first), "lora": {}}
    with pytest.raises(ModelError, match="merge that one first"):
        train(made, out=tmp_path / "third", data_root=data)


# Freezing and thawing ---------------------------------------------------------------------------------


def bert() -> Bert:
    config = BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64,
                        hidden_dropout_prob=0.0)
    model = Bert(config, {"classification": 2})
    model.initialise(torch.Generator().manual_seed(0))
    return model


def flops_of(model: Bert) -> int:
    """Of a forward and backward."""
    batch = collate(Sequence(row, {"ids": torch.arange(5, 37).numpy()}) for row in range(4)).text
    with FlopCounterMode(display=False) as counter:
        model.classify(model(batch.ids_M, batch.lengths), batch.lengths).square().sum().backward()
    return counter.get_total_flops()


def test_where_only_the_head_is_trained_nothing_is_computed_for_the_body() -> None:
    whole, head = bert(), bert()
    divide(head, [GroupSettings(match="bert.e*", freeze=True)])
    assert flops_of(head) < 0.36 * flops_of(whole)  # the forward is a third
    assert {name for name, parameter in head.named_parameters() if parameter.grad is not None} == {
        "bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"}


def test_layers_join_from_the_top_and_outside_nothing_is_changed() -> None:
    model = bert()
    divide(model, [GroupSettings(match="*.bias", freeze=True)])
    frozen = Unfreezing(model, UnfreezeSettings(every=10))
    seen = []
    for step in (0, 9, 10, 25, 39, 40, 1000):
        with frozen(step):
            trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        seen.append((trained[0], len(trained), frozen.num_joined(step)))
    assert not any("bias" in name for name in trained)
    layer = "bert.encoder.layer.{}.attention.self.query.weight"
    assert seen == [("bert.pooler.dense.weight", 2, 1), ("bert.pooler.dense.weight", 2, 1), (layer.format(2), 10, 2),
                    (layer.format(1), 18, 3), (layer.format(0), 26, 4),
                    *[("bert.embeddings.word_embeddings.weight", 30, 5)] * 2]
    assert sum(parameter.requires_grad for parameter in model.parameters()) == 30
    with pytest.raises(ZeroDivisionError), frozen(0):
        raise ZeroDivisionError
    assert sum(parameter.requires_grad for parameter in model.parameters()) == 30


def test_each_level_moves_from_its_step_on(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    more = ("train.unfreeze={every: 2 steps}", "train.l1=1e-3", "train.keep=9", "train.optimizer.weight_decay=0.1")
    folder = run(tmp_path / "run", data, *more)
    assert "one layer more every 2 steps; 4 of 4 levels in the end" in caplog.text
    first = load_tensors(data / "bases" / "masked_lm" / "model" / "model.safetensors")
    for step, moved in ((2, ()), (4, ("layer.1",)), (6, ("layer.1", "layer.0")), (8, ("layer.1", "layer.0", "embedd"))):
        now = load_tensors(folder / "checkpoints" / f"step-{step}" / "model.safetensors")
        for name, tensor in first.items():
            if (name in now and name.endswith("query.weight")) or name.endswith("position_embeddings.weight"):
                assert torch.equal(now[name], tensor) != any(part in name for part in moved), (step, name)


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_stopped_and_resumed_thawing_goes_on(lora: dict[str, Any] | None, data: Path, tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    more = ("train.unfreeze={every: 3}", "train.ema=0.9")
    whole = run(tmp_path / "whole", data, *more, lora=lora)
    stopped_in_step_5(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", data, *more, lora=lora)
    assert outcome(run(tmp_path / "run", data, *more, lora=lora)) == outcome(whole)


def test_thawing_a_single_level_is_refused(data: Path, tmp_path: Path) -> None:
    freeze = "train.groups=[{match: 'bert.e*', freeze: true}]"
    with pytest.raises(RecipeError, match="`unfreeze` does nothing here"):
        run(tmp_path / "run", data, "train.unfreeze={every: 3}", freeze)


def test_a_pattern_that_finds_nothing_is_said_with_the_nearest(data: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"did you mean `word_embeddings\.weight`"):
        run(tmp_path / "run", data, "train.groups=[{match: 'word_embedings.weight', freeze: true}]")
