"""Charts: numbers become SVG that stands inside the page and takes its colours from the page's style sheet.

In: series of points, estimates. Out: `<svg>` elements with a title and a description in words for those who do not
see them. Every chart is drawn at a given width in CSS pixels, so that its letters keep their size; the page
holds a wide and a narrow one and shows what fits.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from wenmo.errors import say
from wenmo.metrics import Estimate

Point = tuple[float, float]
MAX_POINTS = 400  # of a line
_NOT_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def element(name: str, /, *children: Element | str, **attributes: object) -> Element:
    """A tag with its contents. Strings are text, never markup: the serialiser escapes them; what no page may
    hold (control characters, half surrogates) is shown as �. `class_` and `aria_label` are spelt as Python can."""
    node = Element(name, {k.rstrip("_").replace("_", "-"): clean(str(v)) for k, v in attributes.items()})
    for child in children:
        if isinstance(child, Element):
            node.append(child)
        elif len(node):
            node[-1].tail = (node[-1].tail or "") + clean(child)
        else:
            node.text = (node.text or "") + clean(child)
    return node


def clean(text: str) -> str:
    return _NOT_TEXT.sub("\ufffd", text)


# Lines ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Series:
    """Points in the order of x. `smooth` draws them faint, under their running mean: for the loss of each step."""

    name: str
    points: Sequence[Point]
    smooth: bool = False

    def drawn(self) -> list[Point]:
        """The points that can be drawn, or their running mean."""
        points = [(x, y) for x, y in self.points if math.isfinite(x) and math.isfinite(y)]
        return running_mean(points) if self.smooth else points


def running_mean(points: Sequence[Point]) -> list[Point]:
    """Each y becomes the mean over 1/25 of all points, those around it; towards both ends over fewer, evenly."""
    half = len(points) // 50
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    result = []
    for i, (x, _) in enumerate(points):
        reach = min(half, i, len(points) - 1 - i)
        result.append((x, (sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1)))
    return result


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most about MAX_POINTS: of each stretch the first, lowest, highest and last, so that no spike is lost."""
    if len(points) <= MAX_POINTS:
        return list(points)
    size = math.ceil(4 * len(points) / MAX_POINTS)
    kept = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        by_height = sorted(range(len(stretch)), key=lambda i: stretch[i][1])
        kept += [stretch[i] for i in sorted({0, by_height[0], by_height[-1], len(stretch) - 1})]
    return kept


def line_chart(
    title: str, series: Sequence[Series], x_label: str, y_label: str, width: int, height: int, name: str
) -> Element:
    """Axes from the data's own range; `name` is unique on the page."""
    drawn = [one.drawn() for one in series]
    raw = [[p for p in one.points if math.isfinite(p[0]) and math.isfinite(p[1])] for one in series]
    everything = [p for points in drawn for p in points]
    svg = _svg(title, describe_lines(series, x_label, y_label), width, height, name)
    if not everything:
        svg.append(element("text", say("no data", "没有数据"), class_="axis", x=width / 2, y=height / 2))
        return svg
    # Lines fit whole, the faint points of smooth ones but for the odd hundredth: a spike shall not flatten the rest.
    heights = sorted(p[1] for points in (*drawn, *(_within(points) for points in raw)) for p in points)
    x_ticks, x_low, x_high = axis(min(p[0] for p in everything), max(p[0] for p in everything),
                                  6 if width > 500 else 3, snug=True)
    y_ticks, y_low, y_high = axis(heights[0], heights[-1], 5)
    left = 10 + 7 * max(len(text) for _, text in y_ticks)
    right, top, bottom = width - 14, 26, height - 42

    def at(x: float, y: float) -> Point:
        y = min(max(y, y_low), y_high)
        return (left + (x - x_low) / (x_high - x_low) * (right - left),
                bottom - (y - y_low) / (y_high - y_low) * (bottom - top))

    svg.append(element("text", y_label, class_="axis", x=0, y=12))
    for y, text in y_ticks:
        _, v = at(x_low, y)
        svg.append(_line(left, v, right, v, "grid"))
        svg.append(element("text", text, class_="tick end", x=left - 8, y=_px(v + 4)))
    for x, text in x_ticks:
        h, _ = at(x, y_low)
        svg.append(_line(h, bottom, h, bottom + 4, "mark"))
        anchor = " end" if h > right - 20 else " middle"
        svg.append(element("text", text, class_="tick" + anchor, x=_px(min(h, right)), y=bottom + 18))
    svg.append(_line(left, bottom, right, bottom, "mark"))
    svg.append(element("text", x_label, class_="axis end", x=right, y=height - 4))
    for i, one in enumerate(series):
        if one.smooth:
            svg.append(element("path", d=_path([at(*p) for p in thinned(raw[i])]), class_=f"line faint s{i % 6}"))
    for i, points in enumerate(drawn):
        if len(points) > 1:
            svg.append(element("path", d=_path([at(*p) for p in thinned(points)]), class_=f"line s{i % 6}"))
        if len(points) <= 30:
            for x, y in points:
                h, v = at(x, y)
                tip = element("title", f"{series[i].name}: {number(y)} ({x_label} {number(x)})")
                svg.append(element("circle", tip, cx=_px(h), cy=_px(v), r=3, class_=f"dot s{i % 6}"))
    return svg


def _within(points: Sequence[Point]) -> list[Point]:
    """Without the highest and lowest hundredth."""
    cut = len(points) // 100
    return sorted(points, key=lambda p: p[1])[cut : len(points) - cut]


def describe_lines(series: Sequence[Series], x_label: str, y_label: str) -> str:
    """What the lines show, in words."""
    parts = []
    for one in series:
        points = one.drawn()
        if not points:
            continue
        (x0, y0), (x1, y1), (xl, yl) = points[0], points[-1], min(points, key=lambda p: p[1])
        parts.append(say(
            f"{one.name}: {y_label} from {number(y0)} at {x_label} {number(x0)} to {number(y1)} at {number(x1)}, "
            f"lowest {number(yl)} at {number(xl)}.",
            f"{one.name}：{y_label}由 {number(y0)}（{x_label} {number(x0)}）到 {number(y1)}（{number(x1)}），"
            f"最低 {number(yl)}（{number(xl)}）。",
        ))
    return " ".join(parts) or say("no data", "没有数据")


# Bars -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bar:
    """`faint` is for what is only there to compare with."""

    label: str
    estimate: Estimate
    faint: bool = False


def bar_chart(title: str, bars: Sequence[Bar], from_zero: bool, width: int, name: str) -> Element:
    """One row a bar: label and numbers above, bar and interval below. Away from zero a bar's length would lie;
    then only the value and its interval are drawn, as a dot on a line."""
    step, top = 46, 8
    height = top + step * len(bars) + 30
    svg = _svg(title, " ".join(f"{bar.label}: {bar.estimate}." for bar in bars), width, height, name)
    ends = [end for bar in bars for end in (bar.estimate.value, bar.estimate.low, bar.estimate.high)
            if math.isfinite(end)]
    low, high = min(ends, default=0), max(ends, default=1)
    ticks, low, high = axis(min(0, low), max(0, high), 5) if from_zero else axis(low, high, 5 if width > 500 else 3)
    left, right, bottom = 1, width - 1, top + step * len(bars)

    def at(x: float) -> float:
        return left + (min(max(x, low), high) - low) / (high - low) * (right - left)

    for x, text in ticks:
        svg.append(_line(at(x), top, at(x), bottom, "grid"))
        anchor = "" if at(x) < left + 12 else " end" if at(x) > right - 12 else " middle"
        svg.append(element("text", text, class_="tick" + anchor, x=_px(at(x)), y=bottom + 18))
    for i, bar in enumerate(bars):
        y, estimate = top + step * i, bar.estimate
        numbers, tone = str(estimate), "plain" if bar.faint else "s0"
        room = right - left - 7.5 * len(numbers) - 16
        svg.append(element("text", cut(bar.label, room), element("title", bar.label), class_="label", x=left, y=y + 14))
        svg.append(element("text", numbers, class_="figure end", x=right, y=y + 14))
        middle, start, end = y + 28, at(estimate.low), at(estimate.high)
        if from_zero:
            a, b = sorted((at(0), at(estimate.value)))
            svg.append(element("rect", x=_px(a), y=middle - 6, width=_px(b - a), height=12, rx=2, class_=f"bar {tone}"))
        svg.append(_line(start, middle, end, middle, "whisker"))
        for x, known in ((start, estimate.low), (end, estimate.high)):
            if math.isfinite(known):
                svg.append(_line(x, middle - 4, x, middle + 4, "whisker"))
        if not from_zero:
            svg.append(element("circle", cx=_px(at(estimate.value)), cy=middle, r=5, class_=f"dot {tone}"))
    return svg


# Parts ------------------------------------------------------------------------------------------------


def axis(low: float, high: float, wanted: int, snug: bool = False) -> tuple[list[tuple[float, str]], float, float]:
    """About `wanted` round ticks (1, 2 or 5 × 10ⁿ apart) with their texts, and the axis' ends: the outer ticks, or
    where `snug` the data's own ends."""
    if high <= low:
        reach = abs(low) / 2 or 1.0
        low, high = low - reach, high + reach
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = (
        (math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)) if snug
        else (math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9))
    )
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    ticks = [(i * step, f"{i * step:,.{decimals}f}".replace("-", "−")) for i in range(first, last + 1)]
    return (ticks, low, high) if snug else (ticks, first * step, last * step)


def number(value: float) -> str:
    """Four significant digits, thousands set apart."""
    if abs(value) >= 1e15 or 0 < abs(value) < 1e-4:
        return f"{value:.3g}".replace("-", "−")
    decimals = 0 if float(value).is_integer() else max(0, 3 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}".replace("-", "−")


def cut(text: str, room: float) -> str:
    """`text` as far as it fits into `room` pixels of the 13-pixel label font; wide characters take twice as much."""
    used = 0.0
    for i, character in enumerate(text):
        used += 13.5 if unicodedata.east_asian_width(character) in "WF" else 7.5
        if used > room:
            return text[: max(i - 1, 1)] + "…"
    return text


def _svg(title: str, description: str, width: int, height: int, name: str) -> Element:
    return element(
        "svg", element("title", title, id=f"{name}-title"), element("desc", description, id=f"{name}-desc"),
        viewBox=f"0 0 {width} {height}", width=width, height=height, role="img",
        aria_labelledby=f"{name}-title", aria_describedby=f"{name}-desc",
    )


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Element:
    return element("line", x1=_px(x1), y1=_px(y1), x2=_px(x2), y2=_px(y2), class_=kind)


def _path(points: Sequence[Point]) -> str:
    return "M" + "L".join(f"{_px(x)},{_px(y)}" for x, y in points)


def _px(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
