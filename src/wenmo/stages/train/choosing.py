"""Evaluations between steps, on the rows for choosing: which weights are kept, and whether to stop early.

In: the weights as they are, the examples of those rows (None where a recipe has none). Out: rows of the log, samples
among them; the best weights so far in `best/`; the metrics of those that are kept.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Mapping
from typing import Any

from wenmo.data.examples import Examples, Rows
from wenmo.errors import NumericsError, say
from wenmo.evaluation.validation import measures_of, outputs_of, validate
from wenmo.generate import Sampling, generate
from wenmo.objectives import Objective
from wenmo.stages import prepare
from wenmo.stages.train.ready import Ready
from wenmo.stages.train.weights import Weights
from wenmo.training.best import Best, BestSettings

_log = logging.getLogger(__name__)

ASKED = {"chat": "messages", "text_to_text": "source"}  # tasks that answer in words: the column that a sample stands in


class Choosing:
    """`metrics` are of the evaluation whose weights are kept, `every` is in steps, `seconds` is what each took here."""

    def __init__(self, ready: Ready, weights: Weights, objective: Objective, examples: Examples | None,
                 every: int) -> None:
        self._ready, self._weights, self._objective = ready, weights, objective
        self.examples, self.every = examples, every
        self.best = Best(ready.recipe.train.best or BestSettings())
        self.metrics: dict[str, float] = {}
        self.seconds: list[float] = []

    def put_back(self, best: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """What a checkpoint has of it."""
        self.best = Best(self.best.settings, best)
        self.metrics = dict(metrics)

    @property
    def should_stop(self) -> bool:
        return self._ready.recipe.train.best is not None and self.best.should_stop

    def is_due(self, step: int, *, last: bool) -> bool:
        return self.examples is not None and (step % self.every == 0 or last)

    def expected_seconds(self, total_steps: int, token_seconds: float) -> float:
        """Of all evaluations of a run. One that has not been seen yet is reckoned as a third of the steps that would
        read as much: forward alone."""
        if self.examples is None:
            return 0.0
        unseen = float(self.examples.lengths(0).sum()) * token_seconds / 3
        return -(-total_steps // self.every) * (statistics.fmean(self.seconds) if self.seconds else unseen)

    def refuse_unmeasured(self) -> None:
        """RecipeError for a metric to choose by that there is not: a misspelt one costs no training."""
        settings = self._ready.recipe.train.best
        if settings is not None and self.examples is not None:
            Best(settings).see(0, measures_of(
                settings.names, self._ready.model, self._ready.task, self._objective, self.examples,
                prepare.values_of(self._ready.rows.choose), self._ready.on))

    def evaluate(self, step: int, tokens: int) -> None:
        """Measured by one process; all then know which weights are the best, and whether to stop."""
        began = time.perf_counter()
        with self._weights.averaged():
            metrics, best = self._ready.processes.decided(lambda: self._measured(step, tokens))
        self.put_back(best, metrics)
        self.seconds.append(time.perf_counter() - began)

    def _measured(self, step: int, tokens: int) -> tuple[dict[str, float], dict[str, Any]]:
        """The metrics of the weights that are kept so far, and the state of `best`."""
        assert self.examples is not None
        ready = self._ready
        values = prepare.values_of(ready.rows.choose)
        try:
            metrics = validate(ready.model, ready.task, self._objective, self.examples, values, ready.on)
        except NumericsError as error:
            raise NumericsError(
                say("the training has diverged: the model's answers are no numbers",
                    "训练已发散：模型的输出不是有限数值"),
                where=say(f"step {step}", f"第 {step} 步"),
                mend=say("lower train.optimizer.lr; wenmo find-lr says which rate the recipe bears",
                         "减小 train.optimizer.lr；wenmo find-lr 会给出可用的学习率")) from error
        row: dict[str, Any] = {"step": step, "tokens": tokens,
                               **{f"val_{name}": value for name, value in metrics.items()}}
        if ready.recipe.train.samples:
            row["samples"] = _samples(ready)
            for sample in row["samples"]:
                _log.info(f"» {sample['prompt']}{sample['text']}")
        ready.run.log(row)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        _log.info(say(f"step {step}: validation ", f"第 {step} 步：验证 ") + shown)
        if ready.recipe.train.best is None:
            return metrics, self.best.to_dict()
        if not self.best.see(step, metrics):
            return self.metrics, self.best.to_dict()
        self._weights.keep()
        return metrics, self.best.to_dict()


def _samples(ready: Ready) -> list[dict[str, str]]:
    """What the model makes of the recipe's beginnings, the same draws each time; of questions or sources, its answers.
    """
    task, texts = ready.task, ready.recipe.train.samples
    column = ASKED.get(ready.recipe.task.type)
    if column is not None:
        rows = [{column: [{"role": "user", "content": text}] if column == "messages" else text} for text in texts]
        examples = Rows([task.encode(number, row, with_targets=False).sequences for number, row in enumerate(rows)])
        found = outputs_of(ready.model, task, examples, len(rows), ready.on)
        return [{"prompt": f"{text} → ", "text": str(task.decode(row, outputs)["output"])}
                for text, row, outputs in zip(texts, rows, found, strict=True)]
    tokenizer = task.tokenizer
    prompts = [[*ready.opened.card["document_start"], *tokenizer.encode(text)] for text in texts]
    sampling = Sampling(max_new_tokens=60, temperature=0.8, top_p=0.95, seed=ready.recipe.seed)
    ends = frozenset() if tokenizer.eos_id is None else frozenset({tokenizer.eos_id})
    done = generate(ready.model, tokenizer, prompts, sampling, ends)
    return [{"prompt": prompt, "text": completion.text} for prompt, [completion] in zip(texts, done, strict=True)]
