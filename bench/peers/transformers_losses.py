"""The losses of every step of transformers' Llama, from given weights on given ids: one line of JSON.

    {"config": …, "weights": FILE.safetensors, "ids": FILE.npy of [steps, B, T], "dtype": "fp32" or "bf16", "lr": …}

In fp32 with eager attention it is the plain path: every formula written out, differentiated by torch.
"""

import json
import sys

import numpy as np
import torch
import transformers
from safetensors.torch import load_file

given = json.loads(sys.argv[1])
bf16 = given["dtype"] == "bf16"
model = transformers.LlamaForCausalLM._from_config(
    transformers.LlamaConfig(**given["config"]), attn_implementation="sdpa" if bf16 else "eager").train()
missing, unexpected = model.load_state_dict(load_file(given["weights"]), strict=False)
assert set(missing) <= {"lm_head.weight"}, missing
assert not unexpected, unexpected
model.tie_weights()
parameters = list(model.parameters())
adamw = torch.optim.AdamW(
    [{"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.01},
     {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0}],
    lr=given["lr"], betas=(0.9, 0.98), eps=1e-8)
losses = []
for ids in torch.from_numpy(np.load(given["ids"])):
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    adamw.step()
    adamw.zero_grad(set_to_none=True)
    losses.append(float(loss.detach()))
versions = {"torch": torch.__version__, "transformers": transformers.__version__}
print(json.dumps({"losses": losses, "versions": versions}))
