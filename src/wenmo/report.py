"""The measured result: what was asked of which model, on what, how many, and how sure the answer is.

In: Estimates from `metrics`. Out: a JSON object, a table for the terminal, and (through `page`) report.html.
No score leaves the house in another way, so that none leaves without n, seed and interval.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
            caption=Text("\n".join([say(f"{self.n:,} rows, seed {self.seed}; brackets are 95% intervals",
                                        f"{self.n:,} 行，种子 {self.seed}；方括号为 95% 区间"), *self.remarks(),
                                    *self._how()])),
            box=SIMPLE_HEAD,
        )
        table.add_column(say("metric", "指标"))
        for heading in (say("value", "数值"), say("95% interval", "95% 区间"), say("rows", "行数")):
            table.add_column(heading, justify="right", no_wrap=True)
        for name, estimate in self.metrics.items():
            value, low, high = estimate.texts()
            arrow = " ↓" if lower_is_better(name) else ""
            table.add_row(Text(metric_name(name) + arrow), Text(value, "bold"), Text(f"[{low}, {high}]"),
                          f"{self._rows_of(name):,}")
        table.add_section()
        for label, row in self._classes():
            value, low, high = row["f1"].texts()
            table.add_row(Text(f"F1 · {label}"), value, Text(f"[{low}, {high}]"), f"{row['support']:,}")
        return table

    def remarks(self) -> Iterator[str]:
        """What the scores do not tell: rows that were left out, not read to their end, put right, or not answered."""
        for part in self._parts():
            yield from _remarks(self.details[part] if part else self.details)

    def _how(self) -> Iterator[str]:
        """By which rules texts were compared, where they were."""
        rules = dict(self.details.get("signatures", {}))
        if "similarity_model" in self.details:
            rules[say("similarity", "相似度")] = str(self.details["similarity_model"])
        if "rules" in self.details:
            rules[say("answers", "答案")] = say(f"by the rules of {self.details['rules']}",
                                              f"按 {self.details['rules']} 的规则")
        return (f"{name}: {rule}" for name, rule in rules.items())

    def _parts(self) -> list[str]:
        """The names of the tasks, where the model has several; "" stands for the whole."""
        return ["", *(name for name, each in self.details.items() if isinstance(each, Mapping) and "n" in each)]

    def _rows_of(self, metric: str) -> int:
        """Of several tasks each has rows of its own."""
        part = self.details.get(metric.partition(".")[0])
        return int(part["n"]) if isinstance(part, Mapping) and "n" in part else self.n

    def _classes(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """(label, its scores) of every class, with the name of the task before it where there are several."""
        for part in self._parts():
            for row in (self.details[part] if part else self.details).get("per_class", ()):
                yield f"{part} · {row['label']}" if part else str(row["label"]), row

    def _repr_html_(self) -> str:
        """In a notebook: the table of the terminal."""
        rows = []
        for name, estimate in self.metrics.items():
            value, low, high = estimate.texts()
            rows.append((metric_name(name) + (" ↓" if lower_is_better(name) else ""), value, f"[{low}, {high}]",
                         f"{self._rows_of(name):,}"))
        for label, row in self._classes():
            value, low, high = row["f1"].texts()
            rows.append((f"F1 · {label}", value, f"[{low}, {high}]", f"{row['support']:,}"))
        header = (say("metric", "指标"), say("value", "数值"), say("95% interval", "95% 区间"), say("rows", "行数"))
        return fragment(table(f"{self.model} · {self.task} · {self.data}", header, rows),
                        note("\n".join([say(f"{self.n:,} rows, seed {self.seed}", f"{self.n:,} 行，种子 {self.seed}"),
                                        *self.remarks(), *self._how()])))


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two reports on the same rows, and `differences`: metric → a − b with the interval of the paired bootstrap."""

    a: Report
    b: Report
    differences: Mapping[str, Estimate]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: {"models", "task", "data", "n", "seed", "metrics": {name: {"a", "b", "difference",
        "within_noise"}}}; the last two where the task can compare the metric row by row."""
        metrics: dict[str, Any] = {}
        for name, estimate in self.a.metrics.items():
            if name in self.b.metrics:
                metrics[name] = {"a": estimate.as_dict(), "b": self.b.metrics[name].as_dict()}
                if name in self.differences:
                    found = self.differences[name]
                    metrics[name] |= {"difference": found.as_dict(), "within_noise": within_noise(found)}
        return {"models": [self.a.model, self.b.model], "task": self.a.task, "data": self.a.data, "n": self.a.n,
                "seed": self.a.seed, "metrics": metrics}

    def table(self) -> Table:
        """For the terminal: a line for each metric, and whether the models can be told apart by it."""
        table = Table(
            title=Text(f"{self.a.task} · {self.a.data}"),
            caption=Text(f"A: {self.a.model}\nB: {self.b.model}\n" + say(
                f"{self.a.n:,} rows, seed {self.a.seed}; brackets are 95% intervals by paired bootstrap",
                f"{self.a.n:,} 行，种子 {self.a.seed}；方括号为配对自助法的 95% 区间")
                + "".join(f"\n{name}: {remark}" for name, each in (("A", self.a), ("B", self.b))
                          for remark in each.remarks())), box=SIMPLE_HEAD)
        table.add_column(say("metric", "指标"))
        for heading in ("A", "B", "A − B", ""):
            table.add_column(heading, justify="right", no_wrap=True)
        for name, estimate in self.a.metrics.items():
            if name not in self.b.metrics:
                continue
            found = self.differences.get(name)
            told = ("", "") if found is None else (str(found), verdict("A", "B", name, found)[0])
            arrow = " ↓" if lower_is_better(name) else ""
            table.add_row(Text(metric_name(name) + arrow), estimate.texts()[0], self.b.metrics[name].texts()[0],
                          Text(told[0], "bold"), told[1])
        return table

    def sentences(self) -> list[str]:
        """Who is ahead in each metric, or that it is within noise."""
        return [verdict(self.a.model, self.b.model, name, found)[1] for name, found in self.differences.items()]


def _remarks(details: Mapping[str, Any]) -> Iterator[str]:
    cut, repaired, empty = (details.get(name) for name in ("truncated", "repaired", "empty_outputs"))
    for reason, count in details.get("skipped", {}).items():
        yield say(f"{count:,} rows left out: {reason}", f"略去 {count:,} 行：{reason}")
    if cut:
        yield say(f"{cut['rows']:,} rows were too long: {cut['tokens']:,} tokens were not read",
                  f"{cut['rows']:,} 行过长：有 {cut['tokens']:,} 个词元未读入")
    if repaired:
        yield say(f"{repaired['tags']:,} tags in {repaired['rows']:,} rows broke the rules of their scheme, and were "
                  "read as they are meant",
                  f"{repaired['rows']:,} 行中有 {repaired['tags']:,} 个标签不合方案，按其本意读取")
    if empty:
        yield say(f"{empty:,} outputs are empty", f"{empty:,} 个输出为空")


def _plain(value: Any) -> Any:
    if isinstance(value, Estimate):
        return value.as_dict()
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


# Said aloud -------------------------------------------------------------------------------------------

def metric_name(name: str) -> str:
    """What people call a metric; a name that is not known here is its own. `intent.accuracy` is that of a task among
    several."""
    part, _, own = name.rpartition(".")
    if part:
        return f"{part} · {metric_name(own)}"
    of_texts = {"bleu": "BLEU", "chrf": "chrF", "rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}
    return {
        "accuracy": say("accuracy", "准确率"),
        **of_texts,
        **{f"copy_{name}": say(f"{shown} of the source", f"照抄原文的 {shown}") for name, shown in of_texts.items()},
        **{f"lead_{name}": say(f"{shown} of its first sentence", f"原文首句的 {shown}")
           for name, shown in of_texts.items()},
        "similarity_precision": say("similarity: precision", "相似度：精确率"),
        "similarity_recall": say("similarity: recall", "相似度：召回率"),
        "similarity_f": say("similarity: F", "相似度：F 值"),
        "spearman": say("Spearman's ρ", "Spearman ρ"),
        "pearson": say("Pearson's r", "Pearson r"),
        "baseline_spearman": say("Spearman's ρ of the baseline", "基线的 Spearman ρ"),
        "average_precision": say("average precision", "平均精确率"),
        "roc_auc": say("area under the ROC curve", "ROC 曲线下面积"),
        "mrr": say("mean reciprocal rank", "平均倒数排名"),
        "recall_at_1": say("found first", "首位命中率"),
        "exact_match": say("exact match", "完全匹配率"),
        "answerable_f1": say("F1 where there is an answer", "有答案问题的 F1"),
        "no_answer_accuracy": say("accuracy where there is none", "无答案问题的准确率"),
        "overlap_exact_match": say("exact match of the sentence with most common n-grams", "n 元重叠句的完全匹配率"),
        "overlap_f1": say("F1 of the sentence with most common n-grams", "n 元重叠句的 F1"),
        "bm25_exact_match": say("exact match of the BM25 sentence", "BM25 句的完全匹配率"),
        "bm25_f1": say("F1 of the BM25 sentence", "BM25 句的 F1"),
        "baseline_accuracy": say("accuracy of the baseline", "基线的准确率"),
        "baseline_bits_per_character": say("bits per character of the baseline", "基线的每字符比特数"),
        "difference": say("difference", "差值"),
        "masked_accuracy": say("masked accuracy", "遮盖词准确率"),
        "target_accuracy": say("right tokens of targets", "目标词元准确率"),
        "macro_f1": say("macro F1", "宏平均 F1"),
        "micro_f1": say("F1 over all labels", "微平均 F1"),
        "lrap": say("label ranking: average precision", "标签排序平均精确率"),
        "subset_accuracy": say("rows with exactly their labels", "标签完全一致率"),
        "rmse": say("root of the mean squared error", "均方根误差"),
        "precision": say("precision", "精确率"), "recall": say("recall", "召回率"), "f1": "F1",
        "token_accuracy": say("right tags", "标签准确率"),
        "exact": say("rows all right", "整行全对率"),
        "baseline_f1": say("F1 of the baseline", "基线的 F1"),
        "baseline_token_accuracy": say("right tags of the baseline", "基线的标签准确率"),
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
