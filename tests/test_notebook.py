"""From Python: `wenmo.evaluate`, and what a notebook shows of a model, a run and a report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

import small_data
import wenmo
from wenmo.errors import DataError
from wenmo.files import append_jsonl, read_jsonl
from wenmo.loaded import Loaded
from wenmo.stages.train import Trained


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("work")
    small_data.write(folder / "data", num_reviews=100, num_news=10)
    return wenmo.train(small_data.recipe("classification", steps=60, log_every=3), out=folder / "run<1>",
                       data_root=folder / "data")


@pytest.fixture(scope="module")
def model(run: Trained) -> Loaded:
    return wenmo.load(run.folder)


@pytest.fixture(autouse=True)
def english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WENMO_LANG", "en")


def parsed(html: str) -> ElementTree.Element:
    """A fragment is well formed, stands for itself, and reaches for nothing."""
    root = ElementTree.fromstring(html)
    assert (root.tag, root.get("class")) == ("div", "wenmo")
    assert not {node.tag for node in root.iter()} & {"script", "link", "img", "iframe", "object"}
    assert "http" not in html
    assert "url(" not in html
    return root


def words(root: ElementTree.Element) -> str:
    return " ".join(text for node in root.iter() if node.tag != "style" for text in (node.text, node.tail) if text)


def test_evaluate_from_python(model: Loaded, run: Trained) -> None:
    """A model or its reference, a file or rows, their columns or others: the same numbers."""
    file = run.folder.parent / "data" / "reviews-train.csv"
    rows = [{"text": text, "label": label} for text, label in small_data.reviews(100)]
    other = [{"review": row["text"], "stars": row["label"]} for row in rows]
    reports = [wenmo.evaluate(model, file), wenmo.evaluate(str(run.folder), str(file)), wenmo.evaluate(model, rows),
               wenmo.evaluate(model, file, columns={"text": "review"}),
               wenmo.evaluate(model, other, columns={"text": "review", "label": "stars"})]
    assert all(report.metrics == reports[0].metrics for report in reports)
    assert reports[0].metrics["accuracy"].value > 0.7
    assert len(read_jsonl(run.folder / "evaluations.jsonl")) == 3  # those on the file
    assert (reports[0].n, reports[0].data, reports[2].data) == (100, str(file), "rows at hand")


@pytest.mark.parametrize(("rows", "what"), [
    ([], "no rows"), ([{"text": "好"}], "no `label`"), ([{"text": "好", "label": "neutral"}], "never seen")])
def test_what_cannot_be_measured(model: Loaded, rows: list[dict[str, str]], what: str) -> None:
    with pytest.raises(DataError, match=what):
        wenmo.evaluate(model, rows)


def test_a_report(model: Loaded) -> None:
    report = wenmo.evaluate(model, [{"text": text, "label": label} for text, label in small_data.reviews(40)])
    shown = words(parsed(replace(report, data="<b>&\x00")._repr_html_()))
    assert "<b>&\ufffd" in shown
    for text in ("accuracy", "calibration error ↓", "F1 · positive", "40 rows, seed 0",
                 report.metrics["accuracy"].texts()[0]):
        assert text in shown


def test_a_run(run: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    root = parsed(run._repr_html_())
    shown = words(root)
    for text in ("run<1>", "steps 60", "validation accuracy", f"{run.metrics['accuracy']:.4f}", "rows for choosing"):
        assert text in " ".join(shown.split())
    [title] = list(root.iter("desc"))
    assert "training: loss from" in (title.text or "")
    monkeypatch.setenv("WENMO_LANG", "zh")
    assert "步数" in words(parsed(run._repr_html_()))


def test_a_run_without_a_log(run: Trained, tmp_path: Path) -> None:
    bare = replace(run, folder=tmp_path, exit_code=75)
    root = parsed(bare._repr_html_())
    assert not list(root.iter("path"))
    assert "the same command goes on" in words(root)
    append_jsonl(tmp_path / "metrics.jsonl", {"step": 1, "loss": None})
    parsed(bare._repr_html_())


def test_a_model(model: Loaded) -> None:
    shown = words(parsed(model._repr_html_()))
    total = sum(parameter.numel() for parameter in model.model.parameters())
    for text in ("run<1>", "bert", "classification", f"{total:,}", "64 tokens", "latin"):
        assert text in shown
        assert text in repr(model)
