"""The server as an ASGI app: routes, what guards them, and what they share.

In: models and settings. Out: a FastAPI app. /docs is a plain page made from /openapi.json: it loads nothing from
elsewhere, and works without a network.
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import json
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, RedirectResponse, Response

from wenmo import __version__
from wenmo.errors import WenmoError
from wenmo.serve import routes_chat, routes_completions, routes_models, routes_responses, routes_tasks
from wenmo.serve.errors import ApiError, api_error, response
from wenmo.serve.gate import Gate
from wenmo.serve.guard import Guard
from wenmo.serve.keys import read_keys
from wenmo.serve.metrics import Metrics
from wenmo.serve.models import Models
from wenmo.serve.settings import ServeSettings

_log = logging.getLogger(__name__)


def create_app(models: Models, settings: ServeSettings, *, warm: Sequence[str] = ()) -> FastAPI:
    """`app.state` has models, settings, gate (who is inside) and metrics. The models are closed with the app. `warm`:
    names of those that are loaded at once, in order, while the first requests may come. Raises UsageError for a file
    of keys that is none."""
    keys = read_keys(settings.keys)  # here: what guards an app is made only when its first request comes
    gate = Gate(settings.max_requests)
    metrics = Metrics(gate, lambda: {name: served.engine for name, served in models.loaded().items()
                                     if served.engine is not None},
                      lambda: {name: served.computed_by for name, served in models.loaded().items()})

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        warming = asyncio.create_task(_warm(models, warm))
        yield
        warming.cancel()
        await models.aclose()

    app = FastAPI(title="wenmo", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan,
                  strict_content_type=False,
                  description="Language models behind HTTP: OpenAI's API, and /v1/predict for every other task.")
    app.state.models, app.state.settings, app.state.gate, app.state.metrics = models, settings, gate, metrics
    app.state.compiling = asyncio.Semaphore(1)  # grammars
    for routes in (routes_chat, routes_completions, routes_responses, routes_tasks, routes_models):
        app.include_router(routes.router)
    for kind in (ApiError, WenmoError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _failed)
    app.add_middleware(Guard, settings=settings, gate=gate, metrics=metrics, keys=keys)

    @app.get("/", include_in_schema=False)
    async def home() -> RedirectResponse:
        return RedirectResponse("docs")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(_page(app.openapi()))

    return app


async def _warm(models: Models, names: Sequence[str]) -> None:
    for name in names:
        try:
            await models.load(name)
        except WenmoError as error:  # who asks for it is told again
            _log.error("%s", error)


async def _failed(http: Request, error: Exception) -> Response:
    return response(api_error(error))


def _page(schema: dict[str, Any]) -> str:
    """Every route with an example of what to send."""
    rows = []
    for path, methods in schema["paths"].items():
        for method, route in methods.items():
            rows.append(f"<h2><code>{method.upper()} {html.escape(path)}</code></h2><p>{html.escape(route['summary'])}")
            example = _example(schema, route)
            if example is not None:
                shown = json.dumps(example, ensure_ascii=False, indent=2)
                rows.append(f"<pre>{html.escape(shown)}</pre>")
    return ("<!doctype html><html lang=en><meta charset=utf-8><title>wenmo</title>"
            "<style>body{font:16px/1.5 sans-serif;max-width:48rem;margin:2rem auto;padding:0 1rem}"
            "pre{background:#8881;padding:1rem;overflow:auto}:root{color-scheme:light dark}</style>"
            f"<h1>wenmo {html.escape(__version__)}</h1><p>For programs: <a href=openapi.json>openapi.json</a>"
            + "\n".join(rows))


def _example(schema: dict[str, Any], route: dict[str, Any]) -> Any:
    if "requestBody" not in route:
        return None
    name = route["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    return schema["components"]["schemas"][name].get("examples", [None])[0]
