"""ModelDir: the Hugging Face folder plus `wenmo.json`; open and save.

In: a reference to a model (see locate.py). Out: `Opened`: model, tokenizer, and the card that says what the model is
for and where it came from. What is saved opens in transformers with no missing and no unexpected key.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wenmo import __version__
from wenmo.errors import ModelError, say
from wenmo.files import atomic_folder, sha256, write_json
from wenmo.locate import locate
from wenmo.models import architecture, check_heads, create, gguf, read_config
from wenmo.tensors import load_tensors, save_tensors
from wenmo.text.gguf_tokenizer import from_gguf
from wenmo.text.tokenizer import Tokenizer

WEIGHTS, INDEX, CARD = "model.safetensors", "model.safetensors.index.json", "wenmo.json"
_GENERATION = "generation_config.json"


@dataclass
class Opened:
    """A model in memory, with all that its folder said about it."""

    model: Any  # a LanguageModel that is an nn.Module; Python cannot say "both"
    tokenizer: Tokenizer | None
    card: dict[str, Any] = field(default_factory=dict)  # wenmo.json: tasks, lineage, golden, scores, …
    carried: dict[str, Any] = field(default_factory=dict)  # keys of config.json that are not arithmetic
    generation: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    initialised: list[str] = field(default_factory=list)  # parameters that the files did not have
    left_out: list[str] = field(default_factory=list)  # stored tensors that these heads have no place for

    @property
    def max_tokens(self) -> int | None:
        longest: int | None = self.model.config.max_tokens
        return longest


# Opening ----------------------------------------------------------------------------------------------


def open_model(reference: str, *, heads: Mapping[str, int] | None = None, seed: int = 0) -> Opened:
    """The model with the heads that it was saved with, or with `heads` (kind → outputs) in their place.

    With `heads`, the body must be complete; parameters of a head that the files lack are freshly initialised from
    `seed` and listed in `initialised`. Weights become fp32. Raises ModelError: nothing is loaded half.
    """
    path = locate(reference)
    if path.suffix == ".gguf":
        config_dict, state, fields = gguf.read(path)
        tokenizer: Tokenizer | None = from_gguf(fields)
        card: dict[str, Any] = {}
        generation: dict[str, Any] = {}
    else:
        config_dict = _read_json(path / "config.json")
        state = _read_weights(path)
        tokenizer = Tokenizer.load(path) if (path / "tokenizer.json").exists() else None
        card = _read_json(path / CARD) if (path / CARD).exists() else {}
        generation = _read_json(path / _GENERATION) if (path / _GENERATION).exists() else {}
        if "pooling" not in card and (path / "1_Pooling" / "config.json").exists():
            means = _read_json(path / "1_Pooling" / "config.json").get("pooling_mode_mean_tokens")
            card["pooling"] = "mean" if means else "cls"
    cls = architecture(str(config_dict.get("model_type")), str(path))
    config, carried = read_config(cls.config_class, config_dict, str(path))
    saved_heads = _saved_heads(cls, config_dict, path)
    wanted = saved_heads if heads is None else dict(heads)
    check_heads(cls, wanted)
    model = create(config, wanted, torch.Generator().manual_seed(seed))
    initialised, left_out = _load(model, _our_names(cls, state), strict=heads is None, where=path)
    if tokenizer is not None:
        check_vocabulary(tokenizer, config.vocab_size, str(path))
    return Opened(model.eval(), tokenizer, card, carried, generation, path, initialised, left_out)


def open_tokenizer(reference: str) -> Tokenizer:
    """The tokenizer of a model alone, without reading its weights (but for a .gguf, which is one file)."""
    path = locate(reference)
    if path.suffix == ".gguf":
        return from_gguf(gguf.read_fields(path))
    return Tokenizer.load(path)


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int, where: str) -> None:
    """ModelError when the tokenizer can yield an id that the model has no embedding for."""
    if tokenizer.vocab_size > vocab_size:
        raise ModelError(
            say(f"the tokenizer has {tokenizer.vocab_size} tokens, the model {vocab_size}",
                f"分词器有 {tokenizer.vocab_size} 个词元，模型只有 {vocab_size} 个"), where=where,
            mend=say("use the tokenizer that the model was trained with", "请使用训练该模型时的分词器"))


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
    if (folder / INDEX).exists():
        files = sorted(set(_read_json(folder / INDEX)["weight_map"].values()))
    elif (folder / WEIGHTS).exists():
        files = [WEIGHTS]
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
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def _saved_heads(cls: Any, config: Mapping[str, Any], path: Path) -> dict[str, int]:
    """Head kinds from `architectures`; the number of classes from the labels."""
    names = config.get("architectures") or []
    if len(names) != 1 or names[0] not in cls.classes:
        raise ModelError(
            say(f"`architectures` is {names}, which is not known", f"无法识别 `architectures`：{names}"),
            where=str(path), mend=say("known: ", "可用的有：") + ", ".join(sorted(cls.classes)))
    num_labels = len(config.get("id2label") or {}) or int(config.get("num_labels") or 2)
    return {kind: num_labels if kind == "classification" else 0 for kind in cls.classes[names[0]]}


def _our_names(cls: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Old spellings renamed; the prefix of the body added where a bare body was saved (BertModel, LlamaModel)."""
    result = {}
    bare = bool(cls.body_prefix) and not any(name.startswith(cls.body_prefix) for name in state)
    for name, tensor in state.items():
        for old, new in cls.renamed:
            name = name.removesuffix(old) + new if name.endswith(old) else name
        result[cls.body_prefix + name if bare else name] = tensor
    return result


def _load(model: nn.Module, state: dict[str, Tensor], *, strict: bool, where: Path) -> tuple[list[str], list[str]]:
    cls: Any = type(model)
    own = model.state_dict()
    tied: Any = model.config
    repeated = (*cls.repeated, *(("lm_head.weight",) if getattr(tied, "tie_word_embeddings", False) else ()))
    state = {name: tensor for name, tensor in state.items() if name in own or not name.endswith(repeated)}
    missing = sorted(set(own) - set(state))
    unexpected = sorted(set(state) - set(own))
    in_body = [name for name in missing if name.startswith(cls.body_prefix) and ".pooler." not in name]
    shapes = [f"{name} {tuple(state[name].shape)} ≠ {tuple(own[name].shape)}"
              for name in own if name in state and state[name].shape != own[name].shape]
    # A head of another size (three classes instead of two) is a new head, unless the model is opened as it is.
    resized = [] if strict else [name for name in own if name in state and not name.startswith(cls.body_prefix or " ")
                                 and state[name].shape != own[name].shape]
    faults = [name for name in shapes if name.split(" ")[0] not in resized]
    wrong = (missing if strict else in_body) + (unexpected if strict else []) + faults
    if wrong:
        raise ModelError(
            say(f"the weights do not fit the configuration: {len(wrong)} differ, such as {', '.join(wrong[:3])}",
                f"权重与配置不符：{len(wrong)} 处不同，例如 {', '.join(wrong[:3])}"), where=str(where),
            mend=say("check that config.json and the weights belong together", "检查 config.json 与权重是否配套"))
    model.load_state_dict({name: tensor for name, tensor in state.items() if name in own and name not in resized},
                          strict=False)
    return sorted({*missing, *resized}), unexpected


# Saving -----------------------------------------------------------------------------------------------


def save_model(folder: Path, opened: Opened) -> None:
    """Writes the whole folder atomically (an existing one is replaced as a whole)."""
    with atomic_folder(folder) as temporary:
        write_into(temporary, opened)


def write_into(folder: Path, opened: Opened) -> None:
    """Writes all files of a ModelDir into an existing folder; weights in the dtype they have."""
    model = opened.model
    heads = frozenset(model.heads)
    [hf_class] = [name for name, kinds in model.classes.items() if kinds == heads]
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(model.state_dict().items())}
    if not heads and model.body_prefix:
        state = {name.removeprefix(model.body_prefix): tensor for name, tensor in state.items()}
    save_tensors(folder / WEIGHTS, state, {"format": "pt"})
    config = {**opened.carried, **model.config.model_dump(mode="json"), "architectures": [hf_class]}
    labels = next((task["labels"] for task in opened.card.get("tasks", {}).values() if task.get("labels")), None)
    if labels is not None:
        config["id2label"] = {str(index): label for index, label in enumerate(labels)}
        config["label2id"] = {label: index for index, label in enumerate(labels)}
    if opened.tokenizer is not None:
        control = opened.tokenizer.control
        for role in ("pad", "bos", "eos"):
            if role in control:
                config[f"{role}_token_id"] = control[role]
        opened.tokenizer.save(folder)
    write_json(folder / "config.json", config)
    if opened.generation:
        write_json(folder / _GENERATION, opened.generation)
    write_json(folder / CARD, {"version": 1, **opened.card})


def versions() -> dict[str, str]:
    """What a result depends on, for the lineage."""
    return {"wenmo": __version__, "torch": str(torch.__version__), "numpy": np.__version__,
            "python": platform.python_version(), "threads": str(torch.get_num_threads())}


def weights_sha256(model: nn.Module) -> str:
    """A digest of all parameters by name, the identity of a model in memory."""
    parts: list[bytes | str] = []
    for name, tensor in sorted(model.state_dict().items()):
        parts += [name, tensor.detach().cpu().float().contiguous().numpy().tobytes()]
    return sha256(*parts)
