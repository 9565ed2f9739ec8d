"""ModelDir: the Hugging Face folder plus `wenmo.json`; open and save.

In: a reference to a model (see locate.py). Out: `Opened`: model, tokenizer, and the card that says what the model is
for and where it came from. What is saved opens in transformers with no missing and no unexpected key.
"""

from __future__ import annotations

import contextlib
import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wenmo import __version__, embedding_files
from wenmo import adapter as adapters
from wenmo.config import parse
from wenmo.errors import ModelError, RecipeError, say
from wenmo.files import atomic_folder, sha256, write_json
from wenmo.locate import is_adapter, locate
from wenmo.models import CustomHeads, architecture, create, gguf, lora, read_config
from wenmo.models.custom_head import CRF_KIND, PLACE, kinds_on
from wenmo.models.task_heads import TASK_HEADS, is_task_head
from wenmo.nn import quantized
from wenmo.tensors import load_tensors, save_tensors
from wenmo.text.gguf_tokenizer import from_gguf
from wenmo.text.tokenizer import Tokenizer
from wenmo.text.tokenizer_files import has_tokenizer

QUANTIZED = "quantized.safetensors"  # weights in few bits: what looks for WEIGHTS finds none, and not wrong ones
WEIGHTS, INDEX, CARD = "model.safetensors", "model.safetensors.index.json", "wenmo.json"
_GENERATION = "generation_config.json"
QUANTIZATION = "quantization"  # part of a card: the model is stored in few bits (nn/quantized.py)
_QUANTIZED_BY = "quantization_config"  # key of config.json, by which other libraries know that it is not theirs
_OF_READING = ("normalize", "document_start", "languages", "embedding")  # parts of a card
LABELLED = ("classification", "tagging")  # the head kinds with an output for each label
# Task → Hugging Face's word for what a classification head's scores mean.
PROBLEM_TYPES = {"classification": "single_label_classification", "multi_label": "multi_label_classification",
                 "regression": "regression"}
# The output vocabulary, where it has a name of its own.
_OUTPUTS = ("lm_head.weight", "lm_head.decoder.weight", "cls.predictions.decoder.weight")
_PUT_ON = (f"{PLACE}.", f"{TASK_HEADS}.")
# Beginnings of the names of heads' parameters, where the body's have no prefix that tells them apart.
_HEADS = ("classifier.", "score.", "qa_outputs.", f"{CRF_KIND}.")


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
    adapter: lora.Adapter | None = None  # where only what was put on the `base` is the model's own, and is saved
    base: adapters.Base | None = None

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
    fp32; a model stored in few bits stays so, unless heads are asked for or an adapter lies on it. `changes`: keys of
    the configuration to be laid over the stored ones (dropout, say). Raises ModelError: nothing is loaded half;
    RecipeError for a change that the configuration does not know. `custom`: heads of the user's own
    (models/custom_head.py); a model that was saved with one opens with it alone.
    """
    path = locate(reference)
    files = _read(path)
    config_dict, tokenizer, stored = files.config, files.tokenizer, files.adapter
    cls = architecture(str(config_dict.get("model_type")), str(path))
    wanted = _saved_heads(cls, files, custom or {}, path) if heads is None else dict(heads)
    state = _our_names(cls, files.state)
    with _unsupported():
        config, carried = read_config(cls.config_class, config_dict, str(path))
        if stored is not None:
            config = parse(cls.config_class, {**config.model_dump(), **stored.base.changes}, str(path))
    if changes:
        config = parse(cls.config_class, {**config.model_dump(), **changes}, "model.config")
    with _unsupported():
        model = create(config, wanted, torch.Generator().manual_seed(seed), custom)
        if _output_differs(model, state):
            config = parse(type(config), {**config.model_dump(), "tie_word_embeddings": False}, str(path))
            model = create(config, wanted, torch.Generator().manual_seed(seed), custom)
    opened = Opened(model, tokenizer, files.card, carried, files.generation, path)
    if heads is None and stored is None:
        quantized.put_back(model, state)
    elif _QUANTIZED_BY in carried:  # to be trained, or adapted: the matrices that the codes stand for
        state = quantized.plain(model, state)
        opened.card = {name: value for name, value in opened.card.items() if name != QUANTIZATION}
        opened.carried = {name: value for name, value in carried.items() if name != _QUANTIZED_BY}
    if stored is not None:
        tensors = _our_names(cls, stored.tensors)
        opened.adapter, opened.base = lora.put_back(model, stored.settings, tensors, str(path)), stored.base
        state |= tensors
    opened.initialised, opened.left_out = _load(model, state, strict=heads is None, where=path)
    if tokenizer is not None:
        check_vocabulary(tokenizer, config.vocab_size, str(path))
    model.eval()
    if stored is not None and heads is not None:  # for other heads an adapter is where to begin, as a whole model
        merge(opened)
    return opened


def open_tokenizer(reference: str) -> Tokenizer:
    """The tokenizer of a model alone, without reading its weights (but for a .gguf, which is one file)."""
    path = locate(reference, weights=False)
    if path.suffix == ".gguf":
        return from_gguf(gguf.read_fields(path))
    if is_adapter(path) and not has_tokenizer(path):
        return open_tokenizer(str(_read_adapter(locate(reference)).base.path))
    return Tokenizer.load(path)


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int, where: str) -> None:
    """ModelError when the tokenizer can yield an id that the model has no embedding for."""
    if tokenizer.vocab_size > vocab_size:
        raise ModelError(
            say(f"the tokenizer has {tokenizer.vocab_size} tokens, the model {vocab_size}",
                f"分词器有 {tokenizer.vocab_size} 个词元，模型只有 {vocab_size} 个"), where=where,
            mend=say("use the tokenizer that the model was trained with", "请使用训练该模型时的分词器"))


@dataclass
class _Files:
    """What a model's files hold, before anything is made of it. Of an adapter: with the files of its base."""

    config: dict[str, Any]
    state: dict[str, Tensor]
    tokenizer: Tokenizer | None
    card: dict[str, Any]
    generation: dict[str, Any]
    adapter: adapters.Stored | None = None


def _read(path: Path) -> _Files:
    if path.suffix == ".gguf":
        config, state, fields = gguf.read(path)
        return _Files(config, state, from_gguf(fields), {}, {})
    tokenizer = Tokenizer.load(path) if has_tokenizer(path) else None
    card = _read_json(path / CARD) if (path / CARD).exists() else {}
    generation = _read_json(path / _GENERATION) if (path / _GENERATION).exists() else {}
    if not is_adapter(path):
        config = _read_json(path / "config.json")
        _refuse_others_bits(config, path)
        return _Files(config, _read_weights(path), tokenizer, {**embedding_files.read(path), **card}, generation)
    stored = _read_adapter(path)
    base = _read(stored.base.path)
    if not card:  # of how texts are read, what holds for the base holds for what PEFT has trained on it
        card = {name: base.card[name] for name in _OF_READING if name in base.card}
    return replace(base, tokenizer=tokenizer or base.tokenizer, card=card,
                   generation=generation or base.generation, adapter=stored)


def _read_adapter(folder: Path) -> adapters.Stored:
    card = _read_json(folder / CARD) if (folder / CARD).exists() else {}
    return adapters.read(folder, _read_json(folder / adapters.CONFIG), card)


def base_below(path: Path) -> Path | None:
    """Where the base lies over which an adapter can be laid while the base is in use; None for a whole model, and for
    an adapter that must be merged (one with magnitudes, or of embeddings)."""
    if not is_adapter(path):
        return None
    stored = _read_adapter(path)
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
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def _refuse_others_bits(config: Mapping[str, Any], path: Path) -> None:
    """ModelError for a model that another library has quantised."""
    method = (config.get(_QUANTIZED_BY) or {}).get("quant_method", "wenmo")
    if method != "wenmo":
        raise ModelError(say(f"the model was quantised by {method}, which is not read here",
                             f"该模型由 {method} 量化，此处无法读取"), where=str(path / "config.json"),
                         mend=say("take the model that it was made from, and: wenmo compress",
                                  "请用其原模型，再运行 wenmo compress"))


def mark_quantized(opened: Opened, facts: Mapping[str, Any]) -> None:
    """Says in the card how the model came to its few bits, and in config.json that it is no other library's."""
    opened.card = {**opened.card, QUANTIZATION: dict(facts)}
    opened.carried = {**opened.carried, _QUANTIZED_BY: {"quant_method": "wenmo", "format": facts["format"]}}


def _shards(index: Path) -> list[str]:
    weight_map = _read_json(index).get("weight_map")
    files = sorted({str(name) for name in weight_map.values()}) if isinstance(weight_map, dict) else []
    if not files or any(Path(name).name != name for name in files):
        raise ModelError(say("the index names no files beside it", "索引没有指向同目录中的文件"), where=str(index),
                         mend=say("restore the file from where the model came", "请从模型来源恢复该文件"))
    return files


def _saved_heads(cls: Any, files: _Files, custom: CustomHeads, path: Path) -> dict[str, int]:
    """Head kinds from `architectures`, the number of classes from the labels; custom heads from wenmo.json; an
    adapter's own, where it says so."""
    config = files.config
    strange = {kind: int(number) for kind, number in files.card.get(PLACE, {}).items()}
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
    if files.adapter is not None and files.adapter.heads is not None:
        return files.adapter.heads
    names = config.get("architectures") or []
    if len(names) != 1 or names[0] not in cls.classes:
        raise ModelError(
            say(f"`architectures` is {names}, which is not known", f"无法识别 `architectures`：{names}"),
            where=str(path), mend=say("known: ", "可用的有：") + ", ".join(sorted(cls.classes)))
    num_labels = len(config.get("id2label") or {}) or int(config.get("num_labels") or 2)
    own = {kind: num_labels if kind in LABELLED else 0 for kind in cls.classes[names[0]]}
    if (transitions := files.state.get(f"{CRF_KIND}.transitions")) is not None:
        own[CRF_KIND] = len(transitions)
    return own | strange | {name: int(number) for name, number in files.card.get(TASK_HEADS, {}).items()}


def _our_names(cls: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Old spellings renamed; the prefix of the body added where a bare body was saved (BertModel, LlamaModel)."""
    result = {}
    nested = getattr(cls, "nested", {}).values()
    bare = bool(cls.body_prefix) and not any(name.startswith(cls.body_prefix) for name in state)
    for name, tensor in state.items():
        for prefix in nested:
            name = name.removeprefix(prefix)
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
        head = name.startswith((*_PUT_ON, *_HEADS)) or ".pooler." in name or name in _OUTPUTS
        other_stack = getattr(model, "one_stack", False) and name.startswith("decoder.")
        return name.startswith(cls.body_prefix) and not head and not other_stack

    repeated = (*cls.repeated, *(_OUTPUTS if config.tie_word_embeddings else ()))
    state = {name: tensor for name, tensor in state.items() if name in own or not name.endswith(repeated)}
    missing = sorted(set(own) - set(state))
    unexpected = sorted(set(state) - set(own))
    misfits = [name for name in own if name in state and state[name].shape != own[name].shape]
    # A head of another size (three classes instead of two) is a new head, unless the model is opened as it is.
    resized = [] if strict else [name for name in misfits if not in_body(name)]
    wrong = [say(f"{name} is missing", f"缺少 {name}") for name in missing if strict or in_body(name)]
    wrong += [say(f"no place for {name}", f"多出 {name}") for name in unexpected
              if in_body(name) or (strict and name.startswith(_PUT_ON))]
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


# Adapters ---------------------------------------------------------------------------------------------


def adapt(opened: Opened, settings: lora.LoraSettings, reference: str, changes: Mapping[str, Any], seed: int) -> None:
    """Freezes a model that was opened from `reference` and puts an adapter on it, which from here on is what is saved.

    `changes`: keys of its configuration that are not as stored. RecipeError where the settings do not fit this model.
    """
    opened.base = adapters.base_of(reference, changes)
    opened.adapter = lora.put_on(opened.model, settings, opened.initialised, seed)


def merge(opened: Opened) -> None:
    """Adds the adapter to its base: a whole model, as any other. Nothing happens to one that has no adapter."""
    if opened.adapter is not None:
        lora.merge(opened.model)
        opened.adapter = opened.base = None
        opened.card = {name: value for name, value in opened.card.items() if name != adapters.CARD}


def exact_base(opened: Opened) -> None:
    """Puts the base's exact values back into frozen matrices that were rounded for training (lora.round_frozen)."""
    if opened.base is not None:
        kinds = {kind: number for kind, number in opened.model.heads.items() if kind not in kinds_on(opened.model)}
        # Embeddings with more rows than the base has are trained whole: there is nothing to restore in them.
        changes = {name: value for name, value in opened.base.changes.items() if name != "vocab_size"}
        base = open_model(str(opened.base.path), heads=kinds, changes=changes)
        lora.restore_frozen(opened.model, {name: parameter.detach() for name, parameter in
                                           base.model.named_parameters()})


def saved_tensors(folder: Path, opened: Opened) -> dict[str, Tensor]:
    """The tensors that `write_into` has put into a folder for this model, by the model's own names; around an
    adapter's those of its base, which are as they were."""
    if opened.adapter is None:
        return _our_names(type(opened.model), load_tensors(folder / WEIGHTS))
    stored = load_tensors(folder / adapters.WEIGHTS)
    names = _their_names(opened.model, {name: torch.empty(0) for name in opened.model.state_dict()})
    own = dict(zip(adapters.peft_names(names), opened.model.state_dict(), strict=True))
    return {**opened.model.state_dict(), **{own.get(name, name): tensor for name, tensor in stored.items()}}


# Saving -----------------------------------------------------------------------------------------------


def save_model(folder: Path, opened: Opened) -> None:
    """Writes the whole folder atomically (an existing one is replaced as a whole)."""
    with atomic_folder(folder) as temporary:
        write_into(temporary, opened)


def write_into(folder: Path, opened: Opened) -> None:
    """Writes all files of a ModelDir into an existing folder; weights in the dtype they have. Of an adapter, not the
    base's."""
    model, card = opened.model, {"version": 1, **opened.card}
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(model.state_dict().items())}
    if opened.adapter is None or opened.base is None:
        file = QUANTIZED if quantized.names_of(state) else WEIGHTS
        save_tensors(folder / file, _their_names(model, state), {"format": "pt"})
        write_json(folder / "config.json", _config(opened))
    else:
        own = {name: state[name] for name in lora.stored_names(model, opened.adapter)}
        save_tensors(folder / adapters.WEIGHTS, adapters.peft_names(_their_names(model, own)), {"format": "pt"})
        nothing = torch.empty(0)
        adapted = _their_names(model, dict.fromkeys(lora.adapted_names(model), nothing))
        whole = _their_names(model, dict.fromkeys(adapters.modules_of(opened.adapter.whole, state), nothing))
        write_json(folder / adapters.CONFIG, adapters.peft_config(
            opened.adapter, opened.base, model.heads, adapted, whole, lora.stores_transposed(model)))
        card[adapters.CARD] = adapters.card(opened.base, folder, model.heads)
    if opened.tokenizer is not None:
        opened.tokenizer.save(folder)
    if generation := _generation(opened):
        write_json(folder / _GENERATION, generation)
    write_json(folder / CARD, {**card, **_heads_put_on(model)})
    embedding_files.write(folder, model.config.width, card)


def _heads_put_on(model: Any) -> dict[str, dict[str, int]]:
    """What the card says of heads that Hugging Face has no class for."""
    handed_in = {kind: model.heads[kind] for kind in sorted(kinds_on(model))
                 if not is_task_head(kind) and kind != CRF_KIND}
    of_tasks = {name: number for name, number in model.heads.items() if is_task_head(name)}
    return {place: heads for place, heads in ((PLACE, handed_in), (TASK_HEADS, of_tasks)) if heads}


def _their_names(model: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names that Hugging Face's class for these heads has for them."""
    result = dict(state)
    if not model.heads and model.body_prefix:
        result = {name.removeprefix(model.body_prefix): tensor for name, tensor in result.items()}
    if further := getattr(model, "nested", {}).get(_hf_class(model), ""):
        result = {name if name.startswith(_HEADS) else further + name: tensor for name, tensor in result.items()}
    return result


def _hf_class(model: Any) -> str:
    """Hugging Face's class for the model's own heads."""
    own = frozenset(model.heads) - kinds_on(model)
    [name] = [name for name, kinds in model.classes.items() if kinds == own]
    return str(name)


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
    hf_class = _hf_class(model)
    carried = {key: value for key, value in opened.carried.items() if key not in ("torch_dtype", "num_labels")}
    config = {**carried, **model.config.model_dump(mode="json"), "architectures": [hf_class],
              "dtype": str(next(model.parameters()).dtype).removeprefix("torch.")}
    if config.get("rope_scaling"):  # transformers takes a null there for a value
        config["rope_scaling"] = {key: value for key, value in config["rope_scaling"].items() if value is not None}
    tasks = list(opened.card.get("tasks", {}).values())
    [task] = tasks if len(tasks) == 1 else [{}]
    labels = task.get("labels")
    if "classification" not in heads:
        config.pop("problem_type", None)
    elif task.get("type") in PROBLEM_TYPES:
        config["problem_type"] = PROBLEM_TYPES[task["type"]]
    num_classes = max(heads.get(kind, 0) for kind in LABELLED)
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
