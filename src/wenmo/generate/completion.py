"""What generating gives back, and one continuation as it grows from ids to text.

In: ids, one after the other. Out: `Piece`s of text, whole characters only, the last with its `Completion`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from wenmo.text.tokenizer import Tokenizer

Reason = Literal["stop", "length"]


@dataclass(frozen=True)
class Logprob:
    """A token's natural-log probability under the model's own distribution (before penalties, temperature and whatever
    narrows the choice), and the likeliest tokens there as (id, log-probability), best first."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Completion:
    """`reason`: "stop" for end of text or a stop string (which is cut off), "length" for a limit. `text` is what
    the ids say, up to the stop string and without a character that the end cut in two.

    `logprobs`, where asked for: one a token; an end of text, which is not among the ids, comes last.
    `score`, of beam search: Σ log-probability / tokens^length_penalty, an end of text included in both."""

    text: str
    ids: tuple[int, ...]
    reason: Reason
    logprobs: tuple[Logprob, ...] | None = None
    score: float | None = None


@dataclass(frozen=True)
class Piece:
    """New text of one continuation, whole characters only; the last piece of it carries the completion."""

    prompt: int
    sample: int
    text: str
    completion: Completion | None = None


def logprob_of(log_probabilities_V: Tensor, id: int, num_alternatives: int) -> Logprob:
    """The entry of one token, of the model's log-probabilities at its place."""
    best = log_probabilities_V.topk(min(num_alternatives, log_probabilities_V.numel()))
    top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return Logprob(id, float(log_probabilities_V[id]), top)


class Continuation:
    """The text of one continuation: its ids, what of it was shown, and whether a stop string has come.

    `room`: the number of tokens after which it ends anyway. `shown`: control ids that stand in the text as they are
    written.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str], room: int,
                 shown: frozenset[int] = frozenset()) -> None:
        self.decoder, self.stops, self.room = tokenizer.stream(shown=shown), stops, room
        self.ids: list[int] = []
        self.text, self.shown = "", 0
        self.reason: Reason | None = None

    def push(self, token: int | None, ends: frozenset[int], *, last: bool = False) -> str:
        """Takes one token (None: there is none that may follow) and gives what has become certain of the text. `last`:
        the text is complete with it."""
        if token is None or token in ends:
            self.reason = "stop"
        else:
            self.ids.append(token)
            self.text += self.decoder.push(token)
            if last:
                self.reason = "stop"
            elif len(self.ids) >= self.room:
                self.reason = "length"
        if self.reason is not None:
            self.text += self.decoder.finish().rstrip("\ufffd")
        found = (self.text.find(stop, self.shown) for stop in self.stops)  # none begins in what is shown
        cut = min((at for at in found if at >= 0), default=-1)
        if cut >= 0:
            self.text, self.reason = self.text[:cut], "stop"
        held = 0 if self.reason is not None else self._could_begin_a_stop()
        new, self.shown = self.text[self.shown : len(self.text) - held], len(self.text) - held
        return new

    def _could_begin_a_stop(self) -> int:
        """How many characters at the end might be the start of a stop string, and must not be shown yet."""
        return max((_begun(self.text, stop) for stop in self.stops), default=0)


def _begun(text: str, stop: str) -> int:
    """How many characters at the end of a text that is without `stop` are its beginning, at most."""
    at = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while at >= 0 and not stop.startswith(text[at:]):
        at = text.find(stop[0], at + 1)
    return 0 if at < 0 else len(text) - at
