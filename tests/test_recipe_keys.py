"""No ignored options: every key that a recipe accepts changes what a run does, or is refused where it would not.

Each case is a run of three steps and the same run with one key changed. What may differ is what a user has in the end:
losses and metrics, weights, files, samples, or an error instead of them. (That config.json repeats a key is no effect.)
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import torch

import small_data
from small_data import recipe, write_csv
from wenmo.config import Settings, apply_overrides
from wenmo.errors import RecipeError, WenmoError
from wenmo.files import read_jsonl, sha256_file
from wenmo.recipe import Recipe, parse_recipe
from wenmo.stages.library import train
from wenmo.text import tokenizer_training
from wenmo.text.tokenizer_training import TokenizerSettings

CLASSES, MASKED, CAUSAL = "classification", "masked_lm", "causal_lm"
FIRST = "data.train.0"
WITH_NEWS = ("data.train=[{path: reviews-train.csv, columns: {text: review}}, "
             "{path: people.txt, constants: {label: news}, limit: 10}]",)
SLOW = ("train.steps=20", "train.evaluate_every=5", "train.optimizer.lr=1e-3")  # the loss falls, the answers stay
SAVES = ("train.save_every=1", "train.keep=5")
TRAINED = ("model={from: DATA/model-a}", "tokenizer={from: model}")
MUON = ("train.optimizer.type=muon",)


def only(path: str, *more: str) -> tuple[str, ...]:
    """One source, a file of its own."""
    return (f"data.train=[{{path: {path}}}]", *more)


# setting and key → the task, what is set in both runs, what is set in the second
CASES: dict[str, tuple[str, tuple[str, ...], str]] = {
    "Recipe.seed": (MASKED, (), "seed=1"),
    "Recipe.tokenizer": (CLASSES, (), "tokenizer={from: DATA/tokenizer-a}"),
    "From.from": (CLASSES, ("tokenizer={from: DATA/tokenizer-a}",), "tokenizer.from=DATA/tokenizer-b"),
    "FromModel.from": (CLASSES, TRAINED, "model.from=DATA/model-b"),
    "FromModel.config": (CLASSES, TRAINED, "model.config={hidden_dropout_prob: 0.5}"),
    "BertConfig.vocab_size": (MASKED, (), "model.vocab_size=600"),
    "BertConfig.hidden_size": (MASKED, (), "model.hidden_size=16"),
    "BertConfig.num_hidden_layers": (MASKED, (), "model.num_hidden_layers=1"),
    "BertConfig.num_attention_heads": (MASKED, (), "model.num_attention_heads=4"),
    "BertConfig.intermediate_size": (MASKED, (), "model.intermediate_size=32"),
    "BertConfig.hidden_act": (MASKED, (), "model.hidden_act=relu"),
    "BertConfig.hidden_dropout_prob": (MASKED, (), "model.hidden_dropout_prob=0"),
    "BertConfig.attention_probs_dropout_prob": (MASKED, (), "model.attention_probs_dropout_prob=0"),
    "BertConfig.classifier_dropout": (CLASSES, (), "model.classifier_dropout=0.5"),
    "BertConfig.max_position_embeddings": (MASKED, (), "model.max_position_embeddings=96"),
    "BertConfig.type_vocab_size": (MASKED, (), "model.type_vocab_size=3"),
    "BertConfig.initializer_range": (MASKED, (), "model.initializer_range=0.1"),
    "BertConfig.layer_norm_eps": (MASKED, (), "model.layer_norm_eps=0.1"),
    "LlamaConfig.vocab_size": (CAUSAL, (), "model.vocab_size=600"),
    "LlamaConfig.hidden_size": (CAUSAL, (), "model.hidden_size=16"),
    "LlamaConfig.intermediate_size": (CAUSAL, (), "model.intermediate_size=32"),
    "LlamaConfig.num_hidden_layers": (CAUSAL, (), "model.num_hidden_layers=1"),
    "LlamaConfig.num_attention_heads": (CAUSAL, (), "model.num_attention_heads=4"),
    "LlamaConfig.num_key_value_heads": (CAUSAL, (), "model.num_key_value_heads=1"),
    "LlamaConfig.head_dim": (CAUSAL, (), "model.head_dim=8"),
    "LlamaConfig.hidden_act": (CAUSAL, (), "model.hidden_act=gelu"),
    "LlamaConfig.max_position_embeddings": (CAUSAL, ("data.max_tokens=80",), "model.max_position_embeddings=96"),
    "LlamaConfig.initializer_range": (CAUSAL, (), "model.initializer_range=0.1"),
    "LlamaConfig.rms_norm_eps": (CAUSAL, (), "model.rms_norm_eps=0.1"),
    "LlamaConfig.rope_theta": (CAUSAL, (), "model.rope_theta=100"),
    "LlamaConfig.rope_scaling": (CAUSAL, (), "model.rope_scaling={rope_type: linear, factor: 4}"),
    "LlamaConfig.tie_word_embeddings": (CAUSAL, (), "model.tie_word_embeddings=true"),
    "LlamaConfig.attention_bias": (CAUSAL, (), "model.attention_bias=true"),
    "LlamaConfig.mlp_bias": (CAUSAL, (), "model.mlp_bias=true"),
    "LlamaConfig.attention_dropout": (CAUSAL, (), "model.attention_dropout=0.3"),
    "TokenizerSettings.type": (CLASSES, (), "tokenizer.train.type=bpe"),
    "TokenizerSettings.vocab_size": (MASKED, (), "tokenizer.train.vocab_size=300"),
    "TokenizerSettings.lowercase": (MASKED, (), "tokenizer.train.lowercase=true"),
    "TokenizerSettings.max_run": (CAUSAL, (), "tokenizer.train.max_run=1"),
    "TokenizerSettings.min_frequency": (MASKED, (), "tokenizer.train.min_frequency=20"),
    "TokenizerSettings.masked": (CLASSES, ("tokenizer.train.type=bpe",), "tokenizer.train.masked=true"),
    "TokenizerSettings.control_tokens": (MASKED, (), "tokenizer.train.control_tokens=[<mark>]"),
    "DataSettings.max_tokens": (MASKED, (), "data.max_tokens=16"),
    "DataSettings.too_long": (CLASSES, ("data.max_tokens=8",), "data.too_long=tail"),
    "DataSettings.report": (MASKED, (), "data.report=[{path: people.txt, limit: 10}]"),
    "DataSettings.duplicates": (MASKED, only("copies.txt"), "data.duplicates=keep"),
    "Choose.carve": (MASKED, (), "data.choose.carve=10"),
    "Choose.files": (MASKED, (), "data.choose={files: [{path: other.txt}]}"),
    "SourceSettings.path": (MASKED, only("people.txt"), f"{FIRST}.path=other.txt"),
    "SourceSettings.format": (MASKED, only("people.data"), f"{FIRST}.format=txt"),
    "SourceSettings.encoding": (MASKED, only("gbk.txt"), f"{FIRST}.encoding=latin-1"),
    "SourceSettings.columns": (MASKED, only("two.csv"), f"{FIRST}.columns={{text: other}}"),
    "SourceSettings.constants": (CLASSES, WITH_NEWS, "data.train.1.constants={label: zeitung}"),
    "SourceSettings.header": (MASKED, only("two.csv", f"{FIRST}.columns={{text: 0}}"), f"{FIRST}.header=false"),
    "SourceSettings.separator": (MASKED, only("semicolon.csv"), f"{FIRST}.separator=;"),
    "SourceSettings.unit": (MASKED, only("people.txt"), f"{FIRST}.unit=paragraph"),
    "SourceSettings.join": (MASKED, only("lists.jsonl"), f"{FIRST}.join=，"),
    "SourceSettings.limit": (MASKED, only("people.txt"), f"{FIRST}.limit=40"),
    "SourceSettings.weight": (MASKED, (), f"{FIRST}.weight=3"),
    "NormalizeSettings.nfkc": (CAUSAL, only("wild.txt"), f"{FIRST}.normalize.nfkc=true"),
    "NormalizeSettings.width": (CAUSAL, only("wild.txt"), f"{FIRST}.normalize.width=true"),
    "NormalizeSettings.simplify": (CAUSAL, only("wild.txt"), f"{FIRST}.normalize.simplify=true"),
    "NormalizeSettings.strip": (CAUSAL, only("wild.txt"), f"{FIRST}.normalize.strip=true"),
    "ClassificationSettings.labels": (CLASSES, (), "task.labels=[positive, negative]"),
    "ClassificationSettings.pair": (CLASSES, only("pairs.csv"), "task.pair=true"),
    "ClassificationSettings.class_weights": (CLASSES, WITH_NEWS, "task.class_weights=balanced"),
    "ClassificationSettings.label_smoothing": (CLASSES, (), "task.label_smoothing=0.2"),
    "CausalLMSettings.label_smoothing": (CAUSAL, (), "task.label_smoothing=0.2"),
    "MaskedLMSettings.label_smoothing": (MASKED, (), "task.label_smoothing=0.2"),
    "MaskedLMSettings.probability": (MASKED, (), "task.probability=30%"),
    "MaskedLMSettings.whole_word": (MASKED, (), "task.whole_word=true"),
    "MaskedLMSettings.next_sentence": (MASKED, (), "task.next_sentence=true"),
    "TrainSettings.clip": (MASKED, (), "train.clip=0.01"),
    "TrainSettings.non_finite": (MASKED, ("train.optimizer.lr=1e30",), "train.non_finite=skip"),
    "TrainSettings.epochs": (MASKED, ("train.steps=null", "train.epochs=0.5"), "train.epochs=0.7"),
    "TrainSettings.steps": (MASKED, (), "train.steps=4"),
    "TrainSettings.batch_tokens": (MASKED, (), "train.batch_tokens=200"),
    "TrainSettings.accumulation": (MASKED, (), "train.accumulation=2"),
    "TrainSettings.dtype": (MASKED, (), "train.dtype=bf16"),
    "TrainSettings.device": (MASKED, ("train.device=cpu",), "train.device=cuda"),
    "TrainSettings.threads": (MASKED, (), "train.threads=2"),
    "TrainSettings.best": (CLASSES, SLOW, "train.best={metric: accuracy}"),
    "TrainSettings.evaluate_every": (MASKED, (), "train.evaluate_every=2"),
    "TrainSettings.save_every": (MASKED, SAVES, "train.save_every=2"),
    "TrainSettings.keep": (MASKED, SAVES, "train.keep=1"),
    "TrainSettings.log_every": (MASKED, (), "train.log_every=3"),
    "TrainSettings.samples": (CAUSAL, (), "train.samples=[新华社]"),
    "OptimizerSettings.type": (MASKED, (), "train.optimizer.type=muon"),
    "OptimizerSettings.lr": (MASKED, (), "train.optimizer.lr=1e-4"),
    "OptimizerSettings.matrix_lr": (MASKED, MUON, "train.optimizer.matrix_lr=0.1"),
    "OptimizerSettings.momentum": (MASKED, MUON, "train.optimizer.momentum=0.5"),
    "OptimizerSettings.betas": (MASKED, (), "train.optimizer.betas=[0.5, 0.9]"),
    "OptimizerSettings.eps": (MASKED, (), "train.optimizer.eps=0.1"),
    "OptimizerSettings.weight_decay": (MASKED, (), "train.optimizer.weight_decay=1"),
    "ScheduleSettings.type": (MASKED, (), "train.schedule.type=linear"),
    "ScheduleSettings.warmup": (MASKED, (), "train.schedule.warmup=2 steps"),
    "ScheduleSettings.floor": (MASKED, (), "train.schedule.floor=50%"),
    # Once every answer is right accuracy stands still, and the earliest is kept; the loss goes on falling.
    "BestSettings.metric": (CLASSES, ("train.steps=40", "train.evaluate_every=4", "train.optimizer.lr=3e-3",
                                      "train.best={metric: loss}"), "train.best.metric=accuracy"),
    "BestSettings.patience": (CLASSES, (*SLOW, "train.best={metric: accuracy}"), "train.best.patience=1"),
}

ELSEWHERE = {
    # No task trains a T5 yet: see USELESS. That its keys act, and those of the kinds of rope, test_parity.py says.
    "T5Config", "Linear", "Dynamic", "Yarn", "LongRope", "Llama3",
    # Made of settings that are here: any change in them is a change in those.
    "Recipe.model", "Recipe.data", "Recipe.task", "Recipe.train", "TrainTokenizer.train", "DataSettings.train",
    "DataSettings.choose", "SourceSettings.normalize", "TrainSettings.optimizer", "TrainSettings.schedule",
    "BertConfig.position_embedding_type",  # "absolute", or null, which is Hugging Face's newer word for the same
}

# A key that would do nothing, or can do nothing, is an error before any row is read.
USELESS = {
    "too_long": (MASKED, "data.too_long=tail"),
    "evaluate_every": (MASKED, "data.choose.carve=0", "train.evaluate_every=1"),
    "best": (MASKED, "data.choose.carve=0", "train.best={}"),
    "samples": (CAUSAL, "data.choose.carve=0", "train.samples=[新]"),
    "causal_lm": (MASKED, "train.samples=[新]"),
    "choose.files.0.weight": (MASKED, "data.choose={files: [{path: other.txt, weight: 2}]}"),
    "report.0.weight": (MASKED, "data.report=[{path: other.txt, weight: 2}]"),
    "max_run": (MASKED, "tokenizer.train.max_run=2"),
    "floor": (MASKED, "train.schedule={type: constant, floor: 0.5}"),
    "matrix_lr": (MASKED, "train.optimizer.matrix_lr=0.1"),
    "carve": (MASKED, "data.choose.files=[{path: other.txt}]"),
    "steps": (MASKED, "train.epochs=1"),
    "unit": (CLASSES, f"{FIRST}.unit=paragraph"),
    "separator": (CAUSAL, f"{FIRST}.separator=;"),
    "no head for masked_lm": (MASKED, "model.type=llama"),
    "no head for causal_lm": (CAUSAL, "model.type=bert"),
    "no head for classification": (CLASSES, "model={type: t5}"),
    "mask token": (MASKED, "tokenizer.train.type=bpe"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = small_data.write(tmp_path_factory.mktemp("data"), num_reviews=60, num_news=60)
    news = small_data.news(60, seed=1)
    lines = "\n".join(news)
    (folder / "other.txt").write_text(lines)
    (folder / "people.data").write_text(lines)
    (folder / "copies.txt").write_text(lines + "\n" + lines)
    (folder / "gbk.txt").write_bytes(lines.encode("gbk"))
    wild = (f" ＡＢＣ　１２３ ㎏ 國語 {text} " for text in news)
    (folder / "wild.txt").write_text("\n".join(wild))
    (folder / "people.txt").write_text((folder / "people.txt").read_text().replace("。\n", "。\n\n", 20))
    (folder / "lists.jsonl").write_text(
        "".join(json.dumps({"text": text.split("，") if i % 2 else text}) + "\n" for i, text in enumerate(news)))
    write_csv(folder / "two.csv", ("text", "other"), zip(news, small_data.news(60, seed=2), strict=True))
    write_csv(folder / "pairs.csv", ("text", "text_a", "text_b", "label"),
              [(text, other, text, label) for (text, label), other in zip(small_data.reviews(60), news, strict=True)])
    (folder / "semicolon.csv").write_text((folder / "two.csv").read_text().replace(",", ";"))
    for name, size in (("a", 100), ("b", 200)):
        (folder / f"tokenizer-{name}").mkdir()
        tokenizer_training.train(news, TokenizerSettings(type="wordpiece", vocab_size=size)).save(
            folder / f"tokenizer-{name}")
        train(recipe(MASKED, steps=1), f"seed={size}", out=folder / f"model-{name}", data_root=folder)
    return folder


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("WENMO_LANG", "en")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def made(task: str, overrides: tuple[str, ...], data: Path) -> dict[str, Any]:
    base = recipe(task, steps=3, batch_tokens=256, log_every=1, evaluate_every=1)
    return apply_overrides(base, [override.replace("DATA", str(data)) for override in overrides])


@functools.cache
def outcome(task: str, overrides: tuple[str, ...], data: Path) -> dict[str, Any]:
    """What a user has in the end."""
    folder = data.parent / f"run-{outcome.cache_info().misses}"
    try:
        train(made(task, overrides, data), out=folder, data_root=data)
    except WenmoError as error:
        return {"error": error.what}
    rows = read_jsonl(folder / "metrics.jsonl")
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*")
                   if not {"tensorboard", "shards"} & set(path.parts))
    return {
        "log": [{key: value for key, value in row.items() if key != "tokens_per_second"} for row in rows],
        "files": files, "machine": json.loads((folder / "run.json").read_text())["machine"],
        "weights": sha256_file(folder / "model" / "model.safetensors"),
        "tokenizer": sha256_file(folder / "model" / "tokenizer.json"),
    }


@pytest.mark.parametrize("key", CASES)
def test_a_key_acts(key: str, data: Path) -> None:
    task, both, change = CASES[key]
    before, after = outcome(task, both, data), outcome(task, (*both, change), data)
    assert before != after
    assert ("error" in before) == (key in {"SourceSettings.format", "SourceSettings.separator",
                                           "LlamaConfig.max_position_embeddings", "TrainSettings.non_finite"})
    assert ("error" in after) == (key == "TrainSettings.device" and not torch.cuda.is_available())


@pytest.mark.parametrize("fault", USELESS)
def test_a_key_that_would_do_nothing_is_refused(fault: str, data: Path) -> None:
    task, *overrides = USELESS[fault]
    with pytest.raises(RecipeError, match=fault):
        train(made(task, tuple(overrides), data), out=data.parent / "refused", data_root=data)
    assert not (data.parent / "refused" / "tokenizer").exists()


def test_no_key_is_left_out() -> None:
    keys = {key for cls in settings_in(Recipe) if cls.__name__ not in ELSEWHERE for key in keys_of(cls)}
    assert keys - ELSEWHERE == set(CASES)


def settings_in(annotation: Any) -> set[type[Settings]]:
    """All settings that an annotation is made of."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        fields = annotation.model_fields.values()
        return {annotation}.union(*(settings_in(field.annotation) for field in fields))
    return set().union(*map(settings_in, get_args(annotation)))


def keys_of(cls: type[Settings]) -> set[str]:
    """Its keys, but for those that have one value only."""
    return {f"{cls.__name__}.{field.alias or name}" for name, field in cls.model_fields.items()
            if not (get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1)}


def test_the_small_recipes_are_complete() -> None:
    for task in (CLASSES, MASKED, CAUSAL):
        assert parse_recipe(recipe(task), "here").task.type == task
