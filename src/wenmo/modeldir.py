"""ModelDir: the Hugging Face folder plus `wenmo.json`; open and save.

In: a reference to a model (see locate.py). Out: `Opened`: model, tokenizer, and the card that says what the model is
for and where it came from. What is saved opens in transformers with no missing and no unexpected key.
"""

from __future__ import annotations

import contextlib
import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wenmo import __version__
from wenmo.config import parse
from wenmo.errors import ModelError, RecipeError, say
from wenmo.files import atomic_folder, sha256, write_json
from wenmo.locate import locate
from wenmo.models import CustomHeads, architecture, create, gguf, read_config
from wenmo.models.custom_head import PLACE, kinds_on
from wenmo.tensors import load_tensors, save_tensors
from wenmo.text.gguf_tokenizer import from_gguf
from wenmo.text.tokenizer import Tokenizer

WEIGHTS, INDEX, CARD = "model.safetensors", "model.safetensors.index.json", "wenmo.json"
_GENERATION = "generation_config.json"
# The output vocabulary, where it has a name of its own.
_OUTPUTS = ("lm_head.weight", "lm_head.decoder.weight", "cls.predictions.decoder.weight")


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


def open_model(reference: str, *, heads: Mapping[str, int] | None = None, seed: int = 0,
               changes: Mapping[str, Any] | None = None, custom: CustomHeads | None = None) -> Opened:
    """The model with the heads that it was saved with, or with `heads` (kind → outputs) in their place.

    With `heads`, the body must be complete; parameters of a head that the files lack are freshly initialised from
    `seed` and listed in `initialised`. Stored heads that are not asked for are listed in `left_out`. Weights become
    fp32. `changes`: keys of the configuration to be laid over the stored ones (dropout, say). Raises ModelError:
    nothing is loaded half; RecipeError for a change that the configuration does not know. `custom`: heads of the
    user's own (models/custom_head.py); a model that was saved with one opens with it alone.
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
        card = {**_read_sentence_settings(path), **card}
    cls = architecture(str(config_dict.get("model_type")), str(path))
    wanted = _saved_heads(cls, config_dict, card, custom or {}, path) if heads is None else dict(heads)
    state = _our_names(cls, state)
    with _unsupported():
        config, carried = read_config(cls.config_class, config_dict, str(path))
    if changes:
        config = parse(cls.config_class, {**config.model_dump(), **changes}, "model.config")
    with _unsupported():
        model = create(config, wanted, torch.Generator().manual_seed(seed), custom)
        if _output_differs(model, state):
            config = parse(type(config), {**config.model_dump(), "tie_word_embeddings": False}, str(path))
            model = create(config, wanted, torch.Generator().manual_seed(seed), custom)
    initialised, left_out = _load(model, state, strict=heads is None, where=path)
    if tokenizer is not None:
        check_vocabulary(tokenizer, config.vocab_size, str(path))
    return Opened(model.eval(), tokenizer, card, carried, generation, path, initialised, left_out)


def open_tokenizer(reference: str) -> Tokenizer:
    """The tokenizer of a model alone, without reading its weights (but for a .gguf, which is one file)."""
    path = locate(reference, weights=False)
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


def _read_sentence_settings(folder: Path) -> dict[str, Any]:
    """How sentence-transformers makes one vector of the hidden states, and of how many tokens."""
    settings: dict[str, Any] = {}
    if (folder / "1_Pooling" / "config.json").exists():
        pooling = _read_json(folder / "1_Pooling" / "config.json")
        prefix, names = "pooling_mode_", {"mean_tokens": "mean", "cls_token": "cls"}
        modes = [key.removeprefix(prefix) for key, value in pooling.items() if key.startswith(prefix) and value]
        settings["pooling"] = " + ".join(names.get(mode, mode) for mode in modes)
    if (folder / "sentence_bert_config.json").exists():
        longest = _read_json(folder / "sentence_bert_config.json").get("max_seq_length")
        if longest is not None:
            settings["max_embed_tokens"] = longest
    return settings


@contextlib.contextmanager
def _unsupported() -> Iterator[None]:
    """A value in config.json is no fault of a recipe."""
    try:
        yield
    except RecipeError as error:
        raise ModelError(error.what, where=error.where,
                         mend=say("this kind of model cannot be opened here; choose another checkpoint",
                                  "此类模型无法在此打开，请换用其他模型")) from error


def _read_weights(folder: Path) -> dict[str, Tensor]:
    if (folder / WEIGHTS).exists():
        files = [WEIGHTS]
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
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def _shards(index: Path) -> list[str]:
    weight_map = _read_json(index).get("weight_map")
    files = sorted({str(name) for name in weight_map.values()}) if isinstance(weight_map, dict) else []
    if not files or any(Path(name).name != name for name in files):
        raise ModelError(say("the index names no files beside it", "索引没有指向同目录中的文件"), where=str(index),
                         mend=say("restore the file from where the model came", "请从模型来源恢复该文件"))
    return files


def _saved_heads(cls: Any, config: Mapping[str, Any], card: Mapping[str, Any], custom: CustomHeads,
                 path: Path) -> dict[str, int]:
    """Head kinds from `architectures`, the number of classes from the labels; custom heads from wenmo.json."""
    strange = {kind: int(number) for kind, number in card.get(PLACE, {}).items()}
    if missing := [kind for kind in strange if kind not in custom]:
        raise ModelError(
            say(f"the model has a head of its maker's own for {', '.join(missing)}",
                f"该模型的 {', '.join(missing)} 输出头是自定义的"), where=str(path),
            mend=say("hand it in, in Python: ", "请在 Python 中交入：")
            + f"wenmo.load(…, heads={{{', '.join(f'{kind!r}: …' for kind in missing)}}})")
    if unused := [kind for kind in custom if kind not in strange]:
        raise ModelError(
            say(f"the model was not saved with a head of your own for {', '.join(unused)}",
                f"该模型保存时没有自定义的 {', '.join(unused)} 输出头"), where=str(path),
            mend=say("open it without `heads`, or train it with the head first",
                     "打开时不要给 `heads`，或先用该输出头训练"))
    names = config.get("architectures") or []
    if len(names) != 1 or names[0] not in cls.classes:
        raise ModelError(
            say(f"`architectures` is {names}, which is not known", f"无法识别 `architectures`：{names}"),
            where=str(path), mend=say("known: ", "可用的有：") + ", ".join(sorted(cls.classes)))
    num_labels = len(config.get("id2label") or {}) or int(config.get("num_labels") or 2)
    return {kind: num_labels if kind == "classification" else 0 for kind in cls.classes[names[0]]} | strange


def _our_names(cls: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Old spellings renamed; the prefix of the body added where a bare body was saved (BertModel, LlamaModel)."""
    result = {}
    bare = bool(cls.body_prefix) and not any(name.startswith(cls.body_prefix) for name in state)
    for name, tensor in state.items():
        for old, new in cls.renamed:
            name = name.removesuffix(old) + new if name.endswith(old) else name
        result[cls.body_prefix + name if bare else name] = tensor
    return result


def _output_differs(model: Any, state: dict[str, Tensor]) -> bool:
    """Whether the files hold an output vocabulary of its own although the configuration ties it to the embeddings.

    transformers 5 writes such configurations for T5 v1.1; the weights are right. Where the matrix is stored under the
    output's name alone, it gets the embeddings' name in `state`.
    """
    stored = next((state[name] for name in _OUTPUTS if name in state), None)
    speaks = {"causal_lm", "masked_lm", "seq2seq_lm"} & set(model.heads)
    if stored is None or not speaks or not model.config.tie_word_embeddings:
        return False
    weight_VD, _ = model.lm_output()
    [embeddings] = [name for name, parameter in model.named_parameters() if parameter is weight_VD]
    return not torch.equal(state.setdefault(embeddings, stored), stored)


def _load(model: nn.Module, state: dict[str, Tensor], *, strict: bool, where: Path) -> tuple[list[str], list[str]]:
    """Copies what is stored into the model: (parameters that were not stored, tensors there is no place for)."""
    cls: Any = type(model)
    config: Any = model.config
    own = model.state_dict()

    def in_body(name: str) -> bool:
        head = name.startswith(f"{PLACE}.") or ".pooler." in name or name in _OUTPUTS
        return name.startswith(cls.body_prefix) and not head

    repeated = (*cls.repeated, *(_OUTPUTS if config.tie_word_embeddings else ()))
    state = {name: tensor for name, tensor in state.items() if name in own or not name.endswith(repeated)}
    missing = sorted(set(own) - set(state))
    unexpected = sorted(set(state) - set(own))
    misfits = [name for name in own if name in state and state[name].shape != own[name].shape]
    # A head of another size (three classes instead of two) is a new head, unless the model is opened as it is.
    resized = [] if strict else [name for name in misfits if not in_body(name)]
    wrong = [say(f"{name} is missing", f"缺少 {name}") for name in missing if strict or in_body(name)]
    wrong += [say(f"no place for {name}", f"多出 {name}") for name in unexpected
              if in_body(name) or (strict and name.startswith(f"{PLACE}."))]
    wrong += [f"{name} {tuple(state[name].shape)} ≠ {tuple(own[name].shape)}"
              for name in misfits if name not in resized]
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
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(model.state_dict().items())}
    if not model.heads and model.body_prefix:
        state = {name.removeprefix(model.body_prefix): tensor for name, tensor in state.items()}
    save_tensors(folder / WEIGHTS, state, {"format": "pt"})
    if opened.tokenizer is not None:
        opened.tokenizer.save(folder)
    write_json(folder / "config.json", _config(opened))
    if generation := _generation(opened):
        write_json(folder / _GENERATION, generation)
    custom = {PLACE: {kind: model.heads[kind] for kind in sorted(kinds_on(model))}} if kinds_on(model) else {}
    write_json(folder / CARD, {"version": 1, **opened.card, **custom})


def _generation(opened: Opened) -> dict[str, Any]:
    """generation_config.json: as it came; where an encoder–decoder has none, what transformers must know to decode."""
    if "seq2seq_lm" not in opened.model.heads:
        return opened.generation
    control = {} if opened.tokenizer is None else opened.tokenizer.control
    ids = {"decoder_start_token_id": opened.model.config.decoder_start_token_id, "pad_token_id": control.get("pad"),
           "eos_token_id": control.get("eos")}
    return {**{key: id for key, id in ids.items() if id is not None}, **opened.generation}


def _config(opened: Opened) -> dict[str, Any]:
    """config.json: what was carried along, the arithmetic, and what follows from the heads and the tokenizer."""
    model = opened.model
    heads: dict[str, int] = model.heads
    own = frozenset(heads) - kinds_on(model)
    [hf_class] = [name for name, kinds in model.classes.items() if kinds == own]
    carried = {key: value for key, value in opened.carried.items() if key not in ("torch_dtype", "num_labels")}
    config = {**carried, **model.config.model_dump(mode="json"), "architectures": [hf_class],
              "dtype": str(next(model.parameters()).dtype).removeprefix("torch.")}
    if config.get("rope_scaling"):  # transformers takes a null there for a value
        config["rope_scaling"] = {key: value for key, value in config["rope_scaling"].items() if value is not None}
    labels = next((task["labels"] for task in opened.card.get("tasks", {}).values() if task.get("labels")), None)
    num_classes = heads.get("classification", 0)
    if labels is None and num_classes and len(config.get("id2label") or ()) != num_classes:
        labels = [f"LABEL_{index}" for index in range(num_classes)]  # the field's own names for classes without one
    if labels is not None:
        config["id2label"] = {str(index): label for index, label in enumerate(labels)}
        config["label2id"] = {label: index for index, label in enumerate(labels)}
    if opened.tokenizer is not None:
        for role in ("pad", "bos", "eos"):
            key, id = f"{role}_token_id", opened.tokenizer.control.get(role)
            several = config.get(key)
            if key in type(model.config).model_fields:
                continue  # arithmetic: the model's, whatever the tokenizer says
            if id is not None and not (isinstance(several, list) and id in several):
                config[key] = id
            elif role != "pad":  # where the key is absent, transformers takes the id of another model's token
                config.setdefault(key, None)
    if "seq2seq_lm" in heads:
        config.setdefault("forced_eos_token_id", None)  # as above
    return config


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
