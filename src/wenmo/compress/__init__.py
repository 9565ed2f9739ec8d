"""Post-training quantisation: a model's matrices in 8 or 4 bits, chosen on calibration texts.

In: a model and texts like those it will read. Out: the same model with `nn.quantized` modules, which modeldir stores
and the engine's kernels take as they are.

    gptq.py      one matrix: rounding with compensation
    layers.py    a whole model, layer after layer
"""

from wenmo.compress.layers import Compressed, CompressSettings, compress

__all__ = ["CompressSettings", "Compressed", "compress"]
