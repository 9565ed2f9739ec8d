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
from wenmo.files import read_jsonl, sha256_file, write_jsonl
from wenmo.recipe import Recipe, parse_recipe
from wenmo.stages.library import train
from wenmo.text import tokenizer_training
from wenmo.text.tokenizer_training import TokenizerSettings
from wenmo.text.words import split_units

CLASSES, MASKED, CAUSAL, SPANS, CHAT = "classification", "masked_lm", "causal_lm", "span_corruption", "chat"
QUESTIONS, PAIRS, TAGS = "span_qa", "similarity", "tagging"
FIRST = "data.train.0"
WITH_NEWS = ("data.train=[{path: reviews-train.csv, columns: {text: review}}, "
             "{path: people.txt, constants: {label: news}, limit: 10}]",)
PARALLEL = ("data.train=[{path: a.txt, columns: {text_a: text}, parallel: {text_b: b.txt, label: label.txt}}]",
            "task.pair=true")
BY_NUMBER = (f"{FIRST}.columns={{text: 0}}", f"{FIRST}.header=false")
SLOW = ("train.steps=20", "train.evaluate_every=5", "train.optimizer.lr=1e-3")  # the loss falls, the answers stay
SAVES = ("train.save_every=1", "train.keep=5")
TRAINED = ("model={from: DATA/model-a}", "tokenizer={from: model}")
LORA = ("model={from: DATA/model-a, lora: {rank: 4}}", "tokenizer={from: model}", "train.optimizer.lr=1e-2")
SGD, ADAM, LAMB, MUON, ADAFACTOR = (
    (f"train.optimizer.type={kind}",) for kind in ("sgd", "adam", "lamb", "muon", "adafactor"))
CONSTANT, LINEAR, POLYNOMIAL, INVERSE = (
    (f"train.schedule.type={kind}",) for kind in ("constant", "linear", "polynomial", "inverse_sqrt"))
WSD = ("train.schedule={type: wsd, decay: 2 steps, warmup: 0}",)
WINDOWS = ("data.max_tokens=8", "data.too_long=window")
GROUPED = ("train.groups=[{match: 'embeddings.*', lr_scale: 0.1}]",)


def only(path: str, *more: str) -> tuple[str, ...]:
    """One source, a file of its own."""
    return (f"data.train=[{{path: {path}}}]", *more)


GRADED = only("graded.csv")
WRITES = ("task={type: text_to_text, validation_rows: 2}", "data.max_tokens=32", "data.choose.carve=4",
          "data.train=[{path: pairs.csv, columns: {source: text, target: text_a}}]")
COSINE, ALIKE, TOGETHER = ((*GRADED, "train.batch_tokens=512", *more) for more in (
    ("task.loss=cosine",), ("task.target=label",), ("task.target=pairs",)))

# setting and key → the task, what is set in both runs, what is set in the second
CASES: dict[str, tuple[str, tuple[str, ...], str]] = {
    "Recipe.seed": (MASKED, (), "seed=1"),
    "Recipe.tokenizer": (CLASSES, (), "tokenizer={from: DATA/tokenizer-a}"),
    "From.from": (CLASSES, ("tokenizer={from: DATA/tokenizer-a}",), "tokenizer.from=DATA/tokenizer-b"),
    "FromModel.from": (CLASSES, TRAINED, "model.from=DATA/model-b"),
    "FromModel.config": (CLASSES, TRAINED, "model.config={hidden_dropout_prob: 0.5}"),
    "FromModel.lora": (CLASSES, TRAINED, "model.lora={}"),
    "LoraSettings.rank": (CLASSES, LORA, "model.lora.rank=2"),
    "LoraSettings.alpha": (CLASSES, LORA, "model.lora.alpha=32"),
    "LoraSettings.dropout": (CLASSES, LORA, "model.lora.dropout=0.5"),
    "LoraSettings.targets": (CLASSES, LORA, "model.lora.targets=[query]"),
    "LoraSettings.modules_to_save": (CLASSES, LORA, "model.lora.modules_to_save=[embeddings]"),
    "LoraSettings.rslora": (CLASSES, LORA, "model.lora.rslora=true"),
    "LoraSettings.dora": (CLASSES, LORA, "model.lora.dora=true"),
    "LoraSettings.init": (CLASSES, LORA, "model.lora.init=gaussian"),
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
    "T5Config.vocab_size": (SPANS, (), "model.vocab_size=600"),
    "T5Config.d_model": (SPANS, (), "model.d_model=16"),
    "T5Config.d_kv": (SPANS, (), "model.d_kv=8"),
    "T5Config.d_ff": (SPANS, (), "model.d_ff=32"),
    "T5Config.num_layers": (SPANS, (), "model.num_layers=1"),
    "T5Config.num_decoder_layers": (SPANS, (), "model.num_decoder_layers=1"),
    "T5Config.num_heads": (SPANS, (), "model.num_heads=4"),
    "T5Config.relative_attention_num_buckets": (SPANS, (), "model.relative_attention_num_buckets=8"),
    "T5Config.relative_attention_max_distance": (SPANS, (), "model.relative_attention_max_distance=20"),
    "T5Config.dropout_rate": (SPANS, (), "model.dropout_rate=0"),
    "T5Config.layer_norm_epsilon": (SPANS, (), "model.layer_norm_epsilon=0.1"),
    "T5Config.initializer_factor": (SPANS, (), "model.initializer_factor=0.5"),
    "T5Config.feed_forward_proj": (SPANS, (), "model.feed_forward_proj=gated-gelu"),
    "T5Config.tie_word_embeddings": (SPANS, (), "model.tie_word_embeddings=false"),
    "T5Config.scale_decoder_outputs": (SPANS, (), "model.scale_decoder_outputs=false"),
    "TokenizerSettings.type": (CLASSES, (), "tokenizer.train.type=bpe"),
    "TokenizerSettings.vocab_size": (MASKED, (), "tokenizer.train.vocab_size=300"),
    "TokenizerSettings.lowercase": (MASKED, (), "tokenizer.train.lowercase=true"),
    "TokenizerSettings.max_run": (CAUSAL, (), "tokenizer.train.max_run=1"),
    "TokenizerSettings.min_frequency": (MASKED, (), "tokenizer.train.min_frequency=20"),
    "TokenizerSettings.masked": (CLASSES, ("tokenizer.train.type=bpe",), "tokenizer.train.masked=true"),
    "TokenizerSettings.seq2seq": (CAUSAL, ("tokenizer.train.vocab_size=500",), "tokenizer.train.seq2seq=true"),
    "TokenizerSettings.sentinels": (SPANS, (), "tokenizer.train.sentinels=90"),
    "TokenizerSettings.control_tokens": (MASKED, (), "tokenizer.train.control_tokens=[<mark>]"),
    "DataSettings.max_tokens": (MASKED, (), "data.max_tokens=16"),
    "DataSettings.too_long": (CLASSES, ("data.max_tokens=8",), "data.too_long=tail"),
    "DataSettings.overlap_tokens": (CLASSES, WINDOWS, "data.overlap_tokens=2"),
    "DataSettings.pool": (CLASSES, WINDOWS, "data.pool=max"),
    "DataSettings.augment": (CLASSES, (), "data.augment={delete: 20%}"),
    "AugmentSettings.share": (CLASSES, ("data.augment={delete: 20%}",), "data.augment.share=100%"),
    **{f"AugmentSettings.{way}": (CLASSES, ("data.augment={delete: 20%}",), f"data.augment={{{way}: 50%}}")
       for way in ("swap", "span", "insert", "replace", "typo", "homophone")},
    "AugmentSettings.delete": (CLASSES, ("data.augment={delete: 20%}",), "data.augment.delete=60%"),
    "DataSettings.report": (MASKED, (), "data.report=[{path: people.txt, limit: 10}]"),
    "DataSettings.duplicates": (MASKED, only("copies.txt"), "data.duplicates=keep"),
    "Choose.carve": (MASKED, (), "data.choose.carve=10"),
    "Choose.files": (MASKED, (), "data.choose={files: [{path: other.txt}]}"),
    "Choose.folds": (CLASSES, ("data.choose={folds: 2}",), "data.choose.folds=3"),
    "Choose.fold": (CLASSES, ("data.choose={folds: 3, fold: 1}",), "data.choose.fold=2"),
    "Choose.stratify": (CLASSES, ("data.choose={folds: 3, fold: 1}",), "data.choose.stratify=false"),
    "Choose.refit": (CLASSES, ("data.choose={folds: 2}",), "data.choose.refit=false"),
    "SourceSettings.path": (MASKED, only("people.txt"), f"{FIRST}.path=other.txt"),
    "SourceSettings.format": (MASKED, only("people.data"), f"{FIRST}.format=txt"),
    "SourceSettings.encoding": (MASKED, only("gbk.txt"), f"{FIRST}.encoding=latin-1"),
    "SourceSettings.columns": (MASKED, only("two.csv"), f"{FIRST}.columns={{text: other}}"),
    "SourceSettings.constants": (CLASSES, WITH_NEWS, "data.train.1.constants={label: zeitung}"),
    "SourceSettings.header": (MASKED, only("two.csv", f"{FIRST}.columns={{text: 0}}"), f"{FIRST}.header=false"),
    "SourceSettings.separator": (MASKED, only("caret.csv"), f"{FIRST}.separator=^"),
    "SourceSettings.quoting": (MASKED, only("quoted.csv"), f"{FIRST}.quoting=none"),
    "SourceSettings.fields": (MASKED, only("two.csv", *BY_NUMBER, f"{FIRST}.surplus=join"), f"{FIRST}.fields=1"),
    "SourceSettings.surplus": (MASKED, only("ragged.csv"), f"{FIRST}.surplus=drop"),
    "SourceSettings.before": (MASKED, only("two.csv"), f"{FIRST}.before={{text: ，}}"),
    "SourceSettings.parallel": (CLASSES, PARALLEL, f"{FIRST}.parallel.text_b=a.txt"),
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
    "ChatSettings.template": (CHAT, (), "task.template=llama3"),
    "ChatSettings.system": (CHAT, (), "task.system=Be short."),
    "ChatSettings.learn": (CHAT, (), "task.learn=last"),
    "ChatSettings.label_smoothing": (CHAT, (), "task.label_smoothing=0.2"),
    "SourceSettings.fill": (CAUSAL, only("named.txt", f"{FIRST}.fill={{place: 北京}}"),
                            f"{FIRST}.fill={{place: Paris}}"),
    "CausalLMSettings.label_smoothing": (CAUSAL, (), "task.label_smoothing=0.2"),
    "SpanCorruptionSettings.label_smoothing": (SPANS, (), "task.label_smoothing=0.2"),
    "SpanCorruptionSettings.density": (SPANS, (), "task.density=30%"),
    "SpanCorruptionSettings.mean_span_tokens": (SPANS, (), "task.mean_span_tokens=1"),
    "SpanQASettings.overlap_tokens": (QUESTIONS, ("data.max_tokens=32",), "task.overlap_tokens=4"),
    "SpanQASettings.max_question_tokens": (QUESTIONS, (), "task.max_question_tokens=4"),
    "SpanQASettings.max_answer_tokens": (QUESTIONS, (), "task.max_answer_tokens=1"),
    "SpanQASettings.metric": (QUESTIONS, (), "task.metric=squad"),
    "SpanQASettings.no_answer": (QUESTIONS, (), "task.no_answer=false"),
    "SpanQASettings.null_threshold": (QUESTIONS, (), "task.null_threshold=-100"),
    "SpanQASettings.unfound": (QUESTIONS, (), "task.unfound=refuse"),
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
    "TrainSettings.optimizer": (MASKED, (), "train.optimizer.type=lamb"),
    "Sgd.lr": (MASKED, SGD, "train.optimizer.lr=0.01"),
    "Sgd.momentum": (MASKED, SGD, "train.optimizer.momentum=0.5"),
    "Sgd.nesterov": (MASKED, SGD, "train.optimizer.nesterov=true"),
    "Sgd.weight_decay": (MASKED, SGD, "train.optimizer.weight_decay=1"),
    "Adam.lr": (MASKED, ADAM, "train.optimizer.lr=1e-4"),
    "Adam.betas": (MASKED, ADAM, "train.optimizer.betas=[0.5, 0.9]"),
    "Adam.eps": (MASKED, ADAM, "train.optimizer.eps=0.1"),
    "Adam.weight_decay": (MASKED, ADAM, "train.optimizer.weight_decay=1"),
    "AdamW.lr": (MASKED, (), "train.optimizer.lr=1e-4"),
    "AdamW.betas": (MASKED, (), "train.optimizer.betas=[0.5, 0.9]"),
    "AdamW.eps": (MASKED, (), "train.optimizer.eps=0.1"),
    "AdamW.state_bits": (MASKED, (), "train.optimizer.state_bits=8"),
    "AdamW.weight_decay": (MASKED, (), "train.optimizer.weight_decay=1"),
    "Lamb.lr": (MASKED, LAMB, "train.optimizer.lr=1e-4"),
    "Lamb.betas": (MASKED, LAMB, "train.optimizer.betas=[0.5, 0.9]"),
    "Lamb.eps": (MASKED, LAMB, "train.optimizer.eps=0.1"),
    "Lamb.weight_decay": (MASKED, LAMB, "train.optimizer.weight_decay=1"),
    "Muon.lr": (MASKED, MUON, "train.optimizer.lr=1e-4"),
    "Muon.matrix_lr": (MASKED, MUON, "train.optimizer.matrix_lr=0.1"),
    "Muon.momentum": (MASKED, MUON, "train.optimizer.momentum=0.5"),
    "Muon.betas": (MASKED, MUON, "train.optimizer.betas=[0.5, 0.9]"),
    "Muon.eps": (MASKED, MUON, "train.optimizer.eps=0.1"),
    "Muon.weight_decay": (MASKED, MUON, "train.optimizer.weight_decay=1"),
    "Adafactor.lr": (MASKED, ADAFACTOR, "train.optimizer.lr=1e-4"),
    "Adafactor.decay_rate": (MASKED, ADAFACTOR, "train.optimizer.decay_rate=0.5"),
    "Adafactor.clip_threshold": (MASKED, ADAFACTOR, "train.optimizer.clip_threshold=2"),
    "Adafactor.eps": (MASKED, ADAFACTOR, "train.optimizer.eps=0.1"),
    "Adafactor.weight_decay": (MASKED, ADAFACTOR, "train.optimizer.weight_decay=1"),
    "TrainSettings.schedule": (MASKED, (), "train.schedule.type=linear"),
    "ConstantSchedule.warmup": (MASKED, CONSTANT, "train.schedule.warmup=2 steps"),
    "LinearSchedule.warmup": (MASKED, LINEAR, "train.schedule.warmup=2 steps"),
    "LinearSchedule.floor": (MASKED, LINEAR, "train.schedule.floor=50%"),
    "CosineSchedule.warmup": (MASKED, (), "train.schedule.warmup=2 steps"),
    "CosineSchedule.floor": (MASKED, (), "train.schedule.floor=50%"),
    "PolynomialSchedule.warmup": (MASKED, POLYNOMIAL, "train.schedule.warmup=2 steps"),
    "PolynomialSchedule.floor": (MASKED, POLYNOMIAL, "train.schedule.floor=50%"),
    "PolynomialSchedule.power": (MASKED, POLYNOMIAL, "train.schedule.power=3"),
    "InverseSqrtSchedule.warmup": (MASKED, INVERSE, "train.schedule.warmup=2 steps"),
    "WsdSchedule.warmup": (MASKED, WSD, "train.schedule.warmup=1 steps"),
    "WsdSchedule.floor": (MASKED, WSD, "train.schedule.floor=50%"),
    "WsdSchedule.decay": (MASKED, WSD, "train.schedule.decay=3 steps"),
    "WsdSchedule.form": (MASKED, WSD, "train.schedule.form=linear"),
    "TrainSettings.l1": (MASKED, (), "train.l1=0.1"),
    "SimilaritySettings.target": (PAIRS, GRADED, "task.target=label"),
    "SimilaritySettings.loss": (PAIRS, GRADED, "task.loss=cosine"),
    "SimilaritySettings.range": (PAIRS, COSINE, "task.range=[-5, 9]"),
    "SimilaritySettings.temperature": (PAIRS, GRADED, "task.temperature=0.5"),
    "SimilaritySettings.symmetric": (PAIRS, TOGETHER, "task.symmetric=true"),
    "SimilaritySettings.hard_negatives": (PAIRS, TOGETHER, "task.hard_negatives=true"),
    "SimilaritySettings.pooling": (PAIRS, GRADED, "task.pooling=cls"),
    "SimilaritySettings.prompts": (PAIRS, GRADED, "task.prompts={query: 问：}"),
    "SimilaritySettings.labels": (PAIRS, ALIKE, "task.labels=[positive, negative]"),
    "SimilaritySettings.threshold": (PAIRS, ALIKE, "task.threshold=0.5"),
    "TextToTextSettings.prefix": (SPANS, WRITES, "task.prefix=写："),
    "TextToTextSettings.separator": (CAUSAL, (*WRITES, "task.separator=＝"), "task.separator=＝＝"),
    "TextToTextSettings.max_target_tokens": (SPANS, WRITES, "task.max_target_tokens=4"),
    "TextToTextSettings.long_targets": (SPANS, (*WRITES, "data.max_tokens=64", "task.max_target_tokens=45"),
                                        "task.long_targets=skip"),
    "TextToTextSettings.label_smoothing": (SPANS, WRITES, "task.label_smoothing=0.2"),
    "TextToTextSettings.metrics": (SPANS, WRITES, "task.metrics=[rouge]"),
    "TextToTextSettings.validation_rows": (SPANS, WRITES, "task.validation_rows=0"),
    "TrainSettings.r_drop": (CLASSES, (), "train.r_drop=1"),
    "TrainSettings.adversarial": (MASKED, (), "train.adversarial=10%"),
    "TrainSettings.l2_sp": (CLASSES, TRAINED, "train.l2_sp=10"),
    "TrainSettings.ema": (MASKED, (), "train.ema=0.5"),
    "TrainSettings.layer_decay": (MASKED, (), "train.layer_decay=0.5"),
    "TrainSettings.unfreeze": (MASKED, (), "train.unfreeze={every: 1}"),
    "UnfreezeSettings.every": (MASKED, ("train.unfreeze={every: 1}",), "train.unfreeze.every=2"),
    "TrainSettings.groups": (MASKED, (), "train.groups=[{match: 'embeddings.*', lr_scale: 0.1}]"),
    "GroupSettings.match": (MASKED, GROUPED, "train.groups.0.match='cls.*'"),
    "GroupSettings.lr_scale": (MASKED, GROUPED, "train.groups.0.lr_scale=0.5"),
    "GroupSettings.weight_decay": (MASKED, GROUPED, "train.groups.0.weight_decay=1"),
    "GroupSettings.freeze": (MASKED, GROUPED, "train.groups=[{match: 'embeddings.*', freeze: true}]"),
    # Once every answer is right accuracy stands still, and the earliest is kept; the loss goes on falling.
    "BestSettings.metric": (CLASSES, ("train.steps=40", "train.evaluate_every=4", "train.optimizer.lr=3e-3",
                                      "train.best={metric: loss}"), "train.best.metric=accuracy"),
    "BestSettings.patience": (CLASSES, (*SLOW, "train.best={metric: accuracy}"), "train.best.patience=1"),
}

ROBERTA = ("model={type: roberta, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, "
           "intermediate_size: 64, max_position_embeddings: 70}",)
CASES |= {f"RobertaConfig.{change.split('=')[0]}": (MASKED, ROBERTA, f"model.{change}") for change in (
    "vocab_size=600", "hidden_size=16", "num_hidden_layers=1", "num_attention_heads=4", "intermediate_size=32",
    "hidden_act=relu", "hidden_dropout_prob=0", "attention_probs_dropout_prob=0", "max_position_embeddings=96",
    "type_vocab_size=3", "initializer_range=0.1", "layer_norm_eps=0.1")}
CASES |= {"RobertaConfig.classifier_dropout": (CLASSES, ROBERTA, "model.classifier_dropout=0.5")}
MARIAN = ("model={type: marian, d_model: 32, encoder_layers: 2, encoder_attention_heads: 2, encoder_ffn_dim: 64, "
          "decoder_layers: 2, decoder_attention_heads: 2, decoder_ffn_dim: 64, max_position_embeddings: 128}",)
CASES |= {f"MarianConfig.{change.split('=')[0]}": (SPANS, MARIAN, f"model.{change}") for change in (
    "vocab_size=600", "d_model=16", "encoder_layers=1", "encoder_attention_heads=4", "encoder_ffn_dim=32",
    "decoder_layers=1", "decoder_attention_heads=4", "decoder_ffn_dim=32", "max_position_embeddings=32",
    "activation_function=relu", "dropout=0", "attention_dropout=0.5", "activation_dropout=0.5",
    "scale_embedding=true", "init_std=0.1")}

WHOLE = only("whole.csv")
CASES |= {f"{settings}.{change.split('=')[0]}": (CLASSES, (*WHOLE, f"task={{type: {kind}}}", *more), f"task.{change}")
          for settings, kind, cases in (
    ("RegressionSettings", "regression", {
        "pair=true": (), "loss=mae": (), "delta=0.1": ("task.loss=huber",), "offset=1": (), "scale=3": (),
        "range=[0, 3]": ()}),
    ("MultiLabelSettings", "multi_label", {
        "pair=true": (), "labels=[c, a, b]": ("task.separator=/",), "separator=/": (), "pos_weight=balanced": (),
        "thresholds={a/b: 1, c: 1}": ()}),
) for change, more in cases.items()}
JOINT = (*WHOLE, "task={type: joint, tasks: {mood: {type: classification}, size: {type: regression}}}")
CASES |= {
    "PartSettings.weight": (CLASSES, JOINT, "task.tasks.size.weight=0.1"),
    "PartSettings.columns": (CLASSES, JOINT, "task.tasks.mood.columns={label: labels}"),
    "SourceSettings.tasks": (CLASSES, (*JOINT, "data.train=[{path: whole.csv}, {path: more.csv}]"),
                             "data.train.1.tasks=[mood]"),
    "DataSettings.temperature": (CLASSES, ("data.train=[{path: whole.csv}, {path: more.csv, limit: 10}]",),
                                 "data.temperature=2"),
}

# The models of Llama's shape: what makes one of the small Llama, and the keys that they share.
ROTARY: dict[str, tuple[str, ...]] = {
    "LlamaConfig": (), "MistralConfig": ("model.type=mistral", "model.num_key_value_heads=2"),
    "Qwen2Config": ("model.type=qwen2", "model.num_key_value_heads=2"),
    "Qwen3Config": ("model.type=qwen3", "model.num_key_value_heads=2", "model.head_dim=16"),
}
ROTARY_KEYS = {
    "vocab_size": "600", "hidden_size": "16", "intermediate_size": "32", "num_hidden_layers": "1",
    "num_attention_heads": "4", "num_key_value_heads": "1", "head_dim": "8", "hidden_act": "gelu",
    "initializer_range": "0.1", "rms_norm_eps": "0.1", "rope_theta": "100", "tie_word_embeddings": "true",
    "rope_scaling": "{rope_type: linear, factor: 4}", "attention_dropout": "0.3",
}
for name, model in ROTARY.items():
    CASES |= {f"{name}.{key}": (CAUSAL, model, f"model.{key}={value}") for key, value in ROTARY_KEYS.items()}
    CASES[f"{name}.max_position_embeddings"] = (CAUSAL, (*model, "data.max_tokens=80"),
                                                "model.max_position_embeddings=96")
CASES |= {
    "LlamaConfig.attention_bias": (CAUSAL, (), "model.attention_bias=true"),
    "LlamaConfig.mlp_bias": (CAUSAL, (), "model.mlp_bias=true"),
    "MistralConfig.sliding_window": (CAUSAL, ROTARY["MistralConfig"], "model.sliding_window=4"),
    "Qwen3Config.attention_bias": (CAUSAL, ROTARY["Qwen3Config"], "model.attention_bias=true"),
}
for name in ("Qwen2Config", "Qwen3Config"):
    window = (*ROTARY[name], "model.use_sliding_window=true", "model.sliding_window=4", "model.max_window_layers=0")
    CASES |= {
        f"{name}.use_sliding_window": (CAUSAL, (*window, "model.sliding_window=null", "model.use_sliding_window=false"),
                                       "model.use_sliding_window=true"),
        f"{name}.sliding_window": (CAUSAL, window, "model.sliding_window=8"),
        f"{name}.max_window_layers": (CAUSAL, window, "model.max_window_layers=1"),
        f"{name}.layer_types": (CAUSAL, window, "model.layer_types=[full_attention, sliding_attention]"),
    }
T5 = ("model={type: t5, d_model: 32, d_kv: 16, d_ff: 64, num_layers: 2, num_heads: 2}",)
GPT2 = ("model={type: gpt2, n_embd: 32, n_layer: 2, n_head: 2, n_positions: 64}",)
CASES |= {f"GPT2Config.{key}": (CAUSAL, GPT2, f"model.{key}={value}") for key, value in {
    "vocab_size": "600", "n_positions": "96", "n_embd": "16", "n_layer": "1", "n_head": "4", "n_inner": "32",
    "activation_function": "relu", "resid_pdrop": "0", "embd_pdrop": "0", "attn_pdrop": "0",
    "layer_norm_epsilon": "0.1", "initializer_range": "0.1", "scale_attn_weights": "false",
    "scale_attn_by_inverse_layer_idx": "true", "tie_word_embeddings": "false",
}.items()}
TAGGED = only("tagged.jsonl")
CASES |= {f"TaggingSettings.{change.split('=')[0]}": (TAGS, (*TAGGED, *more), f"task.{change}") for change, more in {
    "target=tags": (), "rows=text": (), "scheme=bmes": (), "labels=[B-X, I-X, O]": (), "crf=true": (),
    "label_smoothing=0.2": (), "learn=all": (), "units=words": ("task.rows=text",),
    "conflicts=drop": ("task.rows=text", f"{FIRST}.path=crossing.jsonl"), "overlap_tokens=1": ("data.max_tokens=16",),
}.items()}
ROTARY_SIZE = ("model={type: llama, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, "
               "intermediate_size: 64}")
WITH_DROPOUT = {"GPT2Config": GPT2, "T5Config": T5, **{name: (ROTARY_SIZE, *model) for name, model in ROTARY.items()}}
for name, model in WITH_DROPOUT.items():
    CASES[f"{name}.classifier_dropout"] = (TAGS, (*TAGGED, *model), "model.classifier_dropout=0.5")
# Run into an error before the change, and after it.
FAILS_BEFORE = {"SourceSettings.format", "TaggingSettings.conflicts", "SourceSettings.separator",
                "TrainSettings.non_finite", *(f"{name}.max_position_embeddings" for name in ROTARY)}
FAILS_AFTER = {"RegressionSettings.range",  # a row lies beyond
               "Qwen2Config.use_sliding_window", "Qwen3Config.use_sliding_window",  # without a sliding_window
               "SpanQASettings.no_answer", "SpanQASettings.unfound",  # some rows have none, one has it elsewhere
               "MarianConfig.max_position_embeddings",  # shorter than data.max_tokens
               *(() if torch.cuda.is_available() else ("TrainSettings.device",))}

ELSEWHERE = {
    "SpanQASettings.n_best",  # of what `predict` says: test_span_qa.py
    "TextToTextSettings.generation", "GenerationSettings.num_beams", "GenerationSettings.length_penalty",
    "GenerationSettings.no_repeat_ngram_size", "GenerationSettings.max_new_tokens",  # the same: test_text_to_text.py
    "ChatSettings.max_new_tokens",  # of the answers of `predict`: test_chat_task.py
    "TrainSettings.checkpoint_activations",  # the same weights in less memory: test_checkpointing.py
    "TrainSettings.compile",  # the same losses from compiled layers: test_compiled.py
    "TrainSettings.parallel", "ParallelSettings.type",  # among several processes: test_processes.py
    # That the keys of the kinds of rope act, test_parity.py says.
    "Linear", "Dynamic", "Yarn", "LongRope", "Llama3",
    # Made of settings that are here: any change in them is a change in those.
    "PartSettings.task", "JointSettings.tasks",
    "Recipe.model", "Recipe.data", "Recipe.task", "Recipe.train", "TrainTokenizer.train", "DataSettings.train",
    "DataSettings.choose", "SourceSettings.normalize",
    "T5Config.is_encoder_decoder", "T5Config.decoder_start_token_id",  # true, the tokenizer's padding: or refused
    "RobertaConfig.pad_token_id", "MarianConfig.pad_token_id", "MarianConfig.decoder_start_token_id",  # the same
    # One value, as others of their kind are not computed: the rest is refused.
    "MarianConfig.encoder_layerdrop", "MarianConfig.decoder_layerdrop", "MarianConfig.decoder_vocab_size",
    # "absolute", or null, which is Hugging Face's newer word for the same
    "RobertaConfig.position_embedding_type", "BertConfig.position_embedding_type",
}

# A key that would do nothing, or can do nothing, is an error before any row is read.
USELESS = {
    "`scheme` does nothing": (TAGS, *TAGGED, "task.target=tags", "task.scheme=bio"),
    "longer than data.max_tokens": (SPANS, *WRITES, "task.max_target_tokens=40"),
    "no head for seq2seq_lm": (CAUSAL, *WRITES),
    "acts in beam search only": (SPANS, *WRITES, "task.generation={length_penalty: 2}"),
    "take the middle out": (CHAT, "data.too_long=both"),
    "has no chat template": (CHAT, "task.template=null"),
    "there is no|no row says": (CAUSAL, f"{FIRST}.fill={{nobody: says}}"),
    "too_long": (MASKED, "data.too_long=tail"),
    "`data.too_long` does nothing": (TAGS, *TAGGED, "data.too_long=refuse"),
    "`model.lora.targets`": (CLASSES, *LORA, "model.lora.targets=[]"),
    "is for single texts": (CLASSES, *only("pairs.csv"), "task.pair=true", "data.too_long=window"),
    "less than half of data.max_tokens": (CLASSES, *WINDOWS, "data.overlap_tokens=4"),
    "no text is read in windows": (CLASSES, "data.pool=max"),
    "overlap_tokens": (CLASSES, "data.overlap_tokens=4"),
    "several sources": (CLASSES, "data.temperature=2"),
    "no task `mood`": (CLASSES, f"{FIRST}.tasks=[mood]"),
    "`delta` does nothing": (CLASSES, *WHOLE, "task={type: regression, delta: 1}"),
    "have no mean": (CLASSES, "train.best={metric: {loss: 1, accuracy: 1}}"),
    "not one answer to a whole text": (MASKED, "data.augment={delete: 10%}"),
    "it does nothing": (CLASSES, "data.augment={share: 10%}"),
    "window is not for this task": (PAIRS, *GRADED, "data.too_long=window"),
    "`range` does nothing here": (PAIRS, *GRADED, "task.range=[0, 5]"),
    "does not go with": (PAIRS, *GRADED, "task.loss=infonce"),
    "no weights to stay near": (MASKED, "train.l2_sp=0.1"),
    "no scores to compare": (MASKED, "train.r_drop=1"),
    "evaluate_every": (MASKED, "data.choose.carve=0", "train.evaluate_every=1"),
    "best": (MASKED, "data.choose.carve=0", "train.best={}"),
    "samples": (CAUSAL, "data.choose.carve=0", "train.samples=[新]"),
    "causal_lm": (MASKED, "train.samples=[新]"),
    "choose.files.0.weight": (MASKED, "data.choose={files: [{path: other.txt, weight: 2}]}"),
    "report.0.weight": (MASKED, "data.report=[{path: other.txt, weight: 2}]"),
    "sentinels": (CAUSAL, "tokenizer.train.sentinels=7"),
    "seq2seq": (SPANS, "tokenizer.train.seq2seq=false"),
    "decoder_start_token_id": (SPANS, "model.decoder_start_token_id=7"),
    "pad_token_id": (MASKED, *ROBERTA, "model.pad_token_id=5"),
    "decoder_start_token_id is 7": (SPANS, *MARIAN, "model.decoder_start_token_id=7"),
    "decoder_layerdrop": (SPANS, *MARIAN, "model.decoder_layerdrop=0.1"),
    "decoder_vocab_size": (SPANS, *MARIAN, "model.decoder_vocab_size=7"),
    "max_run": (MASKED, "tokenizer.train.max_run=2"),
    "floor": (MASKED, "train.schedule={type: constant, floor: 0.5}"),
    "matrix_lr": (MASKED, "train.optimizer.matrix_lr=0.1"),
    "nesterov": (MASKED, "train.optimizer={type: sgd, momentum: 0, nesterov: true}"),
    "betas": (MASKED, "train.optimizer={type: sgd, betas: [0.9, 0.9]}"),
    "decay": (MASKED, "train.schedule={type: wsd, decay: 0}"),
    "`unfreeze` does nothing here": (MASKED, "train.unfreeze={every: 1}",
                                     "train.groups=[{match: 'bert.*', freeze: true}]"),
    "more than 0": (MASKED, "train.unfreeze={every: 0}"),
    "the group does nothing": (MASKED, "train.groups=[{match: '*'}]"),
    "matches `pooler": (MASKED, "train.groups=[{match: 'pooler.*', lr_scale: 2}]"),
    "vectors alone": (MASKED, "train.groups=[{match: '*.bias', weight_decay: 1}]"),
    "carve": (MASKED, "data.choose.files=[{path: other.txt}]"),
    "one of them": (MASKED, "data.choose={folds: 3, carve: 10}"),
    "without `folds`": (MASKED, "data.choose={fold: 1}"),
    "there is no fold 4": (MASKED, "data.choose={folds: 3, fold: 4}"),
    "never refitted": (MASKED, "data.choose={folds: 3, fold: 1, refit: false}"),
    "the task has no classes": (MASKED, "data.choose={folds: 3, stratify: true}"),
    "steps": (MASKED, "train.epochs=1"),
    "unit": (CLASSES, f"{FIRST}.unit=paragraph"),
    "separator": (CAUSAL, f"{FIRST}.separator=;"),
    "no head for masked_lm": (MASKED, "model.type=llama"),
    "go together": (CAUSAL, *ROTARY["Qwen3Config"], "model.sliding_window=4"),
    "no layer would have the window": (CAUSAL, *ROTARY["Qwen2Config"], "model.use_sliding_window=true",
                                       "model.sliding_window=4"),
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
    tagged = [{"text": text, "tokens": [text[start:end] for start, end in split_units(text, "mixed")],
               "entities": [{"start": 0, "end": 2, "type": "X"}]} for text in news if text[0] > "z"]
    for row in tagged:
        row["tags"] = ["B-X", "I-X", *["O"] * (len(row["tokens"]) - 2)]
    tagged += [{"text": text, "tokens": text.split(), "tags": ["B-X"] + ["O"] * (len(text.split()) - 1), "entities": []}
               for text in news if text[0] <= "z"]
    write_jsonl(folder / "tagged.jsonl", tagged)
    crossing = [{"start": 1, "end": 3, "type": "X"}, {"start": 2, "end": 4, "type": "X"}]
    write_jsonl(folder / "crossing.jsonl", ({**row, "entities": crossing} for row in tagged))
    (folder / "named.txt").write_text("\n".join(f"{{{{place}}}}：{text}" for text in news))
    said = [text.split("，") for text in news]
    (folder / "talks.jsonl").write_text("".join(json.dumps({"messages": [
        {"role": ("user", "assistant")[i % 2], "content": part} for i, part in enumerate([*parts, *parts])]}) + "\n"
        for parts in said))
    asked = small_data.questions(60)
    write_jsonl(folder / "questions.jsonl", [*asked, {**asked[0], "question": "哪儿？", "answers": ["不在原文中"]}])
    (folder / "gbk.txt").write_bytes(lines.encode("gbk"))
    wild = (f" ＡＢＣ　１２３ ㎏ 國語 {text} " for text in news)
    (folder / "wild.txt").write_text("\n".join(wild))
    (folder / "people.txt").write_text((folder / "people.txt").read_text().replace("。\n", "。\n\n", 20))
    (folder / "lists.jsonl").write_text(
        "".join(json.dumps({"text": text.split("，") if i % 2 else text}) + "\n" for i, text in enumerate(news)))
    write_csv(folder / "two.csv", ("text", "other"), zip(news, small_data.news(60, seed=2), strict=True))
    write_csv(folder / "graded.csv", ("text_a", "text_b", "text_c", "score", "label"),
              [(text, other, news[i - 7], i % 5, label)
               for i, ((text, label), other) in enumerate(zip(small_data.reviews(60), news, strict=True))])
    for name, texts in (("whole", [text for text, _ in small_data.reviews(60)]), ("more", news)):
        write_csv(folder / f"{name}.csv", ("text", "text_a", "text_b", "label", "score", "labels"),
                  [(text, text, other, ("positive", "negative")[i % 2], i % 5, ("a/b", "c")[i % 2])
                   for i, (text, other) in enumerate(zip(texts, news, strict=True))])
    write_csv(folder / "pairs.csv", ("text", "text_a", "text_b", "label"),
              [(text, other, text, label) for (text, label), other in zip(small_data.reviews(60), news, strict=True)])
    (folder / "caret.csv").write_text((folder / "two.csv").read_text().replace(",", "^"))
    (folder / "quoted.csv").write_text("text,label\n" + "".join(f'"{text}",0\n' for text in news))
    (folder / "ragged.csv").write_text(
        "text\n" + "".join(f"{text},{text}\n" if i % 2 else f"{text}\n" for i, text in enumerate(news)))
    for name, values in (("a", news), ("b", news[::-1]), ("label", ["positive", "negative"] * 30)):
        (folder / f"{name}.txt").write_text("\n".join(values))
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
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*")
                   if not {"tensorboard", "shards"} & set(path.parts))
    if not (folder / "model").exists():  # folds without a final model
        return {"files": files}
    rows = read_jsonl(folder / "metrics.jsonl")
    return {
        "log": [{key: value for key, value in row.items() if key != "tokens_per_second"} for row in rows],
        "files": files, "machine": json.loads((folder / "run.json").read_text())["machine"],
        "weights": [sha256_file(file) for file in sorted((folder / "model").glob("*.safetensors"))],
        "tokenizer": sha256_file(folder / "model" / "tokenizer.json"),
    }


@pytest.mark.parametrize("key", CASES)
def test_a_key_acts(key: str, data: Path) -> None:
    task, both, change = CASES[key]
    before, after = outcome(task, both, data), outcome(task, (*both, change), data)
    assert before != after
    assert ("error" in before) == (key in FAILS_BEFORE)
    assert ("error" in after) == (key in FAILS_AFTER)


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
