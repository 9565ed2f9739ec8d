"""Tiny random models in transformers, and the same weights in ours: the ground of all parity tests.

Norm weights and biases are random too (HF initialises them to 1 and 0, which hides mistakes), heads are grouped,
theta is not 10,000.

To add an architecture: its tiny configuration in CONFIGS, and a line in the table of its kind below. test_parity.py and
test_modeldir.py then hold it to all that they ask of every architecture.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from wenmo.models import architecture, read_config

VOCAB = 97

CONFIGS: dict[str, dict[str, Any]] = {  # model_type → a tiny configuration
    "bert": dict(vocab_size=VOCAB, hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64,
                 max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
    "llama": dict(vocab_size=VOCAB, hidden_size=48, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2,
                  head_dim=16, intermediate_size=64, max_position_embeddings=64, rope_theta=500.0,
                  rms_norm_eps=1e-5, tie_word_embeddings=True),
    "gpt2": dict(vocab_size=VOCAB, n_embd=48, n_layer=3, n_head=4, n_positions=64, resid_pdrop=0.0, embd_pdrop=0.0,
                 attn_pdrop=0.0, bos_token_id=0, eos_token_id=0),
    "mistral": dict(vocab_size=VOCAB, hidden_size=48, num_hidden_layers=3, num_attention_heads=6,
                    num_key_value_heads=2, head_dim=16, intermediate_size=64, max_position_embeddings=64,
                    rope_theta=500.0, rms_norm_eps=1e-5, tie_word_embeddings=True, sliding_window=5),
    "qwen2": dict(vocab_size=VOCAB, hidden_size=48, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2,
                  intermediate_size=64, max_position_embeddings=64, rope_theta=500.0, rms_norm_eps=1e-5,
                  tie_word_embeddings=True),
    "qwen3": dict(vocab_size=VOCAB, hidden_size=48, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2,
                  head_dim=16, intermediate_size=64, max_position_embeddings=64, rope_theta=500.0, rms_norm_eps=1e-5,
                  tie_word_embeddings=True),
    "t5": dict(vocab_size=VOCAB, d_model=48, d_kv=16, d_ff=64, num_layers=2, num_decoder_layers=3, num_heads=3,
               dropout_rate=0.0, relative_attention_num_buckets=8, relative_attention_max_distance=16,
               decoder_start_token_id=0),
    "roberta": dict(vocab_size=VOCAB, hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64,
                    max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
                    pad_token_id=3, type_vocab_size=1, layer_norm_eps=1e-5),
    "marian": dict(vocab_size=VOCAB, d_model=48, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=64,
                   decoder_layers=3, decoder_attention_heads=3, decoder_ffn_dim=80, max_position_embeddings=64,
                   activation_function="swish", scale_embedding=True, dropout=0.0, attention_dropout=0.0,
                   pad_token_id=96, decoder_start_token_id=96, eos_token_id=0, forced_eos_token_id=0),
}

Case = tuple[str, dict[str, Any]]  # (the class in transformers, changes to the tiny configuration)

LLAMAS: dict[str, dict[str, Any]] = {
    "grouped, tied": {},
    "untied, biases": dict(tie_word_embeddings=False, attention_bias=True, mlp_bias=True, num_key_value_heads=6),
    "linear": dict(rope_scaling={"rope_type": "linear", "factor": 3.0}),
    "dynamic": dict(rope_scaling={"rope_type": "dynamic", "factor": 2.0}, max_position_embeddings=8),
    "yarn": dict(rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}),
    "llama3": dict(rope_scaling={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                 "high_freq_factor": 4.0, "original_max_position_embeddings": 32}),
    "longrope": dict(rope_scaling={"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 8,
                                   "short_factor": [1.0 + i / 8 for i in range(8)],
                                   "long_factor": [2.0 + i / 4 for i in range(8)]}),
}
T5S: dict[str, dict[str, Any]] = {"v1.0": {}, "v1.1": dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False)}

ENCODERS: dict[str, Case] = {  # with a head for masked words
    "bert": ("BertForMaskedLM", {}),
    "roberta": ("RobertaForMaskedLM", {}),
    "roberta, two kinds of segment": ("RobertaForMaskedLM", {"type_vocab_size": 2}),
}
DECODERS: dict[str, Case] = {  # with a head for the next token
    **{f"llama, {name}": ("LlamaForCausalLM", changes) for name, changes in LLAMAS.items()},
    "gpt2": ("GPT2LMHeadModel", {}),
    "gpt2, untied, scores scaled by layer": ("GPT2LMHeadModel", dict(
        tie_word_embeddings=False, scale_attn_by_inverse_layer_idx=True, n_inner=80, activation_function="relu")),
    "gpt2, scores not scaled": ("GPT2LMHeadModel", dict(scale_attn_weights=False)),
    "mistral": ("MistralForCausalLM", {}),
    "mistral, untied, no window": ("MistralForCausalLM", dict(sliding_window=None, tie_word_embeddings=False)),
    "qwen2": ("Qwen2ForCausalLM", {}),
    "qwen2, windows from a layer on": ("Qwen2ForCausalLM", dict(
        use_sliding_window=True, sliding_window=4, max_window_layers=1, tie_word_embeddings=False)),
    "qwen2, yarn": ("Qwen2ForCausalLM", dict(rope_scaling=LLAMAS["yarn"]["rope_scaling"])),
    "qwen3": ("Qwen3ForCausalLM", {}),
    "qwen3, untied, biases, windows": ("Qwen3ForCausalLM", dict(
        tie_word_embeddings=False, attention_bias=True, use_sliding_window=True, sliding_window=3,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"])),
}
ENCODER_DECODERS: dict[str, Case] = {  # with a head for the target's next token
    **{f"t5 {name}": ("T5ForConditionalGeneration", changes) for name, changes in T5S.items()},
    "marian": ("MarianMTModel", {}),
    "marian, relu, not scaled": ("MarianMTModel", {"scale_embedding": False, "activation_function": "relu"}),
}
CLASSIFIERS: dict[str, Case] = {
    "bert, five classes": ("BertForSequenceClassification", {"num_labels": 5}),
    "bert, two classes": ("BertForSequenceClassification", {}),
    "roberta, three classes": ("RobertaForSequenceClassification", {"num_labels": 3}),
    "llama, three classes": ("LlamaForSequenceClassification", {"num_labels": 3, "pad_token_id": 0}),
    "gpt2, three classes": ("GPT2ForSequenceClassification", {"num_labels": 3, "pad_token_id": 0}),
    "mistral, three classes": ("MistralForSequenceClassification", {"num_labels": 3, "pad_token_id": 0}),
    "qwen2, three classes": ("Qwen2ForSequenceClassification", {"num_labels": 3, "pad_token_id": 0}),
    "qwen3, three classes": ("Qwen3ForSequenceClassification", {"num_labels": 3, "pad_token_id": 0}),
}
TAGGERS: dict[str, Case] = {  # with scores of labels at each token
    "bert, tags": ("BertForTokenClassification", {"num_labels": 5}),
    "roberta, tags": ("RobertaForTokenClassification", {"num_labels": 5}),
    "gpt2, tags": ("GPT2ForTokenClassification", {"num_labels": 5}),
    "llama, tags": ("LlamaForTokenClassification", {"num_labels": 5}),
    "mistral, tags": ("MistralForTokenClassification", {"num_labels": 5}),
    "qwen2, tags": ("Qwen2ForTokenClassification", {"num_labels": 5}),
    "qwen3, tags": ("Qwen3ForTokenClassification", {"num_labels": 5}),
    "t5, tags": ("T5ForTokenClassification", {"num_labels": 5, "num_decoder_layers": 2}),
}
SPANS: dict[str, Case] = {  # with scores of a beginning and an end at each token
    "bert, spans": ("BertForQuestionAnswering", {}),
    "roberta, spans": ("RobertaForQuestionAnswering", {}),
    "gpt2, spans": ("GPT2ForQuestionAnswering", {}),
}
OTHERS: dict[str, Case] = {  # bodies alone, and further heads: opened and saved both ways (test_modeldir.py)
    "bert, body": ("BertModel", {}),
    "bert, masked and next sentence": ("BertForPreTraining", {}),
    "bert, next sentence": ("BertForNextSentencePrediction", {}),
    "llama, body": ("LlamaModel", {}),
    "gpt2, body": ("GPT2Model", {}),
    "mistral, body": ("MistralModel", {}),
    "qwen2, body": ("Qwen2Model", {}),
    "qwen3, body": ("Qwen3Model", {}),
    "roberta, body": ("RobertaModel", {}),
    "t5, body": ("T5Model", {}),
    "t5, encoder": ("T5EncoderModel", {}),
    "marian, body": ("MarianModel", {}),
}
# What transformers calls the position of a sequence's first token, where it is not 0.
FIRST_POSITION: dict[str, int] = {"roberta": CONFIGS["roberta"]["pad_token_id"] + 1}


def theirs(hf_class: str, **changes: object) -> nn.Module:
    """A transformers model with every parameter random; deterministic."""
    cls = getattr(transformers, hf_class)
    kind = cls.config_class.model_type
    config = cls.config_class(**copy.deepcopy({**CONFIGS[kind], **changes}))  # it writes into what it is given
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = cls(config).eval()
    with torch.no_grad():
        learned = ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
        for name, parameter in learned:
            parameter.copy_(torch.randn_like(parameter) * 0.15)
            if ("norm" in name.lower() or ".ln_" in name) and name.endswith("weight"):
                parameter.add_(1.0)
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.normal_()
    return model


def save_theirs(model: nn.Module, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def heads_of(model: nn.Module) -> dict[str, int]:
    """Our heads for a class of theirs, kind → number of outputs."""
    kinds = architecture(model.config.model_type, "test").classes[type(model).__name__]
    num_labels = model.config.num_labels
    return {kind: {"classification": num_labels, "tagging": num_labels, "next_sentence": 2}.get(kind, 0)
            for kind in kinds}


def ours(model: nn.Module, heads: dict[str, int] | None = None) -> nn.Module:
    """Our model with the weights of theirs, straight from the state dict."""
    config_dict = model.config.to_dict()
    cls = architecture(config_dict["model_type"], "test")
    config, _ = read_config(cls.config_class, config_dict, "test")
    result = cls(config, heads_of(model) if heads is None else heads).eval()
    state = model.state_dict()
    for prefix in getattr(cls, "nested", {}).values():
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    if not any(name.startswith(cls.body_prefix) for name in state):
        state = {cls.body_prefix + name: value for name, value in state.items()}
    wanted = set(result.state_dict())
    unexpected = {name for name in state if name not in wanted and not name.endswith(cls.repeated)}
    tied = {name for name in unexpected if config_dict.get("tie_word_embeddings") and name == "lm_head.weight"}
    assert unexpected == tied, unexpected
    missing = result.load_state_dict({k: v for k, v in state.items() if k in wanted}, strict=False).missing_keys
    assert not missing, missing
    return result
