"""Products in few bits, and chunks of prompts that share them."""

from __future__ import annotations

import pytest
import torch

from tests import test_engine as at_hand
from wenmo import device
from wenmo.engine import Request
from wenmo.engine.packed import READ_ROWS, Packed
from wenmo.engine.prefix import SHARE
from wenmo.generate import Sampling

tokenizer = at_hand.tokenizer


def product(scores: bool = False) -> tuple[Packed, torch.Tensor]:
    weight_OI = torch.randn(96, 64, generator=torch.Generator().manual_seed(0))
    return Packed(weight_OI, None, "int8", (96,), scores=scores), weight_OI


@pytest.mark.parametrize("size", [1e-30, 1e-3, 1.0, 1e30])
def test_eight_bits_are_near_whatever_the_size(size) -> None:
    packed, weight_OI = product()
    x_MI = (torch.randn(9, 64, generator=torch.Generator().manual_seed(1)) * size).bfloat16()
    exact_MO = x_MI.float() @ weight_OI.t()
    error_M = (packed(x_MI).float() - exact_MO).abs().amax(1) / exact_MO.abs().amax(1)
    assert error_M.max() < 0.02


def test_rows_of_zeros_and_of_no_numbers_stay_what_they_are() -> None:
    packed, _ = product()
    x_MI = torch.ones(4, 64).bfloat16()
    alone = packed(x_MI[:1])
    x_MI[1], x_MI[2, 5] = 0, torch.nan
    out_MO = packed(x_MI)
    assert torch.equal(out_MO[:1], alone)
    assert not out_MO[1].any()
    assert out_MO[2].isnan().all()
    assert torch.equal(out_MO[3:], alone)


def test_scores_are_finer_than_bf16() -> None:
    packed, _ = product(scores=True)
    scores_MV = packed(torch.randn(3, 64).bfloat16())
    assert scores_MV.dtype == torch.float32
    assert not torch.equal(scores_MV, scores_MV.bfloat16().float())


@pytest.mark.parametrize("format", ["bf16", "int8"])
def test_chunks_of_several_prompts_are_read_in_one_call(format, tokenizer, monkeypatch) -> None:
    """A guard against a quiet fall back: that it changes no bit is tested in test_engine.py."""
    if not device.has_native_bf16(torch.device("cpu")):
        pytest.skip("this processor has no bf16")
    busy = at_hand.engine(at_hand.model(), tokenizer, format=format, native="off")
    sizes, read = [], busy.runner.read
    monkeypatch.setattr(busy.runner, "read", lambda pieces: sizes.append(len(pieces)) or read(pieces))
    busy.generate([Request((first,) * length, Sampling(max_new_tokens=2))
                   for first, length in ((20, 3), (21, 64), (22, 130), (23, 5))])
    assert sizes == [READ_ROWS // 64, 2]
    assert busy.num_read == 3 + 64 + 130 + 5


def test_who_comes_at_once_with_one_beginning_reads_it_once(tokenizer) -> None:
    busy = at_hand.engine(at_hand.model(), tokenizer)
    common = tuple(range(20, 84))
    asked = [Request((*common, last), Sampling(max_new_tokens=4)) for last in (90, 91, 92, 93)]
    found = [done.ids for done in busy.generate(asked)]
    assert busy.prefixes.hits_tokens == 3 * 64
    assert busy.num_read == 64 + 4
    solo = [at_hand.engine(at_hand.model(), tokenizer, prefix_tokens=0).generate([each])[0].ids for each in asked]
    assert found == solo


def test_a_share_of_the_memory_is_for_beginnings(tokenizer, monkeypatch) -> None:
    token_bytes = 2 * 2 * 2 * 32 * 4  # layers, keys and values, heads, width, fp32
    monkeypatch.setattr(device, "memory_bytes", lambda: 3 * 64 * token_bytes * SHARE + 1)
    busy = at_hand.engine(at_hand.model(), tokenizer)
    assert busy.cache_bytes == token_bytes * (32768 + 3 * 64)
    busy.generate([Request((first,) * 130, Sampling(max_new_tokens=2)) for first in (20, 21, 22)])
    assert len(busy.prefixes.blocks) == 3
