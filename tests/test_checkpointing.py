"""Checkpointed activations: every family's gradients bit by bit, with dropout and adapters, in less memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import small_data
from small_data import recipe
from wenmo.device import torch_rng
from wenmo.models import create, logits
from wenmo.models.bert import BertConfig
from wenmo.models.config import ModelConfig
from wenmo.models.gpt2 import GPT2Config
from wenmo.models.llama import LlamaConfig
from wenmo.models.lora import LoraSettings, put_on
from wenmo.models.marian import MarianConfig
from wenmo.models.mistral import MistralConfig
from wenmo.models.qwen2 import Qwen2Config
from wenmo.models.qwen3 import Qwen3Config
from wenmo.models.roberta import RobertaConfig
from wenmo.models.t5 import T5Config
from wenmo.nn.block import Block, checkpoint_activations, recomputed
from wenmo.nn.dropout import dropout
from wenmo.stages.library import train
from wenmo.tensors import load_tensors

VOCAB = 40
LENGTHS, TARGET_LENGTHS = (9, 4, 9), (5, 3, 6)
ROTARY = {"vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
          "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32, "attention_dropout": 0.1}
ENCODER = {"vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
           "num_attention_heads": 4, "max_position_embeddings": 32}
FAMILIES: dict[str, tuple[ModelConfig, str]] = {
    "bert": (BertConfig(**ENCODER), "masked_lm"),
    "roberta": (RobertaConfig(**ENCODER), "masked_lm"),
    "gpt2": (GPT2Config(vocab_size=VOCAB, n_embd=16, n_layer=3, n_head=4, n_positions=32), "causal_lm"),
    "llama": (LlamaConfig(**ROTARY), "causal_lm"),
    "mistral": (MistralConfig(**ROTARY, sliding_window=3), "causal_lm"),
    "qwen2": (Qwen2Config(**ROTARY), "causal_lm"),
    "qwen3": (Qwen3Config(**ROTARY), "causal_lm"),
    "t5": (T5Config(vocab_size=VOCAB, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4,
                    decoder_start_token_id=0), "seq2seq_lm"),
    "marian": (MarianConfig(vocab_size=VOCAB, d_model=16, encoder_layers=2, decoder_layers=2,
                            encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=24,
                            decoder_ffn_dim=24, max_position_embeddings=32, pad_token_id=0,
                            decoder_start_token_id=0), "seq2seq_lm"),
}


def learnt(name: str, checkpointed: bool, lora: LoraSettings | None, dtype: torch.dtype,
           backwards: int = 1) -> tuple[Tensor, dict[str, Tensor]]:
    """The scores in training mode, and all gradients."""
    config, head = FAMILIES[name]
    model: Any = create(config, {head: 0}, torch_rng("checkpointing"))
    if lora is not None:
        put_on(model, lora, (), seed=0)
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:  # at zero it would hide half of the gradients
                parameter.data.normal_(generator=torch_rng("up", parameter_name))
    model.compute_dtype = dtype
    model.train()
    if checkpointed:
        assert checkpoint_activations(model) == (4 if head == "seq2seq_lm" else 3)
    ids = torch.randint(5, VOCAB, (sum(LENGTHS),), generator=torch_rng("ids"))
    target = (ids[: sum(TARGET_LENGTHS)], TARGET_LENGTHS) if head == "seq2seq_lm" else ()
    torch.manual_seed(5)
    scores = logits(model, model(ids, LENGTHS, *target))
    before = torch.get_rng_state()
    for left in reversed(range(backwards)):
        torch.autograd.backward(scores.logsumexp(-1).sum(), retain_graph=left > 0)
    assert torch.equal(torch.get_rng_state(), before)  # what is drawn next is what it would have been
    gradients = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.grad is not None}
    return scores.detach(), gradients


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2, dropout=0.2)], ids=["whole", "lora"])
@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_are_equal_bit_by_bit(name: str, lora: LoraSettings | None, dtype: torch.dtype) -> None:
    plain_scores, plain = learnt(name, False, lora, dtype)
    scores, gradients = learnt(name, True, lora, dtype)
    assert torch.equal(scores, plain_scores)
    assert len(plain) > 6
    assert {key for key, value in gradients.items() if value.abs().max() > 0} == {
        key for key, value in plain.items() if value.abs().max() > 0}
    assert [key for key in plain if not torch.equal(gradients[key], plain[key])] == []


def test_a_graph_may_be_gone_through_twice() -> None:
    """As adversarial training does."""
    _, plain = learnt("llama", False, None, torch.float32, backwards=2)
    _, twice = learnt("llama", True, None, torch.float32, backwards=2)
    assert [key for key in plain if not torch.equal(twice[key], plain[key])] == []


class Deep(Block):
    """Ten times the memory of its input is kept for a backward."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(10):
            x = dropout(torch.sin(x), 0.1)
        return x


def test_only_the_inputs_are_kept() -> None:
    def bytes_kept(model: nn.Module) -> int:
        kept: dict[int, int] = {}

        def count(value: Tensor) -> Tensor:
            kept[value.data_ptr()] = value.numel() * value.element_size()
            return value

        with torch.autograd.graph.saved_tensors_hooks(count, lambda value: value):
            model(torch.ones(1000, requires_grad=True))
        return sum(kept.values())

    model = nn.Sequential(*(Deep() for _ in range(4)))
    assert bytes_kept(model) > 4 * 10 * 4000
    checkpoint_activations(model)
    assert bytes_kept(model) == 0  # nothing at all reaches the hooks outside: inputs are held by the blocks
    model.eval()
    assert bytes_kept(model) > 0  # audits and attribution go on as before


def test_the_last_product_is_not_made_again() -> None:
    calls: list[str] = []

    def called(name: str, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def noted(x: Tensor) -> Tensor:
            calls.append(name)
            return function(x)
        return noted

    sine, plus = called("sine", torch.sin), called("plus", lambda x: x + 1)
    x = torch.ones(3, requires_grad=True)
    recomputed(lambda x: plus(sine(x)), x).sum().backward()
    assert calls == ["sine", "plus", "sine"]
    assert torch.equal(x.grad, torch.cos(torch.ones(3)))


def test_a_function_that_does_something_else_the_second_time_is_noticed() -> None:
    times: list[int] = []

    def wavering(x: Tensor) -> Tensor:
        times.append(1)
        return torch.sin(x) if len(times) > 1 else torch.sin(torch.sin(x))

    with pytest.raises(AssertionError, match="something else"):
        recomputed(wavering, torch.ones(3, requires_grad=True)).sum().backward()


@pytest.mark.parametrize("changes", [(), ("train.r_drop=1",), ("train.adversarial=10%",)], ids=["", "r_drop", "fgm"])
def test_a_run_has_the_same_weights(changes: tuple[str, ...], tmp_path: Path) -> None:
    small_data.write(tmp_path)
    weights = []
    for name, more in (("plain", ()), ("checkpointed", ("train.checkpoint_activations=true",))):
        train(recipe("classification", steps=3, batch_tokens=256), *changes, *more, out=tmp_path / name,
              data_root=tmp_path)
        weights.append(load_tensors(tmp_path / name / "model" / "model.safetensors"))
    assert [name for name, value in weights[0].items() if not torch.equal(value, weights[1][name])] == []
