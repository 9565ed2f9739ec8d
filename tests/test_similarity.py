"""Bi-encoders: losses as their papers have them, rows compared across micro-batches, thresholds kept, runs resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import small_data
from command import Command, wenmo
from wenmo import loaded
from wenmo.data.examples import Rows
from wenmo.data.loader import Loader
from wenmo.data.sequence import Batch, collate, joined
from wenmo.device import choose
from wenmo.errors import DataError, RecipeError, WenmoError
from wenmo.evaluation.token_matching import estimates, token_matching
from wenmo.files import sha256_file
from wenmo.loaded import held
from wenmo.nn.contrast import cosent, cosine_error, info_nce, same_texts
from wenmo.nn.pooling import pooled, unit
from wenmo.stages.library import evaluate, train
from wenmo.tasks import Lengths
from wenmo.tasks.similarity import Similarity, SimilaritySettings
from wenmo.tasks.vectors import places_of_answers
from wenmo.text import tokenizer_training
from wenmo.text.tokenizer import Tokenizer
from wenmo.text.tokenizer_training import TokenizerSettings
from wenmo.training import optimizer
from wenmo.training.loop import LoopSettings, steps

__all__ = ["wenmo"]  # the fixture

REVIEWS = [text for text, _ in small_data.reviews(60)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tokenizer_training.train(REVIEWS, TokenizerSettings(type="wordpiece", vocab_size=300))


def vectors(*shape: int, seed: int = 0) -> torch.Tensor:
    return unit(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


# Losses -----------------------------------------------------------------------------------------------


def test_cosent_is_its_sum_over_pairs_of_pairs() -> None:
    a, b, target = vectors(7, 5), vectors(7, 5, seed=1), torch.tensor([1.0, 0, 2, 2, 5, 0, 1])
    cosine = F.cosine_similarity(a, b).tolist()
    wrong = [np.exp((cosine[j] - cosine[i]) / 0.05) for i in range(7) for j in range(7) if target[i] > target[j]]
    assert float(cosent(a, b, target, 0.05)) == pytest.approx(np.log(1 + sum(wrong)), rel=1e-5)
    assert float(cosent(a, b, torch.ones(7), 0.05)) == 0  # nothing to put in order


def test_losses_equal_sentence_transformers() -> None:
    """Its CoSENT, ranking and regression losses, on vectors at hand."""
    st = pytest.importorskip("sentence_transformers.losses")

    class Given(nn.Module):
        def forward(self, features: dict[str, Any]) -> dict[str, Any]:
            return features

    a, b, c = (vectors(6, 5, seed=seed) for seed in range(3))
    target = torch.tensor([0.1, 0, 1, 0.5, 0.5, 0.9])
    sides = [{"sentence_embedding": side} for side in (a, b, c)]
    none = torch.zeros(6, 12, dtype=torch.bool)
    model: Any = Given()
    order = st.CoSENTLoss(model, scale=20.0)(sides[:2], target)
    assert float(cosent(a, b, target, 0.05)) == pytest.approx(float(order), rel=1e-5)
    ranking = st.MultipleNegativesRankingLoss(model, scale=20.0)(sides, None)
    assert float(info_nce(a, torch.cat([b, c]), none, 0.05)) / 6 == pytest.approx(float(ranking), rel=1e-5)
    squares = st.CosineSimilarityLoss(model)(sides[:2], target)
    assert float(cosine_error(a, b, target)) / 6 == pytest.approx(float(squares))


def test_texts_that_say_the_same_are_no_negatives() -> None:
    """1 stands beside 5 and 7, 2 beside 6, 4 beside 5: whatever stands beside a text is not held against it."""
    a, b = torch.tensor([1, 2, 1, 4]), torch.tensor([5, 6, 7, 5])
    assert same_texts(a, b, b).tolist() == [[False, False, True, True], [False] * 4, [True, False, False, True],
                                            [True, False, False, False]]
    hard = same_texts(a, b, torch.cat([b, torch.tensor([2, 2, 5, 9])]))[:, 4:]  # 2 itself; an answer to 1 and 4
    assert hard.tolist() == [[False, False, True, False], [True, True, False, False], [False, False, True, False],
                             [False, False, True, False]]
    twice = same_texts(a, a, a)  # each text beside itself: the other 1 is no negative
    assert twice.tolist() == [[False, False, True, False], [False] * 4, [True, False, False, False], [False] * 4]


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "last"])
def test_pooling(pooling: Any) -> None:
    hidden = torch.randn(9, 4)
    parts = hidden.split([2, 1, 6])
    rule = {"mean": lambda part: part.mean(0), "cls": lambda part: part[0], "max": lambda part: part.amax(0),
            "last": lambda part: part[-1]}[pooling]
    torch.testing.assert_close(pooled(hidden, (2, 1, 6), pooling), torch.stack([rule(part) for part in parts]))


# Rows that are compared -------------------------------------------------------------------------------

PAIRS = [{"text_a": REVIEWS[i], "text_b": REVIEWS[(7 * i + 1) % 60], "text_c": REVIEWS[(3 * i + 2) % 60],
          "score": str(i % 6), "label": "好" if i % 3 else "差"} for i in range(40)]
KINDS: dict[str, dict[str, Any]] = {
    "cosine": {"target": "score", "loss": "cosine"}, "cosent": {"target": "score"},
    "labels": {"target": "label", "labels": ("差", "好")}, "infonce": {"target": "pairs"},
    "both ways": {"target": "pairs", "symmetric": True}, "hard": {"target": "pairs", "hard_negatives": True},
}


def small(tokenizer: Tokenizer, dropout: float, rows: int = 40, **settings: Any) -> tuple[Any, Similarity, Rows]:
    from wenmo.models import create
    from wenmo.models.bert import BertConfig

    config = BertConfig(vocab_size=tokenizer.vocab_size, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=32, max_position_embeddings=64, hidden_dropout_prob=dropout,
                        attention_probs_dropout_prob=0.0)
    task = Similarity(SimilaritySettings(**settings), tokenizer, Lengths(max_tokens=24)).fitted(PAIRS)
    examples = task.build(PAIRS[:rows], Path(), 0, "").examples
    assert isinstance(examples, Rows)
    return create(config, {}, torch.Generator().manual_seed(0)), task, examples


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_in_slices_is_the_step_at_once(kind: str, tokenizer: Tokenizer) -> None:
    """Rows of different micro-batches are compared too: loss, gradient norm and weights are those of one batch."""
    done = []
    for accumulation in (1, 3):
        model, task, examples = small(tokenizer, 0.0, **KINDS[kind])
        loader = Loader(examples, 1500, accumulation, seed=0)
        assert len(loader.batches(0)) == accumulation
        results = steps(model, optimizer.build(model, optimizer.AdamW(lr=1e-2), (), None), task.objective(),
                        loader.batches, lr_factor=lambda step: 1.0, total_steps=3, settings=LoopSettings(),
                        device=choose("cpu", "fp32"), seed=0)
        done.append(([(r.loss, r.grad_norm) for r in results], torch.cat([p.flatten() for p in model.parameters()])))
    np.testing.assert_allclose(done[0][0], done[1][0], rtol=1e-4)
    torch.testing.assert_close(done[0][1], done[1][1], atol=1e-4, rtol=1e-3)


def test_the_cached_gradient_is_that_of_the_same_dropout(tokenizer: Tokenizer) -> None:
    """Both forwards of a micro-batch draw the same masks: the gradient is the derivative of the loss that is told."""
    model, task, examples = small(tokenizer, 0.3, **KINDS["infonce"])
    loader, objective = Loader(examples, 1500, 2, seed=0), task.objective()

    def loss() -> tuple[float, float]:
        model.zero_grad()
        plain = torch.optim.SGD(model.parameters(), lr=0.0)
        plain.param_groups[0] |= {"initial_lr": 0.0, "is_matrices": False}
        [result] = steps(model, plain, objective, loader.batches, lr_factor=lambda step: 1.0, total_steps=1,
                         settings=LoopSettings(clip=None), device=choose("cpu", "fp32"), seed=0)
        return result.loss, result.grad_norm

    before, norm = loss()
    assert loss() == (before, norm)
    weight, gradients = model.bert.encoder["layer"][0].output.dense.weight, []
    hook = weight.register_hook(gradients.append)
    loss()
    hook.remove()
    gradient = sum(gradients)
    direction = gradient / gradient.norm()
    with torch.no_grad():
        weight += 1e-2 * direction
    up, _ = loss()
    with torch.no_grad():
        weight -= 2e-2 * direction
    down, _ = loss()
    assert (up - down) / 2e-2 == pytest.approx(float(gradient.norm()), rel=2e-2)


def test_batches_are_joined_end_to_end(tokenizer: Tokenizer) -> None:
    _, _, examples = small(tokenizer, 0.0, **KINDS["hard"])
    first, *others = [examples.sequences(i, 0) for i in range(5)]
    rest = [sequence for row in others for sequence in row]
    assert _plain(joined([collate(first), collate(rest)])) == _plain(collate([*first, *rest]))


def _plain(batch: Batch) -> Any:
    return {role: ({name: value.tolist() for name, value in (*flat.tokens.items(), *flat.values.items())}, flat.lengths,
                   flat.rows) for role, flat in batch.roles.items()}


# The task ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("settings", "message"), [
    ({"target": "pairs", "loss": "cosent"}, "does not go with"), ({"loss": "infonce"}, "does not go with"),
    ({"range": (0, 5)}, "`range` does nothing"), ({"loss": "cosine", "temperature": 0.1}, "`temperature` does nothing"),
    ({"symmetric": True}, "`symmetric` does nothing"), ({"hard_negatives": True}, "`hard_negatives` does nothing"),
    ({"labels": ("a", "b")}, "`labels` does nothing"), ({"threshold": 0.5}, "`threshold` does nothing"),
    ({"loss": "cosine", "range": (5, 0)}, "lowest"), ({"target": "label", "labels": ("a", "a")}, "the same"),
])
def test_keys_that_would_do_nothing(settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WENMO_LANG", "en")
    with pytest.raises(ValueError, match=message):
        SimilaritySettings(**settings)


@pytest.mark.parametrize(("settings", "row", "message"), [
    ({}, {"score": "much"}, "no number"), ({"loss": "cosine", "range": (0, 4)}, {"score": "5"}, "outside"),
    ({"target": "label", "labels": ("差", "好")}, {"label": "中"}, "never seen"),
])
def test_targets_that_are_none(settings: Any, row: Any, message: str, tokenizer: Tokenizer) -> None:
    task = Similarity(SimilaritySettings(**settings), tokenizer, Lengths())
    with pytest.raises(DataError, match=message):
        task.encode(0, {**PAIRS[0], **row}, with_targets=True)


def test_three_labels_are_for_a_classifier(tokenizer: Tokenizer) -> None:
    task = Similarity(SimilaritySettings(target="label"), tokenizer, Lengths())
    with pytest.raises(RecipeError, match="two are needed") as caught:
        task.fitted([{"label": label} for label in "abc"])
    assert "pair: true" in caught.value.mend


def test_a_prompt_is_never_cut(tokenizer: Tokenizer) -> None:
    settings = SimilaritySettings(target="pairs", prompts={"query": "这本书", "document": "朋友"})
    task = Similarity(settings, tokenizer, Lengths(max_tokens=9, too_long="tail"))
    a, b = (list(s.tokens["ids"]) for s in task.encode(0, PAIRS[0], with_targets=True).sequences)
    before, own = tokenizer.encode("这本书"), tokenizer.encode(PAIRS[0]["text_a"])
    assert a[1:-1] == [*before, *own[-(7 - len(before)) :]]
    assert b[1 : 1 + len(tokenizer.encode("朋友"))] == tokenizer.encode("朋友")
    with pytest.raises(RecipeError, match="no room"):
        Similarity(settings, tokenizer, Lengths(max_tokens=4)).encode(0, PAIRS[0], with_targets=True)


def test_finding_ones_own() -> None:
    """Rank among different texts; other right answers do not stand in the way, equal scores do."""
    a, b = vectors(5, 3), vectors(5, 3, seed=1)
    names = ["x", "x", "y", "z", "z"]
    texts = ["p", "q", "p", "r", "s"]
    b[2] = b[0]  # the same text has the same vector
    expected = []
    for i in range(5):
        right = {text for name, text in zip(names, texts, strict=True) if name == names[i]}
        own = float(a[i] @ b[i])
        others = {text: float(a[i] @ vector) for text, vector in zip(texts, b, strict=True) if text not in right}
        expected.append(1 + sum(score >= own - 1e-7 for score in others.values()))
    assert places_of_answers(a.numpy(), b.numpy(), names, texts).tolist() == expected


# Runs -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = small_data.write(tmp_path_factory.mktemp("data"), num_reviews=120)
    by_label: dict[str, list[str]] = {"positive": [], "negative": []}
    for text, label in small_data.reviews(120):
        by_label[label].append(text)
    good, bad = by_label["positive"], by_label["negative"]
    rows = [(a, b, "1") for texts in (good, bad) for a, b in zip(texts[::2], texts[1::2], strict=True)]
    rows += [(a, b, "0") for a, b in zip(good, bad, strict=True)]
    small_data.write_csv(folder / "pairs.csv", ("text_a", "text_b", "label"), rows)
    return folder


def recipe(**task: Any) -> dict[str, Any]:
    made = small_data.recipe("classification", steps=60, batch_tokens=1024, evaluate_every=20)
    made["data"]["train"] = [{"path": "pairs.csv"}]
    made["data"]["choose"] = {"carve": 24}
    return {**made, "task": {"type": "similarity", **task}}


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    train(recipe(target="label"), "train.optimizer.lr=3e-3", "train.best={metric: roc_auc}", out=out, data_root=data)
    return out


def test_a_bi_encoder_learns_what_is_alike(run: Path, data: Path) -> None:
    """The threshold is that of the rows for choosing, and stands in the card."""
    card = json.loads((run / "model" / "wenmo.json").read_text(encoding="utf-8"))
    task = card["tasks"]["similarity"]
    assert (task["labels"], task["pooling"], -1 < task["threshold"] < 1) == (["0", "1"], "mean", True)
    report = evaluate(str(run), data / "pairs.csv")
    assert report.metrics["roc_auc"].value > 0.9
    assert report.metrics["accuracy"].value > 0.8
    assert report.details["threshold"] == task["threshold"]
    model = loaded.load(run)
    far, near = model.predict([{"text_a": REVIEWS[0], "text_b": other} for other in (REVIEWS[1], REVIEWS[0])])
    assert near == {"score": pytest.approx(1.0, abs=1e-5), "label": "1"}
    assert far["score"] < near["score"]
    a, b = model.embed([REVIEWS[0], REVIEWS[1]])
    assert float(a @ b) == pytest.approx(far["score"], abs=1e-5)
    assert model.check() == pytest.approx(0, abs=1e-4)


def test_order_and_company_change_no_score(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded.load(run)
    expected = [answer["score"] for answer in model.predict(PAIRS)]
    order = np.random.default_rng(0).permutation(len(PAIRS))
    monkeypatch.setattr(held, "BATCH_TOKENS", 1)
    found = [answer["score"] for answer in model.predict([PAIRS[i] for i in order])]
    np.testing.assert_allclose(found, np.asarray(expected)[order], atol=1e-5)


def test_sentence_transformers_opens_it(run: Path) -> None:
    st = pytest.importorskip("sentence_transformers")
    them = st.SentenceTransformer(str(run / "model"), device="cpu")
    np.testing.assert_allclose(them.encode(REVIEWS[:9]), loaded.load(run, device="cpu").embed(REVIEWS[:9]), atol=1e-5)


def test_a_resumed_run_is_the_run(data: Path, tmp_path: Path) -> None:
    """With dropout, in slices: gradient caching draws what it drew."""
    made = recipe(target="pairs")
    more = ("train.accumulation=2", "train.batch_tokens=512", "train.schedule={type: constant}",
            "train.evaluate_every=4")
    train(made, *more, "train.steps=8", out=tmp_path / "whole", data_root=data)
    for number in (3, 8):
        train(made, *more, f"train.steps={number}", out=tmp_path / "parts", data_root=data)
    whole, parts = (sha256_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "parts"))
    assert whole == parts


def test_the_tiny_recipe_runs_as_it_stands(data: Path, tmp_path: Path) -> None:
    """Each text is read under two dropouts and finds itself; without dropout it is found from the start."""
    path = Path(__file__).parent.parent / "recipes" / "tiny-similarity.yaml"
    done = train(path, "train.steps=2", "data.choose.carve=20", out=tmp_path / "run", data_root=data)
    assert done.metrics["recall_at_1"] == 1
    assert done.metrics["loss"] > 0


def test_an_encoder_decoder_is_refused(data: Path, tmp_path: Path) -> None:
    t5 = small_data.recipe("span_corruption")
    made = {**recipe(target="pairs"), "model": t5["model"], "tokenizer": t5["tokenizer"]}
    with pytest.raises(WenmoError, match="encoder–decoder"):
        train(made, out=tmp_path / "run", data_root=data)


def test_beside_counting(wenmo: Command, run: Path, data: Path) -> None:
    done = wenmo("evaluate", str(run), str(data / "pairs.csv"), "--baseline", str(data / "pairs.csv"), "--json")
    assert done.code == 0, done.err
    metrics = json.loads(done.out)["metrics"]
    assert {"baseline_accuracy", "difference", "accuracy"} <= set(metrics)
    gap = metrics["accuracy"]["value"] - metrics["baseline_accuracy"]["value"]
    assert metrics["difference"]["value"] == pytest.approx(gap, abs=2e-6)


# Tokens matched in an encoder's space -----------------------------------------------------------------


def test_token_matching_is_the_papers(run: Path) -> None:
    """Against the formulas written out, token by token."""
    model = loaded.load(run, device="cpu")
    outputs, references = REVIEWS[:4], [[REVIEWS[5], REVIEWS[6]], [REVIEWS[1]], [REVIEWS[8]], [""]]
    for idf in (False, True):
        found = token_matching(model, outputs, references, idf=idf)
        every = [text for given in references for text in given]
        for row, output, given in zip(found, outputs, references, strict=True):
            scores = [_bert_score(model, output, text, every if idf else None) for text in given]
            np.testing.assert_allclose(row, max(scores, key=lambda score: score[2]), atol=1e-5)
    np.testing.assert_allclose(found[1], 1, atol=1e-5)  # the text itself
    np.testing.assert_array_equal(found[3], 0)  # nothing to match
    first = token_matching(model, outputs, references, layer=1)
    assert np.abs(first - token_matching(model, outputs, references)).max() > 1e-3
    metrics = estimates(found, seed=0)
    assert metrics["similarity_f"].value == pytest.approx(found[:, 2].mean())


def _bert_score(model: Any, output: str, reference: str, every: list[str] | None) -> tuple[float, float, float]:
    def states(text: str) -> tuple[list[int], list[np.ndarray]]:
        ids = model.tokenizer.encode(text)
        wrapped, _ = model.tokenizer.wrap(ids)
        with torch.no_grad():
            hidden = model.model(torch.tensor(wrapped), (len(wrapped),))[1:-1].numpy()
        return ids, [vector / np.linalg.norm(vector) for vector in hidden]

    def weight(token: int) -> float:
        if every is None:
            return 1.0
        return float(np.log((len(every) + 1) / (sum(token in model.tokenizer.encode(text) for text in every) + 1)))

    def mean(from_ids: list[int], from_states: list[Any], to_states: list[Any]) -> float:
        best = [max(float(a @ b) for b in to_states) for a in from_states]
        weights = [weight(token) for token in from_ids]
        return float(np.dot(best, weights) / sum(weights))

    (x_ids, x), (y_ids, y) = states(output), states(reference)
    if not x or not y:
        return 0.0, 0.0, 0.0
    precision, recall = mean(x_ids, x, y), mean(y_ids, y, x)
    return precision, recall, 2 * precision * recall / (precision + recall)
