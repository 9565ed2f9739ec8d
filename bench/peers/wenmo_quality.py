"""Wenmo's engine: ids of a window in, their surprise in nats out."""

from typing import Any

from program import given, serve

import wenmo
from wenmo.engine.request import Request
from wenmo.generate.sampling import Sampling

settings = given()
engine = wenmo.load(settings["model"], device="cpu").engine({"format": settings["format"]}).start()


def work(asked: dict[str, Any]) -> dict[str, Any]:
    request = Request(tuple(asked["ids"]), Sampling(max_new_tokens=1), prompt_logprobs=0)
    events = list(engine.submit(request))
    found = [each.logprob for event in events for each in event.prompt_logprobs]
    assert len(found) == len(asked["ids"]) - 1, f"{len(found)} scores"
    return {"nats": -sum(found)}


serve({"versions": {"wenmo": wenmo.__version__}}, work)
engine.close()
