"""Recipe: the frozen, full description of a run. It only composes the settings that live beside what they set.

In: YAML and overrides. Out: one `Recipe`, or one error with every fault in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, SerializeAsAny, Tag, ValidationInfo, WrapValidator, model_validator

from wenmo.config import Count, Settings, apply_overrides, free, parse, read_yaml
from wenmo.device import DType
from wenmo.errors import say
from wenmo.models import AnyConfig, CustomHeads, architecture
from wenmo.tasks import CustomTasks, Lengths, TaskSettings, TextSettings, known_tasks
from wenmo.tasks.span_corruption import SpanCorruptionSettings, sentinel_fault
from wenmo.text.source import SourceSettings
from wenmo.text.tokenizer_training import MASK, TokenizerSettings
from wenmo.training.best import BestSettings
from wenmo.training.groups import GroupSettings
from wenmo.training.loop import LoopSettings
from wenmo.training.optimizer import AdamW, OptimizerSettings
from wenmo.training.schedule import CosineSchedule, ScheduleSettings


class From(Settings):
    """A reference to a model or tokenizer that exists (folder, Run, .gguf, hf:org/name, ms:org/name, pkg:NAME)."""

    reference: str = Field(alias="from")


class FromModel(From):
    """`config`: keys of the model's own configuration to be changed for this run, such as its dropout."""

    config: dict[str, Any] = Field({})


class TrainTokenizer(Settings):
    train: TokenizerSettings


def _kind(value: Any) -> str | None:
    """Which kind of model a mapping describes: one that exists, `from`, or a new one of some architecture."""
    if isinstance(value, Settings):
        return "from" if isinstance(value, FromModel) else "new"
    if not isinstance(value, dict):
        return None
    return "from" if "from" in value else "new"


ModelSettings = Annotated[
    Annotated[FromModel, Tag("from")] | Annotated[AnyConfig, Tag("new")], Discriminator(_kind)]


def _tokenizer_kind(value: Any) -> str:
    return "from" if isinstance(value, From) or (isinstance(value, dict) and "from" in value) else "train"


TokenizerChoice = Annotated[
    Annotated[From, Tag("from")] | Annotated[TrainTokenizer, Tag("train")], Discriminator(_tokenizer_kind)]


class Choose(Settings):
    """Rows for validation and for choosing the best checkpoint: `carve` so many from the training rows (by seed, after
    duplicates are dropped; left out: a twentieth, at most 1,000), or files of their own. 0 measures nothing.

    `folds`: cross-validation, so many runs in which each training row is held out once; `refit` then trains a model on
    all rows. With `fold` only this one of them is run (on another machine, say). `stratify`: every fold has its share
    of each class; left out, where the task has classes.
    """

    carve: Count | None = None
    files: tuple[SourceSettings, ...] = ()
    folds: int | None = Field(None, ge=2)
    fold: int | None = Field(None, ge=1)
    stratify: bool | None = None
    refit: bool = True

    @property
    def cross_validates(self) -> bool:
        return self.folds is not None and self.fold is None

    def number(self, num_rows: int) -> int:
        """How many of the training rows are carved out."""
        if self.files or self.folds is not None:
            return 0
        return min(num_rows // 20, 1000) if self.carve is None else self.carve

    @model_validator(mode="after")
    def _one_way(self) -> Choose:
        if bool(self.carve) + bool(self.files) + (self.folds is not None) > 1:
            raise ValueError(say("give `carve`, `files` or `folds`, one of them",
                                 "`carve`、`files` 与 `folds` 只能给一个"))
        if self.folds is None and (self.fold is not None or self.stratify is not None or not self.refit):
            raise ValueError(say("`fold`, `stratify` and `refit` do nothing without `folds`",
                                 "没有 `folds` 时，`fold`、`stratify` 与 `refit` 不起作用"))
        if self.folds is not None and self.fold is not None and self.fold > self.folds:
            raise ValueError(say(f"there are {self.folds} folds, there is no fold {self.fold}",
                                 f"共 {self.folds} 折，没有第 {self.fold} 折"))
        if self.fold is not None and not self.refit:
            raise ValueError(say("`refit` does nothing beside `fold`: one fold alone is never refitted",
                                 "给出 `fold` 时 `refit` 不起作用：单独一折不会再训练"))
        return self


class DataSettings(Lengths):
    """`report` is read by `evaluate` alone, once; training never opens it but to leave its texts out."""

    train: tuple[SourceSettings, ...] = Field(min_length=1)
    choose: Choose = Choose()
    report: tuple[SourceSettings, ...] = ()
    duplicates: Literal["drop", "keep"] = "drop"

    @property
    def lengths(self) -> Lengths:
        return Lengths(max_tokens=self.max_tokens, too_long=self.too_long)


class TrainSettings(LoopSettings):
    """`batch_tokens`: of one optimizer step, cut into `accumulation` micro-batches. `evaluate_every` and `save_every`
    are steps; left out, a tenth of the run. `samples`: prompts to be continued at each evaluation.

    `ema`: the decay of a moving average of the weights, which is then what is validated and kept. `layer_decay`: each
    layer's rate in shares of that of the layer above. On resume the length and the schedule may change as long as no
    step that is done would have had another rate (`schedule.refuse_other_past`).
    """

    epochs: float | None = free(None, gt=0, allow_inf_nan=False)
    steps: Count | None = free(None, gt=0)
    batch_tokens: Count = Field(8192, gt=0)
    accumulation: int = Field(1, ge=1)
    optimizer: OptimizerSettings = AdamW()
    schedule: ScheduleSettings = free(CosineSchedule())
    groups: tuple[GroupSettings, ...] = ()
    layer_decay: float | None = Field(None, gt=0, lt=1)
    ema: float | None = Field(None, gt=0, lt=1)
    dtype: DType = "auto"
    device: str = free("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    threads: int | None = free(None, gt=0)
    best: BestSettings | None = None
    evaluate_every: Count | None = Field(None, gt=0)
    save_every: Count | None = free(None, gt=0)
    keep: int = free(2, ge=1)
    log_every: Count = free(10, gt=0)
    samples: tuple[str, ...] = free(())

    @model_validator(mode="after")
    def _one_length(self) -> TrainSettings:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(say("give `epochs` or `steps`, one of the two", "`epochs` 与 `steps` 须且只能给一个"))
        return self


def _task(value: Any, validate: Callable[[Any], Any], info: ValidationInfo) -> Any:
    """The settings of a task that was handed in (see `parse_recipe`), or of one from the table."""
    custom = (info.context or {}).get("tasks") or {}
    kind = value.get("type") if isinstance(value, Mapping) else None
    return custom[kind][0].model_validate(value) if kind in custom else validate(value)


class Recipe(Settings):
    version: Literal[1] = 1
    seed: int = Field(0, ge=0)
    model: ModelSettings
    tokenizer: TokenizerChoice = From(**{"from": "model"})
    data: DataSettings
    task: SerializeAsAny[Annotated[TaskSettings, WrapValidator(_task)]]
    train: TrainSettings

    @model_validator(mode="after")
    def _parts_fit(self, info: ValidationInfo) -> Recipe:
        """What can be known to be wrong before a single row is read."""
        faults = [*self._model_faults(frozenset((info.context or {}).get("heads") or ())), *self._useless_keys()]
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def _model_faults(self, custom_heads: frozenset[str]) -> Iterator[str]:
        from_model = isinstance(self.tokenizer, From) and self.tokenizer.reference == "model"
        if isinstance(self.model, FromModel):
            if not from_model:
                yield say("a trained model keeps its tokenizer: take `tokenizer` out",
                          "已训练的模型须用自己的分词器：请去掉 `tokenizer`")
            return
        if from_model:
            yield say("a new model needs a tokenizer: `tokenizer: {train: {…}}` or `{from: …}`",
                      "新模型需要分词器：`tokenizer: {train: {…}}` 或 `{from: …}`")
        longest = self.model.max_tokens
        if longest is not None and self.data.max_tokens > longest:
            yield say(f"data.max_tokens is {self.data.max_tokens}, the model's positions end at {longest}",
                      f"data.max_tokens 为 {self.data.max_tokens}，而模型的位置只到 {longest}")
        kinds, cls = self.task.head_kinds, architecture(self.model.model_type, "model.type")
        if kinds - custom_heads not in cls.classes.values():
            wanted = " + ".join(sorted(kinds))
            yield say(f"`model.type: {self.model.model_type}` has no head for {wanted}",
                      f"`model.type: {self.model.model_type}` 没有 {wanted} 对应的输出头")
        if (isinstance(self.tokenizer, TrainTokenizer) and self.task.type == "masked_lm"
                and MASK not in self.tokenizer.train.all_control_tokens):
            yield say(f"masked_lm needs the mask token {MASK}: `tokenizer: {{train: {{type: wordpiece}}}}`, or "
                      "`{type: bpe, masked: true}`",
                      f"masked_lm 需要 mask 词元 {MASK}：`tokenizer: {{train: {{type: wordpiece}}}}`，"
                      "或 `{type: bpe, masked: true}`")
        if isinstance(self.tokenizer, TrainTokenizer) and "seq2seq_lm" in kinds and not self.tokenizer.train.seq2seq:
            yield say(f"{self.task.type} needs an encoder–decoder's tokenizer: `tokenizer.train.seq2seq: true`",
                      f"{self.task.type} 需要编码器–解码器的分词器：`tokenizer.train.seq2seq: true`")
        elif isinstance(self.tokenizer, TrainTokenizer) and isinstance(self.task, SpanCorruptionSettings):
            fault = sentinel_fault(self.task, self.data.lengths, self.tokenizer.train.sentinels, num_wrapping=1)
            if fault is not None:
                yield f"`{fault.where}`: {fault.what} ({fault.mend})"

    def _useless_keys(self) -> Iterator[str]:
        """Each key acts, or is refused."""
        def useless(key: str, en: str, zh: str) -> str:
            return say(f"`{key}` does nothing here, {en}: take it out", f"`{key}` 在此不起作用（{zh}）：请去掉")

        choose = self.data.choose
        if choose.stratify and "label" not in self.task.target_columns:
            yield useless("data.choose.stratify", "the task has no classes", "该任务没有类别")
        if choose.carve == 0 and not choose.files and choose.folds is None:
            for name in ("best", "evaluate_every", "samples"):
                if getattr(self.train, name):
                    yield say(f"train.{name} needs rows to choose by: set data.choose.carve",
                              f"train.{name} 需要用于选择的数据：请设置 data.choose.carve")
        if self.train.samples and self.task.type != "causal_lm":
            yield say("train.samples needs a causal_lm task", "train.samples 只适用于 causal_lm 任务")
        if self.data.too_long != "head" and not isinstance(self.task, TextSettings):
            yield useless("data.too_long", "long documents are cut into pieces and all are learned from",
                          "长文档会切成片段，全部用于训练")
        for part, sources in (("choose.files", self.data.choose.files), ("report", self.data.report)):
            for number, source in enumerate(sources):
                if source.weight != 1:
                    yield useless(f"data.{part}.{number}.weight", "each row is read once", "每行只读一次")
        if isinstance(self.tokenizer, TrainTokenizer):
            train = self.tokenizer.train
            if train.type == "wordpiece" and train.max_run != TokenizerSettings().max_run:
                yield useless("tokenizer.train.max_run", "wordpiece takes Han characters one by one",
                              "wordpiece 逐个处理汉字")


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file with `a.b=c` laid over it. Raises RecipeError with all faults."""
    return parse_recipe(apply_overrides(read_yaml(path), overrides), str(path))


def parse_recipe(data: dict[str, Any], where: str, tasks: CustomTasks | None = None,
                 heads: CustomHeads | None = None) -> Recipe:
    """A recipe from a mapping. `model.type` is the recipe's word for `model_type`; `tasks` and `heads` are those that
    were handed in beside Wenmo's own."""
    known_tasks(tasks)
    model = data.get("model")
    if isinstance(model, dict) and "type" in model:
        data = {**data, "model": {"model_type": model["type"], **{k: v for k, v in model.items() if k != "type"}}}
    return parse(Recipe, data, where, context(tasks, heads))


def context(tasks: CustomTasks | None, heads: CustomHeads | None) -> dict[str, Any]:
    """What a recipe's validators must know of what was handed in."""
    return {"tasks": tasks, "heads": heads}
