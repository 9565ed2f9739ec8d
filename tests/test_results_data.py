"""The recipes behind docs/results.md, and the rows that its figures were measured on."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from bench import pairs, questions
from bench.prepare import HASHES, SPLITS, divide
from wenmo.files import read_jsonl
from wenmo.recipe import read_recipe

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("WENMO_TEST_DATA", ROOT.parent / "shared" / "data"))


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_accepted(path: Path) -> None:
    read_recipe(path)
    said = "\n".join(line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    assert re.search("[a-z]{4}", said), "what it is for stands above it in English"
    assert re.search("[\u4e00-\u9fff]{4}", said), "and in Chinese"


@pytest.mark.skipif(not DATA.exists(), reason=f"the public sets are not in {DATA} (WENMO_TEST_DATA)")
@pytest.mark.parametrize("name", ["hotel", "trec", "sst-report"])
def test_the_rows_held_out_are_those_of_the_figures(name: str, tmp_path: Path) -> None:
    divide(name, DATA, tmp_path)


@pytest.mark.skipif(not DATA.exists(), reason=f"the public sets are not in {DATA} (WENMO_TEST_DATA)")
def test_the_parts_of_the_question_sets_share_no_article(tmp_path: Path) -> None:
    questions.divide_questions(DATA, tmp_path)  # held to their hashes
    for name in ("drcd", "cmrc", "subjqa"):
        contexts = [{row["context"] for row in read_jsonl(path)} for path in sorted((tmp_path / name).glob("*.jsonl"))]
        assert len(set().union(*contexts)) == sum(map(len, contexts)) > 0


@pytest.mark.skipif(not DATA.exists(), reason=f"the public sets are not in {DATA} (WENMO_TEST_DATA)")
def test_the_parts_of_the_pairs_share_no_text(tmp_path: Path) -> None:
    pairs.prepare(DATA, tmp_path)  # held to their hashes
    for folder in tmp_path.iterdir():
        parts = {path.stem: read_jsonl(path) for path in folder.glob("*.jsonl")}
        for side in ("source", "target"):
            texts = [{text for row in rows for text in ([row[side]] if isinstance(row[side], str) else row[side])}
                     for rows in parts.values()]
            assert len(set().union(*texts)) == sum(map(len, texts)), (folder.name, side)
    held_out = {title for part in pairs.PARTS for row in read_jsonl(tmp_path / "csl-title" / f"{part}.jsonl")
                for title in row["target"]}
    pretended = read_jsonl(tmp_path / "pretended-titles.jsonl")
    assert pretended
    assert not held_out & {row["target"] for row in pretended}


def test_what_a_sentence_lost_is_tagged_where_it_stands() -> None:
    sentence = "一九九八年的春天里，他们在北京大学的图书馆认真地学习自然语言处理。"
    for number in range(20):
        row = questions._spotted(f"天气很好。{sentence}后来下雨了。", number)
        assert row is not None
        asked, _, passage = "".join(row["tokens"]).partition("？")
        tags = row["tags"][len(asked) + 1 :]
        assert len(row["tags"]) == len(row["tokens"])
        assert "".join(each for each, tag in zip(passage, tags, strict=True) if tag == "SAME") == asked
        assert "".join(each for each, tag in zip(passage, tags, strict=True) if tag != "O") == sentence


def test_every_part_held_out_has_its_hash() -> None:
    for name, (_, parts) in questions.PARTS.items():
        assert {part.split("=")[0] for part in parts} - {"train"} == set(questions.HASHES[name])
    for name, (_, parts, _) in SPLITS.items():
        assert {part.split("=")[0] for part in parts} - {"train"} == set(HASHES[name])
