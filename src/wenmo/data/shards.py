"""Token shards: a corpus on disk, tokenised once, read through memory maps.

In: documents, each a dict of one-dimensional arrays of equal length (`ids`, perhaps `starts`). Out: a folder that
opens in milliseconds whatever its size and hands out documents as views, with no copy and no parsing.

    manifest.json       dtypes, counts, the sha256 of every file, `meta` (hashes of the tokenizer and of the sources)
    offsets.bin         int64, documents + 1: where each document begins in the whole corpus
    ids-00000.bin       one file a column and shard, raw little-endian numbers; a document lies in one shard

The folder appears whole or not at all, and is never changed afterwards: a corpus that changes is another folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from pydantic import ValidationError

from wenmo import files
from wenmo.config import Settings
from wenmo.errors import DataError, say

Column = Literal["uint8", "uint16", "uint32"]
WRITTEN_TOKENS = 1 << 16  # are checked, hashed and written at once: most documents are short, and calls cost


class Shard(Settings):
    """What one shard holds, and the sha256 of its file for each column."""

    num_documents: int
    num_tokens: int
    sha256: dict[str, str]


class Manifest(Settings):
    version: Literal[1] = 1
    columns: dict[str, Column]
    num_documents: int
    num_tokens: int
    offsets_sha256: str
    shards: tuple[Shard, ...]
    meta: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Shards:
    """An open corpus. `offsets` is int64 [documents + 1]; all arrays are read-only views of the files."""

    folder: Path
    manifest: Manifest
    offsets: np.ndarray = field(repr=False)
    columns: tuple[Mapping[str, np.ndarray], ...] = field(repr=False)  # of each shard
    first_document: tuple[int, ...] = field(repr=False)  # of each shard, in the corpus
    first_token: tuple[int, ...] = field(repr=False)

    @classmethod
    def open(cls, folder: Path) -> Shards:
        """Maps the files after a check of their sizes; `verify` checks their bytes. Raises DataError."""
        path = folder / "manifest.json"
        try:
            manifest = Manifest.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise _damaged(path, say("the list of contents cannot be read", "内容清单无法读取")) from error
        shards = manifest.shards
        first_document = (0, *itertools.accumulate(shard.num_documents for shard in shards))
        first_token = (0, *itertools.accumulate(shard.num_tokens for shard in shards))
        offsets = _mapped(folder / "offsets.bin", "int64", manifest.num_documents + 1)
        if (
            (first_document[-1], first_token[-1]) != (manifest.num_documents, manifest.num_tokens)
            or any(set(shard.sha256) != set(manifest.columns) for shard in shards)
            or tuple(offsets[list(first_document)]) != first_token
        ):
            raise _damaged(path, say("the counts contradict each other", "各项计数互相矛盾"))
        columns = tuple(
            {name: _mapped(folder / _file_name(name, number), dtype, shard.num_tokens)
             for name, dtype in manifest.columns.items()}
            for number, shard in enumerate(shards)
        )
        return cls(folder, manifest, offsets, columns, first_document[:-1], first_token[:-1])

    @property
    def num_documents(self) -> int:
        return self.manifest.num_documents

    @property
    def num_tokens(self) -> int:
        return self.manifest.num_tokens

    @cached_property
    def doc_lengths(self) -> np.ndarray:
        """Tokens of each document, int64 [documents]."""
        return np.diff(self.offsets)

    @property
    def sha256(self) -> str:
        """Names the tokens (whatever `meta` says of their origin): the same documents in the same order."""
        return files.sha256(self.manifest.model_dump_json(exclude={"meta"}))

    def document(self, number: int) -> dict[str, np.ndarray]:
        """All columns of one document, as views."""
        if not 0 <= number < self.num_documents:
            raise IndexError(f"document {number} of {self.num_documents}")
        shard = bisect_right(self.first_document, number) - 1
        base = self.first_token[shard]
        start, end = int(self.offsets[number]) - base, int(self.offsets[number + 1]) - base
        return {name: column[start:end] for name, column in self.columns[shard].items()}

    def verify(self) -> None:
        """Reads and hashes every byte; DataError names the first file that is not what was written."""
        expected = {"offsets.bin": self.manifest.offsets_sha256} | {
            _file_name(name, number): digest
            for number, shard in enumerate(self.manifest.shards) for name, digest in shard.sha256.items()
        }
        for name, digest in expected.items():
            if files.sha256_file(self.folder / name) != digest:
                raise _damaged(self.folder / name, say("its sha256 is not the one written", "其 sha256 与写入时不符"))


def id_dtype(vocab_size: int) -> Column:
    """The smaller of uint16 and uint32 that holds every id."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def write(
    folder: Path,
    documents: Iterable[Mapping[str, np.ndarray]],
    *,
    columns: Mapping[str, Column],
    meta: Mapping[str, Any],
    shard_tokens: int = 1 << 26,
) -> Shards:
    """Writes `documents` as they come, in constant memory, and opens the result.

    A shard closes once it holds `shard_tokens`. A document without tokens keeps its number. Raises DataError for a
    corpus without tokens and for a number that its column cannot hold, StorageError where the disk refuses.
    """
    assert "ids" in columns, "a document is its ids, at least"
    incoming = iter(documents)
    shards: list[Shard] = []
    with files.atomic_folder(folder) as made:
        with _Output(made / "offsets.bin") as offsets:
            offsets.add(np.zeros(1, "<i8"))
            num_tokens = 0
            while shard := _write_shard(made, len(shards), incoming, columns, shard_tokens, num_tokens, offsets):
                shards.append(shard)
                num_tokens += shard.num_tokens
        manifest = Manifest(
            columns=dict(columns),
            num_documents=sum(shard.num_documents for shard in shards),
            num_tokens=num_tokens,
            offsets_sha256=offsets.sha256,
            shards=tuple(shards),
            meta=dict(meta),
        )
        if not num_tokens:
            raise DataError(
                say("the corpus holds no text", "语料中没有文本"), where=str(folder),
                mend=say("check the paths and columns of the recipe's data", "请检查配方中数据的路径与列名"),
            )
        files.write_atomic(made / "manifest.json", manifest.model_dump_json(indent=2) + "\n")
    return Shards.open(folder)


class _Output:
    """A file that is hashed while it is written."""

    def __init__(self, path: Path) -> None:
        self._file: IO[bytes] = open(path, "wb", buffering=1 << 20)  # noqa: SIM115 (closed by __exit__)
        self._digest = hashlib.sha256()

    def __enter__(self) -> _Output:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, array: np.ndarray) -> None:
        data = array.tobytes()
        self._file.write(data)
        self._digest.update(data)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


def _write_shard(
    folder: Path,
    number: int,
    documents: Iterator[Mapping[str, np.ndarray]],
    columns: Mapping[str, Column],
    shard_tokens: int,
    first_token: int,
    offsets: _Output,
) -> Shard | None:
    """Takes documents until the shard is full; None when there is none left. `first_token` counts in the corpus."""
    first = next(documents, None)
    if first is None:
        return None
    num_documents = num_tokens = 0
    with contextlib.ExitStack() as stack:
        outputs = {name: stack.enter_context(_Output(folder / _file_name(name, number))) for name in columns}
        for part in _parts(itertools.chain([first], documents), shard_tokens):
            lengths = np.array([len(document["ids"]) for document in part], "<i8")
            for name, dtype in columns.items():
                assert all(len(document[name]) == length for document, length in zip(part, lengths, strict=True)), (
                    f"column {name} is not as long as ids")
                outputs[name].add(_fitted(np.concatenate([document[name] for document in part]), name, dtype))
            offsets.add(first_token + num_tokens + lengths.cumsum())
            num_documents += len(part)
            num_tokens += int(lengths.sum())
    return Shard(num_documents=num_documents, num_tokens=num_tokens,
                 sha256={name: output.sha256 for name, output in outputs.items()})


def _parts(documents: Iterator[Mapping[str, np.ndarray]], most_tokens: int) -> Iterator[list[Mapping[str, np.ndarray]]]:
    """The documents up to the one that fills the shard, some at a time; none beyond it is taken."""
    part: list[Mapping[str, np.ndarray]] = []
    waiting = num_tokens = 0
    for document in documents:
        part.append(document)
        waiting += len(document["ids"])
        num_tokens += len(document["ids"])
        if waiting >= WRITTEN_TOKENS or num_tokens >= most_tokens:
            yield part
            part, waiting = [], 0
            if num_tokens >= most_tokens:
                return
    if part:
        yield part


def _fitted(array: np.ndarray, name: str, dtype: Column) -> np.ndarray:
    """`array` in the column's little-endian dtype; a number that would change is a DataError."""
    given = np.asarray(array)
    fitted = given.astype(np.dtype(dtype).newbyteorder("<"))
    if given.dtype != fitted.dtype and not np.array_equal(given, fitted):
        raise DataError(
            say(f"the column `{name}` holds numbers that do not fit {dtype}: {given.min()} to {given.max()}",
                f"列 `{name}` 中有 {dtype} 容不下的数：{given.min()} 到 {given.max()}"),
            mend=say("the tokenizer gave ids beyond its vocabulary size; train or load it anew",
                     "分词器给出了超出词表大小的编号；请重新训练或加载分词器"),
        )
    return fitted


def _file_name(column: str, number: int) -> str:
    return f"{column}-{number:05d}.bin"


def _mapped(path: Path, dtype: str, count: int) -> np.ndarray:
    """A read-only view of exactly `count` numbers; a plain ndarray, as slices of np.memmap are ten times slower."""
    kind = np.dtype(dtype).newbyteorder("<")
    try:
        size = path.stat().st_size
        if size != count * kind.itemsize:
            raise _damaged(path, say(f"it has {size} bytes, not {count * kind.itemsize}",
                                     f"文件有 {size} 字节，应为 {count * kind.itemsize} 字节"))
        return np.asarray(np.memmap(path, kind, "r")) if count else np.empty(0, kind)
    except OSError as error:
        raise _damaged(path, say(f"it cannot be read: {error.strerror}", f"无法读取：{error.strerror}")) from error


def _damaged(path: Path, what: str) -> DataError:
    return DataError(
        say(f"damaged token shards: {what}", f"词元分片已损坏：{what}"), where=str(path),
        mend=say(f"delete the folder {path.parent}; the same command builds it again",
                 f"删除文件夹 {path.parent} 后重新运行同一命令，即会重建"),
    )
