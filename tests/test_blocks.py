"""What models are built from, and what only some of them have: segments, next sentence, rotary frequencies, taps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from oracle import CONFIGS, LLAMAS, ours, theirs
from test_parity import LENGTHS, close, flat_of, mean_loss, padded, same_gradients, sequences
from wenmo.models import logits
from wenmo.models.llama import LlamaConfig
from wenmo.nn.attend import Packed
from wenmo.nn.padding import positions_of
from wenmo.nn.rope import Rope


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn", "llama3", "longrope"])
def test_rope_frequencies_equal_transformers(kind: str) -> None:
    them = theirs("LlamaForCausalLM", **LLAMAS[kind]).config
    us = LlamaConfig(**{**CONFIGS["llama"], **LLAMAS[kind]})
    rope = Rope(us.head_width, us.rope_theta, us.max_position_embeddings, us.rope_scaling)
    for length in (4, 40):
        expected, factor = ROPE_INIT_FUNCTIONS[kind](them, torch.device("cpu"), seq_len=length)
        cos, _ = rope.cos_sin(torch.arange(length), torch.float32)
        angle = torch.arange(length)[:, None].float() * torch.cat((expected, expected))
        close(cos[:, 0], angle.cos() * factor)


def test_bert_with_segments() -> None:
    them = theirs("BertForMaskedLM")
    us = ours(them)
    rows = sequences()
    ids, mask = padded(rows, "right")
    segments = (ids % 2) * mask
    with torch.no_grad():
        out = them(ids, attention_mask=mask, token_type_ids=segments)
        hidden = us(torch.cat(rows), LENGTHS, segments_M=flat_of(segments, mask))
    close(logits(us, hidden), flat_of(out.logits, mask))


def test_bert_pretraining_loss_and_gradients() -> None:
    them = theirs("BertForPreTraining")
    us = ours(them)
    rows = sequences()
    ids, mask = padded(rows, "right")
    labels = torch.where((ids % 3 == 0) & mask.bool(), ids, -100)
    following = torch.tensor([0, 1, 1, 0, 1, 0])
    loss = them(ids, attention_mask=mask, labels=labels, next_sentence_label=following).loss
    loss.backward()
    hidden = us(torch.cat(rows), LENGTHS)
    mine = mean_loss(us, hidden, flat_of(labels, mask)) + F.cross_entropy(us.next_sentence(hidden, LENGTHS), following)
    mine.backward()
    close(mine, loss)
    same_gradients(us, them)


def test_positions_restart_with_each_sequence() -> None:
    assert positions_of((3, 1, 2)).tolist() == [0, 1, 2, 0, 0, 1]


def test_taps_see_and_replace() -> None:
    us = ours(theirs("LlamaForCausalLM"))
    seen = []
    row = sequences()[0]

    def silence(name: str, value: Tensor) -> Tensor:
        seen.append(name)
        return torch.zeros_like(value) if name == "embeddings" else value

    with torch.no_grad():
        out = us(row, (len(row),), taps=silence)
    assert seen == ["embeddings", "layers.0", "layers.1", "layers.2"]
    assert torch.equal(out, torch.zeros_like(out))


def test_embeddings_in_place_of_ids_carry_gradients() -> None:
    us = ours(theirs("BertForMaskedLM"))
    row = sequences()[0]
    embeddings = us.bert.embeddings.word_embeddings(row).detach().requires_grad_()
    attend = Packed((len(row),), causal=False)
    out = us.body(embeddings, positions_of((len(row),)), attend)
    with torch.no_grad():
        close(out, us(row, (len(row),)))
    out.sum().backward()
    assert embeddings.grad is not None
    assert embeddings.grad.abs().sum() > 0
