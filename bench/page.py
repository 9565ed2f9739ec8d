"""bench/out/*.json → docs/performance.md. Nothing is measured here: `python -m bench.page`."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

from bench import PARTS, plot
from bench.rounds import OUT

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
PLOTS = "plots"  # a folder beside the page
HEAD = """\
# Performance beside peers 与同类软件的性能比较

Written by `make bench` ([bench/page.py](../bench/page.py)) from what it measured, not by hand. Machines are noisy, and
differ: **only the ratio inside one run counts**. The sides of a table ran in alternating rounds on one machine; each
figure is a median; a ratio is taken round by round: its median, and from the lowest to the highest round (perplexity:
the 95% interval over windows). Every peer has a virtual environment of its own with pinned versions
([bench/peers](../bench/peers)) and, unless a row says otherwise, the threads and the allocator settings of Wenmo.

本页由 `make bench` 根据测量结果自动写成。机器有波动，且各不相同：**只有同一次运行之内的比值有意义。**
同一表中各方在同一台机器上交替运行；数值为中位数，比值逐轮计算，给出中位数与最低、最高值（困惑度为各窗口的
95% 区间）。每个对照软件都有各自的虚拟环境与固定版本。
"""
MEANING = """\
How to read it: *ratio* is Wenmo's figure ÷ the peer's; for seconds it is how many times faster Wenmo is. ✓ the goal is
reached, ✗ it is missed; a row without a goal is there for comparison. – there is no figure; the last column says why.

读法：*ratio* 为文模的数值除以对方的数值；以秒计的项目则为快多少倍。✓ 达到目标，✗ 未达到；
没有目标的行仅供比较；– 表示没有数值，原因见最后一列。
"""
COLUMNS = "| work | goal | Wenmo | peer | its figure | ratio (low–high) | reached | note |"


def page(parts: list[dict[str, Any]]) -> str:
    """The whole page, of the parts that were measured."""
    machines = {json.dumps(part["machine"], sort_keys=True): part["machine"] for part in parts}
    about = "\n".join("Machine 机器: " + _machine(machine) for machine in machines.values()) + "\n"
    return "\n".join([HEAD, about, _summary(parts), MEANING, *map(_section, parts)])


def _machine(found: dict[str, Any]) -> str:
    return (f"{found['processor']}, {found['cores']} cores, {found['memory_bytes'] / 2**30:.0f} GiB; "
            f"{', '.join(found['units']) or 'no vector units beyond the usual'}; Python {found['python']}.")


def _summary(parts: list[dict[str, Any]]) -> str:
    lines = ["| part 部分 | goals reached 达到的目标 | measured 测量日期 |", "|---|---|---|"]
    for part in parts:
        judged = [row["reached"] for row in part["rows"] if row["reached"] is not None]
        count = f"{sum(judged)} of {len(judged)}" if judged else "–"
        lines.append(f"| {part['title']} {part.get('title_zh', '')} | {count} | {part['when']} |")
    return "\n".join(lines) + "\n"


def _section(part: dict[str, Any]) -> str:
    about = [textwrap.fill(" ".join(sentence.split()), 120) + "\n" for sentence in part.get("about", [])]
    lines = [f"## {part['title']} {part.get('title_zh', '')}".rstrip(), "", *about, COLUMNS,
             "|---" * (COLUMNS.count("|") - 1) + "|", *map(_row, part["rows"]), "",
             *(f"![{each['title']}]({PLOTS}/{each['name']}.svg)\n" for each in part.get("plots", []))]
    versions = ", ".join(f"{name} {version}" for name, version in part.get("versions", {}).items())
    facts = (f"`python -m bench.{part['part']}`", f"threads: {part.get('threads', '–')}", versions)
    lines.append(" · ".join(filter(None, facts)) + "\n")
    return "\n".join(lines)


def _row(row: dict[str, Any]) -> str:
    unit = f" {row['unit']}" if row["unit"] else ""
    ratio = row["ratio"]
    cells = [row["work"], row["goal"], _figure(row["ours"]) + unit, row["peer"],
             "–" if row["theirs"] is None else _figure(row["theirs"]) + unit,
             "–" if ratio is None else f"{_ratio(ratio['median'])} × ({_ratio(ratio['low'])}–{_ratio(ratio['high'])})",
             {True: "✓", False: "✗", None: ""}[row["reached"]], row["note"]]
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _figure(value: float | str) -> str:
    """Three digits that mean something."""
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _ratio(value: float) -> str:
    return f"{value:.2f}" if abs(value - 1) >= 0.02 else f"{value:.4f}"


def write() -> None:
    found = [OUT / f"{name}.json" for name in PARTS]
    parts = [json.loads(path.read_text(encoding="utf-8")) for path in found if path.exists()]
    for part in parts:
        for each in part.get("plots", []):
            plot.write(each, PAGE.parent / PLOTS)
    PAGE.write_text(page(parts), encoding="utf-8")


if __name__ == "__main__":
    write()
