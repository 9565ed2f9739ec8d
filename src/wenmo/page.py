"""report.html: one file that holds everything, opens anywhere and asks the network for nothing.

In: sections, small frozen dataclasses filled by whoever measured. Out: the page as a string. All text is text: the
page is built as a tree and serialised, so that no review and no model output can become markup. It has no
script; its style sheet is `page.css`, its charts come from `chart`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from xml.etree.ElementTree import Element, tostring

from wenmo.chart import Bar, Series, bar_chart, element, line_chart
from wenmo.errors import language, say
from wenmo.metrics import Estimate, lower_is_better, within_noise
from wenmo.report import Report, metric_name, verdict

Cell = str | int | float | Estimate | None
WIDE, NARROW = 760, 340  # CSS pixels a chart is drawn at
MOST_CLASSES = 20  # in a confusion matrix; beyond, the largest confusions are listed


@dataclass(frozen=True, slots=True)
class Heading:
    text: str


@dataclass(frozen=True, slots=True)
class Prose:
    """Paragraphs, set apart by empty lines."""

    text: str


@dataclass(frozen=True, slots=True)
class Scores:
    """The metrics of a report as large numbers."""

    report: Report


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a is better than b or within noise of it; `difference` is a − b on the same rows."""

    a: str
    b: str
    metric: str
    difference: Estimate


@dataclass(frozen=True, slots=True)
class LineChart:
    title: str
    series: Sequence[Series]
    x_label: str
    y_label: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class BarChart:
    """`from_zero=False` draws dots instead of bars, for scores that lie close together."""

    title: str
    bars: Sequence[Bar]
    from_zero: bool = True
    note: str = ""


@dataclass(frozen=True, slots=True)
class Confusion:
    """Counts [C][C]; rows are the true classes, columns the predicted ones."""

    title: str
    labels: Sequence[str]
    counts: Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Table:
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """Names and values: settings, sizes, times, versions."""

    title: str
    facts: Sequence[tuple[str, Cell]]


@dataclass(frozen=True, slots=True)
class Sample:
    """A text as it is; `prompt` is what the model was given before it, `facts` what is to be said about it."""

    text: str
    prompt: str = ""
    facts: Sequence[tuple[str, Cell]] = ()
    right: bool | None = None


@dataclass(frozen=True, slots=True)
class Samples:
    title: str
    samples: Sequence[Sample]
    note: str = ""


Section = (Heading | Prose | Scores | Verdict | LineChart | BarChart | Confusion | Table | Facts | Samples)


def html_page(title: str, sections: Sequence[Section]) -> str:
    """The whole file, in the user's language; texts in the other one are marked as such."""
    style = files("wenmo").joinpath("page.css").read_text(encoding="utf-8")
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("link", rel="icon", href="data:,"),
        element("title", title),
        element("style", style),
    )
    headings = [(f"part-{i}", one.text) for i, one in enumerate(sections) if isinstance(one, Heading)]
    links = [element("a", text, href=f"#{name}") for name, text in headings]
    header = element(
        "header",
        element("p", say("Wenmo 文模 · report", "文模 Wenmo · 报告"), class_="kicker"),
        _text("h1", title),
        *([element("nav", *links, aria_label=say("contents", "目录"))] if len(links) > 2 else []),
    )
    main = element("main", *(_section(one, f"part-{i}") for i, one in enumerate(sections)))
    page = element(
        "html", head, element("body", header, main, element("footer", element("p", _how_to_read()))), lang=language()
    )
    for node in (head, header, *main):
        node.tail = "\n"
    return "<!DOCTYPE html>\n" + tostring(page, encoding="unicode", method="html") + "\n"


def _how_to_read() -> str:
    return say(
        "Brackets are 95% intervals: how far the value would vary on other data of the same kind and amount. "
        "“Within noise” means that the interval of a difference holds zero. Another training seed varies the "
        "model too; that is not in the intervals.",
        "方括号为 95% 区间：换一批同类、同量的数据，数值大致在此范围内波动。“在噪声之内”指差值的区间包含零。"
        "更换训练种子也会改变模型，区间未计入这一部分。",
    )


def _section(section: Section, name: str) -> Element:
    match section:
        case Heading(text):
            return _text("h2", text, id=name)
        case Prose(text):
            return element("div", *(_text("p", one) for one in re.split(r"\n\s*\n", text.strip())), class_="prose")
        case Scores(report):
            return _scores(report)
        case Verdict(a, b, metric, difference):
            judgement, sentence = verdict(a, b, metric, difference)
            kind = "noise" if within_noise(difference) else "clear"
            return element("p", element("strong", judgement), " ", sentence, class_=f"verdict {kind}")
        case LineChart(title, series, x_label, y_label, note):
            drawn = [line_chart(title, series, x_label, y_label, width, height, f"{name}-{width}")
                     for width, height in ((WIDE, 340), (NARROW, 260))]
            return _figure(title, note, _legend(series), *_either(drawn))
        case BarChart(title, bars, from_zero, note):
            return _figure(title, note, *_either([bar_chart(title, bars, from_zero, width, f"{name}-{width}")
                                                  for width in (WIDE, NARROW)]))
        case Confusion(title, labels, counts):
            return _confusion(title, labels, counts)
        case Table(title, header, rows, note):
            return _table(title, header, rows, note)
        case Facts(title, facts):
            rows_ = [element("tr", _text("th", key, scope="row"), _cell(value)) for key, value in facts]
            return _scroll(element("table", _text("caption", title), element("tbody", *rows_), class_="facts"), title)
        case Samples(title, samples, note):
            return _samples(title, samples, note)


# Numbers ----------------------------------------------------------------------------------------------


def _scores(report: Report) -> Element:
    cards = []
    for name, estimate in report.metrics.items():
        value, low, high = estimate.texts()
        lower = element("small", say("lower is better", "越低越好")) if lower_is_better(name) else ""
        cards.append(element(
            "div",
            element("dt", metric_name(name), " ", lower),
            element("dd", element("b", value), " ",
                    element("span", f"[{low}, {high}]", title=say("95% interval", "95% 区间"))),
        ))
    line = (report.model, report.task, report.data, say(f"{report.n:,} rows", f"{report.n:,} 行"),
            say(f"seed {report.seed}", f"种子 {report.seed}"))
    remarks = [_text("p", remark, class_="source") for remark in report.remarks()]
    return element("div", element("dl", *cards), element("p", " · ".join(line), class_="source"), *remarks,
                   class_="scores")


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[Cell]], note: str) -> Element:
    numeric = [all(not isinstance(row[c], str) for row in rows) for c in range(len(header))]
    heads = [_text("th", text, scope="col", class_="number" if right else "word")
             for text, right in zip(header, numeric, strict=True)]
    lines = [element("tr", *(_cell(cell) for cell in row)) for row in rows]
    table = element("table", _text("caption", title), element("thead", element("tr", *heads)),
                    element("tbody", *lines))
    return _scroll(table, title, note)


def _cell(cell: Cell) -> Element:
    if isinstance(cell, Estimate):
        value, low, high = cell.texts()
        return element("td", value, " ", element("span", f"[{low}, {high}]", class_="interval"), class_="number")
    if isinstance(cell, str):
        return _text("td", cell, dir="auto")
    return element("td", _number(cell), class_="number")


def _number(cell: int | float | None) -> str:
    if cell is None:
        return "–"
    shown = f"{cell:,}" if isinstance(cell, int) else f"{cell:,.4g}" if abs(cell) < 1e4 else f"{cell:,.0f}"
    return shown.replace("-", "−")


def _confusion(title: str, labels: Sequence[str], counts: Sequence[Sequence[int]]) -> Element:
    totals = [max(sum(row), 1) for row in counts]
    if len(labels) > MOST_CLASSES:
        wrong = sorted(((counts[t][p], t, p) for t in range(len(labels)) for p in range(len(labels))
                        if t != p and counts[t][p]), key=lambda one: (-one[0], one[1:]))
        header = (say("true", "真实"), say("predicted", "预测"), say("rows", "行数"), say("share", "占真实类"))
        return _table(
            title, header,
            [(labels[t], labels[p], count, f"{count / totals[t]:.1%}") for count, t, p in wrong[:MOST_CLASSES]],
            say(f"The {MOST_CLASSES} largest confusions of {len(labels)} classes.",
                f"共 {len(labels)} 类，此处列出最大的 {MOST_CLASSES} 项混淆。"),
        )
    corner = element("td", say("true ↓ predicted →", "真实 ↓ 预测 →"), class_="corner")
    lines = [element("tr", corner, *(_text("th", label, scope="col") for label in labels))]
    for t, row in enumerate(counts):
        cells = []
        for p, count in enumerate(row):
            share = count / totals[t]
            kind = ("right" if t == p else "wrong") + (" deep" if share > 0.8 else "")
            cells.append(element("td", f"{count:,}", element("small", f"{share:.0%}"), class_=kind,
                                 style=f"--share:{share:.3f}"))
        lines.append(element("tr", _text("th", labels[t], scope="row"), *cells))
    table = element("table", _text("caption", title), element("tbody", *lines), class_="confusion")
    return _scroll(table, title, say("Percentages are of each true class (a row adds up to 100%).",
                                     "百分比按真实类别计算（每行合计 100%）。"))


# Texts ------------------------------------------------------------------------------------------------


def _samples(title: str, samples: Sequence[Sample], note: str) -> Element:
    items = []
    for sample in samples:
        prompt = [element("span", sample.prompt, class_="prompt")] if sample.prompt else []
        quote = element("p", *prompt, sample.text, class_="quote", dir="auto", **_lang(sample.prompt + sample.text))
        facts = [element("span", f"{key} ", element("b", *_inline(value))) for key, value in sample.facts]
        kind = {True: "right", False: "wrong", None: "plain"}[sample.right]
        items.append(element("li", quote, *([element("p", *facts, class_="about")] if facts else []), class_=kind))
    return element("section", _text("h3", title), *([_text("p", note, class_="note")] if note else []),
                   element("ul", *items), class_="samples")


def _inline(cell: Cell) -> list[str | Element]:
    return [cell] if isinstance(cell, str) else [str(cell) if isinstance(cell, Estimate) else _number(cell)]


def _legend(series: Sequence[Series]) -> Element:
    items = []
    for i, one in enumerate(series):
        swatch = element("svg", element("line", x1=0, y1=5, x2=22, y2=5, class_=f"line s{i % 6}"),
                         viewBox="0 0 22 10", width=22, height=10, aria_hidden="true")
        items.append(element("li", swatch, one.name))
    if any(one.smooth for one in series):
        hint = say("(faint: each measurement; strong: running mean)", "（浅色：逐次测量；深色：滑动平均）")
        items.append(element("li", hint, class_="hint"))
    return element("ul", *items, class_="legend")


def _figure(title: str, note: str, *content: Element) -> Element:
    caption = element("figcaption", _text("strong", title), *([_text("span", note)] if note else []))
    return element("figure", caption, *content)


def _either(drawn: Sequence[Element]) -> list[Element]:
    """The wide and the narrow drawing of a chart; the style sheet shows one."""
    return [element("div", svg, class_=kind) for svg, kind in zip(drawn, ("wide", "narrow"), strict=True)]


def _scroll(table: Element, title: str, note: str = "") -> Element:
    """A table that may be wider than the screen; it scrolls alone, by keyboard too."""
    box = element("div", table, class_="scroll", tabindex=0, role="region", aria_label=title)
    return element("section", box, *([_text("p", note, class_="note")] if note else []))


def _text(name: str, text: str, /, **attributes: object) -> Element:
    return element(name, text, **attributes, **_lang(text))


def _lang(text: str) -> dict[str, str]:
    """`lang` where a text is not in the page's language: read aloud, hyphenated and drawn rightly."""
    han, latin = len(re.findall(r"[\u3400-\u9fff\U00020000-\U0003ffff]", text)), len(re.findall(r"[A-Za-z]+", text))
    found = "zh" if han > latin else "en" if latin > han else language()
    return {} if found == language() else {"lang": found}
