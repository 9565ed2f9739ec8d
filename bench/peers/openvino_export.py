"""A causal model in Hugging Face's layout → OpenVINO's, by optimum-intel; round to nearest."""

from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig
from program import answer, given

settings = given()
how = {"sym": False, "group_size": 32, "ratio": 1.0} if settings["bits"] == 4 else {"sym": False}
model = OVModelForCausalLM.from_pretrained(
    settings["model"], export=True, compile=False,
    quantization_config=OVWeightQuantizationConfig(bits=settings["bits"], **how))
model.save_pretrained(settings["out"])
answer({})
