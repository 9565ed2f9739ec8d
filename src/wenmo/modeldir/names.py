"""The names of a folder: its files, parts of its card, and Hugging Face's names for the model's parameters.

In: tensors by the names of one side. Out: by those of the other. One place says both, so that what is saved opens in
transformers with no missing and no unexpected key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from wenmo.models.custom_head import CRF_KIND, PLACE, kinds_on
from wenmo.models.task_heads import TASK_HEADS

QUANTIZED = "quantized.safetensors"  # weights in few bits: what looks for WEIGHTS finds none, and not wrong ones
WEIGHTS, INDEX, CARD = "model.safetensors", "model.safetensors.index.json", "wenmo.json"
GENERATION = "generation_config.json"
QUANTIZATION = "quantization"  # part of a card: the model is stored in few bits (nn/quantized.py)
QUANTIZED_BY = "quantization_config"  # key of config.json, by which other libraries know that it is not theirs
LABELLED = ("classification", "tagging")  # the head kinds with an output for each label
# Task → Hugging Face's word for what a classification head's scores mean.
PROBLEM_TYPES = {"classification": "single_label_classification", "multi_label": "multi_label_classification",
                 "regression": "regression"}
# The output vocabulary, where it has a name of its own.
OUTPUTS = ("lm_head.weight", "lm_head.decoder.weight", "cls.predictions.decoder.weight")
PUT_ON = (f"{PLACE}.", f"{TASK_HEADS}.")
# Beginnings of the names of heads' parameters, where the body's have no prefix that tells them apart.
HEADS = ("classifier.", "score.", "qa_outputs.", f"{CRF_KIND}.")


def our_names(cls: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
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


def their_names(model: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names that Hugging Face's class for these heads has for them."""
    result = dict(state)
    if not model.heads and model.body_prefix:
        result = {name.removeprefix(model.body_prefix): tensor for name, tensor in result.items()}
    if further := getattr(model, "nested", {}).get(hf_class(model), ""):
        result = {name if name.startswith(HEADS) else further + name: tensor for name, tensor in result.items()}
    return result


def hf_class(model: Any) -> str:
    """Hugging Face's class for the model's own heads."""
    own = frozenset(model.heads) - kinds_on(model)
    [name] = [name for name, kinds in model.classes.items() if kinds == own]
    return str(name)
