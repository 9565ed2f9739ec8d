"""What a client is told when a request fails: one shape for all routes, that of OpenAI's API.

In: an exception. Out: a status and {"error": {"message", "type", "param", "code"}}. Where on this machine a model lies
is no client's business: a fault of the server's own says no more than that it is one, and the log says the rest.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from wenmo.engine.batcher import BatcherFull
from wenmo.errors import DataError, ModelError, TokenizerError, UsageError, WenmoError, say
from wenmo.faults import in_words

_log = logging.getLogger(__name__)
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """`code` is for programs, `message` for people, `param` the name of what was wrong in the request."""

    def __init__(self, status: int, message: str, *, type: str | None = None, code: str | None = None,
                 param: str | None = None, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.type = type or _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


def encoded(value: Any) -> bytes:
    """JSON in UTF-8. What JSON does not know becomes what it does: NaN and infinity null, half a character `?`."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError:
        text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Json(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return encoded(content)


def response(error: ApiError) -> Json:
    return Json(error.body(), status_code=error.status, headers=error.headers)


def api_error(error: Exception) -> ApiError:
    """What a client is told of any exception; one of the server's own is logged."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError):
        return _of_validation(error)
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail), headers=error.headers)
    if isinstance(error, BatcherFull):
        return ApiError(429, message_of(error), code="overloaded", headers={"Retry-After": "1"})
    if isinstance(error, ModelError):  # what this model cannot do; where it lies is left out
        return ApiError(400, "; ".join(filter(None, (error.what, error.mend))), param="model")
    if isinstance(error, (DataError, UsageError, TokenizerError)):
        return ApiError(400, message_of(error))
    _log.error(say("a request failed", "有请求失败"), exc_info=error)
    return ApiError(500, say("the server failed; its log says why", "服务器出错，原因见其日志"))


def message_of(error: WenmoError) -> str:
    """On one line: what happened, where, and the mend."""
    where = f" ({error.where})" if error.where else ""
    return f"{error.what}{where}" + (f"; {error.mend}" if error.mend else "")


def _of_validation(error: RequestValidationError) -> ApiError:
    """The fault that lies deepest: of what may be one of several things, the one that it resembles most."""
    faults = error.errors()
    fault = max(faults, key=lambda each: len(each["loc"]))
    path = ".".join(_written(fault, error.body) if fault["loc"][:1] == ("body",) else map(str, fault["loc"]))
    if fault["type"] == "json_invalid" or (fault["type"] == "missing" and not path):
        return ApiError(400, say("the body is no valid JSON", "请求体不是合法的 JSON"), code="invalid_json")
    if fault["type"] == "extra_forbidden":
        return ApiError(400, say(f"unknown or unsupported parameter: {path}", f"未知或不支持的参数：{path}"),
                        param=path, code="unknown_parameter")
    if fault["type"] == "missing":
        return ApiError(400, say(f"missing parameter: {path}", f"缺少参数：{path}"), param=path,
                        code="missing_required_parameter")
    message = in_words(fault)
    return ApiError(400, f"{path}: {message}" if path else message, param=path or None, code="invalid_value")


def _written(fault: Mapping[str, Any], body: Any) -> Iterator[str]:
    """The parts of a place that the client wrote, or left out; not pydantic's names for one of several kinds."""
    *_, last = places = fault["loc"][1:] or ("",)
    for number, part in enumerate(places, 1):
        if (isinstance(body, Mapping) and part in body) or (isinstance(body, list) and part in range(len(body))):
            body = body[part]
            yield str(part)
        elif fault["type"] == "missing" and part == last and number == len(places) and part:
            yield str(part)
