"""Where the keys and values of running rows stand: slots of a few sizes, within one budget of tokens.

A row lives in a slot of the smallest capacity that holds it (128, 256, 512 … tokens) and moves to the next when it is
full. The slots of one capacity are one tensor for each layer, the rows in it side by side without a hole, so that
attention reads a rectangle in place and copies nothing. Memory is taken as it is needed and given back to other
capacities; where the budget ends, `admit` and `grow` say so, and the engine preempts.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from wenmo import device

SMALLEST = 128  # tokens
Layers = dict[int, tuple[Tensor, Tensor]]  # layer → keys, values


def largest(budget_tokens: int) -> int:
    """The capacity of the largest slot that a budget allows."""
    capacity = SMALLEST
    while 2 * capacity <= budget_tokens:
        capacity *= 2
    return capacity


@dataclass
class Pool:
    """The slots of one capacity: `owners[row]` has the row; layers: [size, K, capacity, H] each."""

    capacity: int
    size: int = 0
    owners: list[Hashable] = field(default_factory=list)
    layers: Layers = field(default_factory=dict)

    def resize(self, size: int) -> None:
        assert size >= len(self.owners)
        used, pairs = len(self.owners), list(self.layers.items())
        sizes = [size * old.shape[1:].numel() * old.element_size() for _, pair in pairs for old in pair]
        # Zeros: what stands in used memory could be NaN, and so would be 0 · NaN for a key that is masked.
        parts = iter(torch.split(device.large_pages(sum(sizes)), sizes))
        for layer, pair in pairs:
            keys, values = (next(parts).view(old.dtype).view(size, *old.shape[1:]) for old in pair)
            for new, old in zip((keys, values), pair, strict=True):
                new[:used] = old[:used]
            self.layers[layer] = (keys, values)
        self.size = size

    def layer(self, number: int, like_KH: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values of a layer; made when it is first asked for, by the shape of one token's keys [K, H]."""
        if number not in self.layers:
            shape = (self.size, like_KH.shape[0], self.capacity, like_KH.shape[1])
            self.layers[number] = (like_KH.new_zeros(shape), like_KH.new_zeros(shape))
        return self.layers[number]


class Slots:
    """`budget_tokens` bounds all slots together; no row is longer than `longest`."""

    def __init__(self, budget_tokens: int, longest: int) -> None:
        self.budget_tokens, self.longest = budget_tokens, longest
        self.pools: dict[int, Pool] = {}
        self.place: dict[Hashable, tuple[Pool, int]] = {}

    def capacity_for(self, num_tokens: int) -> int:
        capacity = SMALLEST
        while capacity < num_tokens:
            capacity *= 2
        return capacity

    def fits(self, num_tokens: int) -> bool:
        """Whether a row of so many tokens could stand here alone."""
        return num_tokens <= self.longest and self.capacity_for(num_tokens) <= self.budget_tokens

    @property
    def used_tokens(self) -> int:
        return sum(pool.capacity * len(pool.owners) for pool in list(self.pools.values()))  # asked from other threads

    def admit(self, owner: Hashable, num_tokens: int) -> bool:
        """A slot for a row of so many tokens; False where the budget does not allow it."""
        assert owner not in self.place
        capacity = self.capacity_for(num_tokens)
        pool = self.pools.setdefault(capacity, Pool(capacity))
        if len(pool.owners) == pool.size and not self._enlarge(pool):
            return False
        self.place[owner] = (pool, len(pool.owners))
        pool.owners.append(owner)
        return True

    def grow(self, owner: Hashable, num_tokens: int) -> bool:
        """Room for one token more in a row that has `num_tokens`; it may move. False where the budget ends."""
        pool, row = self.place[owner]
        if num_tokens < pool.capacity:
            return True
        del self.place[owner]
        if not self.admit(owner, num_tokens + 1):
            self.place[owner] = (pool, row)
            return False
        bigger, new_row = self.place[owner]
        for layer, pair in pool.layers.items():
            for new, old in zip(bigger.layer(layer, old_token(pair)), pair, strict=True):
                new[new_row, :, :num_tokens] = old[row, :, :num_tokens]
        self._close(pool, row)
        return True

    def fill(self, owner: Hashable, layers: Layers, num_tokens: int) -> None:
        """Puts the keys and values of a prompt into its slot; layers: [K, S, H] each, S ≥ num_tokens."""
        pool, row = self.place[owner]
        for layer, (keys, values) in layers.items():
            for slot, new in zip(pool.layer(layer, keys[:, 0]), (keys, values), strict=True):
                slot[row, :, :num_tokens] = new[:, :num_tokens]

    def release(self, owner: Hashable) -> None:
        pool, row = self.place.pop(owner)
        self._close(pool, row)

    def _close(self, pool: Pool, row: int) -> None:
        """The last row moves into the hole."""
        last = pool.owners.pop()
        if row < len(pool.owners):
            pool.owners[row] = last
            self.place[last] = (pool, row)
            for pair in pool.layers.values():
                for each in pair:
                    each[row] = each[len(pool.owners)]

    def _enlarge(self, pool: Pool) -> bool:
        """More slots of a capacity: twice as many, or what the budget leaves once others give back idle ones."""
        others = sum(each.capacity * each.size for each in self.pools.values() if each is not pool)
        wanted = max(1, 2 * pool.size)
        if others + wanted * pool.capacity > self.budget_tokens:
            for each in self.pools.values():
                if each is not pool and each.size > len(each.owners):
                    each.resize(len(each.owners))
            others = sum(each.capacity * each.size for each in self.pools.values() if each is not pool)
        size = min(wanted, (self.budget_tokens - others) // pool.capacity)
        if size <= pool.size:
            return False
        pool.resize(size)
        return True


def old_token(pair: tuple[Tensor, Tensor]) -> Tensor:
    """A tensor with the shape of one token's keys, [K, H]."""
    return pair[0].new_empty(pair[0].shape[1], pair[0].shape[3])


def staging(num_tokens: int, layer: int, layers: Layers, like_KH: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of a prompt that is being read, [K, num_tokens, H]: made when a layer first asks."""
    if layer not in layers:
        shape = (like_KH.shape[0], num_tokens, like_KH.shape[1])
        layers[layer] = (torch.zeros(shape, dtype=like_KH.dtype), torch.zeros(shape, dtype=like_KH.dtype))
    return layers[layer]


def bytes_of_token(layers: Layers) -> int:
    """Of the keys and values of one token, over all layers; layers: [K, S, H] each."""
    return sum(each.shape[0] * each.shape[2] * each.element_size() for pair in layers.values() for each in pair)
