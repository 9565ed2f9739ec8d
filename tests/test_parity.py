"""Every architecture computes what transformers computes: forward padded and packed, cached decode, loss, gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from oracle import VOCAB, ours, theirs
from wenmo.models import logits
from wenmo.models.llama import LlamaConfig
from wenmo.nn.attend import Cache, Cross, Packed
from wenmo.nn.padding import positions_of

LENGTHS = (9, 4, 13, 13, 1, 7)
TOLERANCE = 1e-5


def sequences(seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(5, VOCAB, (length,), generator=generator) for length in LENGTHS]


def padded(rows: list[Tensor], side: str) -> tuple[Tensor, Tensor]:
    """ids_BT and mask_BT with the padding on one side."""
    longest = max(len(row) for row in rows)
    pads = [(longest - len(row), 0) if side == "left" else (0, longest - len(row)) for row in rows]
    ids = torch.stack([F.pad(row, pad, value=0) for row, pad in zip(rows, pads, strict=True)])
    mask = torch.stack([F.pad(torch.ones_like(row), pad) for row, pad in zip(rows, pads, strict=True)])
    return ids, mask


def flat_of(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    return values_BT[mask_BT.bool()]


def close(a: Tensor, b: Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(a, b, atol=tolerance, rtol=1e-5)


# Decoder ----------------------------------------------------------------------------------------------

LLAMAS = {
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


# Frequencies that change with the longest length so far: cached keys keep the old ones, by definition.
OF_THE_LENGTH = ("dynamic", "longrope")


def pair(kind: str) -> tuple[nn.Module, nn.Module]:
    model = theirs("LlamaForCausalLM", **LLAMAS[kind])
    return model, ours(model, {"causal_lm": 0})


@pytest.fixture(params=LLAMAS, scope="module")
def llamas(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module]:
    return pair(request.param)


@pytest.mark.parametrize("side", ["left", "right"])
def test_llama_forward_padded_on_either_side(llamas: tuple[nn.Module, nn.Module], side: str) -> None:
    them, us = llamas
    rows = sequences()
    ids, mask = padded(rows, side)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = flat_of(them(ids, attention_mask=mask, position_ids=positions).logits, mask)
        got = logits(us, us(torch.cat(rows), LENGTHS))
    close(got, expected)


def test_llama_packed_equals_each_alone() -> None:
    them = theirs("LlamaForCausalLM")
    us = ours(them, {"causal_lm": 0})
    rows = sequences()
    with torch.no_grad():
        packed = us(torch.cat(rows), LENGTHS)
        alone = torch.cat([us(row, (len(row),)) for row in rows])
    close(packed, alone)


@pytest.mark.parametrize("kind", [kind for kind in LLAMAS if kind not in OF_THE_LENGTH])
def test_llama_decodes_with_a_cache_token_by_token(kind: str) -> None:
    """Ragged prefill, then one token a row a step, held against transformers' own cached decode of each row alone."""
    them, us = pair(kind)
    rows, steps = sequences(), 5
    following = sequences(2)
    cache = Cache(len(rows), max(LENGTHS) + steps)
    with torch.no_grad():
        attend = cache.extend(LENGTHS)
        hidden = us.body(torch.cat(rows), attend.positions_M, attend)
        ends = torch.tensor(LENGTHS).cumsum(0) - 1
        ours_per_step = [logits(us, hidden[ends])]
        tokens = torch.stack([F.pad(row, (0, 20), value=7)[:steps] for row in following])
        for t in range(steps):
            attend = cache.extend([1] * len(rows))
            ours_per_step.append(logits(us, us.body(tokens[:, t], attend.positions_M, attend)))
        for b, row in enumerate(rows):
            out = them(row[None], use_cache=True)
            close(ours_per_step[0][b], out.logits[0, -1])
            for t in range(steps):
                out = them(tokens[b, t].view(1, 1), past_key_values=out.past_key_values, use_cache=True)
                close(ours_per_step[t + 1][b], out.logits[0, -1])


def test_llama_loss_and_gradients(llamas: tuple[nn.Module, nn.Module]) -> None:
    from wenmo.nn.cross_entropy import linear_cross_entropy

    them, us = llamas
    ids = torch.stack([row[:4] for row in sequences() if len(row) >= 4])
    them.zero_grad()
    loss = them(ids, labels=ids).loss
    loss.backward()
    us.zero_grad()
    hidden = us(ids.flatten(), (4,) * len(ids))
    targets = F.pad(ids[:, 1:], (0, 1), value=-100).flatten()
    weight, bias = us.lm_output()
    mine = linear_cross_entropy(us.lm_features(hidden), weight, bias, targets) / (targets != -100).sum()
    mine.backward()
    close(mine, loss)
    expected = {name: p.grad for name, p in them.named_parameters()}
    for name, parameter in us.named_parameters():
        close(parameter.grad, expected[name])


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn", "llama3", "longrope"])
def test_rope_frequencies_equal_transformers(kind: str) -> None:
    them = theirs("LlamaForCausalLM", **LLAMAS[kind]).config
    us = LlamaConfig(**{**CONFIG_OF_US, **LLAMAS[kind]})
    from wenmo.nn.rope import Rope

    rope = Rope(us.head_width, us.rope_theta, us.max_position_embeddings, us.rope_scaling)
    for length in (4, 40):
        expected, factor = ROPE_INIT_FUNCTIONS[kind](them, torch.device("cpu"), seq_len=length)
        cos, _ = rope.cos_sin(torch.arange(length), torch.float32)
        angle = torch.arange(length)[:, None].float() * torch.cat((expected, expected))
        close(cos[:, 0], angle.cos() * factor)


CONFIG_OF_US = dict(hidden_size=48, num_attention_heads=6, num_key_value_heads=2, head_dim=16,
                    max_position_embeddings=64, rope_theta=500.0)


def test_llama_classification() -> None:
    them = theirs("LlamaForSequenceClassification", num_labels=3, pad_token_id=0)
    us = ours(them, {"classification": 3})
    rows = sequences()
    ids, mask = padded(rows, "right")
    with torch.no_grad():
        close(us.classify(us(torch.cat(rows), LENGTHS), LENGTHS), them(ids, attention_mask=mask).logits)


# Encoder ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_bert_masked_lm_padded_on_either_side(side: str) -> None:
    them = theirs("BertForMaskedLM")
    us = ours(them, {"masked_lm": 0})
    rows = sequences()
    ids, mask = padded(rows, side)
    segments = (ids % 2) * mask
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        out = them(ids, attention_mask=mask, token_type_ids=segments, position_ids=positions)
        hidden = us(torch.cat(rows), LENGTHS, segments_M=flat_of(segments, mask))
    close(logits(us, hidden), flat_of(out.logits, mask))


def test_bert_pretraining_loss_and_gradients() -> None:
    from wenmo.nn.cross_entropy import linear_cross_entropy

    them = theirs("BertForPreTraining")
    us = ours(them, {"masked_lm": 0, "next_sentence": 2})
    rows = sequences()
    ids, mask = padded(rows, "right")
    labels = torch.where((ids % 3 == 0) & mask.bool(), ids, -100)
    following = torch.tensor([0, 1, 1, 0, 1, 0])
    loss = them(ids, attention_mask=mask, labels=labels, next_sentence_label=following).loss
    loss.backward()
    hidden = us(torch.cat(rows), LENGTHS)
    targets = flat_of(labels, mask)
    weight, bias = us.lm_output()
    mine = linear_cross_entropy(us.lm_features(hidden), weight, bias, targets) / (targets != -100).sum()
    mine = mine + F.cross_entropy(us.next_sentence(hidden, LENGTHS), following)
    mine.backward()
    close(mine, loss)
    expected = {name: p.grad for name, p in them.named_parameters()}
    for name, parameter in us.named_parameters():
        close(parameter.grad, expected[name])


def test_bert_classification() -> None:
    them = theirs("BertForSequenceClassification", num_labels=5)
    us = ours(them, {"classification": 5})
    rows = sequences()
    ids, mask = padded(rows, "right")
    with torch.no_grad():
        close(us.classify(us(torch.cat(rows), LENGTHS), LENGTHS), them(ids, attention_mask=mask).logits)


# Encoder–decoder --------------------------------------------------------------------------------------

T5S = {"v1.0": {}, "v1.1": dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False)}
TARGET_LENGTHS = (5, 8, 3, 3, 6, 1)


@pytest.fixture(params=T5S, scope="module")
def t5s(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module]:
    model = theirs("T5ForConditionalGeneration", **T5S[request.param])
    return model, ours(model, {"seq2seq_lm": 0})


def targets() -> list[Tensor]:
    return [torch.randint(5, VOCAB, (length,), generator=torch.Generator().manual_seed(length))
            for length in TARGET_LENGTHS]


@pytest.mark.parametrize("side", ["left", "right"])
def test_t5_forward(t5s: tuple[nn.Module, nn.Module], side: str) -> None:
    them, us = t5s
    ids, mask = padded(sequences(), side)
    target_ids, target_mask = padded(targets(), "right")
    with torch.no_grad():
        out = them(ids, attention_mask=mask, decoder_input_ids=target_ids, decoder_attention_mask=target_mask)
        hidden = us(torch.cat(sequences()), LENGTHS, torch.cat(targets()), TARGET_LENGTHS)
    close(logits(us, hidden), flat_of(out.logits, target_mask), 2e-5)


def test_t5_decodes_with_a_cache(t5s: tuple[nn.Module, nn.Module]) -> None:
    _, us = t5s
    with torch.no_grad():
        whole = us(torch.cat(sequences()), LENGTHS, torch.cat(targets()), TARGET_LENGTHS)
        memory = us.encode(torch.cat(sequences()), Packed(LENGTHS, causal=False))
        cache = Cache(len(LENGTHS), 10)
        kept: dict[int, tuple[Tensor, Tensor]] = {}
        padded_targets, mask = padded(targets(), "right")
        steps = []
        for t in range(max(TARGET_LENGTHS)):
            attend = cache.extend([1] * len(LENGTHS))
            cross = Cross([1] * len(LENGTHS), LENGTHS, kept=kept)
            steps.append(us.body(padded_targets[:, t], attend.positions_M, attend, cross=cross, memory_MD=memory))
    close(flat_of(torch.stack(steps, 1), mask), whole)


def test_t5_gradients(t5s: tuple[nn.Module, nn.Module]) -> None:
    them, us = t5s
    ids, mask = padded(sequences(), "right")
    target_ids, target_mask = padded(targets(), "right")
    labels = torch.where(target_mask.bool(), (target_ids * 7) % VOCAB, -100)
    them.zero_grad()
    us.zero_grad()
    loss = them(ids, attention_mask=mask, decoder_input_ids=target_ids, labels=labels).loss
    loss.backward()
    hidden = us(torch.cat(sequences()), LENGTHS, torch.cat(targets()), TARGET_LENGTHS)
    mine = F.cross_entropy(logits(us, hidden), flat_of(labels, target_mask))
    mine.backward()
    close(mine, loss)
    expected = {name: p.grad for name, p in them.named_parameters()}
    for name, parameter in us.named_parameters():
        close(parameter.grad, expected[name], 3e-5)


# Blocks -----------------------------------------------------------------------------------------------


def test_positions_restart_with_each_sequence() -> None:
    assert positions_of((3, 1, 2)).tolist() == [0, 1, 2, 0, 0, 1]


def test_taps_see_and_replace() -> None:
    us = ours(theirs("LlamaForCausalLM"), {"causal_lm": 0})
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
    us = ours(theirs("BertForMaskedLM"), {"masked_lm": 0})
    row = sequences()[0]
    embeddings = us.bert.embeddings.word_embeddings(row).detach().requires_grad_()
    attend = Packed((len(row),), causal=False)
    out = us.body(embeddings, positions_of((len(row),)), attend)
    with torch.no_grad():
        close(out, us(row, (len(row),)))
    out.sum().backward()
    assert embeddings.grad is not None
    assert embeddings.grad.abs().sum() > 0
