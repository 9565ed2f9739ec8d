"""Every public set can be read by the setting that docs/intake.md gives for it, with the counts that stand there."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from wenmo.config import parse, parse_yaml
from wenmo.text.encoding import detect
from wenmo.text.intake import Counts, SourceSettings, open_source, read_rows

DATA = Path(os.environ.get("WENMO_TEST_DATA", Path(__file__).parents[2] / "shared/data"))
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no test data at {DATA} (set WENMO_TEST_DATA)")
PAGE = Path(__file__).parents[1] / "docs/intake.md"
ROW = re.compile(r"^\| ([\w-]+) \| ([\w, ]+) \| `(\{.*\})` \| ([\d,]+) \| (\d+) \|$", re.MULTILINE)
SETS = ROW.findall(PAGE.read_text("utf-8"))


def test_the_page_names_every_set() -> None:
    assert {name for name, *_ in SETS} == {path.name for path in DATA.iterdir() if path.is_dir()}


@pytest.mark.parametrize(("name", "columns", "setting", "rows", "bad"), SETS, ids=[f"{s[0]}-{s[1]}" for s in SETS])
def test_a_set_is_read(name: str, columns: str, setting: str, rows: str, bad: str) -> None:
    names = tuple(columns.split(", "))
    source = open_source(parse(SourceSettings, parse_yaml(setting, name), name), DATA, names, ())
    counts = Counts()
    for row in read_rows(source, counts):
        assert set(row.values) == set(names)
    counts.check()
    assert (counts.read, counts.quarantined) == (int(rows.replace(",", "")), int(bad))


def test_trec_is_latin_1() -> None:
    assert detect(DATA / "trec/TREC.train.gz") == "latin-1"
    settings = {"path": "trec/TREC.train.gz", "format": "tsv", "separator": " ", "header": False, "fields": 2,
                "surplus": "join", "columns": {"label": 0, "text": 1}, "before": {"label": ":"}}
    rows = list(read_rows(open_source(parse(SourceSettings, settings, "trec"), DATA, ("text", "label"), ()), Counts()))
    assert {row.values["label"] for row in rows} == {"ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"}
    assert "sisterðcity" in " ".join(row.values["text"] for row in rows)


def test_rows_of_sets_with_a_shape() -> None:
    def first(setting: str, *names: str) -> dict[str, object]:
        source = open_source(parse(SourceSettings, parse_yaml(setting, "here"), "here"), DATA, names, ())
        return next(read_rows(source, Counts())).values

    assert first("{path: drcd/DRCD_dev.json.gz}", "answers", "title") == {
        "answers": [{"text": "歐洲", "answer_start": 1}] * 2, "title": "梵文"}
    assert first("{path: ud-chinese-gsd/zh-ud-dev.conllu.gz, columns: {text: form}, join: ''}", "text")["text"] == (
        "同樣,施力的大小不同,引起的加速度不同,最終的結果也不一樣,亦可以從向量的加成性來看.")
    calls = first("{path: llamafactory-demo/glaive_toolcall_zh_demo.json.gz}", "messages")["messages"]
    assert [message["role"] for message in calls] == ["user", "assistant", "tool", "assistant"]  # type: ignore[attr-defined]
    assert calls[1]["tool_calls"][0]["function"]["name"] == "generate_invoice"  # type: ignore[index]
