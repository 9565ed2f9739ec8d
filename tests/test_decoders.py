"""Decoders in use: trained and continued from a recipe; windows of attention; sizes that no model can have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import small_data
import wenmo
from oracle import CONFIGS, theirs
from wenmo.errors import ModelError, RecipeError
from wenmo.modeldir import open_model
from wenmo.models import ARCHITECTURES, create, read_config
from wenmo.nn import attention as room
from wenmo.nn.attend import Cache, Packed
from wenmo.nn.attention import attention
from wenmo.recipe import parse_recipe

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
         "intermediate_size": 64, "max_position_embeddings": 64, "rope_theta": 500.0}
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {"type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "mistral": {"type": "mistral", **SMALL, "sliding_window": 8},
    "qwen2": {"type": "qwen2", **SMALL},
    "qwen3": {"type": "qwen3", **SMALL, "head_dim": 12, "tie_word_embeddings": True},
}


# From a recipe to answers -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_data.write(tmp_path_factory.mktemp("data"), num_reviews=80, num_news=80)


@pytest.mark.parametrize(("kind", "optimizer"), [*((kind, "adamw") for kind in MODELS), ("gpt2", "muon")])
def test_trains_and_continues(kind: str, optimizer: str, data: Path, tmp_path: Path) -> None:
    """The loss falls well below that of a guess; what is saved writes the same in transformers."""
    recipe = {**small_data.recipe("causal_lm", steps=40, optimizer={"type": optimizer, "lr": 3e-3}, log_every=1),
              "model": MODELS[kind]}
    wenmo.train(recipe, out=tmp_path, data_root=data)
    losses = [row["loss"] for row in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
              if "loss" in row]
    assert losses[0] > 5.8
    assert losses[-1] < 4.8
    model = wenmo.load(str(tmp_path))
    [[answer]] = model.generate(["新华社"], max_new_tokens=24, temperature=0)
    them = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    ids = torch.tensor([model.prompt_ids("新华社")])
    expected = them.generate(ids, max_new_tokens=24, do_sample=False, pad_token_id=0)[0, ids.shape[1]:]
    assert list(answer.ids) == expected.tolist()


@pytest.mark.parametrize("kind", MODELS)
def test_learns_classes(kind: str, data: Path, tmp_path: Path) -> None:
    recipe = {**small_data.recipe("classification", steps=40), "model": MODELS[kind]}
    wenmo.train(recipe, out=tmp_path, data_root=data)
    rows = [{"text": text} for text, _ in small_data.reviews(40)]
    found = [row["label"] for row in wenmo.load(str(tmp_path)).predict(rows)]
    assert sum(a == b for a, (_, b) in zip(found, small_data.reviews(40), strict=True)) > 34


def test_what_writes_to_the_residual_stream_starts_smaller() -> None:
    config, _ = read_config(ARCHITECTURES["gpt2"].config_class, {**CONFIGS["gpt2"], "n_embd": 128, "n_layer": 8}, "")
    state = create(config, {"causal_lm": 0}, torch.Generator().manual_seed(0)).state_dict()
    for name, parameter in state.items():
        if parameter.ndim == 2:
            expected = 0.02 / 4 if name.endswith("c_proj.weight") else 0.02
            assert float(parameter.std()) == pytest.approx(expected, rel=0.05), name


# Windows ----------------------------------------------------------------------------------------------


def projections(num_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num_tokens)
    return tuple(torch.randn(num_tokens, heads, 8, generator=generator) for heads in (4, 2, 2))  # type: ignore[return-value]


def by_hand(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """One query at a time over the keys that it may see."""
    out = torch.empty_like(q)
    for t in range(len(q)):
        seen = range(max(0, t - window + 1), t + 1)
        for head in range(q.shape[1]):
            keys, values = k[list(seen), head // 2], v[list(seen), head // 2]
            out[t, head] = torch.softmax(keys @ q[t, head] / 8**0.5, 0) @ values
    return out


@pytest.mark.parametrize("window", [1, 2, 5, 100])
def test_a_token_sees_the_last_ones_alone(window: int) -> None:
    lengths = (9, 3, 12, 12, 1)
    q, k, v = projections(sum(lengths))
    expected = torch.cat([by_hand(*parts, window) for parts in
                          zip(*(x.split(lengths) for x in (q, k, v)), strict=True)])
    torch.testing.assert_close(Packed(lengths, causal=True)(0, q, k, v, window=window), expected)


@pytest.mark.parametrize("window", [1, 4, 100])
def test_a_cache_sees_the_same_window(window: int) -> None:
    """Ragged beginnings, then ragged continuations of several tokens, then one at a time."""
    lengths, cuts = (11, 7, 9), [(5, 1, 3), (3, 3, 1), (1, 1, 1), (1, 1, 1), (1, 1, 3)]
    rows = [projections(length) for length in lengths]
    expected = [by_hand(*row, window) for row in rows]
    cache, done = Cache(len(rows), 16), [0, 0, 0]
    for counts in cuts:
        spans = [slice(start, start + count) for start, count in zip(done, counts, strict=True)]
        q, k, v = (torch.cat([row[i][span] for row, span in zip(rows, spans, strict=True)]) for i in range(3))
        out = cache.extend(counts)(0, q, k, v, window=window)
        torch.testing.assert_close(out, torch.cat([e[span] for e, span in zip(expected, spans, strict=True)]))
        done = [span.stop for span in spans]
    assert done == list(lengths)


def test_long_sequences_go_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (x[None].requires_grad_() for x in projections(61))
    plain = attention(q, k, v, causal=True, window=7)
    gradients = torch.autograd.grad(plain.square().sum(), (q, k, v))
    monkeypatch.setattr(room, "LONGEST_PLAIN_TOKENS", 16)
    blocks = attention(q, k, v, causal=True, window=7)
    torch.testing.assert_close(blocks, plain)
    torch.testing.assert_close(torch.autograd.grad(blocks.square().sum(), (q, k, v)), gradients)


# Sizes ------------------------------------------------------------------------------------------------

IMPOSSIBLE: dict[str, list[tuple[dict[str, Any], str]]] = {
    "llama": [({"hidden_size": 50, "head_dim": None}, "multiple of num_attention_heads"),
              ({"num_attention_heads": 5, "head_dim": 16}, "multiple of num_key_value_heads"),
              ({"head_dim": 15}, "must be even"), ({"num_attention_heads": 0}, "num_attention_heads"),
              ({"hidden_size": -48}, "hidden_size"), ({"num_hidden_layers": 0}, "num_hidden_layers"),
              ({"vocab_size": -1}, "vocab_size"), ({"attention_dropout": 1.0}, "attention_dropout"),
              ({"attention_dropout": -0.1}, "attention_dropout"), ({"rms_norm_eps": 0}, "rms_norm_eps"),
              ({"rope_theta": 0}, "rope_theta"), ({"initializer_range": float("nan")}, "initializer_range"),
              ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor"),
              ({"rope_scaling": {"rope_type": "dynamic", "factor": 2}, "head_dim": 2}, "wider than 2"),
              ({"rope_scaling": {"rope_type": "yarn", "factor": 2}, "rope_theta": 1}, "rope_theta"),
              ({"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4,
                                 "original_max_position_embeddings": 32}}, "high_freq_factor")],
    "mistral": [({"sliding_window": 0}, "sliding_window"), ({"num_key_value_heads": 4}, "num_key_value_heads"),
                ({"layer_types": ["full_attention"] * 3}, "layer_types")],
    "qwen2": [({"layer_types": ["full_attention"]}, "layer_types names 1 layers of 3"),
              ({"layer_types": ["sliding_attention"] * 3}, "layer_types names sliding layers"),
              ({"layer_types": ["chunked_attention"] * 3}, "layer_types"),
              ({"hidden_size": 54, "num_attention_heads": 6}, "must be even")],
    "qwen3": [({"head_dim": 7}, "must be even"), ({"hidden_act": "tanh"}, "hidden_act")],
    "gpt2": [({"n_embd": 50}, "n_embd (50) must be a multiple of n_head (4)"), ({"n_head": 0}, "n_head"),
             ({"n_inner": -1}, "n_inner"), ({"resid_pdrop": 1}, "resid_pdrop"),
             ({"add_cross_attention": True}, "add_cross_attention"), ({"activation_function": "tanh"}, "activation")],
    "bert": [({"hidden_size": 50}, "multiple of num_attention_heads"), ({"num_attention_heads": 0}, "num_attention_"),
             ({"hidden_dropout_prob": 1}, "hidden_dropout_prob"), ({"type_vocab_size": 0}, "type_vocab_size"),
             ({"layer_norm_eps": -1}, "layer_norm_eps"), ({"position_embedding_type": "relative_key"}, "position_")],
}
FAULTS = [(kind, changes, said) for kind, faults in IMPOSSIBLE.items() for changes, said in faults]


@pytest.mark.parametrize(("kind", "changes", "said"), FAULTS, ids=str)
def test_impossible_sizes_are_said_not_met(
    kind: str, changes: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a recipe and in a folder from elsewhere alike."""
    monkeypatch.setenv("WENMO_LANG", "en")
    model = {"type": kind, **CONFIGS[kind], **changes}
    recipe = {**small_data.recipe("masked_lm" if kind == "bert" else "causal_lm"),
              "model": {key: value for key, value in model.items() if not key.endswith("token_id")}}
    with pytest.raises(RecipeError) as refused:
        parse_recipe(recipe, "recipe.yaml")
    assert said in str(refused.value)
    assert len(str(refused.value).splitlines()) == 3
    (tmp_path / "config.json").write_text(json.dumps(
        {"model_type": kind, "architectures": [list(ARCHITECTURES[kind].classes)[1]], **CONFIGS[kind], **changes}))
    theirs("BertModel").save_pretrained(tmp_path / "weights")
    (tmp_path / "weights" / "model.safetensors").rename(tmp_path / "model.safetensors")
    with pytest.raises(ModelError) as unopened:
        open_model(str(tmp_path))
    assert said in str(unopened.value)
    assert len(str(unopened.value).splitlines()) == 3


def test_windows_as_older_files_wrote_them() -> None:
    """Qwen2.5: a window of some width that is not used; no layer_types yet."""
    cls = ARCHITECTURES["qwen2"].config_class
    old = {**CONFIGS["qwen2"], "sliding_window": 32768, "use_sliding_window": False, "max_window_layers": 2}
    config, _ = read_config(cls, old, "")
    assert [config.window(layer) for layer in range(3)] == [None] * 3
    config, _ = read_config(cls, {**old, "use_sliding_window": True}, "")
    assert [config.window(layer) for layer in range(3)] == [None, None, 32768]
    config, _ = read_config(cls, {**old, "use_sliding_window": True, "max_window_layers": 9}, "")
    assert [config.window(layer) for layer in range(3)] == [None] * 3
