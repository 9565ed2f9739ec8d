"""What training and evaluation need before they start: rows, tokenizer, model.

In: a Recipe and a Run. Out: rows with their counts (printed, and adding up), a tokenizer, a model on its device.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wenmo import device as machine
from wenmo.config import parse
from wenmo.data.augmentation import Augmentation, Augmented
from wenmo.data.examples import Examples, Mixture
from wenmo.data.sequence import Sequence as Tokens
from wenmo.data.sources import (
    SourceRows,
    carve_sources,
    contents,
    fingerprint,
    fold_numbers,
    open_sources,
    stream_rows,
    without,
)
from wenmo.errors import DataError, RecipeError, say
from wenmo.files import atomic_folder, sha256, sha256_file
from wenmo.locate import locate
from wenmo.modeldir import Opened, adapt, check_vocabulary, open_model, open_tokenizer
from wenmo.models import CustomHeads, ModelConfig, create
from wenmo.models.resize import with_vocabulary
from wenmo.recipe import DataSettings, From, FromModel, Recipe, TrainTokenizer
from wenmo.tasks import Built, CustomTasks, JointSettings, Task, create_task
from wenmo.tasks.task import TaskSettings
from wenmo.text import tokenizer_training
from wenmo.text.counts import Counts, Quarantine
from wenmo.text.intake import Row, Source
from wenmo.text.messages import texts_of
from wenmo.text.source import STRINGS, MissingColumn, SourceSettings, with_parts
from wenmo.text.tokenizer import Tokenizer
from wenmo.text.words import joined
from wenmo.training.optimizer import Start

_log = logging.getLogger(__name__)
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Rows:
    """Training rows, source by source, and the rows for choosing; no text stands in both."""

    train: list[SourceRows]
    choose: list[Row]

    @property
    def num_train(self) -> int:
        return sum(len(source.rows) for source in self.train)

    def texts(self, columns: Sequence[str]) -> Iterator[str]:
        for source in self.train:
            for row in source.rows:
                for column in columns:
                    if column not in row.values:  # of another task
                        continue
                    value = row.values[column]
                    if column == "messages":
                        yield from texts_of(value)
                    else:
                        yield joined([str(word) for word in value]) if column == "tokens" else str(value)


class Corpus:
    """The sources of a recipe, opened (every file looked at) but not yet read; `facts` are their hashes."""

    def __init__(self, recipe: Recipe, root: Path) -> None:
        columns, targets = recipe.task.columns, recipe.task.target_columns
        self.recipe, self.columns = recipe, columns
        if isinstance(recipe.task, JointSettings):
            self.train = [open_joint(source, root, recipe.task) for source in recipe.data.train]
            self.choose = [open_joint(source, root, recipe.task) for source in recipe.data.choose.files]
            self.report = [open_joint(source, root, recipe.task) for source in recipe.data.report]
        else:
            required = (*columns, *targets)
            self.train = open_sources(recipe.data.train, root, required, ())
            self.choose = open_sources(recipe.data.choose.files, root, required, ())
            self.report = open_sources(recipe.data.report, root, columns, targets)
        self.facts = {f"data.train.{i}": fingerprint(source) for i, source in enumerate(self.train)}
        self.facts |= {f"data.choose.{i}": fingerprint(source) for i, source in enumerate(self.choose)}
        self.facts |= {f"data.report.{i}": fingerprint(source) for i, source in enumerate(self.report)}

    def read(self, quarantine: Path) -> Rows:
        """All rows: printed counts; held-out texts (choose, report) taken out of training. Of a cross-validation that
        names no fold, those of the first."""
        train, choose = self._read_files(quarantine)
        settings = self.recipe.data.choose
        number = settings.number(sum(len(rows.rows) for rows in train))
        if settings.folds is not None:
            train, choose = self._without_fold(train, settings.fold or 1)
        elif number:
            # Not by the recipe's seed itself: where a test set was carved by the same number before, these rows are
            # the ones that have drawn high lots, and beside another source not one of them would be chosen.
            train, choose = carve_sources(train, number, machine.key("choose", self.recipe.seed))
            _log.info(say(f"{len(choose):,} rows held out for choosing", f"留出 {len(choose):,} 行用于选择"))
            # Of a text that stands in several rows, or for several tasks, some may have been drawn.
            if self.recipe.data.duplicates == "keep" or isinstance(self.recipe.task, JointSettings):
                known = contents(choose, self.columns)
                train = [replace(rows, rows=without(rows.rows, known, self.columns)) for rows in train]
        return self._some(Rows(train, choose))

    def read_with_folds(self) -> list[tuple[int, Row]]:
        """Each training row with the fold in which it is held out, in their order."""
        train, _ = self._read_files(None)
        rows = [row for source in train for row in source.rows]
        return list(zip(self._fold_numbers(rows), rows, strict=True))

    def _read_files(self, quarantine: Path | None) -> tuple[list[SourceRows], list[Row]]:
        """The training rows whose texts stand in no file held out, and the rows of the files for choosing."""
        unique = self.columns if self.recipe.data.duplicates == "drop" else ()
        train = read_opened(self.train, unique, quarantine)
        held_out = read_opened(self.choose, unique, quarantine)
        report = read_opened(self.report, unique, quarantine)
        for source in (*self.train, *self.choose, *self.report):
            for found in source.files:
                _log.info(str(found))
        for rows in (*train, *held_out):
            _log.info(str(rows))
        held_out = [self._without(report, rows) for rows in held_out]
        train = [self._without([*held_out, *report], rows) for rows in train]
        return train, [row for rows in held_out for row in rows.rows]

    def _fold_numbers(self, rows: Sequence[Row]) -> list[int]:
        """The fold in which each of the training rows is held out."""
        choose, task = self.recipe.data.choose, self.recipe.task
        assert choose.folds is not None
        joint = isinstance(task, JointSettings)
        classes = "label" in task.target_columns and choose.stratify is not False and not joint
        return fold_numbers(rows, choose.folds, machine.key("choose", self.recipe.seed), self.columns,
                            "label" if classes else None)

    def _without_fold(self, train: Sequence[SourceRows], fold: int) -> tuple[list[SourceRows], list[Row]]:
        """The rows of the other folds, source by source, and those of this one."""
        rows = [row for source in train for row in source.rows]
        drawn = [row for row, number in zip(rows, self._fold_numbers(rows), strict=True) if number == fold]
        gone = {id(row) for row in drawn}
        _log.info(say(f"fold {fold} of {self.recipe.data.choose.folds}: {len(drawn):,} rows held out",
                      f"第 {fold}/{self.recipe.data.choose.folds} 折：留出 {len(drawn):,} 行"))
        return [replace(each, rows=[row for row in each.rows if id(row) not in gone]) for each in train], drawn

    def _without(self, held_out: Sequence[SourceRows], rows: SourceRows) -> SourceRows:
        """The rows whose texts do not stand in the files held out."""
        known = contents((row for each in held_out for row in each.rows), self.columns)
        kept = without(rows.rows, known, self.columns) if known else rows.rows
        gone = len(rows.rows) - len(kept)
        if gone:
            name = rows.source.settings.path
            _log.info(say(f"{name}: {gone:,} rows left out, since they stand in the held-out files",
                          f"{name}：{gone:,} 行因出现在留出文件中而剔除"))
        return replace(rows, rows=kept)

    def _some(self, rows: Rows) -> Rows:
        """DataError where nothing is left to learn from, or to choose by."""
        if not any(source.rows for source in rows.train):
            raise DataError(say("no training row is left: all stand in the held-out files",
                                "没有剩下训练数据：所有行都在留出文件中"), where="data.train",
                            mend=say("give files with other rows", "请给出含有其他行的文件"))
        train = self.recipe.train
        if not rows.choose and (train.best is not None or train.evaluate_every is not None or train.samples):
            raise DataError(say("there are no rows to choose by", "没有可用于选择的数据"), where="data.choose",
                            mend=say("set data.choose.carve, or name files whose rows stand nowhere else",
                                     "请设置 data.choose.carve，或指定其内容不在别处出现的文件"))
        return rows


def open_joint(settings: SourceSettings, root: Path, task: JointSettings) -> Source:
    """A source for several tasks, or for those that it names: its files must have all their columns, a row may lack
    what is learned."""
    columns, targets = task.columns_of(settings.tasks)
    [source] = open_sources([settings], root, (*columns, *targets), ())
    return replace(source, required=frozenset(columns))


def read_opened(sources: Sequence[Source], unique_by: tuple[str, ...], quarantine: Path | None) -> list[SourceRows]:
    """The rows of opened sources, without duplicates among them."""
    counts = [Counts() for _ in sources]
    rows: list[list[Row]] = [[] for _ in sources]
    aside = Quarantine(quarantine) if quarantine is not None and sources else None
    for number, row in stream_rows(sources, counts, unique_by, aside):
        rows[number].append(row)
    return [SourceRows(source, found, count, "") for source, found, count in zip(sources, rows, counts, strict=True)]


def rows_of(path: str, columns: tuple[str, ...], *, given: Mapping[str, Any], trained_on: Mapping[str, Any],
            quarantine: Path | None = None, optional: tuple[str, ...] = ()) -> SourceRows:
    """The rows of a file, for evaluate and predict. `given`: source settings from the command line; without any, the
    columns are looked for under their standard names, then under those of the training data. DataError otherwise.
    `optional`: those that a row may lack."""
    source = open_given(path, columns, _only(columns, given) if optional else given, _only(columns, trained_on))
    source = replace(source, required=source.required - set(optional))
    [result] = read_opened([source], (), quarantine)
    _log.info(str(result))
    return result


def rows_to_measure(path: str, settings: TaskSettings, *, given: Mapping[str, Any],
                    trained_on: Mapping[str, Any]) -> SourceRows:
    """The rows of a file with all that the task reads and learns; of several tasks, what the file has for each."""
    columns = columns_in(path, settings, given, trained_on, with_targets=True)
    optional = settings.target_columns if isinstance(settings, JointSettings) else ()
    return rows_of(path, columns, given=given, trained_on=trained_on, optional=optional)


def columns_in(path: str, settings: TaskSettings, given: Mapping[str, Any], trained_on: Mapping[str, Any], *,
               with_targets: bool) -> tuple[str, ...]:
    """The columns that a task reads (and learns); of several tasks, those of each for which the file has them all."""
    found: dict[str, None] = {}
    for part in settings.tasks.values() if isinstance(settings, JointSettings) else ():
        wanted = (*part.inputs, *(part.targets if with_targets else ()))
        try:
            open_given(path, wanted, _only(wanted, given), _only(wanted, trained_on))
        except DataError:
            continue
        found |= dict.fromkeys(wanted)
    return tuple(found) or (*settings.columns, *(settings.target_columns if with_targets else ()))


def _only(names: Sequence[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """Source settings without what they say of other columns than these."""
    return {key: {name: its for name, its in value.items() if name in with_parts(names)}
            if key in ("columns", "constants", "parallel", "before") else value for key, value in options.items()}


def open_given(path: str, columns: tuple[str, ...], given: Mapping[str, Any],
               trained_on: Mapping[str, Any]) -> Source:
    """The source that a path on the command line names, opened; see `rows_of`."""
    only_encoding = not given.keys() - {"encoding"}
    tries = [given, {**trained_on, **given}] if only_encoding else [given]
    for options in tries[:-1]:
        try:
            return _opened(path, columns, options)
        except DataError:
            continue
    return _opened(path, columns, tries[-1])


def _opened(path: str, columns: tuple[str, ...], options: Mapping[str, Any]) -> Source:
    try:
        [source] = open_sources([parse(SourceSettings, {**options, "path": path}, path)], Path(), columns, ())
    except MissingColumn as error:
        if error.guess is None:
            raise
        choice = f"`--columns {error.name}={error.guess}`"  # here there is no recipe to write it into
        raise DataError(error.what, where=error.where,
                        mend=say(f"say which it is: {choice}", f"请指明是哪一列：{choice}")) from error
    return source


_OF_THE_FORMAT = ("format", "columns", "header", "separator", "quoting", "fields", "surplus", "before", "join")


def source_card(recipe: Recipe) -> dict[str, Any]:
    """How the training data called its columns: what stands in wenmo.json so that like files can be read again."""
    source = recipe.data.train[0]
    plain = SourceSettings(path=source.path)
    return {name: value for name, value in source.model_dump(mode="json").items()
            if name in _OF_THE_FORMAT and getattr(source, name) != getattr(plain, name)}


def normalization_card(recipe: Recipe) -> dict[str, Any]:
    """How texts were normalised before training; the loaded model does the same to what it is asked."""
    settings = [source.normalize for source in recipe.data.train]
    if any(each != settings[0] for each in settings):
        _log.warning(say("the sources are normalised differently; the model will treat questions like the first",
                         "各数据源的规范化设置不同；模型将按第一个数据源处理输入"))
    return settings[0].model_dump(mode="json")


# Tokenizer, model, task -------------------------------------------------------------------------------


def tokenizer_for(recipe: Recipe, rows: Rows, folder: Path) -> Tokenizer:
    """The model's own tokenizer, an existing one, or one trained on the training rows (kept in the run)."""
    if isinstance(recipe.model, FromModel):
        return open_tokenizer(recipe.model.reference)
    if isinstance(recipe.tokenizer, TrainTokenizer):
        if folder.exists():
            return Tokenizer.load(folder)
        columns = (*recipe.task.columns, *(each for each in recipe.task.target_columns if each in STRINGS))
        tokenizer = tokenizer_training.train(list(rows.texts(columns)), recipe.tokenizer.train)
        with atomic_folder(folder) as unfinished:
            tokenizer.save(unfinished)
        _log.info(say(f"tokenizer trained: {tokenizer.vocab_size:,} tokens",
                      f"分词器已训练：{tokenizer.vocab_size:,} 个词元"))
        return tokenizer
    return existing_tokenizer(recipe.tokenizer)


def refuse_misfit(recipe: Recipe, custom: CustomTasks | None = None) -> None:
    """RecipeError for a tokenizer that there is already and that the task cannot use, before any row is read."""
    if isinstance(recipe.model, FromModel):
        create_task(recipe.task, open_tokenizer(recipe.model.reference), recipe.data.lengths, custom)
    elif isinstance(recipe.tokenizer, From):
        create_task(recipe.task, existing_tokenizer(recipe.tokenizer), recipe.data.lengths, custom)


def existing_tokenizer(reference: From) -> Tokenizer:
    path = Path(reference.reference)
    return Tokenizer.load(path if (path / "tokenizer.json").exists() else locate(reference.reference))


_MODEL_FILES = ("config.json", "model.safetensors", "quantized.safetensors", "tokenizer.json", "adapter_config.json",
                "adapter_model.safetensors")


def model_facts(recipe: Recipe) -> dict[str, str]:
    """Hashes of what a recipe starts from, so that a resumed run starts from the same."""
    facts = {}
    for name, part in (("model", recipe.model), ("tokenizer", recipe.tokenizer)):
        if isinstance(part, From) and part.reference != "model":
            path = Path(part.reference)
            path = path if (path / "tokenizer.json").exists() else locate(part.reference)
            names = _MODEL_FILES if name == "model" else ("tokenizer.json",)
            files = [path] if path.is_file() else [path / each for each in names if (path / each).exists()]
            facts[name] = sha256(*(sha256_file(file) for file in files))
    return facts


def run_facts(corpus: Corpus, custom: CustomHeads | None = None) -> dict[str, str]:
    """The hashes of all that a run is made from beside its recipe."""
    return {**corpus.facts, **model_facts(corpus.recipe), **head_facts(custom)}


def head_facts(custom: CustomHeads | None) -> dict[str, str]:
    """The names of the heads handed in, so that a resumed run goes on with the same."""
    return {f"heads.{kind}": getattr(make, "__qualname__", type(make).__name__)
            for kind, make in sorted((custom or {}).items())}


def model_for(recipe: Recipe, task: Task, custom: CustomHeads | None = None) -> Opened:
    """A new model with the task's heads, or the trained one it starts from with these heads."""
    rng = machine.torch_rng("init", recipe.seed)
    if isinstance(recipe.model, FromModel):
        opened = open_model(recipe.model.reference, heads=task.heads, seed=machine.key("init", recipe.seed),
                            changes=recipe.model.config, custom=custom)
        _check_fit(recipe, opened.model.config, task)
        if opened.initialised:
            names = ", ".join(opened.initialised)
            _log.info(say(f"new, to be learned: {names}", f"新初始化、待训练：{names}"))
        if opened.left_out:
            _log.info(say(f"not needed for this task, left out: {len(opened.left_out)} tensors",
                          f"此任务不需要而略去：{len(opened.left_out)} 个张量"))
        grown = _follow_tokenizer(opened, task.tokenizer)
        if recipe.model.lora is not None:
            adapt(opened, recipe.model.lora, recipe.model.reference, {**recipe.model.config, **grown}, recipe.seed)
        return opened
    config = recipe.model.for_tokenizer(task.tokenizer.vocab_size, task.tokenizer.control)
    check_vocabulary(task.tokenizer, config.vocab_size, "model.vocab_size")
    _check_fit(recipe, config, task)
    return Opened(create(config, task.heads, rng, custom), task.tokenizer)


def _follow_tokenizer(opened: Opened, tokenizer: Tokenizer) -> dict[str, Any]:
    """The model with the task's tokenizer, which may have got a chat template and control tokens for it; what changes
    in the model's configuration by that."""
    opened.tokenizer = tokenizer
    before, num_new = opened.model, tokenizer.vocab_size - opened.model.config.vocab_size
    if num_new <= 0:
        return {}
    opened.model = with_vocabulary(before, tokenizer.vocab_size)
    sizes = {name: parameter.shape for name, parameter in before.named_parameters()}
    opened.initialised += [name for name, parameter in opened.model.named_parameters()
                           if parameter.shape != sizes[name]]  # an adapter trains and stores them whole
    _log.info(say(f"{num_new} new tokens; their embeddings begin as the mean of all",
                  f"新增 {num_new} 个词元，其嵌入的初值为全体的均值"))
    return {"vocab_size": tokenizer.vocab_size}


def _check_fit(recipe: Recipe, config: ModelConfig, task: Task) -> None:
    """RecipeError where the model's positions are too few, or its control tokens are not those of the tokenizer."""
    longest = config.max_tokens
    if longest is not None and recipe.data.max_tokens > longest:
        raise RecipeError(
            say(f"data.max_tokens is {recipe.data.max_tokens}, the model's positions end at {longest}",
                f"data.max_tokens 为 {recipe.data.max_tokens}，而模型的位置只到 {longest}"),
            where="data.max_tokens", mend=f"data.max_tokens: {longest}")
    if task.name == "similarity" and getattr(config, "is_encoder_decoder", False):
        raise RecipeError(
            say("an encoder–decoder reads two texts at once and has no vector for one",
                "编码器–解码器（encoder–decoder）需同时读入两段文本，无法给出单段文本的向量"), where="model",
            mend="model: {type: bert, …}")
    pad = task.tokenizer.pad_id
    for name in ("pad_token_id", "decoder_start_token_id"):  # a target begins with the padding: see tasks/
        if name in type(config).model_fields and (pad is None or getattr(config, name) != pad):
            given = getattr(config, name)
            raise RecipeError(
                say(f"the model's {name} is {given}, the tokenizer's padding is {pad}",
                    f"模型的 {name} 为 {given}，而分词器的填充词元编号为 {pad}"), where=f"model.{name}",
                mend=say(f"leave {name} out: it follows the tokenizer, which must have a padding token",
                         f"请去掉 {name}：它由分词器决定，且分词器须有填充词元"))


def start_of(recipe: Recipe, opened: Opened) -> Start | None:
    """What the weights decay towards, where the recipe says so: those of the model that it starts from."""
    return Start(recipe.train.l2_sp, frozenset(opened.initialised)) if recipe.train.l2_sp else None


def task_for(recipe: Recipe, tokenizer: Tokenizer, rows: Rows, custom: CustomTasks | None = None) -> Task:
    """The task, with its labels and class weights from the training rows."""
    task = create_task(recipe.task, tokenizer, recipe.data.lengths, custom)
    with placed([row for source in rows.train for row in source.rows]) as values:
        return task.fitted(values)


@contextmanager
def placed(rows: Sequence[Row]) -> Iterator[Iterator[Values]]:
    """The rows as a task takes them, one after the other. A DataError in between is of the row in hand, and says its
    file and line: rows held out, copies and bad rows have gone by then, and its number among these says nothing."""
    in_hand: list[tuple[int, Row]] = []

    def handed() -> Iterator[Values]:
        for number, row in enumerate(rows, 1):
            in_hand[:] = [(number, row)]
            yield row.values
        in_hand.clear()

    try:
        yield handed()
    except DataError as error:
        for number, row in in_hand:
            among, stands = say(f"row {number}", f"第 {number} 行"), f"{row.file}:{row.number}"
            error.where = error.where.replace(among, stands) if among in error.where else f"{stands}, {error.where}"
        raise


def examples_for(task: Task, rows: Rows, facts: Mapping[str, str], folder: Path, seed: int,
                 data: DataSettings) -> tuple[Examples, list[Built]]:
    """The training examples of all sources, mixed by weight and temperature; their texts changed anew in each epoch
    with `augment`."""
    held_out = sha256(*sorted(str(sorted(row.values.items())) for row in rows.choose))
    built = []
    for number, source in enumerate(rows.train):
        source_hash = sha256(facts[f"data.train.{number}"], held_out, str(len(source.rows)))
        with placed(source.rows) as values:
            built.append(task.build(values, folder, seed + number, source_hash))
    if data.augment is not None:
        built = _augmented(built, task, rows, seed, Augmentation(data.augment, rows.texts(task.settings.columns)))
    most = max(len(source.rows) for source in rows.train)
    weighted = [(each.examples, source.source.settings.weight * _more(len(source.rows) / most, data.temperature))
                for each, source in zip(built, rows.train, strict=True)]
    return Mixture(weighted, seed), built


def _more(share: float, temperature: float) -> float:
    """How many times more a source is drawn from that has this share of the largest one's rows."""
    return float(share ** (1 / temperature - 1)) if share else 1.0


def _augmented(built: Sequence[Built], task: Task, rows: Rows, seed: int, augmentation: Augmentation) -> list[Built]:
    def encode(number: int, row: Values) -> list[Tokens]:
        return task.encode(number, row, with_targets=True).sequences

    return [replace(each, examples=Augmented(values_of(source.rows), task.settings.columns, encode, augmentation,
                                             seed + number))
            for number, (each, source) in enumerate(zip(built, rows.train, strict=True))]


def print_built(built: Sequence[Built]) -> None:
    """What the rows became: tokens, and how much did not fit."""
    rows, tokens = sum(each.num_rows for each in built), sum(each.num_tokens for each in built)
    cut = sum(each.num_rows_cut for each in built)
    cut_tokens = sum(each.num_tokens_cut for each in built)
    _log.info(say(f"{rows:,} training rows, {tokens:,} tokens; {cut:,} rows truncated, {cut_tokens:,} tokens cut",
                  f"训练数据 {rows:,} 行，{tokens:,} 个词元；截断 {cut:,} 行，截去 {cut_tokens:,} 个词元"))
    for note in (note for each in built for note in each.notes):
        _log.info(note)
    skipped = sum(each.num_rows_skipped for each in built)
    if skipped:
        _log.warning(say(f"{skipped:,} rows skipped: nothing is learned from them",
                         f"跳过 {skipped:,} 行，未用于训练"))


def values_of(rows: Iterable[Row]) -> list[Values]:
    return [row.values for row in rows]
