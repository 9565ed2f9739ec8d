"""How much one request may ask for, checked before anything is read into tokens.

In: what a request asks for. Out: nothing, or an ApiError (400) that names the parameter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from wenmo.errors import say
from wenmo.serve.errors import ApiError
from wenmo.serve.settings import ServeSettings

BYTES_PER_TOKEN = 16  # text that has more of them on average is not worth reading to see whether it is too long


def check_bytes(settings: ServeSettings, texts: Iterable[str], param: str) -> None:
    """Whether each text can be short enough at all; counts its bytes alone."""
    most = settings.max_prompt_tokens * BYTES_PER_TOKEN
    for text in texts:
        if len(text) > most or len(text.encode("utf-8", "surrogatepass")) > most:
            raise _too_large(say(f"a text is longer than {most} bytes", f"文本超过 {most} 字节"), param,
                             "context_length_exceeded")


def check_tokens(settings: ServeSettings, num_tokens: int, param: str) -> None:
    if num_tokens > settings.max_prompt_tokens:
        raise _too_large(say(f"the prompt has {num_tokens} tokens; this server reads {settings.max_prompt_tokens}",
                             f"提示有 {num_tokens} 个词元；本服务器最多读 {settings.max_prompt_tokens} 个"), param,
                         "context_length_exceeded")


def check_numbers(settings: ServeSettings, *, max_new_tokens: int | None = None, n: int = 1, rows: int = 1,
                  rows_param: str = "rows") -> None:
    """None: the request leaves it to the server."""
    asked = (("max_tokens", max_new_tokens or 0, settings.max_new_tokens), ("n", n, settings.max_n),
             (rows_param, rows, settings.max_rows))
    for param, number, most in asked:
        if number > most:
            raise _too_large(say(f"`{param}` is {number}; this server allows {most}",
                                 f"`{param}` 为 {number}；本服务器最多允许 {most}"), param, "too_large")


def text_of(content: Any, param: str) -> str:
    """The text of a message's content: a string, or parts of text. Nothing is fetched on a client's word: an image, a
    file or a sound, whether by address or in place, is refused."""
    if isinstance(content, str):
        return content
    texts = []
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in ("text", "input_text", "output_text", "refusal"):
            raise ApiError(400, say(f"content of type `{kind}` is not read here: this server takes text alone",
                                    f"不支持 `{kind}` 类型的内容：本服务器只接受文本"),
                           type="invalid_request_error", code="unsupported_content", param=f"{param}[{number}]")
        texts.append(str(part.get("refusal" if kind == "refusal" else "text") or ""))
    return "".join(texts)


def _too_large(message: str, param: str, code: str) -> ApiError:
    return ApiError(400, message, type="invalid_request_error", code=code, param=param)
