"""Tagging: every word gets its tag, in whatever form the row comes and however long it is."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import wenmo
from wenmo.data.sequence import collate
from wenmo.device import choose
from wenmo.errors import DataError, RecipeError, WenmoError
from wenmo.evaluation import validation
from wenmo.models import create
from wenmo.models.bert import BertConfig
from wenmo.recipe import parse_recipe
from wenmo.stages.evaluate import named
from wenmo.tasks import create_task
from wenmo.tasks.tagging import Scores, Tagging, TaggingSettings
from wenmo.tasks.task import Lengths
from wenmo.tasks.units import cut, ids_of_units
from wenmo.text import tokenizer_training
from wenmo.text.tagging_schemes import convert
from wenmo.text.tokenizer import Tokenizer
from wenmo.text.tokenizer_training import TokenizerSettings
from wenmo.text.words import joined, place_words, split_units

PEOPLE, PLACES = ("王小明", "李四", "Ann Lee", "John"), ("北京", "上海市", "Paris", "New York")
SENTENCES = [f"{person}昨天去了{place}。" if person[0] > "z" else f"{person} went to {place} ."
             for person in PEOPLE for place in PLACES for _ in range(2)]


def row(sentence: str, scheme: str = "bio") -> dict[str, Any]:
    """Characters of Chinese, words of English, with the names in them."""
    places = [(start, end) for start, end in split_units(sentence, "characters" if sentence[0] > "z" else "words")]
    tags = ["O"] * len(places)
    for names, kind in ((PEOPLE, "PER"), (PLACES, "LOC")):
        for name in names:
            at = sentence.find(name)
            inside = [i for i, (start, end) in enumerate(places) if at >= 0 and at <= start and end <= at + len(name)]
            for number, i in enumerate(inside):
                tags[i] = ("I-" if number else "B-") + kind
    return {"tokens": [sentence[start:end] for start, end in places], "tags": convert(tags, scheme)}


def with_entities(sentence: str) -> dict[str, Any]:
    entities = [{"start": sentence.find(name), "end": sentence.find(name) + len(name), "type": kind}
                for names, kind in ((PEOPLE, "PER"), (PLACES, "LOC")) for name in names if name in sentence]
    return {"text": sentence, "entities": entities}


ROWS = [row(sentence) for sentence in SENTENCES]


@cache
def tokenizer(kind: str = "wordpiece") -> Tokenizer:
    return tokenizer_training.train(SENTENCES * 3, TokenizerSettings(type=kind, vocab_size=400, masked=kind == "bpe"))


def task(max_tokens: int = 32, rows: list[dict[str, Any]] | None = None, kind: str = "wordpiece", form: str = "tokens",
         **settings: Any) -> Tagging:
    made: Any = create_task(TaggingSettings(rows=form, **settings), tokenizer(kind), Lengths(max_tokens=max_tokens))
    return made.fitted(ROWS if rows is None else rows)


def model(its: Tagging, seed: int = 0) -> Any:
    config = BertConfig(vocab_size=its.tokenizer.vocab_size, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=64, max_position_embeddings=64, initializer_range=0.2)
    made: Any = create(config, its.heads, torch.Generator().manual_seed(seed))
    if its.settings.crf:
        with torch.no_grad():
            made.crf.transitions.normal_()
    return made.eval()


def outputs(its: Tagging, made: Any, rows: list[dict[str, Any]], together: bool = True) -> list[list[Any]]:
    found: list[list[Any]] = [[] for _ in rows]
    sequences = [each for number, row in enumerate(rows) for each in
                 its.encode(number, row, with_targets=False).sequences]
    with torch.inference_mode():
        for batch in [sequences[::-1]] if together else [[each] for each in sequences]:
            for sequence, output in zip(batch, its.outputs(made, collate(batch)), strict=True):
                found[sequence.row].append(output)
    return found


# Units and tokens --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_every_character_has_tokens_of_its_own(kind: str) -> None:
    """A byte-pair vocabulary has tokens of several characters: these are taken apart."""
    text = "王小明昨天去了北京。"
    whole, _ = tokenizer(kind).encode_with_offsets(text)
    units = ids_of_units(tokenizer(kind), text, split_units(text, "characters"))
    assert all(units)
    assert [tokenizer(kind).decode(ids) for ids in units] == list(text)
    assert kind == "wordpiece" or len(whole) < len(text)


def test_a_border_may_lie_anywhere() -> None:
    """A unit that has some tokens to itself and shares another is encoded apart as a whole."""
    text = "xwent北京y"
    for border in range(1, len(text)):
        units = ids_of_units(tokenizer("bpe"), text, [(0, border), (border, len(text))])
        assert [tokenizer("bpe").decode(ids) for ids in units] == [text[:border], text[border:]]


def test_words_keep_the_ids_that_the_text_as_a_whole_has() -> None:
    text = "Ann Lee went to New York ."
    for kind in ("wordpiece", "bpe"):
        units = ids_of_units(tokenizer(kind), text, split_units(text, "words"))
        assert [id for ids in units for id in ids] == tokenizer(kind).encode(text)
        assert len(units) == 7


def test_what_the_tokenizer_drops_is_a_unit_all_the_same() -> None:
    units = ids_of_units(tokenizer(), "王\u200b小", [(0, 1), (1, 2), (2, 3)])
    assert all(units)
    assert units[1] == [tokenizer().unk_id]


def test_words_as_a_text_and_where_they_stand_in_it() -> None:
    words = ["GPT", "-", "4", "发布", "了", "，", "New", "York"]
    assert joined(words) == "GPT - 4发布了，New York"
    assert [joined(words)[start:end] for start, end in place_words(words)] == words


def test_each_unit_is_answered_once_where_it_is_far_from_an_edge() -> None:
    units = [[unit] * (1 + unit % 2) for unit in range(40)]
    windows = cut(units, room=20, overlap=8)
    assert len(windows) > 2
    assert [unit for window in windows for unit in range(window.first, window.end)] == list(range(40))
    for window in windows:
        assert [window.ids[place] for place in window.places] == list(range(window.first, window.end))
        inner = window.places[1:-1]
        assert all(place >= 3 or window.first == 0 for place in inner)
        assert all(place < 20 - 3 or window.end == 40 for place in inner)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(4, 20), st.integers(0, 3))
def test_no_unit_is_lost_however_many_tokens_it_has(lengths: list[int], room: int, overlap: int) -> None:
    units = [[unit] * length for unit, length in enumerate(lengths)]
    windows = cut(units, room, overlap)
    assert [unit for window in windows for unit in range(window.first, window.end)] == list(range(len(units)))
    for window in windows:
        assert len(window.ids) <= room
        assert [window.ids[place] for place in window.places] == list(range(window.first, window.end))


# Rows --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["bmes", "bioes", "bilou", "iob1"])
def test_rows_may_be_in_any_scheme(scheme: str) -> None:
    plain, other = task(), task(rows=[row(sentence, scheme) for sentence in SENTENCES])
    assert other.labels == plain.labels == {"O": 0, "B-LOC": 1, "I-LOC": 2, "B-PER": 3, "I-PER": 4}
    for sentence in SENTENCES:
        a = plain.encode(0, row(sentence), with_targets=True).sequences[0]
        b = other.encode(0, row(sentence, scheme), with_targets=True).sequences[0]
        assert np.array_equal(a.tokens["targets"], b.tokens["targets"])


def test_tokens_and_a_text_with_entities_teach_the_same() -> None:
    chinese = [sentence for sentence in SENTENCES if sentence[0] > "z" and "Paris" not in sentence
               and "York" not in sentence]
    of_tokens = task(rows=[row(sentence) for sentence in chinese])
    of_text = task(rows=[with_entities(sentence) for sentence in chinese], form="text")
    assert (of_text.settings.units, of_tokens.settings.units, task().settings.units) == ("mixed", "characters", "mixed")
    for sentence in chinese:
        a = of_tokens.encode(0, row(sentence), with_targets=True).sequences[0].tokens
        b = of_text.encode(0, with_entities(sentence), with_targets=True).sequences[0].tokens
        assert a.keys() == b.keys()
        assert all(np.array_equal(a[name], b[name]) for name in a)


def task_of_text(**settings: Any) -> Tagging:
    return task(rows=[with_entities(sentence) for sentence in SENTENCES], form="text", **settings)


def test_only_the_first_token_of_a_word_is_learned_from_unless_all_are() -> None:
    odd = {"tokens": ["Xqzv", "went"], "tags": ["B-PER", "O"]}
    for learn, expected in (("first", 2), ("all", 4)):
        its = task(learn=learn, kind="bpe")
        [sequence] = its.encode(0, odd, with_targets=True).sequences
        learnt = int((sequence.tokens["targets"] != -100).sum())
        assert int(sequence.tokens["first"].sum()) == 2
        assert learnt == 2 if expected == 2 else learnt > 2


def test_a_long_sentence_is_learned_from_once_and_answered_whole() -> None:
    long = {name: [value for each in ROWS[:6] for value in each[name]] for name in ("tokens", "tags")}
    its = task(max_tokens=24)
    sequences = its.encode(0, long, with_targets=True).sequences
    assert len(sequences) > 2
    learnt = [target for sequence in sequences for target in sequence.tokens["targets"] if target != -100]
    assert learnt == [its.labels[tag] for tag in long["tags"]]
    [found] = outputs(its, model(its), [long])
    assert len(its.decode(long, found)["tags"]) == len(long["tokens"])


@pytest.mark.parametrize("settings", [{}, {"crf": True}, {"target": "tags"}])
def test_the_answer_is_the_same_in_any_company(settings: dict[str, Any]) -> None:
    its = task(max_tokens=12, **settings)
    made = model(its)
    together, alone = outputs(its, made, ROWS), outputs(its, made, ROWS, together=False)
    for number, each in enumerate(ROWS):
        assert its.decode(each, together[number]) == its.decode(each, alone[number])
        for a, b in zip(sorted(together[number], key=lambda part: part.first), alone[number], strict=True):
            np.testing.assert_allclose(a.scores, b.scores, atol=1e-5)


def test_entities_count_characters_of_a_text_and_tokens_of_a_list() -> None:
    its = task()
    made = model(its)
    text = "Ann Lee went to Paris ."
    [[asked]] = [outputs(its, made, [{"text": text}])]
    answer = its.decode({"text": text}, asked)
    assert answer["tokens"] == text.split()
    for entity in answer["entities"]:
        assert text[entity["start"] : entity["end"]] == entity["text"]
    tokens = {"tokens": text.split()}
    [found] = outputs(its, made, [tokens])
    same = its.decode(tokens, found)
    assert same["tags"] == answer["tags"]
    assert [" ".join(tokens["tokens"][e["start"] : e["end"]]) for e in same["entities"]] == [
        e["text"] for e in answer["entities"]]


def test_measured_on_what_the_rows_say() -> None:
    """The scores of a perfect answer are 1; an entity of a type never seen is missed, not refused."""
    its = task()
    perfect = [[_sure(its, each)] for each in ROWS]
    measured = its.measure(ROWS, perfect, seed=0)
    assert {name: estimate.value for name, estimate in measured.metrics.items()} == dict.fromkeys(
        ("precision", "recall", "f1", "macro_f1", "token_accuracy", "exact"), 1.0)
    strange = {"tokens": ["北", "京"], "tags": ["B-ORG", "I-ORG"]}
    its.encode(0, strange, with_targets=True)
    assert its.measure([*ROWS, strange], [*perfect, [_sure(its, strange)]], seed=0).metrics["recall"].value < 1


def test_what_breaks_its_scheme_is_counted_in_scores_too() -> None:
    its = task()
    broken = [ROWS[0], {"tokens": ["北", "京", "在"], "tags": ["O", "I-PER", "O"]}]
    outputs = [[_sure(its, each)] for each in broken]
    assert its.measure(broken, outputs, seed=0).details["repaired"] == {"rows": 1, "tags": 1}
    assert "repaired" not in its.measure(ROWS, [[_sure(its, each)] for each in ROWS], seed=0).details
    mixed = [{"tokens": ["a", "b", "c"], "tags": ["B-PER", "M-PER", "L-PER"]}]
    with pytest.raises(DataError, match=r"no one scheme|不属于同一种方案"):
        its.measure(mixed, [[_sure(its, each)] for each in mixed], seed=0)


def _sure(its: Tagging, each: dict[str, Any]) -> Any:
    """Scores that leave no doubt about the row's own tags."""
    [sequence] = its.encode(0, each, with_targets=True).sequences
    targets = sequence.tokens["targets"][sequence.tokens["first"] == 1]
    return Scores(0, np.where(np.eye(len(its.labels))[targets] == 1, 0.0, -50.0).astype(np.float32), None)


def test_segmentation_gives_words_of_the_text() -> None:
    rows = [{"tokens": words.split()} for words in ("我们 今天 去 北京 。", "北京 今天 很 冷 。", "GPT 4 发布 了")]
    its = task(rows=rows, target="words")
    assert list(its.labels) == ["B", "M", "E", "S"]
    for each in rows:
        [sequence] = its.encode(0, each, with_targets=True).sequences
        assert its.decode({"text": joined(each["tokens"])}, [_sure(its, each)]) == {"words": each["tokens"]}
        assert its.decode({"tokens": [joined(each["tokens"])]}, [_sure(its, each)])["words"] == each["tokens"]
        assert int(sequence.tokens["first"].sum()) == sum(map(len, each["tokens"]))
    assert its.measure(rows, [[_sure(its, each)] for each in rows], seed=0).metrics["f1"].value == 1


def test_what_was_predicted_stands_beside_what_was_given() -> None:
    answer = {"label": "a", "tags": ["O"], "entities": []}
    beside = named(answer, {"label": "b", "tags": ["B-X"]})
    assert beside == {"prediction": "a", "predicted_tags": ["O"], "entities": []}


def test_long_sentences_may_choose_the_best_weights(tmp_path: Path) -> None:
    """The first batch of the validation, by which a metric's name is checked, has some windows of a sentence only."""
    long = [{name: [value for each in ROWS[at : at + 6] for value in each[name]] for name in ("tokens", "tags")}
            for at in range(10)]
    its = task(max_tokens=12, rows=long)
    examples = its.build(long, tmp_path, 0, "").examples
    assert examples.lengths(0).sum() > 600
    with mock.patch.object(validation, "BATCH_TOKENS", 60):
        found = validation.first_batch(model(its), its, its.objective(), examples, long, choose("cpu", "fp32"))
    assert {"loss", "f1", "token_accuracy"} <= found.keys()


# Faults ------------------------------------------------------------------------------------------------


def _three_lines(error: WenmoError) -> None:
    assert len(str(error).splitlines()) == 3, str(error)


@pytest.mark.parametrize("entities", [
    [{"start": 0, "end": 3, "type": "PER"}, {"start": 2, "end": 4, "type": "LOC"}],
    [{"start": 0, "end": 99, "type": "PER"}],
    [{"start": 0, "end": 3, "type": "PER", "text": "李四"}],
    [{"start": 0, "type": "PER"}],
    [{"start": 0.5, "end": 3, "type": "PER"}],
    ["PER"],
    "B-PER",
])
def test_entities_that_are_none_are_refused(entities: list[Any]) -> None:
    with pytest.raises(DataError) as refused:
        task_of_text().encode(0, {"text": "王小明去了北京", "entities": entities}, with_targets=True)
    _three_lines(refused.value)


def test_tokens_are_a_list_or_a_text_with_spaces() -> None:
    its = task()
    for tokens in (5, {"a": 1}, [["Ann"]], [None]):
        with pytest.raises(DataError, match="no tokens") as refused:
            its.encode(0, {"tokens": tokens}, with_targets=False)
        _three_lines(refused.value)
    [found] = outputs(its, model(its), [{"tokens": "Ann Lee went to Paris ."}])
    assert len(its.decode({"tokens": "Ann Lee went to Paris ."}, found)["tags"]) == 6


def test_a_row_that_is_refused_is_named_by_its_place_in_the_file(tmp_path: Path) -> None:
    lines = [json.dumps(with_entities(sentence), ensure_ascii=False) for sentence in SENTENCES]
    beyond = [{"start": 0, "end": 99, "type": "PER"}]
    bad = json.dumps({"text": "王小明去了北京", "entities": beyond}, ensure_ascii=False)
    (tmp_path / "names.jsonl").write_text("\n".join([*lines, bad, bad.replace("去", "到")]) + "\n", encoding="utf-8")
    recipe = {**RECIPE, "task": {"type": "tagging", "rows": "text"}}
    with pytest.raises(DataError) as refused:
        wenmo.train(recipe, out=tmp_path / "run", data_root=tmp_path)
    assert refused.value.where in (f"names.jsonl:{len(lines) + 1}", f"names.jsonl:{len(lines) + 2}")


def test_overlapping_entities_may_be_left_out_and_are_counted(tmp_path: Path) -> None:
    overlapping = {"text": "王小明去了北京", "entities": [{"start": 0, "end": 3, "type": "PER"},
                                                      {"start": 2, "end": 4, "type": "LOC"}]}
    rows = [*(with_entities(sentence) for sentence in SENTENCES), overlapping]
    its = task(rows=rows, form="text", conflicts="drop")
    built = its.build(rows, tmp_path, 0, "")
    assert any(note.startswith("1 ") for note in built.notes)


@pytest.mark.parametrize("tags", [["NOUN", "O"], ["B-PER"]])
def test_tags_that_do_not_fit_are_refused(tags: list[str]) -> None:
    with pytest.raises(DataError) as refused:
        task().encode(0, {"tokens": ["王", "去"], "tags": tags}, with_targets=True)
    _three_lines(refused.value)


@pytest.mark.parametrize("settings", [
    {"crf": True, "label_smoothing": 0.1}, {"crf": True, "learn": "all"}, {"target": "tags", "scheme": "bio"},
    {"target": "words", "rows": "text"}, {"conflicts": "drop"}, {"target": "words", "units": "words"},
])
def test_keys_that_do_nothing_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="does nothing"):
        parse_recipe({**RECIPE, "task": {"type": "tagging", **settings}}, "test")


def test_labels_that_are_not_those_needed_are_refused() -> None:
    with pytest.raises(RecipeError, match="I-PER"):
        task(labels=("O", "B-PER", "B-LOC", "I-LOC"))
    assert task(labels=("B-PER", "I-PER", "B-LOC", "I-LOC", "O")).labels["B-PER"] == 0


# A run -------------------------------------------------------------------------------------------------

RECIPE: dict[str, Any] = {
    "model": {"type": "bert", "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
              "intermediate_size": 96, "max_position_embeddings": 64, "hidden_dropout_prob": 0.0},
    "tokenizer": {"train": {"type": "wordpiece", "vocab_size": 400}},
    "data": {"train": [{"path": "names.jsonl"}], "choose": {"carve": 8}, "max_tokens": 32, "duplicates": "keep"},
    "train": {"steps": 60, "batch_tokens": 512, "optimizer": {"lr": 0.005}, "best": {"metric": "f1"}, "threads": 1,
              "dtype": "fp32"},
}


@pytest.mark.parametrize("crf", [False, True])
def test_learned_saved_and_answered(crf: bool, tmp_path: Path) -> None:
    rows = [{**each, "tokens": list(each["tokens"])} for each in ROWS]
    for number, each in enumerate(rows):  # all different, so that none of those for choosing is left out of training
        each["tokens"][-1] = "。.！!？?；;、,"[number % 10]
    (tmp_path / "names.jsonl").write_text("\n".join(json.dumps(each, ensure_ascii=False) for each in rows),
                                          encoding="utf-8")
    done = wenmo.train({**RECIPE, "task": {"type": "tagging", "crf": crf, "scheme": "bmes"}}, out=tmp_path / "run",
                       data_root=tmp_path)
    assert done.metrics["f1"] > 0.9
    loaded = wenmo.load(tmp_path / "run")
    [answer] = loaded.predict(["李四昨天去了上海市。"])
    assert [(each["text"], each["type"]) for each in answer["entities"]] == [("李四", "PER"), ("上海市", "LOC")]
    assert loaded.predict([{"tokens": list("李四昨天去了上海市。")}])[0]["tags"] == answer["tags"]
    assert loaded.check() == 0
    report = wenmo.evaluate(loaded, tmp_path / "names.jsonl")
    assert report.metrics["f1"].value > 0.9
    weights = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert ("crf.transitions" in weights) is crf
    theirs = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path / "run" / "model")
    assert theirs.config.id2label[0] == "O"
    assert set(theirs.config.id2label.values()) == {"O", *(f"{a}-{b}" for a in "BMES" for b in ("PER", "LOC"))}
