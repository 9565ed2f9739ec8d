"""What a notebook shows of a result: a piece of HTML that brings its own look and leaves the page's alone.

In: words, numbers, charts. Out: one `<div>` that needs no file beside it, with every text escaped (chart.py's `element`
is the only way in). Colours follow the notebook, light or dark. page.py makes whole pages of the same charts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from xml.etree.ElementTree import Element, tostring

from wenmo.chart import Series, element, line_chart
from wenmo.errors import language

_STYLE = """
.wenmo { max-width: 46rem; overflow-x: auto; color: inherit; font: 14px/1.6 system-ui, -apple-system, "Segoe UI",
  "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", sans-serif; font-variant-numeric: tabular-nums; }
.wenmo table { margin: 0 0 .5em; border-collapse: collapse; border: 0; font: inherit; color: inherit; }
.wenmo table tr { background: none; }
.wenmo caption { caption-side: top; padding: 0 0 .3em; color: inherit; text-align: left; font-weight: 600; }
.wenmo th, .wenmo td { padding: .15em 1.4em .15em 0; border: 0; background: none; text-align: left; vertical-align: top;
  font-weight: normal; white-space: normal; overflow-wrap: anywhere; }
.wenmo thead th { border-bottom: 1px solid; opacity: .65; white-space: nowrap; }
.wenmo tbody th { opacity: .65; white-space: nowrap; }
.wenmo .number { text-align: right; white-space: nowrap; }
.wenmo p { margin: 0 0 .5em; opacity: .65; }
.wenmo svg { display: block; max-width: 100%; height: auto; margin: .3em 0 .2em; overflow: visible; }
.wenmo svg text { fill: currentColor; font-size: 12px; }
.wenmo svg .tick, .wenmo svg .axis { opacity: .65; }
.wenmo svg .middle { text-anchor: middle; }
.wenmo svg .end { text-anchor: end; }
.wenmo svg .grid { stroke: currentColor; opacity: .15; }
.wenmo svg .mark { stroke: currentColor; opacity: .5; }
.wenmo svg .line { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round; }
.wenmo svg .faint { stroke-width: 1; opacity: .3; }
.wenmo svg .dot { fill: currentColor; }
.wenmo .s0 { color: #3b82b5; } .wenmo .s1 { color: #cf6a43; }
"""


def fragment(*parts: Element) -> str:
    """For `_repr_html_`."""
    return tostring(element("div", element("style", _STYLE), *parts, class_="wenmo", lang=language()),
                    encoding="unicode", method="html")


def facts(title: str, rows: Iterable[tuple[str, str]]) -> Element:
    """Names with their values."""
    lines = [element("tr", element("th", name, scope="row"), element("td", value, dir="auto")) for name, value in rows]
    return element("table", element("caption", title), element("tbody", *lines))


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> Element:
    """The first column holds words, the others numbers."""
    def kind(column: int) -> str:
        return "number" if column else "word"

    heads = [element("th", text, scope="col", class_=kind(i)) for i, text in enumerate(header)]
    lines = [element("tr", *(element("td", cell, class_=kind(i)) for i, cell in enumerate(row))) for row in rows]
    return element("table", element("caption", title), element("thead", element("tr", *heads)),
                   element("tbody", *lines))


def curve(title: str, series: Sequence[Series], x_label: str, y_label: str, name: str) -> list[Element]:
    """The lines of a run, with what each colour means; `name` is unique in the notebook."""
    key = []
    for i, one in enumerate(series):
        swatch = element("svg", element("line", x1=0, y1=5, x2=22, y2=5, class_=f"line s{i}"), viewBox="0 0 22 10",
                         width=22, height=10, aria_hidden="true", style="display: inline; margin: 0 .4em 0 0")
        key.append(element("span", swatch, one.name, style="margin-right: 1.4em"))
    return [element("div", *key), line_chart(title, series, x_label, y_label, 640, 260, name)]


def note(text: str) -> Element:
    return element("p", text)
