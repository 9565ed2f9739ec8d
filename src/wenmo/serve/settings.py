"""How a server is set: where it listens, who may call, how much one caller may ask for.

In: flags of `wenmo serve` or a YAML file. Out: `ServeSettings`. Every limit is checked before the work that it bounds.
"""

from __future__ import annotations

from pydantic import Field

from wenmo.config import Count, Settings
from wenmo.engine import EngineSettings
from wenmo.serve.models import ModelsSettings


class ServeSettings(Settings):
    """host, port: where it listens; 127.0.0.1 is this machine alone, port 0 any free one. hosts: names by which it may
    be called besides; origins: web pages elsewhere that may call it (none, unless named). keys: a file with an API key
    on each line, `NAME: KEY` or the key alone; the environment variable WENMO_API_KEYS holds such lines too. Without
    any key everybody who reaches the port may call.

    requests_per_minute, tokens_per_minute: for each key (without keys, each address); left out, unbounded.
    max_requests: so many are inside at once, running or waiting; who comes then is told to come again.
    max_prompt_tokens, max_new_tokens, max_n, max_rows: the most one request may ask for.
    request_seconds: a request takes no longer; idle_seconds: nor does a stream stand still; drain_seconds: once the
    server is to stop, those inside have so long to end.
    """

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    keys: str | None = None
    requests_per_minute: Count | None = Field(None, ge=1)
    tokens_per_minute: Count | None = Field(None, ge=1)
    max_requests: int = Field(256, ge=1)
    max_body_bytes: Count = Field(4 << 20, ge=1)
    max_prompt_tokens: Count = Field(32768, ge=1)
    max_new_tokens: Count = Field(8192, ge=1)
    max_n: int = Field(16, ge=1)
    max_rows: int = Field(1024, ge=1)
    request_seconds: float = Field(600.0, gt=0)
    idle_seconds: float = Field(120.0, gt=0)
    drain_seconds: float = Field(30.0, ge=0)
    engine: EngineSettings = EngineSettings()
    models: ModelsSettings = ModelsSettings()
