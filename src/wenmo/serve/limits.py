"""How much one request may ask for, checked before anything is read into tokens.

In: what a request asks for. Out: nothing, or an ApiError (400) that names the parameter.
"""

from __future__ import annotations

from collections.abc import Iterable

from wenmo.errors import say
from wenmo.serve.errors import ApiError
from wenmo.serve.settings import ServeSettings

BYTES_PER_TOKEN = 16  # text that has more of them on average is not worth reading to see whether it is too long


def check_bytes(settings: ServeSettings, texts: Iterable[str], param: str, *, together: bool = False) -> None:
    """Whether each text (`together`: all of them as one) can be short enough at all; counts bytes alone."""
    most = settings.max_prompt_tokens * BYTES_PER_TOKEN
    num_bytes = 0
    for text in texts:
        num_bytes = (num_bytes if together else 0) + _num_bytes(text)
        if num_bytes > most:
            raise _too_large(say(f"a text is longer than {most} bytes", f"文本超过 {most} 字节"), param,
                             "context_length_exceeded")


def _num_bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def check_tokens(settings: ServeSettings, num_tokens: int, param: str) -> None:
    if num_tokens > settings.max_prompt_tokens:
        raise _too_large(say(f"the prompt has {num_tokens} tokens; this server reads {settings.max_prompt_tokens}",
                             f"提示有 {num_tokens} 个词元；本服务器最多读 {settings.max_prompt_tokens} 个"), param,
                         "context_length_exceeded")


def check_numbers(settings: ServeSettings, *, max_new_tokens: int | None = None, tokens_param: str = "max_tokens",
                  n: int = 1, rows: int = 1, rows_param: str = "rows") -> None:
    """None: the request leaves it to the server."""
    asked = ((tokens_param, max_new_tokens or 0, settings.max_new_tokens), ("n", n, settings.max_n),
             (rows_param, rows, settings.max_rows))
    for param, number, most in asked:
        if number > most:
            raise _too_large(say(f"`{param}` is {number}; this server allows {most}",
                                 f"`{param}` 为 {number}；本服务器最多允许 {most}"), param, "too_large")


def _too_large(message: str, param: str, code: str) -> ApiError:
    return ApiError(400, message, type="invalid_request_error", code=code, param=param)
