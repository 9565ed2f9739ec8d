"""Tiny random models in transformers, and the same weights in ours: the ground of all parity tests.

Norm weights and biases are random too (HF initialises them to 1 and 0, which hides mistakes), heads are grouped,
theta is not 10,000.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
import transformers
from torch import nn

from wenmo.models import architecture, read_config

VOCAB = 97

CONFIGS = {
    "bert": dict(vocab_size=VOCAB, hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64,
                 max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
    "llama": dict(vocab_size=VOCAB, hidden_size=48, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2,
                  head_dim=16, intermediate_size=64, max_position_embeddings=64, rope_theta=500.0,
                  rms_norm_eps=1e-5, tie_word_embeddings=True),
    "t5": dict(vocab_size=VOCAB, d_model=48, d_kv=16, d_ff=64, num_layers=2, num_decoder_layers=3, num_heads=3,
               dropout_rate=0.0, relative_attention_num_buckets=8, relative_attention_max_distance=16,
               decoder_start_token_id=0),
}


def theirs(hf_class: str, **changes: object) -> nn.Module:
    """A transformers model with every parameter random; deterministic."""
    cls = getattr(transformers, hf_class)
    kind = {"B": "bert", "L": "llama", "T": "t5"}[hf_class[0]]
    config = cls.config_class(**copy.deepcopy({**CONFIGS[kind], **changes}))  # it writes into what it is given
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = cls(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.15)
            if "norm" in name.lower() and name.endswith("weight"):
                parameter.add_(1.0)
    return model


def save_theirs(model: nn.Module, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def ours(model: nn.Module, heads: dict[str, int]) -> nn.Module:
    """Our model with the weights of theirs, straight from the state dict."""
    config_dict = model.config.to_dict()
    cls = architecture(config_dict["model_type"], "test")
    config, _ = read_config(cls.config_class, config_dict, "test")
    result = cls(config, heads).eval()
    state = model.state_dict()
    if not any(name.startswith(cls.body_prefix) for name in state):
        state = {cls.body_prefix + name: value for name, value in state.items()}
    wanted = set(result.state_dict())
    unexpected = {name for name in state if name not in wanted and not name.endswith(cls.repeated)}
    tied = {name for name in unexpected if config_dict.get("tie_word_embeddings") and name == "lm_head.weight"}
    assert unexpected == tied, unexpected
    missing = result.load_state_dict({k: v for k, v in state.items() if k in wanted}, strict=False).missing_keys
    assert not missing, missing
    return result
