"""Span questions: windows and targets, answers in the user's own characters, no answer, the whole way to `predict`."""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import small_data
from command import Command
from command import wenmo as wenmo
from wenmo.data.sequence import Batch, collate
from wenmo.errors import DataError, RecipeError
from wenmo.evaluation.sentence_baselines import BM25, by_overlap, sentences
from wenmo.files import read_jsonl, write_jsonl
from wenmo.loaded import load
from wenmo.models import create
from wenmo.models.bert import BertConfig
from wenmo.nn.cross_entropy import IGNORED
from wenmo.objectives import span_log_probabilities
from wenmo.stages.library import train
from wenmo.tasks import create_task, task_from_card
from wenmo.tasks.answers import Accepted, accepted_answers, find, to_learn
from wenmo.tasks.span_qa import SpanQA, SpanQASettings
from wenmo.tasks.spans import KEPT, Window, best_candidates, candidates_of, threshold_for
from wenmo.tasks.task import Lengths
from wenmo.text import tokenizer_training
from wenmo.text.intake import Counts, SourceSettings, open_source, read_rows
from wenmo.text.tokenizer import Tokenizer
from wenmo.text.tokenizer_training import TokenizerSettings

DATA = Path(os.environ.get("WENMO_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
TEXTS = [row["context"] for row in small_data.questions(60)]
WORDPIECE = tokenizer_training.train([*TEXTS, "在哪里出售？价格是多少？谁写的？"],
                                     TokenizerSettings(type="wordpiece", vocab_size=300))
BPE = tokenizer_training.train(TEXTS, TokenizerSettings(type="bpe", vocab_size=500, masked=True))
ROW = {"question": "价格是多少？", "context": "这本书 在北京出售，价格是37元。 after a week, wonderful.",
       "answers": [{"text": "37元", "answer_start": 13}]}


def task(tokenizer: Tokenizer = WORDPIECE, max_tokens: int = 32, **settings: Any) -> SpanQA:
    known = {"max_question_tokens": 8, "overlap_tokens": 6, "metric": "cmrc", "no_answer": False, **settings}
    made = create_task(SpanQASettings(**known), tokenizer, Lengths(max_tokens=max_tokens))
    assert isinstance(made, SpanQA)
    return made


def perfect(of: SpanQA, row: dict[str, Any]) -> list[Window]:
    """What a model that knows the targets would make of a row's windows."""
    found = []
    for sequence in of.encode(0, row, with_targets=True).sequences:
        scores_T2 = np.full((len(sequence), 2), -20.0, np.float32)
        for column, name in enumerate(("start", "end")):
            scores_T2[sequence.values[name], column] = -0.1
        found.append(candidates_of(scores_T2, sequence.tokens["begins"], sequence.tokens["ends"], 30))
    return found


# Windows ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", [WORDPIECE, BPE], ids=["wordpiece", "bpe"])
def test_each_window_is_a_question_and_a_piece_of_the_context(tokenizer: Tokenizer) -> None:
    row = {**ROW, "context": ROW["context"] * 4}
    sequences = task(tokenizer).encode(7, row, with_targets=False).sequences
    question = tokenizer.encode(row["question"])[:8]
    covered: set[int] = set()
    for sequence in sequences:
        ids, begins, ends = (sequence.tokens[name] for name in ("ids", "begins", "ends"))
        assert sequence.row == 7
        assert len(ids) <= 32
        assert ids[0] == tokenizer.cls_id
        assert ids[1 : 1 + len(question)].tolist() == question
        assert (begins[: 2 + len(question)] == -1).all()
        assert begins[-1] == -1  # [SEP]
        for begin, end in zip(begins, ends, strict=True):
            assert (begin < 0) == (end < 0)
            assert begin < 0 or row["context"][begin:end].strip() == row["context"][begin:end] != ""
            covered.update(range(begin, end) if begin >= 0 else ())
    assert covered == {at for at, character in enumerate(row["context"]) if not character.isspace()}
    assert len(sequences) > 3
    assert all((one.tokens["begins"].max() >= other.tokens["begins"][other.tokens["begins"] >= 0].min())
               for one, other in pairwise(sequences))  # they overlap


def test_bert_segments_tell_question_and_context_apart() -> None:
    [sequence] = task(max_tokens=80).encode(0, ROW, with_targets=False).sequences
    context = sequence.tokens["begins"] >= 0
    assert sequence.tokens["segments"][context].all()
    assert not sequence.tokens["segments"][: context.argmax()].any()


PIECES = st.sampled_from([*"北京上海价格是元，。", "wonderful", " ", "37", "e"])


@given(st.lists(PIECES, min_size=3, max_size=60), st.data())
def test_a_perfect_model_gives_back_every_answer(pieces: list[str], data: st.DataObject) -> None:
    """Whatever the windows; Han characters are tokens of their own, words are answered whole."""
    context = "".join(pieces) + "京"
    first = data.draw(st.integers(0, len(pieces)))
    last = data.draw(st.integers(first, min(first + 3, len(pieces))))
    places = np.cumsum([0, *map(len, [*pieces, "京"])])
    text = context[places[first] : places[last + 1]]
    row = {"question": "价格？", "context": context, "answers": [{"text": text, "answer_start": int(places[first])}]}
    if not text.strip():
        return
    of = task()
    if all(window.values["start"] == IGNORED for window in of.encode(0, row, with_targets=True).sequences):
        return  # so long that no window holds it whole: counted, and not learned from
    _, offsets = WORDPIECE.encode_with_offsets(context)
    start, end = places[first] + len(text) - len(text.lstrip()), places[first] + len(text.rstrip())
    answer = of.decode(row, perfect(of, row))
    inside = {at for begin, stop in offsets for at in (begin, stop)}
    if start in inside and end in inside:  # no token holds more than the answer, as in `37e`
        assert (answer["start"], answer["end"], answer["answer"]) == (start, end, text.strip())
    else:
        assert answer["start"] <= start < end <= answer["end"]  # snapped outwards to whole tokens


def test_a_window_without_the_whole_answer_says_so() -> None:
    row = {**ROW, "context": "好" * 40 + "37元" + "好" * 40, "answers": [{"text": "37元", "answer_start": 40}]}
    sequences = task().encode(0, row, with_targets=True).sequences
    holds = [{40, 41, 42} <= set(sequence.tokens["begins"]) or {40, 42} <= set(sequence.tokens["begins"])
             for sequence in sequences]
    assert [sequence.values["start"] > 0 for sequence in sequences] == holds
    assert 0 < sum(holds) < len(holds)
    for sequence in sequences:
        start, end = sequence.values["start"], sequence.values["end"]
        assert (start == 0) == (end == 0)
        assert start == 0 or (sequence.tokens["begins"][start], sequence.tokens["ends"][end]) == (40, 43)


# Answers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "expected"), [
    ([{"text": "北京", "answer_start": 1}], [Accepted("北京", 1)]),
    ([{"text": "北京", "start": 1}], [Accepted("北京", 1)]),
    (["北京", "上海"], [Accepted("北京"), Accepted("上海")]), ("北京", [Accepted("北京")]), ([], []),
    ({"text": ["北京"], "answer_start": [1]}, [Accepted("北京", 1)]), ([{"text": "", "answer_start": -1}], []),
])
def test_answers_in_every_form(value: Any, expected: list[Accepted]) -> None:
    assert accepted_answers(value, "row 1") == expected


@pytest.mark.parametrize("value", [7, [7], [{"answer_start": 1}], [{"text": "a", "answer_start": "1"}], None])
def test_what_is_no_answer_is_refused(value: Any) -> None:
    with pytest.raises(DataError, match="no answers"):
        accepted_answers(value, "row 1")


@pytest.mark.parametrize(("answer", "expected"), [
    (Accepted("ab", 0), (0, 2, "as given")), (Accepted("ab", 1), (0, 2, "moved")), (Accepted("ab", 4), (6, 8, "moved")),
    (Accepted("ab"), (0, 2, "ambiguous")), (Accepted("cd"), (3, 5, "searched")),
    (Accepted(" cd ", 2), (3, 5, "as given")),  # without the spaces, which no token holds
])
def test_where_an_answer_stands(answer: Accepted, expected: tuple[int, int, str]) -> None:
    found = find(answer, "ab cd ab")
    assert found is not None
    assert (found.start, found.end, found.finding) == expected


def test_of_several_answers_the_one_of_most_people_is_learned() -> None:
    assert to_learn([Accepted("a", 0), Accepted("b", 1), Accepted("b", 1)]).text == "b"
    assert to_learn([Accepted("a", 0), Accepted("b", 1)]).text == "a"
    assert find(Accepted("x"), "ab") is None


def test_rows_that_cannot_be_learned_are_skipped_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WENMO_LANG", "en")
    long = {**ROW, "context": "好" * 60, "answers": ["好" * 50]}
    unfound = {**ROW, "answers": ["上海"]}
    built = task().build([ROW, unfound, long, {**ROW, "answers": ["元"]}], tmp_path, 0, "")
    assert (built.num_rows, built.num_rows_skipped) == (2, 2)
    assert {sequence.row for at in range(len(built.examples)) for sequence in built.examples.sequences(at, 0)} == {0, 3}
    assert [note.split(": the answer ")[1][:12] for note in built.notes] == ["is not in th", "stands whole"]
    with pytest.raises(DataError, match="not in its context"):
        task(unfound="refuse").build([ROW, unfound], tmp_path, 0, "")
    with pytest.raises(DataError, match="not one answer"):
        task().build([unfound], tmp_path, 0, "")
    assert len(task().encode(0, unfound, with_targets=True).sequences) > 0  # for evaluation it counts like any other


def test_pieces_of_bpe_that_cannot_meet_an_answer_are_counted(tmp_path: Path) -> None:
    context = TEXTS[0]
    _, offsets = BPE.encode_with_offsets(context)
    start, end = next(span for span in offsets if span[1] - span[0] > 1)
    row = {**ROW, "context": context, "answers": [{"text": context[start + 1 : end], "answer_start": start + 1}]}
    assert len(task(BPE).build([row], tmp_path, 0, "").notes) == 1
    assert task(BPE).decode(row, perfect(task(BPE), row))["answer"] == context[start:end].strip()


@pytest.mark.skipif(not DATA.exists(), reason=f"the public sets are not in {DATA} (WENMO_TEST_DATA)")
def test_misplaced_answers_of_cmrc_are_put_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WENMO_LANG", "en")
    source = open_source(SourceSettings(path="cmrc2018/cmrc2018_trial.json.gz"), DATA,
                         ("question", "context", "answers"), ())
    rows = [row.values for row in read_rows(source, Counts())]
    tokenizer = tokenizer_training.train([row["context"] for row in rows[::50]],
                                         TokenizerSettings(type="wordpiece", vocab_size=3000))
    built = task(tokenizer, 384, max_question_tokens=64, overlap_tokens=128).build(rows, tmp_path, 0, "")
    assert built.num_rows + built.num_rows_skipped == len(rows) == 1000
    assert any(note.startswith("5 of 1,000 questions: the answer is not where") for note in built.notes)


# Choosing ---------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1))
def test_the_best_spans_are_those_of_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    length, longest = int(rng.integers(2, 14)), int(rng.integers(1, 6))
    scores_T2 = rng.normal(size=(length, 2)).astype(np.float32)
    begins = np.where(rng.random(length) < 0.8, np.arange(length) * 3, -1)
    begins[0], begins[-1] = -1, 3 * length
    window = candidates_of(scores_T2, begins, np.where(begins < 0, -1, begins + 2), longest)
    expected = sorted((-float(scores_T2[i, 0]) - float(scores_T2[j, 1]), begins[i], begins[j] + 2)
                      for i in range(length) for j in range(i, min(i + longest, length))
                      if begins[i] >= 0 and begins[j] >= 0)[:KEPT]
    assert [(each.begin, each.end) for each in window.spans] == [(begin, end) for _, begin, end in expected]
    assert window.nothing == pytest.approx(float(scores_T2[0].sum()), abs=1e-5)


@given(st.lists(st.tuples(st.floats(-3, 3), st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0])), min_size=1, max_size=12))
def test_the_threshold_is_the_best_one(pairs: list[tuple[float, float]]) -> None:
    def worth(threshold: float) -> float:
        return sum(gain for margin, gain in pairs if margin <= threshold)

    margins = sorted({margin for margin, _ in pairs})
    best = max(worth(at) for at in [margins[0] - 1, *margins])
    found = threshold_for([margin for margin, _ in pairs], [gain for _, gain in pairs])
    if all(b - a > 1e-5 for a, b in pairwise(margins)):  # it is kept to six decimals
        assert worth(found) == pytest.approx(best)


def test_no_answer_is_given_where_it_scores_better_by_more_than_the_threshold() -> None:
    def answer(threshold: float | None, no_answer: bool = True) -> dict[str, Any]:
        of = task(no_answer=no_answer, null_threshold=threshold if no_answer else None, n_best=2)
        row = {**ROW, "answers": []}
        return of.decode(row, perfect(of, row))

    assert (answer(None)["answer"], answer(None)["start"], answer(None)["end"]) == ("", None, None)
    assert answer(1000)["answer"] != ""
    assert answer(None, no_answer=False)["answer"] != ""
    for found in (answer(None), answer(1000)):
        assert found["n_best"][0] == {name: found[name] for name in ("answer", "start", "end", "score")}
        assert len(found["n_best"]) == 2
    assert answer(None)["score"] > 0.9 > answer(1000)["score"]


def test_of_windows_the_one_least_sure_that_there_is_none_counts() -> None:
    sure, unsure = Window(-0.1, ()), Window(-5.0, perfect(task(), ROW)[0].spans)
    of = task(no_answer=True)
    assert of.decode(ROW, [sure, unsure]) == of.decode(ROW, [unsure, sure])
    assert of.decode(ROW, [sure, unsure])["answer"] == "37元"
    assert best_candidates([unsure, unsure]) == list(unsure.spans)


# Learning ---------------------------------------------------------------------------------------------


def model() -> Any:
    config = BertConfig(vocab_size=WORDPIECE.vocab_size, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=32, max_position_embeddings=64)
    return create(config, {"span_qa": 2}, torch.Generator().manual_seed(0)).eval()


def batch(**settings: Any) -> Batch:
    rows = [ROW, {**ROW, "context": ROW["context"] * 3}, {**ROW, "answers": []}, {**ROW, "answers": ["上海"]}]
    of = task(**settings)
    return collate(s for at, row in enumerate(rows) for s in of.encode(at, row, with_targets=True).sequences)


def test_the_loss_is_that_of_each_sequence_alone() -> None:
    """-½ (log P(start) + log P(end)), each a softmax over [CLS] and the tokens of the context."""
    made, given, total, count = model(), batch(), 0.0, 0
    hidden_MD = made(given.text.ids_M, given.text.lengths, segments_M=given.text.tokens["segments"])
    scores_M2 = made.spans(hidden_MD).detach()
    for at, length in enumerate(given.text.lengths):
        stop = sum(given.text.lengths[: at + 1])
        part_T2 = scores_M2[stop - length : stop]
        allowed = [0, *(place for place in range(length) if given.text.tokens["begins"][stop - length + place] >= 0)]
        for column, name in enumerate(("start", "end")):
            target = int(given.text.values[name][at])
            if target >= 0:
                total -= float(part_T2[allowed, column].log_softmax(0)[allowed.index(target)]) / 2
                count += column
    objective = task().objective()
    [term] = objective.terms(made, given)
    assert float(term.sum.detach()) == pytest.approx(total, rel=1e-5)
    assert objective.counts(given) == {"spans": count}
    assert 0 < count < len(given.text.lengths)  # the answer that is not found teaches nothing
    term.sum.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in made.parameters() if parameter.grad is not None)


def test_only_the_context_and_nothing_can_be_chosen() -> None:
    given = batch().text
    probabilities_M2 = span_log_probabilities(model(), given).exp()
    first = [sum(given.lengths[:at]) for at in range(len(given.lengths))]
    possible = (given.tokens["begins"] >= 0) | torch.zeros(len(given.ids_M), dtype=torch.bool).index_fill(
        0, torch.tensor(first), True)
    assert float(probabilities_M2[~possible].detach().max()) == 0
    for at, length in zip(first, given.lengths, strict=True):
        assert probabilities_M2[at : at + length].sum(0).tolist() == pytest.approx([1, 1], abs=1e-5)


@pytest.mark.parametrize(("settings", "rows", "match"), [
    ({"no_answer": False}, [{**ROW, "answers": []}], "have no answer"),
    ({"null_threshold": 1.0}, [ROW], "null_threshold"),
])
def test_settings_that_the_rows_contradict(settings: dict[str, Any], rows: list[Any], match: str,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WENMO_LANG", "en")
    with pytest.raises(RecipeError, match=match):
        task(**{"no_answer": None, **settings}).fitted(rows)


def test_rows_say_the_rules_and_whether_there_may_be_no_answer() -> None:
    english = {"question": "what does it cost?", "context": "It costs 37.", "answers": ["37"]}
    fresh = task(metric="auto", no_answer=None)
    assert fresh.fitted([ROW]).settings.metric == "cmrc"
    assert fresh.fitted([english]).settings.metric == "squad"
    assert fresh.fitted([ROW]).settings.no_answer is False
    assert fresh.fitted([ROW, {**ROW, "answers": []}]).settings.no_answer is True


@pytest.mark.parametrize(("tokenizer", "max_tokens", "match"), [
    (WORDPIECE, 17, "no room for windows"),
    (tokenizer_training.train(TEXTS, TokenizerSettings(type="bpe", vocab_size=300)), 64, "no control token"),
])
def test_a_task_that_cannot_be(tokenizer: Tokenizer, max_tokens: int, match: str,
                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WENMO_LANG", "en")
    with pytest.raises(RecipeError, match=match):
        task(tokenizer, max_tokens)


@pytest.mark.parametrize("row", [{**ROW, "question": " "}, {**ROW, "context": "\u200b"}])
def test_empty_texts_are_refused(row: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        task().encode(0, row, with_targets=False)


# The whole way ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned where things are sold and what they cost; its texts were made simplified."""
    folder = tmp_path_factory.mktemp("questions")
    write_jsonl(folder / "questions.jsonl", small_data.questions(600))
    write_jsonl(folder / "test.jsonl", small_data.questions(90, seed=1))
    recipe = small_data.recipe("span_qa", steps=200, batch_tokens=1024, optimizer={"lr": 5e-3})
    recipe["data"]["train"][0]["normalize"] = {"simplify": True}
    recipe["data"]["choose"]["carve"] = 60
    train(recipe, out=folder / "run", data_root=folder)
    return folder


def test_it_learns_evaluates_and_stands_beside_the_nearest_sentence(folder: Path, wenmo: Command) -> None:
    result = wenmo("evaluate", folder / "run", folder / "test.jsonl", "--json",
                   "--baseline", folder / "questions.jsonl")
    assert result.code == 0, result.err
    report = json.loads(result.out)
    metrics, details = report["metrics"], report["details"]
    assert metrics["f1"]["value"] > 0.8
    assert metrics["exact_match"]["value"] > 0.7
    assert metrics["no_answer_accuracy"]["value"] > 0.8
    assert details["rules"] == "cmrc"
    assert details["answerable"] == 60
    better = max(metrics["overlap_f1"]["value"], metrics["bm25_f1"]["value"])
    assert metrics["difference"]["value"] == pytest.approx(metrics["f1"]["value"] - better, abs=1e-5)
    assert metrics["difference"]["low"] > 0


def test_the_card_holds_all_that_predict_needs(folder: Path, wenmo: Command) -> None:
    card = json.loads((folder / "run" / "model" / "wenmo.json").read_text(encoding="utf-8"))["tasks"]["span_qa"]
    assert isinstance(card["null_threshold"], float)
    assert card["no_answer"] is True
    assert task_from_card(card, WORDPIECE, "card").card() == card
    rows = [{"question": "价格是多少？", "context": "这本书在上海出售，价格是52元。"}, {"question": "", "context": "x"}]
    result = wenmo("predict", folder / "run", "-", stdin="\n".join(json.dumps(row) for row in rows).encode())
    first, second = (json.loads(line) for line in result.out.splitlines())
    assert set(first) == {"answer", "start", "end", "score"}
    assert first["answer"] == rows[0]["context"][first["start"] : first["end"]] == "52元"
    assert "error" in second


def test_offsets_are_those_of_the_users_own_text(folder: Path) -> None:
    """The model reads it simplified; the answer is what stands there."""
    row = {"question": "在哪裡出售？", "context": "這本書在廣州出售，價格是52元。"}
    [answer] = load(folder / "run").predict([row])
    assert answer["answer"] == "廣州" == row["context"][answer["start"] : answer["end"]]


def test_answers_do_not_depend_on_the_company_of_rows(folder: Path) -> None:
    loaded = load(folder / "run")
    rows = [{**row, "context": row["context"] * times} for row, times in
            zip(read_jsonl(folder / "test.jsonl"), [1, 5, 2, 9] * 5, strict=False)]
    together = loaded.predict(rows)
    for row, answer in zip(rows[::-1], together[::-1], strict=True):
        [alone] = loaded.predict([row])
        assert (alone["start"], alone["end"]) == (answer["start"], answer["end"])
        assert alone["score"] == pytest.approx(answer["score"], abs=1e-5)


# The nearest sentence ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "expected"), [
    ("他来了。她走了！为什么？", ["他来了。", "她走了！", "为什么？"]), ("「好。」他说。", ["「好。」", "他说。"]),
    ("It costs 3.50 a piece. Really? Yes", ["It costs 3.50 a piece.", "Really?", "Yes"]), ("无句号", ["无句号"]),
    ("", [""]),
])
def test_sentences(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


def test_the_nearest_sentence() -> None:
    context = "北京是首都。上海是最大的城市。广州在南方。"
    assert by_overlap("最大的城市是哪里？", context) == "上海是最大的城市。"
    assert BM25([context]).best("南方的广州", context) == "广州在南方。"
    assert by_overlap("问", "甲。乙。") == "甲。"  # of equals the first
    common = BM25(["好的城市。", "好的天气。", "好的书。", "冬天。"])
    assert common.best("好的冬天", "好的好的好的。冬天。") == "冬天。"  # the rare word weighs more
