"""Who runs in the next step: plain bookkeeping, no tensors.

In: requests that arrive, and whether there is room. Out: whose prompt is read next, whose tokens are written, who gives
way. Larger priorities come first; among equals who came first. A request gains one priority for every `AGEING` steps
that it waits, and keeps it: nobody starves at the door, nor by giving way again and again. Who gives way is the last
who would be let in.
"""

from __future__ import annotations

from collections.abc import Callable

from wenmo.engine.request import Active

AGEING = 64  # steps


class Scheduler:
    def __init__(self, max_running: int) -> None:
        self.max_running = max_running
        self.waiting: list[Active] = []
        self.reading: Active | None = None  # its prompt is being read, chunk after chunk
        self.running: list[Active] = []

    @property
    def everyone(self) -> list[Active]:
        return [*self.waiting, *([self.reading] if self.reading else []), *self.running]

    @property
    def idle(self) -> bool:
        return not self.everyone

    def add(self, active: Active) -> None:
        self.waiting.append(active)

    def next_to_read(self, has_room: Callable[[Active], bool]) -> Active | None:
        """The request whose prompt is read now: the one begun, or else the first in rank, if there is room for it.

        If there is not, nobody overtakes it: room comes as others end.
        """
        if self.reading is None and self.waiting and len(self.running) < self.max_running:
            first = min(self.waiting, key=rank)
            if has_room(first):
                self.waiting.remove(first)
                self.reading = first
        return self.reading

    def read(self) -> None:
        """The prompt that was being read has been: its request writes from now on."""
        assert self.reading is not None
        self.running.append(self.reading)
        self.reading = None

    def last_in_rank(self) -> Active:
        """Who gives way first."""
        return max(self.running, key=rank)

    def give_way(self, active: Active) -> None:
        self.running.remove(active)
        self.waiting.append(active)

    def remove(self, active: Active) -> None:
        if active is self.reading:
            self.reading = None
        elif active in self.running:
            self.running.remove(active)
        else:
            self.waiting.remove(active)

    def step(self) -> None:
        for active in self.waiting:
            active.waited += 1


def rank(active: Active) -> tuple[int, int]:
    """The smallest comes first."""
    return -(active.request.priority + active.waited // AGEING), active.number
