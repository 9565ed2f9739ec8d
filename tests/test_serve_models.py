"""Several models under one budget of memory: loaded when asked for, given up when idle, never while in use."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from oracle import theirs
from wenmo import golden, loaded
from wenmo.config import parse
from wenmo.engine import DraftSettings, EngineSettings, FormatOrAuto, Request, chosen_format
from wenmo.engine.batcher import BatcherSettings
from wenmo.engine.packed import Format, Packed
from wenmo.errors import DataError, ModelError, UsageError
from wenmo.generate import Sampling
from wenmo.loaded import load
from wenmo.modeldir import adapt, open_model, save_model
from wenmo.models.lora import LoraSettings
from wenmo.serve.app import create_app
from wenmo.serve.models import Models, ModelsBusy, ModelsSettings, UnknownModel
from wenmo.serve.served import Served
from wenmo.serve.settings import ServeSettings
from wenmo.stages import serve as stage
from wenmo.stages.compress import compress
from wenmo.tensors import load_tensors, save_tensors
from wenmo.text import tokenizer_training
from wenmo.text.tokenizer_training import TokenizerSettings

TEXTS = ["春天来了，天气渐渐暖和起来。", "好", "The days are getting longer.", "not good", "很差，不会再来。" * 3]
ENGINE = EngineSettings(cache_tokens=512, prefix_tokens=128)
AUTO = chosen_format("auto")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    base, found = tmp_path_factory.mktemp("models"), {}
    words = tokenizer_training.train(TEXTS, TokenizerSettings(type="wordpiece", vocab_size=200, min_frequency=1))
    pairs = tokenizer_training.train(TEXTS, TokenizerSettings(vocab_size=330))
    for name, hf_class, tokenizer, changes in (
            ("classes", "BertForSequenceClassification", words, {"id2label": {0: "差", 1: "中", 2: "好"}}),
            ("tags", "BertForTokenClassification", words, {"num_labels": 3}),
            ("body", "BertModel", words, {}),
            ("writer", "LlamaForCausalLM", pairs, {}),
            ("translator", "T5ForConditionalGeneration", pairs, {})):
        theirs(hf_class, vocab_size=330, pad_token_id=0, **changes).save_pretrained(base / name)
        tokenizer.save(base / name)
        found[name] = str(base / name)
    return found


def run(work: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(work, 60)

    asyncio.run(bounded())


def models_of(folders: dict[str, str], *names: str, **settings: Any) -> Models:
    return Models({name: folders[name] for name in names or folders}, ModelsSettings(**settings), ENGINE)


def sizes(folders: dict[str, str], *names: str) -> list[int]:
    found = []

    async def work() -> None:
        models = models_of(folders, *names)
        for name in names:
            await models.load(name)
            found.append(models.info(name).num_bytes)
        await models.aclose()

    run(work())
    return found


def alike(a: Any, b: Any) -> None:
    assert a.keys() == b.keys()
    for key, value in a.items():
        if isinstance(value, dict):
            alike(value, b[key])
        else:
            assert value == (pytest.approx(b[key], abs=1e-5) if isinstance(value, float) else b[key])


def test_what_turns_out_too_large_is_given_to_nobody(folders: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even to who comes after it was loaded, and before that was found."""
    models, seen = models_of(folders, "classes"), []
    make_room = models._make_room

    async def too_late(entry: Any, num_bytes: int) -> None:
        await make_room(entry, num_bytes)
        if entry.served is not None:
            seen.append(asyncio.create_task(models.load("classes")))
            await asyncio.sleep(0.1)
            raise ModelsBusy("no room")

    async def work() -> None:
        monkeypatch.setattr(models, "_make_room", too_late)
        with pytest.raises(ModelsBusy):
            await models.load("classes")
        with pytest.raises(ModelsBusy):
            await seen[0]
        await models.aclose()

    run(work())


def test_every_kind_is_served_as_it_is_loaded(folders: dict[str, str]) -> None:
    """Many requests at once, whole and row by row: the answers are those of `wenmo.load`, within 1e-5."""
    alone = {name: loaded.load(folder, device="cpu") for name, folder in folders.items()}
    sampling = Sampling(max_new_tokens=8)

    async def work() -> None:
        models = models_of(folders)
        assert models.names() == list(folders)
        async with models.use("classes") as classes, models.use("body") as body, models.use("writer") as writer, \
                models.use("translator") as translator:
            assert classes.engine is None
            rows: list[Any] = [*TEXTS, {"other": 1}, *TEXTS]
            asked = [classes.predict(rows), *(classes.predict([text]) for text in TEXTS for _ in range(3))]
            whole, *single = await asyncio.gather(*asked)
            expected = alone["classes"].answers(rows)
            for found, theirs_ in zip([*whole, *(each[0] for each in single)],
                                      [*expected, *(expected[i // 3] for i in range(15))], strict=True):
                if isinstance(theirs_, DataError):
                    assert str(found) == str(theirs_)
                else:
                    alike(found, theirs_)
            assert classes.batcher.num_forwards < 8
            vectors = await asyncio.gather(*(body.embed([text]) for text in TEXTS), body.embed([]))
            np.testing.assert_allclose(np.concatenate([found for found, _ in vectors]), alone["body"].embed(TEXTS),
                                       atol=1e-5)
            assert await writer.run(lambda each: each.score(TEXTS[:1])) == pytest.approx(
                alone["writer"].score(TEXTS[:1]), abs=1e-4)
            for served in (writer, translator):
                assert served.engine is not None
                ids = served.loaded.prompt_ids(TEXTS[0])
                done = await asyncio.to_thread(served.engine.submit(Request(tuple(ids), sampling)).result)
                assert done == alone[served.name].complete([ids], max_new_tokens=8)[0][0]
            with pytest.raises(ModelError):
                await classes.predict(TEXTS, "no such task")
        await models.aclose()

    run(work())


def test_who_was_used_longest_ago_gives_way(folders: dict[str, str]) -> None:
    names = ("classes", "tags", "body")
    one, two, three = sizes(folders, *names)

    async def work() -> None:
        models = models_of(folders, *names, memory_bytes=one + two + three - 1)
        for name in ("classes", "tags", "classes", "body"):
            await models.load(name)
        assert [models.info(name).state for name in names] == ["ready", "cold", "ready"]
        assert models.loaded_bytes == one + three
        async with models.use("classes"):  # in use: it is not this one's turn, though it was used longest ago
            await models.load("body")
            await models.load("tags")
            assert [models.info(name).state for name in names] == ["ready", "ready", "cold"]
        assert models.stats()["evictions"] == 2
        await models.aclose()
        pinned = models_of(folders, *names, memory_bytes=one + two + three - 1, pinned=("classes",))
        for name in names:
            await pinned.load(name)
        assert [pinned.info(name).state for name in names] == ["ready", "cold", "ready"]
        await pinned.aclose()

    run(work())


@pytest.mark.parametrize("format", [None, "bf16"])
def test_what_cannot_fit_is_said_before_anything_is_served(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: FormatOrAuto | None
) -> None:
    """By what its numbers will take: 16 bits on the disk become 32, unless the format is another."""
    model = theirs("BertModel", vocab_size=330, pad_token_id=0).bfloat16()
    model.save_pretrained(tmp_path / "half")
    num_numbers = sum(each.numel() for each in model.parameters())
    monkeypatch.setattr(stage, "run", lambda *_: 7)
    for size, fits in ((num_numbers * 4, True), (num_numbers * 4 - 1, format is not None), (num_numbers, False)):
        arguments = [str(tmp_path / "half")], {"models": {"memory_bytes": size}}
        if fits:
            assert stage.serve(*arguments, format=format) == 7
            continue
        with pytest.raises(ModelError, match="the model takes"):
            stage.serve(*arguments, format=format)


def test_who_needs_memory_waits_for_it_and_not_for_ever(folders: dict[str, str]) -> None:
    one, two = sizes(folders, "classes", "tags")

    async def work() -> None:
        models = models_of(folders, "classes", "tags", memory_bytes=one + two - 1, wait_seconds=0.2)
        async with models.use("classes") as served:
            with pytest.raises(ModelsBusy):
                await models.load("tags")
            assert len(await served.predict(TEXTS)) == len(TEXTS)
        patient = models_of(folders, "classes", "tags", memory_bytes=one + two - 1, wait_seconds=30)
        async with patient.use("classes"):
            coming = asyncio.create_task(patient.load("tags"))
            await asyncio.sleep(0.3)
            assert not coming.done()
        await coming
        assert patient.info("classes").state == "cold"
        with pytest.raises(ModelError, match=r"bytes|字节"):
            await models_of(folders, "classes", memory_bytes=one - 1).load("classes")
        await models.aclose()
        await patient.aclose()

    run(work())


def test_a_model_is_loaded_once_for_all_who_ask_and_whoever_leaves(folders: dict[str, str],
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    original = loaded.load
    monkeypatch.setattr(loaded, "load", lambda *given, **named: opened.append(given) or original(*given, **named))

    async def work() -> None:
        models = models_of(folders, "classes")
        asking = [asyncio.create_task(models.load("classes")) for _ in range(5)]
        await asyncio.sleep(0)
        asking[0].cancel()
        await asyncio.gather(*asking[1:])
        assert len(opened) == models.stats()["loads"] == 1
        assert models.info("classes").num_users == 0
        await models.aclose()

    run(work())


def test_what_is_not_there_is_said(folders: dict[str, str], tmp_path: Path) -> None:
    async def work() -> None:
        models = Models({"classes": folders["classes"], "gone": str(tmp_path / "gone")})
        with pytest.raises(UnknownModel) as caught:
            await models.load("other")
        assert caught.value.known == ["classes", "gone"]
        for _ in range(2):  # it is tried again, and holds nobody up
            with pytest.raises(ModelError):
                await models.load("gone")
        assert models.info("gone").state == "failed"
        await models.load("classes")
        await models.aclose()
        with pytest.raises(UsageError):
            await models.load("classes")

    run(work())
    with pytest.raises(UsageError, match="other"):
        Models({}, ModelsSettings(pinned=("other",)))


def test_a_model_that_is_no_longer_what_was_saved_does_not_answer(folders: dict[str, str], tmp_path: Path) -> None:
    """Its golden prompts are asked before anybody else may ask."""
    opened = load(folders["writer"]).opened
    opened.card["golden"] = golden.record(opened.model, opened.tokenizer)
    save_model(tmp_path / "writer", opened)
    changed = shutil.copytree(tmp_path / "writer", tmp_path / "changed")
    weights = load_tensors(changed / "model.safetensors")
    save_tensors(changed / "model.safetensors", {name: tensor * 1.5 for name, tensor in weights.items()})

    async def work() -> None:
        models = Models({"writer": str(tmp_path / "writer"), "changed": str(changed)}, ModelsSettings(), ENGINE)
        await models.load("writer")
        with pytest.raises(ModelError, match="golden prompts differently"):
            await models.load("changed")
        await models.aclose()

    run(work())


def test_encoders_in_eight_bits_answer_alike(folders: dict[str, str]) -> None:
    """Random weights leave classes close to each other; the probabilities move by little."""
    alone = loaded.load(folders["classes"], device="cpu")

    async def work() -> None:
        models = models_of(folders, "classes", encoder_format="int8", batches=BatcherSettings(max_wait_ms=0))
        async with models.use("classes") as served:
            eight = np.array([list(each["scores"].values()) for each in await served.predict(TEXTS)])
        exact = np.array([list(each["scores"].values()) for each in alone.predict(TEXTS)])
        assert np.abs(eight - exact).max() < 0.05
        assert np.abs(eight - exact).max() > 0
        await models.aclose()

    run(work())
    assert torch.get_num_threads() >= 1


# Adapters ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapters(folders: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two over the writer, of other maps; two over the encoder, with heads of their own, one of them with DoRA."""
    base, found = tmp_path_factory.mktemp("adapters"), {}
    for seed, (name, below, heads, given) in enumerate((
            ("one", "writer", None, {"rank": 4}),
            ("two", "writer", None, {"rank": 2, "targets": ["q_proj", "v_proj", "down_proj"]}),
            ("moods", "body", {"classification": 3}, {"rank": 4}),
            ("magnitudes", "body", {"classification": 2}, {"rank": 4, "dora": True}))):
        opened = open_model(folders[below], heads=heads, seed=seed)
        if heads:
            labels = ["a", "b", "c"][: heads["classification"]]
            card = {"type": "classification", "labels": labels, "lengths": {"max_tokens": 32}}
            opened.card["tasks"] = {"moods": card}
        adapt(opened, parse(LoraSettings, given, "test"), folders[below], {}, seed)
        for parameter_name, parameter in opened.model.named_parameters():
            if "lora_" in parameter_name and "magnitude" not in parameter_name:
                parameter.data.normal_(0.0, 0.2, generator=torch.Generator().manual_seed(seed))
        save_model(base / name, opened)
        found[name] = str(base / name)
    return found


@pytest.mark.parametrize(("route", "given"), [("predict", {"model": "classes", "rows": TEXTS}),
                                              ("embeddings", {"model": "body", "input": TEXTS})])
def test_who_leaves_gets_its_tokens_back(route: str, given: dict[str, Any], folders: dict[str, str],
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        num_tokens = sum(map(len, load(folders["body"]).tokenizer.encode_batch(TEXTS)))
        app = create_app(models_of(folders, "classes", "body"), ServeSettings(tokens_per_minute=num_tokens + 1))
        reached = asyncio.Event()

        async def slow(*_: Any) -> None:
            reached.set()
            await asyncio.sleep(60)

        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            with monkeypatch.context() as patch:
                patch.setattr(Served, "predict", slow)
                patch.setattr(Served, "embed", slow)
                leaving = asyncio.create_task(client.post(f"/v1/{route}", json=given))
                await reached.wait()
                leaving.cancel()
                await asyncio.gather(leaving, return_exceptions=True)
            codes = [(await client.post(f"/v1/{route}", json=given)).status_code for _ in range(2)]
            assert codes == [200, 429]
        await app.state.models.aclose()

    run(work())


@pytest.mark.parametrize("format", ["fp32", "bf16"])
def test_a_draft_model_is_counted(format: Format, folders: dict[str, str]) -> None:
    """Its weights, and the keys and values that it keeps."""
    guessing = ENGINE.model_copy(update={"speculate": DraftSettings(draft=folders["writer"]), "format": format})
    found = []

    async def work() -> None:
        for engine in (ENGINE.model_copy(update={"format": format}), guessing):
            models = Models(folders, ModelsSettings(), engine)
            async with models.use("writer") as writer:
                found.append(writer.num_bytes)
            await models.aclose()

    run(work())
    weights = sum(parameter.numel() * 4 for parameter in load(folders["writer"]).model.parameters())
    assert found[1] - found[0] > (weights if format == "fp32" else weights // 2) + found[0] // 10


@pytest.mark.parametrize(("format", "own", "expected"), [
    (None, {}, ("fp32", "int8", "fp32")), ("auto", {}, (AUTO, "int8", AUTO)), ("int8", {}, ("int8", "int8", "int8")),
    ("int4", {}, ("int4", "int4", AUTO)), ("int8", {"encoder_format": "fp32"}, ("int8", "int8", "fp32"))])
def test_formats(format: FormatOrAuto | None, own: dict[str, Any], expected: tuple[Format, ...],
                 folders: dict[str, str], tmp_path: Path) -> None:
    """Of a model as it was trained, of a compressed one, and of one that writes no text."""
    compress(folders["writer"], tmp_path / "small", {"format": "int8", "method": "rtn"})

    async def work() -> None:
        models = Models({**folders, "small": str(tmp_path / "small")}, ModelsSettings(**own), EngineSettings(
            cache_tokens=256, prefix_tokens=0), format)
        async with models.use("writer") as writer, models.use("small") as small, models.use("classes") as classes:
            assert writer.engine is not None
            assert small.engine is not None
            packed = {each.format for each in classes.loaded.model.modules() if isinstance(each, Packed)} or {"fp32"}
            assert (writer.engine.settings.format, small.engine.settings.format, *packed) == expected
        await models.aclose()

    run(work())


@pytest.mark.parametrize("format", ["fp32", "bf16", "int8"])
def test_adapters_share_their_base(format: Format, folders: dict[str, str], adapters: dict[str, str]) -> None:
    """They answer as merged ones do, and take little memory of their own; their base stays as long as they do."""
    sampling = Sampling(max_new_tokens=12)
    references = {**adapters, "writer": folders["writer"]}

    async def work() -> None:
        models = Models(references, ModelsSettings(encoder_format="int8" if format == "int8" else "fp32"),
                        ENGINE.model_copy(update={"format": format}))
        for name in ("one", "writer", "two"):
            async with models.use(name) as served:
                assert served.engine is not None
                asked = [served.loaded.prompt_ids(text) for text in TEXTS]
                requests = [Request(tuple(ids), sampling) for ids in asked]
                done = await asyncio.to_thread(served.engine.generate, requests)
                alone = [await asyncio.to_thread(served.engine.submit(each).result) for each in requests]
                assert done == alone
                if format == "fp32":
                    merged = loaded.load(references[name], device="cpu").complete(asked, max_new_tokens=12)
                    assert [each.ids for each in done] == [each.ids for [each] in merged]
        writer = models.info("writer").num_bytes
        cache = models.loaded()["writer"].engine.cache_bytes
        for name in ("one", "two"):
            assert models.info(name).num_bytes - cache < (writer - cache) / 3
        assert models.info("writer").num_users == 2
        async with models.use("moods") as moods, models.use("magnitudes") as magnitudes:
            for served in (moods, magnitudes):
                exact = loaded.load(adapters[served.name], device="cpu").predict(TEXTS)
                for ours, theirs_ in zip(await served.predict(TEXTS), exact, strict=True):
                    assert ours["scores"] == pytest.approx(theirs_["scores"], abs=0.1 if format == "int8" else 1e-5)
        assert models.info("moods").num_bytes < models.info("magnitudes").num_bytes / 3
        await models.aclose()

    run(work())
