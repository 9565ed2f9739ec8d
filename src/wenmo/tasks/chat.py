"""Chat: to answer as the assistant in a conversation (supervised fine-tuning; Ouyang et al. 2022, §3.1, step 1).

In: rows of `messages` (and of `tools`, where functions may be called). A chat template lays them out as one text; the
loss is cross-entropy on what the assistant says, and on nothing else. Out: the assistant's next answer, {"output"}.

The template is the model's own, or the recipe's. It is part of the tokenizer, so it lies in the model's folder, and
training, evaluation, `wenmo chat` and `wenmo generate --chat` read it there.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BeforeValidator

from wenmo.config import Count, Fraction, Settings, free
from wenmo.data.examples import Rows
from wenmo.data.sequence import Batch, Sequence, examples_of
from wenmo.errors import DataError, RecipeError, say
from wenmo.generate import Completion, Sampling, generate
from wenmo.metrics import Estimate
from wenmo.metrics.comparison import row_ratio
from wenmo.models import LanguageModel
from wenmo.nn.cross_entropy import IGNORED
from wenmo.objectives import Objective, hidden_of, language_modeling
from wenmo.tasks.likelihood import answer, likelihoods, measured
from wenmo.tasks.task import Built, Encoded, Lengths, Measured, row_name
from wenmo.text import chat
from wenmo.text.chat_templates import TEMPLATES, template_named
from wenmo.text.messages import Message, exchanges, refuse_unfit, tools_of, up_to_question, usual, with_system
from wenmo.text.tokenizer import Tokenizer


def _source(value: Any) -> Any:
    """A name or a template's source as it is; the path of a .jinja file becomes what the file says, so that a resumed
    run goes on with the same."""
    if not isinstance(value, str) or value in TEMPLATES or "{" in value:
        return value
    if not value.endswith(".jinja"):
        raise ValueError(say(f"neither {', '.join(TEMPLATES)} nor a file that ends in .jinja",
                             f"既不是 {'、'.join(TEMPLATES)}，也不是以 .jinja 结尾的文件"))
    try:
        return Path(value).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(say(f"cannot read it: {error}", f"无法读取：{error}")) from error


class ChatSettings(Settings):
    """template: `chatml`, `llama3` or a .jinja file, for a model that has none or is to have another one; the control
    tokens that a named one writes with are added to the tokenizer, and rows for them to the model.
    system: what stands above conversations without a system message, in training as in answers.
    learn: every turn of the assistant, or the last one of each conversation.
    max_new_tokens: of an answer that `predict` gives."""

    type: Literal["chat"] = "chat"
    template: Annotated[str, BeforeValidator(_source)] | None = None
    system: str = ""
    learn: Literal["all", "last"] = "all"
    label_smoothing: Fraction = 0.0
    max_new_tokens: Count = free(256, gt=0)

    @property
    def columns(self) -> tuple[str, ...]:
        return ("messages",)

    @property
    def target_columns(self) -> tuple[str, ...]:
        return ()

    @property
    def head_kinds(self) -> frozenset[str]:
        return frozenset({"causal_lm"})


class Refused(DataError):
    """A conversation that is too long, where the recipe says that none shall be cut."""


@dataclass(frozen=True)
class Chat:
    settings: ChatSettings
    given_tokenizer: Tokenizer
    lengths: Lengths

    name = "chat"

    def __post_init__(self) -> None:
        if self.tokenizer.chat_template is None:
            raise RecipeError(
                say("this model has no chat template", "该模型没有对话模板"), where="task.template",
                mend=say(f"set task.template: {', '.join(TEMPLATES)}, or a .jinja file",
                         f"请设置 task.template：{'、'.join(TEMPLATES)}，或一个 .jinja 文件"))
        if self._end is None:
            raise RecipeError(
                say("in this chat template no control token ends what the assistant says: a model would learn to "
                    "answer and never to stop", "此对话模板中没有控制词元结束助手的话：模型会学会回答，却学不会停止"),
                where="task.template", mend=say("end the turns with a control token of the tokenizer, or take "
                                                "`template: chatml`",
                                                "请用分词器的控制词元结束每一轮，或使用 `template: chatml`"))

    @cached_property
    def tokenizer(self) -> Tokenizer:
        if self.settings.template is None:
            return self.given_tokenizer
        template = template_named(self.settings.template)
        return self.given_tokenizer.with_chat_template(template.source, template.control_tokens, template.end)

    @cached_property
    def _end(self) -> int | None:
        return chat.end_of_turn(self.tokenizer)

    @property
    def ends(self) -> tuple[int, ...]:
        """The ids that end an answer: the template's end of a turn, and the tokenizer's end of text."""
        return tuple(dict.fromkeys(id for id in (self._end, self.tokenizer.eos_id) if id is not None))

    @property
    def heads(self) -> Mapping[str, int]:
        return {"causal_lm": 0}

    def fitted(self, rows: Iterable[Mapping[str, Any]]) -> Chat:
        return self

    def tuned(self, rows: list[Mapping[str, Any]], outputs: Callable[[], list[list[Any]]]) -> Chat:
        return self

    # Conversations → ids --------------------------------------------------------------------------------

    def encode(self, number: int, row: Mapping[str, Any], *, with_targets: bool) -> Encoded:
        """A conversation that nothing can be learned from (see `learnable`) has no sequences. To be answered is the
        conversation up to its last question; DataError where there is none, or for what are no messages."""
        if with_targets:
            try:
                return self.learnable(number, row)
            except Refused:
                raise
            except DataError:
                return Encoded([])
        messages = up_to_question(with_system(usual(row["messages"]), self.settings.system))
        last = messages[-1] if messages else {}
        if last.get("role") not in ("user", "tool") or not str(last.get("content") or "").strip():
            raise DataError(say("there is no question to answer", "没有可以回答的问题"),
                            where=row_name(number),
                            mend=say("the last message is the user's, and says something",
                                     "最后一条应是用户的消息，且有内容"))
        ids = chat.render(self.tokenizer, messages, tools=tools_of(row), add_generation_prompt=True)
        return Encoded([Sequence(number, {"ids": np.asarray(ids)})])

    def learnable(self, number: int, row: Mapping[str, Any]) -> Encoded:
        """The sequences of a conversation that fits, or of what is kept of a longer one, whole exchanges at a time:

            head      as many from the beginning as fit
            tail      as many from the end
            window    several sequences: each exchange stands in one
            refuse    Refused

        What stands above the conversation (system) is kept in all of them. An exchange that is too long by itself is
        cut at its end. Raises DataError for a conversation that a model must not learn from: roles out of order, an
        empty message, no answer, calls of functions that the template has no place for.
        """
        messages = with_system(usual(row["messages"]), self.settings.system)
        refuse_unfit(messages)
        tools = tools_of(row)
        if (tools or any(message.get("tool_calls") for message in messages)) and not chat.has_place_for_tools(
                self.tokenizer, messages, tools):
            raise DataError(
                say("the chat template has no place for tools or calls of them",
                    "对话模板没有放置工具或工具调用的位置"),
                where="chat_template.jinja", mend=say("set task.template: chatml", "请设置 task.template: chatml"))
        above, parts = exchanges(messages)

        def fits(some: list[list[Message]]) -> bool:
            return len(self._sequence(number, above, some, tools)) <= self.lengths.max_tokens

        whole = self._sequence(number, above, parts, tools)
        if len(whole) <= self.lengths.max_tokens:
            return Encoded([whole])
        chosen = self._divided(parts, fits, len(whole))
        kept = [_shortened(self._sequence(number, above, some, tools), self.lengths.max_tokens) for some in chosen]
        learned = [sequence for sequence in kept if _num_learned(sequence)]
        if not learned:
            raise DataError(say("a question that leaves no room for its answer", "问题太长，容不下回答"),
                            where=row_name(number),
                            mend=say("raise data.max_tokens", "请增大 data.max_tokens"))
        lost = _num_learned(whole) - sum(map(_num_learned, learned))  # at the joints of windows nothing is
        return Encoded(learned, max(lost, len(whole) - sum(map(len, learned))) if lost else 0)

    def _divided(self, parts: list[list[Message]], fits: Callable[[list[list[Message]]], bool],
                 num_tokens: int) -> list[list[list[Message]]]:
        """The exchanges of each sequence; one alone may still be too long."""
        match self.lengths.too_long:
            case "head":
                return [parts[:next((n for n in range(len(parts) - 1, 1, -1) if fits(parts[:n])), 1)]]
            case "tail":
                return [parts[next((n for n in range(1, len(parts)) if fits(parts[n:])), len(parts) - 1):]]
            case "window":
                groups: list[list[list[Message]]] = [[parts[0]]]
                for part in parts[1:]:
                    if fits([*groups[-1], part]):
                        groups[-1].append(part)
                    else:
                        groups.append([part])
                return groups[-1:] if self.settings.learn == "last" else groups
            case _:
                raise Refused(
                    say(f"a conversation of {num_tokens} tokens, {self.lengths.max_tokens} fit",
                        f"对话有 {num_tokens} 个词元，最多容纳 {self.lengths.max_tokens} 个"), where="data.too_long",
                    mend=say("raise data.max_tokens, or set data.too_long to head, tail or window",
                             "请增大 data.max_tokens，或将 data.too_long 设为 head、tail 或 window"))

    def _sequence(self, number: int, above: list[Message], parts: list[list[Message]], tools: Any) -> Sequence:
        """The conversation up to its last learned token, of which nothing follows: that one is only a target."""
        messages = [*above, *(message for part in parts for message in part)]
        ids, mask = chat.render_with_mask(self.tokenizer, messages, tools=tools,
                                          last_only=self.settings.learn == "last")
        targets = np.where(mask, ids, IGNORED)[1:]
        end = int(np.flatnonzero(targets != IGNORED)[-1]) + 1 if (targets != IGNORED).any() else 1
        said = self.tokenizer.decode([id for id, learned in zip(ids, mask, strict=True) if learned])
        return Sequence(number, {"ids": np.asarray(ids[:end]), "targets": targets[:end]},
                        {"num_characters": len(said), "num_bytes": len(said.encode("utf-8", "replace"))})

    def build(self, rows: Iterable[Mapping[str, Any]], folder: Path, seed: int, source_hash: str) -> Built:
        """Conversations that must not be learned from are left out, and counted by the reason."""
        found: list[Encoded] = []
        skipped: Counter[str] = Counter()
        example = ""
        for number, row in enumerate(rows):
            try:
                found.append(self.learnable(number, row))
            except Refused:
                raise
            except DataError as error:
                skipped[error.what] += 1
                example = example or f"{error.what} ({row_name(number)}, {error.where})"
        if not found:
            raise DataError(say("not one conversation can be learned from", "没有一段对话可供学习"), where=example,
                            mend=say("the user and the assistant speak in turn, and each says something",
                                     "用户与助手应轮流发言，且每条消息都有内容"))
        examples = Rows([example for row in found for example in examples_of(row.sequences)])
        return Built(examples, len(found), int(examples.lengths(0).sum()), sum(row.cut_tokens > 0 for row in found),
                     sum(row.cut_tokens for row in found), sum(skipped.values()),
                     tuple(say(f"skipped: {what}: {count:,}", f"已跳过：{what}：{count:,}")
                           for what, count in skipped.most_common()))

    def objective(self) -> Objective:
        return language_modeling(label_smoothing=self.settings.label_smoothing)

    # Answers --------------------------------------------------------------------------------------------

    def outputs(self, model: LanguageModel, batch: Batch) -> list[Any]:
        """The likelihood of what the assistant said, where it is known; else its answers."""
        flat = batch.text
        if "targets" in flat.tokens:
            return likelihoods(model, hidden_of(model, flat), flat)
        prompts = [part.tolist() for part in torch.split(flat.ids_M, list(flat.lengths))]
        longest = model.config.max_tokens
        short = [i for i, prompt in enumerate(prompts) if longest is None or len(prompt) < longest]
        sampling = Sampling(max_new_tokens=self.settings.max_new_tokens)
        banned = self.tokenizer.control_ids - frozenset(self.ends)  # an answer is text
        found = generate(model, self.tokenizer, [prompts[i] for i in short], sampling, frozenset(self.ends), banned)
        answers: dict[int, Completion] = {i: completion for i, [completion] in zip(short, found, strict=True)}
        return [answers.get(i) or _too_long(len(prompt), longest) for i, prompt in enumerate(prompts)]

    def decode(self, row: Mapping[str, Any], outputs: list[Any]) -> dict[str, Any]:
        """{"output"}; of a conversation with its answers, their likelihood. Raises DataError for one that is longer
        than the model."""
        if len(outputs) == 1 and isinstance(outputs[0], DataError):
            raise outputs[0]
        if len(outputs) == 1 and isinstance(outputs[0], Completion):
            return {"output": outputs[0].text}
        return answer(outputs)

    def measure(self, rows: list[Mapping[str, Any]], outputs: list[list[Any]], seed: int) -> Measured:
        """Of the assistant's part alone: the loss, perplexity per token, bits per character and per byte of its text.

        Conversations that nothing could be learned from are left out, and counted by the reason.
        """
        skipped: Counter[str] = Counter()
        for number, row in enumerate(rows):
            if not outputs[number]:
                try:
                    self.learnable(number, row)
                except DataError as error:
                    skipped[error.what] += 1
        said = [found for found in outputs if found]
        if not said:
            raise DataError(say("not one conversation can be measured", "没有一段对话可供评测"),
                            where=", ".join(f"{what} ({count})" for what, count in skipped.items()),
                            mend=say("each needs an answer of the assistant", "每段对话都需要助手的回答"))
        found = measured(said, seed, accuracy=None)
        nll, num_bytes = (np.asarray([sum(getattr(part, name) for part in row) for row in outputs], float)
                          for name in ("nll_nats", "num_bytes"))
        details = {**found.details, **({"skipped": dict(skipped)} if skipped else {})}
        per_token = found.metrics["perplexity"]
        loss = Estimate(*(math.log(each) for each in (per_token.value, per_token.low, per_token.high)))
        return Measured(len(said), {"loss": loss, **found.metrics}, details,
                        {"bits_per_byte": row_ratio(nll / np.log(2), num_bytes)})

    def card(self) -> dict[str, Any]:
        """The template is in the tokenizer by then."""
        settings = {**self.settings.model_dump(mode="json"), "template": None}
        return {**settings, "lengths": self.lengths.model_dump(mode="json")}


def _num_learned(sequence: Sequence) -> int:
    return int((sequence.tokens["targets"] != IGNORED).sum())


def _shortened(sequence: Sequence, num_tokens: int) -> Sequence:
    """At most so many tokens from the beginning; the size of what is said shrinks with its tokens."""
    if len(sequence) <= num_tokens:
        return sequence
    kept = replace(sequence, tokens={name: values[:num_tokens] for name, values in sequence.tokens.items()})
    part = _num_learned(kept) / _num_learned(sequence)
    return replace(kept, values={name: round(float(value) * part) for name, value in sequence.values.items()})


def _too_long(num_tokens: int, longest: int | None) -> DataError:
    return DataError(
        say(f"a conversation of {num_tokens:,} tokens, the model reads at most {longest or 0:,}",
            f"对话有 {num_tokens:,} 个词元，模型最多读 {longest or 0:,} 个"), where="messages",
        mend=say("shorten it, or leave out its oldest turns", "请缩短它，或去掉最早的几轮"))
