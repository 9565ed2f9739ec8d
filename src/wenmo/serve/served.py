"""A loaded model at work: its engine, if it writes text, and its batcher for all else.

In: a reference. Out: `Served`, whose methods may be awaited by many requests at once. It says what memory it takes.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import numpy as np

from wenmo import loaded
from wenmo.engine import Engine, EngineSettings, FormatOrAuto, chosen_format
from wenmo.engine.batcher import Batcher, BatcherSettings
from wenmo.engine.encoder import NativeForward, in_one_thread, pack_encoder
from wenmo.engine.memory import bytes_of
from wenmo.engine.packed import Format
from wenmo.errors import DataError, say
from wenmo.hub.fetch import is_reference
from wenmo.loaded import Asked, Loaded, decoded
from wenmo.locate import locate
from wenmo.modeldir import base_below
from wenmo.tasks import Task
from wenmo.tensors import count_numbers

T = TypeVar("T")
Computer = Literal["native", "torch"]
_log = logging.getLogger(__name__)
_VECTORS = ("vectors",)  # the group of rows that become vectors; a task's is its name


class Served:
    """`engine` is started, and None for a model that writes no text. `base`: the model below an adapter. `format`: None
    leaves it to the model: that in which it is stored, else fp32. `format` is then the one that was chosen, and
    `computed_by` says whose steps write its text, and whose give all other answers."""

    def __init__(self, name: str, reference: str, base: Served | None, engine: EngineSettings,
                 format: FormatOrAuto | None, encoder_format: Format | None, batches: BatcherSettings,
                 load_options: Mapping[str, Any]) -> None:
        self.name, self.folder = name, locate(reference)
        below = None if base is None else base.loaded
        self.loaded: Loaded = loaded.load(reference, device="cpu", base=below, **load_options)
        self.loaded.check()  # a model whose weights or tokenizer are no longer those that were saved does not answer
        self.engine: Engine | None = None
        stored = self.loaded.stored_format
        if self.loaded.opened.tokenizer is not None and {"causal_lm", "seq2seq_lm"} & set(self.loaded.model.heads):
            chosen = stored or "fp32" if format is None else chosen_format(format, stored)
            if base is not None and base.engine is not None:  # whose maps it shares
                chosen = base.engine.settings.format
            self.format: Format = chosen
            self.engine = self.loaded.engine(engine.model_copy(update={"format": chosen})).start()
            if base is not None and base.engine is not None:
                self.engine.runner.share_head(base.engine.runner)
        else:
            self.format = encoder_format or _of_encoders(format, stored)
            pack_encoder(self.loaded.model, self.format, engine.native)
        self.computed_by = _computed_by(self.loaded.model, self.engine)
        whose = ", ".join(f"{what}: {by}" for what, by in self.computed_by.items())
        _log.info(say(f"{name} is loaded ({self.format}; {whose})", f"已加载 {name}（{self.format}；{whose}）"))
        self.parts = bytes_of(self.loaded.model, self.engine)
        shared: Mapping[int, int] = {} if base is None else base.parts
        self.num_bytes = sum(number for part, number in self.parts.items() if part not in shared)
        self.batcher = Batcher(self._forward, batches, name)
        self._tasks: dict[str | None, Task] = {}

    async def predict(self, rows: Sequence[Mapping[str, Any] | str], task: str | None = None,
                      ) -> list[dict[str, Any] | DataError]:
        """The task's answer to each row, put together with those of other requests; a row that cannot be answered has
        its DataError there. Raises ModelError for a task that the model does not have, BatcherFull."""
        if task not in self._tasks:
            self._tasks[task] = self.loaded.task(task)
        chosen = self._tasks[task]
        asked = await asyncio.to_thread(self.loaded.asked, rows, chosen)
        good = [row for row in asked if isinstance(row, Asked)]
        future = self.batcher.submit(("task", task), good, [row.num_tokens for row in good])
        answered: list[Any] = await asyncio.wrap_future(future)
        answers = iter(answered)
        return [row if isinstance(row, DataError) else next(answers) for row in asked]

    async def embed(self, texts: Sequence[str], prompt: str | None = None) -> tuple[np.ndarray, list[int]]:
        """`Loaded.embed`, put together with other requests: [number of texts, D]; and of each, how many tokens were
        not read."""
        read = await asyncio.to_thread(self.loaded.texts_to_embed, texts, prompt)
        found = await asyncio.wrap_future(self.batcher.submit(_VECTORS, read, [len(each) for each in read]))
        vectors = np.stack(found) if found else self.loaded.vectors([])
        return vectors, [int(text.values["cut_tokens"]) for text in read]

    async def run(self, work: Callable[[Loaded], T]) -> T:
        """Anything else that a loaded model can do, in its turn and alone."""
        future = self.batcher.submit(work, [None], [self.batcher.settings.batch_tokens])
        return cast(T, (await asyncio.wrap_future(future))[0])

    def _forward(self, group: Any, rows: list[Any]) -> Sequence[Any]:
        if callable(group):
            return [group(self.loaded) for _ in rows]
        with in_one_thread(self.loaded.model):
            if group == _VECTORS:
                return list(self.loaded.vectors(rows))
            task = self._tasks[group[1]]
            return [decoded(task, answered) for answered in self.loaded.answer(rows, task)]

    def close(self) -> None:
        """Once what was asked for is done."""
        self.batcher.close()
        if self.engine is not None:
            self.engine.close()


def _computed_by(model: Any, engine: Engine | None) -> dict[str, Computer]:
    """Whose steps compute what: `text` that is written, `answers` of tasks and vectors."""
    answers: Computer = "native" if isinstance(model.forward, NativeForward) else "torch"
    if engine is None:
        return {"answers": answers}
    return {"text": "native" if engine.is_native else "torch", "answers": answers}


def _of_encoders(format: FormatOrAuto | None, stored: Format | None) -> Format:
    """The format of a model that writes no text, from that of those that do. Few bits of the weights alone spare
    nothing where many rows are read at once: there it is `auto`."""
    if format is None:
        return "fp32"
    return chosen_format("auto" if format in ("int8-weights", "int4") else format, stored)


def base_of(reference: str) -> Path | None:
    """Where the base of an adapter lies that can be shared; None for a whole model."""
    return base_below(locate(reference))


def same_place(reference: str, path: Path) -> bool:
    """Whether a reference names the model that lies there; a hub is not asked."""
    return not is_reference(reference) and locate(reference).resolve() == path.resolve()


def stored_bytes(path: Path, fp32: bool) -> int:
    """About what a model's weights will take: so much as on the disk, or 4 bytes a number where all become `fp32`."""
    files = [path] if path.is_file() else [*path.glob("*.safetensors")]
    numbers = sum((count_numbers(file) for file in files), Counter[str]()) if fp32 and path.is_dir() else Counter[str]()
    if numbers and not numbers.keys() - {"F32", "F16", "BF16"}:  # else codes, which stay what they are
        return 4 * numbers.total()
    return sum(file.stat().st_size for file in files)
