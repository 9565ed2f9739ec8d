"""Tasks, and the one table of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from wenmo.config import parse
from wenmo.errors import ModelError, UsageError, say
from wenmo.tasks.chat import Chat, ChatSettings
from wenmo.tasks.classification import Classification, ClassificationSettings
from wenmo.tasks.joint import OF_THE_PART, Joint, JointSettings, joint_of
from wenmo.tasks.language_modeling import CausalLMSettings, LanguageModeling, MaskedLMSettings
from wenmo.tasks.multi_label import MultiLabel, MultiLabelSettings
from wenmo.tasks.regression import Regression, RegressionSettings
from wenmo.tasks.similarity import Similarity, SimilaritySettings
from wenmo.tasks.span_corruption import SpanCorruption, SpanCorruptionSettings
from wenmo.tasks.span_qa import SpanQA, SpanQASettings
from wenmo.tasks.tagging import Tagging
from wenmo.tasks.tagging_settings import TaggingSettings
from wenmo.tasks.task import Built, Encoded, Lengths, Measured, Task
from wenmo.tasks.text_task import TextSettings, TextTask
from wenmo.tasks.text_to_text import TextToText, TextToTextSettings
from wenmo.text.tokenizer import Tokenizer

TaskSettings = Annotated[
    ClassificationSettings
    | JointSettings
    | MultiLabelSettings
    | RegressionSettings
    | CausalLMSettings
    | MaskedLMSettings
    | SpanCorruptionSettings
    | SpanQASettings
    | TaggingSettings
    | SimilaritySettings
    | TextToTextSettings
    | ChatSettings,
    Field(discriminator="type")]

# task.type in a recipe → its settings and its class. Who has a task of their own hands in a table of the same form.
CustomTasks = Mapping[str, tuple[Any, Any]]
TASKS: dict[str, tuple[Any, Any]] = {
    "classification": (ClassificationSettings, Classification),
    "joint": (JointSettings, Joint),
    "multi_label": (MultiLabelSettings, MultiLabel),
    "regression": (RegressionSettings, Regression),
    "causal_lm": (CausalLMSettings, LanguageModeling),
    "masked_lm": (MaskedLMSettings, LanguageModeling),
    "span_corruption": (SpanCorruptionSettings, SpanCorruption),
    "span_qa": (SpanQASettings, SpanQA),
    "tagging": (TaggingSettings, Tagging),
    "similarity": (SimilaritySettings, Similarity),
    "text_to_text": (TextToTextSettings, TextToText),
    "chat": (ChatSettings, Chat),
}


def known_tasks(custom: CustomTasks | None) -> CustomTasks:
    """The table with the tasks that were handed in. UsageError for one that takes the name of another."""
    custom = custom or {}
    for kind in set(custom) & set(TASKS):
        raise UsageError(say(f"`{kind}` is a task of Wenmo's own", f"`{kind}` 是文模自带的任务"), where="tasks=",
                         mend=say("give yours another `type`", "请给你的任务换一个 `type`"))
    return {**TASKS, **custom}


def create_task(settings: Any, tokenizer: Tokenizer, lengths: Lengths, custom: CustomTasks | None = None) -> Task:
    """The task that a recipe names; `fitted` completes it from the training rows."""
    task: Task = known_tasks(custom)[settings.type][1](settings, tokenizer, lengths)
    return task


def cards_of(task: Task) -> dict[str, dict[str, Any]]:
    """Name → what a ModelDir must hold to make the task again; of a joint one, for each of its parts."""
    return task.cards() if isinstance(task, Joint) else {task.name: task.card()}


def task_from_card(card: Mapping[str, Any], tokenizer: Tokenizer, where: str,
                   custom: CustomTasks | None = None) -> Task:
    """The task that a ModelDir carries, as it was trained."""
    kind, known_kinds = str(card.get("type")), known_tasks(custom)
    if kind not in known_kinds:
        raise ModelError(
            say(f"unknown task `{kind}`", f"未知任务 `{kind}`"), where=where,
            mend=say("if it is a task of your own, hand it in, in Python: ", "若是你自己的任务，请在 Python 中交入：")
            + f"wenmo.load(…, tasks={{{kind!r}: (Settings, Task)}})" + say("; or update wenmo", "；否则请升级 wenmo"))
    settings_class, task_class = known_kinds[kind]
    # `r_drop` stood in the task until it became a key of training: models saved before have it in their card.
    known = {key: value for key, value in card.items() if key not in ("lengths", "r_drop", *OF_THE_PART)}
    task: Task = task_class(parse(settings_class, known, where), tokenizer, parse(Lengths, card["lengths"], where))
    return task


__all__ = ["TASKS", "Built", "CustomTasks", "Encoded", "Joint", "JointSettings", "Lengths", "Measured", "Task",
           "TaskSettings", "TextSettings", "TextTask", "cards_of", "create_task", "joint_of", "known_tasks",
           "task_from_card"]
