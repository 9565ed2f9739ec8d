"""An exact index: vectors of length one in a file, and the rows that they belong to.

In: vectors, piece by piece, with their rows. Out: a folder with vectors.npy (fp32, read as a memory map), rows.jsonl
and index.json, which says which model made the vectors; and the rows nearest to a query. Every vector is compared with
every query, so that nothing is missed: a million vectors of 384 numbers are 1.5 GB and about a second a query.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from wenmo.errors import DataError, say
from wenmo.files import atomic_folder, storage_errors, sync_folder, write_json

VECTORS, ROWS, ABOUT = "vectors.npy", "rows.jsonl", "index.json"
BLOCK = 16384  # vectors compared at once
Floats = NDArray[np.float32]
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Hit:
    """`number` is the row's place in the index, from 0; `score` the cosine."""

    number: int
    score: float


class Index:
    """An opened index."""

    def __init__(self, folder: Path) -> None:
        """Raises DataError where it is not one, or is damaged."""
        self.folder = folder
        try:
            self.about: dict[str, Any] = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
            self.vectors: Floats = np.load(folder / VECTORS, mmap_mode="r", allow_pickle=False)
            with open(folder / ROWS, encoding="utf-8") as file:
                self._rows = file.readlines()
            whole = (self.vectors.ndim == 2 and self.vectors.dtype == np.float32
                     and len(self.vectors) == len(self._rows) == self.about["rows"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(say(f"not an index of vectors: {error}", f"不是向量索引：{error}"), where=str(folder),
                            mend=_mend()) from error
        if not whole:
            raise DataError(say("the index is damaged: vectors and rows do not fit together",
                                "索引已损坏：向量与行不一致"), where=str(folder), mend=_mend())

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, number: int) -> dict[str, Any]:
        return dict(json.loads(self._rows[number]))

    def search(self, queries_QD: Floats, top: int) -> list[list[Hit]]:
        """For each query, of length one, the `top` nearest rows, the nearest first; of equal ones the earlier row."""
        return nearest(queries_QD, self.vectors, top)


def nearest(queries_QD: Floats, vectors_ND: Floats, top: int) -> list[list[Hit]]:
    """Exact, block by block: no more than BLOCK vectors and the best so far are in memory."""
    assert top > 0
    if queries_QD.shape[1:] != vectors_ND.shape[1:]:
        raise DataError(say(f"vectors of {queries_QD.shape[1]} and of {vectors_ND.shape[1]} numbers cannot be compared",
                            f"{queries_QD.shape[1]} 维与 {vectors_ND.shape[1]} 维的向量无法比较"),
                        mend=say("use the model that made the index", "请使用建立该索引的模型"))
    num_queries = len(queries_QD)
    scores_QX, numbers_QX = np.empty((num_queries, 0), np.float32), np.empty((num_queries, 0), np.int64)
    for begin in range(0, len(vectors_ND), BLOCK):
        block_BD = np.asarray(vectors_ND[begin : begin + BLOCK])
        numbers_B = np.arange(begin, begin + len(block_BD))
        scores_QX = np.concatenate([scores_QX, queries_QD @ block_BD.T], axis=1)
        numbers_QX = np.concatenate([numbers_QX, np.broadcast_to(numbers_B, (num_queries, len(block_BD)))], axis=1)
        best_QT = np.argsort(-scores_QX, axis=1, kind="stable")[:, :top]
        scores_QX = np.take_along_axis(scores_QX, best_QT, axis=1)
        numbers_QX = np.take_along_axis(numbers_QX, best_QT, axis=1)
    return [[Hit(int(number), float(score)) for number, score in zip(numbers, scores, strict=True)]
            for numbers, scores in zip(numbers_QX, scores_QX, strict=True)]


def build(folder: Path, pieces: Iterable[tuple[Floats, Sequence[Row]]], width: int, about: Row) -> int:
    """Writes an index, piece by piece and atomically; gives the number of rows. `about`: what made the vectors."""
    with atomic_folder(folder) as temporary:
        with open(temporary / ROWS, "w", encoding="utf-8") as rows, vectors_file(temporary / VECTORS, width) as write:
            number = 0
            for vectors_BD, given in pieces:
                assert len(vectors_BD) == len(given)
                write(vectors_BD)
                rows.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in given)
                number += len(given)
        write_json(temporary / ABOUT, {"version": 1, "rows": number, "width": width, **about})
    return number


@contextlib.contextmanager
def vectors_file(path: Path, width: int) -> Iterator[Any]:
    """A .npy file of fp32 rows that grows: what it gives is called with [B, width], as often as there are rows."""
    number = 0
    with storage_errors(path), open(path, "wb") as file:

        def write(vectors_BD: Floats) -> None:
            nonlocal number
            file.write(np.ascontiguousarray(vectors_BD, np.float32).tobytes())
            number += len(vectors_BD)

        _header(file, 0, width)
        begins = file.tell()
        yield write
        file.seek(0)
        _header(file, number, width)  # numpy leaves room in it for a larger number
        assert file.tell() == begins
    sync_folder(path.parent)


def _header(file: IO[bytes], number: int, width: int) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (number, width)})


def _mend() -> str:
    return say("make it again: wenmo embed MODEL FILE --out …", "请重新建立：wenmo embed MODEL FILE --out …")
