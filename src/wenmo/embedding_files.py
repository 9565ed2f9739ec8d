"""The files of a sentence-transformers folder: how one vector is made of a text's hidden states.

In: a model folder. Out: a mapping for the model's card; and back, so that sentence-transformers opens what is trained
here. Its steps are listed in modules.json: the transformer, pooling, making vectors of length one. Whatever else
stands there (a dense layer, say) is named in "unsupported", for vectors made without it would be wrong ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wenmo.errors import ModelError, say
from wenmo.files import write_json

MODULES, SETTINGS, PROMPTS = "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"
POOLING = "1_Pooling"
# Their names of ways to pool, the older ones as keys with the prefix "pooling_mode_".
_NAMES = {"mean_tokens": "mean", "cls_token": "cls", "max_tokens": "max", "lasttoken": "last"}
_KNOWN = ("Transformer", "Pooling", "Normalize")
_LONGEST = 1_000_000  # beyond, a tokenizer's longest text means that it knows of none


def read(folder: Path) -> dict[str, Any]:
    """{"embedding": {"pooling", "normalise", "max_tokens", "prompts", "default_prompt", "unsupported"}}, those that the
    folder knows of; {} where it is no such folder. Raises ModelError for a damaged file."""
    found: dict[str, Any] = {"normalise": True}
    if (folder / POOLING / "config.json").exists():
        pooling = _read(folder / POOLING / "config.json")
        found["pooling"] = _pooling(pooling)
        if pooling.get("include_prompt") is False:
            found["unsupported"] = ["include_prompt"]
    if not (folder / MODULES).exists() and "pooling" not in found:
        return {}
    settings = _read(folder / SETTINGS) if (folder / SETTINGS).exists() else {}
    longest = settings.get("max_seq_length") or _model_max_length(folder)
    if longest:
        found["max_tokens"] = int(longest)
    if settings.get("do_lower_case"):
        found.setdefault("unsupported", []).append("do_lower_case")
    if (folder / MODULES).exists():
        kinds = [str(module.get("type", "?")).rsplit(".", 1)[-1] for module in _read(folder / MODULES, list)]
        found["normalise"] = "Normalize" in kinds
        if other := [kind for kind in kinds if kind not in _KNOWN]:
            found.setdefault("unsupported", []).extend(other)
    if (folder / PROMPTS).exists():
        said = _read(folder / PROMPTS)
        prompts = {str(name): str(text) for name, text in (said.get("prompts") or {}).items() if text}
        if prompts:
            found["prompts"] = prompts
            found["default_prompt"] = prompts.get(said.get("default_prompt_name") or "", "")
    return {"embedding": found}


def of_card(card: Mapping[str, Any]) -> dict[str, Any]:
    """How a model makes vectors of texts: as its similarity task does, or else as its folder said; {} if neither."""
    for task in card.get("tasks", {}).values():
        if task.get("type") == "similarity":
            return {"pooling": task["pooling"], "normalise": True, "max_tokens": task["lengths"]["max_tokens"],
                    "prompts": task["prompts"]}
    return dict(card.get("embedding") or {})


def write(folder: Path, width: int, card: Mapping[str, Any]) -> None:
    """The files for a model of this width that makes vectors of texts: in sentence-transformers' older form, which its
    newer versions know too. Nothing for another model, and where the files would not say all."""
    found = of_card(card)
    if "pooling" not in found or "max_tokens" not in found or "unsupported" in found:
        return
    kinds = {"": "Transformer", POOLING: "Pooling"} | ({"2_Normalize": "Normalize"} if found["normalise"] else {})
    write_json(folder / MODULES, [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(kinds.items())])
    modes = {f"pooling_mode_{name}": ours == found["pooling"] for name, ours in _NAMES.items()}
    write_json(folder / POOLING / "config.json", {"word_embedding_dimension": width, **modes})
    write_json(folder / SETTINGS, {"max_seq_length": found["max_tokens"], "do_lower_case": False})
    prompts = found.get("prompts", {})
    default = next((name for name, text in prompts.items() if text and text == found.get("default_prompt")), None)
    write_json(folder / PROMPTS, {"prompts": prompts, "default_prompt_name": default, "similarity_fn_name": "cosine"})


def _pooling(config: Mapping[str, Any]) -> str:
    """Its name here; several are joined by a plus, and their own names stay where we have none."""
    given = config.get("pooling_mode")
    if given is None:
        prefix = "pooling_mode_"
        modes = [key.removeprefix(prefix) for key, value in config.items() if key.startswith(prefix) and value]
    else:
        modes = [given] if isinstance(given, str) else [str(mode) for mode in given]
    return " + ".join(_NAMES.get(mode, mode) for mode in modes) or "mean"


def _model_max_length(folder: Path) -> int | None:
    path = folder / "tokenizer_config.json"
    longest = _read(path).get("model_max_length") if path.exists() else None
    return int(longest) if isinstance(longest, (int, float)) and longest < _LONGEST else None


def _read(path: Path, kind: type = dict) -> Any:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(say(f"cannot read it: {error}", f"无法读取：{error}"), where=str(path),
                         mend=say("restore the file from where the model came", "请从模型来源恢复该文件")) from error
    if not isinstance(value, kind):
        raise ModelError(say("not what sentence-transformers writes there", "内容不符合 sentence-transformers 的格式"),
                         where=str(path), mend=say("restore the file from where the model came",
                                                   "请从模型来源恢复该文件"))
    return value
