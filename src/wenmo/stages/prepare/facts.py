"""What a run writes down of what it was made from.

In: a recipe, its corpus, the heads handed in. Out: hashes, by which a resumed run sees that it starts from the same;
and the cards of wenmo.json that say how the training data was read.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from wenmo.errors import say
from wenmo.files import sha256, sha256_file
from wenmo.locate import locate
from wenmo.models import CustomHeads
from wenmo.recipe import From, Recipe
from wenmo.stages.prepare.corpus import Corpus
from wenmo.text.source import SourceSettings

_log = logging.getLogger(__name__)

_OF_THE_FORMAT = ("format", "columns", "header", "separator", "quoting", "fields", "surplus", "before", "join")


def source_card(recipe: Recipe) -> dict[str, Any]:
    """How the training data called its columns: what stands in wenmo.json so that like files can be read again."""
    source = recipe.data.train[0]
    plain = SourceSettings(path=source.path)
    return {name: value for name, value in source.model_dump(mode="json").items()
            if name in _OF_THE_FORMAT and getattr(source, name) != getattr(plain, name)}


def normalization_card(recipe: Recipe) -> dict[str, Any]:
    """How texts were normalised before training; the loaded model does the same to what it is asked."""
    settings = [source.normalize for source in recipe.data.train]
    if any(each != settings[0] for each in settings):
        _log.warning(say("the sources are normalised differently; the model will treat questions like the first",
                         "各数据源的规范化设置不同；模型将按第一个数据源处理输入"))
    return settings[0].model_dump(mode="json")


_MODEL_FILES = ("config.json", "model.safetensors", "model.safetensors.index.json", "model-*.safetensors",
                "quantized.safetensors", "tokenizer.json", "adapter_config.json", "adapter_model.safetensors")


def model_facts(recipe: Recipe) -> dict[str, str]:
    """Hashes of what a recipe starts from, so that a resumed run starts from the same."""
    facts = {}
    for name, part in (("model", recipe.model), ("tokenizer", recipe.tokenizer)):
        if isinstance(part, From) and part.reference != "model":
            path = Path(part.reference)
            path = path if (path / "tokenizer.json").exists() else locate(part.reference)
            names = _MODEL_FILES if name == "model" else ("tokenizer.json",)
            files = [path] if path.is_file() else [file for each in names for file in sorted(path.glob(each))]
            facts[name] = sha256(*(sha256_file(file) for file in files))
    return facts


def run_facts(corpus: Corpus, custom: CustomHeads | None = None) -> dict[str, str]:
    """The hashes of all that a run is made from beside its recipe."""
    return {**corpus.facts, **model_facts(corpus.recipe), **head_facts(custom)}


def head_facts(custom: CustomHeads | None) -> dict[str, str]:
    """The names of the heads handed in, so that a resumed run goes on with the same."""
    return {f"heads.{kind}": getattr(make, "__qualname__", type(make).__name__)
            for kind, make in sorted((custom or {}).items())}
