"""docs/extend.md is run as it stands; and what is said to those who forget to hand in what is theirs."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import small_data
import wenmo
from wenmo.errors import ModelError, RecipeError, UsageError
from wenmo.modeldir import weights_sha256

PAGE = Path(__file__).parent.parent / "docs" / "extend.md"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The names that the page's code leaves, run in a folder with stars.csv."""
    folder = tmp_path_factory.mktemp("page")
    stars = [(text, random.Random(text).choice((4, 5) if label == "positive" else (1, 2)))
             for text, label in small_data.reviews(160)]
    small_data.write_csv(folder / "stars.csv", ("text", "label"), stars)
    names: dict[str, Any] = {"__name__": "extend"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("WENMO_LANG", "en")
        for body in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
            exec(compile(body, PAGE.name, "exec", dont_inherit=True), names)
        yield names


def test_the_task_has_learned_the_order(page: dict[str, Any]) -> None:
    model = wenmo.load("runs/stars", tasks=page["TASKS"])
    good, bad = model.predict(["这本书值得推荐。", "这家酒店令人生气。"])
    assert 1 <= bad["stars"] < 2.5 < 3.5 < good["stars"] <= 5
    report = wenmo.evaluate(model, "stars.csv")
    error = report.metrics["mae"]
    assert (report.task, report.n) == ("stars", 160)
    assert error.low < error.value < error.high < 1.0
    card = json.loads(Path("runs/stars/model/wenmo.json").read_text(encoding="utf-8"))
    assert (card["tasks"]["stars"]["type"], card["tasks"]["stars"]["levels"]) == ("stars", 5)


def test_the_head_is_saved_and_used(page: dict[str, Any]) -> None:
    heads, text = page["HEADS"], "这本书值得推荐。"
    model = wenmo.load("runs/stars-pooled", tasks=page["TASKS"], heads=heads)
    before = model.predict([text])
    assert model.check() == pytest.approx(0, abs=1e-4)  # the golden prompts go through the head
    with torch.no_grad():
        model.model.custom_heads["classification"].output.bias += 10
    assert model.predict([text])[0]["stars"] > 4.99 > before[0]["stars"]
    with pytest.raises(ModelError, match="golden prompts differently"):
        model.check()
    assert wenmo.load("runs/stars-pooled", tasks=page["TASKS"], heads=heads).predict([text]) == before
    assert set(wenmo.load("runs/pooled", heads=heads).predict([text])[0]) == {"label", "scores"}


def test_in_bf16(page: dict[str, Any]) -> None:
    """A module that knows nothing of two number formats works in both."""
    text = "这本书值得推荐。"
    exact = wenmo.load("runs/stars-pooled", tasks=page["TASKS"], heads=page["HEADS"]).predict([text])[0]["stars"]
    near = wenmo.load("runs/stars-pooled", tasks=page["TASKS"], heads=page["HEADS"], dtype="bf16").predict([text])
    assert near[0]["stars"] == pytest.approx(exact, abs=0.1)


def test_transformers_opens_the_body(page: dict[str, Any]) -> None:
    import transformers

    opened: Any = transformers.BertModel.from_pretrained("runs/pooled/model", output_loading_info=True)
    body, said = opened
    assert not said["missing_keys"]
    assert all(name.startswith("custom_heads.") for name in said["unexpected_keys"])
    ours = wenmo.load("runs/pooled", heads=page["HEADS"])
    ids = torch.tensor(ours.tokenizer.wrap(ours.tokenizer.encode("这本书"))[0])
    with torch.inference_mode():
        theirs = body.eval()(ids[None]).last_hidden_state[0]
        assert torch.allclose(ours.model(ids, (len(ids),)), theirs, atol=1e-5)


def test_the_seed_alone_decides(page: dict[str, Any], tmp_path: Path) -> None:
    """Weights of a head are drawn from the recipe's seed, whatever torch's generator is at; and a run resumes."""
    digests = []
    for name, torch_seed in (("a", 1), ("b", 2)):
        torch.manual_seed(torch_seed)
        wenmo.train(page["recipe"], "train.steps=4", "train.dtype=fp32", "train.threads=1", out=tmp_path / name,
                    tasks=page["TASKS"], heads=page["HEADS"])
        model = wenmo.load(tmp_path / name, tasks=page["TASKS"], heads=page["HEADS"])
        digests.append(weights_sha256(model.model))
    assert digests[0] == digests[1]

    def another(width: int, num_outputs: int) -> nn.Module:
        module: nn.Module = page["AttentionPooling"](width, num_outputs)
        return module

    with pytest.raises(wenmo.errors.CheckpointError, match=r"heads\.classification"):
        wenmo.train(page["recipe"], "train.steps=4", "train.dtype=fp32", "train.threads=1", out=tmp_path / "a",
                    tasks=page["TASKS"], heads={"classification": another})


def test_a_trained_body_takes_a_head(page: dict[str, Any], tmp_path: Path) -> None:
    """Fine-tuning from a model with a custom head leaves it out, and from another puts one on."""
    base = {name: value for name, value in page["recipe"].items() if name != "tokenizer"}
    base["model"] = {"from": "runs/stars-pooled"}
    settings = ("train.steps=2", "train.best=null")
    wenmo.train({**base, "task": {"type": "classification"}}, *settings, out=tmp_path / "plain")
    assert set(wenmo.load(tmp_path / "plain").model.heads) == {"classification"}
    base["model"] = {"from": str(tmp_path / "plain")}
    wenmo.train(base, *settings, out=tmp_path / "pooled", tasks=page["TASKS"], heads=page["HEADS"])
    wenmo.load(tmp_path / "pooled", tasks=page["TASKS"], heads=page["HEADS"]).predict(["好"])


# What is said -----------------------------------------------------------------------------------------


def test_who_forgets_to_hand_it_in_is_told(page: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="unknown task `stars`") as caught:
        wenmo.load("runs/stars")
    assert "wenmo.load(…, tasks={'stars': (Settings, Task)})" in caught.value.mend
    with pytest.raises(ModelError, match="a head of its maker's own for classification") as caught:
        wenmo.load("runs/pooled")
    assert "wenmo.load(…, heads={'classification': …})" in caught.value.mend


@pytest.mark.parametrize(("model", "given", "what"), [
    ("runs/stars", {"heads": {"classification": nn.Linear}}, "was not saved with a head of your own"),
    ("runs/stars", {"tasks": {"classification": (None, None)}}, "is a task of Wenmo's own"),
    ("runs/pooled", {"heads": {"classification": lambda width, outputs: Flat(width, outputs)}}, "do not fit"),
])
def test_what_does_not_belong_is_refused(page: dict[str, Any], model: str, given: dict[str, Any], what: str) -> None:
    given = {"tasks": page["TASKS"], **given}
    with pytest.raises((ModelError, UsageError), match=what):
        wenmo.load(model, **given)


class Flat(nn.Module):
    """Gives one row too few."""

    def __init__(self, width: int, num_outputs: int) -> None:
        super().__init__()
        self.output = nn.Linear(width, num_outputs)

    def forward(self, hidden_MD: torch.Tensor, lengths: Any) -> torch.Tensor:
        out: torch.Tensor = self.output(hidden_MD.mean(0, keepdim=True))
        return out


def test_a_recipe_with_faults(page: dict[str, Any], tmp_path: Path) -> None:
    """All at once, each under its path, as for Wenmo's own tasks."""
    wrong = {**page["recipe"], "task": {"type": "stars", "levels": "many", "level": 3}}
    with pytest.raises(RecipeError) as caught:
        wenmo.train(wrong, "train.steps=no", out=tmp_path, tasks=page["TASKS"])
    for path in ("task.levels", "task.level", "train.steps"):
        assert f"`{path}`" in caught.value.what
    with pytest.raises(RecipeError, match="there is no kind `stars`"):
        wenmo.train(page["recipe"], out=tmp_path)
    with pytest.raises(UsageError, match="no head of the kind `tagging`"):
        wenmo.train(page["recipe"], out=tmp_path, tasks=page["TASKS"], heads={"tagging": Flat})
    with pytest.raises(UsageError, match="is a task of Wenmo's own"):
        wenmo.train(page["recipe"], out=tmp_path, tasks={"causal_lm": page["TASKS"]["stars"]})
    with pytest.raises(ModelError, match="the head gives"):
        wenmo.train(page["recipe"], out=tmp_path / "flat", tasks=page["TASKS"], heads={"classification": Flat})
