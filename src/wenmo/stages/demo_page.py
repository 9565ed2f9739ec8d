"""The demo's report.html: what was learned, how well, and what it says, on one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wenmo.chart import Bar
from wenmo.errors import say
from wenmo.files import read_jsonl
from wenmo.metrics import Estimate
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
    Section,
    Verdict,
    html_page,
)
from wenmo.report import Report
from wenmo.stages.run_view import loss_series


def page(out: Path, summary: Mapping[str, Any], reviews: tuple[int, int, int], report: Report, baseline: Estimate,
         difference: Estimate, gpt: Report, own: Sequence[Mapping[str, Any]],
         samples: Sequence[tuple[str, str]]) -> str:
    """The whole file. `reviews`: rows read, different ones, copies with the other label."""
    ours, linear = say("small BERT", "小型 BERT"), say("TF-IDF + logistic regression", "TF-IDF + 逻辑回归")
    read, different, conflicting = reviews
    mistakes = [row for row in read_jsonl(out / "predictions.jsonl") if row["label"] != row["prediction"]]
    chat = summary["chat"]
    sections: list[Section] = [
        Prose(say(
            f"Made from nothing in {summary['seconds']:.0f} seconds on this machine's processor: a tokenizer, an "
            "encoder that reads Chinese, a classifier, and a small model that writes.",
            f"在本机处理器上用 {summary['seconds']:.0f} 秒从零做成：一个分词器、一个能读中文的编码器、一个分类器，"
            "以及一个会写字的小模型。")),
        Heading(say("Does it judge well?", "判断得准吗？")),
        Scores(report),
        Verdict(ours, linear, "accuracy", difference),
        BarChart(say("Accuracy on the same unseen reviews", "同样未见过的评论上的准确率"),
                 [Bar(ours, report.metrics["accuracy"]), Bar(linear, baseline, faint=True)], from_zero=False),
        Confusion(say("What it takes for what", "把什么判成了什么"), report.details["labels"],
                  report.details["confusion"]),
        Samples(say("Your sentences", "你的句子"), [
            Sample(row["text"], facts=[(row["label"], max(row["scores"].values()))]) for row in own]),
        Samples(say("Where it was wrong", "判错的例子"), [
            Sample(row["text"][:200], right=False, facts=[(say("label", "标签"), row["label"]),
                                                          (say("answer", "判断"), row["prediction"])])
            for row in mistakes[:4]],
            note=say(f"{len(mistakes)} of {report.n:,}", f"{report.n:,} 条中的 {len(mistakes)} 条")),
        Heading(say("How it learned", "它是怎样学会的")),
        _curve(out / "encoder", say("The encoder: guessing masked words", "编码器：猜被遮住的词")),
        _curve(out / "sentiment", say("The classifier: praise or complaint", "分类器：好评还是差评")),
        _curve(out / "gpt", say("The small GPT: guessing the next token", "小型 GPT：猜下一个词元")),
        Heading(say("What it writes", "它写些什么")),
        Samples(say("Continued by the small GPT", "小型 GPT 的续写"),
                [Sample(text, prompt=prompt) for prompt, text in samples],
                note=say(f"bits per character on unseen paragraphs: {gpt.metrics['bits_per_character']}",
                         f"未见过的段落上每字符比特数：{gpt.metrics['bits_per_character']}")),
        Heading(say("Served", "提供服务")),
        Prose(say(
            f"The classifier and {chat['model']} stood behind one server on this machine; OpenAI's own client asked "
            f"them, and the server stopped. All of it took {chat['seconds']:.0f} seconds.",
            f"分类器与 {chat['model']} 在本机同一个服务中运行，由 OpenAI 官方客户端提问，随后服务停止，"
            f"共用 {chat['seconds']:.0f} 秒。")),
        Samples(chat["model"], [Sample(chat["answer"], prompt=chat["question"] + "\n", facts=[
            (say("tokens a second", "每秒词元数"), chat["tokens_per_second"])])]),
        Heading(say("The first lesson", "第一课")),
        Prose(say(
            f"The file of reviews has {read:,} rows, and only {different:,} different ones. Whoever splits it before "
            "removing the copies finds most test rows in the training set, and the score is a lie. "
            f"{conflicting} of the copies even carry the other label.",
            f"评论文件有 {read:,} 行，互不相同的只有 {different:,} 条。先划分后去重，大部分测试数据会出现在训练集里，"
            f"分数就成了谎言。其中 {conflicting} 条副本的标签甚至相反。")),
        Facts(say("For whoever wants to check", "供核对"), [
            (say("test rows", "测试行数"), report.n), ("SHA-256", summary["sentiment"]["test_sha256"]),
            (say("predictions", "预测"), summary["sentiment"]["predictions"]),
            (say("seed of the split and the intervals", "划分与区间的种子"), report.seed)]),
    ]
    return html_page(say("From text to model", "从文本到模型"), sections)


def _curve(run: Path, title: str) -> LineChart:
    rows = read_jsonl(run / "metrics.jsonl")
    return LineChart(title, loss_series(rows), say("step", "步"), say("loss", "损失"))
