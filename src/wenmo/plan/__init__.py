"""Before a training starts: is it right, what will it cost, and is it the right one?

In: a task, its model, rows, the loader of a recipe (this room knows no recipe; stages/plan.py puts them together).
Out: `self_tests` (plan/checks.py and the rooms of tests), `forecast` (plan/forecast.py), `suggest` (plan/suggest.py).
Nothing here leaves anything on the disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch

from wenmo.errors import say
from wenmo.plan.checks import Check, Subject, skipped, subject_of, timed
from wenmo.plan.invariance import accumulation, causality, isolation, order, padding
from wenmo.plan.learning import OVERFIT_SECONDS, loss, overfit, saved
from wenmo.plan.preview import mask
from wenmo.plan.words import chat_template, end_of_text, special_tokens

TESTS: tuple[Callable[[Subject], Check], ...] = (
    special_tokens, chat_template, mask, end_of_text, padding, order, isolation, causality, loss, accumulation, saved,
    overfit)


SECONDS = 60.0  # of all tests together; those that would take longer, as long as the longest so far, are skipped


def self_tests(subject: Subject) -> Iterator[Check]:
    """One after the other, from what is quick to what takes a while; the model is afterwards what it was."""
    began = time.perf_counter()
    model = subject.model
    before = model.compute_dtype, model.training
    model.compute_dtype = torch.float32  # bf16 would hide small faults, and rounding would look like one
    longest = 0.0
    try:
        for test in TESTS:
            needed = max(longest, OVERFIT_SECONDS) if test is overfit else longest
            late = time.perf_counter() - began + needed > SECONDS
            found = skipped(test.__name__, say("out of time", "时间已用完")) if late else timed(test, subject)
            longest = max(longest, found.seconds)
            yield found
    finally:
        model.compute_dtype = before[0]
        model.train(before[1])


__all__ = ["TESTS", "Check", "Subject", "self_tests", "subject_of"]
