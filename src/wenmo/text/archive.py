"""Files as they lie on disk → their bytes, unpacked: .gz, .xz, .zst, and the members of a .zip.

In: a path; `poems.zip/tang.txt` is a member of an archive. Out: a stream of bytes, never the whole file at once. What
is damaged or cut short is a DataError: an archive that ends early must not look like a short file.
"""

from __future__ import annotations

import contextlib
import gzip
import lzma
import sys
import zipfile
import zlib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import IO, Any

from wenmo.errors import DataError, MissingExtra, say

PACKINGS = (".gz", ".xz", ".zst")


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns a damaged archive, an unreadable file or half a UTF-16 character into a DataError."""
    try:
        yield
    except _damages() as error:
        raise DataError(
            say(f"the archive is damaged or cut short: {error}", f"压缩文件损坏或不完整：{error}"),
            where=str(path),
            mend=say("fetch or pack it again; a file that is not packed should not be named .gz, .xz, .zst or .zip",
                     "请重新获取或压缩；未压缩的文件不应以 .gz、.xz、.zst 或 .zip 命名"),
        ) from error
    except UnicodeDecodeError as error:  # lone bytes are let through: this is a text that ends inside a character
        raise DataError(
            say(f"the text ends inside a character of {error.encoding}", f"文本在 {error.encoding} 的半个字符处中断"),
            where=str(path),
            mend=say("fetch the file again, or check `encoding`", "请重新获取该文件，或检查 `encoding`"),
        ) from error
    except OSError as error:
        raise DataError(
            say(f"cannot read: {error.strerror or error}", f"无法读取：{error.strerror or error}"),
            where=str(path), mend=say("check the path and its permissions", "请检查路径及其权限"),
        ) from error


def packing(path: Path) -> str:
    """`.gz`, `.xz`, `.zst` or nothing."""
    suffix = path.suffix.lower()
    return suffix if suffix in PACKINGS else ""


def open_bytes(path: Path) -> IO[bytes]:
    """The unpacked bytes, seekable; errors of the archive come while reading: see `reading`."""
    plain = _open_stored(path)
    match packing(path):
        case ".gz":
            return _owning(gzip.GzipFile(fileobj=plain), plain)
        case ".xz":
            return _owning(lzma.LZMAFile(plain), plain)
        case ".zst":
            return _owning(_zstd().ZstdFile(plain), plain)
        case _:
            return plain


def stored(path: Path) -> Path:
    """The file on disk that holds `path`: itself, or the .zip that it is a member of."""
    return next((parent for parent in path.parents if _is_zip(parent)), path)


def members(path: Path) -> list[Path] | None:
    """The files in a .zip that match `archive.zip/pattern`, by name; None where `path` does not lead into one."""
    archive = stored(path)
    if archive == path:
        return None
    pattern = path.relative_to(archive).as_posix()
    with reading(archive), zipfile.ZipFile(archive) as file:
        names = [info.filename for info in file.infolist() if not info.is_dir()]
    return [archive / name for name in sorted(names) if name == pattern or fnmatch(name, pattern)]


def _is_zip(path: Path) -> bool:
    return path.suffix.lower() == ".zip" and path.is_file()


def _open_stored(path: Path) -> IO[bytes]:
    archive = stored(path)
    if archive == path:
        return open(path, "rb")
    with zipfile.ZipFile(archive) as file:  # the member stays open when this closes
        info = file.getinfo(path.relative_to(archive).as_posix())
        if info.flag_bits & 1:
            raise DataError(say("this member of the archive is encrypted", "压缩包中的该文件已加密"), where=str(path),
                            mend=say("unpack it with its password first", "请先用密码解压"))
        return file.open(info)


def _owning(unpacked: Any, plain: IO[bytes]) -> IO[bytes]:
    """Closing the unpacked stream closes the file under it, which the libraries leave to the one who opened it."""
    close = unpacked.close

    def close_both() -> None:
        close()
        plain.close()

    unpacked.close = close_both
    stream: IO[bytes] = unpacked
    return stream


def _damages() -> tuple[type[Exception], ...]:
    """What the libraries raise for a damaged archive; looked up only when something was raised."""
    usual = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, zipfile.BadZipFile)
    return (*usual, *_zst_errors())


def _zstd() -> Any:
    """Python 3.14's compression.zstd; for older ones, the same as a package."""
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
    except ImportError as error:
        raise MissingExtra("backports.zstd", "zst", ".zst") from error
    return zstd


def _zst_errors() -> tuple[type[Exception], ...]:
    """Empty where the library is missing: then nothing of its kind can have been raised."""
    try:
        return (_zstd().ZstdError,)
    except MissingExtra:
        return ()
