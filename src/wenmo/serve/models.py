"""The models of a server, under one budget of memory: each is loaded when it is first asked for, and the one that has
been idle for longest gives way to it.

In: names and references. Out: `async with models.use(name) as served`, during which nobody takes the model away.
Loading happens in a thread of its own, one model at a time, while the others go on answering. An adapter is laid over
its base, which is loaded once however many adapters it has, and is counted once.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from wenmo import device
from wenmo.config import Count, Settings
from wenmo.engine import DraftSettings, EngineSettings, FormatOrAuto
from wenmo.engine.batcher import BatcherSettings
from wenmo.errors import ModelError, UsageError, WenmoError, say
from wenmo.locate import locate
from wenmo.serve.served import Served, base_of, same_place, stored_bytes

State = Literal["cold", "loading", "ready", "failed"]


class ModelsSettings(Settings):
    """memory_bytes: what all loaded models may take together, weights, keys and values (left out: four fifths of
    the machine's). pinned: names of models that never give way. encoder_format: of the weights of models that write
    no text; left out, as texts are written (int8-weights and int4, which are for those alone: auto). wait_seconds:
    who needs memory that others are using waits so long. batches: of rows put together."""

    memory_bytes: Count | None = Field(None, ge=1)
    pinned: tuple[str, ...] = ()
    encoder_format: Literal["fp32", "bf16", "int8"] | None = None
    wait_seconds: float = Field(10.0, ge=0)
    batches: BatcherSettings = BatcherSettings()


class UnknownModel(ModelError):
    def __init__(self, name: str, known: list[str]) -> None:
        super().__init__(say(f"there is no model `{name}` here", f"这里没有模型 `{name}`"), where="model",
                         mend=say(f"its models: {', '.join(known)}", f"可用的模型：{', '.join(known)}"))
        self.known = known


class ModelsBusy(WenmoError):
    """There is no memory for the model while the others are in use: to be asked again later."""


@dataclass(frozen=True)
class ModelInfo:
    """num_bytes: of memory, 0 while it is not loaded; num_users: requests that hold it now."""

    name: str
    reference: str
    state: State
    num_bytes: int
    num_users: int


@dataclass(eq=False)
class _Entry:
    """A model that may be asked for, or the base of an adapter that is none (its `name` is its reference)."""

    name: str
    reference: str
    served: Served | None = None
    state: State = "cold"
    num_users: int = 0  # requests, and loaded adapters over it
    last_used: int = 0
    expected_bytes: int = 0  # what it took last time
    base: _Entry | None = None
    loading: asyncio.Task[None] | None = None

    @property
    def num_bytes(self) -> int:
        return 0 if self.served is None else self.served.num_bytes


class Models:
    """To be used from one event loop. `format` wins over that of the engine's settings; where neither says one, a model
    has that in which it is stored. `load_options`: further arguments of `wenmo.load` (tasks, heads)."""

    def __init__(self, references: Mapping[str, str], settings: ModelsSettings | None = None,
                 engine: EngineSettings | None = None, format: FormatOrAuto | None = None,
                 **load_options: Any) -> None:
        self.settings, self.engine, self.format = settings or ModelsSettings(), engine or EngineSettings(), format
        if format is None and "format" in self.engine.model_fields_set:
            self.format = self.engine.format
        self.load_options = load_options
        self.budget_bytes = self.settings.memory_bytes or device.memory_bytes() * 4 // 5
        self.entries = {name: _Entry(name, reference) for name, reference in references.items()}
        self.created = int(time.time())
        self.num_loads = self.num_evicted = 0
        self._bases: dict[str, _Entry] = {}  # by place: bases of adapters that have no name of their own
        self._uses = itertools.count(1)
        self._one_at_a_time = asyncio.Lock()
        self._left = asyncio.Event()  # somebody has
        self._closed = False
        if unknown := [name for name in self.settings.pinned if name not in references]:
            raise UsageError(say(f"no model `{unknown[0]}` to pin", f"没有可固定的模型 `{unknown[0]}`"), where="pinned",
                             mend=say(f"its models: {', '.join(references)}", f"可用的模型：{', '.join(references)}"))

    # What there is ----------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        return list(self.entries)

    def info(self, name: str) -> ModelInfo:
        entry = self._entry(name)
        return ModelInfo(name, entry.reference, entry.state, entry.num_bytes, entry.num_users)

    def loaded(self) -> dict[str, Served]:
        """The models that are in memory now, by name."""
        return {name: entry.served for name, entry in self.entries.items() if entry.served is not None}

    @property
    def loaded_bytes(self) -> int:
        return sum(entry.num_bytes for entry in self._all())

    def _all(self) -> list[_Entry]:
        return [*self.entries.values(), *self._bases.values()]

    def _entry(self, name: str) -> _Entry:
        if name not in self.entries:
            raise UnknownModel(name, self.names())
        return self.entries[name]

    # Using them -------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[Served]:
        """The model, which stays until the end of the block. Raises UnknownModel; ModelsBusy where there is no memory
        for it now; whatever `wenmo.load` raises."""
        entry = self._entry(name)
        async with self._held(entry) as served:
            yield served

    @asynccontextmanager
    async def _held(self, entry: _Entry) -> AsyncIterator[Served]:
        entry.num_users += 1
        try:
            if entry.state != "ready":  # it is loaded for all who wait, and to the end even if they no longer do
                if entry.loading is None:
                    entry.loading = asyncio.create_task(self._load_in_turn(entry))
                    entry.loading.add_done_callback(lambda task: task.cancelled() or task.exception())
                await asyncio.shield(entry.loading)
            assert entry.served is not None
            entry.last_used = next(self._uses)
            yield entry.served
        finally:
            entry.num_users -= 1
            entry.last_used = next(self._uses)
            self._left.set()

    async def load(self, name: str) -> None:
        """Loads it before anybody asks."""
        async with self.use(name):
            return

    async def _load_in_turn(self, entry: _Entry) -> None:
        try:
            async with self._one_at_a_time:
                if entry.served is None:  # the base of an adapter that was loaded before it is there
                    await self._load(entry)
        finally:
            entry.loading = None

    async def _load(self, entry: _Entry) -> None:
        entry.state = "loading"
        try:
            if not entry.expected_bytes:
                entry.expected_bytes = await asyncio.to_thread(self._expected_bytes, entry.reference)
            entry.base = await self._base(entry)
            await self._make_room(entry, entry.expected_bytes)
            below = None if entry.base is None else entry.base.served
            engine = self.engine  # a base that nobody can ask for needs no room for texts
            if entry in self._bases.values():
                engine = engine.model_copy(update={"cache_tokens": 128, "prefix_tokens": 0})
            entry.served = await asyncio.to_thread(
                Served, entry.name, entry.reference, below, engine, self.format, self.settings.encoder_format,
                self.settings.batches, self.load_options)
            entry.expected_bytes = entry.served.num_bytes
            if self._closed:
                raise UsageError(say("the models are being closed", "模型正在关闭"), where=entry.name,
                                 mend=say("start the server again", "请重新启动服务"))
            await self._make_room(entry, 0)  # what it really takes
        except BaseException:
            entry.state = "failed"
            await self._unload(entry)
            raise
        entry.state = "ready"
        self.num_loads += 1

    def refuse_too_large(self) -> None:
        """Raises ModelError where the weights of a model, or of the base of an adapter, are more than all memory that
        models may take: before anybody asks for it, and before it is read."""
        for entry in self.entries.values():
            below = base_of(entry.reference)
            for reference in (entry.reference, *(() if below is None else (str(below),))):
                self._refuse_beyond(self._expected_bytes(reference), self.budget_bytes, reference)

    def _expected_bytes(self, reference: str) -> int:
        """Of the weights, about, with those of the model that guesses for one that writes text."""
        fp32, guess = {self.format, self.settings.encoder_format} <= {None, "fp32"}, self.engine.speculate
        draft = stored_bytes(locate(guess.draft), fp32) if isinstance(guess, DraftSettings) else 0
        return stored_bytes(locate(reference), fp32) + draft

    def _refuse_beyond(self, num_bytes: int, most: int, where: str) -> None:
        if num_bytes > most:
            raise ModelError(
                say(f"the model takes {num_bytes:,} bytes of {most:,}",
                    f"模型需要 {num_bytes:,} 字节，而只有 {most:,} 字节"), where=where,
                mend=say("raise models.memory_bytes, lower engine.cache_tokens, or choose another format",
                         "请增大 models.memory_bytes、减小 engine.cache_tokens，或换一种格式"))

    async def _base(self, entry: _Entry) -> _Entry | None:
        """The base of an adapter, loaded and held; None for a whole model."""
        found = await asyncio.to_thread(base_of, entry.reference)
        if found is None:
            return None
        named = [each for each in self.entries.values() if each is not entry and same_place(each.reference, found)]
        base = named[0] if named else self._bases.setdefault(str(found), _Entry(str(found), str(found)))
        base.num_users += 1
        if base.served is None:
            try:
                await self._load(base)
            except BaseException:
                base.num_users -= 1
                raise
        return base

    async def _make_room(self, entry: _Entry, num_bytes: int) -> None:
        """Room for so many bytes more; the idle models that were used longest ago give way."""
        most = self.budget_bytes - (0 if entry.base is None else entry.base.num_bytes)
        self._refuse_beyond(num_bytes + entry.num_bytes, most, entry.reference)
        until = time.monotonic() + self.settings.wait_seconds
        while self.loaded_bytes + num_bytes > self.budget_bytes:
            idle = [each for each in self._all() if each.served is not None and each is not entry
                    and not each.num_users and each.name not in self.settings.pinned]
            if idle:
                self.num_evicted += 1
                await self._unload(min(idle, key=lambda each: each.last_used))
                continue
            self._left.clear()
            try:
                await asyncio.wait_for(self._left.wait(), until - time.monotonic())
            except TimeoutError:
                raise ModelsBusy(
                    say("all memory is in use by other models", "内存都被其他正在使用的模型占用"), where=entry.name,
                    mend=say("ask again in a moment", "请稍后再试")) from None

    async def _unload(self, entry: _Entry) -> None:
        served, entry.served, base, entry.base = entry.served, None, entry.base, None
        if entry.state == "ready":
            entry.state = "cold"
        if base is not None:
            base.num_users -= 1
        if served is not None:
            await asyncio.to_thread(served.close)
            del served
            await asyncio.to_thread(gc.collect)
            device.give_back_memory()

    # The end ----------------------------------------------------------------------------------------------

    def stats(self) -> dict[str, int]:
        """For the metrics."""
        served = [entry.served for entry in self._all() if entry.served is not None]
        return {"loads": self.num_loads, "evictions": self.num_evicted, "loaded_models": len(served),
                "loaded_bytes": self.loaded_bytes, "budget_bytes": self.budget_bytes,
                "batcher_queued_tokens": sum(each.batcher.queued_tokens for each in served),
                "batcher_forwards": sum(each.batcher.num_forwards for each in served),
                "batcher_rows": sum(each.batcher.num_rows for each in served)}

    def close(self) -> None:
        """Ends engines and batchers, once they have done what was asked of them. From any thread; blocks."""
        self._closed = True
        for entry in self._all():
            served, entry.served = entry.served, None
            if served is not None:
                entry.state = "cold"
                served.close()

    async def aclose(self) -> None:
        self._closed = True
        await asyncio.gather(*(entry.loading for entry in self._all() if entry.loading), return_exceptions=True)
        await asyncio.to_thread(self.close)
