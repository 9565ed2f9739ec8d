"""The files of a model, read: nothing is made of them yet.

In: a path. Out: configuration, tensors, tokenizer and card; of an adapter with those of its base. Raises ModelError for
files that cannot be read, and for bits that are another library's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from wenmo import adapter as adapters
from wenmo import embedding_files
from wenmo.errors import ModelError, say
from wenmo.locate import is_adapter
from wenmo.modeldir.names import CARD, GENERATION, INDEX, QUANTIZED, QUANTIZED_BY, WEIGHTS
from wenmo.models import gguf
from wenmo.tensors import load_tensors
from wenmo.text.gguf_tokenizer import from_gguf
from wenmo.text.tokenizer import Tokenizer
from wenmo.text.tokenizer_files import has_tokenizer

_OF_READING = ("normalize", "document_start", "languages", "embedding")  # parts of a card


@dataclass
class Files:
    """What a model's files hold, before anything is made of it. Of an adapter: with the files of its base."""

    config: dict[str, Any]
    state: dict[str, Tensor]
    tokenizer: Tokenizer | None
    card: dict[str, Any]
    generation: dict[str, Any]
    adapter: adapters.Stored | None = None


def read(path: Path) -> Files:
    if path.suffix == ".gguf":
        config, state, fields = gguf.read(path)
        return Files(config, state, from_gguf(fields), {}, {})
    tokenizer = Tokenizer.load(path) if has_tokenizer(path) else None
    card = _read_json(path / CARD) if (path / CARD).exists() else {}
    generation = _read_json(path / GENERATION) if (path / GENERATION).exists() else {}
    if not is_adapter(path):
        config = _read_json(path / "config.json")
        _refuse_others_bits(config, path)
        return Files(config, _read_weights(path), tokenizer, {**embedding_files.read(path), **card}, generation)
    stored = read_adapter(path)
    base = read(stored.base.path)
    if not card:  # of how texts are read, what holds for the base holds for what PEFT has trained on it
        card = {name: base.card[name] for name in _OF_READING if name in base.card}
    return replace(base, tokenizer=tokenizer or base.tokenizer, card=card,
                   generation=generation or base.generation, adapter=stored)


def read_adapter(folder: Path) -> adapters.Stored:
    card = _read_json(folder / CARD) if (folder / CARD).exists() else {}
    return adapters.read(folder, _read_json(folder / adapters.CONFIG), card)


def base_below(path: Path) -> Path | None:
    """Where the base lies over which an adapter can be laid while the base is in use; None for a whole model, and for
    an adapter that must be merged (one with magnitudes, or of embeddings)."""
    if not is_adapter(path):
        return None
    stored = read_adapter(path)
    merged = stored.settings.dora or any(name.endswith("lora_embedding_A") for name in stored.tensors)
    return None if merged else stored.base.path


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(say(f"cannot read it: {error}", f"无法读取：{error}"), where=str(path),
                         mend=say("restore the file from where the model came", "请从模型来源恢复该文件")) from error
    if not isinstance(value, dict):
        raise ModelError(say("not a JSON object", "不是 JSON 对象"), where=str(path),
                         mend=say("restore the file from where the model came", "请从模型来源恢复该文件"))
    return value


def _read_weights(folder: Path) -> dict[str, Tensor]:
    if (folder / WEIGHTS).exists():
        files = [WEIGHTS]
    elif (folder / QUANTIZED).exists():
        files = [QUANTIZED]
    elif (folder / INDEX).exists():
        files = _shards(folder / INDEX)
    else:
        old = (folder / "pytorch_model.bin").exists()
        raise ModelError(
            say(f"no {WEIGHTS} here" + (", only a pickle, which can run code" if old else ""),
                f"没有 {WEIGHTS}" + ("，只有可能执行代码的 pickle 文件" if old else "")), where=str(folder),
            mend=say("save it once with transformers: save_pretrained(…)",
                     "请先用 transformers 的 save_pretrained 另存"))
    state: dict[str, Tensor] = {}
    for name in files:
        state.update(load_tensors(folder / name))
    # Codes begin anywhere in a mapped file; torch's kernels for bytes read them as if aligned, and end the process.
    return {name: tensor.float() if tensor.is_floating_point() else tensor.clone() for name, tensor in state.items()}


def _refuse_others_bits(config: Mapping[str, Any], path: Path) -> None:
    """ModelError for a model that another library has quantised."""
    method = (config.get(QUANTIZED_BY) or {}).get("quant_method", "wenmo")
    if method != "wenmo":
        raise ModelError(say(f"the model was quantised by {method}, which is not read here",
                             f"该模型由 {method} 量化，此处无法读取"), where=str(path / "config.json"),
                         mend=say("take the model that it was made from, and: wenmo compress",
                                  "请用其原模型，再运行 wenmo compress"))


def _shards(index: Path) -> list[str]:
    weight_map = _read_json(index).get("weight_map")
    files = sorted({str(name) for name in weight_map.values()}) if isinstance(weight_map, dict) else []
    if not files or any(Path(name).name != name for name in files):
        raise ModelError(say("the index names no files beside it", "索引没有指向同目录中的文件"), where=str(index),
                         mend=say("restore the file from where the model came", "请从模型来源恢复该文件"))
    return files
