"""The baseline that any tagger has to beat: a linear-chain CRF over what words and letters look like.

In: rows to learn from and rows to tag, through a tagging task that says what their units and tags are. Out: tags.
CRFsuite (Okazaki 2007) does the work (extra `baseline`). No embeddings, nothing pre-trained, nothing tuned.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wenmo.errors import DataError, MissingExtra, say
from wenmo.metrics import Estimate
from wenmo.metrics.comparison import difference
from wenmo.tasks.tagging import Tagging
from wenmo.text.tagging_schemes import tags_of, words_as_entities

Rows = Sequence[Mapping[str, Any]]
_SETTINGS = {"c1": 0.1, "c2": 0.01, "max_iterations": 100, "feature.possible_transitions": True}


def main_metric_of_tags(task: Tagging) -> str:
    """F1 of entities or words; of tags that make none, the share that is right."""
    return "token_accuracy" if task.settings.own_scheme is None else "f1"


def beside_crf(task: Any, rows: Rows, answers: Rows, train: Rows, seed: int) -> tuple[dict[str, Estimate],
                                                                                   dict[str, Any]]:
    """The CRF's figure on the rows, and the difference by paired bootstrap over sentences; with its settings."""
    metric, learnt = main_metric_of_tags(task), [task.tagged(row) for row in train]
    strange = sorted({tag for _, tags in learnt for tag in tags} - set(task.labels))
    if strange and task.settings.own_scheme is None:
        raise DataError(say(f"these rows have tags that the model does not know: {', '.join(strange)}",
                            f"这些数据里有模型不认识的标签：{'、'.join(strange)}"), where="--baseline",
                        mend=say("give the rows that the model learned from", "请给出模型训练所用的数据"))
    theirs = crf_tags(learnt, [task.tagged(row)[0] for row in rows])
    given = list(rows)
    ours = task.measured(given, [_tags_in(task, answer) for answer in answers], seed)
    baseline = task.measured(given, theirs, seed)
    return {f"baseline_{metric}": baseline.metrics[metric],
            "difference": difference(ours.statistics[metric], baseline.statistics[metric], len(given), seed)}, dict(
                _SETTINGS)


def crf_tags(train: Sequence[tuple[Sequence[str], Sequence[str]]], asked: Sequence[Sequence[str]]) -> list[list[str]]:
    """(units, tags) to learn from, units to tag → their tags. Raises MissingExtra without python-crfsuite."""
    try:
        import pycrfsuite
    except ImportError as error:
        raise MissingExtra("python-crfsuite", "baseline", say("the tagging baseline", "序列标注基线")) from error
    trainer = pycrfsuite.Trainer(verbose=False)
    trainer.set_params(_SETTINGS)
    for units, tags in train:
        trainer.append(features(units), list(tags))
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "model.crfsuite")
        trainer.train(file)
        tagger = pycrfsuite.Tagger()
        tagger.open(file)
        try:
            return [list(tagger.tag(features(units))) for units in asked]
        finally:
            tagger.close()


def features(units: Sequence[str]) -> list[list[str]]:
    """Of each unit: itself and two neighbours on either side, pairs of neighbours, its shape, beginning and end."""
    padded = ["<s>", "<s>", *(unit.lower() for unit in units), "</s>", "</s>"]
    shapes = [_shape(unit) for unit in units]
    result = []
    for place, unit in enumerate(units):
        two_before, before, its, after, two_after = padded[place : place + 5]
        result.append([
            "bias", f"w={unit}", f"l={its}", f"l-1={before}", f"l-2={two_before}", f"l+1={after}", f"l+2={two_after}",
            f"l-1l={before}|{its}", f"ll+1={its}|{after}", f"l-1l+1={before}|{after}", f"shape={shapes[place]}",
            f"shape-1={shapes[place - 1] if place else '<s>'}",
            f"shape+1={shapes[place + 1] if place + 1 < len(units) else '</s>'}",
            *(f"begin{n}={its[:n]}" for n in (1, 2, 3) if len(its) >= n),
            *(f"end{n}={its[-n:]}" for n in (1, 2, 3) if len(its) >= n)])
    return result


def _shape(unit: str) -> str:
    """`McDonald` → XxXx, `1998年` → dc: kinds of characters, a run as one."""
    kinds = ["d" if c.isdigit() else "X" if c.isupper() else "x" if c.islower() else "c" if c.isalpha() else c
             for c in unit]
    return "".join(kind for at, kind in enumerate(kinds) if at == 0 or kind != kinds[at - 1])


def _tags_in(task: Tagging, answer: Mapping[str, Any]) -> list[str]:
    """The tags of an answer; of words, those that make them."""
    if task.settings.target != "words":
        return list(answer["tags"])
    words = ["".join(word.split()) for word in answer["words"]]
    scheme = task.settings.own_scheme
    assert scheme is not None
    return tags_of(words_as_entities(words), sum(map(len, words)), scheme)
