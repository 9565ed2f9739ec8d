"""llama.cpp by its own C interface: prompts in, so many tokens for each out, and the seconds it took.

All streams stand in one batch at each step, the likeliest token is chosen by its own sampler: what its server does,
without the server.
"""

import time
from typing import Any

import llama_cpp as lc
from program import given, serve

settings = given()
STREAMS, TOKENS = settings["streams"], settings["max_tokens"]
quiet = lc.llama_log_callback(lambda level, text, data: None)
lc.llama_log_set(quiet, None)
lc.llama_backend_init()
model = lc.llama_model_load_from_file(settings["model"].encode(), lc.llama_model_default_params())
assert model, "llama.cpp does not load the file"
parameters = lc.llama_context_default_params()
parameters.n_ctx, parameters.n_seq_max = STREAMS * TOKENS, STREAMS
parameters.n_batch = parameters.n_ubatch = 512
parameters.n_threads = parameters.n_threads_batch = settings["threads"]
context = lc.llama_init_from_model(model, parameters)
assert context, "llama.cpp gives no context"
greedy = lc.llama_sampler_init_greedy()


def read(rows: list[tuple[int, int, int, bool]]) -> None:
    """(token, place, stream, whether its scores are wanted) each."""
    batch = lc.llama_batch_init(len(rows), 0, 1)
    batch.n_tokens = len(rows)
    for i, (token, place, stream, wanted) in enumerate(rows):
        batch.token[i], batch.pos[i], batch.logits[i] = token, place, wanted
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, stream
    status = lc.llama_decode(context, batch)
    lc.llama_batch_free(batch)
    assert status == 0, f"llama_decode: {status}"


def work(asked: dict[str, Any]) -> dict[str, Any]:
    prompts, num_new = asked["prompts"], asked["new_tokens"]
    lc.llama_memory_clear(lc.llama_get_memory(context), True)
    began = time.perf_counter()
    following = []
    for stream, ids in enumerate(prompts):
        read([(token, place, stream, place == len(ids) - 1) for place, token in enumerate(ids)])
        following.append(lc.llama_sampler_sample(greedy, context, -1))
    for step in range(num_new - 1):
        read([(token, len(prompts[stream]) + step, stream, True) for stream, token in enumerate(following)])
        following = [lc.llama_sampler_sample(greedy, context, stream) for stream in range(len(prompts))]
    return {"seconds": time.perf_counter() - began, "tokens": num_new * len(prompts)}


serve({"versions": {"llama-cpp-python": lc.__version__}, "units": lc.llama_print_system_info().decode()}, work)
