"""What there is, and how it goes: /v1/models, /health, /ready, /metrics."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from wenmo.errors import say
from wenmo.serve.errors import ApiError, Json
from wenmo.serve.metrics import CONTENT_TYPE

router = APIRouter(tags=["server"])


@router.get("/v1/models", summary="The models that may be asked")
async def list_models(http: Request) -> Json:
    return Json({"object": "list", "data": [_shown(http, name) for name in http.app.state.models.names()]})


@router.get("/v1/models/{name:path}", summary="One of them")
async def get_model(name: str, http: Request) -> Json:
    if name not in http.app.state.models.names():
        raise ApiError(404, say(f"there is no model `{name}` here", f"此处没有模型 `{name}`"), param="model",
                       code="model_not_found")
    return Json(_shown(http, name))


def _shown(http: Request, name: str) -> dict[str, Any]:
    """`format` and `computed_by` (served.py) are known of a model that is loaded."""
    models = http.app.state.models
    served = models.loaded().get(name)
    known = {} if served is None else {"format": served.format, "computed_by": served.computed_by}
    return {"id": name, "object": "model", "created": models.created, "owned_by": "wenmo",
            "state": models.info(name).state, **known}


@router.get("/health", summary="Whether the process lives")
async def health() -> Json:
    return Json({"status": "ok"})


@router.get("/ready", summary="Whether it takes requests: 503 while it stops")
async def ready(http: Request) -> Json:
    draining = http.app.state.gate.draining
    return Json({"status": "stopping" if draining else "ready"}, status_code=503 if draining else 200)


@router.get("/metrics", summary="Counts and times, for Prometheus")
async def metrics(http: Request) -> Response:
    return Response(http.app.state.metrics.text(), media_type=CONTENT_TYPE)
