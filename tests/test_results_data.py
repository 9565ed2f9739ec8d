"""The recipes behind docs/results.md, and the rows that its figures were measured on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.prepare import HASHES, SPLITS, divide
from wenmo.recipe import read_recipe

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("WENMO_TEST_DATA", ROOT.parent / "shared" / "data"))


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_accepted(path: Path) -> None:
    read_recipe(path)


@pytest.mark.skipif(not DATA.exists(), reason=f"the public sets are not in {DATA} (WENMO_TEST_DATA)")
@pytest.mark.parametrize("name", ["hotel", "trec", "sst-report"])
def test_the_rows_held_out_are_those_of_the_figures(name: str, tmp_path: Path) -> None:
    divide(name, DATA, tmp_path)


def test_every_part_held_out_has_its_hash() -> None:
    for name, (_, parts, _) in SPLITS.items():
        assert {part.split("=")[0] for part in parts} - {"train"} == set(HASHES[name])
