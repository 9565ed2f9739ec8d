"""POST /v1/embeddings and POST /v1/predict: what is not written token by token. Rows of all requests share batches."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from wenmo.errors import DataError, say
from wenmo.serve.errors import ApiError, Json, encoded, message_of
from wenmo.serve.limits import check_bytes, check_numbers
from wenmo.serve.schema import EmbeddingRequest, PredictRequest
from wenmo.serve.served import Served
from wenmo.serve.writing import using

router = APIRouter(tags=["tasks"])


@router.post("/v1/embeddings", summary="Texts to vectors")
async def embeddings(body: EmbeddingRequest, http: Request) -> Response:
    texts = [body.input] if isinstance(body.input, str) else body.input
    check_numbers(http.app.state.settings, rows=len(texts), rows_param="input")
    check_bytes(http.app.state.settings, texts, "input")
    async with using(http, body.model) as served:
        num_tokens = await run_in_threadpool(_num_tokens, served, texts)
        with http.state.visit.reading(num_tokens):
            vectors, cut_tokens = await served.embed(texts, body.prompt)
    if body.dimensions is not None:
        vectors = _shortened(vectors, body.dimensions)
    content = await run_in_threadpool(_written, body, vectors, cut_tokens, num_tokens)
    return Response(content, media_type=Json.media_type)


def _written(body: EmbeddingRequest, vectors: np.ndarray, cut_tokens: list[int], num_tokens: int) -> bytes:
    """Vector by vector: json holds all threads up while it writes, and a million numbers take it a second. A text of
    which a part was not read says so, in `truncated_tokens`."""
    data = b",".join(encoded({
        "object": "embedding", "index": index,
        "embedding": vector.tolist() if body.encoding_format == "float" else _base64(vector),
        **({"truncated_tokens": cut} if cut else {})})
        for index, (vector, cut) in enumerate(zip(vectors, cut_tokens, strict=True)))
    rest = encoded({"model": body.model, "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens}})
    return b'{"object":"list","data":[' + data + b"]," + rest[1:]


def _shortened(vectors: np.ndarray, dimensions: int) -> np.ndarray:
    """The first numbers of each, of length one again (Matryoshka: Kusupati et al. 2022, §3)."""
    if dimensions > vectors.shape[1]:
        raise ApiError(400, say(f"the model's vectors have {vectors.shape[1]} numbers",
                                f"该模型的向量只有 {vectors.shape[1]} 维"), param="dimensions")
    short = vectors[:, :dimensions]
    return np.asarray(short / np.linalg.norm(short, axis=1, keepdims=True).clip(1e-12))


def _base64(vector: np.ndarray) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


@router.post("/v1/predict", summary="Classify, tag, answer, translate …: any task of a model")
async def predict(body: PredictRequest, http: Request) -> Json:
    """{"model", "answers"}: one a row, in order; a row that cannot be answered has {"error": …} in its place."""
    settings, texts = http.app.state.settings, _texts(body.rows)
    check_numbers(settings, rows=len(body.rows))
    check_bytes(settings, texts, "rows")
    async with using(http, body.model) as served:
        bounded = settings.tokens_per_minute is not None
        with http.state.visit.reading(await run_in_threadpool(_num_tokens, served, texts) if bounded else 0):
            answers = await served.predict(body.rows, body.task)
    return Json({"object": "list", "model": body.model, "answers": [
        ApiError(400, message_of(answer)).body() if isinstance(answer, DataError) else answer for answer in answers]})


def _num_tokens(served: Served, texts: list[str]) -> int:
    tokenizer = served.loaded.opened.tokenizer
    return 0 if tokenizer is None else sum(map(len, tokenizer.encode_batch(texts)))


def _texts(value: Any) -> list[str]:
    """Every text in a value, however deep."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for each in inner for text in _texts(each)]
