"""The steps of a run, from where the last checkpoint leaves off: log, evaluate, keep the best, save.

In: what stands `Ready`. Out: the finished run with its model, or, where a signal asked for it, a checkpoint.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

from wenmo import modeldir
from wenmo.config import parse
from wenmo.data.examples import Examples
from wenmo.data.loader import Loader
from wenmo.errors import CheckpointError, say
from wenmo.files import atomic_folder, sha256
from wenmo.stages import prepare
from wenmo.stages.train.choosing import Choosing
from wenmo.stages.train.costs import Costs
from wenmo.stages.train.ending import finish
from wenmo.stages.train.ready import Ready
from wenmo.stages.train.trained import Trained
from wenmo.stages.train.weights import Weights
from wenmo.training import checkpoint, cost
from wenmo.training.loop import StepResult, steps
from wenmo.training.progress import Progress
from wenmo.training.regularisers import regularised
from wenmo.training.run import Run, Stopper
from wenmo.training.schedule import Rates, refuse_other_past

_log = logging.getLogger(__name__)


class Running:
    """What the steps of one run share. Only `carry_out` is called from outside."""

    def __init__(self, ready: Ready, stopper: Stopper, facts: Mapping[str, str], began: float) -> None:
        self._ready, self._stopper = ready, stopper
        settings = ready.recipe.train
        with ready.processes.in_turn():
            examples, choose = _examples(ready, facts)
        self._loader = Loader(examples, settings.batch_tokens, ready.processes.micro_batches(settings.accumulation),
                              ready.recipe.seed)
        self._total_steps = settings.steps or self._loader.total_steps(settings.epochs or 1.0)
        self._rates = Rates(schedule=settings.schedule, total_steps=self._total_steps)
        self._save_every = settings.save_every or -(-self._total_steps // 10)
        self._objective = regularised(ready.task.objective(), settings)
        self._weights = Weights(ready, self._objective, self._total_steps)
        self._choosing = Choosing(ready, self._weights, self._objective, choose,
                                  settings.evaluate_every or -(-self._total_steps // 10))
        self._costs = Costs(ready, began)
        self._tokens = 0

    def carry_out(self) -> Trained:
        ready, weights, choosing, settings = self._ready, self._weights, self._choosing, self._ready.recipe.train
        start = self._resume()
        if ready.processes.decided(lambda: start >= self._total_steps and _model_is_of(ready.run, start)):
            if ready.run.writes:
                shutil.rmtree(ready.best_folder, ignore_errors=True)  # a kill may have come before
            _log.info(say(f"this run has finished; its model is in {ready.run.model}",
                          f"该训练已完成，模型在 {ready.run.model}"))
            return self._trained(start)
        ready.processes.decided(choosing.refuse_unmeasured)
        start_seconds = self._costs.seconds()
        results = steps(weights.learner, weights.optimizer, self._objective, self._loader.slices,
                        lr_factor=self._rates.factor, total_steps=self._total_steps, settings=settings,
                        device=ready.on, seed=ready.recipe.seed, start_step=start, frozen=weights.frozen,
                        processes=ready.processes)
        step = start
        self._costs.begin_steps()
        with Progress(self._total_steps, silent=not ready.run.writes) as progress:
            for result in results:
                step = result.step
                self._tokens += result.num_tokens
                if weights.average is not None and not result.skipped:
                    weights.average.update(step)
                progress.show(result)
                if start == 0 and step <= cost.FORECAST_STEPS:
                    self._costs.step_seconds.append(result.seconds)
                    if step == cost.FORECAST_STEPS:
                        self._costs.forecast(start_seconds, self._total_steps, self._tokens, choosing)
                last = step == self._total_steps
                if step % settings.log_every == 0 or last or step == 1:
                    self._log_step(result)
                if choosing.is_due(step, last=last):
                    choosing.evaluate(step, self._tokens)
                    last = last or choosing.should_stop
                asked = [code for code in ready.processes.told(self._stopper.exit_code) if code is not None]
                if step % self._save_every == 0 or last or asked:
                    self._save(step, finished=last)
                if asked and not last:
                    return self._trained(step, max(asked))
                if last:
                    break
        finish(ready, weights, choosing, self._costs, step, self._tokens)
        return self._trained(step)

    def _resume(self) -> int:
        """The number of steps done: 0 in a new run, else those of the last checkpoint, whose state is put back."""
        ready = self._ready
        found = checkpoint.latest(ready.run.checkpoints)
        if found is None:
            ready.run.rewind(0)
            return 0
        saved = self._weights.load(found)
        _refuse_other_tokenizer(ready, found, saved.state["tokenizer"])
        before = parse(Rates, saved.state["rates"], str(found))
        refuse_other_past(before, self._rates, saved.step, str(found))
        ready.processes.wait()  # all have read it
        self._weights.prune()  # a kill may have come between
        ready.run.rewind(saved.step)
        self._tokens = int(saved.state["tokens"])
        self._costs.earlier = dict(saved.state.get("cost", self._costs.earlier))
        self._choosing.put_back(saved.state["best"], saved.state["metrics"])
        _log.info(say(f"goes on from step {saved.step} of {self._total_steps}",
                      f"从第 {saved.step}/{self._total_steps} 步继续"))
        if saved.state["finished"] and saved.step < before.total_steps:  # it was stopped early, and stays so
            self._total_steps = saved.step
        elif saved.state["finished"] and saved.step < self._total_steps:
            self._reopen(saved.step)
        return saved.step

    def _reopen(self, step: int) -> None:
        """A finished run is made longer: the best weights so far lie in its model alone, unless a kill came before."""
        run = self._ready.run
        if run.writes and self._choosing.best.step is not None and _model_is_of(run, step):
            with atomic_folder(self._ready.best_folder) as folder:
                shutil.copytree(run.model, folder, dirs_exist_ok=True)

    def _log_step(self, result: StepResult) -> None:
        self._ready.run.log({
            "step": result.step, "tokens": self._tokens, "loss": result.loss, "lr": result.lr,
            "grad_norm": result.grad_norm, "tokens_per_second": result.num_tokens / result.seconds,
            **({f"{name}_loss": value for name, value in result.terms.items()} if len(result.terms) > 1 else {}),
            **({"skipped": True} if result.skipped else {}),
        })

    def _save(self, step: int, *, finished: bool) -> None:
        self._weights.save(step, {
            "tokens": self._tokens, "best": self._choosing.best.to_dict(), "metrics": self._choosing.metrics,
            "finished": finished, "tokenizer": self._ready.task.tokenizer.sha256,
            "rates": self._rates.model_dump(mode="json"), "cost": self._costs.so_far()})

    def _trained(self, step: int, exit_code: int = 0) -> Trained:
        return Trained(self._ready.run.folder, step, self._tokens, self._costs.seconds(), self._choosing.metrics,
                       exit_code)


def _examples(ready: Ready, facts: Mapping[str, str]) -> tuple[Examples, Examples | None]:
    """To learn from, and to choose by where a recipe has rows for it."""
    recipe, rows, shards = ready.recipe, ready.rows, ready.run.folder / "shards"
    examples, built = prepare.examples_for(ready.task, rows, facts, shards, recipe.seed, recipe.data)
    prepare.print_built(built)
    if not rows.choose:
        return examples, None
    source_hash = sha256("choose", str(recipe.data.choose.carve), *facts.values())
    with prepare.placed(rows.choose) as values:
        return examples, ready.task.build(values, shards, recipe.seed, source_hash).examples


def _refuse_other_tokenizer(ready: Ready, found: Path, before: str) -> None:
    """One from elsewhere is among the run's facts; one trained in the run is a file that anyone may change."""
    now = ready.task.tokenizer.sha256
    if now != before:
        raise CheckpointError(
            say("this run was begun with something else:", "该运行开始时的设定与现在不同：")
            + f"\n  tokenizer: {before[:12]}… → {now[:12]}…", where=str(ready.run.folder / "tokenizer"),
            mend=say(f"copy tokenizer.json back from {found}", f"请从 {found} 复制回 tokenizer.json"))


def _model_is_of(run: Run, step: int) -> bool:
    """Whether the run's model is that of so many steps: one made before the run was made longer is not."""
    if not (run.model / modeldir.CARD).exists():
        return False
    card = json.loads((run.model / modeldir.CARD).read_text(encoding="utf-8"))
    return bool(card["lineage"]["steps"] == step)
