"""Log-probabilities as OpenAI's two kinds of completions write them down."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from wenmo.generate.completion import Logprob
from wenmo.text.tokenizer import Tokenizer


def of_chat(tokenizer: Tokenizer, entries: Iterable[Logprob], ends: frozenset[int]) -> dict[str, Any]:
    """{"content": [{"token", "logprob", "bytes", "top_logprobs"}]}: one a token; an end of text, which is none of the
    answer's, is left out."""
    def named(id: int, logprob: float) -> dict[str, Any]:
        return {"token": tokenizer.token(id), "logprob": logprob, "bytes": list(tokenizer.token_bytes(id))}

    return {"content": [{**named(entry.id, entry.logprob), "top_logprobs": [named(*pair) for pair in entry.top]}
                        for entry in entries if entry.id not in ends], "refusal": None}


@dataclass
class OfCompletion:
    """The same in the older form: parallel lists, with each token's place in the text. `place`: where the next token's
    text begins, in characters."""

    tokenizer: Tokenizer
    ends: frozenset[int]
    place: int = 0
    lists: dict[str, list[Any]] = field(default_factory=lambda: {
        "tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []})

    def __post_init__(self) -> None:
        self._stream = self.tokenizer.stream()

    def add(self, id: int, entry: Logprob | None, *, of_prompt: bool = False) -> None:
        """`entry` None: the first token of a text, which nothing foretells. An end of text that was written is none of
        the answer's."""
        if id in self.ends and not of_prompt:
            return
        added = (self.tokenizer.token(id), entry and entry.logprob, entry and self._best(entry), self.place)
        for values, value in zip(self.lists.values(), added, strict=True):
            values.append(value)
        self.place += len(self._stream.push(id))

    def _best(self, entry: Logprob) -> dict[str, float]:
        best: dict[str, float] = {}
        for id, logprob in entry.top:
            best.setdefault(self.tokenizer.token(id), logprob)  # the likelier of two that are written alike
        return best

    def take(self) -> dict[str, list[Any]]:
        """What was added since this was last asked for."""
        taken = self.lists
        self.lists = {name: [] for name in taken}
        return taken
