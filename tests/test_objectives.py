"""Objectives against their formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from wenmo.data.sequence import Batch, Sequence, collate
from wenmo.errors import RecipeError
from wenmo.models import create
from wenmo.models.bert import BertConfig
from wenmo.objectives import class_scores, classification

SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
         "max_position_embeddings": 20}


def model_with(dropout: float) -> torch.nn.Module:
    config = BertConfig(**SIZES, hidden_dropout_prob=dropout, attention_probs_dropout_prob=0)
    return create(config, {"classification": 3}, torch.Generator().manual_seed(0)).train()


def rows() -> Batch:
    rng = np.random.default_rng(0)
    return collate(Sequence(i, {"ids": rng.integers(5, 50, 4 + i)}, {"label": i % 3}) for i in range(5))


def test_two_readings_that_should_agree() -> None:
    """Wu et al. 2021, eq. 4, from the two readings themselves."""
    model, batch = model_with(0.3), rows()
    objective = classification(r_drop=0.7)
    torch.manual_seed(1)
    terms = {term.name: term for term in objective.terms(model, batch)}
    torch.manual_seed(1)
    first, second = (class_scores(model, batch.text) for _ in range(2))  # type: ignore[arg-type]
    p, q = first.softmax(1), second.softmax(1)
    labels = batch.text.values["label"]
    losses = F.cross_entropy(first, labels, reduction="sum") + F.cross_entropy(second, labels, reduction="sum")
    divergence = (p * (p / q).log()).sum() + (q * (q / p).log()).sum()
    torch.testing.assert_close(terms["classes"].sum, losses / 2)
    torch.testing.assert_close(terms["agreement"].sum, divergence / 2)
    assert terms["agreement"].weight == 0.7
    assert objective.counts(batch) == {"classes": 5.0, "agreement": 5.0}
    assert [term.name for term in objective.terms(model.eval(), batch)] == ["classes"]


def test_readings_that_cannot_differ_are_refused() -> None:
    with pytest.raises(RecipeError, match="no dropout"):
        classification(r_drop=1.0).terms(model_with(0.0), rows())
