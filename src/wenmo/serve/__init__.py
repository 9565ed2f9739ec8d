"""`wenmo serve`: models behind HTTP, in the words of OpenAI's API, and every task behind /v1/predict.

In: requests. Out: JSON, or server-sent events as the text comes. Nothing is computed here: a route reads a request,
asks an engine or a batcher through `models`, and writes the answer down.

    settings.py   what may be asked, and of what there may be how much
    models.py     names → models, loaded on demand within one memory budget
    schema.py     what requests look like
    errors.py     what a client is told when one fails
    running.py    the engine's events, from its thread to the server's
    streaming.py  server-sent events
    routes_*.py   one file for each kind of answer
    guard.py      what stands before all routes: names, keys.py, quota.py, sizes, times
    gate.py       who is inside; limits.py: how much one of them may ask for
    metrics.py    what is counted and measured
    app.py        all of it together
    server.py     listening, and stopping well
"""

from wenmo.errors import MissingExtra, say

try:
    import fastapi as fastapi
    import prometheus_client as prometheus_client
    import uvicorn as uvicorn
except ModuleNotFoundError as error:
    raise MissingExtra(error.name or "fastapi", "serve", say("serving", "提供服务")) from error
