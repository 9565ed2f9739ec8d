"""Files written for a test, and what the intake makes of them."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from wenmo.config import parse
from wenmo.text.intake import Counts, Quarantine, Row, SourceSettings, open_source, read_rows
from wenmo.text.source import Found

per_example = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

REVIEW = "这家酒店的房间很大，服务也不错，早餐一般。下次来还会住，可以推荐给大家！"
TRADITIONAL = "這家酒店的房間很大，服務也不錯，早餐一般。下次來還會住，可以推薦給大家！"


def zstd_compress(data: bytes) -> bytes:
    compressed: bytes = pytest.importorskip("backports.zstd").compress(data)
    return compressed


def put(folder: Path, name: str, content: str | bytes, encoding: str = "utf-8") -> Path:
    data = content.encode(encoding) if isinstance(content, str) else content
    pack = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstd_compress}.get(Path(name).suffix, lambda data: data)
    (folder / name).write_bytes(pack(data))
    return folder / name


def read(
    folder: Path, path: str, required: tuple[str, ...] = ("text",), optional: tuple[str, ...] = ("label",), **keys: Any
) -> tuple[list[Row], Counts, list[dict[str, Any]], tuple[Found, ...]]:
    """(rows, counts, the quarantine file's rows, what was found)."""
    source = open_source(parse(SourceSettings, {"path": path, **keys}, "test"), folder, required, optional)
    counts, put_aside = Counts(), folder / "bad.quarantine"
    rows = list(read_rows(source, counts, Quarantine(put_aside)))
    counts.check()
    bad = [json.loads(line) for line in put_aside.read_text("utf-8").split("\n") if line] if put_aside.exists() else []
    assert counts.quarantined == len(bad)
    return rows, counts, bad, source.files


def texts(rows: list[Row]) -> list[str]:
    return [row.values["text"] for row in rows]
