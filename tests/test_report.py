"""A report never gives a bare score; its page is well formed, asks nothing of the network and shows text as text."""

from __future__ import annotations

import io
import json
import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from wenmo import chart
from wenmo.chart import Bar, Series
from wenmo.metrics import Estimate, classification_report
from wenmo.page import (
    BarChart,
    Confusion,
    Facts,
    Heading,
    LineChart,
    Prose,
    Sample,
    Samples,
    Scores,
    Table,
    Verdict,
    html_page,
)
from wenmo.report import Comparison, Report, verdict

VOID = {"meta", "link", "br"}
EVIL = '</p><script>alert("1")</script><img src=x onerror=alert(1)> & "quoted" \'single\' [SEP] 差评\x00\x1b[31m\ud800'


@pytest.fixture(autouse=True)
def _english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WENMO_LANG", "en")


def report(model: str = "runs/zh") -> Report:
    measured = classification_report(
        [0, 1, 1, 0] * 20, [[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.6, 0.4]] * 20, ["差评", "好评"], seed=7)
    return Report(model, "classification", "reviews.csv", 80, 7, measured["metrics"], measured["details"])


def every_section(text: str = "text") -> list[object]:
    """One of each, with `text` wherever a user's or a model's words can stand."""
    loss = [(float(step), 9 * math.exp(-step / 300) + step % 7 / 10) for step in range(2000)]
    score = Estimate(0.8, 0.75, 0.84)
    return [
        Heading(text), Heading("摘要"), Heading("Results"), Prose(f"{text}\n\nAnd more."), Scores(report(text)),
        Verdict(text, "baseline", text, Estimate(0.01, -0.01, 0.03)),
        LineChart(text, [Series(text, loss, smooth=True), Series("held out", loss[::250])], text, text, note=text),
        BarChart(text, [Bar(text, score), Bar("known by one document", Estimate(20.0, 1.0, math.inf), faint=True)]),
        BarChart(text, [Bar(text, score)], from_zero=False, note=text),
        Confusion(text, [text, "b"], [[9, 1], [0, 0]]),
        Confusion(text, [f"{text}{i}" for i in range(25)], [[i * j % 5 for i in range(25)] for j in range(25)]),
        Table(text, [text, "n", "F1"], [(text, 10_000, score), (text, None, 0.123456)], note=text),
        Facts(text, [(text, text), ("parameters", 5_000_000)]),
        Samples(text, [Sample(text, prompt=text, facts=[(text, text), ("p", 0.9)], right=False)], note=text),
    ]


class _Page(HTMLParser):
    """Checks that tags nest, and collects tags, attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


# The measured result ----------------------------------------------------------------------------------


def shown(report: Report) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(report.table())
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_what_the_scores_do_not_tell_is_said_wherever_they_are_shown() -> None:
    details = {"truncated": {"rows": 2, "tokens": 1234}, "skipped": {"an empty message": 3}, "empty_outputs": 4,
               "repaired": {"rows": 5, "tags": 6}, "rules": "cmrc"}
    one = Report("m", "chat", "d", 9, 0, {"loss": Estimate(1.0, 0.5, 1.5)}, details)
    other = Report("n", "chat", "d", 9, 0, {"loss": Estimate(1.0, 0.5, 1.5)})
    compared = Console(file=io.StringIO(), width=200)
    compared.print(Comparison(one, other, {}).table())
    page = html_page("t", [Scores(one)])
    for text in (shown(one), one._repr_html_(), page, compared.file.getvalue()):  # type: ignore[attr-defined]
        for said in ("1,234 tokens were not read", "3 rows left out: an empty message", "4 outputs are empty",
                     "6 tags in 5 rows"):
            assert said in " ".join(text.split())
    assert "by the rules of cmrc" in shown(one)
    assert not list(other.remarks())


def test_each_of_several_tasks_has_its_own_rows_and_classes() -> None:
    score = Estimate(0.5, 0.4, 0.6)
    several = Report("m", "joint", "d", 900, 0, {"intent.accuracy": score, "slots.f1": score, "exact": score}, {
        "intent": {"n": 123}, "slots": {"n": 456, "per_class": [{"label": "PLACE", "support": 78, "f1": score}],
                                        "truncated": {"rows": 2, "tokens": 3}}, "exact": {"n": 100}})
    text = shown(several)
    for name, rows in (("intent · accuracy", 123), ("slots · F1", 456), ("rows all right", 100),
                       ("F1 · slots · PLACE", 78)):
        assert re.search(rf"^ *{name} .* {rows} *$", text, re.MULTILINE), name
    assert "F1 · slots · PLACE" in several._repr_html_()
    assert list(several.remarks()) == ["2 rows were too long: 3 tokens were not read"]


def test_as_dict_is_the_contract_and_json() -> None:
    result = json.loads(json.dumps(report().as_dict()))
    assert list(result) == ["model", "task", "data", "n", "seed", "metrics", "details"]
    assert list(result["metrics"]) == ["accuracy", "macro_f1", "ece"]
    for estimate in result["metrics"].values():
        assert list(estimate) == ["value", "low", "high"]
        assert estimate["low"] <= estimate["value"] <= estimate["high"]
    assert result["metrics"]["accuracy"]["value"] == 0.75
    assert result["details"]["per_class"][1]["f1"].keys() == {"value", "low", "high"}
    bare = Report("m", "t", "d", 1, 0, {"accuracy": Estimate(1.0, 0.2, 1.0)})
    assert list(bare.as_dict()) == ["model", "task", "data", "n", "seed", "metrics"]


@pytest.mark.parametrize(("language", "words"), [("en", ["accuracy", "80 rows", "seed 7", "calibration error ↓"]),
                                                 ("zh", ["准确率", "80 行", "种子 7", "校准误差 ↓"])])
def test_table_says_value_interval_n_and_seed(language: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WENMO_LANG", language)
    out = io.StringIO()
    Console(file=out, width=100).print(report("runs/[bold]zh").table())
    for word in [*words, "0.75", "[0.65, 0.83]", "F1 · 差评", "runs/[bold]zh"]:
        assert word in out.getvalue()


def test_verdict_says_noise_aloud() -> None:
    assert verdict("A", "B", "accuracy", Estimate(0.01, -0.01, 0.03))[0] == "within noise"
    ahead, behind = Estimate(0.02, 0.01, 0.03), Estimate(-0.02, -0.03, -0.01)
    assert verdict("A", "B", "accuracy", ahead) == (
        "beyond noise", "A is better than B: accuracy differs by 0.020 [0.010, 0.030].")
    assert "A is worse than B" in verdict("A", "B", "accuracy", behind)[1]
    assert "A is better than B" in verdict("A", "B", "perplexity", behind)[1]


# The page ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", ["en", "zh"])
def test_page_is_well_formed_and_accessible(language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WENMO_LANG", language)
    text = html_page("报告 Report", every_section())  # type: ignore[arg-type]
    page = _Page(text)
    assert ("html", {"lang": language}) in page.tags
    assert any(tag == "h2" and attributes.get("lang") == ("zh" if language == "en" else "en")
               for tag, attributes in page.tags)

    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.tags:
        for name in ("aria-labelledby", "aria-describedby"):
            assert attributes.get(name) in (None, *ids)
        if tag == "a":
            assert attributes["href"].removeprefix("#") in ids  # type: ignore[union-attr]
    assert text.count("<table") == text.count("<caption")

    drawings = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]
    charts = [svg for svg in drawings if svg.get("role") == "img"]
    assert len(charts) == 6  # three charts, wide and narrow
    for svg in charts:
        assert svg.findtext("title")
        assert svg.findtext("desc")
        width, height = float(svg.attrib["width"]), float(svg.attrib["height"])
        for node in svg.iter():
            for name, value in node.attrib.items():
                if name in ("x", "x1", "x2", "cx"):
                    assert -1 <= float(value) <= width + 1
                if name in ("y", "y1", "y2", "cy"):
                    assert -1 <= float(value) <= height + 1
            assert "nan" not in node.get("d", "")


def test_text_stays_text() -> None:
    page = html_page(EVIL, every_section(EVIL))  # type: ignore[arg-type]
    parsed = _Page(page)
    assert {tag for tag, _ in parsed.tags}.isdisjoint({"script", "img", "iframe", "object", "form"})
    assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)
    shown = EVIL.replace("\x00", "\ufffd").replace("\x1b", "\ufffd").replace("\ud800", "\ufffd")
    assert parsed.text.count(shown) > 25
    page.encode("utf-8")


@given(st.text(max_size=40))
@settings(max_examples=40, deadline=None)
def test_any_text_makes_a_well_formed_page(text: str) -> None:
    page = _Page(html_page(text, [Heading(text), Prose(text), Samples(text, [Sample(text, prompt=text)]),
                                  BarChart(text, [Bar(text, Estimate(0.5, 0.4, 0.6))])]))
    page_tags = [tag for tag, _ in page.tags]
    assert page_tags.count("svg") == 2


def test_page_is_self_contained() -> None:
    page = html_page("t", every_section())  # type: ignore[arg-type]
    for tag, attributes in _Page(page).tags:
        for name in ("src", "href", "action", "data", "poster", "srcset", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert style is not None
    assert not re.search(r"url\(|@import|https?:|//", style.group(1))
    assert "default-src 'none'" in page
    assert "prefers-color-scheme: dark" in page
    assert html_page("t", every_section()) == page  # type: ignore[arg-type]


# Drawing ----------------------------------------------------------------------------------------------


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 8))
def test_axis_ticks_are_round_and_hold_the_data(low: float, width: float, wanted: int) -> None:
    ticks, first, last = chart.axis(low, low + width, wanted)
    assert first <= low + 1e-6 * width
    assert last >= (low + width) - 1e-6 * width
    assert 2 <= len(ticks) <= wanted + 3
    assert len({text for _, text in ticks}) == len(ticks)


def test_a_spike_survives_thinning_and_gaps_are_left_out() -> None:
    points = [(float(i), 100.0 if i == 5001 else 1.0) for i in range(10_000)]
    kept = chart.thinned(points)
    assert len(kept) <= 400
    assert (5001.0, 100.0) in kept
    assert kept == sorted(kept)
    broken = Series("loss", [(0.0, 1.0), (1.0, math.nan), (2.0, math.inf), (3.0, 2.0)])
    assert broken.drawn() == [(0.0, 1.0), (3.0, 2.0)]
    assert chart.running_mean([(float(i), 2.0 * i) for i in range(500)]) == [(float(i), 2.0 * i) for i in range(500)]
    for nothing in ([], [Series("loss", [])], [Series("loss", [(0.0, math.nan)])]):
        assert "no data" in ElementTree.tostring(
            chart.line_chart("t", nothing, "x", "y", 300, 200, "n"), encoding="unicode")


def test_bars_begin_at_zero() -> None:
    """Their lengths stand in the proportion of their values."""
    bars = [Bar("a", Estimate(0.9, 0.88, 0.92)), Bar("b", Estimate(0.3, 0.28, 0.32))]
    svg = chart.bar_chart("t", bars, from_zero=True, width=700, name="n")
    long, short = (float(rect.attrib["width"]) for rect in svg.iter("rect"))
    assert long / short == pytest.approx(3, rel=0.01)
    assert not list(chart.bar_chart("t", bars, from_zero=False, width=700, name="n").iter("rect"))
