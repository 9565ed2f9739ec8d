"""Rows of many callers in one forward: each gets its own answers, none waits for ever, one's fault is no other's."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import CancelledError, Future
from typing import Any

import pytest

from wenmo.engine.batcher import Batcher, BatcherFull, BatcherSettings
from wenmo.errors import UsageError


class Doubling:
    """A forward that remembers what was put together; it stands still until `go` is set."""

    def __init__(self, **settings: Any) -> None:
        self.calls: list[tuple[Any, list[int]]] = []
        self.go, self.began = threading.Event(), threading.Event()
        self.batcher = Batcher(self, BatcherSettings(**settings))

    def __call__(self, group: Any, rows: list[int]) -> list[int]:
        self.calls.append((group, rows))
        self.began.set()
        assert self.go.wait(10)
        if 13 in rows:
            raise ValueError("13")
        return [2 * row for row in rows]

    def ask(self, rows: list[int], group: str = "a", size: int = 1) -> Future[list[Any]]:
        return self.batcher.submit(group, rows, [size] * len(rows))

    def hold(self) -> Future[list[Any]]:
        """Something that keeps the worker busy, so that what comes next is put together."""
        held = self.ask([0])
        assert self.began.wait(10)
        return held


def test_each_gets_its_own_from_many_threads() -> None:
    made = Doubling(batch_tokens=50)
    made.go.set()
    wrong = []

    def ask(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(30):
            rows = [rng.randrange(100, 10**6) for _ in range(rng.randrange(4))]
            if made.ask(rows, rng.choice("ab"), rng.randint(1, 20)).result(10) != [2 * row for row in rows]:
                wrong.append(rows)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made.batcher.close()
    assert not wrong
    assert made.batcher.queued_tokens == 0
    assert max(len(rows) for _, rows in made.calls) > 3


def test_callers_take_turns_and_groups_stay_apart() -> None:
    made = Doubling(batch_tokens=4)
    made.hold()
    long, short, other = made.ask(list(range(20, 30))), made.ask([1, 2]), made.ask([3], "b")
    made.go.set()
    assert (long.result(10), short.result(10), other.result(10)) == ([2 * row for row in range(20, 30)], [2, 4], [6])
    assert [rows for _, rows in made.calls[1:4]] == [[20, 1, 21, 2], [3], [22, 23, 24, 25]]
    made.batcher.close()


def test_company_is_waited_for_no_longer_than_said() -> None:
    made = Doubling(max_wait_ms=1000)
    made.go.set()
    began = time.monotonic()
    asked = [made.ask([1]), made.ask([2])]
    assert [each.result(10) for each in asked] == [[2], [4]]
    assert 0.9 < time.monotonic() - began < 5
    assert made.calls == [("a", [1, 2])]
    full = time.monotonic()
    made.ask([5], size=4096).result(10)  # a full batch waits for nobody
    assert time.monotonic() - full < 0.9
    made.batcher.close()


def test_what_is_cancelled_is_not_done() -> None:
    made = Doubling(batch_tokens=2)
    made.hold()
    dropped, kept = made.ask([7, 8, 9]), made.ask([1])
    assert dropped.cancel()
    made.go.set()
    assert kept.result(10) == [2]
    with pytest.raises(CancelledError):
        dropped.result(10)
    made.batcher.close()
    assert [rows for _, rows in made.calls] == [[0], [1]]


def test_one_fault_is_nobody_elses() -> None:
    made = Doubling()
    made.hold()
    bad, good = made.ask([13, 14]), made.ask([1])
    made.go.set()
    assert good.result(10) == [2]
    with pytest.raises(ValueError, match="13"):
        bad.result(10)
    assert made.ask([5]).result(10) == [10]
    made.batcher.close()


def test_the_queue_is_bounded_and_what_waits_is_answered_at_the_end() -> None:
    made = Doubling(batch_tokens=10, queue_tokens=20)
    made.hold()
    waiting = made.ask([1, 2], size=10)
    with pytest.raises(BatcherFull):
        made.ask([3])
    made.go.set()
    made.batcher.close()
    assert waiting.result(0) == [2, 4]
    with pytest.raises(UsageError):
        made.ask([1])
