"""Plots for docs/performance.md: files of SVG that need no style sheet beside them (src/wenmo/chart.py draws them).

In: what a part found, {"name", "title", "x", "y", "series": {side: [[x, y], …]}, "smooth"}. Out: one file each, lines
in six colours over white, their names above them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from wenmo.chart import Series, element, line_chart

WIDTH, HEIGHT, LINE = 720, 340, 20
COLOURS = ("#0b63ce", "#c2410c", "#15803d", "#7e22ce", "#a16207", "#475569")
STYLE = "".join((
    "text{font:13px sans-serif;fill:#333}.name{font-size:15px;font-weight:600}.end{text-anchor:end}",
    ".middle{text-anchor:middle}.grid{stroke:#ddd}.mark{stroke:#888}.line{fill:none;stroke-width:2}.faint{opacity:.25}",
    *(f".line.s{number}{{stroke:{colour}}}.dot.s{number}{{fill:{colour}}}" for number, colour in enumerate(COLOURS))))


def plot(name: str, title: str, x: str, y: str, series: Mapping[str, list[list[float]]], smooth: bool = False,
         ) -> dict[str, Any]:
    """What `rounds.write` takes under "plots". `smooth`: the running mean is drawn over faint points."""
    return {"name": name, "title": title, "x": x, "y": y, "series": dict(series), "smooth": smooth}


def draw(found: Mapping[str, Any]) -> str:
    series = [Series(name, [(x, y) for x, y in points], found["smooth"]) for name, points in found["series"].items()]
    top = 2 * LINE + LINE * len(series)
    chart = line_chart(found["title"], series, found["x"], found["y"], WIDTH, HEIGHT, found["name"])
    chart.set("y", str(top))
    legend = [element("g", element("path", d=f"M0,{LINE * row}h24", class_=f"line s{row % len(COLOURS)}"),
                      element("text", one.name, x=32, y=LINE * row + 4)) for row, one in enumerate(series)]
    svg = element("svg", element("style", STYLE), element("rect", width="100%", height="100%", fill="#fff"),
                  element("text", found["title"], class_="name", x=0, y=LINE),
                  element("g", *legend, transform=f"translate(0 {2 * LINE})"), chart,
                  xmlns="http://www.w3.org/2000/svg", viewBox=f"-12 0 {WIDTH + 24} {top + HEIGHT + 8}", role="img")
    return ElementTree.tostring(svg, encoding="unicode") + "\n"


def write(found: Mapping[str, Any], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{found['name']}.svg"
    path.write_text(draw(found), encoding="utf-8")
    return path
