"""Text to text: layouts, lengths, answers; from a recipe to a translation, and back from the folder."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from oracle import theirs
from small_data import write_csv
from wenmo import load
from wenmo.data.sequence import SOURCE, TARGET, collate
from wenmo.errors import DataError, RecipeError, UsageError
from wenmo.evaluation.text_baselines import first_sentence
from wenmo.files import read_jsonl, write_jsonl
from wenmo.loaded import Loaded
from wenmo.nn.cross_entropy import IGNORED
from wenmo.recipe import parse_recipe
from wenmo.stages.evaluate import evaluate
from wenmo.stages.library import evaluate as evaluate_rows
from wenmo.stages.library import train
from wenmo.stages.predict import predict
from wenmo.tasks.task import Lengths
from wenmo.tasks.text_to_text import TextToText, TextToTextSettings
from wenmo.text import tokenizer_training
from wenmo.text.tokenizer import Tokenizer
from wenmo.text.tokenizer_training import TokenizerSettings

WORDS = {"one": "一", "two": "二", "three": "三", "four": "四", "five": "五", "six": "六"}
PAIRS = [(" ".join(words), "".join(WORDS[word] for word in words))
         for words in itertools.permutations(WORDS, 4)]
SIZE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128,
        "max_position_embeddings": 64}
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {  # model, tokenizer, task
    "marian": ({"type": "marian", "d_model": 64, "encoder_layers": 1, "encoder_attention_heads": 2,
                "encoder_ffn_dim": 128, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 128,
                "max_position_embeddings": 64, "scale_embedding": True, "init_std": 0.125},
               {"seq2seq": True, "sentinels": 0}, {}),
    "llama": ({"type": "llama", **SIZE}, {}, {"separator": " = "}),
}


def recipe(kind: str, **task: Any) -> dict[str, Any]:
    model, tokenizer, own = MODELS[kind]
    return {
        "model": model, "tokenizer": {"train": {"type": "bpe", "vocab_size": 300, **tokenizer}},
        "data": {"train": [{"path": "pairs.csv"}], "choose": {"carve": 20}, "max_tokens": 32},
        "task": {"type": "text_to_text", "generation": {"num_beams": 3}, **own, **task},
        "train": {"steps": 200, "batch_tokens": 1024, "threads": 1, "dtype": "fp32", "optimizer": {"lr": 5e-3},
                  "best": {"metric": "chrf"}, "evaluate_every": 100},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv(tmp_path_factory.mktemp("data") / "pairs.csv", ("source", "target"), PAIRS).parent


@pytest.fixture(scope="module", params=MODELS)
def run(request: pytest.FixtureRequest, folder: Path) -> Path:
    train(recipe(request.param), out=folder / request.param, data_root=folder)
    return folder / str(request.param)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = [text for pair in PAIRS for text in pair]
    return tokenizer_training.train(texts, TokenizerSettings(vocab_size=380, seq2seq=True, sentinels=3))


def task_of(tokenizer: Tokenizer, max_tokens: int = 12, too_long: str = "head", **settings: Any) -> TextToText:
    lengths = Lengths.model_validate({"max_tokens": max_tokens, "too_long": too_long})
    return TextToText(TextToTextSettings.model_validate(settings), tokenizer, lengths)


# One row ----------------------------------------------------------------------------------------------


def test_an_encoder_decoder_reads_the_source_and_says_the_target(tokenizer: Tokenizer) -> None:
    task = task_of(tokenizer, 40, prefix="say: ")
    source, target = task.encode(7, {"source": "one two", "target": "一二"}, with_targets=True).sequences
    assert (source.role, target.role, source.row, target.row) == (SOURCE, TARGET, 7, 7)
    assert tokenizer.decode(source.tokens["ids"], keep_control=True) == "say: one two</s>"
    assert tokenizer.decode(target.tokens["ids"], keep_control=True) == "<pad>一二"
    assert tokenizer.decode(target.tokens["targets"], keep_control=True) == "一二</s>"
    assert len(task.encode(7, {"source": "one two"}, with_targets=False).sequences) == 1


def test_a_decoder_learns_the_target_alone(tokenizer: Tokenizer) -> None:
    task = task_of(tokenizer, 40, separator=" = ")
    [both] = task.encode(0, {"source": "one two", "target": "一二"}, with_targets=True).sequences
    [asked] = task.encode(0, {"source": "one two"}, with_targets=False).sequences
    ids, targets = both.tokens["ids"], both.tokens["targets"]
    assert tokenizer.decode(ids, keep_control=True) == "</s>one two = 一二"
    learned = targets != IGNORED
    assert tokenizer.decode(targets[learned], keep_control=True) == "一二</s>"
    assert ids[1:][learned[:-1]].tolist() == targets[:-1][learned[:-1]].tolist()
    prompt = asked.tokens["ids"].tolist()
    assert task._prompts(collate([both]).first) == task._prompts(collate([asked]).first) == [prompt]
    assert ids.tolist()[: len(prompt)] == prompt
    assert learned.tolist().index(True) == len(prompt) - 1


@pytest.mark.parametrize("separator", [None, " = "])
def test_long_rows_are_cut_and_counted(tokenizer: Tokenizer, separator: str | None, tmp_path: Path) -> None:
    """And no sequence is longer than allowed, whatever the row."""
    task = task_of(tokenizer, 16, separator=separator, max_target_tokens=5)
    row = {"source": "four " * 30, "target": "四" * 30}
    encoded = task.encode(0, row, with_targets=True)
    assert max(map(len, encoded.sequences)) <= 16
    said = encoded.sequences[-1].tokens["targets"]
    assert said[said != IGNORED].tolist() == [*tokenizer.encode(row["target"])[:4], tokenizer.eos_id]
    unread, unsaid = len(tokenizer.encode(row["source"])) - task._room, len(tokenizer.encode(row["target"])) - 4
    assert encoded.cut_tokens == unread
    assert task.build([row], tmp_path, 0, "").num_tokens_cut == unread + unsaid


def test_long_targets_are_cut_skipped_or_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = [{"source": "one", "target": "一"}, {"source": "two", "target": "二" * 30}]
    for kind, expected in (("cut", (2, 1, 0)), ("skip", (1, 0, 1))):
        built = task_of(tokenizer, 12, long_targets=kind).build(rows, tmp_path, 0, "")
        assert (built.num_rows, built.num_rows_cut, built.num_rows_skipped) == expected
    with pytest.raises(DataError, match=r"fit|容纳"):
        task_of(tokenizer, 12, long_targets="refuse").build(rows, tmp_path, 0, "")


def test_of_several_targets_the_first_is_learned_and_the_best_counts(tokenizer: Tokenizer) -> None:
    task = task_of(tokenizer, metrics=("rouge",))
    row = {"source": "one", "target": ["一", "壹"]}
    assert task.encode(0, row, with_targets=True).sequences[1].tokens["targets"][0] == tokenizer.encode("一")[0]
    assert task.measure([row, row], [["壹"], ["一"]], 0).metrics["rouge1"].value == 1
    with pytest.raises(DataError):
        task.encode(0, {"source": "one", "target": []}, with_targets=True)


@pytest.mark.parametrize(("changes", "where"), [
    ({"max_target_tokens": 13}, "task.max_target_tokens"),
    ({"separator": "=", "max_target_tokens": 11}, "data.max_tokens"),
])
def test_lengths_that_leave_no_room_are_refused(tokenizer: Tokenizer, changes: dict[str, Any], where: str) -> None:
    with pytest.raises(RecipeError) as caught:
        task_of(tokenizer, 12, **changes)
    assert caught.value.where == where


def test_a_source_without_a_token(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError):
        task_of(tokenizer).encode(0, {"source": ""}, with_targets=False)


# A recipe ---------------------------------------------------------------------------------------------


def test_it_learns_to_translate(run: Path, folder: Path) -> None:
    model = load(run)
    assert model.predict([PAIRS[0][0], {"source": PAIRS[100][0]}]) == [{"output": target} for _, target in
                                                                      (PAIRS[0], PAIRS[100])]
    report = evaluate(str(run), str(folder / "pairs.csv"))
    assert report.metrics["rougeL"].value > 0.9
    assert 80 < report.metrics["bleu"].low <= report.metrics["bleu"].value <= 100
    assert "tok:zh" in report.details["signatures"]["bleu"]
    assert {"n", "metrics"} <= report.as_dict().keys()
    card = json.loads((run / "model" / "wenmo.json").read_text())["tasks"]["text_to_text"]
    assert card["generation"]["num_beams"] == 3
    write_jsonl(folder / "asked.jsonl", [{"source": source} for source, _ in PAIRS[:3]])
    assert list(predict(str(run), str(folder / "asked.jsonl"))) == [{"output": target} for _, target in PAIRS[:3]]


def test_references_are_normalised_as_the_targets_that_were_learned(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "model", tmp_path / "model")
    card = json.loads((tmp_path / "model" / "wenmo.json").read_text(encoding="utf-8"))
    (tmp_path / "model" / "wenmo.json").write_text(json.dumps({**card, "normalize": {"nfkc": True}}))
    model = load(tmp_path / "model")
    radicals = str.maketrans("一二", "\u2f00\u2f06")  # NFKC makes of them the characters that were learned
    rows = [{"source": source, "target": target} for source, target in PAIRS[:8]]
    plain = evaluate_rows(model, rows)
    assert evaluate_rows(model, [{**row, "target": row["target"].translate(radicals)} for row in rows]
                         ).metrics == plain.metrics


def test_answers_are_the_same_in_any_batch_and_order(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(run)
    rows = [{"source": f"{a} {b}" if i % 3 else f"{a} {b} {a} {b} {a}"} for i, (a, b) in
            enumerate((a, b) for a in WORDS for b in WORDS)]
    together = model.predict(rows)
    assert [model.predict([row])[0] for row in rows] == together
    assert model.predict(rows[::-1])[::-1] == together
    monkeypatch.setattr("wenmo.tasks.text_to_text.SCORES_AT_ONCE", 300 * 3 * 4)
    assert model.predict(rows) == together


def test_the_card_decides_how_answers_are_searched_for(run: Path) -> None:
    model = load(run)
    task: Any = model.task()
    plain = model.predict(["one two"])
    short = task.settings.model_copy(update={"generation": task.settings.generation.model_copy(
        update={"max_new_tokens": 1})})
    model.tasks = {"text_to_text": TextToText(short, task.tokenizer, task.lengths)}
    assert model.predict(["one two"]) != plain


def test_while_training_a_few_rows_are_answered_greedily(run: Path, folder: Path) -> None:
    rows = [row for row in read_jsonl(run / "metrics.jsonl") if "val_loss" in row]
    assert len(rows) == 2
    assert {"val_bleu", "val_chrf", "val_rougeL"} <= rows[0].keys()
    model: Loaded = load(run)
    task: Any = model.task()
    values = [{"source": source, "target": target} for source, target in PAIRS[:6]]
    few = TextToText(task.settings.model_copy(update={"validation_rows": 2}), task.tokenizer, task.lengths)
    examples = few.build(values, folder, 0, "").examples
    batch = collate(sequence for number in range(6) for sequence in examples.sequences(number, 0))
    with torch.inference_mode():
        outputs = few.outputs(model.model, batch)
    assert outputs == [PAIRS[0][1], PAIRS[1][1], None, None, None, None]
    assert few.measure(values, [[output] for output in outputs], 0).n == 2


def test_generate_works_on_such_a_model(run: Path) -> None:
    model = load(run)
    source, target = PAIRS[9]
    prompt = source if "seq2seq_lm" in model.model.heads else source + " = "
    assert model.generate([prompt], max_new_tokens=8)[0][0].text == target


def test_a_recipe_with_the_wrong_kind_of_model_says_so() -> None:
    both = recipe("marian"), recipe("llama")
    both[0]["task"]["separator"], both[1]["task"]["separator"] = "=", None
    for wrong, head in zip(both, ("causal_lm", "seq2seq_lm"), strict=True):
        with pytest.raises(RecipeError, match=head):
            parse_recipe(wrong, "test")
    with pytest.raises(RecipeError, match="num_beams"):
        parse_recipe(recipe("marian", generation={"length_penalty": 2}), "test")


# Beside other figures ---------------------------------------------------------------------------------


def test_beside_the_source_and_its_first_sentence(run: Path, folder: Path) -> None:
    rows = [{"source": f"{source}. And what else? Nothing!", "target": source} for source, _ in PAIRS[:20]]
    data = folder / "leads.jsonl"
    write_jsonl(data, rows)
    report = evaluate(str(run), str(data), baseline=str(data))
    assert report.metrics["lead_rougeL"].value == 1
    assert 0 < report.metrics["copy_rougeL"].value < 1
    assert report.details["baseline"] == {"better": "lead", "metric": "bleu"}
    assert report.metrics["difference"].value == pytest.approx(
        report.metrics["bleu"].value - report.metrics["lead_bleu"].value)
    assert report.metrics["difference"].high < 0


def test_the_first_sentence_of_a_chinese_abstract() -> None:
    assert first_sentence("本文研究了3.5米的梁.结果表明,很好.") == "本文研究了3.5米的梁。"
    assert first_sentence("It is 3.5 metres long. We like it.") == "It is 3.5 metres long."
    assert first_sentence("没有句号") == "没有句号"


def test_outputs_and_references_in_an_encoders_space(run: Path, folder: Path) -> None:
    encoder = {**recipe("marian"), "model": {"type": "bert", **SIZE}, "task": {"type": "masked_lm"},
               "tokenizer": {"train": {"type": "wordpiece", "vocab_size": 300}},
               "data": {"train": [{"path": "pairs.csv", "columns": {"text": "source"}}], "max_tokens": 32},
               "train": {"steps": 1, "batch_tokens": 64, "threads": 1}}
    train(encoder, out=folder / f"encoder-{run.name}", data_root=folder)
    name = str(folder / f"encoder-{run.name}")
    report = evaluate(str(run), str(folder / "pairs.csv"), similarity_model=name)
    assert 0 < report.metrics["similarity_f"].value <= 1 + 1e-6
    assert report.details["similarity_model"] == name
    with pytest.raises(UsageError, match="masked_lm"):
        evaluate(name, str(folder / "pairs.csv"), source={"columns": {"text": "source"}}, similarity_model=name)


def test_a_translation_model_from_elsewhere_answers_as_there(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """MarianMTModel in a folder of transformers' own, with the search that its generation_config asks for."""
    them = theirs("MarianMTModel", vocab_size=tokenizer.vocab_size, pad_token_id=tokenizer.pad_id,
                  eos_token_id=tokenizer.eos_id, decoder_start_token_id=tokenizer.pad_id, forced_eos_token_id=None)
    them.generation_config = GenerationConfig(
        num_beams=3, length_penalty=0.5, max_length=20, eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id,
        decoder_start_token_id=tokenizer.pad_id, bad_words_ids=[[id] for id in tokenizer.control_ids - {
            tokenizer.eos_id}])
    them.save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    model = load(tmp_path)
    task: Any = model.task()
    assert (task.name, task.settings.generation.num_beams, task.settings.generation.length_penalty) == (
        "text_to_text", 3, 0.5)
    for source, _ in PAIRS[::100]:
        ids = tokenizer.wrap(tokenizer.encode(source))[0]
        [expected] = them.generate(torch.tensor([ids])).tolist()
        assert model.predict([source]) == [{"output": tokenizer.decode(expected[1:])}]
