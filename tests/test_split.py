"""`wenmo split`: parts that share no text, drawn by the seed and the rows' contents alone."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

import small_data
from command import Command, wenmo
from wenmo.files import read_jsonl, write_jsonl
from wenmo.stages.split import split

__all__ = ["wenmo"]  # the fixture

COLUMNS = ("--columns", "text=review,label=label")


def parts(folder: Path) -> dict[str, list[dict[str, str]]]:
    return {path.stem: read_jsonl(path) for path in sorted(folder.glob("*.jsonl"))}


def texts(rows: list[dict[str, str]]) -> set[str]:
    return {row["text"] for row in rows}


def test_parts_share_no_text_and_nothing_is_lost(tmp_path: Path, wenmo: Command) -> None:
    rows = small_data.reviews(300)
    small_data.write_csv(tmp_path / "reviews.csv", ("review", "label"), [*rows, *rows[:40]])  # forty stand twice
    told = json.loads(wenmo("split", tmp_path / "reviews.csv", "report=50", "choose=20", "train", *COLUMNS,
                            "--out", tmp_path / "out", "--json").out)
    made = parts(tmp_path / "out")
    assert {name: len(part) for name, part in made.items()} == {"report": 50, "choose": 20, "train": 230}
    assert {name: part["rows"] for name, part in told["parts"].items()} == {"report": 50, "choose": 20, "train": 230}
    assert {(row["text"], row["label"]) for part in made.values() for row in part} == set(rows)
    assert sum(len(texts(part)) for part in made.values()) == 300


def test_a_question_may_be_asked_of_many_texts(tmp_path: Path) -> None:
    """Only where the context is the same too is it a duplicate; a translation is one where its source is the same."""
    rows = small_data.questions(30)
    write_jsonl(tmp_path / "questions.jsonl", [*rows, *rows[:9]])
    made = split([str(tmp_path / "questions.jsonl")], tmp_path / "out", ["report=5", "train"],
                 columns=("question", "context", "answers"))["parts"]
    assert made["report"]["rows"] + made["train"]["rows"] == len({(row["question"], row["context"]) for row in rows})
    write_jsonl(tmp_path / "pairs.jsonl", [{"source": f"a{n % 5}", "target": f"b{n}"} for n in range(20)])
    made = split([str(tmp_path / "pairs.jsonl")], tmp_path / "pairs", ["report=2", "train"],
                 columns=("source", "target"))["parts"]
    assert made["report"]["rows"] + made["train"]["rows"] == 5


def test_the_order_of_the_file_does_not_matter_and_the_seed_does(tmp_path: Path, wenmo: Command) -> None:
    rows = small_data.reviews(200)
    shuffled = random.Random(1).sample(rows, len(rows))
    for name, each, seed in (("a", rows, 0), ("b", shuffled, 0), ("c", rows, 1)):
        file = small_data.write_csv(tmp_path / f"{name}.csv", ("review", "label"), each)
        wenmo("split", file, "report=40", "train", *COLUMNS, "--out", tmp_path / name, "--seed", seed)
    a, b, c = (texts(parts(tmp_path / name)["report"]) for name in "abc")
    assert a == b
    assert len(a & c) < 20


def test_a_group_stays_together(tmp_path: Path, wenmo: Command) -> None:
    rows = [(f"{title} question {number}", "x" if number % 2 else "y", title)
            for title in (f"article {n}" for n in range(30)) for number in range(1 + len(title) % 7)]
    file = small_data.write_csv(tmp_path / "qa.csv", ("text", "label", "title"), rows)
    wenmo("split", file, "report=40", "train", "--columns", "text=text,label=label,title=title", "--group", "title",
          "--out", tmp_path / "out")
    made = parts(tmp_path / "out")
    titles = {name: {row["title"] for row in part} for name, part in made.items()}
    assert not titles["report"] & titles["train"]
    assert 30 < len(made["report"]) <= 40
    assert len(made["report"]) + len(made["train"]) == len(rows)


@pytest.mark.parametrize(("wanted", "fault"), [
    (["report=40"], "exactly one part takes the rest"), (["a", "b"], "exactly one part"),
    (["report=4", "report=5", "train"], "exactly one part"), (["report=x", "train"], "NAME=ROWS"),
    (["../report=4", "train"], "NAME=ROWS"), (["report=200", "train"], "cannot hold out"),
])
def test_parts_that_make_no_sense(tmp_path: Path, wenmo: Command, wanted: list[str], fault: str) -> None:
    file = small_data.write_csv(tmp_path / "reviews.csv", ("review", "label"), small_data.reviews(100))
    result = wenmo("split", file, *wanted, *COLUMNS, "--out", tmp_path / "out")
    assert result.code in (1, 2)
    assert fault in result.err
    assert not list(tmp_path.glob("out/*.jsonl"))


def test_what_is_read_is_never_overwritten(tmp_path: Path, wenmo: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "train.jsonl", [{"text": text, "label": label} for text, label in small_data.reviews(40)])
    before = (tmp_path / "train.jsonl").read_bytes()
    for given in ("train.jsonl", "tr*.jsonl"):
        result = wenmo("split", given, "report=10", "train", "--out", ".")
        assert result.code == 2
        assert "would be overwritten" in result.message[0]
    assert (tmp_path / "train.jsonl").read_bytes() == before


@pytest.mark.parametrize(("row", "kept"), [
    ({"question": "谁？", "context": "是我。", "answers": [{"text": "我", "answer_start": 1}], "id": "7"},
     {"question", "context", "answers"}),
    ({"text": "好", "score": 1.5}, {"text"}), ({"text": "好", "label": "x", "id": 7}, {"text", "label"}),
])
def test_the_usual_columns_of_a_file_are_kept(tmp_path: Path, wenmo: Command, row: dict, kept: set[str],
                                              caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    first = next(iter(row))
    write_jsonl(tmp_path / "rows.jsonl", [{**row, first: f"{row[first]}{number}"} for number in range(20)])
    result = wenmo("split", tmp_path / "rows.jsonl", "report=5", "train", "--out", tmp_path / "parts")
    assert result.code == 0
    assert "other columns are left out" in caplog.text
    assert set(read_jsonl(tmp_path / "parts" / "train.jsonl")[0]) == kept
