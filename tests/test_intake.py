"""Text intake: encodings, clean-ups, formats, bad rows, counts; on made-up faults and on real files."""

from __future__ import annotations

import glob
import gzip
import json
import lzma
import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from reading import REVIEW, TRADITIONAL, per_example, put, read, texts
from wenmo.config import parse
from wenmo.errors import DataError, RecipeError
from wenmo.text import json_text
from wenmo.text.encoding import detect
from wenmo.text.intake import Counts, NormalizeSettings, SourceSettings, open_source, read_rows
from wenmo.text.normalize import normalizer

DATA = Path(os.environ.get("WENMO_TEST_DATA", Path(__file__).parents[2] / "shared/data"))
real = pytest.mark.skipif(not DATA.is_dir(), reason=f"no test data at {DATA} (set WENMO_TEST_DATA)")

@pytest.fixture(autouse=True)
def english(monkeypatch):
    monkeypatch.setenv("WENMO_LANG", "en")


# Encodings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [REVIEW, TRADITIONAL, "Good room, “nice” 价格 also\n" * 3])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gbk", "gb18030"])
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.xz"])
def test_encodings_are_found(tmp_path, text, encoding, name):
    put(tmp_path, name, text, encoding)
    rows, _, _, [found] = read(tmp_path, name)
    assert texts(rows) == text.splitlines()
    assert found.layout.encoding == ("utf-8" if encoding.startswith("utf") else "gb18030")


@per_example
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\n"), max_size=12),
       st.sampled_from(["utf-8", "utf-8-sig", "gb18030"]))  # fmt: skip
@example("\ufeff", "gb18030")
@example("联通", "gb18030")
def test_any_text_comes_back(tmp_path, text, encoding):
    """With enough ordinary text around it to tell the encoding by."""
    put(tmp_path, "a.txt", f"{REVIEW}\n{text}。{REVIEW}\n", encoding)
    rows, *_ = read(tmp_path, "a.txt")
    assert texts(rows) == [REVIEW, f"{text}。{REVIEW}"]


@pytest.mark.parametrize(("text", "encoding"), [
    ("これはテストです。\n" * 9, "shift_jis"), ("日本語の文章を読みます。\n" * 9, "euc_jp"),
    ("이 호텔은 정말 좋았습니다.\n" * 9, "euc_kr"), ("текст на русском\n" * 9, "cp1251"),
])  # fmt: skip
def test_other_encodings_are_refused_with_the_offset(tmp_path, text, encoding):
    path = put(tmp_path, "a.txt", b"id\n" + text.encode(encoding))
    with pytest.raises(DataError) as error:
        detect(path)
    first = 3 + next(i for i, byte in enumerate(text.encode(encoding)) if byte > 127)
    assert f"{first}:" in error.value.where
    assert "encoding:" in error.value.mend


def test_a_gb18030_byte_order_mark_is_no_text(tmp_path):
    put(tmp_path, "a.txt", f"\ufeff{REVIEW}\n{REVIEW}", "gb18030")
    assert texts(read(tmp_path, "a.txt")[0]) == [REVIEW, REVIEW]


def test_two_encodings_in_one_file_are_refused(tmp_path):
    path = put(tmp_path, "a.txt", b"\n".join(["服务很好".encode(), REVIEW.encode("gbk")] * 5))
    with pytest.raises(DataError, match="neither"):
        detect(path)


GZIPPED = gzip.compress(b"text", mtime=0)  # the same for every collector of tests


@pytest.mark.parametrize("mark", ["\ufeff好".encode("utf-32"), b"PK\x03\x04\xff\xfe\x80", GZIPPED])
def test_what_is_not_text_is_named(tmp_path, mark):
    with pytest.raises(DataError, match=r"UTF-32|zip|gzip"):
        detect(put(tmp_path, "a.csv", mark))


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030"])
def test_a_byte_that_does_not_fit_costs_its_row(tmp_path, encoding):
    lines = [REVIEW.encode(encoding), "很".encode(encoding) + b"\xff" + "好".encode(encoding), REVIEW.encode(encoding)]
    put(tmp_path, "a.txt", b"\n".join(lines))
    rows, counts, [bad], [found] = read(tmp_path, "a.txt")
    assert texts(rows) == [REVIEW, REVIEW]
    assert found.layout.encoding == encoding
    assert (counts.read, counts.quarantined) == (3, 1)
    assert (bad["file"], bad["number"], bad["raw"]) == ("a.txt", 2, "很\\xff好")
    assert "ff" in bad["reason"]


def test_a_late_bad_byte_and_a_late_first_chinese_character(tmp_path):
    """Both lie beyond the first sample: the whole file counts, not its head."""
    head = b"plain ascii\n" * 120_000
    put(tmp_path, "a.txt", head + f"{REVIEW}\n".encode("gbk") * 3 + b"\x80\xff\n" + REVIEW.encode("gbk"))
    rows, counts, [bad], [found] = read(tmp_path, "a.txt")
    assert found.layout.encoding == "gb18030"
    assert texts(rows)[-1] == REVIEW
    assert (counts.read, counts.quarantined, bad["number"]) == (120_005, 1, 120_004)


def test_streams_in_little_memory(tmp_path):
    put(tmp_path, "a.jsonl", (json.dumps({"text": REVIEW * 5}) + "\n") * 20_000)
    put(tmp_path, "a.json", "[" + ",\n".join([json.dumps({"text": REVIEW * 5})] * 20_000) + "]")
    for name in ("a.jsonl", "a.json"):
        source = open_source(SourceSettings(path=name), tmp_path)
        tracemalloc.start()
        assert sum(1 for _ in read_rows(source, Counts())) == 20_000
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < (tmp_path / name).stat().st_size / 2


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.xz"])
def test_a_cut_archive_is_an_error(tmp_path, name):
    path = put(tmp_path, name, os.urandom(50_000).hex())
    path.write_bytes(path.read_bytes()[:-9000])
    with pytest.raises(DataError, match="cut short"):
        read(tmp_path, name)
    path.write_bytes(b"not packed")
    with pytest.raises(DataError, match=r"\.gz"):
        read(tmp_path, name)


# Clean-ups --------------------------------------------------------------------------------------------


def test_each_clean_up():
    def clean(text, **keys):
        return normalizer(NormalizeSettings(**keys))(text)

    assert normalizer(NormalizeSettings()) is None
    assert clean("ＡＢｃ１２３　，！（好）％", width=True) == "ABc123 ，！（好）％"
    assert clean("Ａ①㎏，ｶﾞ", nfkc=True) == "A1kg,ガ"
    assert clean("\ufeff 　好 人\u200b\n", strip=True) == "好 人"
    pytest.importorskip("opencc")
    assert clean("乾淨的頭髮，發展皇后", simplify=True) == "干净的头发，发展皇后"
    assert clean("　ＡＢ 電腦　", width=True, simplify=True, strip=True) == "AB 电脑"


@per_example
@given(st.text(), st.booleans(), st.booleans(), st.booleans())
def test_clean_ups_settle_at_once(text, nfkc, width, strip):
    clean = normalizer(NormalizeSettings(nfkc=nfkc, width=width, strip=strip)) or str
    assert clean(clean(text)) == clean(text)


def test_texts_are_normalised_and_labels_are_not(tmp_path):
    put(tmp_path, "a.jsonl", json.dumps({"text": "Ａ", "label": "Ａ", "messages": [{"role": "user", "content": "Ｂ"}]}))
    [row], *_ = read(tmp_path, "a.jsonl", optional=("label", "messages"), normalize={"width": True})
    assert row.values == {"text": "A", "label": "Ａ", "messages": [{"role": "user", "content": "B"}]}
    put(tmp_path, "b.jsonl", json.dumps({"text": "Ａ", "entities": [{"start": 0, "end": 1}]}))
    with pytest.raises(RecipeError, match="offsets"):
        read(tmp_path, "b.jsonl", optional=("entities",), normalize={"nfkc": True})
    [row], *_ = read(tmp_path, "b.jsonl", optional=("entities",), normalize={"width": True, "simplify": True})
    assert row.values == {"text": "A", "entities": [{"start": 0, "end": 1}]}  # these leave each character in its place


# Formats ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", ["", ".gz", ".xz"])
def test_all_formats_give_the_same_rows(tmp_path, packed):
    rows = [{"text": "好，“很好”", "label": "1"}, {"text": 'say "hi", ok', "label": "0"}]
    put(tmp_path, "a.csv" + packed, 'label,text\r\n1,"好，“很好”"\r\n0,"say ""hi"", ok"\r\n')
    put(tmp_path, "a.tsv" + packed, 'text\tlabel\n好，“很好”\t1\nsay "hi", ok\t0\n')
    put(tmp_path, "a.jsonl" + packed, "\n\n".join(map(json.dumps, rows)))
    put(tmp_path, "a.json" + packed, json.dumps(rows, ensure_ascii=False, indent=1))
    put(tmp_path, "b.json" + packed, "\n".join(map(json.dumps, rows)))  # JSON lines by another name
    for name in ("a.csv", "a.tsv", "a.jsonl", "a.json", "b.json"):
        found, *_ = read(tmp_path, name + packed)
        assert [row.values for row in found] == rows, name
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "p")
    put(tmp_path, "a.parquet" + packed, (tmp_path / "p").read_bytes())
    assert [row.values for row in read(tmp_path, "a.parquet" + packed)[0]] == rows


def test_units_of_plain_text_and_their_numbers(tmp_path):
    put(tmp_path, "a.txt", "\r\n一\r\n 二\r\n \t\r\n\r\n三\r\n")
    for unit, expected in {
        "line": [("一", 2), (" 二", 3), ("三", 6)],
        "paragraph": [("一\n 二", 2), ("三", 6)],
        "file": [("\n一\n 二\n \t\n\n三\n", 1)],
    }.items():
        rows, *_ = read(tmp_path, "a.txt", unit=unit)
        assert [(row.values["text"], row.number) for row in rows] == expected


def test_csv_with_line_breaks_inside_and_numbers_of_lines(tmp_path):
    put(tmp_path, "a.csv", 'text,label\n"一\n二",1\n\n三,0\n')
    rows, *_ = read(tmp_path, "a.csv")
    assert [(row.values["text"], row.number) for row in rows] == [("一\n二", 2), ("三", 5)]


def test_a_csv_field_of_a_million_characters(tmp_path):
    put(tmp_path, "a.csv", f"text,label\n{'好' * 1_000_000},1\n")
    assert len(texts(read(tmp_path, "a.csv")[0])[0]) == 1_000_000


def test_columns_by_number_and_separators(tmp_path):
    put(tmp_path, "a.csv", "一,1\n二,0\n")
    rows, *_ = read(tmp_path, "a.csv", header=False, columns={"text": 0, "label": 1})
    assert [row.values for row in rows] == [{"text": "一", "label": "1"}, {"text": "二", "label": "0"}]
    put(tmp_path, "b.txt", "7_!_一\n8_!_二\n")
    rows, *_ = read(tmp_path, "b.txt", format="tsv", separator="_!_", header=False, columns={"text": 1})
    assert texts(rows) == ["一", "二"]
    put(tmp_path, "c.csv", "; text;\n0;一;1\n")  # columns without a name, or with a space
    rows, *_ = read(tmp_path, "c.csv", separator=";", columns={"label": 2})
    assert rows[0].values == {"text": "一", "label": "1"}


def test_globs_are_read_in_order_and_constants_are_added(tmp_path, monkeypatch):
    listed = glob.glob
    monkeypatch.setattr(glob, "glob", lambda *args, **keys: sorted(listed(*args, **keys), reverse=True))
    (tmp_path / "sub").mkdir()
    for name in ("sub/b.txt", "sub/a.txt.gz", "sub/c[1].txt"):
        put(tmp_path, name, name)
    rows, *_ = read(tmp_path, "sub/*.txt*", constants={"label": "novel"})
    assert texts(rows) == [row.file for row in rows] == ["sub/a.txt.gz", "sub/b.txt", "sub/c[1].txt"]
    assert {row.values["label"] for row in rows} == {"novel"}
    assert texts(read(tmp_path, "sub/c[1].txt")[0]) == ["sub/c[1].txt"]


@per_example
@given(st.lists(st.fixed_dictionaries({"text": st.text("好a\"\\ [{,"), "label": st.integers() | st.lists(st.none())})),
       st.integers(1, 9), st.sampled_from([None, 1]))  # fmt: skip
def test_json_arrays_are_read_piece_by_piece(tmp_path, monkeypatch, objects, piece, indent):
    monkeypatch.setattr(json_text, "PIECE_CHARACTERS", piece)
    objects = [{"text": "首"}, *objects]
    content = json.dumps(objects, ensure_ascii=False, indent=indent)
    put(tmp_path, "a.json", content)
    rows, *_ = read(tmp_path, "a.json")
    assert [row.number for row in rows] == [n for n, row in enumerate(objects, 1) if row["text"].strip()]
    assert [row.values for row in rows] == [row for row in objects if row["text"].strip()]
    (tmp_path / "bad.quarantine").unlink(missing_ok=True)
    put(tmp_path, "a.json", content[:-1])
    with pytest.raises(DataError) as error:
        read(tmp_path, "a.json")
    assert error.value.where.endswith(f":{content.count(chr(10)) + 1}")


def test_null_and_nan_in_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"text": "一", "label": 1.0}, {"text": "二", "label": float("nan")}, {"text": None, "label": 0.0}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    got, counts, [bad], _ = read(tmp_path, "a.parquet")
    assert [row.values for row in got] == [{"text": "一", "label": 1.0}, {"text": "二"}]
    assert bad["number"] == 3
    (tmp_path / "bad.quarantine").unlink()
    _, counts, *_ = read(tmp_path, "a.parquet", required=("text", "label"), optional=())
    assert counts.quarantined == 2


def test_lists_of_strings_are_joined_only_when_asked(tmp_path):
    put(tmp_path, "a.json", json.dumps([{"text": ["一", "二"]}, {"text": ["一", 2]}, {"text": "三"}]))
    assert texts(read(tmp_path, "a.json", join="，")[0]) == ["一，二", "三"]
    (tmp_path / "bad.quarantine").unlink()
    assert texts(read(tmp_path, "a.json")[0]) == ["三"]


def test_limit_cuts_good_rows_only(tmp_path):
    put(tmp_path, "a.jsonl", '{"text":"一"}\n{}\n{"text":"二"}\n{"text":"三"}\n{"text":4}\n')
    rows, counts, *_ = read(tmp_path, "a.jsonl", limit=2)
    assert texts(rows) == ["一", "二"]
    assert counts == Counts(read=5, kept=2, cut=1, quarantined=2)


# Bad rows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "content", "kept", "bad"), [
    ("a.csv", "text,label\n一,1\n二,1,x\n三\n,1\n  ,1\n四\0,1\n五,\n", "一五", [3, 4, 5, 6, 7]),
    ("a.tsv", "text\tlabel\n一\t1\n二\t1\tx\n三\n\t1\n\"四\t1\n", "一\"四", [3, 4, 5]),
    ("a.jsonl", '{"text":"一"}\n{"text":"二"\n[1]\n{"text":null}\n{"txt":"三"}\n{"text":" "}\n{"text":"\\ud800"}\n'
                '{"text":"a\\u0000"}\n{"text":["四"]}\n{"text":NaN}\n{"text":"\\ud83d\\ude00"}\n'
                '{"text":"五","label":NaN}\n' + "[" * 99_999 + "\n", "一😀", [2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13]),
    ("a.json", '[{"text":"一"}, 1, {"text":""}, {}, {"text":"二"}]', "一二", [2, 3, 4]),
    ("a.txt", "一\n\0\n二", "一二", [2]),
])  # fmt: skip
def test_bad_rows_are_put_aside(tmp_path, name, content, kept, bad):
    put(tmp_path, name, content)
    rows, _, quarantined, _ = read(tmp_path, name)
    assert "".join(texts(rows)) == kept
    assert [row["number"] for row in quarantined] == bad
    assert all(row["reason"] for row in quarantined)
    if name != "a.json":
        raw = content.split("\n")
        assert [row["raw"].rstrip("\n") for row in quarantined] == [raw[number - 1] for number in bad]


@pytest.mark.parametrize("lines", [
    ['"不错,1', "很好,0", '"好",1'],  # closes at the next quote, in the wrong place
    ['"不错,1', "很好,0", "好,1"],  # never closes
    ['"说"不错",1', "很好,0", "好,1"],  # not doubled
])  # fmt: skip
def test_a_stray_quote_costs_its_line_and_no_other(tmp_path, lines):
    put(tmp_path, "a.csv", "\n".join(["text,label", *lines, "末,1\n"]))
    rows, _, [bad], _ = read(tmp_path, "a.csv")
    assert [(row.values["text"], row.number) for row in rows] == [("很好", 3), ("好", 4), ("末", 5)]
    assert bad["raw"] == lines[0] + "\n"


@per_example
@given(st.lists(st.sampled_from(["一,1", "二", ",", '"', '"三\n四",0', "a,b,c", "\0,1", '"五",1', "", "六\udcff,1"])))
def test_counts_add_up_and_no_line_is_lost(tmp_path, lines):
    content = "\n".join(["text,label", "末,1", *lines]).encode("utf-8", "surrogateescape")
    put(tmp_path, "a.csv", content)
    (tmp_path / "bad.quarantine").unlink(missing_ok=True)
    rows, counts, bad, _ = read(tmp_path, "a.csv", encoding="utf-8")
    assert counts.read == len(rows) + len(bad)
    numbers = [row.number for row in rows] + [row["number"] for row in bad]
    assert len(set(numbers)) == len(numbers)
    shown = "".join(row.values["text"] for row in rows) + "".join(row["raw"] for row in bad)
    for line in lines:
        assert line.split("\n")[-1].split(",")[0].strip('"').replace("\udcff", "\\xff") in shown


def test_reading_again_adds_nothing_to_the_quarantine(tmp_path):
    put(tmp_path, "a.jsonl", '{"text":"一"}\n{\n{}\n')
    first = read(tmp_path, "a.jsonl")[2]
    assert read(tmp_path, "a.jsonl")[2] == first
    with open(tmp_path / "bad.quarantine", "rb+") as file:
        file.truncate(file.seek(0, os.SEEK_END) - 5)  # killed while writing
    assert read(tmp_path, "a.jsonl")[2] == first
    (tmp_path / "bad.quarantine").write_text("no JSON\n")
    with pytest.raises(DataError, match="not a quarantine file"):
        read(tmp_path, "a.jsonl")


def test_the_line_of_counts(monkeypatch):
    counts = Counts(read=35123, kept=17410, quarantined=3, duplicate=17710)
    counts.check()
    assert counts.line("reviews.csv") == (
        "reviews.csv: 35,123 rows in · 17,410 kept · 0 cut · 3 quarantined · 17,710 duplicate"
    )
    monkeypatch.setenv("WENMO_LANG", "zh")
    assert counts.line("a.csv") == "a.csv：读入 35,123 行 · 保留 17,410 · 截去 0 · 隔离 3 · 重复 17,710"
    with pytest.raises(AssertionError):
        Counts(read=2, kept=1).check()


# Faults of a whole file, and of settings --------------------------------------------------------------


@pytest.mark.parametrize(("name", "content", "keys", "says"), [
    ("reviews.csv", "Review,label\n一,1\n", {"path": "review.csv"}, ("no such file", "reviews.csv")),
    ("a.csv", "Review,label\n一,1\n", {"columns": {"text": "review"}}, ("Review, label", "did you mean `Review`")),
    ("a.csv", "review,label\n一,1\n", {}, ("no column `text`", "columns: {text: review}")),
    ("a.csv", "text^label\n一^1\n", {}, ("no column `text`", "separator")),
    ("a.csv", "text,text\n一,1\n", {}, ("several columns", "number")),
    ("a.csv", "text,label\n一,1\n", {"columns": {"label": 2}}, ("no column `2`", "text, label")),
    ("a.csv", "text,label\n", {}, ("not a single row", "a.csv")),
    ("a.txt", "", {}, ("not a single row", "a.txt")),
    ("a.txt.gz", "", {}, ("not a single row", "a.txt.gz")),
    ("a.json", '[{"text": "一"},\n{"text": "二"}', {}, ("does not close", "a.json:2")),
    ("a.json", '[{"text": "一"},\n{"text": \n"二" 3}]', {}, ("not an array", "a.json:3")),
    ("a.json", '[{"text": "一"}] [', {}, ("after the array", "a.json:1")),
    ("a.json", '{\n"rows": []\n}', {}, ("must begin with [", "a.json:1")),
    ("a.jsonl", "{\n{\n", {}, ("not one of", "JSON")),
    ("a.jsonl", '{"text":" "}\n{"text":1}\n', {}, ("not one of 2", "a.jsonl:1")),
    ("a.docx", "x", {}, ("unknown extension `.docx`", ".jsonl")),
    ("a.parquet", "no parquet", {}, ("not a readable Parquet", "a.parquet")),
])  # fmt: skip
def test_faults_of_a_file(tmp_path, name, content, keys, says):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    put(tmp_path, name, content)
    with pytest.raises(DataError) as error:
        read(tmp_path, **{"path": name, **keys})
    assert len(str(error.value).split("\n")) == 3
    for part in says:
        assert part in str(error.value)


@pytest.mark.parametrize("keys", [
    {"columns": {"lable": "label"}}, {"constants": {"topic": "x"}}, {"unit": "paragraph"}, {"join": "\n"},
    {"separator": "||"}, {"columns": {"label": "label"}, "constants": {"label": "x"}},
    {"path": "a.jsonl", "header": False}, {"path": "a.jsonl", "separator": ";"}, {"path": "a.jsonl", "unit": "file"},
    {"path": "a.jsonl", "columns": {"text": 0}}, {"column": {}}, {"weight": 0}, {"limit": 0}, {"encoding": "klingon"},
    {"columns": {"text": -1}}, {"columns": {"text": True}}, {"normalize": {"lower": True}},
])  # fmt: skip
def test_settings_that_would_do_nothing_are_refused(tmp_path, keys):
    put(tmp_path, "a.csv", "text,label\n一,1\n")
    put(tmp_path, "a.jsonl", '{"text":"一","label":1}\n')
    with pytest.raises(RecipeError):
        read(tmp_path, **{"path": "a.csv", **keys})


def test_what_was_found_can_be_printed(tmp_path):
    put(tmp_path, "a.csv.gz", f"cat,review\nx,{REVIEW}\n", "gbk")
    found = open_source(SourceSettings(path="a.csv.gz", columns={"text": "review"}), tmp_path).files[0]
    assert str(found) == "a.csv.gz: csv, gz, gb18030, columns cat · review (text ← review)"


# Real files -------------------------------------------------------------------------------------------


@real
@pytest.mark.parametrize(("keys", "read_kept"), [
    ({"path": "online-shopping-9-cats/train.csv.xz", "columns": {"text": "review"}}, (50774, 50773)),
    ({"path": "chnsenticorp-hotel/train.csv.gz", "columns": {"text": "review"}}, (6566, 6565)),
    ({"path": "thucnews-titles/dev.txt.gz", "format": "tsv", "header": False, "columns": {"text": 0}}, (10000, 10000)),
    ({"path": "llamafactory-demo/alpaca_*.json.gz", "columns": {"text": "output"}}, (1799, 1799)),
    ({"path": "llamafactory-demo/c4_demo.jsonl.gz"}, (300, 300)),
    ({"path": "classical-novels/*.txt.gz", "unit": "paragraph"}, (4220, 4220)),
    ({"path": "chinese-poetry/*.json.gz", "columns": {"text": "paragraphs"}, "join": ""}, (6003, 6003)),
])  # fmt: skip
def test_real_sets(tmp_path, keys, read_kept):
    source = open_source(parse(SourceSettings, keys, "test"), DATA)
    counts = Counts()
    rows = list(read_rows(source, counts))
    assert (counts.read, counts.kept) == read_kept
    assert len(rows) == counts.kept
    assert not any("\r" in text for text in texts(rows))


@real
@pytest.mark.parametrize("name", [
    "online-shopping-9-cats/train.csv.xz", "thucnews-titles/dev.txt.gz", "chinese-poetry/poet.tang.0.json.gz",
    "ud-chinese-gsd/zh-ud-train.conllu.gz",
])  # fmt: skip
def test_real_sets_written_in_gb18030_come_back(tmp_path, name):
    """Simplified and traditional, reviews, titles, poems, tables; and no sample of 2 KB is misread as another."""
    data = (lzma if name.endswith("xz") else gzip).open(DATA / name).read()
    text = data.decode("utf-8")
    path = put(tmp_path, "a.txt", text, "gb18030")
    assert detect(path) == "gb18030"
    assert path.read_bytes().decode(detect(path)) == text
    for start in range(0, len(text) - 700, len(text) // 40):
        piece = text[start : start + 700]
        assert detect(put(tmp_path, "b.txt", piece, "gb18030")) == "gb18030"
        assert detect(put(tmp_path, "b.txt", piece, "utf-8")) == "utf-8"
