"""Saving: a model in memory → a folder that transformers and wenmo open.

In: `Opened`. Out: Hugging Face's files and wenmo.json, all of them or none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wenmo import adapter as adapters
from wenmo import embedding_files
from wenmo.files import atomic_folder, write_json
from wenmo.modeldir.names import (
    CARD,
    GENERATION,
    LABELLED,
    PROBLEM_TYPES,
    QUANTIZATION,
    QUANTIZED,
    QUANTIZED_BY,
    WEIGHTS,
    hf_class,
    our_names,
    their_names,
)
from wenmo.modeldir.opened import Opened
from wenmo.models import lora
from wenmo.models.custom_head import CRF_KIND, PLACE, kinds_on
from wenmo.models.task_heads import TASK_HEADS, is_task_head
from wenmo.nn import quantized
from wenmo.tensors import load_tensors, save_tensors


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
        save_tensors(folder / file, their_names(model, state), {"format": "pt"})
        write_json(folder / "config.json", _config(opened))
    else:
        own = {name: state[name] for name in lora.stored_names(model, opened.adapter)}
        save_tensors(folder / adapters.WEIGHTS, adapters.peft_names(their_names(model, own)), {"format": "pt"})
        nothing = torch.empty(0)
        adapted = their_names(model, dict.fromkeys(lora.adapted_names(model), nothing))
        whole = their_names(model, dict.fromkeys(adapters.modules_of(opened.adapter.whole, state), nothing))
        write_json(folder / adapters.CONFIG, adapters.peft_config(
            opened.adapter, opened.base, model.heads, adapted, whole, lora.stores_transposed(model)))
        card[adapters.CARD] = adapters.card(opened.base, folder, model.heads)
    if opened.tokenizer is not None:
        opened.tokenizer.save(folder)
    if generation := _generation(opened):
        write_json(folder / GENERATION, generation)
    write_json(folder / CARD, {**card, **_heads_put_on(model)})
    embedding_files.write(folder, model.config.width, card)


def saved_tensors(folder: Path, opened: Opened) -> dict[str, Tensor]:
    """The tensors that `write_into` has put into a folder for this model, by the model's own names; around an
    adapter's those of its base, which are as they were."""
    if opened.adapter is None:
        return our_names(type(opened.model), load_tensors(folder / WEIGHTS))
    stored = load_tensors(folder / adapters.WEIGHTS)
    names = their_names(opened.model, {name: torch.empty(0) for name in opened.model.state_dict()})
    own = dict(zip(adapters.peft_names(names), opened.model.state_dict(), strict=True))
    return {**opened.model.state_dict(), **{own.get(name, name): tensor for name, tensor in stored.items()}}


def mark_quantized(opened: Opened, facts: Mapping[str, Any]) -> None:
    """Says in the card how the model came to its few bits, and in config.json that it is no other library's."""
    opened.card = {**opened.card, QUANTIZATION: dict(facts)}
    opened.carried = {**opened.carried, QUANTIZED_BY: {"quant_method": "wenmo", "format": facts["format"]}}


def _heads_put_on(model: Any) -> dict[str, dict[str, int]]:
    """What the card says of heads that Hugging Face has no class for."""
    handed_in = {kind: model.heads[kind] for kind in sorted(kinds_on(model))
                 if not is_task_head(kind) and kind != CRF_KIND}
    of_tasks = {name: number for name, number in model.heads.items() if is_task_head(name)}
    return {place: heads for place, heads in ((PLACE, handed_in), (TASK_HEADS, of_tasks)) if heads}


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
    carried = {key: value for key, value in opened.carried.items() if key not in ("torch_dtype", "num_labels")}
    config = {**carried, **model.config.model_dump(mode="json"), "architectures": [hf_class(model)],
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
