"""More tokens for a model: rows for them in its embeddings and in its output vocabulary, tied or not.

In: a model, and how many tokens its tokenizer has now. Out: the same model with more rows; all others are as they were.
"""

from __future__ import annotations

from typing import Any

import torch

from wenmo.models import create


def with_vocabulary(model: Any, vocab_size: int) -> Any:
    """`model` if it has rows for so many tokens, else a copy that has. A new row is the mean of those there were, so
    that at first no new token is likelier than an old one is on average (Hewitt 2021), and nothing overflows."""
    old_size = model.config.vocab_size
    if vocab_size <= old_size:
        return model
    grown: Any = create(model.config.model_copy(update={"vocab_size": vocab_size}), model.heads, torch.Generator())
    grown.compute_dtype = model.compute_dtype
    state = model.state_dict()
    with torch.no_grad():
        for name, new in grown.state_dict().items():
            old = state[name]
            if new.shape == old.shape:
                new.copy_(old)
            else:  # [V, …], or [1, V] as Marian's bias has it
                axis = next(i for i, (a, b) in enumerate(zip(old.shape, new.shape, strict=True)) if a != b)
                assert (old.shape[axis], new.shape[axis]) == (old_size, vocab_size), name
                new.narrow(axis, 0, old_size).copy_(old)
                more = new.narrow(axis, old_size, vocab_size - old_size)
                more.copy_(old.float().mean(axis, keepdim=True).expand_as(more))
    return grown.train(model.training)
