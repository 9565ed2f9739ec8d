"""Compiled layers: every family's numbers, one graph for all layers and lengths, and nothing else compiled."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import small_data
from small_data import recipe
from test_checkpointing import FAMILIES, VOCAB
from wenmo.device import torch_rng
from wenmo.errors import RecipeError, UsageError
from wenmo.models import create, logits
from wenmo.nn import cross, dropout
from wenmo.nn.attend import Packed
from wenmo.nn.compiled import compile_blocks
from wenmo.stages.library import train

BATCHES = [(9, 4, 9), (5, 5), (3, 12, 7, 2)]
TARGETS = [(5, 3, 6), (4, 4), (2, 3, 8, 5)]


@pytest.fixture(autouse=True)
def anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `compile_blocks` changes beside its model, put back."""
    monkeypatch.setattr(Packed, "__call__", Packed.__call__)
    monkeypatch.setattr(cross.Cross, "__call__", cross.Cross.__call__)
    torch._dynamo.reset()


class Counting:
    """A backend that runs what it is given as it is, and counts it."""

    def __init__(self) -> None:
        self.graphs: list[Any] = []

    def __call__(self, graph: Any, inputs: Any) -> Callable[..., Any]:
        self.graphs.append(graph)
        run: Callable[..., Any] = graph.forward
        return run


def model_of(name: str, num_layers: int | None = None) -> Any:
    """Without dropout, whose masks are others in compiled code."""
    config, head = FAMILIES[name]
    changes: dict[str, Any] = {key: 0.0 for key in type(config).model_fields
                               if "drop" in key and "layerdrop" not in key}
    if num_layers is not None:
        changes["num_hidden_layers"] = num_layers
    return create(config.model_copy(update=changes), {head: 0}, torch_rng("compiled"))


def learnt(name: str, model: Any, lengths: Sequence[int], targets: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    model.zero_grad()
    ids, more = (torch.randint(5, VOCAB, (sum(each),), generator=torch_rng("ids")) for each in (lengths, targets))
    target = (more, targets) if FAMILIES[name][1] == "seq2seq_lm" else ()
    scores = logits(model, model(ids, lengths, *target))
    if model.training:
        scores.logsumexp(-1).sum().backward()
    return scores.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_computes_the_same(name: str) -> None:
    model = model_of(name).train()
    plain = [learnt(name, model, *each) for each in zip(BATCHES, TARGETS, strict=True)]
    compile_blocks(model, counting := Counting())
    numbers = []
    for each, (scores, gradients) in zip(zip(BATCHES, TARGETS, strict=True), plain, strict=True):
        found, found_gradients = learnt(name, model, *each)
        torch.testing.assert_close(found, scores, atol=1e-5, rtol=1e-4)
        for one, other in zip(found_gradients, gradients, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
        numbers.append(len(counting.graphs))
    assert numbers[0] > 0
    assert numbers == numbers[:1] * len(BATCHES)  # other lengths, the same code


def test_all_layers_share_their_code() -> None:
    numbers = []
    for num_layers in (2, 12):
        torch._dynamo.reset()
        model = model_of("llama", num_layers).train()
        compile_blocks(model, counting := Counting())
        learnt("llama", model, BATCHES[0], ())
        numbers.append(len(counting.graphs))
    assert numbers[0] == numbers[1] > 0


def test_evaluation_is_as_it_was() -> None:
    model = model_of("llama").eval()
    plain, _ = learnt("llama", model, BATCHES[0], ())
    compile_blocks(model, counting := Counting())
    assert torch.equal(learnt("llama", model, BATCHES[0], ())[0], plain)
    with torch.no_grad():
        model.train()(torch.randint(5, VOCAB, (4,)), (4,))
    assert counting.graphs == []
    assert model.state_dict().keys() == model_of("llama").state_dict().keys()


def test_dropout_is_drawn_from_the_steps_own_key(monkeypatch: pytest.MonkeyPatch) -> None:
    config, head = FAMILIES["bert"]
    model = create(config, {head: 0}, torch_rng("compiled")).train()
    compile_blocks(model, Counting())
    monkeypatch.setattr(dropout, "new_seed", lambda: 1)  # of attention, which is outside

    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return learnt("bert", model, BATCHES[0], ())[0]

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


@pytest.mark.parametrize(("changes", "kind", "message"), [
    (("train.checkpoint_activations=true",), RecipeError, "leave one out"),
    ((), UsageError, r"C\+\+ compiler"),
])
def test_what_cannot_be_compiled_is_refused(changes: tuple[str, ...], kind: type[Exception], message: str,
                                            tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WENMO_LANG", "en")
    monkeypatch.setenv("CXX", str(tmp_path / "absent"))
    small_data.write(tmp_path)
    with pytest.raises(kind, match=message):
        train(recipe("classification", steps=1), "train.compile=true", *changes, out=tmp_path / "run",
              data_root=tmp_path)


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++")
def test_a_run_ends_in_the_same_scores(tmp_path: Path) -> None:
    small_data.write(tmp_path)
    made = recipe("causal_lm", steps=4, dtype="fp32")
    plain, compiled = (train(made, f"train.compile={yes}", out=tmp_path / yes, data_root=tmp_path)
                       for yes in ("false", "true"))
    assert plain.metrics
    assert dict(compiled.metrics) == pytest.approx(dict(plain.metrics), rel=1e-4)
