"""What a loaded model answers: transformers' numbers, in whatever order and company the rows come; golden prompts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from oracle import theirs
from wenmo import golden, loaded, modeldir
from wenmo.errors import DataError, ModelError, RecipeError
from wenmo.loaded import Loaded, held
from wenmo.tasks.language_modeling import shares
from wenmo.text import tokenizer_training
from wenmo.text.tokenizer import Tokenizer
from wenmo.text.tokenizer_training import TokenizerSettings

TEXTS = ["春天来了，天气渐渐暖和起来。", "好", "The days are getting longer and warmer.", "房间很干净，早餐也不错！",
         "Hello, world!", "not good", "很差，不会再来。" * 3, "a b c"]
LONG = "春天来了，天气渐渐暖和起来。The days are getting longer and warmer. " * 6


def folder_of(hf_class: str, folder: Path, tokenizer: Tokenizer, **changes: Any) -> nn.Module:
    them = theirs(hf_class, **{"vocab_size": 330, "pad_token_id": 0, **changes})
    them.save_pretrained(folder)
    tokenizer.save(folder)
    return them


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return tokenizer_training.train(TEXTS, TokenizerSettings(type="wordpiece", vocab_size=200, min_frequency=1))


@pytest.fixture(scope="module")
def byte_pairs() -> Tokenizer:
    return tokenizer_training.train(TEXTS, TokenizerSettings(vocab_size=330))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, words: Tokenizer, byte_pairs: Tokenizer) -> dict[str, Any]:
    """name → (folder, their model)."""
    base = tmp_path_factory.mktemp("models")
    kinds: dict[str, tuple[str, Tokenizer, dict[str, Any]]] = {
        "bert": ("BertModel", words, {}), "masked": ("BertForMaskedLM", words, {}),
        "pretrained": ("BertForPreTraining", words, {}),
        "classes": ("BertForSequenceClassification", words, {"id2label": {0: "差", 1: "中", 2: "好"}}),
        "two classes": ("BertForSequenceClassification", words, {}),
        "causal classes": ("LlamaForSequenceClassification", byte_pairs, {"num_labels": 3}),
        "llama": ("LlamaForCausalLM", byte_pairs, {"max_position_embeddings": 32}),
        "t5": ("T5ForConditionalGeneration", byte_pairs, {}),
    }
    return {name: (base / name, folder_of(hf_class, base / name, tokenizer, **changes))
            for name, (hf_class, tokenizer, changes) in kinds.items()}


@pytest.fixture
def load(folders: dict[str, Any]) -> Callable[[str], Loaded]:
    return lambda name: loaded.load(str(folders[name][0]), device="cpu")


def alike(a: Any, b: Any) -> None:
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=2e-5, rtol=1e-5)


# Predicting -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["classes", "two classes", "causal classes"])
def test_classes_as_transformers_has_them(name: str, load: Any, folders: dict[str, Any]) -> None:
    them = folders[name][1]
    model = load(name)
    answers = model.predict(TEXTS)
    for text, answer in zip(TEXTS, answers, strict=True):
        ids, _ = model.tokenizer.wrap(model.tokenizer.encode(text))
        with torch.no_grad():
            expected = them(torch.tensor([ids])).logits[0].softmax(-1)
        assert list(answer["scores"]) == list(them.config.id2label.values())
        alike(list(answer["scores"].values()), expected)
        assert answer["label"] == them.config.id2label[int(expected.argmax())]


def shuffled(count: int) -> list[int]:
    return np.random.default_rng(3).permutation(count).tolist()


def test_order_and_company_change_no_class(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load("classes")
    expected = model.predict(TEXTS)
    order = shuffled(len(TEXTS))
    for row, answer in zip(order, model.predict([{"text": TEXTS[row]} for row in order]), strict=True):
        assert answer["label"] == expected[row]["label"]
        alike(list(answer["scores"].values()), list(expected[row]["scores"].values()))
    monkeypatch.setattr(held, "BATCH_TOKENS", 1)  # each alone
    alike([list(answer["scores"].values()) for answer in model.predict(TEXTS)],
          [list(answer["scores"].values()) for answer in expected])
    assert model.predict([]) == []


@pytest.mark.parametrize("row", [{}, {"label": "好"}, {"text": None}, {"text": ""}, ""], ids=str)
def test_a_missing_column_is_named_with_its_row(row: Any, load: Any) -> None:
    with pytest.raises(DataError, match="no `text`") as caught:
        load("classes").predict(["好", row])
    assert caught.value.where == "row 2"


# Scoring ----------------------------------------------------------------------------------------------


def log_probabilities(them: nn.Module, ids: list[int]) -> torch.Tensor:
    """Of each token after the first, given those before it."""
    with torch.no_grad():
        chances = them(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
    return chances.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


def test_scores_are_sums_over_transformers_logits(load: Any, folders: dict[str, Any]) -> None:
    model, them = load("llama"), folders["llama"][1]
    encoded = [model.tokenizer.encode(text) for text in TEXTS]
    texts = [text for text, ids in zip(TEXTS, encoded, strict=True) if 1 < len(ids) <= 32]
    assert len(texts) > 4
    expected = [float(log_probabilities(them, model.tokenizer.encode(text)).sum()) for text in texts]
    scores = model.score(texts)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    order = shuffled(len(texts))
    np.testing.assert_allclose(model.score([texts[row] for row in order]), [scores[row] for row in order], rtol=1e-6)


@pytest.mark.parametrize("length", [31, 32, 33, 48, 49, 64, 100, 150])
def test_a_long_text_is_scored_as_by_transformers_strides(length: int, load: Any, folders: dict[str, Any]) -> None:
    """Windows of 32 that move by 16; of each only what was not predicted yet counts."""
    model, them = load("llama"), folders["llama"][1]
    ids = model.tokenizer.encode(LONG)[:length]
    text = model.tokenizer.decode(ids)
    ids = model.tokenizer.encode(text)
    expected, end = 0.0, 1
    for start in range(0, len(ids), 16):
        window = ids[start : start + 32]
        new = start + len(window) - end
        if new <= 0:
            break
        expected += float(log_probabilities(them, window)[-new:].sum())
        end = start + len(window)
    assert end == len(ids)
    assert model.score([text])[0] == pytest.approx(expected, rel=1e-5)


def test_texts_that_predict_nothing_score_zero(load: Any) -> None:
    model = load("llama")
    scores = model.score(["", "a"])
    assert scores == [0.0, 0.0]
    assert all(isinstance(score, float) and str(score) == "0.0" for score in scores)


def test_a_long_text_is_no_matter_of_memory(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load("llama")
    expected = model.score([LONG, TEXTS[0]])
    monkeypatch.setattr(held, "BATCH_TOKENS", 64)
    largest = 0

    def watch(module: nn.Module, arguments: Any) -> None:
        nonlocal largest
        largest = max(largest, len(arguments[0]))

    with model.model.register_forward_pre_hook(watch):
        np.testing.assert_allclose(model.score([LONG, TEXTS[0]]), expected, rtol=1e-6)
    assert largest <= 64


def test_a_language_model_predicts_likelihoods(load: Any) -> None:
    model = load("llama")
    [answer] = model.predict([LONG])
    assert answer["log_likelihood"] == pytest.approx(model.score([LONG])[0])
    assert answer["tokens"] == len(model.tokenizer.encode(LONG)) - 1


# Vectors ----------------------------------------------------------------------------------------------


def mean_of_theirs(them: nn.Module, tokenizer: Tokenizer, text: str, longest: int = 64) -> torch.Tensor:
    ids, _ = tokenizer.wrap(tokenizer.encode(text)[: longest - 2])
    with torch.no_grad():
        return them(torch.tensor([ids])).last_hidden_state[0].mean(0)


def test_vectors_are_means_of_length_one(load: Any, folders: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, them = load("bert"), folders["bert"][1]
    texts = [*TEXTS, LONG]
    expected = torch.stack([mean_of_theirs(them, model.tokenizer, text) for text in texts]).numpy()
    alike(model.embed(texts, normalise=False), expected)
    vectors = model.embed(texts)
    assert vectors.dtype == np.float32
    alike(vectors, expected / np.linalg.norm(expected, axis=1, keepdims=True))
    order = shuffled(len(texts))
    alike(model.embed([texts[row] for row in order]), vectors[order])
    monkeypatch.setattr(held, "BATCH_TOKENS", 1)
    alike(model.embed(texts), vectors)
    assert model.embed([]).shape == (0, 48)


def test_sentence_transformers_settings_are_followed(folders: dict[str, Any], words: Tokenizer,
                                                     tmp_path: Path) -> None:
    them = folder_of("BertModel", tmp_path, words)
    (tmp_path / "1_Pooling").mkdir()
    modes = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True, "include_prompt": True}
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 20, "do_lower_case": false}')
    model = loaded.load(str(tmp_path), device="cpu")
    alike(model.embed([LONG], normalise=False)[0], mean_of_theirs(them, words, LONG, longest=20))

    modes |= {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    ids, _ = words.wrap(words.encode("好"))
    with torch.no_grad():
        expected = them(torch.tensor([ids])).last_hidden_state[0, 0]
    alike(loaded.load(str(tmp_path), device="cpu").embed(["好"], normalise=False)[0], expected)

    modes |= {"pooling_mode_cls_token": False, "pooling_mode_weightedmean_tokens": True}
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    with pytest.raises(ModelError, match="vectors"):
        loaded.load(str(tmp_path), device="cpu").embed(["好"])


# What a model cannot do -------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "use", "message"), [
    ("bert", lambda model: model.score(["a"]), "no `causal_lm` head"),
    ("classes", lambda model: model.generate(["a"]), "no `causal_lm` head"),
    ("masked", lambda model: model.prompt_ids("a"), "no `causal_lm` head"),
    ("bert", lambda model: model.predict(["a"]), "not exactly one task"),
    ("llama", lambda model: model.predict(["a"], "classification"), "no task `classification`"),
    ("t5", lambda model: model.embed(["a"]), "vectors"),
    ("t5", lambda model: model.score(["a"]), "no `causal_lm` head"),
])
def test_a_missing_head_is_said(name: str, use: Any, message: str, load: Any) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        use(load(name))
    assert len(str(caught.value).splitlines()) == 3


def test_a_model_without_tokenizer_says_so(tmp_path: Path) -> None:
    theirs("LlamaForCausalLM").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no tokenizer"):
        loaded.load(str(tmp_path), device="cpu").score(["a"])


def test_what_a_head_means_is_not_guessed(tmp_path: Path, words: Tokenizer) -> None:
    """There is no task for several numbers at once: better none than a wrong one."""
    folder_of("BertForSequenceClassification", tmp_path, words, num_labels=3, problem_type="regression")
    with pytest.raises(ModelError, match="task"):
        loaded.load(str(tmp_path), device="cpu").predict(["好"])


# Text out ---------------------------------------------------------------------------------------------


def test_generating_begins_as_documents_do(load: Any) -> None:
    model = load("llama")
    assert model.prompt_ids("春天") == model.tokenizer.encode("春天")
    model.opened.card["document_start"] = [0]
    assert model.prompt_ids("春天") == [0, *model.tokenizer.encode("春天")]
    [[one, two]] = model.generate(["春天"], max_new_tokens=5, temperature=1.0, num_sequences=2)
    assert one != two
    pieces = list(model.stream(model.prompt_ids("春天"), max_new_tokens=5, temperature=1.0))
    assert pieces[-1].completion == one


def test_an_encoder_decoder_answers_a_source(load: Any, folders: dict[str, Any]) -> None:
    """Its prompt is a source, ended as its tokenizer ends texts; what the folder forbids does not come."""
    model = load("t5")
    ids = model.prompt_ids("春天")
    assert ids == model.tokenizer.wrap(model.tokenizer.encode("春天"))[0]
    [[done]] = model.generate(["春天"], max_new_tokens=6)
    with torch.no_grad():
        out = folders["t5"][1].generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False, eos_token_id=None,
                                        use_cache=False)
    assert list(done.ids) == out[0, 1 : 1 + len(done.ids)].tolist()
    assert list(model.stream(ids, max_new_tokens=6))[-1].completion == done
    [[best, _]] = model.complete([ids], max_new_tokens=6, num_beams=3, num_sequences=2)
    assert best.score is not None
    model.opened.generation["bad_words_ids"] = [[done.ids[0]], [1, 2]]
    model.opened.generation["suppress_tokens"] = [done.ids[-1]]
    assert model.banned() == {done.ids[0], done.ids[-1]}
    [[other]] = model.generate(["春天"], max_new_tokens=6)
    assert not model.banned() & set(other.ids)


def test_only_what_stands_before_a_text_begins_a_prompt(folders: dict[str, Any], tmp_path: Path) -> None:
    """Llama tokenizers that add an end of text too must not end the text before it has begun."""
    folder, _ = folders["llama"]
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    definition = json.loads((tmp_path / "tokenizer.json").read_text())
    begin, end = "<|im_start|>", "<|im_end|>"
    definition["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": begin, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                   {"SpecialToken": {"id": end, "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {name: {"id": name, "ids": [id], "tokens": [name]} for name, id in ((begin, 1), (end, 2))}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    model = loaded.load(str(tmp_path), device="cpu")
    assert model.tokenizer.wrap([9])[0] == [1, 9, 2]
    assert model.prompt_ids("a") == [1, *model.tokenizer.encode("a")]


def test_an_unknown_sampling_setting_is_an_error_with_a_suggestion(load: Any) -> None:
    with pytest.raises(RecipeError, match="did you mean `temperature`"):
        load("llama").generate(["a"], temprature=1.0)


@pytest.mark.parametrize(("generation", "config", "expected"), [
    ({}, None, {0}), ({"eos_token_id": None}, None, {0}), ({"eos_token_id": 7}, None, {0, 7}),
    ({"eos_token_id": [7, 8]}, 9, {0, 7, 8}), ({}, [9, 10], {0, 9, 10}), ({}, 9, {0, 9}),
])
def test_what_ends_a_text(generation: Any, config: Any, expected: set[int], load: Any) -> None:
    model = load("llama")
    model.opened.generation = generation
    model.opened.carried["eos_token_id"] = config
    assert model.ends() == expected


# Golden prompts ---------------------------------------------------------------------------------------

GOLDEN = ["bert", "masked", "pretrained", "classes", "causal classes", "llama"]


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_prompts_hold_over_a_saved_folder(name: str, load: Any, tmp_path: Path) -> None:
    model = load(name)
    model.opened.card["golden"] = golden.record(model.model, model.tokenizer)
    modeldir.save_model(tmp_path / "saved", model.opened)
    again = loaded.load(str(tmp_path / "saved"), device="cpu")
    entries = again.opened.card["golden"]
    assert golden.check(again.model, again.tokenizer, entries, "here") <= 1e-5


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize("damage", [0.5, float("nan")])
def test_any_changed_weight_is_noticed(name: str, damage: float, load: Any) -> None:
    """A weight of the last layer, and one of each head."""
    model = load(name)
    entries = golden.record(model.model, model.tokenizer)
    assert golden.check(model.model, model.tokenizer, entries, "here") == 0.0
    heads = ("cls.predictions.bias", "cls.seq_relationship.weight", "classifier.weight", "score.weight")
    last_layer = [name for name, _ in model.model.named_parameters() if "layer" in name and name.endswith("weight")][-1]
    for touched, parameter in model.model.named_parameters():
        if touched in (*heads, last_layer):
            kept = parameter.detach().clone()
            with torch.no_grad():
                parameter.mul_(1 + damage)
            with pytest.raises(ModelError, match="differently"):
                golden.check(model.model, model.tokenizer, entries, "here")
            with torch.no_grad():
                parameter.copy_(kept)


def test_golden_entries_of_another_tokenizer_or_other_heads(load: Any) -> None:
    masked, classes = load("masked"), load("classes")
    entries = golden.record(masked.model, masked.tokenizer)
    with pytest.raises(ModelError, match="other heads"):
        golden.check(classes.model, classes.tokenizer, entries, "here")
    other = tokenizer_training.train(["春天 The days"], TokenizerSettings(type="wordpiece", vocab_size=60))
    with pytest.raises(ModelError, match="tokenizer"):
        golden.check(masked.model, other, entries, "here")


def test_golden_prompts_are_those_of_the_folder(load: Any) -> None:
    """A later release may have other prompts of its own."""
    model = load("llama")
    entries = golden.record(model.model, model.tokenizer, ["好", "Hello, world!", "a b c"])
    assert [entry["prompt"] for entry in entries] == ["好", "Hello, world!", "a b c"]
    assert golden.check(model.model, model.tokenizer, entries, "here") == 0.0


def test_every_character_is_some_tokens_share() -> None:
    """Offsets that leave spaces out, bytes of one character, a space at the end that no token has."""
    text = " a 中b "
    assert shares(text, [(1, 2), (3, 3), (3, 4), (3, 4), (4, 5)]) == [" a", " ", "中", "", "b "]
    assert shares("", []) == []
