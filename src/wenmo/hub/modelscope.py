"""ModelScope (魔搭), by its HTTP API and the standard library.

In: a repository. Out: its listing; its files in a cache of ours, named by their hashes. A transfer that was cut goes on
where it stopped; nothing has its final name before its hash is that of the listing.

The API, as of 2025: /api/v1/models/ORG/NAME/repo/files lists, /api/v1/models/ORG/NAME/repo?FilePath= gives a file;
for data sets /api/v1/datasets/ORG/NAME/repo/tree, page by page, and /repo. MODELSCOPE_ENDPOINT names another host.
"""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from filelock import FileLock

from wenmo.files import atomic_folder, sha256, sha256_file, storage_errors
from wenmo.hub.errors import broken, damaged, not_a_hub, not_found, refused
from wenmo.hub.repository import Listing, RemoteFile, Repository, Unreachable, checked

_TIMEOUT_SECONDS = 30
_LONGEST_ANSWER_BYTES = 64 << 20
_PAGE = 100
_TRIES = 3
_CHUNK_BYTES = 1 << 20


def listing(repository: Repository) -> Listing:
    """All files with sizes and hashes. Raises Unreachable, or the error to show."""
    query = {"Revision": repository.revision or "master", "Recursive": "true"}
    entries: list[dict[str, Any]] = []
    if repository.kind == "model":
        entries = _entries(repository, "repo/files", query)
    else:
        while not entries or len(entries) % _PAGE == 0:
            number = len(entries) // _PAGE + 1
            page = _entries(repository, "repo/tree", {**query, "Root": "/", "PageNumber": number, "PageSize": _PAGE})
            entries += page
            if not page:
                break
    try:
        files = [RemoteFile(str(entry["Path"]), int(entry["Size"]), str(entry.get("Sha256") or "").lower())
                 for entry in entries if entry.get("Type") != "tree"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise not_a_hub(repository, _endpoint()) from error
    if any(file.sha256 and not (len(file.sha256) == 64 and file.sha256.isalnum()) for file in files):
        raise not_a_hub(repository, _endpoint())
    return checked(repository, repository.revision or "master", files)


def fetch(repository: Repository, listed: Listing, files: Sequence[RemoteFile]) -> Path:
    """A folder with exactly `files`; it is named by their hashes, so the same content is the same folder."""
    names = sha256(*(f"{file.path}\n{_blob_name(repository, listed, file)}" for file in files))
    target = cache_folder() / "snapshots" / repository.kind / repository.name.replace("/", "--") / names[:32]
    if target.exists():
        return target
    for file in files:
        _download(repository, listed, file)
    with atomic_folder(target) as folder:
        for file in files:
            (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
            (folder / file.path).symlink_to(_blob(repository, listed, file))
    return target


def cached(repository: Repository, listed: Listing, file: RemoteFile) -> bool:
    return _blob(repository, listed, file).exists()


def cache_folder() -> Path:
    ours = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "wenmo"
    return Path(os.environ.get("MODELSCOPE_CACHE") or ours).resolve() / "modelscope"


def _blob_name(repository: Repository, listed: Listing, file: RemoteFile) -> str:
    """The hash of its content or, where the hub tells none, of what names it."""
    return file.sha256 or sha256(str(repository), listed.commit, file.path, str(file.size_bytes))


def _blob(repository: Repository, listed: Listing, file: RemoteFile) -> Path:
    return cache_folder() / "blobs" / _blob_name(repository, listed, file)


# HTTP -------------------------------------------------------------------------------------------------


def _endpoint() -> str:
    named = os.environ.get("MODELSCOPE_ENDPOINT", "").rstrip("/")
    return named or f"https://{os.environ.get('MODELSCOPE_DOMAIN') or 'www.modelscope.cn'}"


def _open(repository: Repository, what: str, query: dict[str, Any], begin: int = 0) -> Any:
    """An open answer to a GET of `/api/v1/models/ORG/NAME/what?query`, from byte `begin` on."""
    url = f"{_endpoint()}/api/v1/{repository.kind}s/{repository.name}/{what}?{urlencode(query)}"
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "wenmo"})
        if begin:
            request.add_header("Range", f"bytes={begin}-")
        token = os.environ.get("MODELSCOPE_API_TOKEN")
        if token:  # for this host alone, not for where it may send us
            request.add_unredirected_header("Authorization", f"Bearer {token}")
            request.add_unredirected_header("Cookie", f"m_session_id={token}")
        return urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise refused(repository) from error
        if error.code == 404:
            raise not_found(repository, str(query.get("FilePath", ""))) from error
        raise Unreachable(str(error)) from error
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(str(getattr(error, "reason", error))) from error
    except ValueError as error:  # a URL that is none
        raise not_a_hub(repository, _endpoint()) from error


def _entries(repository: Repository, what: str, query: dict[str, Any]) -> list[dict[str, Any]]:
    try:
        with _open(repository, what, query) as answer:
            content = answer.read(_LONGEST_ANSWER_BYTES + 1)
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(str(error)) from error
    try:
        value = json.loads(content)
        data = value["Data"] or {}
        if value.get("Code") in (404, 10010205001):
            raise not_found(repository)
        return list(data.get("Files") or [])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if type(error).__module__.startswith("wenmo"):
            raise
        raise not_a_hub(repository, _endpoint()) from error


def _download(repository: Repository, listed: Listing, file: RemoteFile) -> None:
    blob = _blob(repository, listed, file)
    with storage_errors(blob):
        blob.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(blob.with_name(f".{blob.name}.lock")):
            if blob.exists():
                return
            part = blob.with_name(f".{blob.name}.part")
            part.touch()
            for _ in range(_TRIES):
                if part.stat().st_size < file.size_bytes:
                    reason = _append(repository, listed, file, part)
            if part.stat().st_size < file.size_bytes:
                raise broken(repository, file, reason)
            if part.stat().st_size > file.size_bytes or (file.sha256 and sha256_file(part) != file.sha256):
                part.unlink()
                raise damaged(repository, file)
            with open(part, "rb") as stream:
                os.fsync(stream.fileno())
            part.replace(blob)


def _append(repository: Repository, listed: Listing, file: RemoteFile, part: Path) -> str:
    """Adds what comes to `part`, at most one byte more than was listed; the reason where it ended early."""
    query = {"Revision": listed.commit, "FilePath": file.path}
    if repository.kind == "dataset":
        query["Source"] = "SDK"
    try:
        answer = _open(repository, "repo", query, begin=part.stat().st_size)
    except Unreachable as error:
        return str(error)
    with answer, open(part, "ab") as stream:
        if answer.status != 206:
            stream.truncate(0)
        size = stream.seek(0, os.SEEK_END)
        while size <= file.size_bytes:
            try:
                chunk = answer.read(min(_CHUNK_BYTES, file.size_bytes + 1 - size))
            except (http.client.HTTPException, TimeoutError, ConnectionError) as error:
                return str(error) or type(error).__name__
            if not chunk:
                return ""
            size += stream.write(chunk)
    return ""
