"""The Hugging Face hub, through its own library: cache, tokens, HF_ENDPOINT and HF_HUB_OFFLINE are as users know them.

In: a repository. Out: its listing; its files in the library's cache, each with the hash that the hub lists (which the
library itself does not check).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from wenmo.errors import MissingExtra, StorageError
from wenmo.files import sha256_file, storage_errors
from wenmo.hub.errors import broken, damaged, not_a_hub, not_found, refused, unreachable
from wenmo.hub.repository import Listing, RemoteFile, Repository, Unreachable, checked


def _library() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise MissingExtra("huggingface_hub", "hub", "hf:") from error
    return huggingface_hub


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or None


def listing(repository: Repository) -> Listing:
    """All files with sizes and hashes; one request. Raises Unreachable, or the error to show."""
    hub = _library()
    with _errors(repository):
        info = hub.HfApi(endpoint=_endpoint()).repo_info(
            repository.name, repo_type=repository.kind, revision=repository.revision, files_metadata=True)
        files = [RemoteFile(file.rfilename, int(file.size or 0), file.lfs.sha256 if file.lfs else "",
                            "" if file.lfs else file.blob_id or "") for file in info.siblings or []]
        return checked(repository, str(info.sha), files)


def fetch(repository: Repository, listed: Listing, files: Sequence[RemoteFile]) -> Path:
    """The folder under which all `files` lie; those not in the cache are downloaded and checked."""
    hub = _library()
    folder = Path()
    for file in files:
        path = _cached(repository, listed, file)
        if path is None:
            with storage_errors(Path(hub.constants.HF_HUB_CACHE)), _errors(repository, file):
                path = Path(hub.hf_hub_download(repository.name, file.path, repo_type=repository.kind,
                                                revision=listed.commit, endpoint=_endpoint()))
            if not _as_listed(path, file):
                path.resolve().unlink(missing_ok=True)
                path.unlink(missing_ok=True)
                raise damaged(repository, file)
        folder = path.parents[len(Path(file.path).parts) - 1]
    return folder


def cached(repository: Repository, listed: Listing, file: RemoteFile) -> bool:
    return _cached(repository, listed, file) is not None


def cache_folder() -> Path:
    return Path(_library().constants.HF_HUB_CACHE)


def _cached(repository: Repository, listed: Listing, file: RemoteFile) -> Path | None:
    path = _library().try_to_load_from_cache(repository.name, file.path, revision=listed.commit,
                                             repo_type=repository.kind)
    return Path(path) if isinstance(path, str) else None


def _as_listed(path: Path, file: RemoteFile) -> bool:
    if file.sha256:
        return sha256_file(path) == file.sha256
    if file.git_sha1:  # git's name of a blob
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        with open(path, "rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
        return digest.hexdigest() == file.git_sha1
    return path.stat().st_size == file.size_bytes


@contextlib.contextmanager
def _errors(repository: Repository, file: RemoteFile | None = None) -> Iterator[None]:
    """Whatever the library raises, as one of ours; a full disk passes through to `storage_errors`."""
    errors = _library().errors
    try:
        yield
    except errors.GatedRepoError as error:
        raise refused(repository) from error
    except errors.RepositoryNotFoundError as error:
        raise not_found(repository) from error
    except errors.RevisionNotFoundError as error:
        raise not_found(repository, repository.revision or "") from error
    except errors.LocalEntryNotFoundError as error:  # before its base, which says that the hub has no such file
        raise unreachable(repository, _first_line(error.__cause__ or error), _offline()) from error
    except errors.EntryNotFoundError as error:
        raise not_found(repository, file.path if file else "") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise refused(repository) from error
        if status == 404:
            raise not_found(repository) from error
        raise Unreachable(_first_line(error)) from error
    except (errors.HTTPError, errors.OfflineModeIsEnabled) as error:
        if file is not None:
            raise broken(repository, file, _first_line(error)) from error
        raise Unreachable(_first_line(error)) from error
    except errors.HFValidationError as error:
        raise not_found(repository) from error
    except (StorageError, Unreachable):
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM) or file is None:
            raise
        raise broken(repository, file, _first_line(error)) from error  # the library's word for a wrong length
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        if type(error).__module__.startswith("wenmo"):
            raise
        raise not_a_hub(repository, _endpoint() or "https://huggingface.co") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _offline() -> bool:
    return bool(_library().constants.HF_HUB_OFFLINE)
