"""Self-tests of the way from text to ids: control tokens, the chat template, the end of a text.

In: a Subject. Out: a Check each. No model is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from wenmo.errors import DataError, say
from wenmo.nn.cross_entropy import IGNORED
from wenmo.plan.checks import Check, Row, Subject, failed, passed, skipped
from wenmo.tasks import Task
from wenmo.text.chat import render
from wenmo.text.messages import refuse_unfit, texts_of, tools_of, usual, with_system
from wenmo.text.tokenizer import Tokenizer

_TRIED = [{"role": "user", "content": "今天天气怎么样？ How are you?"},
          {"role": "assistant", "content": "很好，谢谢。 Fine, thanks."}]


def special_tokens(subject: Subject) -> Check:
    """No control token stands twice at an end of what the tokenizer wraps, or of what is learned from; and text never
    becomes one."""
    tokenizer = subject.tokenizer
    control = tokenizer.control_ids - {tokenizer.mask_id}
    word = next((ids for ids in (tokenizer.encode(text) for text in ("天", "a", "1")) if ids), [0])
    tried = [tokenizer.wrap(word)[0], *(
        np.asarray(sequence.tokens["ids"]).tolist() for example in subject.examples for sequence in example)]
    for ids in tried:
        for one, other in [pair for pair in (ids[:2], ids[-2:]) if len(pair) == 2]:
            if one == other and one in control:
                return failed("special_tokens", say(
                    f"{tokenizer.token(one)} stands twice in a row: {_start(tokenizer, ids)}",
                    f"{tokenizer.token(one)} 连续出现两次：{_start(tokenizer, ids)}"),
                    say("the tokenizer's post-processor adds it and something else too: take one of them out of "
                        "tokenizer.json or the chat template",
                        "分词器的后处理与别处都添加了它：请从 tokenizer.json 或对话模板中去掉一个"))
    for name in tokenizer.control_strings:
        if tokenizer.control_ids & set(tokenizer.encode(f"x {name} y")):
            return failed("special_tokens",
                          say(f"the text “{name}” becomes a control token", f"文本“{name}”成了控制词元"),
                          say("use this package's Tokenizer", "请使用本软件包的 Tokenizer"))
    shown = "".join(tokenizer.token(id) for id in tried[0]) if len(tried[0]) > len(word) else say("none", "无")
    return passed("special_tokens", say(f"around a text: {shown}", f"文本两端：{shown}"))


def _start(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    return " ".join(tokenizer.token(id) for id in ids[:6]) + (" …" if len(ids) > 6 else "")


def chat_template(subject: Subject) -> Check:
    """Each message's words come back out of the ids, in order; and a question with what begins an answer is the
    beginning of the whole conversation, so that the model is asked as it was taught."""
    tokenizer, settings = subject.tokenizer, subject.task.settings
    if tokenizer.chat_template is None or subject.task.name != "chat":
        return skipped("chat_template", say("not a chat", "不是对话任务"))
    system = getattr(settings, "system", "")
    talks: list[tuple[list[Any], Any]] = [(with_system(_TRIED, system), None)]
    talks += [(with_system(usual(row["messages"]), system), tools_of(row)) for row in subject.rows[:8] if _fit(row)]
    mend = say("mend chat_template.jinja, or set task.template: chatml",
               "请修正 chat_template.jinja，或设置 task.template: chatml")
    for messages, tools in talks:
        ids = render(tokenizer, messages, tools=tools)
        whole, at = _squeezed(tokenizer.decode(ids)), 0
        last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=-1)
        for message in messages:
            for text in texts_of([message]):
                words = _squeezed(tokenizer.decode(tokenizer.encode(text)))
                place = whole.find(words, at)
                if place < 0:
                    return failed("chat_template", say(f"the template loses “{words[:40]}” ({message['role']})",
                                                       f"模板丢失了“{words[:40]}”（{message['role']}）"), mend)
                at = place + len(words)
        if last > 0 and messages[last - 1]["role"] in ("user", "tool"):
            asked = render(tokenizer, messages[:last], tools=tools, add_generation_prompt=True)
            told = render(tokenizer, messages[: last + 1], tools=tools)
            if told[: len(asked)] != asked:
                return failed("chat_template", say(
                    "a question with the prompt for an answer is not how the conversation with its answer begins: the "
                    "model would be asked in other words than it learned",
                    "提问加上回答提示不是完整对话的开头：提问方式与所学不同"), mend)
    return passed("chat_template", say(f"{len(talks)} conversations", f"{len(talks)} 段对话"))


def _fit(row: Row) -> bool:
    """Whether a conversation is learned from at all; those that are not, training counts and leaves out."""
    try:
        refuse_unfit(usual(row["messages"]))
    except DataError:
        return False
    return True


def _squeezed(text: str) -> str:
    return "".join(text.split()).lower()


def end_of_text(subject: Subject) -> Check:
    """The model learns where a text ends: the last thing to be said of each is the token that ends it."""
    ends = _ends(subject.task)
    if not {"causal_lm", "seq2seq_lm"} & set(subject.model.heads):
        return skipped("end_of_text", say("a model that does not generate", "该模型不生成文本"))
    if not ends:
        return skipped("end_of_text", say("the tokenizer has no end of text: what is generated ends at its limit",
                                          "分词器没有结束词元：生成只会因达到上限而停止"))
    sequences = [sequence for example in subject.examples for sequence in example if "targets" in sequence.tokens]
    learned = [np.asarray(sequence.tokens["targets"]) for sequence in sequences]
    whole = [_is_last(subject, sequence.row, place, sequences) for place, sequence in enumerate(sequences)]
    ended = [bool(set(targets[targets != IGNORED][-1:].tolist()) & ends) for targets in learned]
    if not any(whole):
        return skipped("end_of_text", say("only pieces of long texts among the examples", "样本都是长文本的片段"))
    num_ended, num = sum(e for e, w in zip(ended, whole, strict=True) if w), sum(whole)
    shown = say(f"in {num_ended} of {num} examples that hold an end", f"{num} 个含结尾的样本中有 {num_ended} 个")
    names = " ".join(subject.tokenizer.token(id) for id in sorted(ends))
    if num_ended < (num if subject.task.name == "text_to_text" else 1):
        return failed("end_of_text", say(f"{names} is a target {shown}", f"{names} 作为目标：{shown}"),
                      say("without it the model never stops: raise data.max_tokens if texts are cut before their end; "
                          "else the task must add it",
                          "缺少它模型就不会停止：若文本在结尾前被截断，请增大 data.max_tokens；否则任务须添加它"))
    return passed("end_of_text", f"{names}: {shown}")


def _ends(task: Task) -> set[int]:
    given = getattr(task, "ends", None)
    eos = task.tokenizer.eos_id
    return set(given) if given is not None else set() if eos is None else {eos}


def _is_last(subject: Subject, row: int, place: int, sequences: list[Any]) -> bool:
    """Whether an example holds the end of its text: all do, but for the pieces of documents."""
    if subject.task.name != "causal_lm":
        return True
    own = subject.tokenizer.encode(str(subject.rows[row]["text"])) if row < len(subject.rows) else []
    ids = np.asarray(sequences[place].tokens["ids"]).tolist()
    return len(own) <= len(ids)
