"""What is trained on, shown: each example as text, what is learned in colour; and whether that is what the row says.

In: a Subject. Out: `Shown` examples (for a person), and a Check (for all of them).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from wenmo.data.sequence import SOURCE, TARGET, Sequence
from wenmo.errors import say
from wenmo.nn.cross_entropy import IGNORED
from wenmo.plan.checks import Check, Example, Row, Subject, failed, passed, skipped
from wenmo.tasks.text_to_text import references_of
from wenmo.text.messages import usual, with_system
from wenmo.text.tagging_schemes import entities_of

SPOKEN = 6  # characters of a user's message that the assistant would hardly say by itself


@dataclass(frozen=True)
class Shown:
    """`parts`: (text, whether it is learned), in order. `learned`: what is learned that is no text (a label, tags)."""

    row: int
    role: str
    parts: tuple[tuple[str, bool], ...]
    learned: str = ""

    def as_dict(self) -> dict[str, Any]:
        return {"row": self.row, "role": self.role,
                "parts": [{"text": text, "learned": learned} for text, learned in self.parts],
                **({"learned": self.learned} if self.learned else {})}


def preview(subject: Subject, number: int = 2) -> list[Shown]:
    """The first few examples; a masked token is shown as what was there, and what the model reads in its place."""
    return [_shown(subject, sequence) for example in subject.examples[:number] for sequence in example]


def _shown(subject: Subject, sequence: Sequence) -> Shown:
    ids, learned = _learned_ids(subject, sequence)
    tokenizer = subject.tokenizer
    parts: list[tuple[str, bool]] = []
    start = 0
    for place in range(1, len(ids) + 1):
        if place == len(ids) or learned[place] != learned[start]:
            parts.append((tokenizer.decode(ids[start:place], keep_control=True), learned[start]))
            start = place
    return Shown(sequence.row, sequence.role, tuple(parts), _values(subject.task, sequence))


def _learned_ids(subject: Subject, sequence: Sequence) -> tuple[list[int], list[bool]]:
    """The tokens as they are read or to be said, and for each whether it is learned."""
    ids = np.asarray(sequence.tokens["ids"]).tolist()
    if "targets" not in sequence.tokens or subject.task.name in ("tagging", "joint"):
        return ids, [False] * len(ids)
    targets = np.asarray(sequence.tokens["targets"]).tolist()
    if "masked_lm" in subject.model.heads:
        return ([id if target == IGNORED else target for id, target in zip(ids, targets, strict=True)],
                [target != IGNORED for target in targets])
    # The token at a place says what comes next: what is learned lies one further, the last of it behind the end.
    said = [*ids[:1], *(id if target == IGNORED else target
                        for id, target in zip([*ids[1:], IGNORED], targets, strict=True))]
    learned = [False, *(target != IGNORED for target in targets)]
    return (said, learned) if learned[-1] else (said[:-1], learned[:-1])


def _values(task: Any, sequence: Sequence) -> str:
    """Labels, scores and tags by their names."""
    values, tokens = sequence.values, sequence.tokens
    if task.name == "tagging" and "targets" in tokens:
        labels = list(task.labels)
        return " ".join(labels[target] for target in np.asarray(tokens["targets"]).tolist() if target != IGNORED)
    if task.name == "classification" and "label" in values:
        return str(list(task.labels)[int(np.asarray(values["label"]))])
    if task.name == "multi_label" and "labels" in values:
        yes = np.asarray(values["labels"]).tolist()
        return ", ".join(name for name, said in zip(task.labels, yes, strict=True) if said)
    if task.name == "span_qa" and "start" in values:
        return f"{values['start']} … {values['end']}"
    named = {name: value for name, value in values.items() if name.split(".")[-1] in ("label", "score", "target")}
    return ", ".join(f"{name} {value}" for name, value in named.items())


# Is it what the row says? -----------------------------------------------------------------------------


def mask(subject: Subject) -> Check:
    """Each example is taken back to text, or to its label, and held against its row."""
    kinds: dict[str, Any] = {
        "causal_lm": _document, "masked_lm": _document, "span_corruption": _spans_put_back, "chat": _conversation,
        "text_to_text": _target, "tagging": _tags, "span_qa": _answer, "classification": _label,
        "multi_label": _labels, "regression": _score}
    said = kinds.get(subject.task.name)
    if said is None:
        return skipped("mask", say("shown, but not compared with the rows: this task's targets are its own",
                                   "仅展示，不与数据比较：该任务的目标是其特有的"))
    for example in subject.examples:
        fault = said(subject, example, subject.rows[example[0].row])
        if fault:
            return failed("mask", f"{fault} ({say('row', '行')} {example[0].row})",
                          say("what `encode` or `build` makes of a row is not what it says: look at the columns, the "
                              "labels, the template", "encode 或 build 的结果与该行内容不符：请检查列、标签或模板"))
    num = sum(_num_learned(subject, sequence) for example in subject.examples for sequence in example)
    total = sum(len(sequence) for example in subject.examples for sequence in example)
    return passed("mask", say(f"{len(subject.examples)} examples, {num:,} targets on {total:,} tokens",
                              f"{len(subject.examples)} 个样本，{total:,} 个词元上有 {num:,} 个目标"))


def _num_learned(subject: Subject, sequence: Sequence) -> int:
    if "targets" in sequence.tokens:
        return int((np.asarray(sequence.tokens["targets"]) != IGNORED).sum())
    return int(bool({"label", "labels", "score", "start"} & sequence.values.keys()))


def _contains(whole: list[int], part: list[int]) -> bool:
    return any(whole[i : i + len(part)] == part for i in range(len(whole) - len(part) + 1))


def _text_only(subject: Subject, ids: list[int]) -> list[int]:
    return [id for id in ids if id not in subject.tokenizer.control_ids]


def _document(subject: Subject, example: Example, row: Row) -> str:
    """Causal: all but the beginning is learned; masked: with the targets in their places it is the text again."""
    [sequence] = example
    ids, learned = _learned_ids(subject, sequence)
    if "segments" in sequence.tokens:  # a pair, of which only the first piece is sure to be of this row
        first = np.asarray(sequence.tokens["segments"]) == 0
        ids = [id for id, own in zip(ids, first.tolist(), strict=True) if own]
    own = subject.tokenizer.encode(str(row["text"]))
    if not _contains(own, _text_only(subject, ids)):
        return say("with its targets in place it is not a piece of the text", "填回目标后不是原文的片段")
    if "causal_lm" in subject.model.heads and not all(learned[1:]):
        return say("a token of the text is not learned", "文本中有词元没有学习")
    return ""


def _spans_put_back(subject: Subject, example: Example, row: Row) -> str:
    source, target = (next(np.asarray(sequence.tokens[name]).tolist() for sequence in example if sequence.role == role)
                      for role, name in ((SOURCE, "ids"), (TARGET, "targets")))
    sentinels = (set(source) & set(target) & subject.tokenizer.control_ids) - {subject.tokenizer.eos_id}
    spans: dict[int, list[int]] = {}
    for id in target:
        if id in sentinels:
            current = spans.setdefault(id, [])
        elif spans:
            current.append(id)
    whole = [each for id in source for each in spans.get(id, [id])]
    if not _contains(subject.tokenizer.encode(str(row["text"])), _text_only(subject, whole)):
        return say("with its spans put back it is not a piece of the text", "填回片段后不是原文的片段")
    return ""


def _conversation(subject: Subject, example: Example, row: Row) -> str:
    task: Any = subject.task
    messages = with_system(usual(row["messages"]), task.settings.system)
    said = [str(message.get("content") or "") for message in messages if message["role"] == "assistant"]
    parts = [text for sequence in example for text, learned in _shown(subject, sequence).parts if learned]
    learned, unlearned = _squeezed("".join(parts)), _squeezed("".join(
        text for sequence in example for text, learned in _shown(subject, sequence).parts if not learned))
    for message in messages:
        text = _squeezed(str(message.get("content") or ""))
        theirs = message["role"] == "assistant"
        spoken = len(text) >= SPOKEN and not any(text in _squeezed(each) for each in said)
        if not theirs and spoken and text in learned:
            return say(f"what the {message['role']} says is learned: “{text[:30]}”",
                       f"学习了 {message['role']} 的话：“{text[:30]}”")
    wanted = said[-1:] if task.settings.learn == "last" else said
    cut = task.encode(0, row, with_targets=True)
    if len(cut.sequences) == 1 and not cut.cut_tokens and not any(m.get("tool_calls") for m in messages):
        for text in wanted:
            if _squeezed(task.tokenizer.decode(task.tokenizer.encode(text))) not in learned:
                where = say("it is only read", "只被读取") if _squeezed(text) in unlearned else ""
                return say(f"what the assistant says is not learned: “{text[:30]}” {where}",
                           f"没有学习助手的话：“{text[:30]}”{where}")
    return ""


def _squeezed(text: str) -> str:
    return "".join(text.split()).lower()


def _target(subject: Subject, example: Example, row: Row) -> str:
    targets = np.asarray(example[-1].tokens["targets"])
    said = _text_only(subject, targets[targets != IGNORED].tolist())
    own = subject.tokenizer.encode(references_of(row)[0])
    return "" if own[: len(said)] == said and (said or not own) else say(
        "what is to be said is not the row's target", "要说的内容不是该行的目标")


def _tags(subject: Subject, example: Example, row: Row) -> str:
    task: Any = subject.task
    [sequence] = example
    if not (sequence.values["begins"] and sequence.values["ends"]) or task.settings.rows == "text":
        return ""
    labels, first = list(task.labels), np.asarray(sequence.tokens["first"]).astype(bool)
    found = [labels[target] for target in np.asarray(sequence.tokens["targets"])[first].tolist() if target != IGNORED]
    if task.settings.target == "tags":
        same = found == [str(tag) for tag in row["tags"]][: len(found)]
    elif task.settings.target == "words":
        same = sum(tag[0] in "BS" for tag in found) in (0, len([word for word in row["tokens"] if str(word).strip()]))
    else:
        same = len(found) != len(row["tags"]) or set(entities_of(found)) == set(
            entities_of([str(tag) for tag in row["tags"]]))
    return "" if same else say(f"the tags learned are {' '.join(found[:8])} …", f"所学的标签为 {' '.join(found[:8])} …")


def _answer(subject: Subject, example: Example, row: Row) -> str:
    [sequence] = example
    start, end = int(np.asarray(sequence.values["start"])), int(np.asarray(sequence.values["end"]))
    if start <= 0:  # not in this window
        return ""
    text = str(row["context"])[int(sequence.tokens["begins"][start]) : int(sequence.tokens["ends"][end])]
    accepted = [_squeezed(str(answer["text"])) for answer in row["answers"]]
    words = _squeezed(text)
    # A token may hold more than the answer: one is then within the other.
    return "" if any(words in each or each in words for each in accepted) else say(
        f"the span learned is “{text[:30]}”, not an answer", f"所学的片段“{text[:30]}”不是答案")


def _label(subject: Subject, example: Example, row: Row) -> str:
    found = {_values(subject.task, sequence) for sequence in example}
    return "" if found == {str(row["label"])} else say(
        f"the label learned is {', '.join(sorted(found))}, the row says {row['label']}",
        f"所学标签为 {'、'.join(sorted(found))}，该行为 {row['label']}")


def _labels(subject: Subject, example: Example, row: Row) -> str:
    task: Any = subject.task
    found = {name for name in _values(task, example[0]).split(", ") if name}
    yes = np.asarray(task.targets(row)["labels"]).tolist()
    own = {name for name, said in zip(task.labels, yes, strict=True) if said}
    return "" if found == own else say(f"the labels learned are {found}", f"所学标签为 {found}")


def _score(subject: Subject, example: Example, row: Row) -> str:
    task: Any = subject.task
    offset, scale = task.settings.offset or 0.0, task.settings.scale or 1.0
    found = float(np.asarray(example[0].values["score"])) * scale + offset
    return "" if abs(found - float(row["score"])) <= 1e-3 * max(1.0, abs(found)) else say(
        f"the score learned is {found:.4g}, the row says {row['score']}",
        f"所学分数为 {found:.4g}，该行为 {row['score']}")
