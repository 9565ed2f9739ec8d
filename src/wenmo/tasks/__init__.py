"""Tasks, and the one table of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from wenmo.config import parse
from wenmo.errors import ModelError, say
from wenmo.tasks.classification import Classification, ClassificationSettings
from wenmo.tasks.language_modeling import CausalLMSettings, LanguageModeling, MaskedLMSettings
from wenmo.tasks.task import Built, Encoded, Lengths, Measured, Task
from wenmo.text.tokenizer import Tokenizer

TaskSettings = Annotated[
    ClassificationSettings | CausalLMSettings | MaskedLMSettings, Field(discriminator="type")]

# task.type in a recipe → its settings and its class
TASKS: dict[str, tuple[Any, Any]] = {
    "classification": (ClassificationSettings, Classification),
    "causal_lm": (CausalLMSettings, LanguageModeling),
    "masked_lm": (MaskedLMSettings, LanguageModeling),
}


def create_task(settings: Any, tokenizer: Tokenizer, lengths: Lengths) -> Task:
    """The task that a recipe names; `fitted` completes it from the training rows."""
    task: Task = TASKS[settings.type][1](settings, tokenizer, lengths)
    return task


def task_from_card(card: Mapping[str, Any], tokenizer: Tokenizer, where: str) -> Task:
    """The task that a ModelDir carries, as it was trained."""
    kind = card.get("type")
    if kind not in TASKS:
        raise ModelError(say(f"unknown task `{kind}`", f"未知任务 `{kind}`"), where=where,
                         mend=say("update wenmo, or check wenmo.json", "请升级 wenmo，或检查 wenmo.json"))
    settings_class, task_class = TASKS[kind]
    known = {key: value for key, value in card.items() if key != "lengths"}
    task: Task = task_class(parse(settings_class, known, where), tokenizer, parse(Lengths, card["lengths"], where))
    return task


__all__ = ["TASKS", "Built", "Encoded", "Lengths", "Measured", "Task", "TaskSettings", "create_task",
           "task_from_card"]
