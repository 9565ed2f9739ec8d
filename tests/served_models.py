"""Tiny models of random weights, and a server in a thread that serves them: it answers much, and none of it sense."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from oracle import theirs
from wenmo.modeldir import Opened, save_model
from wenmo.models import architecture, create, read_config
from wenmo.serve.app import create_app
from wenmo.serve.models import Models
from wenmo.serve.server import background
from wenmo.serve.settings import ServeSettings
from wenmo.text.chat_templates import TEMPLATES
from wenmo.text.tokenizer import Tokenizer
from wenmo.text.tokenizer_training import TokenizerSettings, train

TEXTS = ["👩‍👩‍👧‍👦 家庭 🏳️‍🌈 emoji, 汉字 and letters", "人工智能的发展 🙂🙃 e\u0301 क्षि 한국어 👍🏽",
         "user assistant system"]


def chat_model(folder: Path) -> Path:
    """A Llama with a chat template that offers functions; it writes characters of many scripts."""
    chatml = TEMPLATES["chatml"]
    tokenizer = train(TEXTS, TokenizerSettings(type="bpe", vocab_size=420)).with_chat_template(
        chatml.source, chatml.control_tokens, chatml.end)
    shape = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 1024,
             "vocab_size": tokenizer.vocab_size}
    config, _ = read_config(architecture("llama", "llama").config_class, shape, "llama")
    made = create(config, {"causal_lm": 0}, torch.Generator().manual_seed(0))
    for parameter in made.parameters():  # so that the next token depends on what came before
        parameter.data.mul_(3 if parameter.ndim > 1 else 1)
    save_model(folder, Opened(made, tokenizer))
    return folder


def hf_model(folder: Path, hf_class: str, tokenizer: Tokenizer, **changes: Any) -> Path:
    theirs(hf_class, **{"vocab_size": tokenizer.vocab_size, "pad_token_id": 0, **changes}).save_pretrained(folder)
    tokenizer.save(folder)
    return folder


def four(base: Path) -> dict[str, str]:
    """A chat model, a classifier, an encoder, and an encoder–decoder, by the names that they are served by."""
    words = train(TEXTS, TokenizerSettings(type="wordpiece", vocab_size=200, min_frequency=1))
    pairs = train(TEXTS, TokenizerSettings(vocab_size=400, seq2seq=True))
    labels = {"id2label": {0: "差", 1: "中", 2: "好"}}
    return {"chat": str(chat_model(base / "chat")),
            "labels": str(hf_model(base / "labels", "BertForSequenceClassification", words, **labels)),
            "encoder": str(hf_model(base / "encoder", "BertModel", words)),
            "t5": str(hf_model(base / "t5", "T5ForConditionalGeneration", pairs))}


@contextlib.contextmanager
def serving(references: dict[str, str], **given: Any) -> Iterator[str]:
    """The address."""
    settings = ServeSettings(**{"port": 0, "drain_seconds": 5, **given})
    models = Models(references, settings.models, engine=settings.engine)
    app = create_app(models, settings)
    with background(app, settings, app.state.gate) as url:
        yield url
