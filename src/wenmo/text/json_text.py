"""JSON: lines that are objects each, or one array, or SQuAD's nested object; a piece of the file at a time.

In: a text stream. Out: records whose fields are dicts. A bad line of a .jsonl costs itself; where the frame of a
.json is broken, nothing past that place can be trusted, and it is a DataError with the line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, TextIO

from wenmo.errors import DataError, say
from wenmo.text.records import Record, misfits_in

PIECE_CHARACTERS = 1 << 20
_SPACE = re.compile(r"[ \t\r\n]*")
_SQUAD = re.compile(r'\s*\{.*"data"\s*:\s*\[', re.DOTALL)


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse)


def json_lines(stream: TextIO) -> Iterator[Record]:
    for number, line in enumerate(stream, 1):
        line = line.strip()
        if not line:
            continue
        try:
            yield _object(number, _DECODER.decode(line), line)
        except (ValueError, RecursionError) as error:
            yield Record(number, {}, line, say(f"not valid JSON: {error}", f"不是合法的 JSON：{error}"))


def json_array(stream: TextIO, path: Path) -> Iterator[Record]:
    """The elements of one array."""
    text = _Text(stream, path, say("not an array of JSON objects", "不是 JSON 对象的数组"))
    for number, (value, raw) in enumerate(_elements(text), 1):
        yield _object(number, value, raw)
    text.expect_end()


def squad(stream: TextIO, path: Path) -> Iterator[Record]:
    """SQuAD 1.1 and 2.0, an article at a time: a record for each question.

    Its keys: question, context, id, title, is_impossible, and answers: [{"text", "answer_start"}], none of them where
    the question cannot be answered. `title` falls back on the paragraph's, then on the article's number, so that the
    questions of one article can be kept together. An answer that stands nowhere in its context makes the row bad; one
    that stands elsewhere than it says is the task's to put right (tasks/answers.py). Rajpurkar et al. 2016, §3; 2018.
    """
    text = _Text(stream, path, say("not a SQuAD file", "不是 SQuAD 文件"))
    text.expect("{")
    while not text.take("}"):
        name, _ = text.value()
        text.expect(":")
        if name == "data":
            number = 0
            for article_number, (article, raw) in enumerate(_elements(text), 1):
                for record in _questions(article, raw, article_number):
                    number += 1
                    yield record._replace(number=number)
        else:
            text.value()
        if not text.take(","):
            text.expect("}")
            break
    text.expect_end()


def looks_like_squad(head: str) -> bool:
    """Whether a file that begins so is SQuAD: an object whose `data` is a list with `paragraphs` in it."""
    return _SQUAD.match(head) is not None and '"paragraphs"' in head


def _object(number: int, value: Any, raw: str) -> Record:
    if not isinstance(value, dict):
        return Record(number, {}, raw, say("not a JSON object", "不是 JSON 对象"))
    return Record(number, value, raw, misfits_in(value) if "\\u" in raw else "")


def _elements(text: _Text) -> Iterator[tuple[Any, str]]:
    """(value, as it is written) of each element of an array, which begins here."""
    text.expect("[", say("an array must begin with [", "数组须以 [ 开头"))
    if text.take("]"):
        return
    while True:
        yield text.value()
        if text.take("]"):
            return
        text.expect(",", "expecting , or ]")


# Questions --------------------------------------------------------------------------------------------


def _questions(article: Any, raw: str, number: int) -> Iterator[Record]:
    try:
        paragraphs = [(paragraph, list(paragraph["qas"])) for paragraph in article["paragraphs"]]
    except (KeyError, TypeError):
        yield Record(0, {}, raw, say("an article without paragraphs and qas", "文章缺少 paragraphs 或 qas"))
        return
    for paragraph, questions in paragraphs:
        title = article.get("title") or paragraph.get("title") or str(number)
        for question in questions:
            yield _question(question, paragraph.get("context"), title)


def _question(question: Any, context: Any, title: Any) -> Record:
    raw = json.dumps(question, ensure_ascii=False)
    if not isinstance(question, dict) or not isinstance(context, str):
        return Record(0, {}, raw, say("a question needs an object and a context", "问题应为对象，且须有 context"))
    fields = {"question": question.get("question"), "context": context, "id": question.get("id"), "title": title,
              "is_impossible": bool(question.get("is_impossible", False))}
    if "answers" in question:  # the files that are given out without them lack the key
        answers = [] if fields["is_impossible"] else question["answers"]
        fault = _answers_fault(answers, context)
        if fault:
            return Record(0, {}, raw, fault)
        fields["answers"] = [{"text": answer["text"], "answer_start": answer["answer_start"]} for answer in answers]
    return Record(0, fields, raw, misfits_in(fields))


def _answers_fault(answers: Any, context: str) -> str:
    if not isinstance(answers, list):
        return say("`answers` is not a list", "`answers` 不是列表")
    for answer in answers:
        text, start = (answer.get("text"), answer.get("answer_start")) if isinstance(answer, dict) else (None, None)
        if not isinstance(text, str) or type(start) is not int:
            return say("an answer needs `text` and `answer_start`", "答案须有 `text` 和 `answer_start`")
        if not text.strip() or text not in context:
            return say(f"the answer does not stand in the context: {text}", f"答案不在原文中：{text}")
    return ""


# Pieces -----------------------------------------------------------------------------------------------


class _Text:
    """JSON text of which only a piece is in memory; `what` begins the message of each fault."""

    def __init__(self, stream: TextIO, path: Path, what: str) -> None:
        self._stream, self._path, self._what = stream, path, what
        self._buffer, self._at, self._line = "", 0, 1

    def next(self) -> str:
        """The next character that is no space, not taken; empty at the end of the file."""
        while True:
            found = _SPACE.match(self._buffer, self._at)
            assert found is not None
            self._at = found.end()
            if self._at < len(self._buffer) or not self._more():
                return self._buffer[self._at : self._at + 1]

    def take(self, character: str) -> bool:
        """Takes it if it comes next."""
        if self.next() != character:
            return False
        self._at += 1
        return True

    def expect(self, character: str, message: str = "") -> None:
        if not self.take(character):
            raise self._fault(self._at, message or f"expecting {character}")

    def value(self) -> tuple[Any, str]:
        """(the next value, as it is written)."""
        self.next()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._buffer, self._at)
                if end < len(self._buffer) or not self._more():  # at the end of a piece `12` may begin `123`
                    raw = self._buffer[self._at : end]
                    self._at = end
                    return value, raw
            except (ValueError, RecursionError) as error:  # broken, or only cut by the end of the piece
                if not self._more():
                    place = error.pos if isinstance(error, json.JSONDecodeError) else self._at
                    message = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                    raise self._fault(place, message) from error

    def expect_end(self) -> None:
        if self.next():
            raise self._fault(self._at, say("text after the array", "数组之后还有文本"))

    def _more(self) -> bool:
        """Reads on, at least as much again as is waiting; what was taken is forgotten."""
        more = self._stream.read(max(PIECE_CHARACTERS, len(self._buffer) - self._at))
        if not more:
            return False
        self._line += self._buffer.count("\n", 0, self._at)
        self._buffer, self._at = self._buffer[self._at :] + more, 0
        return True

    def _fault(self, at: int, message: str) -> DataError:
        if not self.next():
            at, message = len(self._buffer), say("it does not close", "没有结尾")
        line = self._line + self._buffer.count("\n", 0, at)
        return DataError(
            f"{self._what}{say(': ', '：')}{message}", where=f"{self._path}:{line}",
            mend=say("fetch the file again, or write one object a line (.jsonl), where a bad line costs only itself",
                     "请重新获取该文件，或每行写一个对象（.jsonl），那样坏行只影响自身"),
        )
