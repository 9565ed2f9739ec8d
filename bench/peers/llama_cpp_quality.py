"""llama.cpp: ids of a window in, their surprise in nats out."""

from typing import Any

import llama_cpp
import numpy as np
from program import given, serve

settings = given()
size = settings["window_tokens"]
model = llama_cpp.Llama(settings["model"], n_ctx=size, n_batch=size, n_threads=settings["threads"],
                        n_threads_batch=settings["threads"], logits_all=True, verbose=False)


def work(asked: dict[str, Any]) -> dict[str, Any]:
    ids = np.array(asked["ids"])
    model.reset()
    model.eval(asked["ids"])
    scores_TV = np.asarray(model.scores[: len(ids) - 1], dtype=np.float64)
    highest = scores_TV.max(1)
    sums = highest + np.log(np.exp(scores_TV - highest[:, None]).sum(1))
    return {"nats": float((sums - scores_TV[np.arange(len(ids) - 1), ids[1:]]).sum())}


serve({"versions": {"llama-cpp-python": llama_cpp.__version__}}, work)
