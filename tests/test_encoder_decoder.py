"""Encoder–decoders and the encoders beside them: the remembered source, files as they are found, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding

from oracle import ENCODER_DECODERS, VOCAB, ours, theirs
from test_parity import LENGTHS, TARGET_LENGTHS, both, close, mean_loss, sequences
from wenmo import load
from wenmo.config import parse
from wenmo.errors import ModelError, RecipeError
from wenmo.modeldir import Opened, open_model, save_model
from wenmo.models import architecture, create, read_config
from wenmo.nn.attend import Cache
from wenmo.nn.cross import Memory
from wenmo.nn.sinusoid import sinusoids
from wenmo.stages.show import show
from wenmo.text import tokenizer_training
from wenmo.text.tokenizer_training import TokenizerSettings

SOURCES = (9, 4, 6)


def step(us: nn.Module, memory: Memory, cache: Cache, ids: list[int]) -> Tensor:
    attend = cache.extend([1] * len(ids))
    hidden: Tensor = us.body(torch.tensor(ids), attend.positions_M, attend, cross=memory.cross([1] * len(ids)))
    return hidden


@pytest.mark.parametrize("name", ENCODER_DECODERS)
@pytest.mark.parametrize(("when", "kept"), [(0, [2, 0, 2, 1, 1]), (1, [2, 0, 2, 1, 1]), (2, [1, 1]), (2, [2, 0, 1])])
def test_rows_that_are_dropped_repeated_and_reordered_go_on_as_if_alone(name: str, when: int, kept: list[int]) -> None:
    """As a beam does it: before the first token, after it, after two."""
    _, us = both(ENCODER_DECODERS[name])
    sources = sequences(5, SOURCES)
    spoken = [[7, 11, 13], [17, 19, 23], [29, 31, 37]]
    with torch.inference_mode():
        memory = Memory(us.encode(torch.cat(sources), SOURCES), SOURCES)
        cache, rows = Cache(3, 4), [0, 1, 2]
        for t in range(3):
            if t == when:
                memory.keep(kept)
                cache.keep(kept)
                rows = kept
            hidden = step(us, memory, cache, [spoken[row][t] for row in rows])
        alone = [us(sources[row], (SOURCES[row],), torch.tensor(spoken[row]), (3,))[-1] for row in kept]
    close(hidden, torch.stack(alone), 3e-5)


def test_a_source_is_projected_once() -> None:
    _, us = both(ENCODER_DECODERS["marian"])
    sources, calls = sequences(5, SOURCES), []
    with torch.inference_mode():
        memory = Memory(us.encode(torch.cat(sources), SOURCES), SOURCES)
        layer = us.model.decoder["layers"][0].encoder_attn.k_proj
        handle = layer.register_forward_hook(lambda *inputs: calls.append(inputs[1][0].shape[0]))
        memory.keep([0, 0, 1, 1, 2, 2])  # two beams each
        cache = Cache(6, 4)
        for _ in range(3):
            step(us, memory, cache, [5] * 6)
            memory.keep([1, 0, 3, 2, 5, 5])
        handle.remove()
    assert calls == [sum(SOURCES)]


@pytest.mark.parametrize("name", ["t5 v1.0", "marian"])
def test_packed_equals_each_alone(name: str) -> None:
    _, us = both(ENCODER_DECODERS[name])
    sources, targets = sequences(), sequences(3, TARGET_LENGTHS)
    with torch.no_grad():
        packed = us(torch.cat(sources), LENGTHS, torch.cat(targets), TARGET_LENGTHS)
        alone = [us(source, (len(source),), target, (len(target),))
                 for source, target in zip(sources, targets, strict=True)]
    close(packed, torch.cat(alone), 3e-5)


def test_what_the_decoder_begins_with_is_learnt_as_transformers_learns_it() -> None:
    """Marian's padding vector gets no gradient where it is read, and does where it might be said."""
    them, us = both(ENCODER_DECODERS["marian"])
    ids, labels = torch.stack(sequences(1, (4, 4))), torch.stack(sequences(2, (3, 3)))
    them(ids, labels=labels).loss.backward()  # it shifts the labels itself
    start = us.config.decoder_start_token_id
    reads = torch.stack([torch.tensor([start, *row[:-1]]) for row in labels.tolist()])
    mean_loss(us, us(ids.flatten(), (4, 4), reads.flatten(), (3, 3)), labels.flatten()).backward()
    close(us.model.shared.weight.grad[start], them.model.shared.weight.grad[start])
    assert us.model.shared.weight.grad[start].abs().sum() > 0


@pytest.mark.parametrize(("num_positions", "width"), [(64, 48), (1024, 16)])
def test_sinusoids_equal_transformers(num_positions: int, width: int) -> None:
    expected = MarianSinusoidalPositionalEmbedding(num_positions, width).create_weight()
    close(sinusoids(num_positions, width), expected, 1e-6)


def test_a_roberta_with_one_kind_of_segment_knows_none() -> None:
    """A tokenizer numbers the texts of a pair 0 and 1; such a model has no vector for 1."""
    ids, segments = sequences()[0], torch.tensor([0] * 4 + [1] * 5)
    for kinds, alike in ((1, True), (2, False)):
        us = ours(theirs("RobertaForMaskedLM", type_vocab_size=kinds))
        with torch.no_grad():
            assert torch.equal(us(ids, (9,), segments_M=segments), us(ids, (9,))) == alike


# Folders ----------------------------------------------------------------------------------------------


def saved(name: str, folder: Path, **more: Tensor) -> Any:
    them, _ = both(ENCODER_DECODERS[name])
    them.save_pretrained(folder)
    save_file({**load_file(folder / "model.safetensors"), **more}, folder / "model.safetensors", {"format": "pt"})
    return them


def test_marian_with_its_positions_in_the_file(tmp_path: Path) -> None:
    """As older transformers and the released models store them."""
    table = sinusoids(64, 48)
    saved("marian", tmp_path / "theirs", **{f"model.{stack}.embed_positions.weight": table.clone()
                                            for stack in ("encoder", "decoder")})
    opened = open_model(str(tmp_path / "theirs"))
    assert (opened.initialised, opened.left_out) == ([], [])
    save_model(tmp_path / "ours", opened)
    assert not [name for name in load_file(tmp_path / "ours" / "model.safetensors") if "position" in name]


def test_t5_with_the_matrix_that_it_never_used(tmp_path: Path) -> None:
    name = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    saved("t5 v1.0", tmp_path, **{name: torch.ones(8, 3)})
    assert open_model(str(tmp_path)).left_out == []


@pytest.mark.parametrize("name", ["t5 v1.0", "marian"])
def test_a_file_that_does_not_say_what_the_decoder_begins_with(name: str, tmp_path: Path) -> None:
    saved(name, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["decoder_start_token_id"]
    config["pad_token_id"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert open_model(str(tmp_path)).model.config.decoder_start_token_id == 3


def test_generation_settings_go_along_and_are_made_where_there_are_none(tmp_path: Path) -> None:
    tokenizer = tokenizer_training.train(["春天来了，天气渐渐暖和起来。"],
                                         TokenizerSettings(seq2seq=True, vocab_size=400))
    config = parse(architecture("t5", "").config_class, {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 1,
                                                         "num_heads": 2}, "")
    config = config.for_tokenizer(tokenizer.vocab_size, tokenizer.control)
    opened = Opened(create(config, {"seq2seq_lm": 0}, torch.Generator()), tokenizer)
    save_model(tmp_path / "new", opened)
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "new").generation_config
    assert (theirs.decoder_start_token_id, theirs.pad_token_id, theirs.eos_token_id) == (
        tokenizer.pad_id, tokenizer.pad_id, tokenizer.eos_id)
    opened.generation = {"num_beams": 6, "decoder_start_token_id": 9}
    save_model(tmp_path / "old", opened)
    assert open_model(str(tmp_path / "old")).generation == {
        "num_beams": 6, "decoder_start_token_id": 9, "pad_token_id": tokenizer.pad_id, "eos_token_id": tokenizer.eos_id}


@pytest.mark.parametrize("name", ["t5 v1.1", "marian"])
def test_show_and_half_precision(name: str, tmp_path: Path) -> None:
    saved(name, tmp_path)
    facts = show(str(tmp_path)).as_dict()
    assert (facts["heads"], facts["width"]) == ("seq2seq_lm", 48)
    half, whole = (load(str(tmp_path), dtype=dtype).model for dtype in ("bf16", "fp32"))
    ids = sequences()[0]
    with torch.inference_mode():
        a, b = (model(ids, (9,), ids, (9,)).float() for model in (half, whole))
    assert torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1] > 0.99


def test_vectors_from_an_encoder_alone(tmp_path: Path) -> None:
    tokenizer = tokenizer_training.train(["春天来了，天气渐渐暖和起来。"], TokenizerSettings(vocab_size=300))
    config, _ = read_config(architecture("t5", "").config_class, {
        "vocab_size": 300, "d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2}, "")
    save_model(tmp_path, Opened(create(config, {"encoder": 0}, torch.Generator().manual_seed(0)), tokenizer))
    them = transformers.T5EncoderModel.from_pretrained(tmp_path).eval()
    ids = tokenizer.wrap(tokenizer.encode("春天来了"))[0]
    with torch.no_grad():
        expected = them(torch.tensor([ids])).last_hidden_state[0].mean(0)
    close(torch.tensor(load(str(tmp_path)).embed(["春天来了"], normalise=False)[0]), expected)


# Sizes and refusals -----------------------------------------------------------------------------------

IMPOSSIBLE = [
    ("t5", {"d_model": 0}), ("t5", {"num_heads": -1}), ("t5", {"dropout_rate": 1.0}), ("t5", {"num_decoder_layers": 0}),
    ("t5", {"relative_attention_num_buckets": 2}), ("t5", {"relative_attention_num_buckets": 6}),
    ("t5", {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 16}),
    ("marian", {"d_model": 7}), ("marian", {"d_model": 6, "encoder_attention_heads": 4}),
    ("marian", {"d_model": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 5}),
    ("marian", {"dropout": 1}), ("marian", {"vocab_size": VOCAB, "pad_token_id": VOCAB}),
    ("marian", {"vocab_size": VOCAB, "decoder_vocab_size": VOCAB + 1}), ("marian", {"encoder_layerdrop": 0.1}),
    ("marian", {"share_encoder_decoder_embeddings": False}), ("marian", {"normalize_before": True}),
    ("marian", {"normalize_embedding": True}), ("marian", {"static_position_embeddings": False}),
    ("roberta", {"hidden_size": 30, "num_attention_heads": 4}), ("roberta", {"hidden_dropout_prob": -0.1}),
    ("roberta", {"max_position_embeddings": 3, "pad_token_id": 2}), ("roberta", {"type_vocab_size": 0}),
    ("roberta", {"is_decoder": True}),
]


@pytest.mark.parametrize(("kind", "keys"), IMPOSSIBLE)
def test_what_cannot_be_is_refused(kind: str, keys: dict[str, Any], tmp_path: Path) -> None:
    """In a recipe and in a folder, before a tensor is made."""
    cls = architecture(kind, "here").config_class
    with pytest.raises(RecipeError, match=next(iter(keys))):
        parse(cls, keys, "recipe")
    [first, *_] = architecture(kind, "here").classes
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "architectures": [first], **keys}))
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=next(iter(keys))):
        open_model(str(tmp_path))
