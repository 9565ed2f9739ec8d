"""The CRF against all tag sequences one by one, its gradient against small differences."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from wenmo.nn.crf import CRF, FORBIDDEN, Rules, viterbi
from wenmo.text.tagging_schemes import all_tags, may_follow, num_repairs

TAGS = all_tags(["X"], "bmes")  # O B-X M-X E-X S-X
C = len(TAGS)
RULES = Rules.of(TAGS, lambda before, after: may_follow(before, after, "bmes"))
FREE = Rules.of(TAGS, lambda before, after: True)
LENGTHS = (4, 1, 3)


def made(seed: int = 0) -> tuple[CRF, Tensor]:
    """A CRF with random scores, and emissions of the three sentences."""
    generator = torch.Generator().manual_seed(seed)
    crf = CRF(C)
    with torch.no_grad():
        for parameter in crf.parameters():
            parameter.normal_(generator=generator)
    return crf, torch.randn(sum(LENGTHS), C, generator=generator)


def scores(crf: CRF, emissions_UC: Tensor, rules: Rules) -> dict[tuple[int, ...], float]:
    """Every sequence of tags and its score, summed as the formula is written."""
    learned = crf.rules().plus(rules)
    result = {}
    for path in itertools.product(range(C), repeat=len(emissions_UC)):
        total = float(learned.start[path[0]] + learned.end[path[-1]])
        total += sum(float(emissions_UC[place, tag]) for place, tag in enumerate(path))
        total += sum(float(learned.transitions[a, b]) for a, b in itertools.pairwise(path))
        result[path] = total
    return result


@pytest.mark.parametrize("rules", [RULES, FREE], ids=["rules", "free"])
def test_the_likelihood_is_that_of_summing_all_sequences(rules: Rules) -> None:
    crf, emissions = made()
    generator = np.random.default_rng(1)
    paths, expected = [], []
    for part in emissions.split(list(LENGTHS)):
        every = scores(crf, part, rules)
        allowed = [path for path, score in every.items() if score > FORBIDDEN / 2]
        path = allowed[generator.integers(len(allowed))]
        paths += list(path)
        expected.append(every[path] - float(torch.logsumexp(torch.tensor(list(every.values()), dtype=torch.double), 0)))
    found = crf.log_likelihood(emissions, torch.tensor(paths), LENGTHS, rules)
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("rules", [RULES, FREE], ids=["rules", "free"])
@pytest.mark.parametrize("seed", range(4))
def test_viterbi_finds_the_best_of_all_sequences(rules: Rules, seed: int) -> None:
    crf, emissions = made(seed)
    for part in emissions.split(list(LENGTHS)):
        every = scores(crf, part, rules)
        path = viterbi(part.numpy(), rules.plus(crf.rules()))
        assert every[tuple(path)] == pytest.approx(max(every.values()), abs=1e-4)


def test_no_impossible_sequence_is_ever_answered() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        path = viterbi(rng.normal(size=(12, C)).astype(np.float32), RULES)
        assert num_repairs([TAGS[tag] for tag in path], "bmes") == 0


def test_gradients_are_those_of_small_differences() -> None:
    crf, emissions = made()
    emissions.requires_grad_()
    tags = torch.tensor([0, 1, 3, 0, 4, 1, 2, 3])
    crf.log_likelihood(emissions, tags, LENGTHS, RULES).sum().backward()
    for tensor in (*crf.parameters(), emissions):
        flat, gradient = tensor.detach().view(-1), tensor.grad.view(-1)
        for place in range(0, len(flat), 3):
            kept, values = flat[place].item(), []
            for moved in (kept + 1e-2, kept - 1e-2):
                flat[place] = moved
                values.append(crf.log_likelihood(emissions, tags, LENGTHS, RULES).sum().item())
            flat[place] = kept
            assert gradient[place].item() == pytest.approx((values[0] - values[1]) / 2e-2, abs=5e-3)


def test_sentences_are_alone_whatever_stands_beside_them() -> None:
    crf, emissions = made()
    tags = torch.tensor([0, 1, 3, 0, 4, 1, 2, 3])
    together = crf.log_likelihood(emissions, tags, LENGTHS, RULES)
    parts = zip(emissions.split(list(LENGTHS)), tags.split(list(LENGTHS)), strict=True)
    alone = torch.cat([crf.log_likelihood(part, its, (len(its),), RULES) for part, its in parts])
    torch.testing.assert_close(together, alone)


def test_beginning_and_end_count_only_where_they_are() -> None:
    crf, emissions = made()
    middle = (torch.tensor([0.0]), torch.tensor([0.0]))
    inner = torch.tensor([2, 2, 3, 0])  # begins within an entity: only the middle of a sentence may
    assert crf.log_likelihood(emissions[:4], inner, (4,), RULES).item() < FORBIDDEN / 2
    assert crf.log_likelihood(emissions[:4], inner, (4,), RULES, middle).item() > -100
