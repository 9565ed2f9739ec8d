"""Unigram: EM against brute force, and against the library's trainer; what is dropped; which kind fits best."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import models, trainers

from command import Command
from command import wenmo as wenmo
from test_tokenizer import real_texts
from wenmo.errors import DataError
from wenmo.stages.tokenizer import compare
from wenmo.text import unigram
from wenmo.text.tokenizer_statistics import statistics, words_split
from wenmo.text.tokenizer_training import TokenizerSettings, train

WORDS = {"abcab": 3, "abc": 5, "cab": 2, "bb": 1}


def lattice_of(words: dict[str, int], pieces: list[str]) -> tuple[unigram._Text, unigram._Lattice]:
    text = unigram._Text.of(words)
    own = unigram._Text.of(dict.fromkeys(pieces, 1), ordered=True)
    hashes = np.zeros(len(pieces), dtype=np.uint64)
    for length, word, place, window in own.windows(16):
        whole = (own.lengths[word] == length) & (place == own.begins[word])
        hashes[word[whole]] = window[whole]
    return text, unigram._Lattice.of(text, hashes)


def segmentations(word: str, pieces: list[str]) -> list[tuple[str, ...]]:
    """All of them, by trying every set of cuts."""
    found = []
    for cuts in itertools.product((False, True), repeat=len(word) - 1):
        ends = [*(i + 1 for i, cut in enumerate(cuts) if cut), len(word)]
        parts = tuple(word[begin:end] for begin, end in zip([0, *ends[:-1]], ends, strict=True))
        if set(parts) <= set(pieces):
            found.append(parts)
    return found


def test_expected_counts_and_best_are_those_of_brute_force() -> None:
    pieces = ["a", "b", "c", "ab", "bc", "cab", "abc"]
    scores = np.log(np.random.default_rng(0).dirichlet(np.ones(len(pieces))))
    score = dict(zip(pieces, scores.tolist(), strict=True))
    text, lattice = lattice_of(WORDS, pieces)
    expected: Counter[str] = Counter()
    best = {}
    for word, count in WORDS.items():
        ways = segmentations(word, pieces)
        chances = [math.exp(sum(score[part] for part in way)) for way in ways]
        best[word] = math.log(max(chances))
        for way, chance in zip(ways, chances, strict=True):
            for part in way:
                expected[part] += count * chance / sum(chances)
    found = lattice.expected_counts(scores, text.counts)
    assert found == pytest.approx([expected[piece] for piece in pieces])
    assert lattice.best(scores) == pytest.approx([best[word] for word in text.words])


def test_each_step_makes_the_words_likelier() -> None:
    pieces = ["a", "b", "c", "ab", "bc", "cab", "abc"]
    text, lattice = lattice_of(WORDS, pieces)
    scores = np.full(len(pieces), -math.log(len(pieces)))
    before = -math.inf
    for _ in range(8):
        alpha = lattice._walk(scores, np.logaddexp, lattice.start, lattice.end)
        likelihood = float((alpha[lattice.lasts] * text.counts).sum())
        assert likelihood >= before - 1e-9
        before = likelihood
        counts = np.maximum(lattice.expected_counts(scores, text.counts), 1e-12)
        scores = np.log(counts / counts.sum())


def test_it_fits_as_well_as_the_librarys_trainer() -> None:
    """Mean log-likelihood of a word, at the same number of pieces; more would be better."""
    words = Counter(run for text in real_texts()[:1500] for run in text.split("，"))
    words = Counter({word[i:i + 4]: count for word, count in words.items() for i in range(0, len(word), 4)})
    library = tokenizers.Tokenizer(models.Unigram())
    library.train_from_iterator([word for word, count in words.items() for _ in range(count)], trainers.UnigramTrainer(
        vocab_size=3000, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False))
    theirs = {piece: library.token_to_id(piece) for piece in library.get_vocab() if piece != "<unk>"}
    own = dict(unigram.train(words, len(theirs)))
    assert len(own) == len(theirs)

    def fit(pieces: list[str]) -> float:
        text, lattice = lattice_of(dict(words), pieces)
        scores = np.full(len(pieces), -math.log(len(pieces)))
        for _ in range(6):
            counts = np.maximum(lattice.expected_counts(scores, text.counts), 0.01)
            scores = np.log(counts / counts.sum())
        alpha = lattice._walk(scores, np.logaddexp, lattice.start, lattice.end)
        return float((alpha[lattice.lasts] * text.counts).sum() / text.counts.sum())

    assert fit(sorted(own)) > fit(sorted(theirs)) - 0.05


def test_pieces_and_their_number() -> None:
    words = {"北京": 50, "天安门": 40, "北": 1, "京": 1}
    assert dict(unigram.train(words, 2)).keys() == {*"北京天安门"}  # characters stay, whatever the size
    found = unigram.train(words, 7)
    assert dict(found).keys() == {*"北京天安门", "北京", "天安门"}
    assert sum(math.exp(score) for _, score in found) == pytest.approx(1, abs=0.01)


# The tokenizer ----------------------------------------------------------------------------------------


def test_real_chinese_and_its_offsets() -> None:
    texts = real_texts()[:2000]
    own = train(texts[200:], TokenizerSettings(type="unigram", vocab_size=6000))
    measured = statistics(own, texts[:200])
    assert (measured["exact_rate"], measured["unknown_rate"], own.vocab_size) == (1, 0, 6000)
    assert 1.2 < measured["zh_characters_per_token"] < 2
    longest = max(sum("一" <= c <= "鿿" for c in own.token(id)) for id in range(own.vocab_size))
    assert 2 <= longest <= 4
    for text in random.Random(0).sample(texts, 50):
        ids, offsets = own.encode_with_offsets(text)
        assert "".join(text[begin:end] for begin, end in dict.fromkeys(offsets)) == text
        assert all(own.token(id) == text[begin:end] for id, (begin, end) in zip(ids, offsets, strict=True)
                   if not own.token(id).startswith("<0x"))


def test_unknown_characters_have_places_of_their_own_and_bytes_are_never_read_from_text() -> None:
    own = train(["我爱北京 hello"] * 9, TokenizerSettings(type="unigram", vocab_size=300))
    ids, offsets = own.encode_with_offsets("龘靐我")
    assert offsets == [(0, 1)] * 3 + [(1, 2)] * 3 + [(2, 3)]
    assert [own.token(id) for id in ids[:3]] == ["<0xE9>", "<0xBE>", "<0x98>"]
    assert len(own.encode("<0x41>")) == 6
    assert own.decode(own.encode("<0x41><0xE9>")) == "<0x41><0xE9>"


@pytest.mark.parametrize(("changes", "wrapped"), [
    ({}, ([9], [0])), ({"masked": True}, ([2, 9, 3], [0, 0, 0])), ({"seq2seq": True}, ([9, 1], [0, 0]))])
def test_each_family_of_control_tokens(changes: dict, wrapped: tuple) -> None:
    own = train(["我爱北京 Hello"] * 9, TokenizerSettings(type="unigram", vocab_size=500, **changes))
    assert own.wrap([9]) == wrapped
    assert "unk" in own.control


def test_settings_act() -> None:
    texts = ["我爱北京天安门 Hello"] * 9 + ["北京人 rare"]
    base = train(texts, TokenizerSettings(type="unigram", vocab_size=330))
    for change in ({"lowercase": True}, {"max_run": 1}, {"min_frequency": 5}, {"control_tokens": ("<x>",)}):
        assert train(texts, TokenizerSettings(type="unigram", vocab_size=330, **change)).sha256 != base.sha256
    lower = train(texts, TokenizerSettings(type="unigram", vocab_size=330, lowercase=True))
    assert lower.decode(lower.encode("HELLO")) == "hello"


# Comparing --------------------------------------------------------------------------------------------


def test_words_split_by_hand() -> None:
    wordpiece = train(["北京 ab 1"], TokenizerSettings(type="wordpiece", vocab_size=14, min_frequency=9))
    assert words_split(wordpiece, ["北京 ab 1 b"]) == 2 / 4  # 北|京 and a|##b, of 北京 ab 1 b
    assert math.isnan(words_split(wordpiece, [" "]))


def test_compare_on_texts_held_out(tmp_path: Path, wenmo: Command) -> None:
    zh, en = tmp_path / "zh.txt", tmp_path / "en.txt"
    zh.write_text("\n".join(real_texts()[:300]))
    en.write_text("\n".join(f"The quick brown fox number {i} doesn't jump" for i in range(100)))
    (tmp_path / "code").mkdir()
    for i in range(40):
        (tmp_path / "code" / f"{i}.py").write_text(f"def f{i}(x):\n    return x + {i}\n")
    result = compare([str(zh), str(en), f"code={tmp_path}/code/*.py"], 1500, {}).as_dict()
    assert list(result["num_train"]) == ["zh", "en", "code"]
    assert sum(result["num_train"].values()) + sum(result["num_held_out"].values()) <= 440
    assert list(result["types"]) == ["bpe", "wordpiece", "unigram"]
    for name, found in result["types"].items():
        assert found["vocab_size"] <= 1500
        assert all(rates["exact_rate"] == 1 for rates in found["groups"].values()) == (name != "wordpiece")
        assert found["groups"]["en"]["characters_per_token"] > found["groups"]["zh"]["characters_per_token"]
    shown = wenmo("tokenizer", "compare", f"zh={zh}", "--vocab-size", "1000").out
    assert all(kind in shown for kind in ("bpe", "wordpiece", "unigram"))
    (tmp_path / "few.txt").write_text("one line")
    with pytest.raises(DataError, match="too few"):
        compare([f"few={tmp_path}/few.txt"], 1000, {})
