"""openvino-genai: prompts in, so many tokens for each out, and the seconds it took.

One prompt goes through LLMPipeline, several through ContinuousBatchingPipeline, as its users would do.
"""

import time
from typing import Any

import numpy as np
import openvino
import openvino_genai as genai
from program import given, serve

settings = given()
if settings["streams"] == 1:
    one = genai.LLMPipeline(settings["model"], "CPU", INFERENCE_NUM_THREADS=settings["threads"])
else:
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = 1  # GB
    scheduler.max_num_batched_tokens, scheduler.max_num_seqs = 2048, settings["streams"]
    many = genai.ContinuousBatchingPipeline(settings["model"], scheduler, "CPU", {
        "INFERENCE_NUM_THREADS": settings["threads"]})


def work(asked: dict[str, Any]) -> dict[str, Any]:
    config = genai.GenerationConfig(max_new_tokens=asked["new_tokens"], ignore_eos=True, do_sample=False)
    prompts = [openvino.Tensor(np.array([ids], dtype=np.int64)) for ids in asked["prompts"]]
    began = time.perf_counter()
    if settings["streams"] == 1:
        num_tokens = len(one.generate(prompts[0], config).tokens[0])
    else:
        found = many.generate(prompts, [config] * len(prompts))
        num_tokens = sum(len(each.m_generation_ids[0]) for each in found)
    return {"seconds": time.perf_counter() - began, "tokens": num_tokens}


serve({"versions": {"openvino-genai": genai.__version__}}, work)
