"""`wenmo train`: a recipe → a Run with its model. The same command begins, and resumes.

Open the sources, lock the run, read the rows, make tokenizer, task and model, then step after step: log, evaluate,
keep the best, save. Killed at any moment, the same command goes on from the last checkpoint to the same weights.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from wenmo import device as machine
from wenmo import golden, modeldir
from wenmo.config import parse, to_yaml
from wenmo.data.examples import Examples
from wenmo.data.loader import Loader
from wenmo.errors import CheckpointError, DataError, ModelError, RecipeError, TokenizerError, UsageError, say
from wenmo.evaluation.validation import first_batch, outputs_of, validate
from wenmo.files import atomic_folder, sha256, sweep_unfinished
from wenmo.generate import Sampling, generate
from wenmo.modeldir import Opened, save_model, write_into
from wenmo.models import CustomHeads, lora
from wenmo.recipe import FromModel, Recipe, context
from wenmo.report import metric_name
from wenmo.stages import prepare
from wenmo.stages.prepare import Corpus, Rows
from wenmo.stages.run_view import run_html
from wenmo.tasks import CustomTasks, Task, cards_of
from wenmo.tasks.chat import Chat
from wenmo.tasks.language_modeling import document_start
from wenmo.text.languages import SAMPLE_TEXTS, language_shares
from wenmo.training import checkpoint, cost, optimizer
from wenmo.training.average import Average
from wenmo.training.best import Best, BestSettings
from wenmo.training.groups import trainable
from wenmo.training.loop import StepResult, steps
from wenmo.training.progress import Progress
from wenmo.training.regularisers import regularised
from wenmo.training.run import RECIPE, RECORD, Run, Stopper
from wenmo.training.schedule import Rates, refuse_other_past
from wenmo.training.unfreezing import Unfreezing

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """The finished (or interrupted: `exit_code` 75 or 130) run; `metrics` are those of the weights that it keeps."""

    folder: Path
    steps: int
    tokens: int
    seconds: float
    metrics: Mapping[str, float]
    exit_code: int = 0

    def _repr_html_(self) -> str:
        """In a notebook: the figures, and the curve of the loss."""
        rows = [(say("steps", "步数"), f"{self.steps:,}"), (say("tokens", "词元"), f"{self.tokens:,}"),
                (say("seconds", "秒"), f"{self.seconds:,.1f}"), (say("model", "模型"), str(self.folder / "model"))]
        if self.exit_code:
            rows.append((say("interrupted", "已中断"), say("the same command goes on", "同一命令可继续")))
        rows += [(say("validation ", "验证 ") + metric_name(name), f"{value:.4f}")
                 for name, value in self.metrics.items()]
        return run_html(self.folder, rows)


def train(recipe: Recipe, out: Path, *, data_root: Path = Path("."), tasks: CustomTasks | None = None,
          heads: CustomHeads | None = None) -> Trained:
    """Carries out a recipe in the folder `out`. Raises WenmoError; nothing of an earlier run there is lost.

    `tasks` and `heads`: those handed in beside Wenmo's own, as the recipe was parsed with.
    """
    began = time.monotonic()
    on = machine.choose(recipe.train.device, recipe.train.dtype, recipe.train.threads)
    _log.info(str(on))
    if out.exists() and not out.is_dir():
        raise UsageError(say("--out is a file, not a folder", "--out 是文件，不是文件夹"), where=str(out),
                         mend=say("give --out a new or an empty folder", "请让 --out 指向新的或空的文件夹"))
    prepare.refuse_misfit(recipe, tasks)
    corpus = Corpus(recipe, data_root)
    facts = prepare.run_facts(corpus, heads)
    with Run.open(out, recipe, facts, context(tasks, heads)) as run, Stopper() as stopper, _begun_anew(run):
        sweep_unfinished(run.folder / "shards")
        rows = corpus.read(run.folder / "quarantine.jsonl")
        tokenizer = prepare.tokenizer_for(recipe, rows, run.folder / "tokenizer")
        task = prepare.task_for(recipe, tokenizer, rows, tasks)
        opened = prepare.model_for(recipe, task, heads)
        if isinstance(task, Chat):  # an answer ends with its turn; transformers too reads it here
            opened.generation = {**opened.generation, "eos_token_id": list(task.ends)}
        opened.card = _card(recipe, task, rows, facts)
        return _Training(recipe, run, stopper, on, task, opened, rows, facts, began).carry_out()


@contextlib.contextmanager
def _begun_anew(run: Run) -> Iterator[None]:
    """Where a fault of the recipe or the data comes before the first step, the run is as if it had not begun: once
    the fault is mended, the same command is not refused for being another."""
    try:
        yield
    except (DataError, ModelError, RecipeError, TokenizerError):
        if not run.metrics.exists() and checkpoint.latest(run.checkpoints) is None:
            for name in (RECIPE, RECORD):
                (run.folder / name).unlink(missing_ok=True)
            for name in ("tokenizer", "shards"):
                shutil.rmtree(run.folder / name, ignore_errors=True)
        raise


class _Training:
    """What the steps of one run share. Only `carry_out` is called from outside."""

    def __init__(self, recipe: Recipe, run: Run, stopper: Stopper, on: machine.Device, task: Task, opened: Opened,
                 rows: Rows, facts: Mapping[str, str], began: float) -> None:
        self.recipe, self.run, self.stopper, self.on, self.task, self.opened = recipe, run, stopper, on, task, opened
        self.rows, self.began = rows, began
        self.model = opened.model.to(on.device)
        self.model.compute_dtype = on.dtype
        settings = recipe.train
        if opened.adapter is not None:
            lora.round_frozen(self.model, on.dtype)
        examples, built = prepare.examples_for(task, rows, facts, run.folder / "shards", recipe.seed,
                                               recipe.data)
        prepare.print_built(built)
        self.loader = Loader(examples, settings.batch_tokens, settings.accumulation, recipe.seed)
        self.total_steps = settings.steps or self.loader.total_steps(settings.epochs or 1.0)
        self.rates = Rates(schedule=settings.schedule, total_steps=self.total_steps)
        self.evaluate_every = settings.evaluate_every or -(-self.total_steps // 10)
        self.save_every = settings.save_every or -(-self.total_steps // 10)
        self.objective = regularised(task.objective(), settings)
        self.optimizer = optimizer.build(self.model, settings.optimizer, settings.groups, settings.layer_decay,
                                         prepare.start_of(recipe, opened))
        self._count_trained()
        self.frozen = self._unfreezing()
        self.average = None if settings.ema is None else Average(self.model, settings.ema)
        self.best = Best(settings.best or BestSettings())
        self.tokens = 0
        self.step_seconds: list[float] = []  # of this process, until a forecast is made of them
        self.evaluation_seconds: list[float] = []
        self.earlier = {"seconds": 0.0, "peak_memory_bytes": 0}  # what processes before this one cost
        self.metrics: dict[str, float] = {}  # of the evaluation whose weights are kept
        self.choose: Examples | None = None
        if rows.choose:
            source_hash = sha256("choose", str(recipe.data.choose.carve), *facts.values())
            with prepare.placed(rows.choose) as values:
                self.choose = task.build(values, run.folder / "shards", recipe.seed, source_hash).examples

    def _count_trained(self) -> None:
        """Says, and writes into the lineage, how many of the parameters are trained, where it is not all of them."""
        trained = sum(parameter.numel() for parameter in trainable(self.model).values())
        total = sum(parameter.numel() for parameter in self.model.parameters())
        if trained < total:
            self.opened.card["lineage"] |= {"parameters": {"trained": trained, "all": total}}
            _log.info(say(f"trainable parameters: {trained:,} of {total:,} ({trained / total:.2%})",
                          f"可训练参数：{trained:,}，共 {total:,}（{trained / total:.2%}）"))

    def _unfreezing(self) -> Callable[[int], contextlib.AbstractContextManager[None]]:
        """What waits in a step for its turn to be trained."""
        settings = self.recipe.train.unfreeze
        if settings is None:
            return lambda _: contextlib.nullcontext()
        found = Unfreezing(self.model, settings)
        joined = found.num_joined(self.total_steps - 1)
        _log.info(say(f"one layer more every {settings.every} steps; {joined} of {len(found.stages)} levels in the end",
                      f"每 {settings.every} 步多训练一层；最终训练 {joined}/{len(found.stages)} 级"))
        return found

    def carry_out(self) -> Trained:
        start = self._resume()
        if start >= self.total_steps and self._model_is_of(start):
            shutil.rmtree(self.run.folder / "best", ignore_errors=True)  # a kill may have come before
            _log.info(say(f"this run has finished; its model is in {self.run.model}",
                          f"该训练已完成，模型在 {self.run.model}"))
            return self._trained(start)
        settings = self.recipe.train
        if settings.best is not None and self.choose is not None:  # a misspelt metric costs no training
            measuring = self.model, self.task, self.objective, self.choose, prepare.values_of(self.rows.choose), self.on
            found = first_batch(*measuring)
            named = all(name in found for name in settings.best.names)  # else the batch may have no row of a task
            Best(settings.best).see(0, found if named else validate(*measuring))
        start_seconds = time.monotonic() - self.began
        results = steps(self.model, self.optimizer, self.objective, self.loader.batches,
                        lr_factor=self.rates.factor, total_steps=self.total_steps, settings=settings, device=self.on,
                        seed=self.recipe.seed, start_step=start, frozen=self.frozen)
        step = start
        with Progress(self.total_steps) as progress:
            for result in results:
                step = result.step
                self.tokens += result.num_tokens
                if self.average is not None and not result.skipped:
                    self.average.update(step)
                progress.show(result)
                if start == 0 and step <= cost.FORECAST_STEPS:
                    self.step_seconds.append(result.seconds)
                    if step == cost.FORECAST_STEPS:
                        self._forecast(start_seconds)
                last = step == self.total_steps
                if step % settings.log_every == 0 or last or step == 1:
                    self._log_step(result)
                if self.choose is not None and (step % self.evaluate_every == 0 or last):
                    self._evaluate(step)
                    last = last or (settings.best is not None and self.best.should_stop)
                if step % self.save_every == 0 or last or self.stopper.exit_code is not None:
                    self._save(step, finished=last)
                if self.stopper.exit_code is not None and not last:
                    return self._trained(step, self.stopper.exit_code)
                if last:
                    break
        self._finish(step)
        return self._trained(step)

    def _forecast(self, start_seconds: float) -> None:
        """Written down once, to stand beside what the run will have cost. An evaluation that has not been seen yet is
        reckoned as a third of the steps that would read as much: forward alone."""
        one = sum(self.evaluation_seconds) / max(1, len(self.evaluation_seconds))
        if self.choose is not None and not self.evaluation_seconds:
            one = float(self.choose.lengths(0).sum()) * sum(self.step_seconds) / max(1, self.tokens) / 3
        times = -(-self.total_steps // self.evaluate_every) if self.choose is not None else 0
        found = cost.expected(self.step_seconds, self.total_steps, start_seconds, times * one,
                              machine.peak_memory_bytes(self.on.device))
        cost.write(self.run.folder, "forecast", found)
        minutes = [found[name] / 60 for name in ("low", "high")]
        _log.info(say(f"about {minutes[0]:.1f} to {minutes[1]:.1f} minutes in all",
                      f"全程约 {minutes[0]:.1f} 至 {minutes[1]:.1f} 分钟"))

    def _cost(self) -> dict[str, Any]:
        """So far, processes before this one included."""
        return {"seconds": round(self.earlier["seconds"] + time.monotonic() - self.began, 1),
                "peak_memory_bytes": max(int(self.earlier["peak_memory_bytes"]),
                                         machine.peak_memory_bytes(self.on.device))}

    def _resume(self) -> int:
        """The number of steps done: 0 in a new run, else those of the last checkpoint, whose state is put back."""
        found = checkpoint.latest(self.run.checkpoints)
        if found is None:
            self.run.rewind(0)
            return 0
        saved = checkpoint.load(found, self.model, self.optimizer, self._saved_tensors, average=self.average)
        self._refuse_other_tokenizer(found, saved.state["tokenizer"])
        before = parse(Rates, saved.state["rates"], str(found))
        refuse_other_past(before, self.rates, saved.step, str(found))
        checkpoint.prune(self.run.checkpoints, self.recipe.train.keep, set())  # a kill may have come between
        self.run.rewind(saved.step)
        self.tokens = int(saved.state["tokens"])
        self.earlier = dict(saved.state.get("cost", self.earlier))
        self.best = Best(self.recipe.train.best or BestSettings(), saved.state["best"])
        self.metrics = dict(saved.state["metrics"])
        _log.info(say(f"goes on from step {saved.step} of {self.total_steps}",
                      f"从第 {saved.step}/{self.total_steps} 步继续"))
        if saved.state["finished"] and saved.step < before.total_steps:  # it was stopped early, and stays so
            self.total_steps = saved.step
        elif saved.state["finished"] and saved.step < self.total_steps:
            self._reopen(saved.step)
        return saved.step

    def _reopen(self, step: int) -> None:
        """A finished run is made longer: the best weights so far lie in its model alone, unless a kill came before."""
        if self.best.step is not None and self._model_is_of(step):
            with atomic_folder(self.run.folder / "best") as folder:
                shutil.copytree(self.run.model, folder, dirs_exist_ok=True)

    def _model_is_of(self, step: int) -> bool:
        """Whether the run's model is that of so many steps: one made before the run was made longer is not."""
        if not (self.run.model / modeldir.CARD).exists():
            return False
        card = json.loads((self.run.model / modeldir.CARD).read_text(encoding="utf-8"))
        return bool(card["lineage"]["steps"] == step)

    def _refuse_other_tokenizer(self, found: Path, before: str) -> None:
        """One from elsewhere is among the run's facts; one trained in the run is a file that anyone may change."""
        now = self.task.tokenizer.sha256
        if now != before:
            raise CheckpointError(
                say("this run was begun with something else:", "该运行开始时的设定与现在不同：")
                + f"\n  tokenizer: {before[:12]}… → {now[:12]}…", where=str(self.run.folder / "tokenizer"),
                mend=say(f"copy tokenizer.json back from {found}", f"请从 {found} 复制回 tokenizer.json"))

    def _log_step(self, result: StepResult) -> None:
        self.run.log({
            "step": result.step, "tokens": self.tokens, "loss": result.loss, "lr": result.lr,
            "grad_norm": result.grad_norm, "tokens_per_second": result.num_tokens / result.seconds,
            **({f"{name}_loss": value for name, value in result.terms.items()} if len(result.terms) > 1 else {}),
            **({"skipped": True} if result.skipped else {}),
        })

    def _evaluate(self, step: int) -> None:
        assert self.choose is not None
        began = time.perf_counter()
        with self._averaged():
            self._evaluate_weights(step, self.choose)
        self.evaluation_seconds.append(time.perf_counter() - began)

    def _averaged(self) -> contextlib.AbstractContextManager[None]:
        """Inside it the model has the weights that are validated and kept: the averaged ones, where there are any."""
        return contextlib.nullcontext() if self.average is None else self.average.in_place()

    def _evaluate_weights(self, step: int, choose: Examples) -> None:
        values = prepare.values_of(self.rows.choose)
        metrics = validate(self.model, self.task, self.objective, choose, values, self.on)
        row: dict[str, Any] = {"step": step, "tokens": self.tokens,
                               **{f"val_{name}": value for name, value in metrics.items()}}
        if self.recipe.train.samples:
            row["samples"] = self._samples()
            for sample in row["samples"]:
                _log.info(f"» {sample['prompt']}{sample['text']}")
        self.run.log(row)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        _log.info(say(f"step {step}: validation ", f"第 {step} 步：验证 ") + shown)
        if self.recipe.train.best is None:
            self.metrics = metrics
        elif self.best.see(step, metrics):
            self.metrics = metrics
            save_model(self.run.folder / "best", self.opened)

    def _samples(self) -> list[dict[str, str]]:
        tokenizer = self.task.tokenizer
        prompts = [[*self.opened.card["document_start"], *tokenizer.encode(text)] for text in self.recipe.train.samples]
        sampling = Sampling(max_new_tokens=60, temperature=0.8, top_p=0.95, seed=self.recipe.seed)
        ends = frozenset() if tokenizer.eos_id is None else frozenset({tokenizer.eos_id})
        done = generate(self.model, tokenizer, prompts, sampling, ends)
        return [{"prompt": prompt, "text": completion.text}
                for prompt, [completion] in zip(self.recipe.train.samples, done, strict=True)]

    def _save(self, step: int, *, finished: bool) -> None:
        state = {"tokens": self.tokens, "best": self.best.to_dict(), "metrics": self.metrics, "finished": finished,
                 "tokenizer": self.task.tokenizer.sha256, "rates": self.rates.model_dump(mode="json"),
                 "cost": self._cost()}
        write_model = partial(write_into, opened=self.opened)
        checkpoint.save(self.run.checkpoints, step, write_model, self.optimizer, self.model, state,
                        self.average)
        checkpoint.prune(self.run.checkpoints, self.recipe.train.keep, set())

    def _saved_tensors(self, folder: Path) -> dict[str, torch.Tensor]:
        return modeldir.saved_tensors(folder, self.opened)

    def _finish(self, step: int) -> None:
        """The run's model: the best weights (or the last), with the lineage, scores and golden prompts."""
        if self.best.step is not None:
            checkpoint.load_weights(self.run.folder / "best", self.model, self._saved_tensors)
        elif self.average is not None:
            self.average.settle()
        self.model.eval()
        card = self.opened.card
        card["lineage"] |= {"steps": step, "tokens": self.tokens, "best_step": self.best.step}
        card["scores"] = {"choose": {"n": len(self.rows.choose), **self.metrics}} if self.rows.choose else {}
        self.model.compute_dtype = torch.float32  # as it will be opened
        modeldir.exact_base(self.opened)
        self._tune()
        card["golden"] = golden.record(self.model, self.task.tokenizer)
        cost.write(self.run.folder, "actual", self._cost())  # before the model: a run that has one is finished
        save_model(self.run.model, self.opened)
        shutil.rmtree(self.run.folder / "best", ignore_errors=True)
        _log.info(say("the model is in ", "模型在 ") + str(self.run.model))

    def _tune(self) -> None:
        """What the task chooses after training, on the rows for choosing, goes into the card."""
        if self.choose is None or not self.task.settings.target_columns:
            return
        values, choose = prepare.values_of(self.rows.choose), self.choose

        @cache
        def outputs() -> list[list[Any]]:
            return outputs_of(self.model, self.task, choose, len(values), self.on)

        self.task = self.task.tuned(values, outputs)
        self.opened.card["tasks"] = cards_of(self.task)

    def _trained(self, step: int, exit_code: int = 0) -> Trained:
        return Trained(self.run.folder, step, self.tokens, time.monotonic() - self.began, self.metrics, exit_code)


def _card(recipe: Recipe, task: Task, rows: Rows, facts: Mapping[str, str]) -> dict[str, Any]:
    """wenmo.json: what the model is for, and where it came from."""
    card: dict[str, Any] = {
        "tasks": cards_of(task),
        "source": prepare.source_card(recipe),
        "normalize": prepare.normalization_card(recipe),
        "languages": language_shares(rows.texts(recipe.task.columns), every=1 + rows.num_train // SAMPLE_TEXTS),
        "lineage": {
            "parent": {"reference": recipe.model.reference, "sha256": facts["model"]}
            if isinstance(recipe.model, FromModel) else None,
            "recipe_sha256": sha256(to_yaml(recipe)), "data_sha256": dict(facts),
            "tokenizer_sha256": task.tokenizer.sha256, "versions": modeldir.versions(), "seed": recipe.seed,
        },
    }
    if task.name == "causal_lm":
        card["document_start"] = document_start(task.tokenizer)
    return card
