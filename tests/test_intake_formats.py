"""Dialects of tables, annotated sentences, parallel files, nested JSON, conversations, archives: on made-up files."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reading import REVIEW, TRADITIONAL, per_example, put, read, texts, zstd_compress
from wenmo.data.given import open_given
from wenmo.errors import DataError, RecipeError
from wenmo.text.encoding import detect

TAGGED = {"required": ("tokens", "tags"), "optional": ()}
CHAT = {"required": ("messages",), "optional": ("label", "chosen", "rejected")}
SQUAD = {"required": ("question", "context", "answers"), "optional": ("id", "title")}


@pytest.fixture(autouse=True)
def english(monkeypatch):
    monkeypatch.setenv("WENMO_LANG", "en")


def values(rows):
    return [row.values for row in rows]


# Encodings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "encoding", "found"), [
    (TRADITIONAL, "big5", "big5"), ("成都平原", "big5", "big5"), ("定量模型", "big5", "big5"),
    (f"{TRADITIONAL}滙豐啲", "big5hkscs", "big5"), (f"{TRADITIONAL}€", "cp950", "cp950"),
    (REVIEW, "utf-16", "utf-16"), (TRADITIONAL, "utf-16-le", "utf-16-le"), (REVIEW, "utf-16-be", "utf-16-be"),
    ("plain words\n" * 3, "utf-16-le", "utf-16-le"), ("plain words\n" * 3, "utf-16-be", "utf-16-be"),
    ("Où est l'hôtel ? À côté du théâtre.\n" * 9, "latin-1", "latin-1"), ("It’s fine – “really”.", "cp1252", "cp1252"),
    ("Fußgänger überqueren die Straße", "latin-1", "latin-1"),
])  # fmt: skip
@pytest.mark.parametrize("pack", ["", ".gz"])
def test_more_encodings_are_found(tmp_path, text, encoding, found, pack):
    put(tmp_path, "a.txt" + pack, text, encoding)
    rows, _, _, [file] = read(tmp_path, "a.txt" + pack)
    assert (texts(rows), file.layout.encoding) == (text.splitlines(), found)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "gb18030", "utf-8"])
def test_a_named_encoding_drops_its_byte_order_mark(tmp_path, encoding):
    mark = "" if encoding == "utf-16" else "\ufeff"  # Python's utf-16 writes its own
    put(tmp_path, "a.csv", f"{mark}text,label\r\n{REVIEW},1\r\n", encoding)
    assert values(read(tmp_path, "a.csv", encoding=encoding)[0]) == [{"text": REVIEW, "label": "1"}]


def test_utf_16_without_a_mark_is_little_endian(tmp_path):
    put(tmp_path, "a.csv", f"text,label\r\n{REVIEW},1\r\n", "utf-16-le")
    assert values(read(tmp_path, "a.csv", encoding="utf-16")[0]) == [{"text": REVIEW, "label": "1"}]


def test_one_byte_of_latin_1_among_plain_lines(tmp_path):
    put(tmp_path, "a.txt", "\n".join(["plain"] * 500 + ["caf\u00e9"]), "latin-1")
    assert texts(read(tmp_path, "a.txt")[0])[-1] == "café"


def test_half_a_surrogate_pair_costs_its_row_and_half_a_character_the_file(tmp_path):
    data = "一\n".encode("utf-16-le") + b"\x00\xd8\n\x00" + "二\n".encode("utf-16-le")
    put(tmp_path, "a.txt", data)
    rows, _, [bad], _ = read(tmp_path, "a.txt", encoding="utf-16-le")
    assert (texts(rows), bad["number"]) == (["一", "二"], 2)
    put(tmp_path, "a.txt", data + b"\x41")
    with pytest.raises(DataError, match="inside a character"):
        read(tmp_path, "a.txt", encoding="utf-16-le")


def test_big5_bad_byte_costs_its_row(tmp_path):
    put(tmp_path, "a.txt", b"\n".join([TRADITIONAL.encode("big5")] * 3 + [b"\xa4\xff", TRADITIONAL.encode("big5")]))
    rows, _, [bad], _ = read(tmp_path, "a.txt")
    assert (len(rows), bad["number"]) == (4, 4)


# Archives ---------------------------------------------------------------------------------------------


def test_zst_in_several_frames_is_read_whole_and_a_cut_one_is_an_error(tmp_path):
    frames = [zstd_compress(f"{i}{REVIEW}\n".encode() * 2000) for i in range(3)]
    (tmp_path / "a.txt.zst").write_bytes(b"".join(frames))
    assert len(read(tmp_path, "a.txt.zst")[0]) == 6000
    for broken in (b"".join(frames)[:-9], frames[0] + b"junk" * 9, b"not packed"):
        (tmp_path / "a.txt.zst").write_bytes(broken)
        with pytest.raises(DataError, match="damaged or cut short") as error:
            read(tmp_path, "a.txt.zst")
        assert len(str(error.value).split("\n")) == 3


def test_members_of_a_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for name in ("b.csv", "a.csv", "notes.md"):
            file.writestr(name, f"text,label\n{name},1\n")
        file.writestr("c.txt.gz", gzip.compress("三".encode()))
    assert texts(read(tmp_path, "a.zip/*.csv")[0]) == ["a.csv", "b.csv"]
    assert texts(read(tmp_path, "a.zip/c.txt.gz")[0]) == ["三"]
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path, "a.zip/*.tsv")
    with pytest.raises(DataError, match=r"a\.zip/\*\.csv"):
        read(tmp_path, "a.zip")
    whole = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(whole[:100])
    with pytest.raises(DataError, match="damaged or cut short"):
        read(tmp_path, "a.zip/*.csv")


# Tables -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("separator", "shown"), [(";", "';'"), ("\t", "no quoting"), ("|", "'|'"), (",", "columns")])
def test_the_separator_is_found(tmp_path, separator, shown):
    lines = ["text,label", "好，很好; 真的|,1", "坏,0"]
    content = "\n".join(separator.join(line.rsplit(",", 1)) for line in lines).replace(separator + " ", " ")
    put(tmp_path, "a.csv", content.replace("很好;", "很好") if separator == ";" else
        content.replace("的|", "的") if separator == "|" else content)
    rows, _, bad, [found] = read(tmp_path, "a.csv")
    assert (len(rows), bad, found.layout.separator) == (2, [], separator)
    assert shown in str(found)


def test_a_table_between_tabs_has_no_quotes_unless_told(tmp_path):
    put(tmp_path, "a.csv", 'label\ttext\n1\t"好" 说\n0\t"坏\n')
    assert texts(read(tmp_path, "a.csv")[0]) == ['"好" 说', '"坏']
    put(tmp_path, "b.tsv", 'label\ttext\n1\t"a\tb"\n0\t"c ""d"""\n')
    assert texts(read(tmp_path, "b.tsv", quoting="double")[0]) == ["a\tb", 'c "d"']
    put(tmp_path, "c.csv", 'label,text\n1,"好" 说\n')
    assert texts(read(tmp_path, "c.csv", quoting="none")[0]) == ['"好" 说']


def test_fields_beyond_the_width(tmp_path):
    put(tmp_path, "a.csv", "label,text\n1,好,真的,好\n0,坏\n0\n")
    kept = {"quarantine": ["坏"], "join": ["好,真的,好", "坏"], "drop": ["好", "坏"]}
    for surplus, expected in kept.items():
        (tmp_path / "bad.quarantine").unlink(missing_ok=True)
        rows, _, bad, _ = read(tmp_path, "a.csv", surplus=surplus)
        assert texts(rows) == expected
        assert [row["number"] for row in bad][-1] == 4  # too few fields are never made up
    (tmp_path / "bad.quarantine").unlink()
    put(tmp_path, "b.dev", "DESC:manner How did it develop ?\nHUM:ind Who ?\n")
    rows, *_ = read(tmp_path, "b.dev", format="tsv", separator=" ", header=False, fields=2, surplus="join",
                    columns={"label": 0, "text": 1}, before={"label": ":"})
    assert values(rows) == [{"text": "How did it develop ?", "label": "DESC"}, {"text": "Who ?", "label": "HUM"}]


@pytest.mark.parametrize("keys", [
    {"fields": 2}, {"path": "a.txt", "surplus": "join"}, {"path": "a.txt", "quoting": "none"},
    {"parallel": {"label": "a.txt"}}, {"path": "a.txt", "parallel": {"label": "a.txt"}, "unit": "file"},
    {"before": {"topic": ":"}}, {"before": {"label": ":"}, "constants": {"label": "x"}}, {"quoting": "single"},
    {"path": "a.txt", "parallel": {"label": "a.txt"}, "columns": {"label": "text"}},
])  # fmt: skip
def test_settings_that_would_do_nothing_are_refused(tmp_path, keys):
    put(tmp_path, "a.csv", "text,label\n一,1\n")
    put(tmp_path, "a.txt", "一\n")
    with pytest.raises(RecipeError):
        read(tmp_path, **{"path": "a.csv", **keys})


ANY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)


@per_example
@given(st.lists(st.tuples(ANY, ANY), max_size=6), st.sampled_from([",", ";", "|"]),
       st.sampled_from([{"lineterminator": "\r\n"}, {"lineterminator": "\n", "quoting": csv.QUOTE_ALL}]))  # fmt: skip
def test_any_csv_comes_back(tmp_path, pairs, separator, dialect):
    written = io.StringIO(newline="")
    writer = csv.writer(written, delimiter=separator, **dialect)
    writer.writerows([("text", "label"), ("首", "1"), *pairs])
    put(tmp_path, "a.csv", written.getvalue())
    (tmp_path / "bad.quarantine").unlink(missing_ok=True)
    rows, *_ = read(tmp_path, "a.csv", separator=separator, encoding="utf-8")
    good = [pair for pair in pairs if pair[0].strip()]
    assert [(row.values["text"], row.values["label"]) for row in rows][1:] == good


# Annotated sentences ----------------------------------------------------------------------------------

WORD = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]), min_size=1, max_size=4)


@per_example
@given(st.lists(st.lists(st.tuples(WORD, WORD), min_size=1, max_size=4), min_size=1, max_size=4),
       st.sampled_from(["\t", " "]), st.sampled_from(["\n", "\n \t\n", "\n\n"]))  # fmt: skip
def test_any_conll_comes_back(tmp_path, sentences, between, gap):
    sentences = [[("首", "O")], *sentences]
    put(tmp_path, "a.conll", gap.join("".join(f"{a}{between}{b}\n" for a, b in each) for each in sentences))
    rows, *_ = read(tmp_path, "a.conll", encoding="utf-8", **TAGGED)
    assert [list(zip(row.values["tokens"], row.values["tags"], strict=True)) for row in rows] == sentences


def test_conll_columns_docstart_and_bad_sentences(tmp_path):
    put(tmp_path, "a.conll", "-DOCSTART- -X- O O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\nbad line\n\n"
                             "Peter NNP B-NP B-PER\ntwo\n\nx y z O")
    rows, _, bad, _ = read(tmp_path, "a.conll", **TAGGED)
    assert values(rows) == [{"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]}, {"tokens": ["x"], "tags": ["O"]}]
    assert [row.number for row in rows] == [3, 11]
    assert [(row["number"], row["reason"]) for row in bad] == [
        (6, "2 fields instead of 4"), (8, "line 9 has 1 columns instead of 4")]
    (tmp_path / "bad.quarantine").unlink()
    rows, *_ = read(tmp_path, "a.conll", columns={"tags": 1}, **TAGGED)
    assert rows[0].values["tags"] == ["NNP", "VBZ"]
    (tmp_path / "bad.quarantine").unlink()
    assert texts(read(tmp_path, "a.conll", columns={"text": 0}, join=" ")[0]) == ["EU rejects", "x"]


CONLLU = """# sent_id = 1
# text = vámonos al mar
1-2\tvámonos\t_\t_\t_\t_\t_\t_\t_\t_
1\tvamos\tir\tVERB\tV\tMood=Imp\t0\troot\t_\t_
2\tnos\tnosotros\tPRON\tP\t_\t1\tobj\t_\t_
2.1\tellipsis\t_\t_\t_\t_\t_\t_\t_\t_
3\tmar\tmar\tNOUN\tN\t_\t1\tobl\t_\t_

# only comments

1\tshort\tline
"""


def test_conllu_words_fields_and_text(tmp_path):
    put(tmp_path, "a.conllu", CONLLU)
    rows, counts, [bad], _ = read(tmp_path, "a.conllu", ("tokens", "tags", "text"), ())
    assert values(rows) == [
        {"tokens": ["vamos", "nos", "mar"], "tags": ["VERB", "PRON", "NOUN"], "text": "vámonos al mar"}]
    assert (counts.read, bad["number"]) == (2, 11)
    for field, expected in {"xpos": ["V", "P", "N"], "deprel": ["root", "obj", "obl"]}.items():
        (tmp_path / "bad.quarantine").unlink()
        assert read(tmp_path, "a.conllu", columns={"tags": field}, **TAGGED)[0][0].values["tags"] == expected


def test_tokens_and_tags_must_agree(tmp_path):
    put(tmp_path, "a.jsonl", '{"tokens": ["a", "b"], "tags": ["O"]}\n{"tokens": "a b", "tags": "O B-x"}\n'
                             '{"tokens": [1.5], "tags": ["O"]}\n{"tokens": ["a"], "tags": [3]}\n')
    rows, _, bad, _ = read(tmp_path, "a.jsonl", **TAGGED)
    assert values(rows) == [{"tokens": ["a", "b"], "tags": ["O", "B-x"]}, {"tokens": ["a"], "tags": [3]}]
    assert bad[0]["reason"] == "2 tokens and 1 tags"


# Parallel files ---------------------------------------------------------------------------------------


def test_parallel_files(tmp_path):
    put(tmp_path, "a.en.gz", "one\n\ntwo\nthree\n\n")
    put(tmp_path, "a.de", "eins\n\n\ndrei \n")
    keys = {"format": "txt", "columns": {"source": "text"}, "parallel": {"target": "a.de"}}
    rows, _, [bad], _ = read(tmp_path, "a.en.gz", ("source", "target"), (), **keys)
    assert [(row.values, row.number) for row in rows] == [
        ({"source": "one", "target": "eins"}, 1), ({"source": "three", "target": "drei "}, 4)]
    assert (bad["number"], bad["raw"]) == (3, "two\t")
    put(tmp_path, "a.de", "eins\nzwei\n")
    with pytest.raises(DataError, match="different lengths") as error:
        read(tmp_path, "a.en.gz", ("source", "target"), (), **keys)
    assert len(str(error.value).split("\n")) == 3
    assert "a.de" in error.value.where.split(";")[0]
    put(tmp_path, "b.de", "x")
    with pytest.raises(DataError, match="different numbers of files"):
        read(tmp_path, "a.en.gz", ("source", "target"), (), **{**keys, "parallel": {"target": "*.de"}})


# Questions --------------------------------------------------------------------------------------------


def squad_file(*questions):
    article = {"title": "梵文", "paragraphs": [{"context": "在歐洲，梵語。", "qas": list(questions)}]}
    return json.dumps({"version": "2.0", "data": [article]}, ensure_ascii=False)


def test_squad(tmp_path):
    answers = [{"text": "歐洲", "answer_start": 1}, {"text": "在", "answer_start": 0}]
    right = {"question": "哪裡?", "id": "1", "answers": answers}
    none = {"question": "誰?", "id": "2", "answers": [], "is_impossible": True, "plausible_answers": []}
    moved = {"question": "哪?", "id": "3", "answers": [{"text": "歐洲", "answer_start": 2}]}
    wrong = [{"question": "哪?", "id": "4", "answers": [{"text": "亞洲", "answer_start": 1}]},
             {"question": "", "answers": []}, {"question": "x", "answers": [{"text": "歐洲"}]}, 7,
             {"question": "x", "answers": [{"text": "", "answer_start": -1}]}]
    put(tmp_path, "a.json", squad_file(right, none, moved, *wrong))
    rows, _, bad, [found] = read(tmp_path, "a.json", **SQUAD)
    assert found.layout.format == "squad"
    assert values(rows) == [
        {"question": "哪裡?", "context": "在歐洲，梵語。", "answers": answers, "id": "1", "title": "梵文"},
        {"question": "誰?", "context": "在歐洲，梵語。", "answers": [], "id": "2", "title": "梵文"},
        {"question": "哪?", "context": "在歐洲，梵語。", "answers": moved["answers"], "id": "3", "title": "梵文"}]
    assert [row["number"] for row in bad] == [4, 5, 6, 7, 8]
    put(tmp_path, "b.json", squad_file(right)[:-3])
    with pytest.raises(DataError, match="not a SQuAD file"):
        read(tmp_path, "b.json", **SQUAD)


def test_squad_in_pieces_of_any_length(tmp_path, monkeypatch):
    from wenmo.text import json_text

    content = squad_file({"question": "a" * 40, "id": "1", "answers": [{"text": "在", "answer_start": 0}]})
    content = content.replace('"2.0"', "1234567")  # a number has no end of its own
    put(tmp_path, "a.data", content)
    for piece in (1, 7, 14, 64):
        monkeypatch.setattr(json_text, "PIECE_CHARACTERS", piece)
        assert len(read(tmp_path, "a.data", format="squad", **SQUAD)[0]) == 1


# Conversations ----------------------------------------------------------------------------------------


def pair(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def test_alpaca(tmp_path):
    put(tmp_path, "a.json", json.dumps([
        {"instruction": "译", "input": "hello", "output": "你好", "system": "简短", "history": [["一", "二"]]},
        {"instruction": "问", "input": "", "output": "答"}, {"instruction": 3, "output": "x"},
        {"instruction": "a", "output": "b", "history": ["x"]}, {"instruction": "a"}]))
    rows, _, bad, [found] = read(tmp_path, "a.json", **CHAT)
    assert "alpaca, json" in str(found)
    assert values(rows) == [
        {"messages": [{"role": "system", "content": "简短"}, *pair("一", "二"), *pair("译\nhello", "你好")]},
        {"messages": pair("问", "答")}]
    assert [row["number"] for row in bad] == [3, 4, 5]
    (tmp_path / "bad.quarantine").unlink()
    outputs = texts(read(tmp_path, "a.json", columns={"text": "output"})[0])
    assert outputs == ["你好", "答", "x", "b"]  # the object's own keys are there still


def test_sharegpt_in_both_spellings(tmp_path):
    def said(*turns, **others):
        return {"conversations": [{"from": role, "value": value} for role, value in turns], **others}

    put(tmp_path, "a.jsonl", "\n".join(json.dumps(row) for row in [
        said(("human", "q"), ("function_call", '{"name": "f", "arguments": {"x": 1}}'), ("observation", "1"),
             ("gpt", "a"), system="s"),
        said(("human", "q"), chosen={"from": "gpt", "value": "good"}, rejected={"from": "gpt", "value": "bad"}),
        {"messages": pair("q", "a")}, said(("robot", "x")), said(), said(("function_call", "f(x)")),
        {"messages": [{"role": "user", "content": 1}]}]))
    rows, _, bad, _ = read(tmp_path, "a.jsonl", **CHAT)
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    assert values(rows) == [
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"},
                      {"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "1"},
                      {"role": "assistant", "content": "a"}]},
        {"messages": [{"role": "user", "content": "q"}], "chosen": {"role": "assistant", "content": "good"},
         "rejected": {"role": "assistant", "content": "bad"}},
        {"messages": pair("q", "a")}]
    assert [row["number"] for row in bad] == [4, 5, 6, 7]


def test_dialogues_in_yaml_are_texts(tmp_path):
    put(tmp_path, "a.yml", "categories:\n- AI\nconversations:\n"
                           "- - 你好\n  - yes\n- - 1\n  - 2020-01-01\n  - ~\n- alone\n")
    rows, _, [bad], _ = read(tmp_path, "a.yml", **CHAT)
    assert rows[0].values["messages"] == pair("你好", "yes")
    assert [message["content"] for message in rows[1].values["messages"]] == ["1", "2020-01-01", "~"]
    assert bad["number"] == 3
    put(tmp_path, "a.yml", "conversations: [\n")
    with pytest.raises(DataError, match="not valid YAML"):
        read(tmp_path, "a.yml", **CHAT)


def test_the_detected_encoding_is_said(tmp_path):
    assert detect(put(tmp_path, "a.csv", f"text,label\n{TRADITIONAL},1\n", "big5")) == "big5"
    assert "big5" in str(read(tmp_path, "a.csv")[3][0])


def test_an_encoding_on_the_command_line_keeps_the_columns_of_the_training_data(tmp_path):
    path = put(tmp_path, "a.csv", f"review,label\n{TRADITIONAL},1\n", "big5")
    source = open_given(str(path), ("text",), {"encoding": "gb18030"}, {"columns": {"text": "review"}})
    assert (source.files[0].layout.encoding, source.files[0].columns[0]) == ("gb18030", "review")
