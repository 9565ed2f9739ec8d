"""Files that survive a crash: atomic writes, hashes, locks, JSON lines.

In: bytes and paths. Out: either the whole new file or the whole old one, never half of one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from wenmo.errors import RunLocked, StorageError, say
from wenmo.faults import of_reading


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns a full disk, a quota or a read-only folder into a StorageError that says so."""
    try:
        yield
    except OSError as error:
        mends = {
            errno.ENOSPC: say("free some disk space, then run the same command again",
                              "请腾出磁盘空间后重新运行同一命令"),
            errno.EDQUOT: say("free some of your quota, then run the same command again",
                              "请腾出配额后重新运行同一命令"),
            errno.EACCES: say("choose a folder that you may write to", "请选择可写的文件夹"),
            errno.EPERM: say("choose a folder that you may write to", "请选择可写的文件夹"),
            errno.EROFS: say("choose a folder on a writable disk", "请选择可写磁盘上的文件夹"),
            errno.EFBIG: say("raise the limit on file sizes (ulimit -f)", "请提高文件大小上限（ulimit -f）"),
            errno.EIO: say("the disk reports a fault: check it, and write elsewhere",
                           "磁盘报告故障：请检查，并换一处写入"),
            errno.ENOTDIR: say("a file stands where a folder is needed", "此处需要文件夹，却是一个文件"),
            errno.EISDIR: say("a folder stands where a file is needed", "此处需要文件，却是一个文件夹"),
            errno.ENOENT: say("choose a folder where one can be made", "请选择可以新建内容的文件夹"),
        }
        if error.errno not in mends:
            raise
        raise StorageError(
            say(f"cannot write: {of_reading(error)}", f"无法写入：{of_reading(error)}"),
            where=str(path), mend=mends[error.errno],
        ) from error


def sync_folder(folder: Path) -> None:
    """fsync of a folder, so that a rename inside it survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Writes beside `path`, fsyncs, renames over it, fsyncs the folder."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with storage_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Indented, with Chinese readable; atomic."""
    write_atomic(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A new folder to fill; on success it is fsynced file by file and renamed to `target`.

    A `target` that exists is moved aside first and deleted after the rename, so that one of the two always
    stands complete. A reader may only trust `target` itself: half-made ones are named `.name.….tmp`.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    aside = target.with_name(f".{target.name}.{os.getpid()}.old")
    with storage_errors(target):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            yield temporary
            for path in sorted(temporary.rglob("*")):
                if path.is_file():
                    with open(path, "rb") as file:
                        os.fsync(file.fileno())
                elif path.is_dir():
                    sync_folder(path)
            sync_folder(temporary)
            if target.exists():
                os.replace(target, aside)
            os.replace(temporary, target)
            sync_folder(target.parent)
            shutil.rmtree(aside, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def sweep_unfinished(folder: Path) -> None:
    """Removes what a killed process left half-made in `folder`; call it only while holding the folder's lock.

    A `.name.….old` without its `name` is a folder whose replacement never came: it is put back.
    """
    for path in folder.glob(".*.old"):
        original = folder / path.name[1:].rsplit(".", 2)[0]
        if original.exists():
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.replace(path, original)
    for path in folder.glob(".*.tmp"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def sha256(*parts: bytes | str) -> str:
    """Hex digest of the parts, each framed by its length so that no two splits collide."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes, as `sha256sum` prints it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds `folder/.lock`; a second process is refused with the first one's pid. Ends with the process.

    Nothing of it stays: the lock file goes, and so does the folder where it was made here and nothing came into it.
    """
    with storage_errors(folder):
        is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        holder = folder / ".lock.pid"
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            pid = holder.read_text().strip() if holder.exists() else "?"
            raise RunLocked(
                say(f"another process (pid {pid}) is writing here", f"另一进程（pid {pid}）正在写入此处"),
                where=str(folder),
                mend=say("wait for it, stop it, or choose another --out", "等它结束、停止它，或换一个 --out"),
            ) from error
        holder.write_text(f"{os.getpid()}\n")
    try:
        yield
    finally:
        holder.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # held while its name goes: who waits for it by then starts over (filelock)
            (folder / ".lock").unlink()
        lock.release()
        if is_new:
            with contextlib.suppress(OSError):  # it holds something
                folder.rmdir()


def append_jsonl(path: Path, row: dict[str, Any]) -> None:
    """One JSON object on one line, in a single write."""
    with storage_errors(path), open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All complete lines; a last line cut short by a crash is left out."""
    rows = []
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                rows.append(json.loads(line))
    return rows


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """All rows, atomically."""
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
