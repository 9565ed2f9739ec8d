"""Every architecture computes what transformers computes: forward padded and packed, cached decode, loss, gradients.

One suite for all: the tables in oracle.py say which architectures and kinds of them there are.
"""

from __future__ import annotations

import json
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oracle import (
    CLASSIFIERS,
    DECODERS,
    ENCODER_DECODERS,
    ENCODERS,
    FIRST_POSITION,
    SPANS,
    TAGGERS,
    VOCAB,
    Case,
    ours,
    theirs,
)
from wenmo.models import logits
from wenmo.nn.attend import Cache
from wenmo.nn.cross import Memory
from wenmo.nn.cross_entropy import linear_cross_entropy

LENGTHS = (9, 4, 13, 13, 1, 7)
TARGET_LENGTHS = (5, 8, 3, 3, 6, 1)
TOLERANCE = 1e-5
# The scores of an encoder–decoder's tiny random models are of the order of 10, and so are the sums behind them.
ENCODER_DECODER_TOLERANCE = 3e-5
# Frequencies that change with the longest length so far: cached keys keep the old ones, by definition.
OF_THE_LENGTH = ("llama, dynamic", "llama, longrope")


def sequences(seed: int = 1, lengths: tuple[int, ...] = LENGTHS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(5, VOCAB, (length,), generator=generator) for length in lengths]


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


@cache
def pair(hf_class: str, changes: str) -> tuple[nn.Module, nn.Module]:
    them = theirs(hf_class, **json.loads(changes))  # a dict cannot be a key of the cache, its JSON can
    return them, ours(them)


def both(case: Case) -> tuple[nn.Module, nn.Module]:
    """(theirs, ours) with the same weights and no gradients, made once."""
    them, us = pair(case[0], json.dumps(case[1]))
    them.zero_grad()
    us.zero_grad()
    return them, us


def positions_of_theirs(them: nn.Module, mask_BT: Tensor) -> Tensor:
    return (mask_BT.cumsum(1) - 1).clamp(min=0) + FIRST_POSITION.get(them.config.model_type, 0)


def same_gradients(us: nn.Module, them: nn.Module, tolerance: float = TOLERANCE) -> None:
    further = "".join(getattr(us, "nested", {}).get(type(them).__name__, ""))
    expected = {name.removeprefix(further): parameter.grad for name, parameter in them.named_parameters()}
    for name, parameter in us.named_parameters():
        close(parameter.grad, expected[name], tolerance)


def mean_loss(us: nn.Module, hidden_MD: Tensor, targets_M: Tensor) -> Tensor:
    weight, bias = us.lm_output()
    return linear_cross_entropy(us.lm_features(hidden_MD), weight, bias, targets_M) / (targets_M != -100).sum()


# Encoders and decoders --------------------------------------------------------------------------------

SINGLE_STACKS = {**ENCODERS, **DECODERS}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", SINGLE_STACKS)
def test_forward_padded_on_either_side(name: str, side: str) -> None:
    them, us = both(SINGLE_STACKS[name])
    rows = sequences()
    ids, mask = padded(rows, side)
    with torch.no_grad():
        out = them(ids, attention_mask=mask, position_ids=positions_of_theirs(them, mask))
        close(logits(us, us(torch.cat(rows), LENGTHS)), flat_of(out.logits, mask))


@pytest.mark.parametrize("name", SINGLE_STACKS)
def test_packed_equals_each_alone(name: str) -> None:
    _, us = both(SINGLE_STACKS[name])
    rows = sequences()
    if name in OF_THE_LENGTH:  # what is as long as the longest has the same frequencies
        rows = [row for row in rows if len(row) == max(LENGTHS)]
    with torch.no_grad():
        packed = us(torch.cat(rows), [len(row) for row in rows])
        alone = torch.cat([us(row, (len(row),)) for row in rows])
    close(packed, alone)


@pytest.mark.parametrize("name", [name for name in DECODERS if name not in OF_THE_LENGTH])
def test_decodes_with_a_cache_token_by_token(name: str) -> None:
    """Ragged prefill, then one token a row a step, held against transformers' own cached decode of each row alone."""
    them, us = both(DECODERS[name])
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


@pytest.mark.parametrize("name", DECODERS)
def test_next_token_loss_and_gradients(name: str) -> None:
    them, us = both(DECODERS[name])
    ids = torch.stack([row[:4] for row in sequences() if len(row) >= 4])
    loss = them(ids, labels=ids).loss
    loss.backward()
    targets = F.pad(ids[:, 1:], (0, 1), value=-100).flatten()
    mine = mean_loss(us, us(ids.flatten(), (4,) * len(ids)), targets)
    mine.backward()
    close(mine, loss)
    same_gradients(us, them)


@pytest.mark.parametrize("name", ENCODERS)
def test_masked_loss_and_gradients(name: str) -> None:
    them, us = both(ENCODERS[name])
    rows = sequences()
    ids, mask = padded(rows, "right")
    labels = torch.where((ids % 3 == 0) & mask.bool(), ids, -100)
    loss = them(ids, attention_mask=mask, position_ids=positions_of_theirs(them, mask), labels=labels).loss
    loss.backward()
    mine = mean_loss(us, us(torch.cat(rows), LENGTHS), flat_of(labels, mask))
    mine.backward()
    close(mine, loss)
    same_gradients(us, them)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classification(name: str) -> None:
    them, us = both(CLASSIFIERS[name])
    rows = sequences()
    ids, mask = padded(rows, "right")
    labels = torch.tensor([0, 1, 1, 0, 1, 0])
    out = them(ids, attention_mask=mask, position_ids=positions_of_theirs(them, mask), labels=labels)
    out.loss.backward()
    scores = us.classify(us(torch.cat(rows), LENGTHS), LENGTHS)
    F.cross_entropy(scores, labels).backward()
    close(scores, out.logits)
    same_gradients(us, them)


@pytest.mark.parametrize("name", TAGGERS)
def test_tags_of_tokens(name: str) -> None:
    them, us = both(TAGGERS[name])
    rows = sequences()
    ids, mask = padded(rows, "right")
    labels = torch.where((ids % 4 != 0) & mask.bool(), ids % 5, -100)
    places = {} if name.startswith("t5") else {"position_ids": positions_of_theirs(them, mask)}
    out = them(ids, attention_mask=mask, **places)
    F.cross_entropy(out.logits.flatten(0, 1), labels.flatten()).backward()  # not all of theirs take -100 for granted
    scores = us.tag(us(torch.cat(rows), LENGTHS))
    F.cross_entropy(scores, flat_of(labels, mask)).backward()
    tolerance = ENCODER_DECODER_TOLERANCE if name.startswith("t5") else TOLERANCE
    close(scores, flat_of(out.logits, mask), tolerance)
    same_gradients(us, them, tolerance)


@pytest.mark.parametrize("name", SPANS)
def test_beginnings_and_ends(name: str) -> None:
    them, us = both(SPANS[name])
    rows = sequences()
    ids, mask = padded(rows, "right")
    out = them(ids, attention_mask=mask, position_ids=positions_of_theirs(them, mask))
    expected = flat_of(torch.stack((out.start_logits, out.end_logits), -1), mask)
    expected.square().sum().backward()
    scores = us.spans(us(torch.cat(rows), LENGTHS))
    scores.square().sum().backward()
    close(scores, expected)
    same_gradients(us, them, 2e-4)  # of squares: the gradients are of the order of 10


# Encoder–decoders -------------------------------------------------------------------------------------


# Where positions are absolute, transformers counts from the padding on the left: nothing to be equal to.
@pytest.mark.parametrize(("name", "side"), [(name, side) for name in ENCODER_DECODERS for side in ("left", "right")
                                            if side == "right" or not name.startswith("marian")])
def test_encoder_decoder_forward(name: str, side: str) -> None:
    them, us = both(ENCODER_DECODERS[name])
    sources, targets = sequences(), sequences(3, TARGET_LENGTHS)
    ids, mask = padded(sources, side)
    target_ids, target_mask = padded(targets, "right")
    with torch.no_grad():
        out = them(ids, attention_mask=mask, decoder_input_ids=target_ids, decoder_attention_mask=target_mask)
        hidden = us(torch.cat(sources), LENGTHS, torch.cat(targets), TARGET_LENGTHS)
    close(logits(us, hidden), flat_of(out.logits, target_mask), ENCODER_DECODER_TOLERANCE)


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_encoder_decoder_decodes_with_a_cache_token_by_token(name: str) -> None:
    """Ragged sources encoded once, then a token a row a step, against transformers' cached decode of each row alone."""
    them, us = both(ENCODER_DECODERS[name])
    sources, targets = sequences(), sequences(3, TARGET_LENGTHS)
    with torch.no_grad():
        memory = Memory(us.encode(torch.cat(sources), LENGTHS), LENGTHS)
        cache = Cache(len(LENGTHS), max(TARGET_LENGTHS))
        padded_targets, mask = padded(targets, "right")
        steps = []
        for t in range(max(TARGET_LENGTHS)):
            attend = cache.extend([1] * len(LENGTHS))
            cross = memory.cross([1] * len(LENGTHS))
            steps.append(logits(us, us.body(padded_targets[:, t], attend.positions_M, attend, cross=cross)))
        expected = []
        for source, target in zip(sources, targets, strict=True):
            encoded, kept = them.get_encoder()(source[None]), None
            for token in target:
                out = them(encoder_outputs=encoded, decoder_input_ids=token.view(1, 1), past_key_values=kept,
                           use_cache=True)
                kept = out.past_key_values
                expected.append(out.logits[0, 0])
    close(flat_of(torch.stack(steps, 1), mask), torch.stack(expected), ENCODER_DECODER_TOLERANCE)


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_encoder_decoder_loss_and_gradients(name: str) -> None:
    them, us = both(ENCODER_DECODERS[name])
    sources, targets = sequences(), sequences(3, TARGET_LENGTHS)
    ids, mask = padded(sources, "right")
    target_ids, target_mask = padded(targets, "right")
    labels = torch.where(target_mask.bool(), (target_ids * 7) % VOCAB, -100)
    loss = them(ids, attention_mask=mask, decoder_input_ids=target_ids, labels=labels).loss
    loss.backward()
    hidden = us(torch.cat(sources), LENGTHS, torch.cat(targets), TARGET_LENGTHS)
    mine = F.cross_entropy(logits(us, hidden), flat_of(labels, target_mask))
    mine.backward()
    close(mine, loss)
    same_gradients(us, them, ENCODER_DECODER_TOLERANCE)
