"""The model as a generator sees it: rows of ids grow, and scores of what may come next are read.

In: prompts as ids. Out: fp32 scores of the vocabulary, [B, V], a row each. It holds the cache and, for an
encoder–decoder, the memory of the sources, so that whoever chooses tokens knows neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wenmo.errors import UsageError, say
from wenmo.generate.sampling import no_numbers
from wenmo.models import LanguageModel, logits
from wenmo.nn.attend import Cache
from wenmo.nn.cross import Memory


class Decoder:
    """One row a prompt, to begin with. `starts`: what a row reads first: the prompt or, where the prompt is the source
    of an encoder–decoder, the token that begins a target. `rooms`: how many tokens may come.

    The model must be in eval mode. Raises UsageError for a prompt that is empty or leaves no room.
    """

    def __init__(self, model: LanguageModel, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        self.model = model
        self.device = model.lm_output()[0].device
        from_source = "seq2seq_lm" in model.heads
        self.rooms = [_room(index, len(prompt), from_source, model.config.max_tokens, max_new_tokens)
                      for index, prompt in enumerate(prompts)]
        self.memory = self._encode(prompts) if from_source else None
        self.starts = [[_start_of(model)] if from_source else list(prompt) for prompt in prompts]
        capacity = max(len(start) + room for start, room in zip(self.starts, self.rooms, strict=True))
        self.cache = Cache(len(prompts), capacity)

    def _encode(self, sources: Sequence[Sequence[int]]) -> Memory:
        lengths = [len(source) for source in sources]
        with torch.inference_mode():
            ids_M = torch.tensor([id for source in sources for id in source], device=self.device)
            return Memory(self.model.encode(ids_M, lengths), lengths)

    def read(self, new_ids: Sequence[Sequence[int]]) -> Tensor:
        """Reads at least one new id a row; the scores after the last of them, in fp32 on the CPU: [B, V].

        Raises NumericsError for scores that are no numbers.
        """
        counts = [len(row) for row in new_ids]
        with torch.inference_mode():
            attend = self.cache.extend(counts, self.device)
            inputs = {} if self.memory is None else {"cross": self.memory.cross(counts)}
            ids_M = torch.tensor([id for row in new_ids for id in row], device=self.device)
            hidden_MD = self.model.body(ids_M, attend.positions_M, attend, **inputs)
            last_B = (torch.tensor(counts).cumsum(0) - 1).to(self.device)
            scores_BV = logits(self.model, hidden_MD[last_B]).cpu()
        if scores_BV.isnan().any():
            raise no_numbers()
        return scores_BV

    def keep(self, rows: Sequence[int]) -> None:
        """Goes on with these rows only: finished ones dropped, or rows repeated and reordered, as beams do."""
        if list(rows) == list(range(len(self.cache.filled))):
            return
        with torch.inference_mode():
            self.cache.keep(rows)
            if self.memory is not None:
                self.memory.keep(rows)


def _start_of(model: Any) -> int:
    start: int = model.config.decoder_start_token_id
    return start


def _room(index: int, num_tokens: int, is_source: bool, longest: int | None, max_new_tokens: int) -> int:
    """How many tokens may follow a prompt, or stand against a source of its own. Raises UsageError."""
    most = None if longest is None else longest - (0 if is_source else 1)
    if num_tokens and (most is None or num_tokens <= most):
        return max_new_tokens if longest is None else min(max_new_tokens, longest - (1 if is_source else num_tokens))
    raise UsageError(
        say(f"a prompt of {num_tokens} tokens leaves no room" if num_tokens else "an empty prompt",
            f"提示有 {num_tokens} 个词元，没有余地继续生成" if num_tokens else "提示为空"),
        where=say(f"prompt {index}", f"第 {index} 个提示"),
        mend=say("give at least one token", "请至少给出一个词元") if most is None
        else say(f"give 1 to {most} tokens", f"请给出 1 到 {most} 个词元"))
