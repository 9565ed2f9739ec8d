"""`wenmo plan`: before a training starts: is it right, what will it cost, which model should it be?

The recipe is prepared as for training, in a folder that is thrown away. First a few real steps, an evaluation and a
save are measured, while the process has held nothing but what training would; then the self-tests look at the model as
it would begin. Nothing is kept but what is printed.
"""

from __future__ import annotations

import logging
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from wenmo import device as machine
from wenmo.data.loader import Loader
from wenmo.errors import say
from wenmo.modeldir import Opened
from wenmo.models import CustomHeads
from wenmo.plan import Check, self_tests, subject_of
from wenmo.plan.advice import Advice, Given, advice, fitting_tokens, given_machine
from wenmo.plan.forecast import Forecast, Setup, bytes_in, forecast
from wenmo.plan.preview import Shown, preview
from wenmo.plan.suggest import Asked, Suggestion, suggest
from wenmo.recipe import FromModel, Recipe, texts_in
from wenmo.stages import prepare
from wenmo.tasks import CustomTasks, Task, cards_of
from wenmo.text.languages import SAMPLE_TEXTS, language_shares
from wenmo.training import optimizer
from wenmo.training.average import Average
from wenmo.training.regularisers import regularised
from wenmo.training.schedule import Rates

_log = logging.getLogger(__name__)
MARKS = {"pass": ("✓", "green"), "fail": ("✗", "bold red"), "skip": ("–", "dim")}
SHOWN_CHARACTERS = 400


@dataclass(frozen=True)
class Planned:
    """`runs`: how many such runs the recipe asks for (folds); `fits_tokens`: the largest micro-batch for the memory."""

    checks: list[Check]
    shown: list[Shown]
    forecast: Forecast
    advice: list[Advice]
    fits_tokens: int
    runs: int

    @property
    def passed(self) -> bool:
        return all(check.status != "fail" for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        return {"passed": self.passed, "tests": [check.as_dict() for check in self.checks],
                "preview": [shown.as_dict() for shown in self.shown],
                "forecast": {**self.forecast.as_dict(), "fits_micro_batch_tokens": self.fits_tokens, "runs": self.runs},
                "advice": [each.as_dict() for each in self.advice]}

    def renderable(self) -> RenderableType:
        parts: list[RenderableType] = [Text(say("Self-tests", "自检"), "bold"), *map(_line, self.checks), Text(""),
                                       Text(say("What is learned ⟦so⟧", "所学的部分标为⟦如此⟧"), "bold"),
                                       *map(_shown, self.shown), Text(""), Text(say("Forecast", "预测"), "bold")]
        table = Table(show_header=False, box=None)
        for name, value in self._facts():
            table.add_row(Text(name), Text(value))
        parts.append(table)
        if self.advice:
            parts += [Text(""), Text(say("Suggestions", "建议"), "bold")]
            parts += [Text.assemble("  ", (each.override, "cyan"), f"  {each.why}") for each in self.advice]
        return Group(*parts)

    def _facts(self) -> list[tuple[str, str]]:
        found = self.forecast
        runs = say(f", for each of {self.runs} runs", f"，共 {self.runs} 次训练，每次如此") if self.runs > 1 else ""
        return [
            (say("time", "时间"), f"{duration(found.seconds)} ({duration(found.low)} – {duration(found.high)}){runs}"),
            ("", say(f"start {duration(found.start_seconds)}, steps {duration(found.steps * found.step_seconds)}, "
                     f"evaluations {duration(found.evaluation_seconds)}, saving {duration(found.saving_seconds)}",
                     f"准备 {duration(found.start_seconds)}，训练 {duration(found.steps * found.step_seconds)}，"
                     f"验证 {duration(found.evaluation_seconds)}，保存 {duration(found.saving_seconds)}")),
            (say("steps", "步数"), say(f"{found.steps:,}, {found.epochs:.3g} epochs, {found.tokens:,} tokens",
                                     f"{found.steps:,} 步，{found.epochs:.3g} 个周期，{found.tokens:,} 个词元")),
            (say("speed", "速度"), say(
                f"{found.tokens_per_second:,.0f} tokens/s ({found.measured_steps} steps measured)",
                f"{found.tokens_per_second:,.0f} 词元/秒（实测 {found.measured_steps} 步）")),
            (say("peak memory", "内存峰值"), say(
                f"{size(found.peak_memory_bytes)} of {size(machine.memory_bytes())}; micro-batches of up to "
                f"{self.fits_tokens:,} tokens fit, these have {found.micro_batch_tokens:,}",
                f"{size(found.peak_memory_bytes)}，本机共 {size(machine.memory_bytes())}；微批最多可有 "
                f"{self.fits_tokens:,} 个词元，现为 {found.micro_batch_tokens:,}")),
            (say("disk", "磁盘"), say(f"{size(found.disk_bytes)}, {size(found.checkpoint_bytes)} a checkpoint",
                                    f"{size(found.disk_bytes)}，每个检查点 {size(found.checkpoint_bytes)}")),
            (say("truncated", "截断"), say(f"{found.truncated:.1%} of the rows, {found.tokens_cut:.1%} of the tokens",
                                         f"{found.truncated:.1%} 的行，{found.tokens_cut:.1%} 的词元")),
            (say("targets", "目标"), say(f"at {found.targets:.1%} of the tokens", f"占词元的 {found.targets:.1%}")
             if found.targets else say("one a row", "每行一个")),
            (say("padding", "填充"), say(f"{found.padding:.1%} of attention's rectangles, none elsewhere",
                                       f"注意力矩形中占 {found.padding:.1%}，别处没有")),
        ]


def _line(check: Check) -> Text:
    """pass and skip: one line; fail: what, and the mend below it."""
    mark, style = MARKS[check.status]
    text = Text.assemble((f"{mark} {check.title}", style), f"  {check.what}" if check.what else "")
    if check.status == "fail":
        text.append("\n  " + say("where: ", "位置：") + check.name + "\n  " + say("mend:  ", "办法：") + check.mend)
    return text


def _shown(shown: Shown) -> Text:
    text = Text(f"  {shown.role}: " if shown.role != "text" else "  ")
    left = SHOWN_CHARACTERS
    for part, learned in shown.parts:
        piece = part[:left]
        text.append(f"⟦{piece}⟧" if learned else piece, "bold green" if learned else "")
        left -= len(piece)
        if left <= 0:
            text.append(" …")
            break
    if shown.learned:
        text.append(f"  → ⟦{shown.learned[:SHOWN_CHARACTERS]}⟧", "bold green")
    return text


def duration(seconds: float) -> str:
    """12 s, 3.4 min, 2.1 h."""
    if seconds < 90:
        return say(f"{seconds:.0f} s", f"{seconds:.0f} 秒")
    if seconds < 5400:
        return say(f"{seconds / 60:.1f} min", f"{seconds / 60:.1f} 分钟")
    return say(f"{seconds / 3600:.1f} h", f"{seconds / 3600:.1f} 小时")


def size(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**29 else f"{num_bytes / 2**20:.1f} MiB"


# The plan of a recipe ---------------------------------------------------------------------------------


def plan(recipe: Recipe, *, data_root: Path = Path("."), tasks: CustomTasks | None = None,
         heads: CustomHeads | None = None) -> Planned:
    """Raises WenmoError where training would before its first step."""
    began = time.monotonic()
    on = machine.choose(recipe.train.device, recipe.train.dtype, recipe.train.threads)
    _log.info(str(on))
    prepare.refuse_misfit(recipe, tasks)
    corpus = prepare.Corpus(recipe, data_root)
    facts = prepare.run_facts(corpus, heads)
    with tempfile.TemporaryDirectory(prefix="wenmo-plan-") as name:
        folder = Path(name)
        rows = corpus.read(folder / "quarantine.jsonl")
        task = prepare.task_for(recipe, prepare.tokenizer_for(recipe, rows, folder / "tokenizer"), rows, tasks)
        measured = forecast(_setup(recipe, task, _opened(recipe, task, heads), rows, facts, folder, on, began))
        opened = _opened(recipe, task, heads)  # as it would begin: the steps have changed the first one
        opened.model.to(on.device)
        values = [row for source in rows.train for row in prepare.values_of(source.rows)]
        subject = subject_of(task, opened, task.objective(), values, folder / "few", on, recipe.seed, heads, tasks)
        shown = preview(subject)
        checks = list(self_tests(subject))
    memory_bytes, cores = given_machine()
    given = Given(on, recipe.train.accumulation, recipe.train.batch_tokens, recipe.data.max_tokens,
                  opened.model.config.max_tokens, recipe.data.too_long,
                  bool(texts_in(recipe.task)) and not any(each.pair for each in texts_in(recipe.task)),
                  isinstance(recipe.model, FromModel) and recipe.model.lora is None,
                  recipe.train.checkpoint_activations, memory_bytes, cores)
    choose = recipe.data.choose
    runs = choose.folds + choose.refit if choose.folds is not None and choose.fold is None else 1
    return Planned(checks, shown, measured, advice(measured, given), fitting_tokens(measured, memory_bytes), runs)


def _opened(recipe: Recipe, task: Task, heads: CustomHeads | None) -> Opened:
    opened = prepare.model_for(recipe, task, heads)
    opened.card = {"tasks": cards_of(task)}
    return opened


def _setup(recipe: Recipe, task: Task, opened: Opened, rows: prepare.Rows, facts: Any, folder: Path,
           on: machine.Device, began: float) -> Setup:
    """All that `wenmo train` would have in hand before its first step."""
    settings, model = recipe.train, prepare.place_on(opened, on)
    examples, built = prepare.examples_for(task, rows, facts, folder / "shards", recipe.seed, recipe.data)
    prepare.print_built(built)
    loader = Loader(examples, settings.batch_tokens, settings.accumulation, recipe.seed)
    total = settings.steps or loader.total_steps(settings.epochs or 1.0)
    evaluate_every, save_every = (every or -(-total // 10) for every in (settings.evaluate_every, settings.save_every))
    made = optimizer.build(model, settings.optimizer, settings.groups, settings.layer_decay,
                           prepare.start_of(recipe, opened))
    choose = None
    if rows.choose:
        choose = task.build(prepare.values_of(rows.choose), folder / "shards", recipe.seed, "choose").examples
    rates = Rates(schedule=settings.schedule, total_steps=total)
    return Setup(
        task, opened, regularised(task.objective(), settings), loader, made, settings, rates.factor, total,
        settings.epochs or total / loader.steps_in_epoch(0), -(-total // evaluate_every) if choose is not None else 0,
        -(-total // save_every), settings.keep, settings.best is not None,
        None if settings.ema is None else Average(model, settings.ema), choose, prepare.values_of(rows.choose), built,
        bytes_in(folder), time.monotonic() - began, on, recipe.seed)


# Which model ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Suggested:
    asked: Asked
    found: list[Suggestion]

    def as_dict(self) -> dict[str, Any]:
        return {"asked": vars(self.asked), "suggestions": [each.as_dict() for each in self.found]}

    def renderable(self) -> RenderableType:
        asked = self.asked
        cores = "1 core" if asked.cores == 1 else f"{asked.cores} cores"
        head = Text(say(f"{asked.task}, {asked.rows:,} rows, {asked.language}, {cores}, "
                        f"{size(asked.memory_bytes)}", f"{asked.task}，{asked.rows:,} 行，{asked.language}，"
                        f"{asked.cores} 个核心，{size(asked.memory_bytes)}"), "bold")
        parts: list[RenderableType] = [head]
        for number, each in enumerate(self.found, 1):
            over = [say("too slow", "超时") if not each.fits_time else "",
                    say("too large", "内存不足") if not each.fits_memory else ""]
            reasons = ", ".join(filter(None, over))
            table = Table(show_header=False, box=None, padding=(0, 1, 0, 3))
            for name, value in (
                (say("begin with", "起点"), each.route.start),
                (say("size", "规模"), say(f"{each.parameters:,} parameters, {each.tokens:,} tokens read",
                                        f"{each.parameters:,} 个参数，读 {each.tokens:,} 个词元")),
                (say("cost", "成本"), say(f"about {duration(each.minutes * 60)}, {size(each.memory_bytes)}",
                                        f"约 {duration(each.minutes * 60)}，{size(each.memory_bytes)}")),
                (say("quality", "质量"), each.quality), (say("measured", "出处"), each.source)):
                if value:
                    table.add_row(Text(name), Text(value))
            parts += [Text(f"{number}. {each.what}" + (f"  ({reasons})" if reasons else ""),
                           "" if each.fits else "dim"), table]
        if not self.found:
            parts.append(Text(say("no rule for so few rows: write more of them, or ask a chat model",
                                  "行数太少，没有可用的规则：请补充数据，或直接询问对话模型")))
        return Group(*parts)


def suggest_for(task: str, rows: int, *, language: str | None = None, minutes: float | None = None,
                cores: int | None = None, memory_bytes: int | None = None, row_tokens: float | None = None,
                ) -> Suggested:
    """For this machine, unless another is described."""
    memory, own_cores = given_machine()
    asked = Asked(task, rows, language or "zh", minutes, cores or own_cores, memory_bytes or memory, row_tokens)
    return Suggested(asked, suggest(asked))


def suggest_for_recipe(recipe: Recipe, *, data_root: Path = Path("."), language: str | None = None,
                       minutes: float | None = None, cores: int | None = None, memory_bytes: int | None = None,
                       ) -> Suggested:
    """Task, rows and language as the recipe and its files have them."""
    with tempfile.TemporaryDirectory(prefix="wenmo-plan-") as folder:
        rows = prepare.Corpus(recipe, data_root).read(Path(folder) / "quarantine.jsonl")
    if language is None:
        shares = language_shares(rows.texts(recipe.task.columns), every=1 + rows.num_train // SAMPLE_TEXTS)
        language = "zh" if shares.get("zh", 0.0) >= 0.5 else "en"
    return suggest_for(recipe.task.type, rows.num_train, language=language, minutes=minutes, cores=cores,
                       memory_bytes=memory_bytes)


