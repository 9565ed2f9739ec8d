"""Recipe: the frozen, full description of a run. It only composes the settings that live beside what they set.

In: YAML and overrides. Out: one `Recipe`, or one error with every fault in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, SerializeAsAny, Tag, ValidationInfo, WrapValidator, model_validator

from wenmo.config import Count, Settings, apply_overrides, free, parse, read_yaml
from wenmo.data.augmentation import AugmentSettings
from wenmo.device import DType
from wenmo.errors import RecipeError, say
from wenmo.faults import DEVICE
from wenmo.models import CRF_KIND, AnyConfig, CustomHeads, architecture
from wenmo.models.lora import LoraSettings
from wenmo.tasks import CustomTasks, JointSettings, Lengths, TaskSettings, TextSettings, known_tasks
from wenmo.tasks.chat import ChatSettings
from wenmo.tasks.similarity import SimilaritySettings
from wenmo.tasks.span_corruption import SpanCorruptionSettings, sentinel_fault
from wenmo.tasks.text_to_text import TextToTextSettings
from wenmo.text.source import SourceSettings
from wenmo.text.tokenizer_training import MASK, TokenizerSettings
from wenmo.training.best import BestSettings
from wenmo.training.groups import GroupSettings
from wenmo.training.loop import LoopSettings
from wenmo.training.optimizer import AdamW, OptimizerSettings
from wenmo.training.processes import ParallelSettings
from wenmo.training.regularisers import RegulariserSettings
from wenmo.training.schedule import CosineSchedule, ScheduleSettings
from wenmo.training.unfreezing import UnfreezeSettings


class From(Settings):
    """A reference to a model or tokenizer that exists (folder, Run, .gguf, hf:org/name, ms:org/name, pkg:NAME)."""

    reference: str = Field(alias="from")


class FromModel(From):
    """`config`: keys of the model's own configuration to be changed for this run, such as its dropout. `lora`: the
    model is frozen and an adapter is trained beside it; the Run then holds the adapter alone (models/lora.py)."""

    config: dict[str, Any] = Field({})
    lora: LoraSettings | None = None


class TrainTokenizer(Settings):
    train: TokenizerSettings


def _kind(value: Any) -> str | None:
    """Which kind of model a mapping describes: one that exists, or a new one of some architecture. Called otherwise
    than any key: pydantic puts it into the path of a fault, where it is told from keys (config.parse)."""
    if isinstance(value, Settings):
        return "trained" if isinstance(value, FromModel) else "new"
    if not isinstance(value, dict):
        return None
    return "trained" if "from" in value else "new"


ModelSettings = Annotated[
    Annotated[FromModel, Tag("trained")] | Annotated[AnyConfig, Tag("new")], Discriminator(_kind)]


def _tokenizer_kind(value: Any) -> str:
    return "trained" if isinstance(value, From) or (isinstance(value, dict) and "from" in value) else "new"


TokenizerChoice = Annotated[
    Annotated[From, Tag("trained")] | Annotated[TrainTokenizer, Tag("new")], Discriminator(_tokenizer_kind)]


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
    """`report` names what is kept for `wenmo evaluate`; training opens it only to leave its texts out.
    `temperature`: T, so that a source of n rows is drawn from in proportion to n^(1/T) (Conneau et al. 2020, §3.1): the
    largest is seen once an epoch (times its weight), a smaller one more often."""

    train: tuple[SourceSettings, ...] = Field(min_length=1)
    choose: Choose = Choose()
    report: tuple[SourceSettings, ...] = ()
    duplicates: Literal["drop", "keep"] = "drop"
    temperature: float = Field(1.0, ge=1, allow_inf_nan=False)
    augment: AugmentSettings | None = None

    @property
    def lengths(self) -> Lengths:
        return Lengths(**{name: getattr(self, name) for name in Lengths.model_fields})


class TrainSettings(LoopSettings, RegulariserSettings):
    """`batch_tokens`: of one optimizer step, cut into `accumulation` micro-batches. `evaluate_every` and `save_every`
    are steps; left out, a tenth of the run. `samples`: at each evaluation prompts are continued (causal_lm), questions
    answered (chat), sources turned into targets (text_to_text).

    `ema`: the decay of a moving average of the weights, which is then what is validated and kept. `layer_decay`: each
    layer's rate in shares of that of the layer above. `l2_sp`: how strongly the weights of a trained model
    decay towards what they were; `weight_decay` is then for new heads alone. `checkpoint_activations`: each layer is
    computed a second time in the backward instead of being remembered: the same weights to the last bit, in less memory
    and more time (nn/block.py). `compile`: layers run code that torch.compile makes of them, which takes about half a
    minute at the start and a C++ compiler (nn/compiled.py). On resume the length and the schedule may change as long as
    no step that is done would have had another rate (`schedule.refuse_other_past`).
    """

    epochs: float | None = free(None, gt=0, allow_inf_nan=False)
    steps: Count | None = free(None, gt=0)
    batch_tokens: Count = Field(8192, gt=0)
    accumulation: int = Field(1, ge=1)
    optimizer: OptimizerSettings = AdamW()
    schedule: ScheduleSettings = free(CosineSchedule())
    groups: tuple[GroupSettings, ...] = ()
    unfreeze: UnfreezeSettings | None = None
    layer_decay: float | None = Field(None, gt=0, lt=1)
    l2_sp: float = Field(0.0, ge=0, allow_inf_nan=False)
    ema: float | None = Field(None, gt=0, lt=1)
    checkpoint_activations: bool = free(False)
    compile: bool = False
    parallel: ParallelSettings = free(ParallelSettings())
    dtype: DType = "auto"
    device: str = free("auto", pattern=DEVICE)
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


def texts_in(task: Any) -> list[TextSettings]:
    """The settings of the tasks that read whole texts: the one, or those among several."""
    parts = [part.task for part in task.tasks.values()] if isinstance(task, JointSettings) else [task]
    return [part for part in parts if isinstance(part, TextSettings)]


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
        faults = [*self._model_faults(frozenset((info.context or {}).get("heads") or ())), *self._useless_keys(),
                  *self._source_faults()]
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
        if kinds - custom_heads - {CRF_KIND} not in cls.classes.values():
            wanted = " + ".join(sorted(kinds))
            yield say(f"`model.type: {self.model.model_type}` has no head for {wanted}",
                      f"`model.type: {self.model.model_type}` 没有 {wanted} 对应的输出头")
        if (isinstance(self.tokenizer, TrainTokenizer) and self.task.type == "masked_lm"
                and MASK not in self.tokenizer.train.all_control_tokens):
            yield say(f"masked_lm needs the mask token {MASK}: `tokenizer: {{train: {{type: wordpiece}}}}`, or "
                      "`{type: bpe, masked: true}`",
                      f"masked_lm 需要 mask 词元 {MASK}：`tokenizer: {{train: {{type: wordpiece}}}}`，"
                      "或 `{type: bpe, masked: true}`")
        if isinstance(self.tokenizer, TrainTokenizer) and isinstance(self.task, ChatSettings) and (
                self.task.template is None):
            yield say("a tokenizer trained here has no chat template: set `task.template: chatml`",
                      "此处训练的分词器没有对话模板：请设置 `task.template: chatml`")
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
        if choose.stratify and ("label" not in self.task.target_columns or isinstance(self.task, JointSettings)):
            yield useless("data.choose.stratify", "the task has no classes", "该任务没有类别")
        if choose.carve == 0 and not choose.files and choose.folds is None:
            for name in ("best", "evaluate_every", "samples"):
                if getattr(self.train, name):
                    yield say(f"train.{name} needs rows to choose by: set data.choose.carve",
                              f"train.{name} 需要用于选择的数据：请设置 data.choose.carve")
        if self.train.l2_sp and not isinstance(self.model, FromModel):
            yield useless("train.l2_sp", "a new model has no weights to stay near", "新模型没有可供靠近的已有权重")
        if self.train.compile and (self.train.checkpoint_activations or (
                isinstance(self.model, FromModel) and self.model.lora is not None)):
            yield say("train.compile goes neither with train.checkpoint_activations nor with model.lora: leave one out",
                      "train.compile 不能与 train.checkpoint_activations 或 model.lora 同时使用：请去掉其一")
        if self.train.samples and self.task.type not in ("causal_lm", "chat", "text_to_text"):
            yield say("train.samples needs a task that writes: causal_lm, chat or text_to_text",
                      "train.samples 只适用于会写文本的任务：causal_lm、chat 或 text_to_text")
        reads_texts = isinstance(self.task, (TextSettings, TextToTextSettings, ChatSettings, SimilaritySettings))
        if self.data.too_long != "head" and not (reads_texts or texts_in(self.task)):
            yield useless("data.too_long", "long documents are cut into pieces and all are learned from",
                          "长文档会切成片段，全部用于训练")
        if self.data.too_long == "window":
            yield from self._window_faults()
        if self.data.too_long != "window" or not isinstance(self.task, TextSettings):
            for name in ("overlap_tokens", "pool"):
                if getattr(self.data, name) != Lengths.model_fields[name].default:
                    yield useless(f"data.{name}", "no text is read in windows (data.too_long: window) for one answer",
                                  "没有文本分窗口（data.too_long: window）读取并合成一个答案")
        if self.data.augment is not None and not isinstance(self.task, TextSettings):
            yield useless("data.augment", "what is learned is not one answer to a whole text",
                          "所学的不是对整段文本的一个答案")
        if self.data.too_long == "both" and isinstance(self.task, ChatSettings):
            yield say("data.too_long: both would take the middle out of a conversation: head, tail, window or refuse",
                      "data.too_long: both 会去掉对话的中间部分：请用 head、tail、window 或 refuse")
        for part, sources in (("choose.files", self.data.choose.files), ("report", self.data.report)):
            for number, source in enumerate(sources):
                if source.weight != 1:
                    yield useless(f"data.{part}.{number}.weight", "each row is read once", "每行只读一次")
        if isinstance(self.tokenizer, TrainTokenizer):
            train = self.tokenizer.train
            if train.type == "wordpiece" and train.max_run != TokenizerSettings().max_run:
                yield useless("tokenizer.train.max_run", "wordpiece takes Han characters one by one",
                              "wordpiece 逐个处理汉字")


    def _source_faults(self) -> Iterator[str]:
        """Sources that name tasks which there are not, or a temperature between one source and itself."""
        names = tuple(self.task.tasks) if isinstance(self.task, JointSettings) else ()
        for part, sources in (("train", self.data.train), ("choose.files", self.data.choose.files),
                              ("report", self.data.report)):
            for number, source in enumerate(sources):
                for name in source.tasks:
                    if name not in names:
                        yield say(f"data.{part}.{number}.tasks: there is no task `{name}` under `tasks`",
                                  f"data.{part}.{number}.tasks：`tasks` 中没有任务 `{name}`")
        if self.data.temperature != 1 and len(self.data.train) < 2:
            yield say("data.temperature needs several sources in data.train",
                      "data.temperature 需要 data.train 中有多个数据源")

    def _window_faults(self) -> Iterator[str]:
        if texts_in(self.task):
            if any(each.pair for each in texts_in(self.task)):
                yield say("data.too_long: window is for single texts; a pair is cut: head, tail, both or refuse",
                          "data.too_long: window 只适用于单个文本；文本对只能截断：head、tail、both 或 refuse")
            if self.data.overlap_tokens >= self.data.max_tokens // 2:
                yield say(f"data.overlap_tokens is {self.data.overlap_tokens}: less than half of data.max_tokens "
                          f"({self.data.max_tokens}) must be shared, or windows multiply",
                          f"data.overlap_tokens 为 {self.data.overlap_tokens}：须小于 data.max_tokens"
                          f"（{self.data.max_tokens}）的一半，否则窗口过多")
        elif isinstance(self.task, (TextToTextSettings, SimilaritySettings)):
            yield say("data.too_long: window is not for this task: head, tail, both or refuse",
                      "此任务不能用 data.too_long: window：请用 head、tail、both 或 refuse")


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file with `a.b=c` laid over it. Raises RecipeError with all faults."""
    return parse_recipe(apply_overrides(read_yaml(path), overrides), str(path))


def parse_recipe(data: dict[str, Any], where: str, tasks: CustomTasks | None = None,
                 heads: CustomHeads | None = None) -> Recipe:
    """A recipe from a mapping. `model.type` is the recipe's word for `model_type`, and `tasks: {…}` for a joint task;
    the arguments `tasks` and `heads` are those that were handed in beside Wenmo's own."""
    known_tasks(tasks)
    if "tasks" in data:  # several in one model
        if "task" in data:
            raise RecipeError(say("give `task` or `tasks`, one of the two", "`task` 与 `tasks` 只能给一个"),
                              where=where,
                              mend=say("of several tasks each stands under `tasks`, by its name",
                                       "多个任务时，各按名称写在 `tasks` 之下"))
        if isinstance(data["tasks"], Mapping) and len(data["tasks"]) < 2:
            raise RecipeError(say("`tasks` is for several", "`tasks` 用于多个任务"), where=where,
                              mend=say("give a single one as `task: {…}`", "只有一个时写成 `task: {…}`"))
        data = {**{key: value for key, value in data.items() if key != "tasks"},
                "task": {"type": "joint", "tasks": data["tasks"]}}
    model = data.get("model")
    if isinstance(model, dict) and "type" in model:
        data = {**data, "model": {"model_type": model["type"], **{k: v for k, v in model.items() if k != "type"}}}
    return parse(Recipe, data, where, context(tasks, heads))


def context(tasks: CustomTasks | None, heads: CustomHeads | None) -> dict[str, Any]:
    """What a recipe's validators must know of what was handed in."""
    return {"tasks": tasks, "heads": heads}
