"""Steps of training by transformers (and PEFT) as its users write them; each question is for one step.

In bf16: an adapter beside a base that is loaded as bf16, a whole model by autocast over fp32 weights, as Trainer's
`bf16=True` has it.
"""

from __future__ import annotations

import time
from typing import Any

import torch
import transformers
from program import given, serve


def peak_bytes() -> int:
    with open("/proc/self/status", encoding="utf-8") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


settings = given()
bf16, rank = settings["dtype"] == "bf16", settings["lora"]
torch.set_num_threads(settings["threads"])
torch.manual_seed(0)
model: Any = transformers.AutoModelForCausalLM.from_pretrained(
    settings["model"], dtype=torch.bfloat16 if bf16 and rank else torch.float32)
versions = {"transformers": transformers.__version__, "torch": torch.__version__}
if rank:
    import peft

    versions["peft"] = peft.__version__
    model = peft.get_peft_model(model, peft.LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.05,
                                                       target_modules="all-linear", task_type="CAUSAL_LM"))
if settings.get("checkpointing"):
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": False})
model.train()
trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=1e-4)


def step(question: dict[str, Any]) -> dict[str, Any]:
    ids = torch.randint(100, 40_000, (settings["rows"], settings["tokens"]),
                        generator=torch.Generator().manual_seed(question["step"]))
    began = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return {"loss": loss.item(), "seconds": time.perf_counter() - began, "peak_bytes": peak_bytes()}


serve({"versions": versions, "trained": sum(p.numel() for p in trained)}, step)
