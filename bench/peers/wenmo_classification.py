"""Wenmo's batcher over a loaded classifier, as its server has it: texts in, labels and seconds out."""

from typing import Any

from clients import ask
from program import given, serve

import wenmo
from wenmo.engine.batcher import Batcher, BatcherSettings
from wenmo.engine.encoder import in_one_thread, pack_encoder
from wenmo.loaded import Asked, decoded

settings = given()
loaded = wenmo.load(settings["model"], device="cpu")
task = loaded.task()
pack_encoder(loaded.model, settings["format"])


def forward(_: Any, rows: list[Any]) -> list[Any]:
    with in_one_thread(loaded.model):
        return loaded.answer(rows, task)


batcher = Batcher(forward, BatcherSettings())


def classify(text: str) -> str:
    [asked] = loaded.asked([text], task)
    assert isinstance(asked, Asked), asked
    [answered] = batcher.submit("classify", [asked], [asked.num_tokens]).result()
    return str(decoded(task, answered)["label"])


serve({"versions": {"wenmo": wenmo.__version__}}, lambda asked: ask(asked["texts"], settings["clients"], classify))
batcher.close()
