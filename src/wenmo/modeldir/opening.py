"""Opening: a reference → a whole model in memory, or an error; nothing is loaded half.

In: a reference to a model (see locate.py), the heads that are wanted of it. Out: `Opened`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wenmo.config import parse
from wenmo.errors import ModelError, RecipeError, say
from wenmo.locate import is_adapter, locate, locate_tokenizer
from wenmo.modeldir.adapted import merge
from wenmo.modeldir.files import Files, read, read_adapter
from wenmo.modeldir.names import HEADS, LABELLED, OUTPUTS, PUT_ON, QUANTIZATION, QUANTIZED_BY, our_names
from wenmo.modeldir.opened import Opened
from wenmo.models import CustomHeads, architecture, create, gguf, lora, read_config
from wenmo.models.custom_head import CRF_KIND, PLACE, kinds_on
from wenmo.models.task_heads import TASK_HEADS
from wenmo.nn import quantized
from wenmo.text.gguf_tokenizer import from_gguf
from wenmo.text.tokenizer import Tokenizer
from wenmo.text.tokenizer_files import has_tokenizer


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
    files = read(path)
    config_dict, tokenizer, stored = files.config, files.tokenizer, files.adapter
    cls = architecture(str(config_dict.get("model_type")), str(path))
    wanted = _saved_heads(cls, files, custom or {}, path) if heads is None else dict(heads)
    state = our_names(cls, files.state)
    with _unsupported():
        config, carried = read_config(cls.config_class, config_dict, str(path))
        if stored is not None:
            config = parse(cls.config_class, {**config.model_dump(), **stored.base.changes}, str(path))
    if changes:
        config = parse(cls.config_class, {**config.model_dump(), **changes}, "model.config")
    with _unsupported():
        lacks_some = heads is not None  # else all of it is in the files, or it is not opened
        model = create(config, wanted, torch.Generator().manual_seed(seed), custom, initialised=lacks_some)
        if _output_differs(model, state):
            config = parse(type(config), {**config.model_dump(), "tie_word_embeddings": False}, str(path))
            model = create(config, wanted, torch.Generator().manual_seed(seed), custom, initialised=lacks_some)
    opened = Opened(model, tokenizer, files.card, carried, files.generation, path)
    if heads is None and stored is None:
        quantized.put_back(model, state)
    elif QUANTIZED_BY in carried:  # to be trained, or adapted: the matrices that the codes stand for
        state = quantized.plain(model, state)
        opened.card = {name: value for name, value in opened.card.items() if name != QUANTIZATION}
        opened.carried = {name: value for name, value in carried.items() if name != QUANTIZED_BY}
    if stored is not None:
        tensors = our_names(cls, stored.tensors)
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
    """A tokenizer that lies alone, or that of a model, without reading its weights (but for a .gguf, which is one
    file)."""
    path = locate_tokenizer(reference)
    if path.suffix == ".gguf":
        return from_gguf(gguf.read_fields(path))
    if is_adapter(path) and not has_tokenizer(path):
        return open_tokenizer(str(read_adapter(locate(reference)).base.path))
    return Tokenizer.load(path)


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int, where: str) -> None:
    """ModelError when the tokenizer can yield an id that the model has no embedding for."""
    if tokenizer.vocab_size > vocab_size:
        raise ModelError(
            say(f"the tokenizer has {tokenizer.vocab_size} tokens, the model {vocab_size}",
                f"分词器有 {tokenizer.vocab_size} 个词元，模型只有 {vocab_size} 个"), where=where,
            mend=say("use the tokenizer that the model was trained with", "请使用训练该模型时的分词器"))


def exact_base(opened: Opened) -> None:
    """Puts the base's exact values back into frozen matrices that were rounded for training (lora.round_frozen)."""
    if opened.base is not None:
        kinds = {kind: number for kind, number in opened.model.heads.items() if kind not in kinds_on(opened.model)}
        # Embeddings with more rows than the base has are trained whole: there is nothing to restore in them.
        changes = {name: value for name, value in opened.base.changes.items() if name != "vocab_size"}
        base = open_model(str(opened.base.path), heads=kinds, changes=changes)
        lora.restore_frozen(opened.model, {name: parameter.detach() for name, parameter in
                                           base.model.named_parameters()})


@contextlib.contextmanager
def _unsupported() -> Iterator[None]:
    """A value in config.json is no fault of a recipe."""
    try:
        yield
    except RecipeError as error:
        raise ModelError(error.what, where=error.where,
                         mend=say("this kind of model cannot be opened here; choose another checkpoint",
                                  "此类模型无法在此打开，请换用其他模型")) from error


def _saved_heads(cls: Any, files: Files, custom: CustomHeads, path: Path) -> dict[str, int]:
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


def _output_differs(model: Any, state: dict[str, Tensor]) -> bool:
    """Whether the files hold an output vocabulary of its own although the configuration ties it to the embeddings.

    transformers 5 writes such configurations for T5 v1.1; the weights are right. Where the matrix is stored under the
    output's name alone, it gets the embeddings' name in `state`.
    """
    stored = next((state[name] for name in OUTPUTS if name in state), None)
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
        head = name.startswith((*PUT_ON, *HEADS)) or ".pooler." in name or name in OUTPUTS
        other_stack = getattr(model, "one_stack", False) and name.startswith("decoder.")
        return name.startswith(cls.body_prefix) and not head and not other_stack

    repeated = (*cls.repeated, *(OUTPUTS if config.tie_word_embeddings else ()))
    state = {name: tensor for name, tensor in state.items() if name in own or not name.endswith(repeated)}
    missing = sorted(set(own) - set(state))
    unexpected = sorted(set(state) - set(own))
    misfits = [name for name in own if name in state and state[name].shape != own[name].shape]
    # A head of another size (three classes instead of two) is a new head, unless the model is opened as it is.
    resized = [] if strict else [name for name in misfits if not in_body(name)]
    wrong = [say(f"{name} is missing", f"缺少 {name}") for name in missing if strict or in_body(name)]
    wrong += [say(f"no place for {name}", f"多出 {name}") for name in unexpected
              if in_body(name) or (strict and name.startswith(PUT_ON))]
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
