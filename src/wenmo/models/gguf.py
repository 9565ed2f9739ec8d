"""GGUF files of Llama-shaped models: metadata and quantised tensors → our configuration and state dict.

Reading and dequantising is the `gguf` library's work; what stands here is the map of names and the one difference
in layout: for Llama GGUF interleaves the rotary halves of q and k, Hugging Face keeps them apart. Mistral's files call
themselves Llama, and say nothing of its window: they are read as one that looks back to the beginning.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wenmo.errors import MissingExtra, ModelError, say

_ROPE_FACTORS = "rope_freqs.weight"  # Llama 3's stretching, as one divisor a frequency
_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
}
_KINDS = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}  # the format's names are model types → class prefix


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """(config.json as Hugging Face would write it, fp32 state dict under our names, all metadata fields).

    Raises ModelError for another architecture, for what is missing, and for tensors or formats that are not known.
    """
    gguf, reader = _reader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    kind = fields.get("general.architecture")
    if kind not in _KINDS:
        raise ModelError(
            say(f"GGUF files of architecture `{kind}` are not read yet", f"尚不支持结构为 `{kind}` 的 GGUF 文件"),
            where=str(path), mend=say("use the Hugging Face folder of this model", "请使用该模型的 Hugging Face 目录"))
    unknown = [tensor.name for tensor in reader.tensors if _our_name(tensor.name) is None]
    if unknown:
        raise _unreadable(path, say(f"tensors that no {_KINDS[kind]} has, such as {unknown[0]}",
                                    f"有 {_KINDS[kind]} 所没有的张量，例如 {unknown[0]}"))
    try:
        tensors = {tensor.name: np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
                   for tensor in reader.tensors}
        config = _config(kind, fields, tensors)
    except KeyError as error:
        raise _unreadable(path, say(f"{error.args[0]} is missing", f"缺少 {error.args[0]}")) from error
    except NotImplementedError as error:
        raise _unreadable(path, say(f"a format of numbers that is not known: {error}",
                                    f"无法识别的数值格式：{error}")) from error
    return config, _state(tensors, config), fields


def read_fields(path: Path) -> dict[str, Any]:
    """All metadata fields; the tensors stay on disk."""
    return {name: field.contents() for name, field in _reader(path)[1].fields.items()}


def _reader(path: Path) -> tuple[Any, Any]:
    """(the gguf library, a reader of the file, memory-mapped)."""
    try:
        import gguf
    except ImportError as error:
        raise MissingExtra("gguf", "gguf", say("a .gguf file", "读取 .gguf 文件")) from error
    try:
        return gguf, gguf.GGUFReader(path)
    except (ValueError, OSError, IndexError) as error:
        raise _unreadable(path, str(error)) from error


def _unreadable(path: Path, why: str) -> ModelError:
    return ModelError(
        say(f"not a readable GGUF file: {why}", f"无法读取的 GGUF 文件：{why}"), where=str(path),
        mend=say("download it again, or use the Hugging Face folder of this model",
                 "请重新下载，或使用该模型的 Hugging Face 目录"))


def _config(kind: str, fields: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    width, heads = fields[f"{kind}.embedding_length"], fields[f"{kind}.attention.head_count"]
    head_width = fields.get(f"{kind}.attention.key_length", width // heads)
    config = {
        "model_type": kind, "architectures": [f"{_KINDS[kind]}ForCausalLM"],
        "vocab_size": tensors["token_embd.weight"].shape[0],
        "hidden_size": width, "intermediate_size": fields[f"{kind}.feed_forward_length"],
        "num_hidden_layers": fields[f"{kind}.block_count"], "num_attention_heads": heads,
        "num_key_value_heads": fields.get(f"{kind}.attention.head_count_kv", heads), "head_dim": head_width,
        "max_position_embeddings": fields[f"{kind}.context_length"],
        # GGUF stores it as a 32-bit float: 9.9999997e-06 is 1e-05
        "rms_norm_eps": float(f"{fields[f'{kind}.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_theta": float(fields.get(f"{kind}.rope.freq_base", 10000.0)),
        "tie_word_embeddings": "output.weight" not in tensors,
    }
    if kind != "qwen2":  # which has its biases always
        config["attention_bias"] = "blk.0.attn_q.bias" in tensors
    if kind == "llama":
        config["mlp_bias"] = "blk.0.ffn_gate.bias" in tensors
    for role in ("bos", "eos"):
        if f"tokenizer.ggml.{role}_token_id" in fields:
            config[f"{role}_token_id"] = int(fields[f"tokenizer.ggml.{role}_token_id"])
    if _ROPE_FACTORS in tensors:
        factors = [float(value) for value in tensors[_ROPE_FACTORS]]
        config["rope_scaling"] = {"rope_type": "longrope", "short_factor": factors, "long_factor": factors,
                                  "attention_factor": 1.0}
    elif fields.get(f"{kind}.rope.scaling.type") in ("linear", "yarn"):
        config["rope_scaling"] = {"rope_type": fields[f"{kind}.rope.scaling.type"],
                                  "factor": float(fields[f"{kind}.rope.scaling.factor"])}
        if config["rope_scaling"]["rope_type"] == "yarn":
            config["rope_scaling"]["original_max_position_embeddings"] = int(
                fields[f"{kind}.rope.scaling.original_context_length"])
    return config


def _state(tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Tensor]:
    num_heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    state = {}
    for name, array in tensors.items():
        part = name.split(".")[-2]
        if part in num_heads and config["model_type"] == "llama":
            array = _halves_apart(array, num_heads[part])
        if name != _ROPE_FACTORS:
            state[str(_our_name(name))] = torch.from_numpy(np.ascontiguousarray(array))
    return state


def _our_name(name: str) -> str | None:
    """`blk.3.attn_q.weight` → `model.layers.3.self_attn.q_proj.weight`; None for what is not known."""
    match name.split("."):
        case ["rope_freqs", "weight"]:
            return name
        case ["blk", index, part, kind] if part in _LAYER_NAMES:
            return f"model.layers.{index}.{_LAYER_NAMES[part]}.{kind}"
        case [part, kind] if part in _NAMES:
            return f"{_NAMES[part]}.{kind}"
    return None


def _halves_apart(array: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows (head, pair, half) → (head, half, pair)."""
    rows = array.reshape(num_heads, -1, 2, *array.shape[1:])
    return rows.swapaxes(1, 2).reshape(array.shape)
