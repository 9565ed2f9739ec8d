"""`wenmo train` from end to end: it learns, keeps the best, resumes, and refuses what would not be the same run."""

from __future__ import annotations

import itertools
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml

import small_data
from small_data import BAD, GOOD, THINGS, recipe, write_csv
from wenmo import golden
from wenmo.data.sources import carve
from wenmo.errors import CheckpointError, DataError, NumericsError, RunLocked
from wenmo.files import read_jsonl, sha256_file
from wenmo.loaded import load
from wenmo.recipe import parse_recipe
from wenmo.stages.evaluate import evaluate
from wenmo.stages.library import train
from wenmo.stages.prepare import Corpus
from wenmo.stages.train import Trained
from wenmo.tasks import Lengths, create_task
from wenmo.tasks.classification import ClassificationSettings
from wenmo.tasks.labels import labels_of
from wenmo.tensors import load_tensors
from wenmo.text import tokenizer_training
from wenmo.text.intake import Row
from wenmo.text.tokenizer_training import TokenizerSettings


@pytest.fixture(autouse=True)
def english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WENMO_LANG", "en")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_data.write(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def encoder(data: Path) -> Path:
    """A Run with a pre-trained BERT."""
    return run(recipe("masked_lm", steps=100), data.parent / "encoder", data).folder


def run(made: Mapping[str, Any], out: Path, data: Path, *overrides: str) -> Trained:
    return train(made, *overrides, out=out, data_root=data)


def log(folder: Path) -> list[dict[str, Any]]:
    return read_jsonl(folder / "metrics.jsonl")


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in log(folder) if "loss" in row]


def weights(folder: Path) -> str:
    return sha256_file(folder / "model" / "model.safetensors")


# It learns --------------------------------------------------------------------------------------------


def test_masked_lm_learns(encoder: Path, data: Path) -> None:
    assert losses(encoder)[-1] < 0.75 * losses(encoder)[0]
    report = evaluate(str(encoder), str(data / "people.txt"))
    assert report.metrics["perplexity"].high < 200  # of 400 tokens


def test_masked_lm_with_whole_words_and_next_sentence_learns(tmp_path: Path, data: Path) -> None:
    made = recipe("masked_lm", steps=60)
    made["task"] |= {"whole_word": True, "next_sentence": True}
    trained = run(made, tmp_path / "run", data)
    rows = [row for row in log(trained.folder) if "loss" in row]
    assert rows[-1]["tokens_loss"] < 0.8 * rows[0]["tokens_loss"]
    for row in rows:
        assert row["loss"] == pytest.approx(row["tokens_loss"] + row["next_sentence_loss"])
    assert set(trained.metrics) == {"loss", "tokens_loss", "next_sentence_loss"}


def test_causal_lm_learns_to_write(tmp_path: Path, data: Path) -> None:
    made = recipe("causal_lm", steps=150, samples=["新华社北京", "From London"], best={"metric": "loss"})
    trained = run(made, tmp_path / "run", data)
    assert losses(trained.folder)[-1] < 0.4 * losses(trained.folder)[0]
    samples = [row["samples"] for row in log(trained.folder) if "samples" in row]
    assert len(samples) == 10
    assert [sample["prompt"] for sample in samples[-1]] == ["新华社北京", "From London"]
    assert samples[0] != samples[-1]
    [[completion]] = load(str(trained.folder)).generate(["据记者报道：经济"], max_new_tokens=20)
    assert any(event.strip() in completion.text for event in small_data.EVENTS)


def test_classification_learns_a_text(tmp_path: Path, data: Path) -> None:
    trained = run(recipe("classification"), tmp_path / "run", data)
    assert losses(trained.folder)[-1] < 0.3 * losses(trained.folder)[0]
    assert trained.metrics["accuracy"] > 0.9
    answers = load(str(trained.folder)).predict(["昨天看来，这本书很好。", "so far, this hotel is awful。"])
    assert [answer["label"] for answer in answers] == ["positive", "negative"]


def test_classification_learns_which_of_a_pair(tmp_path: Path) -> None:
    """Both texts hold all the words of the other class: only their order tells."""
    pairs = list(itertools.product(THINGS, THINGS, GOOD, BAD))
    random.Random(0).shuffle(pairs)
    rows = [(f"{a}{good}", f"{b}{bad}", "first") if i % 2 else (f"{a}{bad}", f"{b}{good}", "second")
            for i, (a, b, good, bad) in enumerate(pairs[:400])]
    write_csv(tmp_path / "pairs.csv", ("one", "other", "better"), rows)
    made = recipe("classification", steps=150, batch_tokens=1024)
    made["data"]["train"] = [{"path": "pairs.csv",
                              "columns": {"text_a": "one", "text_b": "other", "label": "better"}}]
    made["task"]["pair"] = True
    trained = run(made, tmp_path / "run", tmp_path)
    assert trained.metrics["accuracy"] > 0.9
    answer = load(str(trained.folder)).predict([{"text_a": "这本书很好", "text_b": "the laptopawful"}])
    assert answer[0]["label"] == "first"


def test_classification_learns_five_classes_of_unequal_size(tmp_path: Path) -> None:
    """Labels are numbers in the file and names in the model, in their numeric order."""
    words = {10: "好", 2: "坏", 3: "快", 4: "慢", 5: "贵"}
    beginnings = list(itertools.product(small_data.TIMES, THINGS))
    rows = [(f"{time}{thing}真{words[label]}{i}", label)
            for label, number in zip(words, (80, 60, 40, 30, 20), strict=True)
            for i, (time, thing) in enumerate(beginnings[:number])]
    write_csv(tmp_path / "stars.csv", ("text", "label"), rows)
    made = recipe("classification", steps=200)
    made["data"]["train"] = [{"path": "stars.csv"}]
    made["task"] |= {"class_weights": "balanced", "label_smoothing": 0.1}
    trained = run(made, tmp_path / "run", tmp_path)
    assert trained.metrics["accuracy"] > 0.9
    assert trained.metrics["macro_f1"] > 0.9
    config = json.loads((trained.folder / "model" / "config.json").read_text())
    assert list(config["id2label"].values()) == ["2", "3", "4", "5", "10"]


@pytest.mark.parametrize(("too_long", "place"), [("head", 0), ("tail", 1), ("both", 0), ("both", 1)])
def test_the_part_of_a_long_text_that_is_kept_is_learned(tmp_path: Path, too_long: str, place: int) -> None:
    """The word that decides stands at the beginning or at the end; between them stand 40 others."""
    rng = random.Random(0)
    rows = []
    for i in range(160):
        filler = "".join(rng.choices("甲乙丙丁戊己庚辛壬癸", k=40))
        word = "好" if i % 2 else "坏"
        rows.append((filler + word if place else word + filler, "good" if i % 2 else "bad"))
    write_csv(tmp_path / "long.csv", ("text", "label"), rows)
    made = recipe("classification", steps=40)
    made["data"] |= {"train": [{"path": "long.csv"}], "max_tokens": 18, "too_long": too_long}
    assert run(made, tmp_path / "run", tmp_path).metrics["accuracy"] > 0.9
    if too_long != "both":  # the other end says nothing
        made["data"]["too_long"] = {"head": "tail", "tail": "head"}[too_long]
        assert run(made, tmp_path / "blind", tmp_path).metrics["accuracy"] < 0.9


# From a trained model ---------------------------------------------------------------------------------


def test_fine_tuning_begins_with_the_weights_of_our_own_run(
    tmp_path: Path, data: Path, encoder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    made = fine_tuning(encoder)
    run(made, tmp_path / "one", data, "train.steps=1", "train.optimizer.lr=1e-12")
    before, after = (load_tensors(folder / "model" / "model.safetensors") for folder in (encoder, tmp_path / "one"))
    for name, tensor in after.items():
        if "pooler" not in name and "classifier" not in name:
            torch.testing.assert_close(tensor, before[name])
    assert "new, to be learned: bert.pooler.dense.bias, bert.pooler.dense.weight, classifier.bias" in caplog.text
    assert "left out: 5 tensors" in caplog.text  # the head of masked language modelling

    trained = run(made, tmp_path / "run", data)
    assert trained.metrics["accuracy"] > 0.9
    card = json.loads((trained.folder / "model" / "wenmo.json").read_text())
    assert card["lineage"]["parent"]["reference"] == str(encoder)
    assert (trained.folder / "model" / "tokenizer.json").read_bytes() == (
        encoder / "model" / "tokenizer.json").read_bytes()


def test_fine_tuning_from_a_checkpoint_of_transformers(tmp_path: Path, data: Path) -> None:
    tokenizer = tokenizer_training.train((text for text, _ in small_data.reviews(200)),
                                         TokenizerSettings(type="wordpiece", vocab_size=400))
    config = transformers.BertConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=64)
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path / "hf")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=_rust(tokenizer, tmp_path), unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]").save_pretrained(tmp_path / "hf")
    trained = run(fine_tuning(tmp_path / "hf", steps=100), tmp_path / "run", data)
    assert trained.metrics["accuracy"] > 0.9
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(trained.folder / "model").eval()
    text = "昨天看来，这本书很好。"
    scores = theirs(**transformers.AutoTokenizer.from_pretrained(trained.folder / "model")(text, return_tensors="pt"))
    [ours] = load(str(trained.folder)).predict([text])
    assert list(ours["scores"].values()) == pytest.approx(scores.logits.softmax(-1)[0].tolist(), abs=1e-5)


def fine_tuning(model: Path, **changes: Any) -> dict[str, Any]:
    made = recipe("classification", **changes)
    del made["tokenizer"]
    return {**made, "model": {"from": str(model)}}


def _rust(tokenizer: Any, folder: Path) -> Any:
    import tokenizers

    tokenizer.save(folder)
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


# The best, and when to stop ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def contrary(data: Path) -> dict[str, Any]:
    """The rows for choosing have the opposite labels: the better a model has learned, the worse it does there."""
    opposite = {"positive": "negative", "negative": "positive"}
    write_csv(data / "contrary.csv", ("review", "label"),
              [(text, opposite[label]) for text, label in small_data.reviews(40, seed=1)])
    made = recipe("classification", evaluate_every=5, save_every=5, keep=100, best={"metric": "loss"})
    made["data"]["choose"] = {"files": [{"path": "contrary.csv", "columns": {"text": "review"}}]}
    return made


def test_the_model_folder_holds_the_best_weights(tmp_path: Path, data: Path, contrary: dict[str, Any]) -> None:
    trained = run(contrary, tmp_path / "run", data)
    values = {row["step"]: row["val_loss"] for row in log(trained.folder) if "val_loss" in row}
    best = min(values, key=values.__getitem__)
    assert best < trained.steps == 60
    card = json.loads((trained.folder / "model" / "wenmo.json").read_text())
    assert card["lineage"]["best_step"] == best
    assert card["scores"] == {"choose": {"n": 40, **trained.metrics}}
    assert trained.metrics["loss"] == values[best]
    kept = trained.folder / "checkpoints" / f"step-{best}" / "model.safetensors"
    assert weights(trained.folder) == sha256_file(kept)
    assert not (trained.folder / "best").exists()
    last = run(contrary, tmp_path / "last", data, "train.best=null")
    assert weights(last.folder) == sha256_file(last.folder / "checkpoints" / "step-60" / "model.safetensors")


def test_early_stopping_ends_the_run(tmp_path: Path, data: Path, contrary: dict[str, Any]) -> None:
    trained = run(contrary, tmp_path / "run", data, "train.best.patience=2")
    values = {row["step"]: row["val_loss"] for row in log(trained.folder) if "val_loss" in row}
    assert trained.steps == min(values, key=values.__getitem__) + 10 < 60
    assert trained.exit_code == 0
    before = weights(trained.folder)
    again = run(contrary, tmp_path / "run", data, "train.best.patience=2")
    assert (again.steps, again.metrics, weights(trained.folder)) == (trained.steps, trained.metrics, before)


# Resuming ---------------------------------------------------------------------------------------------


def test_a_finished_run_says_so(tmp_path: Path, data: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    made = recipe("classification", steps=8)
    first = run(made, tmp_path / "run", data)
    state = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "model").iterdir()}
    again = run(made, tmp_path / "run", data)
    assert "this run has finished; its model is in " in caplog.text
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "model").iterdir()} == state
    assert (again.steps, again.tokens, again.metrics) == (first.steps, first.tokens, first.metrics)


def test_another_number_format_on_resuming_is_said(tmp_path: Path, data: Path,
                                                  caplog: pytest.LogCaptureFixture) -> None:
    made = recipe("classification", steps=4)
    run(made, tmp_path / "run", data)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert {"device", "dtype", "threads", "processes", "torch"} == record["machine"].keys()
    record["machine"]["dtype"] = "float16"
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    run(made, tmp_path / "run", data)
    assert f"was begun with dtype float16, now {made['train']['dtype']}" in caplog.text.replace("float32", "fp32")


def test_a_resumed_run_may_not_differ(tmp_path: Path, encoder: Path) -> None:
    """Data, identity keys and the model it starts from: each difference is shown, and nothing is lost."""
    data = small_data.write(tmp_path / "data")
    parent = tmp_path / "parent"
    parent.mkdir()
    for file in (encoder / "model").iterdir():
        (parent / file.name).write_bytes(file.read_bytes())
    shard = parent / "model-00001-of-00002.safetensors"
    shard.write_bytes(b"as large models have them")
    made = fine_tuning(parent, steps=8)
    run(made, tmp_path / "run", data)
    state = weights(tmp_path / "run")

    assert "train.optimizer.lr: 0.003 → 0.1" in refused(made, tmp_path, "train.optimizer.lr=0.1")
    assert "seed: 0 → 1" in refused(made, tmp_path, "seed=1")
    rows, definition = data / "reviews-train.csv", parent / "tokenizer.json"
    for file, name in ((rows, "data.train.0"), (definition, "model"), (parent / "model.safetensors", "model"),
                       (shard, "model")):
        before = file.read_bytes()
        file.write_bytes(before + b" \n")
        assert f"\n  {name}: " in refused(made, tmp_path)
        file.write_bytes(before)
    run(made, tmp_path / "run", data)
    assert weights(tmp_path / "run") == state


def test_a_tokenizer_that_changed_inside_the_run_is_refused(tmp_path: Path, data: Path) -> None:
    made = recipe("classification", steps=8, save_every=4)
    run(made, tmp_path / "run", data)
    (tmp_path / "run" / "model" / "config.json").unlink()  # as a kill just before the end leaves it
    file = tmp_path / "run" / "tokenizer" / "tokenizer.json"
    definition = json.loads(file.read_text(encoding="utf-8"))
    definition["normalizer"]["lowercase"] = True
    file.write_text(json.dumps(definition), encoding="utf-8")
    assert "\n  tokenizer: " in refused(made, tmp_path, data=data)


def refused(made: dict[str, Any], folder: Path, *overrides: str, data: Path | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        run(made, folder / "run", data or folder / "data", *overrides)
    return str(caught.value)


def test_stopped_by_signals_and_started_again_the_weights_are_the_same(tmp_path: Path, data: Path) -> None:
    """A second process is refused meanwhile."""
    made = recipe("classification", steps=300, log_every=1)
    whole = run(made, tmp_path / "whole", data)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(made), encoding="utf-8")
    out = tmp_path / "run"
    command = [sys.executable, "-m", "wenmo", "train", "recipe.yaml", "--out", "run", "--data-root", str(data)]
    done = 0
    for number, code in ((signal.SIGTERM, 75), (signal.SIGINT, 130)):
        with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True,
                              env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
            while not (out / "metrics.jsonl").exists() or not log(out) or log(out)[-1]["step"] < done + 3:
                time.sleep(0.005)
                assert process.poll() is None
            if number == signal.SIGTERM:
                with pytest.raises(RunLocked, match=f"pid {process.pid}"):
                    run(made, out, data)
            process.send_signal(number)
            _, said = process.communicate()
        assert process.returncode == code
        assert "Traceback" not in said
        done = log(out)[-1]["step"]
        assert done < 300
    run(made, out, data)
    assert weights(out) == weights(whole.folder)
    assert [row["loss"] for row in log(out) if "loss" in row] == losses(whole.folder)


# What a run leaves ------------------------------------------------------------------------------------


def test_the_log(tmp_path: Path, data: Path) -> None:
    trained = run(recipe("classification", steps=25, log_every=10, evaluate_every=20), tmp_path / "run", data)
    steps = [row for row in log(trained.folder) if "loss" in row]
    assert [row["step"] for row in steps] == [1, 10, 20, 25]
    for row in steps:
        assert set(row) == {"step", "tokens", "loss", "lr", "grad_norm", "tokens_per_second"}
    measured = [row for row in log(trained.folder) if "loss" not in row]
    assert [row["step"] for row in measured] == [20, 25]
    assert {"step", "tokens", "val_loss", "val_accuracy", "val_macro_f1"} <= set(measured[0])
    assert steps[-1]["tokens"] == trained.tokens
    assert list((trained.folder / "tensorboard").glob("events.out.tfevents.*"))


@pytest.mark.parametrize("task", ["causal_lm", "masked_lm", "classification"])
def test_the_card(tmp_path: Path, data: Path, task: str) -> None:
    trained = run(recipe(task, steps=8), tmp_path / "run", data)
    card = json.loads((trained.folder / "model" / "wenmo.json").read_text())
    assert list(card["tasks"]) == [task]
    assert card["tasks"][task]["lengths"] == {"max_tokens": 64, "too_long": "head", "overlap_tokens": 0, "pool": "mean"}
    if task == "classification":
        assert card["tasks"][task]["labels"] == ["negative", "positive"]
    lineage = card["lineage"]
    assert lineage["parent"] is None
    assert (lineage["steps"], lineage["tokens"], lineage["seed"]) == (8, trained.tokens, 0)
    sources = 1 if task == "classification" else 2
    assert list(lineage["data_sha256"]) == [f"data.train.{i}" for i in range(sources)]
    assert lineage["tokenizer_sha256"] == sha256_file(trained.folder / "model" / "tokenizer.json")
    assert card["scores"]["choose"] == {"n": 20, **trained.metrics}
    assert {"zh", "latin"} <= set(card["languages"])
    loaded = load(str(trained.folder))
    assert [entry["prompt"] for entry in card["golden"]] == list(golden.PROMPTS)
    assert golden.check(loaded.model, loaded.tokenizer, card["golden"], "here", tolerance=2e-5) < 2e-5


# The arithmetic ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["causal_lm", "masked_lm", "classification"])
def test_accumulation_changes_no_loss(tmp_path: Path, data: Path, task: str) -> None:
    made = recipe(task, steps=10, log_every=1)
    if task != "causal_lm":
        made["model"] |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    if task == "masked_lm":
        made["task"]["next_sentence"] = True
    found = [losses(run(made, tmp_path / str(n), data, f"train.accumulation={n}").folder) for n in (1, 2)]
    assert found[0] == pytest.approx(found[1], rel=1e-5, abs=1e-5)
    assert found[0] != found[1]  # they were two passes


def test_a_source_is_seen_as_often_as_its_weight_says(tmp_path: Path, data: Path) -> None:
    def tokens(people: float, reviews: float) -> int:
        made = recipe("causal_lm", steps=None, epochs=2)
        for source, weight in zip(made["data"]["train"], (people, reviews), strict=True):
            source["weight"] = weight
        return run(made, tmp_path / f"{people}-{reviews}", data).tokens

    both, more = tokens(1, 1), tokens(3, 1)
    people = (more - both) / 2
    assert 0 < people < both
    assert tokens(1, 2) - both == both - people
    assert tokens(0.5, 1) == pytest.approx(both - people / 2, rel=0.02)


def test_no_text_stands_in_training_and_in_choosing(tmp_path: Path) -> None:
    """Also where duplicates are kept: one row in three is a copy, some with another label."""
    rows = small_data.reviews(120)
    copies = [(text, "positive") for text, _ in rows[:60]]
    write_csv(tmp_path / "reviews-train.csv", ("review", "label"), rows + copies)
    made = recipe("classification", steps=1)
    made["data"] |= {"duplicates": "keep", "choose": {"carve": 50}}
    split = Corpus(parse_recipe(made, "here"), tmp_path).read(tmp_path / "quarantine.jsonl")
    choose = {row.values["text"] for row in split.choose}
    assert len(split.choose) == 50
    assert not choose & set(split.texts(("text",)))


def test_rows_are_held_out_from_all_sources_alike_after_a_test_set_was_carved(tmp_path: Path) -> None:
    """With the same seed: the rows that the test set left would otherwise never be drawn."""
    rows = [Row({"text": text, "label": label}, "", 0) for text, label in small_data.reviews(600)]
    rest, _ = carve(rows, 100, seed=0)
    write_csv(tmp_path / "reviews-train.csv", ("review", "label"), [tuple(row.values.values()) for row in rest])
    (tmp_path / "people.txt").write_text("\n".join(small_data.news(500)), encoding="utf-8")
    made = recipe("classification", steps=1)
    made["data"]["train"].append({"path": "people.txt", "constants": {"label": "news"}})
    made["data"]["choose"] = {"carve": 100}
    split = Corpus(parse_recipe(made, "here"), tmp_path).read(tmp_path / "quarantine.jsonl")
    assert 30 < sum(row.values["label"] == "news" for row in split.choose) < 70


def test_the_functions_of_wenmo_are_hidden_by_no_room() -> None:
    code = ("import wenmo.training.loop; import wenmo.stages.train; import wenmo; "
            "assert callable(wenmo.train) and callable(wenmo.load)")
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_training_that_diverged_says_what_to_do(tmp_path: Path, data: Path) -> None:
    made = recipe("classification", steps=2, optimizer={"type": "sgd", "lr": 1e38}, non_finite="skip")
    with pytest.raises(NumericsError, match="diverged") as caught:
        run(made, tmp_path / "run", data)
    assert "find-lr" in caught.value.mend


# Pairs that are too long ------------------------------------------------------------------------------


@pytest.mark.parametrize(("too_long", "lengths", "kept"), [
    ("head", (4, 4), ("abcd", "abc")), ("tail", (4, 4), ("abcd", "bcd")), ("head", (8, 8), ("abcd", "abc")),
    ("tail", (8, 2), ("defgh", "ab")), ("head", (2, 8), ("ab", "abcde")), ("head", (3, 4), ("abc", "abcd")),
    ("refuse", (4, 4), None),
])
def test_the_longer_text_of_a_pair_gives_way_first(too_long: Any, lengths: tuple[int, int],
                                                   kept: tuple[str, str] | None) -> None:
    tokenizer = tokenizer_training.train(["a b c d e f g h"], TokenizerSettings(type="wordpiece", vocab_size=40))
    task = create_task(ClassificationSettings(pair=True, labels=("x", "y")), tokenizer,
                       Lengths(max_tokens=10, too_long=too_long))
    row = {"text_a": " ".join("abcdefgh"[: lengths[0]]), "text_b": " ".join("abcdefgh"[: lengths[1]]), "label": "x"}
    if kept is None:
        with pytest.raises(DataError, match="4 tokens, 3 fit"):
            task.encode(0, row, with_targets=True)
        return
    [sequence] = task.encode(0, row, with_targets=True).sequences
    ids, segments = sequence.tokens["ids"], sequence.tokens["segments"]
    found = ["".join(tokenizer.token(int(id)) for id in ids[segments == part] if int(id) not in tokenizer.control_ids)
             for part in (0, 1)]
    assert tuple(found) == kept


@pytest.mark.parametrize("names", [["①", "②"], ["--2", "1"], ["3²", "4"], ["-2", "10", "9"]])
def test_labels_that_look_like_numbers_are_names(names: list[str]) -> None:
    expected = ("-2", "9", "10") if "10" in names else tuple(sorted(names))
    assert labels_of(Counter(names), None) == expected
