"""Adapters on every architecture: equal to PEFT's, both ways on the disk; merged is unmerged; the base is proven."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import oracle
from wenmo.config import parse
from wenmo.errors import ModelError, RecipeError
from wenmo.modeldir import Opened, adapt, merge, open_model, save_model
from wenmo.models import classify, logits
from wenmo.models.lora import LoraSettings, round_frozen
from wenmo.models.resize import with_vocabulary
from wenmo.nn.dropout import drop, kept_bits
from wenmo.nn.linear import Conv1D
from wenmo.nn.lora import LoraLinear, LowRank
from wenmo.tensors import load_tensors

peft = pytest.importorskip("peft", reason="PEFT is the oracle here")

IDS = torch.randint(5, oracle.VOCAB, (11,), generator=torch.Generator().manual_seed(1))
TARGET = torch.randint(5, oracle.VOCAB, (7,), generator=torch.Generator().manual_seed(2))
UNTIED = {"tie_word_embeddings": False}
# name → (class in transformers, changes to its configuration, our settings)
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "bert, classes": ("BertForSequenceClassification", {"num_labels": 3}, {}),
    "bert, masked words, dora": ("BertForMaskedLM", {}, {"dora": True, "targets": ["query", "value"]}),
    "roberta, classes": ("RobertaForSequenceClassification", {"num_labels": 3}, {"rank": 2}),
    "roberta, tags": ("RobertaForTokenClassification", {"num_labels": 5}, {"init": "gaussian"}),
    "bert, body": ("BertModel", {}, {}),
    "gpt2": ("GPT2LMHeadModel", {}, {}),
    "gpt2, dora": ("GPT2LMHeadModel", {}, {"dora": True, "targets": ["c_attn", "mlp.c_proj"]}),
    "llama, rslora": ("LlamaForCausalLM", {}, {"rslora": True, "alpha": 3, "targets": ["q_proj", "layers.1.mlp.*"]}),
    "llama, output and a norm whole": ("LlamaForCausalLM", UNTIED, {"modules_to_save": ["lm_head", "model.norm"]}),
    "llama, embeddings": ("LlamaForCausalLM", UNTIED, {"targets": ["embed_tokens", "o_proj"]}),
    "llama, biases, dora": ("LlamaForCausalLM", {"attention_bias": True}, {"dora": True}),
    "qwen3, classes": ("Qwen3ForSequenceClassification", {"num_labels": 3, "pad_token_id": 0}, {}),
    "t5": ("T5ForConditionalGeneration", {}, {}),
    "t5, encoder": ("T5EncoderModel", {}, {"dora": True}),
    "marian": ("MarianMTModel", {}, {"rank": 3}),
}


@pytest.fixture(autouse=True)
def english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WENMO_LANG", "en")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    for number, (hf_class, changes, _) in enumerate(CASES.values()):
        oracle.theirs(hf_class, **changes).save_pretrained(folder / str(number))
    return folder


def base(bases: Path, name: str) -> tuple[Path, nn.Module]:
    """Its folder, and the model in transformers."""
    folder = bases / str(list(CASES).index(name))
    return folder, getattr(transformers, CASES[name][0]).from_pretrained(folder, attn_implementation="eager").eval()


def shake(model: nn.Module) -> None:
    """What is trained moves away from its beginning, where B is zero and a magnitude hides nothing."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter).abs() if "magnitude" in name
                               else 0.1 * torch.randn_like(parameter))


def adapted(folder: Path, **settings: Any) -> Opened:
    opened = open_model(str(folder))
    adapt(opened, parse(LoraSettings, {"rank": 4, **settings}, "lora"), str(folder), {}, seed=0)
    return opened


def answer(us: Any) -> Tensor:
    if "seq2seq_lm" in us.heads:
        return logits(us, us(IDS, (11,), TARGET, (7,)))
    hidden_MD = us(IDS, (11,))
    if "classification" in us.heads:
        return classify(us, hidden_MD, (11,))
    if "tagging" in us.heads:
        return us.tag(hidden_MD)  # type: ignore[no-any-return]
    return logits(us, hidden_MD) if {"causal_lm", "masked_lm"} & set(us.heads) else hidden_MD


def answer_of_theirs(them: nn.Module) -> Tensor:
    encoder_decoder = getattr(them.config, "is_encoder_decoder", False) and "Encoder" not in type(them).__name__
    target = {"decoder_input_ids": TARGET[None]} if encoder_decoder and hasattr(them, "lm_head") else {}
    found = them(input_ids=IDS[None], **target)
    scores = found["logits"] if "logits" in found else found["last_hidden_state"]
    return scores[0] if scores.ndim == 3 else scores


def close(a: Tensor, b: Tensor, tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(a, b, atol=tolerance, rtol=1e-5)


# PEFT's files, and ours -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_peft_opens_ours(name: str, bases: Path, tmp_path: Path) -> None:
    folder, them = base(bases, name)
    ours = adapted(folder, **CASES[name][2])
    before = answer(open_model(str(folder)).model)
    close(answer(ours.model), before, 1e-6)  # an adapter begins by changing nothing
    shake(ours.model)
    assert (answer(ours.model) - before).abs().max() > 1e-2
    save_model(tmp_path / "adapter", ours)
    with torch.no_grad():
        theirs = peft.PeftModel.from_pretrained(them, tmp_path / "adapter").eval()
        close(answer(ours.model), answer_of_theirs(theirs.base_model.model))
    whole = sum(file.stat().st_size for file in (tmp_path / "adapter").iterdir())
    assert whole < (folder / "model.safetensors").stat().st_size
    loaded = peft.get_peft_model_state_dict(theirs)
    assert set(loaded) == set(load_tensors(tmp_path / "adapter" / "adapter_model.safetensors"))


@pytest.mark.parametrize("name", CASES)
def test_we_open_pefts(name: str, bases: Path, tmp_path: Path) -> None:
    folder, them = base(bases, name)
    settings = parse(LoraSettings, {"rank": 4, **CASES[name][2]}, "lora")
    ours = adapted(folder, **CASES[name][2])
    save_model(tmp_path / "ours", ours)
    config = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    task_type = config["task_type"]
    theirs = peft.get_peft_model(them, peft.LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, use_rslora=settings.rslora, use_dora=settings.dora,
        target_modules=config["target_modules"], modules_to_save=config["modules_to_save"], task_type=task_type,
        fan_in_fan_out=config["fan_in_fan_out"])).eval()
    shake(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    opened = open_model(str(tmp_path / "theirs"))
    with torch.no_grad():
        expected = answer_of_theirs(theirs.base_model.model)
    close(answer(opened.model), expected)
    merge(opened)
    close(answer(opened.model), expected)
    assert not [module for module in opened.model.modules() if isinstance(module, LoraLinear)]
    save_model(tmp_path / "merged", opened)
    merged = getattr(transformers, CASES[name][0]).from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        close(answer_of_theirs(merged), expected)


@pytest.mark.parametrize("name", ["llama, rslora", "llama, biases, dora", "gpt2, dora", "bert, classes", "t5"])
def test_gradients_are_pefts_and_of_nothing_else(name: str, bases: Path, tmp_path: Path) -> None:
    folder, them = base(bases, name)
    ours = adapted(folder, **CASES[name][2])
    shake(ours.model)
    save_model(tmp_path / "adapter", ours)
    theirs = peft.PeftModel.from_pretrained(them, tmp_path / "adapter", is_trainable=True).eval()
    answer(ours.model).square().sum().backward()
    answer_of_theirs(theirs.base_model.model).square().sum().backward()
    expected = {key.removeprefix("base_model.model.").replace(".default", "").replace("modules_to_save.", ""):
                parameter.grad for key, parameter in theirs.named_parameters() if parameter.grad is not None}
    found = {key: parameter.grad for key, parameter in ours.model.named_parameters() if parameter.grad is not None}
    renamed = {key.replace("vector.weight", "vector"): value for key, value in expected.items()}
    assert set(found) == set(renamed)
    for key, gradient in found.items():
        scale = float(renamed[key].abs().max())
        close(gradient, renamed[key].view_as(gradient), 2e-5 * max(scale, 1.0))


# On the disk ------------------------------------------------------------------------------------------


def test_saved_and_opened_again_it_is_the_same_adapter(bases: Path, tmp_path: Path) -> None:
    folder, _ = base(bases, "bert, classes")
    ours = adapted(folder, dropout=0.1, dora=True)
    shake(ours.model)
    save_model(tmp_path / "adapter", ours)
    again = open_model(str(tmp_path / "adapter"))
    assert torch.equal(answer(again.model), answer(ours.model))
    trained = {name for name, parameter in ours.model.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in again.model.named_parameters() if parameter.requires_grad} == trained
    save_model(tmp_path / "again", again)
    for name in ("adapter_model.safetensors", "adapter_config.json", "wenmo.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "adapter" / name).read_bytes()


def test_base_and_adapter_may_be_moved_together(bases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    shutil.copytree(base(bases, "gpt2")[0], "base")
    ours = adapted(Path("base"))
    save_model(Path("runs/a/model"), ours)
    monkeypatch.chdir(tmp_path)
    assert torch.equal(answer(open_model("here/runs/a").model), answer(ours.model))
    Path("here").rename("there")
    assert torch.equal(answer(open_model("there/runs/a").model), answer(ours.model))
    shutil.move("there/runs/a", "alone")
    with pytest.raises(ModelError, match="the base of this adapter is not to be found"):
        open_model("alone")


def test_another_base_is_refused(bases: Path, tmp_path: Path) -> None:
    shutil.copytree(base(bases, "gpt2")[0], tmp_path / "base")
    ours = adapted(tmp_path / "base")
    save_model(tmp_path / "adapter", ours)
    with torch.no_grad():
        other = open_model(str(tmp_path / "base"))
        other.model.transformer.wte.weight[3, 3] += 1e-3
    save_model(tmp_path / "base", other)
    with pytest.raises(ModelError, match="another model"):
        open_model(str(tmp_path / "adapter"))


def test_no_adapter_on_an_adapter(bases: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "adapter", adapted(base(bases, "gpt2")[0]))
    with pytest.raises(ModelError, match="an adapter needs a whole model below it"):
        adapted(tmp_path / "adapter")


def test_for_other_heads_an_adapter_is_a_whole_model(bases: Path, tmp_path: Path) -> None:
    ours = adapted(base(bases, "bert, classes")[0])
    shake(ours.model)
    save_model(tmp_path / "adapter", ours)
    other = open_model(str(tmp_path / "adapter"), heads={"tagging": 4})
    assert other.adapter is None
    assert all(parameter.requires_grad for parameter in other.model.parameters())
    close(other.model(IDS, (11,)), ours.model(IDS, (11,)))


@pytest.mark.parametrize("change", [{"peft_type": "LOHA"}, {"bias": "all"}, {"alpha_pattern": {"q_proj": 3}}])
def test_adapters_of_another_kind_are_refused(change: dict[str, Any], bases: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "adapter", adapted(base(bases, "gpt2")[0]))
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ModelError, match=f"`{next(iter(change))}: "):
        open_model(str(tmp_path / "adapter"))


def test_a_grown_vocabulary_is_learnt_whole_and_laid_over_the_base(bases: Path, tmp_path: Path) -> None:
    for name, grown in (("llama, rslora", ["model.embed_tokens.weight"]),
                        ("llama, embeddings", ["lm_head.weight", "model.embed_tokens.weight"])):
        folder, _ = base(bases, name)
        ours = open_model(str(folder))
        ours.model = with_vocabulary(ours.model, oracle.VOCAB + 3)
        ours.initialised = grown
        adapt(ours, LoraSettings(rank=2), str(folder), {"vocab_size": oracle.VOCAB + 3}, seed=0)
        assert ours.adapter is not None
        assert sorted(ours.adapter.whole) == grown
        shake(ours.model)
        save_model(tmp_path / name, ours)
        again = open_model(str(tmp_path / name))
        assert answer(again.model).shape == (11, oracle.VOCAB + 3)
        assert torch.equal(answer(again.model), answer(ours.model))


# Settings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "settings", "message"), [
    ("llama, rslora", {"targets": ["qproj"]}, r"matches `qproj`(.|\n)*did you mean `q_proj`"),
    ("llama, rslora", {"targets": ["norm"]}, r"`model.norm` \(RMSNorm\) cannot be adapted"),
    ("llama, rslora", {"targets": ["embed_tokens"]}, r"`model.embed_tokens` \(Embedding\) cannot be adapted"),  # tied
    ("llama, output and a norm whole", {"targets": ["lm_head"]}, r"`lm_head` \(Linear\) cannot be adapted"),
    ("llama, embeddings", {"targets": ["embed_tokens"], "dora": True}, "`dora` has no form for embeddings"),
    ("llama, embeddings", {"targets": ["embed_tokens"], "dropout": 0.1}, "`dropout` does nothing"),
    ("llama, rslora", {"rank": 33}, r"rank 33 is more than the 32 that model.layers.0.self_attn.k_proj 32×48 has"),
    ("bert, classes", {"targets": ["classifier"]}, "`classifier` is trained whole"),
    ("bert, classes", {"modules_to_save": ["pooller"]}, r"no module(.|\n)*did you mean `pooler`"),
])
def test_what_cannot_be_adapted_is_said(name: str, settings: dict[str, Any], message: str, bases: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        adapted(base(bases, name)[0], **settings)


def test_left_out_targets_are_all_linear_maps_of_the_layers(bases: Path) -> None:
    ours = adapted(base(bases, "llama, rslora")[0])
    linear = {name for name, module in ours.model.named_modules() if isinstance(module, LoraLinear)}
    assert len(linear) == 3 * 7
    trained = {name for name, parameter in ours.model.named_parameters() if parameter.requires_grad}
    assert trained == {f"{name}.lora_{part}.weight" for name in linear for part in "AB"}


def test_where_an_adapter_begins_is_of_the_seed_and_the_module(bases: Path) -> None:
    folder = base(bases, "llama, rslora")[0]
    name = "model.layers.1.self_attn.q_proj.lora_A.weight"
    one, few = adapted(folder), adapted(folder, targets=["layers.1.self_attn.*"])
    assert torch.equal(one.model.get_parameter(name), few.model.get_parameter(name))
    other = open_model(str(folder))
    adapt(other, LoraSettings(rank=4), str(folder), {}, seed=1)
    assert not torch.equal(one.model.get_parameter(name), other.model.get_parameter(name))


def test_dropout_acts_in_training_alone(bases: Path) -> None:
    ours = adapted(base(bases, "llama, rslora")[0], dropout=0.5)
    shake(ours.model)
    still = answer(ours.model)
    torch.manual_seed(0)
    moved = answer(ours.model.train())
    torch.manual_seed(0)
    assert torch.equal(answer(ours.model), moved)
    assert not torch.equal(moved, still)
    assert torch.equal(answer(ours.model.eval()), still)


def far(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("name", ["llama, biases, dora", "gpt2", "bert, classes", "t5", "marian"])
def test_a_frozen_base_in_bf16_computes_as_its_masters_would(name: str, bases: Path) -> None:
    """The matrices are cast at each use or once: the same numbers, but for embeddings that are summed in fp32."""
    ours = adapted(base(bases, name)[0], **CASES[name][2])
    shake(ours.model)
    ours.model.compute_dtype = torch.bfloat16
    expected = answer(ours.model)
    expected.square().mean().backward()
    gradients = {key: parameter.grad for key, parameter in ours.model.named_parameters() if parameter.grad is not None}
    ours.model.zero_grad()
    bytes_before = sum(parameter.nbytes for parameter in ours.model.parameters())
    round_frozen(ours.model, torch.bfloat16)
    assert sum(parameter.nbytes for parameter in ours.model.parameters()) < 0.75 * bytes_before
    found = answer(ours.model)
    found.square().mean().backward()
    assert far(found.detach(), expected.detach()) < 0.03
    ends = dict(ours.model.named_parameters())
    assert all(ends[key].dtype == torch.float32 for key in gradients)
    assert far(*(torch.cat([gradient.flatten() for gradient in each])
                 for each in ([ends[key].grad for key in gradients], gradients.values()))) < 0.1


# Its own backward -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["linear", "conv", "dora"])
def test_the_backward_is_autograds(kind: str) -> None:
    """With dropout: the mask that the backward draws again is the forward's."""
    torch.manual_seed(0)
    base = Conv1D(6, 5) if kind == "conv" else nn.Linear(6, 5)
    module = LoraLinear(base.requires_grad_(False), LowRank(2, 0.7, dropout=0.3, dora=kind == "dora"))
    module.initialise("gaussian", torch.Generator().manual_seed(1))
    shake(module)
    x = torch.randn(40, 6, requires_grad=True)
    module.weight.data.normal_()

    torch.manual_seed(2)
    out = module(x)
    torch.autograd.backward(out.square().sum())
    found = [x.grad, *(parameter.grad for parameter in module.parameters() if parameter.requires_grad)]

    x.grad = None
    module.zero_grad()
    torch.manual_seed(2)
    kept = drop(torch.ones_like(x), kept_bits(x.shape, 0.3), 0.3)
    weight = module.weight.t() if kind == "conv" else module.weight
    product = x @ weight.t() + 0.7 * (x * kept) @ module.lora_A.weight.t() @ module.lora_B.weight.t()
    if kind == "dora":
        lengths = (weight + 0.7 * module.lora_B.weight @ module.lora_A.weight).norm(dim=1).detach()
        product = product * (module.lora_magnitude_vector / lengths)
    expected_out = product + module.bias
    close(out, expected_out)
    torch.autograd.backward(expected_out.square().sum())
    expected = [x.grad, *(parameter.grad for parameter in module.parameters() if parameter.requires_grad)]
    assert len(found) == (4 if kind == "dora" else 3)
    for mine, autograds in zip(found, expected, strict=True):
        assert mine is not None
        assert autograds is not None
        torch.testing.assert_close(mine, autograds, atol=1e-4, rtol=1e-5)


def test_little_is_kept_for_the_backward() -> None:
    """The input, which neighbours keep too; neither the mask nor what it made of the input."""
    module = LoraLinear(nn.Linear(64, 64).requires_grad_(False), LowRank(2, 0.7, dropout=0.3))
    kept: dict[int, int] = {}

    def count(value: Tensor) -> Tensor:
        kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    x = torch.randn(1000, 64)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda value: value):
        module(x)
    del kept[x.untyped_storage().data_ptr()]
    assert sum(kept.values()) < 0.2 * x.numel() * 4
