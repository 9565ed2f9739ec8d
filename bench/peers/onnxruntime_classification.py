"""ONNX Runtime with a BERT in 8 bits: texts in, labels and seconds out.

Export by torch.onnx from transformers, ONNX Runtime's own fusions for BERT, dynamic quantisation per channel.
"""

import queue
import threading
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
import transformers
from clients import ask
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers import optimizer
from program import given, serve
from tokenizers import Tokenizer

settings = given()
MOST_ROWS = 64
folder, out = Path(settings["model"]), Path(settings["out"])
model = transformers.BertForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
plain, fused, small = (out / f"bert-{name}.onnx" for name in ("plain", "fused", "int8"))
example = torch.ones(2, 16, dtype=torch.int64)
torch.onnx.export(model, (example, example), plain, input_names=["input_ids", "attention_mask"],
                  output_names=["logits"], opset_version=18, dynamo=False,
                  dynamic_axes={"input_ids": {0: "B", 1: "T"}, "attention_mask": {0: "B", 1: "T"}, "logits": {0: "B"}})
optimizer.optimize_model(str(plain), "bert", num_heads=model.config.num_attention_heads,
                         hidden_size=model.config.hidden_size).save_model_to_file(str(fused))
quantize_dynamic(fused, small, per_channel=True, weight_type=QuantType.QInt8,
                 extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT})  # its own fused kernels have no type

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = settings["threads"] if settings["batched"] else 1
session = onnxruntime.InferenceSession(small, options, providers=["CPUExecutionProvider"])
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
tokenizer.no_padding()
tokenizer.enable_truncation(model.config.max_position_embeddings)


def forward(rows: list[list[int]]) -> list[str]:
    ids_BT = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    mask_BT = np.zeros_like(ids_BT)
    for i, ids in enumerate(rows):
        ids_BT[i, : len(ids)], mask_BT[i, : len(ids)] = ids, 1
    [logits_BC] = session.run(["logits"], {"input_ids": ids_BT, "attention_mask": mask_BT})
    return [model.config.id2label[int(label)] for label in logits_BC.argmax(1)]


waiting: queue.SimpleQueue[tuple[list[int], Future[str]]] = queue.SimpleQueue()


def gather() -> None:
    """Whatever waits goes into the next batch."""
    while True:
        taken = [waiting.get()]
        while len(taken) < MOST_ROWS and not waiting.empty():
            taken.append(waiting.get())
        for (_, future), label in zip(taken, forward([ids for ids, _ in taken]), strict=True):
            future.set_result(label)


def classify(text: str) -> str:
    ids = tokenizer.encode(text).ids
    if not settings["batched"]:
        return forward([ids])[0]
    future: Future[str] = Future()
    waiting.put((ids, future))
    return future.result()


threading.Thread(target=gather, daemon=True).start()
serve({"versions": {"onnxruntime": onnxruntime.__version__}},
      lambda asked: ask(asked["texts"], settings["clients"], classify))
