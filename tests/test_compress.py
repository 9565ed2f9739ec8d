"""Matrices in few bits: GPTQ is GPTQ, a folder gives back the same bits, and the engine takes the codes as they are."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import oracle
import wenmo
from small_data import reviews, write_csv
from test_parity import close
from wenmo.compress import CompressSettings, compress
from wenmo.compress.gptq import DAMPING, error_compensated
from wenmo.engine import EngineSettings, Request
from wenmo.engine.packed import Packed, pack
from wenmo.errors import DataError, ModelError, UsageError
from wenmo.generate import Sampling
from wenmo.levels import Codes, Grid, eight_bits, eight_bits_in_groups, four_bits, grid_of, joined, nearest
from wenmo.modeldir import Opened, adapt, mark_quantized, open_model, save_model
from wenmo.models import logits
from wenmo.models.lora import LoraSettings
from wenmo.nn.quantized import QuantizedLinear, restored, stored
from wenmo.stages.compress import compress as compress_into
from wenmo.stages.show import show
from wenmo.text import tokenizer_training
from wenmo.text.tokenizer_training import TokenizerSettings

WIDE = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", WIDE),
    "llama, untied": ("LlamaForCausalLM", {**WIDE, "tie_word_embeddings": False, "attention_bias": True}),
    "qwen3, widths that 4 bits do not fit": ("Qwen3ForCausalLM", {}),
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 64}),
    "bert": ("BertForSequenceClassification", {"hidden_size": 64, "num_labels": 3}),
}
IDS = torch.arange(5, 29)


@pytest.fixture(autouse=True)
def english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WENMO_LANG", "en")


def random(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def opened_as(name: str, folder: Path) -> Opened:
    hf_class, changes = MODELS[name]
    oracle.theirs(hf_class, **changes).save_pretrained(folder)
    return open_model(str(folder))


def runs(model: Any):
    """Over a few random texts."""
    texts = torch.randint(5, oracle.VOCAB, (400,), generator=torch.Generator().manual_seed(3))
    return lambda: [model(part, (30, 50, 20)) for part in texts.split(100)]


def answer(model: Any) -> Tensor:
    with torch.inference_mode():
        hidden = model(IDS, (len(IDS),))
        return logits(model, hidden) if "causal_lm" in model.heads else model.classify(hidden, (len(IDS),))


# Levels -----------------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.sampled_from([1e-6, 1.0, 300.0]), st.booleans())
@settings(deadline=None)
def test_no_weight_is_further_than_half_a_level(seed: int, size: float, four: bool) -> None:
    """And codes survive being stored; what 8 bits stand for has the same codes again, as the engine's head needs."""
    weight = random(16, 64, seed=seed) * size
    weight[:, 5] *= 20  # an outlier in one group
    weight[3] = 0
    codes = four_bits(weight) if four else eight_bits(weight)
    step = codes.grid.scales.repeat_interleave(64 // codes.grid.scales.shape[1], 1)
    inside = 0.5 + (0.02 if four else 0.5)  # rounding to fp16, or bf16, moves the ends of a range
    finest = 2.0**-21 if four else 1e-9  # half of the finest step of fp16, of a minimum and of a scale 15 times
    assert ((codes.weight() - weight).abs() <= inside * step + finest).all()
    again = restored(stored(codes))
    assert torch.equal(again.weight(), codes.weight())
    assert again.bits == (4 if four else 8)
    if not four:
        assert torch.equal(eight_bits(codes.weight()).numbers, codes.numbers)
    assert torch.equal(joined([codes, again]).weight(), torch.cat([codes.weight()] * 2))


def test_what_gguf_stores_in_few_bits_loses_nothing() -> None:
    """Q4_1 and Q8_0 are our 4 bits, and our 8 bits in groups."""
    weight = random(32, 256).pow(3)
    weight[3, 64:96] = 0.25  # a group of one level
    weight[4, 64:96] = random(32).sign()  # of two
    kinds = gguf.GGMLQuantizationType
    for kind, ours in ((kinds.Q4_1, four_bits), (kinds.Q8_0, eight_bits_in_groups)):
        there = torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), kind), kind))
        assert (there - weight).norm() > 0.001 * weight.norm()
        codes = ours(there)
        assert torch.equal(codes.weight(), there)
        assert torch.equal(restored(stored(codes)).weight(), there)


def test_levels_that_a_group_does_not_use_all_are_found() -> None:
    """Q4_0's are not where the extremes of a group would put them."""
    kind = gguf.GGMLQuantizationType.Q4_0
    there = torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(random(32, 256).numpy(), kind), kind))
    codes = four_bits(there)
    assert (codes.weight() - there).norm() < 1e-3 * there.norm()
    assert (nearest(there, grid_of(there, 4)).weight() - there).norm() > 0.02 * there.norm()


def test_weights_too_large_for_4_bits_are_refused() -> None:
    weight = random(16, 64)
    weight[3, 5] = 1e5
    with pytest.raises(ModelError, match="too large for 4 bits"):
        four_bits(weight)
    assert torch.isfinite(eight_bits(weight).weight()).all()


def test_a_narrower_range_has_a_smaller_error() -> None:
    weight, importance = random(64, 128).pow(3), random(128, seed=1).square()
    errors = [((nearest(weight, grid_of(weight, 4, given)).weight() - weight).square() * importance).sum()
              for given in (None, torch.ones(128), importance)]
    assert errors[2] < errors[1] < errors[0]


def brute_force(weight_OI: Tensor, hessian_II: Tensor, grid: Grid, order: list[int]) -> Tensor:
    """Column after column to nearest; after each the free columns are solved for anew (OBS, Hassibi & Stork 1993)."""
    left, numbers = weight_OI.double().clone(), torch.zeros_like(weight_OI)
    for done, column in enumerate(order):
        free = order[done:]
        inverse = torch.linalg.inv(hessian_II[free][:, free])
        group = torch.tensor([column // (weight_OI.shape[1] // grid.scales.shape[1])])
        numbers[:, column] = grid.round(left[:, [column]].float(), group)[:, 0]
        error = left[:, column] - grid.level(numbers[:, [column]], group)[:, 0]
        left[:, free] -= error[:, None] / inverse[0, 0] * inverse[0]
    return numbers.to(torch.int8)


@pytest.mark.parametrize("bits", [4, 8])
def test_gptq_by_brute_force(bits) -> None:
    weight, mixing = random(16, 160, seed=4), random(160, 160, seed=5)
    inputs = random(600, 160, seed=6) @ mixing * (torch.arange(160) % 7 + 1)
    hessian = inputs.t() @ inputs
    grid = grid_of(weight, bits)
    damped = hessian.double() + DAMPING * hessian.diagonal().double().mean() * torch.eye(160)
    order = hessian.diagonal().argsort(descending=True, stable=True).tolist()
    found = error_compensated(weight, hessian, grid)
    same = (found.numbers == brute_force(weight, damped, grid, order)).float().mean()
    assert same > 0.999  # a weight between two levels may fall to either side


@pytest.mark.parametrize("bits", [4, 8])
def test_gptq_beats_nearest_where_inputs_are_alike(bits) -> None:
    weight, inputs = random(64, 128, seed=7), random(400, 24, seed=8) @ random(24, 128, seed=9)
    inputs[:, 17] = 0  # never occurs
    grid = grid_of(weight, bits)

    def error(codes: Codes) -> float:
        return float((inputs @ (codes.weight() - weight).t()).square().mean())

    assert error(error_compensated(weight, inputs.t() @ inputs, grid)) < 0.3 * error(nearest(weight, grid))


# Models -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("format", "method"), [("int4", "gptq"), ("int8", "gptq"), ("int4", "rtn")])
def test_a_folder_gives_back_the_same_bits(name: str, format: str, method: str, tmp_path: Path) -> None:
    opened = opened_as(name, tmp_path / "plain")
    before = answer(opened.model)
    done = compress(opened.model, CompressSettings(format=format, method=method), runs(opened.model))
    after = answer(opened.model)
    assert not torch.equal(before, after)
    assert (after - before).norm() < (0.5 if format == "int4" else 0.06) * before.norm()
    assert done.bytes_after < done.bytes_before / (2 if "fit" in name or format == "int8" else 3)
    assert (done.num_maps[4] == 0) == (format == "int8")
    mark_quantized(opened, {"format": format})
    save_model(tmp_path / "small", opened)
    again = open_model(str(tmp_path / "small"))
    assert torch.equal(answer(again.model), after)
    save_model(tmp_path / "copy", again)
    first, second = ((tmp_path / name / "quantized.safetensors").read_bytes() for name in ("small", "copy"))
    assert first == second
    with pytest.raises(ModelError, match="already"):
        compress(again.model, CompressSettings(format=format, method="rtn"))


def test_transformers_says_that_it_is_none_of_its_own(tmp_path: Path) -> None:
    """It would else begin with random weights."""
    opened = opened_as("llama", tmp_path / "plain")
    compress(opened.model, CompressSettings(format="int8", method="rtn"))
    mark_quantized(opened, {"format": "int8"})
    save_model(tmp_path / "small", opened)
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        transformers.AutoModel.from_pretrained(tmp_path / "small")


def test_what_a_layer_reads_is_what_was_left_of_those_before(tmp_path: Path) -> None:
    """The second layer's codes are those for inputs from the first in few bits."""
    opened = opened_as("llama", tmp_path)
    plain = copy.deepcopy(opened.model)
    compress(opened.model, CompressSettings(format="int4"), runs(opened.model))
    module = opened.model.get_submodule("model.layers.1.mlp.down_proj")
    mixed = copy.deepcopy(opened.model)
    for number in (1, 2):
        mixed.model.layers[number] = plain.model.layers[number]
    inputs: list[Tensor] = []
    mixed.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    with torch.no_grad():
        runs(mixed)()
    hessian = torch.zeros(64, 64)
    for x in inputs:
        hessian += x.t() @ x
    weight = plain.model.layers[1].mlp.down_proj.weight
    expected = error_compensated(weight, hessian, grid_of(weight, 4, hessian.diagonal()))
    assert (module.quantized().numbers == expected.numbers).float().mean() > 0.99


@pytest.mark.parametrize("format", ["int4", "int8"])
def test_the_engine_takes_the_codes_as_they_are(format, tmp_path: Path) -> None:
    """No matrix is rounded a second time; the law holds for such a model too."""
    opened = opened_as("llama", tmp_path / "plain")
    compress(opened.model, CompressSettings(format=format), runs(opened.model))
    opened.tokenizer = tokenizer_training.train(["letters and 汉字"], TokenizerSettings(type="bpe", vocab_size=259))
    layer = opened.model.model.layers[0]
    maps = [layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj]
    weight = torch.cat([each.weight for each in maps])
    packed = copy.deepcopy(opened.model)
    pack(packed, format)
    joint = packed.model.layers[0].self_attn.q_proj.joint
    x = random(5, 64, seed=2).bfloat16()
    expected = x.float() @ weight.t()
    off_levels = weight + 1e-5 * random(*weight.shape, seed=3)
    again = Packed(off_levels, None, format, (weight.shape[0],))  # what rounding once more would do
    errors = [float((each(x).float() - expected).abs().max()) for each in (joint, again)]
    assert errors[0] < 0.05 * float(expected.abs().max())
    assert format == "int8" or errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize("size", [(45, 65), (48, 8), (3, 1), (48, 64)])
@pytest.mark.parametrize("rows", [1, 5])
def test_8_bits_of_torchs_kernel_may_have_any_number_of_inputs(size: tuple[int, int], rows: int) -> None:
    """It reads beyond rows that are not whole sixteens, to wherever that leads."""
    weight, x = random(*size), random(rows, size[1], seed=1).bfloat16()
    found = Packed(weight, None, "int8-weights", (size[0],))(x)
    expected = x.float() @ eight_bits(weight).weight().t()
    assert (found.float() - expected).norm() < 0.01 * expected.norm()


def test_the_law_holds_for_stored_codes(tmp_path: Path) -> None:
    opened = opened_as("llama", tmp_path / "plain")
    compress(opened.model, CompressSettings(format="int4"), runs(opened.model))
    mark_quantized(opened, {"format": "int4"})
    save_model(tmp_path / "small", opened)
    tokenizer = tokenizer_training.train(["a"], TokenizerSettings(type="bpe", vocab_size=259))
    asked = [Request(tuple(range(5, 6 + number)), Sampling(max_new_tokens=8)) for number in range(20)]

    def engine():
        return wenmo.engine.Engine(open_model(str(tmp_path / "small")).model, tokenizer, EngineSettings(format="int4"),
                                   ends=frozenset())

    together = [done.ids for done in engine().generate(asked)]
    solo = engine()
    assert [solo.generate([request])[0].ids for request in asked] == together


def test_to_be_trained_it_is_plain_again(tmp_path: Path) -> None:
    """With a head of its own, or an adapter on it: the matrices that the codes stand for, under their names."""
    opened = opened_as("gpt2", tmp_path / "plain")
    compress(opened.model, CompressSettings(format="int4"), runs(opened.model))
    mark_quantized(opened, {"format": "int4"})
    save_model(tmp_path / "small", opened)
    begun = open_model(str(tmp_path / "small"), heads={"causal_lm": 0})
    assert "quantization" not in begun.card
    assert "quantization_config" not in begun.carried
    close(answer(begun.model), answer(opened.model), 1e-4)
    adapt(begun, LoraSettings(rank=2), str(tmp_path / "small"), {}, 0)
    with torch.no_grad():
        for name, parameter in begun.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    save_model(tmp_path / "adapter", begun)
    assert torch.equal(answer(open_model(str(tmp_path / "adapter")).model), answer(begun.model))


def test_what_others_have_quantised_is_refused(tmp_path: Path) -> None:
    opened_as("bert", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(ModelError, match="awq"):
        open_model(str(tmp_path))


def test_an_encoder_decoder_is_rounded_to_nearest_alone(tmp_path: Path) -> None:
    oracle.theirs("MarianMTModel").save_pretrained(tmp_path / "plain")
    opened = open_model(str(tmp_path / "plain"))
    with pytest.raises(UsageError, match="gptq"):
        compress(opened.model, CompressSettings(format="int8"), lambda: None)
    compress(opened.model, CompressSettings(format="int8", method="rtn"))
    mark_quantized(opened, {"format": "int8"})
    save_model(tmp_path / "small", opened)
    again = open_model(str(tmp_path / "small")).model
    assert any(isinstance(module, QuantizedLinear) for module in again.modules())
    with torch.inference_mode():
        found = [logits(model, model(IDS, (24,), IDS, (24,))) for model in (opened.model, again)]
    assert torch.equal(*found)


# The command ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not trained: what matters here is that its answers are measured."""
    folder = tmp_path_factory.mktemp("classifier")
    tokenizer = tokenizer_training.train([text for text, _ in reviews(100)],
                                         TokenizerSettings(type="wordpiece", vocab_size=97))
    oracle.theirs("BertForSequenceClassification", hidden_size=64, num_labels=2).save_pretrained(folder)
    opened = open_model(str(folder))
    opened.tokenizer = tokenizer
    labels = sorted({label for _, label in reviews(100)})
    opened.card["tasks"] = {"classification": {"type": "classification", "labels": labels,
                                               "lengths": {"max_tokens": 32}}}
    save_model(folder / "model", opened)
    write_csv(folder / "rows.csv", ("text", "label"), reviews(100))
    return folder


def test_before_and_after_are_measured_and_stored(classifier: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"
    facts = compress_into(str(classifier / "model"), out, {"format": "int8", "calibration_tokens": 200},
                          calibration=str(classifier / "rows.csv"))
    card = json.loads((out / "wenmo.json").read_text())["quantization"]
    assert card == {name: value for name, value in json.loads(json.dumps(facts)).items() if name != "model"}
    assert card["held_out"]["rows"] == 10
    assert set(card["before"]) == set(card["after"])
    assert "accuracy" in card["before"]
    assert card["calibration"]["tokens"] >= 200
    assert 0 < card["golden_difference"] < 0.5
    shown = show(str(out))  # its golden prompts are those of the new weights
    assert shown.facts["quantization"] == card
    assert shown.facts["parameters"] == show(str(classifier / "model")).facts["parameters"]
    assert shown.facts["golden"]["largest_difference"] < 1e-4
    rows = [text for text, _ in reviews(20)]
    found, expected = (wenmo.load(each).predict(rows) for each in (out, classifier / "model"))
    assert [row["label"] for row in found] == [row["label"] for row in expected]
    again = tmp_path / "again"
    compress_into(str(classifier / "model"), again, {"format": "int8", "calibration_tokens": 200},
                  calibration=str(classifier / "rows.csv"))
    assert (again / "quantized.safetensors").read_bytes() == (out / "quantized.safetensors").read_bytes()


def test_what_cannot_be_done_is_said(classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("text,label\nfine,positive\n")
    for texts, fault, match in [
            ({}, UsageError, "calibrate"),
            ({"calibration": str(tmp_path / "one.csv")}, DataError, "held out")]:
        with pytest.raises(fault, match=match):
            compress_into(str(classifier / "model"), tmp_path / "out", {"format": "int4"}, **texts)
    (tmp_path / "mine.txt").write_text("here")
    with pytest.raises(UsageError, match="something else"):
        compress_into(str(classifier / "model"), tmp_path, {"format": "int4"})
    assert not (tmp_path / "out").exists()
