"""The tokenizer, the task and the model that a recipe begins with.

In: a recipe and its rows. Out: a tokenizer (trained here, or one that there is), the task with its labels, and a model
with the task's heads: new, or from a reference, with an adapter where the recipe wants one. Or a RecipeError that says
what does not fit.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from wenmo import device as machine
from wenmo.errors import RecipeError, say
from wenmo.files import atomic_folder
from wenmo.modeldir import Opened, adapt, check_vocabulary, open_model, open_tokenizer
from wenmo.models import CustomHeads, ModelConfig, create, lora
from wenmo.models.resize import with_vocabulary
from wenmo.nn.block import checkpoint_activations
from wenmo.nn.compiled import compile_blocks, refuse_without_compiler
from wenmo.recipe import From, FromModel, Recipe, TrainTokenizer
from wenmo.stages.prepare.rows import Rows, placed
from wenmo.tasks import CustomTasks, Task, create_task
from wenmo.tasks.chat import Chat
from wenmo.text import tokenizer_training
from wenmo.text.source import STRINGS
from wenmo.text.tokenizer import Tokenizer
from wenmo.training.optimizer import Start

_log = logging.getLogger(__name__)


def tokenizer_for(recipe: Recipe, rows: Rows, folder: Path, known: Tokenizer | None = None) -> Tokenizer:
    """The model's own tokenizer, an existing one, or one trained on the training rows (kept in the run). `known`: what
    `refuse_misfit` has opened; a large vocabulary takes half a second."""
    if known is not None:
        return known
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
    return open_tokenizer(recipe.tokenizer.reference)


def refuse_misfit(recipe: Recipe, custom: CustomTasks | None = None) -> Tokenizer | None:
    """RecipeError for a tokenizer that there is already and that the task cannot use, before any row is read; None
    where one is to be trained. UsageError for a C++ compiler that is wanted and absent."""
    if recipe.train.compile:
        refuse_without_compiler()
    if isinstance(recipe.model, FromModel):
        tokenizer = open_tokenizer(recipe.model.reference)
    elif isinstance(recipe.tokenizer, From):
        tokenizer = open_tokenizer(recipe.tokenizer.reference)
    else:
        return None
    create_task(recipe.task, tokenizer, recipe.data.lengths, custom)
    return tokenizer


def task_for(recipe: Recipe, tokenizer: Tokenizer, rows: Rows, custom: CustomTasks | None = None) -> Task:
    """The task, with its labels and class weights from the training rows."""
    task = create_task(recipe.task, tokenizer, recipe.data.lengths, custom)
    with placed([row for source in rows.train for row in source.rows]) as values:
        return task.fitted(values)


def model_for(recipe: Recipe, task: Task, custom: CustomHeads | None = None) -> Opened:
    """A new model with the task's heads, or the trained one it starts from with these heads; as it is to be trained."""
    opened = _opened_or_new(recipe, task, custom)
    if isinstance(task, Chat):  # an answer ends with its turn; transformers too reads it here
        opened.generation = {**opened.generation, "eos_token_id": list(task.ends)}
    if recipe.train.checkpoint_activations:
        checkpoint_activations(opened.model)
    if recipe.train.compile:
        compile_blocks(opened.model)
    return opened


def place_on(opened: Opened, on: machine.Device) -> Any:
    """The model where it is trained and in the format that it computes in there; frozen matrices are kept in it."""
    opened.model.to(on.device)
    opened.model.compute_dtype = on.dtype
    if opened.adapter is not None:
        lora.round_frozen(opened.model, on.dtype)
    return opened.model


def _opened_or_new(recipe: Recipe, task: Task, custom: CustomHeads | None) -> Opened:
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
