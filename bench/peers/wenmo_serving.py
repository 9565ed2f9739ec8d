"""Wenmo's engine: prompts in, so many tokens for each out, the seconds from the first to the last."""

import time
from typing import Any

from program import given, serve

import wenmo
from wenmo.engine.request import Request
from wenmo.generate.sampling import Sampling

settings = given()
engine = wenmo.load(settings["model"], device="cpu").engine({"format": settings["format"]}).start()


def work(asked: dict[str, Any]) -> dict[str, Any]:
    sampling = Sampling(max_new_tokens=asked["new_tokens"], min_new_tokens=asked["new_tokens"])  # no end of text
    requests = [Request(tuple(ids), sampling) for ids in asked["prompts"]]
    began = time.perf_counter()
    handles = [engine.submit(request) for request in requests]
    num_tokens = sum(len(handle.result().ids) for handle in handles)
    return {"seconds": time.perf_counter() - began, "tokens": num_tokens}


serve({"versions": {"wenmo": wenmo.__version__}}, work)
engine.close()
