"""Rows of many callers, put together into one forward: all that is not written token by token.

In: rows from any thread, each with its number of tokens. Out: a Future of their answers. What a row is, and what is
done with some of them at once, is the caller's affair.

A worker takes rows until they have `batch_tokens`, and waits for company no longer than `max_wait_ms` after the first
came; while a forward runs, the next batch gathers by itself. Callers take turns: of those who wait, each gives one row,
then each a second, so that a request of ten thousand rows holds nobody up by more than a forward. Only rows of one
`group` can share a forward (those of one task).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from wenmo.config import Count, Settings
from wenmo.errors import UsageError, WenmoError, say

Forward = Callable[[Any, list[Any]], Sequence[Any]]
"""(group, rows) → an answer to each."""


class BatcherSettings(Settings):
    """batch_tokens: so many are in one forward; a longer row stands alone. max_wait_ms: a row waits at most so long for
    others, when nothing else is done. queue_tokens: more than these do not wait; who comes then is refused."""

    batch_tokens: Count = Field(4096, ge=1)
    max_wait_ms: float = Field(2.0, ge=0, le=1000)
    queue_tokens: Count = Field(1 << 19, ge=1)


class BatcherFull(WenmoError):
    """Too much waits already: to be asked again later."""


@dataclass(eq=False)
class _Job:
    """A caller's rows. `waiting`: the numbers of those that no forward has taken yet."""

    group: Hashable
    rows: Sequence[Any]
    sizes: Sequence[int]
    future: Future[list[Any]]
    arrived: float
    waiting: deque[int]
    answers: list[Any]
    missing: int


class Batcher:
    """`forward` is called from one thread alone, the batcher's own, which `close` ends."""

    def __init__(self, forward: Forward, settings: BatcherSettings, name: str = "batcher") -> None:
        self.forward, self.settings = forward, settings
        self.queued_tokens = self.num_forwards = self.num_rows = 0
        self._jobs: deque[_Job] = deque()  # those with rows that wait, the next in turn first
        self._lock = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=f"wenmo-{name}", daemon=True)
        self._thread.start()

    # From any thread --------------------------------------------------------------------------------------

    def submit(self, group: Hashable, rows: Iterable[Any], sizes: Sequence[int]) -> Future[list[Any]]:
        """The answers, in the order of the rows. To cancel the Future drops the rows that no forward has taken yet.

        Raises BatcherFull where too much waits, UsageError after `close`.
        """
        rows = list(rows)
        assert len(rows) == len(sizes)
        future: Future[list[Any]] = Future()
        job = _Job(group, rows, sizes, future, time.monotonic(), deque(range(len(rows))), [None] * len(rows), len(rows))
        with self._lock:
            if self._closing:
                raise UsageError(say("the model is being closed", "模型正在关闭"), where="submit",
                                 mend=say("open it again", "请重新打开"))
            if self.queued_tokens + sum(sizes) > self.settings.queue_tokens:
                raise BatcherFull(
                    say(f"{self.queued_tokens} tokens wait already", f"已有 {self.queued_tokens} 个词元在排队"),
                    where=f"queue_tokens: {self.settings.queue_tokens}",
                    mend=say("ask again in a moment, with fewer rows at once", "请稍后再试，并减少一次提交的行数"))
            if rows:
                self.queued_tokens += sum(sizes)
                self._jobs.append(job)
                if len(self._jobs) == 1 or self.queued_tokens >= self.settings.batch_tokens:
                    self._lock.notify()  # else the worker, which waits for company, would only look and wait on
            else:
                future.set_result([])
        future.add_done_callback(lambda _: self._drop(job))
        return future

    def _drop(self, job: _Job) -> None:
        """What a job that has ended still has in the queue: it was cancelled, or a row of it failed."""
        if not job.waiting:
            return
        with self._lock:
            if job in self._jobs:
                self._jobs.remove(job)
            self.queued_tokens -= sum(job.sizes[number] for number in job.waiting)
            job.waiting.clear()
            self._lock.notify()

    def close(self) -> None:
        """No new rows; those that wait are answered first."""
        with self._lock:
            self._closing = True
            self._lock.notify_all()
        self._thread.join()

    # The worker -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while (batch := self._next_batch()) is not None:
            if batch:
                self._answer(batch)

    def _next_batch(self) -> list[tuple[_Job, int]] | None:
        """(job, number of a row) of the next forward; None at the end."""
        with self._lock:
            while not self._jobs and not self._closing:
                self._lock.wait()
            while self._jobs and not self._closing:
                left = min(job.arrived for job in self._jobs) + self.settings.max_wait_ms / 1000 - time.monotonic()
                if left <= 0 or self.queued_tokens >= self.settings.batch_tokens:
                    break
                self._lock.wait(left)
            if not self._jobs:
                return None if self._closing else []
            return self._take()

    def _take(self) -> list[tuple[_Job, int]]:
        """One row of each job of a group in turn, until no next one fits. Who gave goes to the end of the line."""
        group, left = self._jobs[0].group, self.settings.batch_tokens
        taken: list[tuple[_Job, int]] = []
        turn = deque(job for job in self._jobs if job.group == group)
        others = [job for job in self._jobs if job.group != group]
        gave: set[_Job] = set()
        while turn:
            job = turn.popleft()
            number = job.waiting[0]
            if taken and job.sizes[number] > left:
                others.append(job)
                continue
            job.waiting.popleft()
            taken.append((job, number))
            left -= job.sizes[number]
            self.queued_tokens -= job.sizes[number]
            gave.add(job)
            if job.waiting:
                turn.append(job)
        self._jobs = deque([*(job for job in others if job not in gave), *(job for job in others if job in gave)])
        return taken

    def _answer(self, batch: list[tuple[_Job, int]]) -> None:
        self.num_forwards += 1
        self.num_rows += len(batch)
        try:
            answers = self.forward(batch[0][0].group, [job.rows[number] for job, number in batch])
        except Exception as error:
            jobs = list(dict.fromkeys(job for job, _ in batch))
            if len(jobs) == 1:
                if jobs[0].future.set_running_or_notify_cancel():
                    jobs[0].future.set_exception(error)
                return
            for job in jobs:  # one caller's fault is not the others'
                self._answer([(each, number) for each, number in batch if each is job])
            return
        for (job, number), answer in zip(batch, answers, strict=True):
            job.answers[number] = answer
            job.missing -= 1
            if not job.missing and job.future.set_running_or_notify_cancel():
                job.future.set_result(job.answers)
