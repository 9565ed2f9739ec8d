"""What every encoder–decoder does alike: the source is encoded, and the decoder reads its target beside it.

In: source sequences and, row by row, target sequences, end to end. Out: hidden states of the target. An architecture
says how one stack of each kind computes (`encode`, `body`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from wenmo.nn.attend import Attend, Packed
from wenmo.nn.cross import Cross, Memory
from wenmo.nn.padding import positions_of
from wenmo.nn.taps import Taps


class EncoderDecoder(nn.Module):
    causal: ClassVar[bool] = True  # its decoder is
    config: Any
    heads: dict[str, int]

    def forward(self, ids_M: Tensor, lengths: Sequence[int], target_ids_M: Tensor | None = None,
                target_lengths: Sequence[int] = (), *, taps: Taps | None = None) -> Tensor:
        """Source sequences and, row by row, what the decoder reads → hidden_MD of the target; without a decoder that
        of the source."""
        memory_MD = self.encode(ids_M, lengths, taps=taps)
        if self.one_stack:
            return memory_MD
        assert target_ids_M is not None, "an encoder–decoder needs a target"
        rate, device = self.attention_dropout, ids_M.device
        cross = Memory(memory_MD, lengths).cross(target_lengths, rate)
        attend = Packed(target_lengths, causal=True, dropout=rate, device=device)
        return self.body(target_ids_M, positions_of(target_lengths, device), attend, cross=cross, taps=taps)

    @property
    def one_stack(self) -> bool:
        """Whether the heads need the encoder alone."""
        return bool({"encoder", "tagging"} & set(self.heads))

    @property
    def attention_dropout(self) -> float:
        """Of the weights of attention, now: 0 outside training."""
        raise NotImplementedError

    def encode(self, ids_or_embeddings: Tensor, lengths: Sequence[int], *, taps: Taps | None = None) -> Tensor:
        """Source tokens → memory_MD."""
        raise NotImplementedError

    def body(self, ids_or_embeddings: Tensor, positions_M: Tensor, attend: Attend, *, cross: Cross,
             taps: Taps | None = None) -> Tensor:
        """Target tokens → hidden_MD."""
        raise NotImplementedError
