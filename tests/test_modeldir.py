"""A model folder goes both ways between transformers and here, and says what is wrong with it."""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from oracle import CLASSIFIERS, DECODERS, ENCODER_DECODERS, ENCODERS, LLAMAS, OTHERS, SPANS, TAGGERS, VOCAB, theirs
from test_parity import close, sequences
from wenmo import modeldir
from wenmo.errors import ModelError, StorageError
from wenmo.locate import locate
from wenmo.modeldir import Opened, open_model, open_tokenizer, save_model, saving
from wenmo.models import architecture, create, logits
from wenmo.text import tokenizer_training
from wenmo.text.tokenizer_training import TokenizerSettings

TABLES = (ENCODERS, DECODERS, ENCODER_DECODERS, CLASSIFIERS, TAGGERS, SPANS, OTHERS)
CASES = {name: case for table in TABLES for name, case in table.items()}
assert len(CASES) == sum(map(len, TABLES)), "two cases of one name"


def answers(model: nn.Module) -> list[Tensor]:
    """All that a model of theirs or ours says about a few sequences."""
    result: list[Tensor] = []
    for row in sequences()[:3]:
        row_B = row[None]
        with torch.no_grad():
            if not isinstance(model, transformers.PreTrainedModel):
                result += _ours(model, row)
            elif model.config.is_encoder_decoder and "TokenClass" not in type(model).__name__:
                out = model(row_B, decoder_input_ids=row_B.flip(1))
                result.append((out.logits if "logits" in out else out.last_hidden_state)[0])
            else:
                out = model(row_B)
                names = ("logits", "prediction_logits", "seq_relationship_logits", "start_logits", "end_logits",
                         "last_hidden_state")
                result += [out[name][0] for name in names if name in out]
    return result


def _ours(model: Any, row: Tensor) -> list[Tensor]:
    lengths = (len(row),)
    targets = (row.flip(0), lengths) if hasattr(model, "encode") else ()
    hidden = model(row, lengths, *targets)
    heads = model.heads
    result = [hidden] if set(heads) <= {"encoder"} else []
    if {"masked_lm", "causal_lm", "seq2seq_lm"} & set(heads):
        result.append(logits(model, hidden))
    if "classification" in heads:
        result.append(model.classify(hidden, lengths)[0])
    if "next_sentence" in heads:
        result.append(model.next_sentence(hidden, lengths)[0])
    if "tagging" in heads:
        result.append(model.tag(hidden))
    if "span_qa" in heads:
        result += model.spans(hidden).unbind(1)
    return result


def same(model: nn.Module, expected: list[Tensor]) -> None:
    for mine, yours in zip(answers(model), expected, strict=True):
        close(mine, yours, 2e-5)


def edit(path: Path, **changes: Any) -> None:
    """Keys of a JSON file changed; None takes one out."""
    value = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in value.items() if value is not None}))


def renamed(folder: Path, change: Callable[[str], str], **more: Tensor) -> None:
    state = {change(name): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file({**state, **more}, folder / "model.safetensors", {"format": "pt"})


def fresh(hf_class: str, folder: Path, **changes: Any) -> nn.Module:
    model = theirs(hf_class, **changes)
    model.save_pretrained(folder)
    return model


# Both ways --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_theirs_opens_here_and_goes_back(case: str, tmp_path: Path) -> None:
    hf_class, changes = CASES[case]
    them = fresh(hf_class, tmp_path / "theirs", **changes)
    expected = answers(them)  # once: their dynamic rope remembers the longest text it has seen
    opened = open_model(str(tmp_path / "theirs"))
    assert (opened.initialised, opened.left_out) == ([], [])
    same(opened.model, expected)
    save_model(tmp_path / "ours", opened)
    assert _bits(open_model(str(tmp_path / "ours"))) == _bits(opened)
    back, info = type(them).from_pretrained(tmp_path / "ours", output_loading_info=True)
    if hf_class == "MarianModel":  # it asks for the positions, and computes them itself where they are not there
        info["missing_keys"] = {key for key in info["missing_keys"] if not key.endswith("embed_positions.weight")}
    assert not any(info.values()), info
    same(back.eval(), expected)
    before, after = them.config.to_dict(), back.config.to_dict()
    for config in before, after:
        config.pop("_name_or_path")
    rope = before.pop("rope_parameters", {})
    assert rope.items() <= after.pop("rope_parameters", {}).items()
    assert {key: after.get(key, "lost") for key in before} == before


def _bits(opened: Opened) -> str:
    return modeldir.weights_sha256(opened.model)


BERT = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 48}
LLAMA = {**BERT, "model_type": "llama"}
GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
T5 = {"model_type": "t5", "d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2}
ROBERTA = {**BERT, "model_type": "roberta", "pad_token_id": 2}
MARIAN = {"model_type": "marian", "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2,
          "encoder_ffn_dim": 48, "decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 40,
          "pad_token_id": 3, "decoder_start_token_id": 3}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.5] * 8, "long_factor": [2.0] * 8}
NEW: dict[str, tuple[dict[str, Any], dict[str, int], str]] = {
    "bert": (BERT, {"masked_lm": 0, "next_sentence": 2}, "BertForPreTraining"),
    "bert, classes": (BERT, {"classification": 4}, "BertForSequenceClassification"),
    "llama": (LLAMA, {"causal_lm": 0}, "LlamaForCausalLM"),
    "llama, yarn": ({**LLAMA, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, {"causal_lm": 0},
                    "LlamaForCausalLM"),
    "llama, longrope": ({**LLAMA, "rope_scaling": LONGROPE}, {"causal_lm": 0}, "LlamaForCausalLM"),
    "gpt2": (GPT2, {"causal_lm": 0}, "GPT2LMHeadModel"),
    "gpt2, classes": (GPT2, {"classification": 4}, "GPT2ForSequenceClassification"),
    "mistral": ({**LLAMA, "model_type": "mistral", "num_key_value_heads": 1, "sliding_window": 3}, {"causal_lm": 0},
                "MistralForCausalLM"),
    "qwen2": ({**LLAMA, "model_type": "qwen2", "num_key_value_heads": 1}, {"causal_lm": 0}, "Qwen2ForCausalLM"),
    "qwen2, windows": ({**LLAMA, "model_type": "qwen2", "num_key_value_heads": None, "use_sliding_window": True,
                        "sliding_window": 3, "max_window_layers": 1}, {"causal_lm": 0}, "Qwen2ForCausalLM"),
    "qwen3": ({**LLAMA, "model_type": "qwen3", "num_key_value_heads": 1}, {"causal_lm": 0}, "Qwen3ForCausalLM"),
    "qwen3, classes": ({**LLAMA, "model_type": "qwen3", "num_key_value_heads": 1, "head_dim": 6},
                       {"classification": 4}, "Qwen3ForSequenceClassification"),
    "t5": (T5, {"seq2seq_lm": 0}, "T5ForConditionalGeneration"),
    "t5, untied": ({**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}, {"seq2seq_lm": 0},
                   "T5ForConditionalGeneration"),
    "t5, encoder": (T5, {"encoder": 0}, "T5EncoderModel"),
    "roberta": (ROBERTA, {"masked_lm": 0}, "RobertaForMaskedLM"),
    "roberta, classes": (ROBERTA, {"classification": 4}, "RobertaForSequenceClassification"),
    "marian": (MARIAN, {"seq2seq_lm": 0}, "MarianMTModel"),
}


def new(keys: dict[str, Any], heads: dict[str, int]) -> nn.Module:
    config = architecture(keys["model_type"], "test").config_class(vocab_size=VOCAB, **keys)
    model = create(config, heads, torch.Generator().manual_seed(1)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # numbers large enough to show what a wrong setting does
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.ndim)) * 0.2)
    return model


@pytest.mark.parametrize("kind", NEW)
def test_a_new_model_opens_in_transformers(kind: str, tmp_path: Path) -> None:
    """Made here from a recipe's few keys: what the recipe left out must mean the same there."""
    keys, heads, hf_class = NEW[kind]
    model = new(keys, heads)
    save_model(tmp_path, Opened(model, None))
    back, info = getattr(transformers, hf_class).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    same(model, answers(back.eval()))


def test_half_precision_becomes_fp32_and_stays(tmp_path: Path) -> None:
    """The `dtype` that was carried along is no longer true; transformers would round the weights to it."""
    them = theirs("LlamaForCausalLM").to(torch.bfloat16)
    them.save_pretrained(tmp_path / "theirs")
    opened = open_model(str(tmp_path / "theirs"))
    fp32 = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "theirs", dtype=torch.float32)
    same(opened.model, answers(fp32.eval()))
    opened.model.model.norm.weight.data += 1e-4  # trained on: bf16 cannot say this
    save_model(tmp_path / "ours", opened)
    same(opened.model, answers(transformers.LlamaForCausalLM.from_pretrained(tmp_path / "ours").eval()))


def test_card_generation_settings_and_tokenizer_go_along(tmp_path: Path) -> None:
    fresh("LlamaForCausalLM", tmp_path / "theirs", vocab_size=300, eos_token_id=[1, 7])
    (tmp_path / "theirs" / "generation_config.json").write_text('{"eos_token_id": [1, 7], "top_p": 0.5}')
    edit(tmp_path / "theirs" / "config.json", something_of_theirs={"kept": [1, 2]})
    settings = TokenizerSettings(vocab_size=280, control_tokens=("<|pad|>",))
    tokenizer_training.train(["春天来了，天气渐渐暖和起来。" * 3], settings).save(tmp_path / "theirs")
    opened = open_model(str(tmp_path / "theirs"))
    opened.card["tasks"] = {"causal_lm": {"type": "causal_lm"}}
    save_model(tmp_path / "ours", opened)
    again = open_model(str(tmp_path / "ours"))
    assert again.generation == {"eos_token_id": [1, 7], "top_p": 0.5}
    assert again.card["tasks"] == {"causal_lm": {"type": "causal_lm"}}
    assert again.carried["something_of_theirs"] == {"kept": [1, 2]}
    assert again.tokenizer.sha256 == opened.tokenizer.sha256 == open_tokenizer(str(tmp_path / "ours")).sha256
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert (config["bos_token_id"], config["pad_token_id"]) == (0, 0)
    assert config["eos_token_id"] == 0  # the tokenizer's end of text is none of the two: theirs belonged to another


def test_a_list_of_ends_that_holds_the_tokenizers_own_stays(tmp_path: Path) -> None:
    fresh("LlamaForCausalLM", tmp_path / "theirs", vocab_size=300, eos_token_id=[2, 0])
    tokenizer_training.train(["abc"], TokenizerSettings(vocab_size=259)).save(tmp_path / "theirs")
    save_model(tmp_path / "ours", open_model(str(tmp_path / "theirs")))
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["eos_token_id"] == [2, 0]


def test_a_tokenizer_without_beginning_and_end_leaves_none_to_be_guessed(tmp_path: Path) -> None:
    """Absent, transformers would take LlamaConfig's own: 1 and 2, any tokens of this vocabulary."""
    tokenizer = tokenizer_training.train(["a b"], TokenizerSettings(type="wordpiece", vocab_size=20))
    save_model(tmp_path, Opened(new(LLAMA, {"causal_lm": 0}), tokenizer))
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (None, None, tokenizer.pad_id)


# Old spellings ----------------------------------------------------------------------------------------


def test_old_spellings_of_bert(tmp_path: Path) -> None:
    """Google's own names for norms, stored positions, and the tied matrix written out."""
    them = fresh("BertForMaskedLM", tmp_path)
    words = them.bert.embeddings.word_embeddings.weight.detach().clone()
    renamed(tmp_path, lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma")
            .replace("LayerNorm.bias", "LayerNorm.beta"),
            **{"bert.embeddings.position_ids": torch.arange(64)[None], "cls.predictions.decoder.weight": words,
               "cls.predictions.decoder.bias": them.cls.predictions.bias.detach().clone()})
    opened = open_model(str(tmp_path))
    assert (opened.initialised, opened.left_out) == ([], [])
    same(opened.model, answers(them))


def test_heads_beside_the_one_that_config_names_are_left_out(tmp_path: Path) -> None:
    """Google's BERT folders say BertForMaskedLM and hold the pooler and the next-sentence head too."""
    them = fresh("BertForPreTraining", tmp_path)
    edit(tmp_path / "config.json", architectures=["BertForMaskedLM"])
    opened = open_model(str(tmp_path))
    assert opened.left_out == ["bert.pooler.dense.bias", "bert.pooler.dense.weight", "cls.seq_relationship.bias",
                               "cls.seq_relationship.weight"]
    same(opened.model, answers(them)[::2])


@pytest.mark.parametrize("kind", ["grouped, tied", "linear", "yarn", "llama3", "longrope"])
def test_rope_as_transformers_4_wrote_it(kind: str, tmp_path: Path) -> None:
    changes = LLAMAS[kind]
    them = fresh("LlamaForCausalLM", tmp_path, **changes)
    assert json.loads((tmp_path / "config.json").read_text())["rope_parameters"]["rope_theta"] == 500.0
    expected = answers(them)
    scaling = changes.get("rope_scaling")
    edit(tmp_path / "config.json", rope_parameters=None, rope_theta=500.0, rope_scaling=scaling)
    same(open_model(str(tmp_path)).model, expected)
    if scaling is not None:  # older still
        older = {"type" if key == "rope_type" else key: value for key, value in scaling.items()}
        edit(tmp_path / "config.json", rope_scaling=older)
        same(open_model(str(tmp_path)).model, expected)


def test_a_tied_matrix_stored_twice_or_under_the_other_name(tmp_path: Path) -> None:
    them = fresh("LlamaForCausalLM", tmp_path)
    words = them.model.embed_tokens.weight.detach().clone()
    renamed(tmp_path, str, **{"lm_head.weight": words,
                              "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})
    same(open_model(str(tmp_path)).model, answers(them))
    renamed(tmp_path, lambda name: "lm_head.weight" if name == "model.embed_tokens.weight" else name)
    same(open_model(str(tmp_path)).model, answers(them))


@pytest.mark.parametrize("hf_class", ["T5ForConditionalGeneration", "LlamaForCausalLM"])
def test_a_config_that_says_tied_beside_two_matrices(hf_class: str, tmp_path: Path) -> None:
    """transformers 5 writes T5 v1.1 so, and reads it as two."""
    them = theirs(hf_class)
    them.lm_head.weight = nn.Parameter(torch.randn_like(them.lm_head.weight))
    them.save_pretrained(tmp_path / "theirs")
    edit(tmp_path / "theirs" / "config.json", tie_word_embeddings=True)
    expected = answers(them)
    opened = open_model(str(tmp_path / "theirs"))
    same(opened.model, expected)
    save_model(tmp_path / "ours", opened)
    same(open_model(str(tmp_path / "ours")).model, expected)
    same(type(them).from_pretrained(tmp_path / "ours").eval(), expected)


def test_weights_in_several_files(tmp_path: Path) -> None:
    them = theirs("BertForMaskedLM")
    them.save_pretrained(tmp_path, max_shard_size="50KB")
    assert not (tmp_path / "model.safetensors").exists()
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    same(open_model(str(tmp_path)).model, answers(them))


# Other heads ------------------------------------------------------------------------------------------


def test_a_masked_model_opened_for_classes(tmp_path: Path) -> None:
    fresh("BertForMaskedLM", tmp_path)
    opened = open_model(str(tmp_path), heads={"classification": 3}, seed=5)
    assert opened.initialised == ["bert.pooler.dense.bias", "bert.pooler.dense.weight", "classifier.bias",
                                  "classifier.weight"]
    assert opened.left_out == ["cls.predictions.bias", "cls.predictions.transform.LayerNorm.bias",
                               "cls.predictions.transform.LayerNorm.weight", "cls.predictions.transform.dense.bias",
                               "cls.predictions.transform.dense.weight"]
    body = load_file(tmp_path / "model.safetensors")
    loaded = {name: value for name, value in opened.model.state_dict().items() if name in body}
    assert len(loaded) == len(body) - len(opened.left_out)
    assert all(torch.equal(value, body[name]) for name, value in loaded.items())
    again = open_model(str(tmp_path), heads={"classification": 3}, seed=5)
    other = open_model(str(tmp_path), heads={"classification": 3}, seed=6)
    assert _bits(again) == _bits(opened) != _bits(other)


def test_three_labels_in_place_of_two(tmp_path: Path) -> None:
    fresh("BertForSequenceClassification", tmp_path / "two", id2label={0: "bad", 1: "good"})
    opened = open_model(str(tmp_path / "two"), heads={"classification": 3})
    assert (opened.initialised, opened.left_out) == (["classifier.bias", "classifier.weight"], [])
    save_model(tmp_path / "three", opened)  # the two old names must not come along
    back, info = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "three",
                                                                            output_loading_info=True)
    assert not any(info.values()), info
    assert back.config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    same(open_model(str(tmp_path / "three")).model, answers(back.eval()))
    opened.card["tasks"] = {"classification": {"labels": ["bad", "good", "odd"]}}
    save_model(tmp_path / "named", opened)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "named")
    assert config.id2label == {0: "bad", 1: "good", 2: "odd"}


def test_a_causal_model_opened_for_classes(tmp_path: Path) -> None:
    fresh("LlamaForCausalLM", tmp_path, tie_word_embeddings=False)
    opened = open_model(str(tmp_path), heads={"classification": 2})
    assert (opened.initialised, opened.left_out) == (["score.weight"], ["lm_head.weight"])


def test_a_body_from_a_class_that_is_not_known_here(tmp_path: Path) -> None:
    fresh("BertForMultipleChoice", tmp_path)
    with pytest.raises(ModelError, match="BertForMultipleChoice"):
        open_model(str(tmp_path))
    opened = open_model(str(tmp_path), heads={"masked_lm": 0})
    assert opened.left_out[2:] == ["classifier.bias", "classifier.weight"]  # after the pooler


def test_an_encoder_decoder_opened_for_tags(tmp_path: Path) -> None:
    fresh("T5ForConditionalGeneration", tmp_path)
    opened = open_model(str(tmp_path), heads={"tagging": 3})
    assert opened.initialised == ["classifier.bias", "classifier.weight"]
    assert opened.left_out
    assert all(name.startswith("decoder.") for name in opened.left_out)


# Faults -----------------------------------------------------------------------------------------------


def _without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _pickle_alone(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _truncated(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def _wrong_shape(folder: Path) -> None:
    edit(folder / "config.json", intermediate_size=65)


def _wrong_shape_of_a_head(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    renamed(folder, str, **{"cls.predictions.bias": state["cls.predictions.bias"][:-1].clone()})


def _missing_key(folder: Path) -> None:
    renamed(folder, lambda name: name.replace("cls.predictions.bias", "somewhere.else"))


def _a_layer_too_few(folder: Path) -> None:
    edit(folder / "config.json", num_hidden_layers=2)


def _unknown_architecture(folder: Path) -> None:
    edit(folder / "config.json", model_type="mamba")


def _relative_positions(folder: Path) -> None:
    edit(folder / "config.json", position_embedding_type="relative_key")


def _decoder(folder: Path) -> None:
    edit(folder / "config.json", is_decoder=True)


def _large_tokenizer(folder: Path) -> None:
    tokenizer_training.train(["abc"], TokenizerSettings(vocab_size=259)).save(folder)


def _broken_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "bert"')


def _list_as_card(folder: Path) -> None:
    (folder / "wenmo.json").write_text("[]")


def _index_without_files(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"metadata": {}}')


def _index_to_elsewhere(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../model.safetensors"}}')


def _shard_missing(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')


FAULTS: dict[Callable[[Path], None], str] = {
    _without_weights: "no model.safetensors", _pickle_alone: "pickle", _truncated: "damaged weights",
    _wrong_shape: "65", _wrong_shape_of_a_head: "cls.predictions.bias",
    _missing_key: "cls.predictions.bias is missing", _a_layer_too_few: r"layer\.2",
    _unknown_architecture: "mamba", _relative_positions: "position_embedding_type", _decoder: "is_decoder",
    _large_tokenizer: "259 tokens, the model 97", _broken_config: "config.json", _list_as_card: "wenmo.json",
    _index_without_files: "index", _index_to_elsewhere: "index", _shard_missing: "model-1",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_faults_are_said_in_three_lines(fault: Callable[[Path], None], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    fresh("BertForMaskedLM", folder)
    fault(folder)
    says(str(folder), FAULTS[fault])
    if fault not in (_missing_key, _wrong_shape_of_a_head):  # other heads do without it
        says(str(folder), FAULTS[fault], heads={"classification": 2})


def says(reference: str, expected: str, **options: Any) -> None:
    with pytest.raises(ModelError, match=expected) as caught:
        open_model(reference, **options)
    what, where, mend = str(caught.value).splitlines()
    assert what
    assert where.startswith("where: ")
    assert mend.startswith("mend: ")
    assert "recipe" not in mend


def test_a_head_that_the_architecture_does_not_have(tmp_path: Path) -> None:
    fresh("BertForMaskedLM", tmp_path)
    says(str(tmp_path), "Bert has no head for causal_lm", heads={"causal_lm": 0})


# Where a model lies -----------------------------------------------------------------------------------


def test_a_run_gives_its_model(tmp_path: Path) -> None:
    fresh("BertModel", tmp_path / "model")
    assert locate(str(tmp_path)) == tmp_path / "model"


def test_a_run_without_model_names_its_checkpoints(tmp_path: Path) -> None:
    for step in (20, 100, 3, 7):
        (tmp_path / "checkpoints" / f"step-{step}").mkdir(parents=True)
    says(str(tmp_path), "not finished")
    with pytest.raises(ModelError) as caught:
        locate(str(tmp_path))
    named = [word.split("step-")[1].rstrip(",") for word in caught.value.mend.split() if "step-" in word]
    assert named == ["7", "20", "100"]


@pytest.mark.parametrize(("reference", "expected"), [
    ("nowhere/at/all", "no such model"), ("pkg:not_a_package_of_anyone", "not installed"),
    ("pkg:../etc", "not installed"), ("pkg:__main__", "not installed"), ("pkg:pytest", "0 models"),
])
def test_references_to_nothing(reference: str, expected: str) -> None:
    says(reference, expected)


def test_files_that_are_no_models(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"x")
    (tmp_path / "model.zip").write_bytes(b"not a zip")
    (tmp_path / "model.gguf").write_bytes(b"not a gguf")
    says(str(tmp_path), "no config.json")
    says(str(tmp_path / "model.bin"), "not read")
    says(str(tmp_path / "model.zip"), "zip")
    says(str(tmp_path / "model.gguf"), "GGUF")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def zipped(folder: Path, path: Path, **more: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, str(file.relative_to(folder)))
        for name, text in more.items():
            archive.writestr(name, text)
    return path


def test_a_zip_opens_and_is_unpacked_once(cache: Path, tmp_path: Path) -> None:
    them = fresh("BertModel", tmp_path / "all" / "model")
    pooling = tmp_path / "all" / "model" / "1_Pooling"
    pooling.mkdir()
    (pooling / "config.json").write_text('{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}')
    path = zipped(tmp_path / "all", tmp_path / "model.zip")
    opened = open_model(str(path))
    same(opened.model, answers(them))
    assert opened.card["embedding"]["pooling"] == "cls"
    marker = opened.folder / "untouched"
    marker.touch()
    assert open_model(str(path)).folder == opened.folder
    assert marker.exists()


def test_a_zip_that_reaches_outside_itself_is_refused(cache: Path, tmp_path: Path) -> None:
    fresh("BertModel", tmp_path / "model")
    path = zipped(tmp_path / "model", tmp_path / "bad.zip", **{"../../../../outside": "x"})
    says(str(path), "outside")
    assert not list(tmp_path.rglob("outside"))
    assert not list(cache.rglob("config.json"))


def test_a_zip_of_two_models_is_not_guessed_at(cache: Path, tmp_path: Path) -> None:
    for name in "ab":
        fresh("BertModel", tmp_path / "all" / name)
    says(str(zipped(tmp_path / "all", tmp_path / "two.zip")), "2 models")


def test_a_package_with_a_model_is_found_without_running_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "a_package_with_a_model"
    them = fresh("BertModel", package / "files")
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    (package / "files" / "1_Pooling").mkdir()
    (package / "files" / "1_Pooling" / "config.json").write_text("{}")
    monkeypatch.syspath_prepend(tmp_path)
    same(open_model("pkg:a_package_with_a_model").model, answers(them))


# GGUF -------------------------------------------------------------------------------------------------

GGUFS = {
    "grouped, tied": {}, "untied, biases": LLAMAS["untied, biases"], "linear": LLAMAS["linear"],
    "yarn": LLAMAS["yarn"], "llama3": LLAMAS["llama3"],
}
GGUF_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"llama, {name}": ("LlamaForCausalLM", changes) for name, changes in GGUFS.items()},
    "mistral, looking back to the beginning": ("MistralForCausalLM", dict(sliding_window=None)),
    "qwen2": ("Qwen2ForCausalLM", {}),
    "qwen2, yarn, untied": ("Qwen2ForCausalLM", dict(tie_word_embeddings=False, **LLAMAS["yarn"])),
    "qwen3": ("Qwen3ForCausalLM", {}),
}


def write_gguf(path: Path, model: nn.Module, *, architecture: str = "llama", left_out: str = "",
               **more: np.ndarray) -> None:
    """As llama.cpp's converter lays it out: names from the library, rotary halves of q and k interleaved."""
    config, writer = model.config, gguf.GGUFWriter(path, architecture)
    numbers = {
        "context_length": config.max_position_embeddings, "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers, "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads, "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": model.model.layers[0].self_attn.head_dim}
    for name, number in numbers.items():
        if name != left_out:
            writer.add_uint32(f"{architecture}.{name}", number)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    rope = config.rope_parameters
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope.get("original_max_position_embeddings", 0))
    if rope["rope_type"] == "llama3":
        plain = rope["rope_theta"] ** -(torch.arange(0, 16, 2) / 16)
        stretched, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
        writer.add_tensor("rope_freqs.weight", (plain / stretched).numpy())
    _write_vocabulary(writer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config.num_hidden_layers)  # and all of Llama's
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = tensor.numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        if heads and architecture not in ("qwen2", "qwen3"):
            array = array.reshape(heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape).copy()
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), array)
    for name, array in more.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_vocabulary(writer: gguf.GGUFWriter) -> None:
    trained = tokenizer_training.train(["abc abd"] * 3, TokenizerSettings(vocab_size=262))
    with tempfile.TemporaryDirectory() as folder:
        trained.save(Path(folder))
        model = json.loads((Path(folder) / "tokenizer.json").read_text())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(model["vocab"], key=model["vocab"].__getitem__))
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_token_types([3] * 3 + [1] * (len(model["vocab"]) - 3))
    writer.add_eos_token_id(0)


@pytest.mark.parametrize("case", GGUF_CASES)
def test_gguf_is_the_same_model(case: str, tmp_path: Path) -> None:
    hf_class, changes = GGUF_CASES[case]
    them = theirs(hf_class, vocab_size=270, **changes)
    expected = answers(them)
    kind = them.config.model_type
    write_gguf(tmp_path / "model.gguf", them, architecture="llama" if kind == "mistral" else kind)
    opened = open_model(str(tmp_path / "model.gguf"))
    assert (opened.initialised, opened.left_out) == ([], [])
    assert opened.tokenizer.eos_id == opened.carried["eos_token_id"] == 0
    same(opened.model, expected)
    save_model(tmp_path / "ours", opened)
    back, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), info
    same(back.eval(), expected)


def test_gguf_faults(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    them = theirs("LlamaForCausalLM", vocab_size=270)
    write_gguf(path, them, architecture="mamba")
    says(str(path), "architecture `mamba`")
    write_gguf(path, them, left_out="block_count")
    says(str(path), "llama.block_count is missing")
    write_gguf(path, them, **{"blk.0.ffn_gate_exps.weight": np.zeros((4, 4), np.float32)})
    says(str(path), "blk.0.ffn_gate_exps.weight")
    write_gguf(path, theirs("LlamaForCausalLM", vocab_size=200))
    says(str(path), "262 tokens, the model 200")
    write_gguf(path, them)
    whole = path.read_bytes()
    for size in (3, 300, len(whole) // 2, len(whole) - 5000):
        path.write_bytes(whole[:size])
        says(str(path), "not a readable GGUF")


# Saving -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["save_tensors", "write_json"])
def test_what_goes_wrong_while_saving_leaves_the_old_folder_whole(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh("BertForMaskedLM", tmp_path / "theirs")
    opened = open_model(str(tmp_path / "theirs"))
    save_model(tmp_path / "model", opened)
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    original = getattr(saving, name)

    def full_disk(path: Path, *arguments: Any) -> None:
        original(path, *arguments)  # the file is there already, the folder is not complete
        raise StorageError("disk full")

    monkeypatch.setattr(saving, name, full_disk)
    opened.model.cls.predictions.bias.data += 1
    with pytest.raises(StorageError):
        save_model(tmp_path / "model", opened)
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "theirs"]
    monkeypatch.undo()
    save_model(tmp_path / "model", opened)
    assert _bits(open_model(str(tmp_path / "model"))) == _bits(opened)
