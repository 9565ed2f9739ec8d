"""What a self-test is given, and what it says.

In: a task, its model, and a few examples made from rows of the user's own. Out: `Check`s: pass, fail or skip, what was
seen, and for a failure the mend. It stands apart so that each room of tests speaks of the same things.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from wenmo.data.sequence import SOURCE, TARGET, Batch, Sequence, collate
from wenmo.device import Device, numpy_rng
from wenmo.errors import WenmoError, say
from wenmo.modeldir import Opened
from wenmo.models import CustomHeads
from wenmo.objectives import Objective, Term, hidden_of, target_hidden_of
from wenmo.tasks import CustomTasks, Task
from wenmo.text.tokenizer import Tokenizer

Status = Literal["pass", "fail", "skip"]
Row = Mapping[str, Any]
Example = list[Sequence]

NUM_ROWS = 24  # of the training rows, from which the examples come
NUM_EXAMPLES = 8
NUM_TOKENS, NUM_TOKENS_LARGE = 768, 256  # of all examples together, but for two that are longer by themselves
LARGE = 50_000_000  # parameters
LONGEST_TEXT = 20_000  # characters of a document
ABSOLUTE, RELATIVE = 2e-4, 2e-4  # what rounding in fp32 may do to hidden states and losses, other orders of sums

NAMES: dict[str, tuple[str, str]] = {
    "special_tokens": ("special tokens stand once", "控制词元不重复"),
    "chat_template": ("chat template gives the words back", "对话模板不丢失文本"),
    "mask": ("what is learned is what the rows say", "所学内容与数据一致"),
    "end_of_text": ("the end of text is learned", "学到文本的结束"),
    "padding": ("a longer neighbour changes nothing", "相邻的长文本不影响结果"),
    "order": ("the order in a batch changes nothing", "批内顺序不影响结果"),
    "isolation": ("no gradient from one document to another", "文档之间没有梯度"),
    "causality": ("no look ahead", "看不到后文"),
    "loss": ("the loss is the mean over real targets", "损失是真实目标上的平均"),
    "accumulation": ("micro-batches = one large batch", "分批累积等于一个大批次"),
    "saved": ("what is saved opens as it was", "保存后打开结果不变"),
    "overfit": ("one batch can be learned by heart", "能够背下一个批次"),
}


@dataclass(frozen=True)
class Check:
    name: str
    status: Status
    what: str
    mend: str = ""
    seconds: float = 0.0

    @property
    def title(self) -> str:
        return say(*NAMES[self.name])

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "status": self.status, "what": self.what,
                **({"mend": self.mend} if self.mend else {}), "seconds": round(self.seconds, 2)}


def passed(name: str, what: str) -> Check:
    return Check(name, "pass", what)


def failed(name: str, what: str, mend: str) -> Check:
    return Check(name, "fail", what, mend)


def skipped(name: str, why: str) -> Check:
    return Check(name, "skip", why)


@dataclass(frozen=True)
class Subject:
    """`examples`: a few, in the order drawn; `rows`: what they are made from, `rows[sequence.row]`. The model computes
    in fp32 while it is tested."""

    task: Task
    opened: Opened
    objective: Objective
    rows: list[Row]
    examples: list[Example]
    on: Device
    seed: int
    custom: CustomHeads | None = None
    custom_tasks: CustomTasks | None = None

    @property
    def model(self) -> Any:
        return self.opened.model

    @property
    def tokenizer(self) -> Tokenizer:
        return self.task.tokenizer

    def batch(self, examples: Iterable[Example]) -> Batch:
        return collate(sequence for example in examples for sequence in example).to(self.on.device)

    def by_length(self) -> list[Example]:
        return sorted(self.examples, key=num_tokens)


def subject_of(task: Task, opened: Opened, objective: Objective, rows: list[Row], folder: Path, on: Device, seed: int,
               custom: CustomHeads | None = None, custom_tasks: CustomTasks | None = None) -> Subject:
    """A few rows, drawn by seed, as the task makes examples of them; shards go into `folder`."""
    order = numpy_rng(seed, "plan").permutation(len(rows))[: NUM_ROWS].tolist()
    few = [_shortened(task, rows[place]) for place in order]
    few = [row for row in few if not _is_document(task) or task.tokenizer.encode(str(row["text"]))]
    built = task.build(few, folder, seed, f"plan {seed}").examples
    large = sum(parameter.numel() for parameter in opened.model.parameters()) > LARGE
    most = NUM_TOKENS_LARGE if large else NUM_TOKENS
    chosen: list[Example] = []
    total = 0
    for index in numpy_rng(seed, "plan examples").permutation(len(built.lengths(0))).tolist():
        example = built.sequences(index, 0)
        if len(chosen) < 2 or total + num_tokens(example) <= most:
            chosen.append(example)
            total += num_tokens(example)
        if len(chosen) == NUM_EXAMPLES:
            break
    return Subject(task, opened, objective, few, chosen, on, seed, custom, custom_tasks)


def _is_document(task: Task) -> bool:
    return task.settings.columns == ("text",) and not task.settings.target_columns


def _shortened(task: Task, row: Row) -> Row:
    return {**row, "text": str(row["text"])[:LONGEST_TEXT]} if _is_document(task) else row


def num_tokens(example: Example) -> int:
    return sum(map(len, example))


def timed(check: Callable[[Subject], Check], subject: Subject) -> Check:
    """The check with its seconds; a fault of the rows or the model that stops it is its failure."""
    began = time.perf_counter()
    try:
        found = check(subject)
    except WenmoError as error:
        found = failed(check.__name__, error.in_a_line,
                       error.mend or say("see the message", "见上述信息"))
    return replace(found, seconds=time.perf_counter() - began)


# The model, read without dropout ----------------------------------------------------------------------


def calm(objective: Objective) -> Objective:
    """The same objective, read without dropout even where the loop has switched it on."""
    def terms(model: Any, batch: Batch) -> list[Term]:
        model.eval()
        return objective.terms(model, batch)

    def represent(model: Any, batch: Batch) -> dict[str, Tensor]:
        assert objective.coupled is not None
        model.eval()
        return objective.coupled.represent(model, batch)

    coupled = None if objective.coupled is None else replace(objective.coupled, represent=represent)
    return Objective(objective.counts, terms, coupled)


def hidden_states(model: Any, batch: Batch) -> dict[str, list[Tensor]]:
    """Role → what the model makes of each of its sequences (of an encoder–decoder: of the target), [T, D] each."""
    if "seq2seq_lm" in model.heads:
        return {TARGET: list(torch.split(target_hidden_of(model, batch), list(batch.roles[TARGET].lengths)))}
    return {role: list(torch.split(hidden_of(model, flat), list(flat.lengths))) for role, flat in batch.roles.items()}


def embedded_roles(model: Any, batch: Batch) -> list[str]:
    """The roles in the order in which their words are embedded."""
    return [SOURCE, TARGET] if "seq2seq_lm" in model.heads else list(batch.roles)


def places_of(examples: list[Example], place: int, role: str) -> slice:
    """Which of a role's sequences in a batch of these examples are those of the example at `place`."""
    counts = [sum(sequence.role == role for sequence in example) for example in examples]
    before = sum(counts[:place])
    return slice(before, before + counts[place])


def loss_of(objective: Objective, model: Any, batch: Batch) -> float:
    """The loss as the loop divides it, without dropout."""
    counts = objective.counts(batch)
    with torch.no_grad():
        return float(sum((term.weight * float(term.sum) / counts[term.name]
                          for term in calm(objective).terms(model, batch) if counts[term.name] > 0), 0.0))


def difference(first: list[Tensor], second: list[Tensor]) -> float:
    """The largest difference of two lists of tensors, in shares of what rounding may do: above 1 they differ."""
    worst = 0.0
    for one, other in zip(first, second, strict=True):
        allowed = ABSOLUTE + RELATIVE * float(one.abs().max())
        gap = float((one.float() - other.float()).abs().max())
        worst = max(worst, gap / allowed if gap == gap else float("inf"))
    return worst
