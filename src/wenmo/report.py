"""The measured result: what was asked of which model, on what, how many, and how sure the answer is.

In: Estimates from `metrics`. Out: a JSON object, a table for the terminal, and (through `page`) report.html.
No score leaves the house in another way, so that none leaves without n, seed and interval.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from wenmo.errors import say
from wenmo.metrics import Estimate, lower_is_better, within_noise
from wenmo.notebook import fragment, note, table


@dataclass(frozen=True, slots=True)
class Report:
    """One model's `metrics` on `n` rows of `data`; `seed` is that of the intervals.

    `details` is what else was seen on the way (confusion matrix, scores per class); Estimates may stand in it.
    """

    model: str
    task: str
    data: str
    n: int
    seed: int
    metrics: Mapping[str, Estimate]
    details: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: {"model", "task", "data", "n", "seed", "metrics": {name: {"value", "low", "high"}}}, and
        "details" where there are any."""
        result = {
            "model": self.model,
            "task": self.task,
            "data": self.data,
            "n": self.n,
            "seed": self.seed,
            "metrics": _plain(self.metrics),
        }
        return result | ({"details": _plain(self.details)} if self.details else {})

    def table(self) -> Table:
        """For the terminal; below the metrics, the F1 of each class with its number of rows."""
        table = Table(
            title=Text(f"{self.model} · {self.task} · {self.data}"),
            caption=Text(say(f"{self.n:,} rows, seed {self.seed}; brackets are 95% intervals",
                             f"{self.n:,} 行，种子 {self.seed}；方括号为 95% 区间")),
            box=SIMPLE_HEAD,
        )
        table.add_column(say("metric", "指标"))
        for heading in (say("value", "数值"), say("95% interval", "95% 区间"), say("rows", "行数")):
            table.add_column(heading, justify="right", no_wrap=True)
        for name, estimate in self.metrics.items():
            value, low, high = estimate.texts()
            arrow = " ↓" if lower_is_better(name) else ""
            table.add_row(Text(metric_name(name) + arrow), Text(value, "bold"), Text(f"[{low}, {high}]"), f"{self.n:,}")
        table.add_section()
        for row in self.details.get("per_class", ()):
            value, low, high = row["f1"].texts()
            table.add_row(Text(f"F1 · {row['label']}"), value, Text(f"[{low}, {high}]"), f"{row['support']:,}")
        return table


    def _repr_html_(self) -> str:
        """In a notebook: the table of the terminal."""
        rows = []
        for name, estimate in self.metrics.items():
            value, low, high = estimate.texts()
            rows.append((metric_name(name) + (" ↓" if lower_is_better(name) else ""), value, f"[{low}, {high}]",
                         f"{self.n:,}"))
        for row in self.details.get("per_class", ()):
            value, low, high = row["f1"].texts()
            rows.append((f"F1 · {row['label']}", value, f"[{low}, {high}]", f"{row['support']:,}"))
        header = (say("metric", "指标"), say("value", "数值"), say("95% interval", "95% 区间"), say("rows", "行数"))
        return fragment(table(f"{self.model} · {self.task} · {self.data}", header, rows),
                        note(say(f"{self.n:,} rows, seed {self.seed}", f"{self.n:,} 行，种子 {self.seed}")))


def _plain(value: Any) -> Any:
    if isinstance(value, Estimate):
        return value.as_dict()
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


# Said aloud -------------------------------------------------------------------------------------------

def metric_name(name: str) -> str:
    """What people call a metric; a name that is not known here is its own."""
    return {
        "accuracy": say("accuracy", "准确率"),
        "baseline_accuracy": say("accuracy of the baseline", "基线的准确率"),
        "baseline_bits_per_character": say("bits per character of the baseline", "基线的每字符比特数"),
        "difference": say("difference", "差值"),
        "masked_accuracy": say("masked accuracy", "遮盖词准确率"),
        "macro_f1": say("macro F1", "宏平均 F1"),
        "ece": say("calibration error", "校准误差"),
        "mae": say("mean absolute error", "平均绝对误差"),
        "loss": say("loss", "损失"),
        "perplexity": say("perplexity", "困惑度"),
        "bits_per_byte": say("bits per byte", "每字节比特数"),
        "bits_per_character": say("bits per character", "每字符比特数"),
    }.get(name, name)


def verdict(a: str, b: str, metric: str, difference: Estimate) -> tuple[str, str]:
    """The judgement on a − b in two words, and the sentence: who is ahead and by how much."""
    name = metric_name(metric)
    if within_noise(difference):
        return say("within noise", "在噪声之内"), say(
            f"{a} and {b} cannot be told apart here: {name} differs by {difference}, and the interval holds zero.",
            f"{a} 与 {b} 在此难分高下：{name}相差 {difference}，区间包含零。",
        )
    better = (difference.value > 0) != lower_is_better(metric)
    return say("beyond noise", "超出噪声"), say(
        f"{a} is {'better' if better else 'worse'} than {b}: {name} differs by {difference}.",
        f"{a} {'优于' if better else '逊于'} {b}：{name}相差 {difference}。",
    )
