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


def test_every_part_held_out_has_its_hash() -> None:
    for name, (_, parts) in questions.PARTS.items():
        assert {part.split("=")[0] for part in parts} - {"train"} == set(questions.HASHES[name])
    for name, (_, parts, _) in SPLITS.items():
        assert {part.split("=")[0] for part in parts} - {"train"} == set(HASHES[name])
