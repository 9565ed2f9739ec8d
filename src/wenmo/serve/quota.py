"""How much one caller may do in a minute: token buckets.

In: who, and how much. Out: the seconds to wait, 0 if it is granted. A bucket holds a minute's worth and fills steadily.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

MANY = 4096  # callers; beyond, those who owe nothing are forgotten


@dataclass
class Bucket:
    level: float
    filled: float  # when, in seconds


@dataclass
class Quota:
    """`per_minute` None: unbounded, and nothing is kept."""

    per_minute: int | None
    clock: Callable[[], float] = time.monotonic
    buckets: dict[str, Bucket] = field(default_factory=dict)

    def take(self, caller: str, amount: int = 1) -> float:
        """0 where the amount was there and has been taken, else the seconds until it will be.

        More than a bucket holds may be taken from a full one: it then owes the rest.
        """
        if self.per_minute is None:
            return 0.0
        bucket, needed = self._filled(caller, self.per_minute), min(amount, self.per_minute)
        if bucket.level < needed:
            return (needed - bucket.level) * 60 / self.per_minute
        bucket.level -= amount
        return 0.0

    def give_back(self, caller: str, amount: int) -> None:
        """What was taken and not used; a negative amount was used beyond it."""
        if self.per_minute is not None:
            bucket = self._filled(caller, self.per_minute)
            bucket.level = min(self.per_minute, bucket.level + amount)

    def _filled(self, caller: str, per_minute: int) -> Bucket:
        now = self.clock()
        if caller not in self.buckets:
            if len(self.buckets) >= MANY:
                self.buckets = {name: each for name, each in self.buckets.items()
                                if each.level + (now - each.filled) * per_minute / 60 < per_minute}
            self.buckets[caller] = Bucket(per_minute, now)
        bucket = self.buckets[caller]
        bucket.level = min(per_minute, bucket.level + (now - bucket.filled) * per_minute / 60)
        bucket.filled = now
        return bucket
