"""A hub on 127.0.0.1 for tests: as much of the two APIs as is spoken to it, and faults on demand."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """`files`: "models/org/name" or "datasets/org/name" → path → content; what is larger than `lfs_from` is LFS.
    `faults`: path → an HTTP status, "cut" (half, once), "always cut", "wrong" (another content of the same length),
    or "long". `asked`: every request, with the bytes that a range began at."""

    url: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    faults: dict[str, int | str] = field(default_factory=dict)
    asked: list[tuple[str, str, int]] = field(default_factory=list)
    lfs_from: int = 1000
    down: int = 0  # a status for every request

    def files_asked(self) -> list[str]:
        return [path for method, path, _ in self.asked
                if method == "GET" and ("/resolve/" in path or "FilePath" in path)]


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self, hub)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def answer(request: BaseHTTPRequestHandler, hub: Hub) -> None:
    begin = int((request.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
    hub.asked.append((request.command, request.path, begin))
    url = urlsplit(request.path)
    query = {name: values[0] for name, values in parse_qs(url.query).items()}
    parts = unquote(url.path).strip("/").split("/")
    if hub.down:
        return send(request, b"down", status=hub.down)
    if parts[:2] == ["api", "v1"]:
        return modelscope(request, hub, parts[2:], query, begin)
    if parts[0] == "api":
        name = "/".join(parts[1:4])
        if name not in hub.files:
            return send(request, b"{}", status=404, headers={"X-Error-Code": "RepoNotFound"})
        if parts[4:5] == ["revision"] and "/".join(parts[5:]) not in ("main", "v1", COMMIT):
            return send(request, b"{}", status=404, headers={"X-Error-Code": "RevisionNotFound"})
        return send(request, json.dumps({"id": "/".join(parts[2:4]), "sha": COMMIT, "tags": [], "siblings": [
            sibling(path, content, hub) for path, content in hub.files[name].items()]}).encode())
    kind = "datasets" if parts[0] == "datasets" else "models"
    parts = parts[1:] if parts[0] == "datasets" else parts
    if parts[2:3] != ["resolve"]:
        return send(request, b"<html>", headers={"Content-Type": "text/html"})
    path = "/".join(parts[4:])
    content = hub.files[f"{kind}/{'/'.join(parts[:2])}"][path]
    headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(path.encode() + content).hexdigest()}"'}
    return send_file(request, hub, path, content, begin, headers)


def sibling(path: str, content: bytes, hub: Hub) -> dict[str, object]:
    entry: dict[str, object] = {"rfilename": path, "size": len(content),
                                "blobId": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()}
    if len(content) > hub.lfs_from:
        entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 100}
    return entry


def modelscope(request: BaseHTTPRequestHandler, hub: Hub, parts: list[str], query: dict[str, str], begin: int) -> None:
    files = hub.files.get("/".join(parts[:3]))
    if files is None:
        return send(request, json.dumps({"Code": 404, "Data": None}).encode(), status=404)
    if "FilePath" in query:
        return send_file(request, hub, query["FilePath"], files[query["FilePath"]], begin, {})
    listed = [{"Path": path, "Size": len(content), "Type": "blob", "Sha256": hashlib.sha256(content).hexdigest()}
              for path, content in files.items()]
    if "PageNumber" in query:
        size = int(query["PageSize"])
        listed = listed[(int(query["PageNumber"]) - 1) * size:][:size]
    return send(request, json.dumps({"Code": 200, "Data": {"Files": listed}}).encode())


def send_file(request: BaseHTTPRequestHandler, hub: Hub, path: str, content: bytes, begin: int,
              headers: dict[str, str]) -> None:
    fault = hub.faults.get(path)
    if isinstance(fault, int):
        return send(request, b"no", status=fault)
    if fault == "wrong":
        content = bytes(byte ^ 1 for byte in content)
    body = content[begin:] + (b"more" if fault == "long" else b"")
    cut = fault in ("cut", "always cut") and request.command == "GET"
    if fault == "cut" and cut:
        del hub.faults[path]
    sent = body[:0 if begin and fault == "always cut" else len(body) // 2] if cut else body
    ranged = {"Content-Range": f"bytes {begin}-{len(content) - 1}/{len(content)}"} if begin else {}
    return send(request, sent, status=206 if begin else 200, headers={**headers, **ranged}, length=len(body))


def send(request: BaseHTTPRequestHandler, body: bytes, *, status: int = 200, headers: dict[str, str] | None = None,
         length: int | None = None) -> None:
    request.send_response(status)
    for name, value in (headers or {}).items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(len(body) if length is None else length))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)
    request.close_connection = True
