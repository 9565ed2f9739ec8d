"""Folders of older translation models and T5s: ids and texts as those of the library that made them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from small_data import news, reviews
from wenmo.errors import TokenizerError
from wenmo.text.sentencepiece import read_sentencepiece
from wenmo.text.tokenizer import Tokenizer

sentencepiece = pytest.importorskip("sentencepiece")
SOURCE = [text for text, _ in reviews(200)]
TARGET = news(200)
ODD = ["  Two   spaces and a \t tab ", "ｆｕｌｌ　ｗｉｄｔｈ １２３", "a</s>b <unk> <pad>", "这本书很好，非常满意。",
       "ﬁne №5 ½"]


def spm(folder: Path, name: str, texts: list[str], **options: object) -> Path:
    """A small model of the kind that opus-mt was trained with."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_prefix=str(folder / name), vocab_size=150, character_coverage=1.0,
        hard_vocab_limit=False, minloglevel=2, **options)
    return folder / f"{name}.model"


@pytest.fixture(scope="module")
def marian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As Helsinki-NLP's: a vocabulary of both languages' pieces in an order of its own, and no tokenizer.json."""
    folder = tmp_path_factory.mktemp("marian")
    pieces: dict[str, None] = {}
    for name, texts in (("source", SOURCE), ("target", TARGET)):
        model = spm(folder, name, texts, normalization_rule_name="nmt_nfkc")
        model.rename(folder / f"{name}.spm")
        found = sentencepiece.SentencePieceProcessor(model_file=str(folder / f"{name}.spm"))
        pieces |= dict.fromkeys(found.id_to_piece(id) for id in range(3, found.get_piece_size()))
    shuffled = sorted(pieces)
    random.Random(0).shuffle(shuffled)
    vocabulary = ["</s>", "<unk>", *shuffled, ">>fra<<", "<pad>"]
    (folder / "vocab.json").write_text(json.dumps({piece: id for id, piece in enumerate(vocabulary)}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"source_lang": "en", "target_lang": "zh"}))
    return folder


@pytest.fixture(scope="module")
def both(marian: Path) -> tuple[Tokenizer, transformers.MarianTokenizer]:
    return Tokenizer.load(marian), transformers.MarianTokenizer.from_pretrained(str(marian))


def test_marian_has_the_ids_of_its_own_tokenizer(both: tuple[Tokenizer, transformers.MarianTokenizer]) -> None:
    ours, theirs = both
    for text in [*SOURCE, *ODD[:2], *ODD[3:]]:
        assert ours.wrap(ours.encode(text))[0] == theirs(text).input_ids, text
    for text in TARGET[:50]:
        ids = theirs(text_target=text).input_ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert (ours.vocab_size, ours.eos_id, ours.pad_id) == (len(theirs), theirs.eos_token_id, theirs.pad_token_id)


@settings(max_examples=100, deadline=None)
@given(text=st.text(alphabet=[*sorted(set("".join(SOURCE))), "Ａ"], max_size=30))
def test_marian_on_any_text(both: tuple[Tokenizer, transformers.MarianTokenizer], text: str) -> None:
    ours, theirs = both
    assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids


def test_a_language_code_is_a_token_and_control_is_text(both: tuple[Tokenizer, transformers.MarianTokenizer]) -> None:
    ours, theirs = both
    text = ">>fra<< this book"
    assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids
    assert not {ours.eos_id, ours.pad_id} & set(ours.encode(ODD[2]))


def test_what_is_saved_opens_here_and_there(both: tuple[Tokenizer, transformers.MarianTokenizer],
                                            tmp_path: Path) -> None:
    ours, _ = both
    ours.save(tmp_path)
    again, theirs = Tokenizer.load(tmp_path), transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    for text in SOURCE[:20]:
        assert ours.encode(text) == again.encode(text)
        assert ours.wrap(ours.encode(text))[0] == theirs(text).input_ids


def test_t5_with_its_model_alone(tmp_path: Path) -> None:
    model = spm(tmp_path, "spiece", SOURCE, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"extra_ids": 7}))
    ours, library = Tokenizer.load(tmp_path), sentencepiece.SentencePieceProcessor(model_file=str(model))
    for text in [*SOURCE[:50], ODD[0], ODD[1], ODD[3]]:
        assert ours.encode(text) == library.encode(text)
        if ours.unk_id not in library.encode(text):  # which the library writes ⁇
            assert ours.decode(library.encode(text)) == library.decode(library.encode(text))
    assert ours.control_strings["<extra_id_0>"] == ours.vocab_size - 1 == library.get_piece_size() + 6
    assert ours.wrap([5])[0] == [5, ours.eos_id]


def test_a_damaged_or_strange_file_is_said_in_three_lines(tmp_path: Path) -> None:
    whole = spm(tmp_path, "bpe", SOURCE, model_type="bpe")
    with pytest.raises(TokenizerError, match="Unigram"):
        read_sentencepiece(whole)
    damaged = tmp_path / "damaged.model"
    for length in (1, 7, 1000):
        damaged.write_bytes(whole.read_bytes()[:-length])
        with pytest.raises(TokenizerError):
            read_sentencepiece(damaged)
