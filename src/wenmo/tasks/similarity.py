"""Similarity of two texts by a bi-encoder: each is read apart, its vector is kept or searched, two are compared.

A row is `text_a` and `text_b` with `score` (a grade) or `label` (alike or not), or without either: then all rows are
pairs that belong together, and the other rows of a batch are the counter-examples. The answer is {"score"}, a cosine.
A cross-encoder, which reads both texts at once, is classification or regression with `pair: true`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from wenmo.config import Settings
from wenmo.data.examples import Rows
from wenmo.data.sequence import FIRST, SECOND, THIRD, Batch, Sequence
from wenmo.errors import DataError, RecipeError, say
from wenmo.metrics import Estimate, Statistic, bootstrap, confusion_matrix, f1_estimates, wilson
from wenmo.metrics.comparison import row_mean, row_ratio
from wenmo.metrics.correlation import (
    average_precision,
    best_threshold,
    pearson,
    roc_auc,
    row_average_precision,
    row_pearson,
    row_roc_auc,
    row_spearman,
    spearman,
)
from wenmo.models import LanguageModel
from wenmo.nn.pooling import Pooling
from wenmo.objectives import Objective
from wenmo.tasks.labels import Label
from wenmo.tasks.task import Built, Encoded, Lengths, Measured
from wenmo.tasks.vectors import Loss, compared, places_of_answers, text_ids, text_key, text_vectors
from wenmo.text.tokenizer import Tokenizer

Grade = Annotated[float, Field(allow_inf_nan=False)]


class SimilaritySettings(Settings):
    """target: what a row says of its pair: a `score`, a `label` (two of them), or nothing but that it is one (`pairs`).
    loss: `cosine` (squared error), `cosent` (order of the pairs), `infonce` (each text finds its own among those of the
    batch); left out, cosent for graded pairs and infonce for the others.
    range: the lowest and highest score, made 0 and 1 for `cosine`; left out, those of the training rows.
    temperature: cosines are divided by it. symmetric: infonce both ways. hard_negatives: rows have a `text_c`, alike
    but wrong. prompts: what stands before texts, `query` for text_a, `document` for text_b and text_c.
    labels: not alike, alike. threshold: the cosine from which on two texts are alike; left out, it is chosen on the
    rows for choosing, for the most right answers."""

    type: Literal["similarity"] = "similarity"
    target: Literal["score", "label", "pairs"] = "score"
    loss: Loss | None = None
    range: tuple[Grade, Grade] | None = None
    temperature: float | None = Field(None, gt=0, allow_inf_nan=False)
    symmetric: bool = False
    hard_negatives: bool = False
    pooling: Pooling = "mean"
    prompts: dict[Literal["query", "document"], str] = Field({})
    labels: tuple[Label, Label] | None = None
    threshold: Grade | None = None

    @model_validator(mode="after")
    def _keys_that_act(self) -> SimilaritySettings:
        loss = self.chosen_loss
        if (loss == "infonce") != (self.target == "pairs"):
            raise ValueError(say(f"`loss: {loss}` does not go with `target: {self.target}`: infonce learns from pairs "
                                 "that belong together, the others from scores or labels",
                                 f"`loss: {loss}` 与 `target: {self.target}` 不匹配：infonce 用于只给出正例对的数据，"
                                 "其余用于分数或标签"))
        acts = {"range": self.range is None or (loss == "cosine" and self.target == "score"),
                "temperature": self.temperature is None or loss != "cosine",
                "symmetric": not self.symmetric or loss == "infonce",
                "hard_negatives": not self.hard_negatives or loss == "infonce",
                "labels": self.labels is None or self.target == "label",
                "threshold": self.threshold is None or self.target == "label"}
        useless = [f"`{name}`" for name, does in acts.items() if not does]
        if useless:
            raise ValueError(say(f"{', '.join(useless)} does nothing here (target {self.target}, loss {loss}): "
                                 "take it out",
                                 f"{'、'.join(useless)} 在此不起作用（target {self.target}，loss {loss}）：请去掉"))
        if self.range is not None and self.range[0] >= self.range[1]:
            raise ValueError(say("`range` goes from the lowest score to the highest", "`range` 应从最低分到最高分"))
        if self.labels is not None and self.labels[0] == self.labels[1]:
            raise ValueError(say("the two `labels` are the same", "两个 `labels` 相同"))
        return self

    @property
    def chosen_loss(self) -> Loss:
        return self.loss or ("infonce" if self.target == "pairs" else "cosent")

    @property
    def columns(self) -> tuple[str, ...]:
        return (FIRST, SECOND)

    @property
    def target_columns(self) -> tuple[str, ...]:
        if self.target == "pairs":
            return (THIRD,) if self.hard_negatives else ()
        return (self.target,)

    @property
    def head_kinds(self) -> frozenset[str]:
        return frozenset()

    def prompt(self, column: str) -> str:
        return self.prompts.get("query" if column == FIRST else "document", "")


@dataclass(frozen=True)
class Similarity:
    """An output is the two vectors of a row, [2, D], of length one."""

    settings: SimilaritySettings
    tokenizer: Tokenizer
    lengths: Lengths

    @property
    def name(self) -> str:
        return self.settings.type

    @property
    def heads(self) -> Mapping[str, int]:
        return {}

    def fitted(self, rows: Iterable[Mapping[str, Any]]) -> Similarity:
        settings = self.settings
        if settings.target == "label":
            return self._with(labels=_two_labels(rows, settings.labels))
        if settings.chosen_loss == "cosine" and settings.range is None:
            scores = [_number(row["score"]) for row in rows]
            if min(scores) == max(scores):
                raise DataError(say(f"all training rows have the score {scores[0]}",
                                    f"所有训练数据的分数都是 {scores[0]}"), where="score",
                                mend=say("give rows of different scores", "请提供分数不同的数据"))
            return self._with(range=(min(scores), max(scores)))
        return self

    def tuned(self, rows: list[Mapping[str, Any]], outputs: Callable[[], list[list[Any]]]) -> Similarity:
        if self.settings.target != "label" or self.settings.threshold is not None:
            return self
        return self._with(threshold=best_threshold(_cosines(outputs()), self._alike(rows)))

    def _with(self, **changes: Any) -> Similarity:
        return replace(self, settings=self.settings.model_copy(update=changes))

    # Learning -------------------------------------------------------------------------------------------

    def encode(self, number: int, row: Mapping[str, Any], *, with_targets: bool) -> Encoded:
        columns = (FIRST, SECOND, THIRD) if with_targets and self.settings.hard_negatives else (FIRST, SECOND)
        sequences, cut = [], 0
        for column in columns:
            text, before = str(row[column]), self.settings.prompt(column)
            ids, num_cut = text_ids(self.tokenizer, text, before, self.lengths, number)
            cut += num_cut
            values: dict[str, int | float] = {"text": text_key(ids)}
            if column == FIRST and with_targets and self.settings.target != "pairs":
                values["target"] = self._target(row)
            sequences.append(Sequence(number, {"ids": np.asarray(ids)}, values, column))
        return Encoded(sequences, cut)

    def _target(self, row: Mapping[str, Any]) -> float:
        if self.settings.target == "label":
            return float(self._alike([row])[0])
        score = _number(row["score"])
        if self.settings.range is None:
            return score
        low, high = self.settings.range
        if not low <= score <= high:
            raise DataError(say(f"the score {score} lies outside {low} … {high}", f"分数 {score} 超出 {low} 至 {high}"),
                            where="score", mend="task.range")
        return (score - low) / (high - low)

    def build(self, rows: Iterable[Mapping[str, Any]], folder: Path, seed: int, source_hash: str) -> Built:
        encoded = [self.encode(number, row, with_targets=True) for number, row in enumerate(rows)]
        examples = Rows([row.sequences for row in encoded])
        return Built(examples, len(encoded), int(examples.lengths(0).sum()),
                     sum(row.cut_tokens > 0 for row in encoded), sum(row.cut_tokens for row in encoded))

    def objective(self) -> Objective:
        settings = self.settings
        return compared(settings.chosen_loss, settings.pooling, settings.temperature or 0.05, settings.symmetric)

    # Measuring ------------------------------------------------------------------------------------------

    def outputs(self, model: LanguageModel, batch: Batch) -> list[Any]:
        sides = [text_vectors(model, batch.roles[side], self.settings.pooling) for side in (FIRST, SECOND)]
        return list(torch.stack(sides, dim=1).cpu().numpy())

    def pooled(self, outputs: list[Any]) -> np.ndarray:
        """The two vectors of a row, [2, D]."""
        [vectors_2D] = outputs
        return np.asarray(vectors_2D)

    def mean(self, found: list[np.ndarray]) -> list[Any]:
        """Of several models' vectors, which may differ in width: laid end to end, their cosine is the mean cosine."""
        return [np.concatenate(found, axis=1) / math.sqrt(len(found))]

    def decode(self, row: Mapping[str, Any], outputs: list[Any]) -> dict[str, Any]:
        """{"score"}, and {"label"} where there is a threshold."""
        [cosine] = _cosines([outputs])
        answer: dict[str, Any] = {"score": round(float(cosine), 6)}
        if self.settings.threshold is not None and self.settings.labels is not None:
            answer["label"] = self.settings.labels[int(cosine >= self.settings.threshold)]
        return answer

    def measure(self, rows: list[Mapping[str, Any]], outputs: list[list[Any]], seed: int) -> Measured:
        """Correlations with scores; for labels how well alike and not alike are told apart, without a threshold and,
        once there is one, with it; for pairs how well each text finds its own."""
        if self.settings.target == "pairs":
            return _retrieval(rows, outputs, seed)
        cosines = _cosines(outputs)
        if self.settings.target == "score":
            grades = [_number(row["score"]) for row in rows]
            metrics = {"spearman": spearman(cosines, grades, seed), "pearson": pearson(cosines, grades, seed)}
            return Measured(len(rows), metrics, {}, {"spearman": row_spearman(cosines, grades),
                                                     "pearson": row_pearson(cosines, grades)})
        return self._measure_labels(cosines, self._alike(rows), seed)

    def _measure_labels(self, cosines: np.ndarray, alike: np.ndarray, seed: int) -> Measured:
        metrics: dict[str, Estimate] = {}
        statistics: dict[str, Statistic] = {}
        if alike.any() and not alike.all():
            metrics |= {"average_precision": average_precision(cosines, alike, seed),
                        "roc_auc": roc_auc(cosines, alike, seed)}
            statistics |= {"average_precision": row_average_precision(cosines, alike),
                           "roc_auc": row_roc_auc(cosines, alike)}
        details: dict[str, Any] = {}
        if self.settings.threshold is not None:
            said = cosines >= self.settings.threshold
            _, by_label = f1_estimates(confusion_matrix(alike, said, 2), seed)
            metrics |= {"accuracy": wilson(int((said == alike).sum()), len(alike)), "f1": by_label[1]}
            statistics |= {"accuracy": row_mean(said == alike), "f1": row_ratio(2 * (said & alike), said * 1 + alike)}
            details = {"threshold": self.settings.threshold}
        return Measured(len(alike), metrics, details, statistics)

    def _alike(self, rows: Iterable[Mapping[str, Any]]) -> np.ndarray:
        """Whether each row's label is the second, [B]."""
        labels = self.settings.labels
        assert labels is not None, "not fitted"
        given = [str(row["label"]) for row in rows]
        for label in given:
            if label not in labels:
                raise DataError(
                    say(f"the label `{label}` was never seen in training", f"标签 `{label}` 在训练中从未出现"),
                    where="label", mend=say("known labels: ", "已知标签：") + ", ".join(labels))
        return np.asarray([label == labels[1] for label in given])

    def card(self) -> dict[str, Any]:
        return {**self.settings.model_dump(mode="json"), "lengths": self.lengths.model_dump(mode="json")}


def _retrieval(rows: list[Mapping[str, Any]], outputs: list[list[Any]], seed: int) -> Measured:
    """Mean reciprocal rank (Voorhees 1999) and the share of texts whose own comes first."""
    sides = np.stack([vectors for [vectors] in outputs])
    places = places_of_answers(sides[:, 0], sides[:, 1], [str(row[FIRST]) for row in rows],
                               [str(row[SECOND]) for row in rows])
    of_row = {"mrr": row_mean(1 / places), "recall_at_1": row_mean(places == 1)}
    metrics = {"mrr": bootstrap(of_row["mrr"], len(rows), seed),
               "recall_at_1": wilson(int((places == 1).sum()), len(rows))}
    return Measured(len(rows), metrics, {"candidates": len({str(row[SECOND]) for row in rows})}, of_row)


def _cosines(outputs: list[list[Any]]) -> np.ndarray:
    return np.asarray([float(np.dot(a, b)) for [(a, b)] in outputs])


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(say(f"the score `{value}` is no number", f"分数 `{value}` 不是数"), where="score",
                        mend=say("correct the row", "请改正该行"))
    return number


def _two_labels(rows: Iterable[Mapping[str, Any]], given: tuple[str, str] | None) -> tuple[str, str]:
    """The labels of the training rows, sorted, unless they are given. RecipeError for others, or not two."""
    found = sorted({str(row["label"]) for row in rows})
    if set(found) - set(given or found) or len(found) != 2:
        raise RecipeError(
            say(f"the training rows have the labels {', '.join(found)}; two are needed, not alike and alike",
                f"训练数据的标签为 {'、'.join(found)}；须恰好两个：不相似、相似"), where="task.labels",
            mend=say("for more classes: task: {type: classification, pair: true}",
                     "类别更多时请用 task: {type: classification, pair: true}"))
    return given or (found[0], found[1])
