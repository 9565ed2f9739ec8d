"""What lies on a hub: a reference → a repository; what a hub says of it → a checked listing.

In: `hf:org/name`, `ms:org/name@v1.0`, `hf://datasets/org/name/path/*.csv`. Out: plain values that both hubs share.
A hub is not trusted: a path that leads out of its folder, or a size that is none, is an error before anything is
fetched.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal
from urllib.parse import unquote

from wenmo.errors import DataError, ModelError, WenmoError, say

_SCHEME = re.compile(r"(?P<hub>hf|ms)(?:://(?P<kind>datasets|models)/|:(?!/))(?P<rest>.*)", re.DOTALL)
_PART = r"\w[\w.-]*"
_REST = re.compile(rf"(?P<name>{_PART}(?:/{_PART})?)(?:@(?P<revision>refs/\w+/[^/@]+|[^/@]+))?(?:/(?P<path>.+))?")


@dataclass(frozen=True)
class Repository:
    hub: Literal["hf", "ms"]
    kind: Literal["model", "dataset"]
    name: str  # org/name
    revision: str | None  # a branch, a tag or a commit; None: the hub's main branch

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        scheme = f"{self.hub}:" if self.kind == "model" else f"{self.hub}://datasets/"
        return f"{scheme}{self.name}{revision}"


@dataclass(frozen=True)
class RemoteFile:
    """`sha256` of the bytes where the hub tells it, else `git_sha1` of the git blob, else neither."""

    path: str
    size_bytes: int
    sha256: str = ""
    git_sha1: str = ""


@dataclass(frozen=True)
class Listing:
    """All files of a repository at one moment; `commit` is what a later download asks for."""

    commit: str
    files: tuple[RemoteFile, ...]


class Unreachable(Exception):
    """The hub cannot be asked; what was fetched before may do. Never leaves the rooms of the hub."""


def is_reference(text: str) -> bool:
    return _SCHEME.fullmatch(text) is not None


def parse_reference(text: str) -> tuple[Repository, str]:
    """(repository, path in it or ""). Raises ModelError or, for a data set, DataError."""
    scheme = _SCHEME.fullmatch(text)
    rest = _REST.fullmatch(scheme["rest"]) if scheme else None
    kind: Literal["model", "dataset"] = "dataset" if scheme and scheme["kind"] == "datasets" else "model"
    if scheme is None or rest is None or (scheme["hub"] == "ms" and "/" not in rest["name"]):
        form = "hf://datasets/org/name/path/*.csv" if kind == "dataset" else "hf:org/name"
        raise error_for(kind)(say("this names no repository of a hub", "这不是模型库中的仓库名"), where=text,
                              mend=say(f"write {form}, with @revision after the name if you like",
                                       f"写成 {form}，名称后可加 @版本"))
    revision = unquote(rest["revision"]) if rest["revision"] else None
    hub: Literal["hf", "ms"] = "hf" if scheme["hub"] == "hf" else "ms"
    return Repository(hub, kind, rest["name"], revision), rest["path"] or ""


def checked(repository: Repository, commit: str, files: Iterable[RemoteFile]) -> Listing:
    """A listing in the order of its paths; an error for one that could write outside its folder."""
    listed = sorted(files, key=lambda file: file.path)
    for file in listed:
        path = PurePosixPath(file.path)
        if path.is_absolute() or ".." in path.parts or "\\" in file.path or "\0" in file.path or file.size_bytes < 0:
            raise error_for(repository.kind)(
                say(f"the hub lists an impossible file: {file.path!r}", f"模型库列出了不可能的文件：{file.path!r}"),
                where=str(repository), mend=say("do not trust this repository", "不要信任该仓库"))
    return Listing(commit, tuple(listed))


def error_for(kind: Literal["model", "dataset"]) -> type[WenmoError]:
    return DataError if kind == "dataset" else ModelError
