"""A GGUF file → the same in Q8_0, by llama.cpp's own quantiser."""

import llama_cpp as lc
from program import answer, given

settings = given()
how = lc.llama_model_quantize_default_params()
how.ftype, how.allow_requantize = lc.LLAMA_FTYPE_MOSTLY_Q8_0, True
status = lc.llama_model_quantize(settings["model"].encode(), settings["out"].encode(), how)
assert status == 0, f"llama_model_quantize: {status}"
answer({})
