"""Shards, examples, loader, corruption: no token lost or doubled, every step reachable, the right rates."""

from __future__ import annotations

import gzip
import math
import os
from collections import Counter
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wenmo.data import shards
from wenmo.data.corruption import mask_tokens, next_sentence, piece_of_another
from wenmo.data.examples import Chunks, Mixture, Rows
from wenmo.data.loader import Loader, evaluation_batches
from wenmo.data.sequence import Sequence
from wenmo.device import numpy_rng
from wenmo.errors import DataError, UsageError
from wenmo.tasks.task import windows

COLUMNS = {"ids": "uint16", "starts": "uint8"}


def documents(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [{"ids": rng.integers(10, 1000, n), "starts": rng.random(n) < 0.5} for n in lengths]


def write(folder, lengths, **options):
    return shards.write(folder, iter(documents(lengths)), **{"columns": COLUMNS, "meta": {}} | options)


def plain(columns, document, start, epoch):
    return [Sequence(document, {"ids": columns["ids"], "place": np.arange(start, start + len(columns["ids"]))})]


def rows(lengths, first_row=0):
    return Rows([[Sequence(first_row + i, {"ids": np.full(n, i)})] for i, n in enumerate(lengths)])


def rows_of(batches):
    return [row for batch in batches for row in batch.text.rows]


# Shards -----------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(lengths=st.lists(st.integers(0, 30), min_size=1, max_size=40).filter(any), shard_tokens=st.integers(1, 100))
def test_shards_give_back_what_was_written(tmp_path_factory, lengths, shard_tokens):
    folder = tmp_path_factory.mktemp("s") / "corpus"
    written = write(folder, lengths, shard_tokens=shard_tokens, meta={"tokenizer": "ab12"})
    opened = shards.Shards.open(folder)
    assert opened.doc_lengths.tolist() == lengths
    assert opened.num_tokens == sum(lengths)
    assert opened.manifest.meta == {"tokenizer": "ab12"}
    assert opened.sha256 == written.sha256
    for number, document in enumerate(documents(lengths)):
        read = opened.document(number)
        assert read["ids"].dtype == np.uint16
        assert read["ids"].tolist() == document["ids"].tolist()
        assert read["starts"].tolist() == document["starts"].tolist()
    assert all(shard.num_tokens < shard_tokens + max(lengths) for shard in opened.manifest.shards)
    opened.verify()


@settings(deadline=None, max_examples=30)
@given(lengths=st.lists(st.integers(0, 30), min_size=1, max_size=40).filter(any), shard_tokens=st.integers(1, 100),
       written_tokens=st.integers(1, 60))
def test_how_much_is_written_at_once_is_no_matter(tmp_path_factory, lengths, shard_tokens, written_tokens):
    folder = tmp_path_factory.mktemp("s")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "WRITTEN_TOKENS", written_tokens)
        some = write(folder / "some", lengths, shard_tokens=shard_tokens)
    assert some.manifest == write(folder / "whole", lengths, shard_tokens=shard_tokens).manifest


def test_sha256_names_the_tokens_alone(tmp_path):
    assert write(tmp_path / "a", [5, 9]).sha256 == write(tmp_path / "b", [5, 9], meta={"source": "x"}).sha256
    assert write(tmp_path / "a", [5, 9]).sha256 != write(tmp_path / "c", [9, 5]).sha256


@pytest.mark.parametrize("name", ["ids-00001.bin", "starts-00000.bin", "offsets.bin", "manifest.json"])
def test_damage_is_found_and_the_mend_named(tmp_path, name):
    folder = tmp_path / "corpus"
    write(folder, [50, 50, 50], shard_tokens=60)
    path = folder / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(DataError, match=name) as error:
        shards.Shards.open(folder)
    assert "delete the folder" in error.value.mend or "删除" in error.value.mend
    if name != "manifest.json":
        path.write_bytes(whole[:9] + bytes([whole[9] ^ 1]) + whole[10:])
        with pytest.raises(DataError, match=name):
            shards.Shards.open(folder).verify()
    path.unlink()
    with pytest.raises(DataError, match=name):
        shards.Shards.open(folder)


def test_nothing_is_left_of_a_write_that_failed(tmp_path):
    def broken():
        yield from documents([40] * 5)
        raise DataError("row 6 is bad")

    faults = {
        "bad row": broken(),
        "no documents": [],
        "no text": documents([0, 0]),
        "id too large": [{"ids": np.array([70_000]), "starts": np.array([1])}],
        "negative id": [{"ids": np.array([-1]), "starts": np.array([1])}],
    }
    for documents_ in faults.values():
        with pytest.raises(DataError):
            shards.write(tmp_path / "corpus", documents_, columns=COLUMNS, meta={}, shard_tokens=50)
    assert not list(tmp_path.iterdir())


def test_ids_take_two_bytes_where_they_fit():
    assert [shards.id_dtype(size) for size in (8192, 65_536, 65_537)] == ["uint16", "uint16", "uint32"]


# Examples ---------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(0, 300), min_size=1, max_size=20).filter(any),
    chunk=st.integers(8, 70), seed=st.integers(0, 99), epoch=st.integers(0, 5),
)
def test_every_token_stands_in_one_chunk(tmp_path_factory, lengths, chunk, seed, epoch):
    corpus = write(tmp_path_factory.mktemp("s") / "corpus", lengths)
    chunks = Chunks(corpus, chunk, seed, plain, extra_tokens=2)
    planned = chunks.lengths(epoch)
    seen = {number: [] for number in range(len(lengths))}
    for index, planned_length in enumerate(planned):
        (sequence,) = chunks.sequences(index, epoch)
        assert planned_length == len(sequence) + 2
        assert len(sequence) <= chunk
        if lengths[sequence.row] > chunk:
            assert len(sequence) >= max(2, chunk // 8)
        seen[sequence.row].append(sequence)
    for number, document in enumerate(documents(lengths)):
        parts = [sequence.tokens for sequence in seen[number]] or [{"ids": np.empty(0), "place": np.empty(0)}]
        assert np.concatenate([part["ids"] for part in parts]).tolist() == document["ids"].tolist()
        assert np.concatenate([part["place"] for part in parts]).tolist() == list(range(lengths[number]))


def test_seams_move_from_epoch_to_epoch(tmp_path):
    corpus = write(tmp_path / "corpus", [650, 700, 1280])
    chunks = Chunks(corpus, 64, 0, plain, extra_tokens=0)
    seams = Counter()
    for epoch in range(100):
        for index in range(len(chunks.lengths(epoch))):
            (sequence,) = chunks.sequences(index, epoch)
            if sequence.tokens["place"][0]:
                seams[sequence.row, int(sequence.tokens["place"][0])] += 1
    assert max(seams.values()) < 25, "a seam that stands in a quarter of the epochs"
    assert (chunks.lengths(0) != chunks.lengths(1)).any()
    assert (chunks.lengths(0) == Chunks(corpus, 64, 0, plain, 0).lengths(0)).all()
    assert (chunks.lengths(0) != Chunks(corpus, 64, 1, plain, 0).lengths(0)).any()


def test_chunks_too_short_to_move_are_refused(tmp_path):
    with pytest.raises(UsageError, match="10"):
        Chunks(write(tmp_path / "corpus", [30]), 7, 0, plain, extra_tokens=2)


def test_a_mixture_sees_each_example_as_often_as_its_weight(tmp_path):
    mixture = Mixture([(rows([3] * 10), 2.0), (rows([4] * 40), 0.25), (rows([5] * 8, first_row=7), 1.5)], seed=0)
    assert (len(mixture), mixture.row_end) == (58, 10 + 40 + 15)
    chosen = []
    for epoch in range(2):
        lengths = mixture.lengths(epoch)
        examples = [mixture.sequences(index, epoch)[0] for index in range(len(lengths))]
        assert [len(example) for example in examples] == lengths.tolist()
        seen = Counter(example.row for example in examples)
        assert [seen[row] for row in range(10)] == [2] * 10
        assert sorted(seen[row] for row in range(10, 50)) == [0] * 30 + [1] * 10
        assert sorted(seen[row] for row in range(57, 65)) == [1] * 4 + [2] * 4
        assert seen.total() == 42
        chosen.append({row for row in seen if 10 <= row < 50})
    assert chosen[0] != chosen[1]


def test_the_second_pass_of_a_mixture_is_cut_anew(tmp_path):
    chunks = Chunks(write(tmp_path / "corpus", [500] * 4), 64, 0, plain, 0)
    lengths = Mixture([(chunks, 2.0)], seed=0).lengths(3)
    assert lengths.tolist() == [*chunks.lengths(6), *chunks.lengths(7)]


# Loader -----------------------------------------------------------------------------------------------

loaders = st.tuples(
    st.lists(st.integers(1, 60), min_size=1, max_size=80), st.integers(1, 150), st.integers(0, 99), st.integers(0, 4)
)


@settings(deadline=None, max_examples=60)
@given(loaders, st.integers(1, 5))
def test_an_epoch_holds_every_row_once_within_the_budget(drawn, accumulation):
    lengths, batch_tokens, seed, pool = drawn
    loader = Loader(rows(lengths), batch_tokens, accumulation, seed, pool)
    step = 0
    for epoch in range(2):
        seen = []
        for index in range(loader.steps_in_epoch(epoch)):
            assert loader.where(step) == (epoch, index)
            batches = loader.batches(step)
            in_step = rows_of(batches)
            tokens = [batch.num_tokens for batch in batches]
            assert sum(tokens) <= batch_tokens or len(in_step) == 1
            assert 1 <= len(batches) <= accumulation
            assert min(tokens) > 0
            assert max(tokens) <= sum(tokens) / accumulation + max(lengths[row] for row in in_step)
            seen += in_step
            step += 1
        assert sorted(seen) == list(range(len(lengths)))


@settings(deadline=None, max_examples=60)
@given(loaders, st.lists(st.integers(0, 60), min_size=1, max_size=8))
def test_a_step_is_a_function_of_seed_and_step(drawn, steps):
    lengths, batch_tokens, seed, pool = drawn
    loader = Loader(rows(lengths), batch_tokens, 1, seed, pool)
    sliced = Loader(rows(lengths), batch_tokens, 4, seed, pool)
    for step in steps:
        fresh = Loader(rows(lengths), batch_tokens, 1, seed, pool)
        assert rows_of(loader.batches(step)) == rows_of(fresh.batches(step)) == rows_of(sliced.batches(step))


def test_order_follows_seed_and_epoch():
    def order(seed, epoch):
        loader = Loader(rows([2] * 50), 10, 1, seed)
        first = sum(loader.steps_in_epoch(before) for before in range(epoch))
        return [row for step in range(first, first + 10) for row in rows_of(loader.batches(step))]

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1, 2)}) == 6
    assert sorted(order(0, 2)) == list(range(50))


def test_buckets_make_batches_of_like_length_in_no_order():
    lengths = np.random.default_rng(0).integers(1, 100, 2000)

    def spread(pool):
        loader = Loader(rows(lengths), 1000, 1, 0, pool)
        batches = [loader.batches(step)[0].text.lengths for step in range(loader.steps_in_epoch(0))]
        means = [np.mean(batch) for batch in batches]
        assert abs(np.corrcoef(means[1:], means[:-1])[0, 1]) < 0.3, "neighbours are alike: not shuffled"
        return np.mean([np.std(batch) for batch in batches])

    assert spread(16) < spread(0) / 4


def test_total_steps_counts_parts_of_an_epoch():
    loader = Loader(rows([5] * 40), 20, 1, 0)
    assert [loader.total_steps(epochs) for epochs in (1, 3, 0.5, 2.3, 0.001)] == [10, 30, 5, 23, 1]


def test_an_example_longer_than_planned_is_caught(tmp_path):
    def form(columns, document, start, epoch):
        return [Sequence(document, {"ids": np.concatenate([[1], columns["ids"], [2]])})]

    corpus = write(tmp_path / "corpus", [30, 40])
    Loader(Chunks(corpus, 16, 0, form, extra_tokens=2), 50, 1, 0).batches(0)
    with pytest.raises(AssertionError, match="more tokens"):
        Loader(Chunks(corpus, 16, 0, form, extra_tokens=1), 50, 1, 0).batches(0)


def test_no_examples_is_an_error():
    with pytest.raises(DataError):
        Loader(rows([]), 10, 1, 0).batches(0)
    with pytest.raises(DataError):
        Loader(Mixture([(rows([3] * 4), 0.1)], seed=0), 10, 1, 0).total_steps(1)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 60), max_size=50), st.integers(1, 100))
def test_evaluation_sees_each_row_once_longest_first(lengths, batch_tokens):
    batches = list(evaluation_batches(rows(lengths), batch_tokens))
    assert sorted(rows_of(batches)) == list(range(len(lengths)))
    in_order = [length for batch in batches for length in batch.text.lengths]
    assert in_order == sorted(lengths, reverse=True)
    assert all(batch.num_tokens <= batch_tokens or len(batch.text.rows) == 1 for batch in batches)


# Corruption -------------------------------------------------------------------------------------------

MASK, VOCAB, CONTROL = 4, 500, (0, 1, 2, 3, 4, 499)


def masked(ids, row, **options):
    rng = numpy_rng(0, "mask", 0, row)
    return mask_tokens(ids, rng=rng, mask_id=MASK, vocab_size=VOCAB, control_ids=CONTROL, **options)


def assert_rate(hits, trials, expected, squares=None):
    """Hoeffding (1963): a right rate fails this once in 10^9 seeds; the seed is fixed, so it never flickers.

    `squares`: the sum of the squared sizes, where items of several trials are drawn together.
    """
    assert abs(hits / trials - expected) < math.sqrt(math.log(2e9) * (squares or trials) / 2) / trials


@pytest.mark.parametrize("words", [False, True])
def test_masking_has_the_rates_of_bert(words):
    rng = np.random.default_rng(0)
    num_chosen = num_free = squares = to_mask = to_random = 0
    replacements = Counter()
    for row in range(1500):
        ids = np.concatenate([[1], rng.integers(5, 499, 200), [2]]).astype(np.uint16)
        starts = np.concatenate([[1], rng.random(200) < 0.6, [1]]).astype(np.uint8)
        corrupted, targets = masked(ids, row, starts=starts if words else None)
        at = targets != -100
        assert corrupted.dtype == ids.dtype
        assert (corrupted[~at] == ids[~at]).all()
        assert (targets[at] == ids[at]).all()
        assert not at[[0, -1]].any()
        word = np.cumsum(starts if words else np.ones(202, int))[1:-1]
        assert not set(word[at[1:-1]]) & set(word[~at[1:-1]]), "a word masked in part"
        num_free, num_chosen, squares = num_free + 200, num_chosen + at.sum(), squares + (np.bincount(word) ** 2).sum()
        to_mask += (corrupted[at] == MASK).sum()
        swapped = at & (corrupted != MASK) & (corrupted != ids)
        to_random += swapped.sum()
        replacements.update(corrupted[swapped].tolist())
    assert_rate(num_chosen, num_free, 0.15, squares)
    assert_rate(to_mask, num_chosen, 0.8)
    assert_rate(to_random, num_chosen, 0.1 * (1 - 1 / 494))
    assert not set(replacements) & set(CONTROL)
    assert len(replacements) > 490
    assert {5, 498} <= set(replacements)


def as_bool(values):
    return np.array(values, bool)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, VOCAB - 1), max_size=12), st.data())
def test_masking_leaves_control_tokens_and_always_teaches(ids, data):
    ids = np.array(ids, np.int64)
    starts = data.draw(st.none() | st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)).map(as_bool))
    corrupted, targets = masked(ids, data.draw(st.integers(0, 999)), starts=starts)
    control = np.isin(ids, CONTROL)
    assert (targets != -100).any() == (~control).any()
    assert (targets[control] == -100).all()
    assert (corrupted[control] == ids[control]).all()


def test_masking_follows_its_key():
    ids = np.arange(10, 200)
    assert all((a == b).all() for a, b in zip(masked(ids, 7), masked(ids, 7), strict=True))
    assert (masked(ids, 7)[1] != masked(ids, 8)[1]).any()


def test_next_sentence_pairs(tmp_path):
    lengths = [5, 40, 120, 60, 0, 33, 80]
    marked = [  # an id is 100·document + place mod 50: its origin shows
        {"ids": 100 * number + np.arange(n) % 50, "starts": np.arange(n) % 3 == 0} for number, n in enumerate(lengths)
    ]
    corpus = shards.write(tmp_path / "corpus", marked, columns=COLUMNS, meta={}, shard_tokens=100)
    labels, cuts = Counter(), set()
    for trial in range(1000):
        rng = numpy_rng(0, "next", trial)
        number = (1, 2, 3, 5, 6)[trial % 5]
        chunk = {name: column[:30] for name, column in corpus.document(number).items()}
        other = partial(piece_of_another, corpus, number, rng=rng)
        a, b, label = next_sentence(chunk, other, rng)
        labels[label] += 1
        cuts.add(len(a["ids"]))
        assert a["ids"].tolist() == chunk["ids"][: len(a["ids"])].tolist()
        assert len(a["ids"]) + len(b["ids"]) == 30, "the length of B betrays the label"
        assert b["starts"][0]
        if label == 0:
            assert b["ids"].tolist() == chunk["ids"][len(a["ids"]) :].tolist()
        else:
            assert len(set(b["ids"] // 100)) == 1
            assert b["ids"][0] // 100 != number
    assert_rate(labels[1], 1000, 0.5)
    assert cuts == set(range(3, 30, 3))
    one = {"ids": np.array([7]), "starts": np.array([1])}
    a, b, label = next_sentence(one, lambda n: one, numpy_rng(0))
    assert (len(a["ids"]), len(b["ids"]), label) == (1, 0, -100)


def test_next_sentence_needs_another_document(tmp_path):
    with pytest.raises(DataError):
        piece_of_another(write(tmp_path / "corpus", [9]), 0, 4, numpy_rng(0))


# Real text --------------------------------------------------------------------------------------------

DATA = Path(os.environ.get("WENMO_TEST_DATA", Path(__file__).parents[2] / "shared/data"))


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no test data in {DATA}")
@pytest.mark.parametrize("name", ["tinyshakespeare/input.txt.gz", "classical-novels/hongloumeng.txt.gz"])
def test_real_text_comes_through_masking_and_batches_whole(tmp_path, name):
    with gzip.open(DATA / name, "rt", encoding="utf-8") as file:
        lines = [line for line in file.read()[:150_000].split("\n") if line]
    lines.append(" ".join(lines))  # one document of many chunks
    letters = sorted(set("".join(lines)))
    number_of = {letter: number for number, letter in enumerate(letters, start=5)}
    vocab_size = 5 + len(letters)
    corpus = shards.write(
        tmp_path / "corpus", ({"ids": np.array([number_of[letter] for letter in line])} for line in lines),
        columns={"ids": shards.id_dtype(vocab_size)}, meta={},
    )

    def form(columns, document, start, epoch):
        ids, targets = mask_tokens(columns["ids"], rng=numpy_rng(0, "mask", epoch, document, start), mask_id=4,
                                   vocab_size=vocab_size, control_ids=(0, 1, 2, 3, 4))
        return [Sequence(document, {"ids": ids, "targets": targets, "original": columns["ids"]}, {"start": start})]

    loader = Loader(Chunks(corpus, 126, 0, form, 0), 4096, 2, 0)
    parts, chosen = {}, 0
    for step in range(loader.steps_in_epoch(0)):
        for batch in loader.batches(step):
            flat = batch.text
            originals = flat.tokens["original"].split(flat.lengths)
            for row, start, ids in zip(flat.rows, flat.values["start"].tolist(), originals, strict=True):
                parts.setdefault(row, {})[start] = "".join(letters[number - 5] for number in ids.tolist())
            chosen += int((flat.tokens["targets"] != -100).sum())
    assert ["".join(part for _, part in sorted(parts[row].items())) for row in sorted(parts)] == lines
    assert_rate(chosen, corpus.num_tokens, 0.15)


@given(st.integers(0, 60), st.integers(1, 15), st.data())
def test_windows_hold_every_token_and_share_what_is_asked(num_tokens: int, room: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, room - 1))
    found = windows(num_tokens, room, overlap)
    assert {at for start, end in found for at in range(start, end)} == set(range(num_tokens))
    assert all(end - start == min(room, num_tokens) for start, end in found)
    assert all(after[0] <= before[1] - overlap for before, after in pairwise(found))
    assert len(found) == len(set(found))
