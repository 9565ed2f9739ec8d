"""Cross-attention: how a decoder sees its source (Vaswani et al. 2017, §3.2.3, "encoder-decoder attention").

In: the encoder's hidden states and the lengths of its sequences, as a `Memory`; it stays for all tokens of the target.
Out: `memory.cross(counts)`, which target tokens call as they call an Attend. Training passes whole targets at once,
generation one token a row at a time; the numbers are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from wenmo.nn.attention import attention
from wenmo.nn.padding import Padding

# memory_MD → its keys and values in one layer, [M, K, H] each
Project = Callable[[Tensor], tuple[Tensor, Tensor]]


class Memory:
    """The encoded source of each row. A layer's keys and values are made when it first asks, and, outside of training,
    kept for later tokens.

    memory_MD: the encoder's hidden states, sequences end to end; at first, row b is source b.
    """

    def __init__(self, memory_MD: Tensor, lengths: Sequence[int]) -> None:
        self.memory_MD = memory_MD
        self.padding = _end_to_end(lengths, memory_MD.device)
        self.sources = list(range(len(lengths)))  # of each row
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}  # layer → keys, values of each row [B, S, K, H]
        self.real_BS = self.padding.real_BT

    def cross(self, counts: Sequence[int], dropout: float = 0.0) -> Cross:
        """For a forward over `counts[b]` target tokens of each row b, laid end to end."""
        assert len(counts) == len(self.sources)
        return Cross(self, counts, dropout)

    def keep(self, rows: Sequence[int]) -> None:
        """Goes on with these rows (dropped, repeated or in another order); without work where sources stay in place."""
        sources = [self.sources[row] for row in rows]
        if sources == self.sources:
            return
        self.sources = sources
        index_B = torch.tensor(list(rows), device=self.memory_MD.device)
        self.real_BS = self.real_BS.index_select(0, index_B)
        self.layers = {layer: (k.index_select(0, index_B), v.index_select(0, index_B))
                       for layer, (k, v) in self.layers.items()}

    def keys_and_values(self, layer: int, project: Project) -> tuple[Tensor, Tensor]:
        if layer in self.layers:
            return self.layers[layer]
        k_BSKH, v_BSKH = (self.padding.pad(x_MKH) for x_MKH in project(self.memory_MD))
        if self.sources != list(range(self.padding.num_rows)):
            index_B = torch.tensor(self.sources, device=k_BSKH.device)
            k_BSKH, v_BSKH = k_BSKH.index_select(0, index_B), v_BSKH.index_select(0, index_B)
        if not torch.is_grad_enabled():  # in training a layer asks once, and the gradient is what keeps them
            self.layers[layer] = (k_BSKH, v_BSKH)
        return k_BSKH, v_BSKH


class Cross:
    """Some target tokens of each row over all source tokens of that row; `project` makes a layer's keys and values."""

    def __init__(self, memory: Memory, counts: Sequence[int], dropout: float) -> None:
        self.memory, self.dropout = memory, dropout
        self.target = _end_to_end(counts, memory.memory_MD.device)

    def __call__(self, layer: int, q_MNH: Tensor, project: Project, *, scale: float | None = None) -> Tensor:
        k_BSKH, v_BSKH = self.memory.keys_and_values(layer, project)
        out_BTNH = attention(
            self.target.pad(q_MNH), k_BSKH, v_BSKH, scale=scale,
            mask=None if self.memory.padding.is_full else self.memory.real_BS[:, None, None, :],
            dropout_probability=self.dropout,
        )
        return self.target.unpad(out_BTNH)


def _end_to_end(lengths: Sequence[int], device: torch.device) -> Padding:
    lengths_B = torch.tensor(lengths)
    return Padding((lengths_B.cumsum(0) - lengths_B).tolist(), lengths, device)
