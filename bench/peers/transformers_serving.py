"""transformers' generate in bf16: prompts of one length in, so many tokens for each out, and the seconds it took."""

import time
from typing import Any

import torch
import transformers
from program import given, serve

settings = given()
model = transformers.AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.bfloat16).eval()


def work(asked: dict[str, Any]) -> dict[str, Any]:
    ids_BT = torch.tensor(asked["prompts"])
    num_new = asked["new_tokens"]
    began = time.perf_counter()
    with torch.inference_mode():
        found = model.generate(ids_BT, attention_mask=torch.ones_like(ids_BT), max_new_tokens=num_new,
                               min_new_tokens=num_new, do_sample=False, pad_token_id=0)
    return {"seconds": time.perf_counter() - began, "tokens": found[:, ids_BT.shape[1]:].numel()}


serve({"versions": {"transformers": transformers.__version__, "torch": torch.__version__}}, work)
