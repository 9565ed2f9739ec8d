"""Rows in, the task's answers out: predict, outputs, score.

In: rows, or texts. Out: answers; a row that cannot be answered costs itself where many are asked for (a server).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wenmo.errors import DataError, say
from wenmo.loaded.held import Held
from wenmo.tasks import Encoded, Joint, Lengths, Task, create_task
from wenmo.tasks.language_modeling import CausalLMSettings
from wenmo.tasks.tagging import Tagging
from wenmo.tasks.task import row_name
from wenmo.text.messages import asked as asked_messages
from wenmo.text.source import STRINGS, text_column


@dataclass(frozen=True, slots=True)
class Asked:
    """A row, and what the model reads of it."""

    row: Mapping[str, Any]
    encoded: Encoded

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.encoded.sequences))


@dataclass(frozen=True, slots=True)
class Answered:
    """A row, the task's outputs of its sequences, and how many of its tokens were not read."""

    row: Mapping[str, Any]
    outputs: list[Any]
    cut_tokens: int


class Answers(Held):
    """The verbs that answer rows."""

    def predict(self, rows: Sequence[Mapping[str, Any] | str], task: str | None = None) -> list[dict[str, Any]]:
        """The task's answer to each row; a string stands for {"text": …} or {"source": …}. Raises DataError for a
        missing column."""
        answers = []
        for answer in self.answers(rows, task):
            if isinstance(answer, DataError):
                raise answer
            answers.append(answer)
        return answers

    def answers(self, rows: Sequence[Mapping[str, Any] | str | DataError], task: str | None = None,
                first: int = 0) -> list[dict[str, Any] | DataError]:
        """`predict` in which a row that cannot be answered costs itself: its DataError stands where its answer would.

        A DataError among the rows (one that could not be read) stays in its place. `first`: the number of the first.
        """
        chosen = self.task(task)
        return [found if isinstance(found, DataError) else decoded(chosen, found)
                for found in self.answered(rows, chosen, first)]

    def answered(self, rows: Sequence[Mapping[str, Any] | str | DataError], chosen: Task,
                 first: int = 0) -> list[Answered | DataError]:
        """What `answers` decodes."""
        asked = self.asked(rows, chosen, first)
        answered = iter(self.answer([row for row in asked if isinstance(row, Asked)], chosen))
        return [row if isinstance(row, DataError) else next(answered) for row in asked]

    def asked(self, rows: Sequence[Mapping[str, Any] | str | DataError], chosen: Task,
              first: int = 0) -> list[Asked | DataError]:
        """Rows as the model reads them; calls no model."""
        asked: list[Asked | DataError] = []
        for number, given in enumerate(rows, first):
            try:
                if isinstance(given, DataError):
                    raise given
                if not isinstance(given, str | Mapping):
                    raise DataError(
                        say(f"this is {type(given).__name__}, and no row",
                            f"这是 {type(given).__name__}，不是一行数据"), where=row_name(number),
                        mend=say("give a text, or its columns by name", "请给出文本，或各列的名与值"))
                row = {text_column(chosen.settings.columns): given} if isinstance(given, str) else given
                asked.append(Asked(row, self._asked(number, row, chosen)))
            except DataError as error:
                asked.append(error)
        return asked

    def answer(self, asked: Sequence[Asked], chosen: Task) -> list[Answered]:
        """The model's outputs for rows that `asked` gave, of one call or of many."""
        outputs = self._run([row.encoded.sequences for row in asked], lambda batch: chosen.outputs(self.model, batch))
        return [Answered(row.row, found, row.encoded.cut_tokens) for row, found in zip(asked, outputs, strict=True)]

    def _asked(self, number: int, row: Mapping[str, Any], task: Task) -> Encoded:
        if "messages" in task.settings.columns:
            row = asked_messages(row)
        if isinstance(task, Tagging):
            row = task.question(row)
        for column in () if isinstance(task, Joint) else task.settings.columns:  # a joint task takes what is there
            value = row.get(column)
            if column in STRINGS and value is not None and not isinstance(value, str):
                raise DataError(say(f"`{column}` is {type(value).__name__}, not a text",
                                    f"`{column}` 是 {type(value).__name__}，不是文本"), where=row_name(number),
                                mend=say("give it as a string", "请以字符串给出"))
            if value in (None, [], {}) or (isinstance(value, str) and not value.strip()):
                raise DataError(
                    say(f"the row has no `{column}`", f"该行缺少 `{column}`"),
                    where=row_name(number),
                    mend=say(f"this task needs: {', '.join(task.settings.columns)}",
                             f"此任务需要：{', '.join(task.settings.columns)}"))
        return self._encoded(number, row, task, with_targets=False)

    def outputs(self, rows: Sequence[Mapping[str, Any]], task: Task, *, with_targets: bool = False) -> list[list[Any]]:
        """For each row the task's outputs of its sequences, in order. Rows are batched by length; texts are normalised
        as they were for training."""
        return self.outputs_and_cuts(rows, task, with_targets=with_targets)[0]

    def outputs_and_cuts(self, rows: Sequence[Mapping[str, Any]], task: Task, *,
                         with_targets: bool = False) -> tuple[list[list[Any]], list[int]]:
        """`outputs`, and how many tokens of each row were not read, since it is longer than the task reads."""
        encoded = [self._encoded(number, row, task, with_targets) for number, row in enumerate(rows)]
        outputs = self._run([row.sequences for row in encoded], lambda batch: task.outputs(self.model, batch))
        return outputs, [row.cut_tokens for row in encoded]

    def score(self, texts: Sequence[str]) -> list[float]:
        """For each text the natural-log likelihood of its tokens after the first, given those before.

        No special tokens are added; a text longer than the model is scored in windows that overlap by half.
        """
        self._needs("causal_lm", say("score", "打分"))
        longest = self.opened.max_tokens or 4096
        task = create_task(CausalLMSettings(), self.tokenizer, Lengths(max_tokens=longest))
        outputs = self.outputs([{"text": text} for text in texts], task)
        return [0.0 - sum(window.nll_nats for window in windows) for windows in outputs]


def decoded(task: Task, answered: Answered) -> dict[str, Any] | DataError:
    """The answer, with `truncated_tokens` where a part of the row was not read."""
    try:
        answer = task.decode(answered.row, answered.outputs)
    except DataError as error:  # a row that cannot be answered costs itself
        return error
    return {**answer, "truncated_tokens": answered.cut_tokens} if answered.cut_tokens else answer
