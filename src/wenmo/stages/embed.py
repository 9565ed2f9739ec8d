"""`wenmo embed`: texts in, vectors out; or the texts of a file that are nearest to a query.

In: a file of rows with `text`, stdin, or an index that `--out` has made. Out: JSON lines, a .npy file, or an index (a
folder with vectors and rows); with queries, the nearest rows to each. A few hundred rows are in memory at a time.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from wenmo.device import DType
from wenmo.embedding_files import of_card
from wenmo.errors import DataError, ModelError, UsageError, say
from wenmo.files import storage_errors
from wenmo.loaded import Loaded, load
from wenmo.loaded.vectors import say_cut
from wenmo.modeldir import weights_sha256
from wenmo.retrieve.index import ABOUT, Floats, Index, build, nearest, vectors_file
from wenmo.stages.out_folder import refuse_inputs, refuse_other_things
from wenmo.stages.predict import rows_to_answer

_log = logging.getLogger(__name__)
Row = Mapping[str, Any]
QUERY, DOCUMENT = "query", "document"


def embed(model: str, file: str, *, out: Path | None = None, queries: Sequence[str] = (),
          query_file: str | None = None, top: int = 5, prompt: str | None = None,
          source: Mapping[str, Any] | None = None, threads: int | None = None,
          dtype: DType = "fp32") -> Iterator[dict[str, Any]]:
    """Lines to print: {"embedding"} a row, or {"query", "nearest": [{"row", "score", "text"}]} a query.

    `out`: NAME.npy or NAME.jsonl, or a folder for an index; then only queries are answered. Texts of a search get the
    model's prompts `document` and `query`, if it has them. Raises UsageError, DataError, ModelError.
    """
    _check(file, out, queries, query_file, prompt, source or {})
    loaded = load(model, threads=threads, dtype=dtype)
    searches = bool(queries) or query_file is not None
    if _is_index(file):
        index = Index(Path(file))
        _refuse_other_model(loaded, index)
        yield from _answers(loaded, index.vectors, index.row, queries, query_file, top)
        return
    document = prompt if prompt is not None or not (searches or _is_folder(out)) else _known(loaded, DOCUMENT)
    pieces = _pieces(loaded, file, source or {}, document, normalise=searches or _is_folder(out) or None)
    if out is not None and _is_folder(out):
        about = {"model": model, "weights_sha256": weights_sha256(loaded.model)}
        number = build(out, _without_faults(pieces, skip=True), loaded.model.config.width, about)
        _log.info(say(f"{out}: an index of {number:,} texts", f"{out}：{number:,} 条文本的索引"))
        if searches:
            index = Index(out)
            yield from _answers(loaded, index.vectors, index.row, queries, query_file, top)
    elif out is not None:
        _write(out, pieces, loaded.model.config.width)
    elif searches:
        found = list(_without_faults(pieces, skip=True))
        if not found:
            raise DataError(say("there are no texts to search", "没有可检索的文本"), where=file,
                            mend=say("check the file and its columns", "请检查文件及其列"))
        rows = [row for _, some in found for row in some]
        vectors = np.concatenate([vectors_BD for vectors_BD, _ in found])
        yield from _answers(loaded, vectors, rows.__getitem__, queries, query_file, top)
    else:
        yield from _lines(pieces)


def _check(file: str, out: Path | None, queries: Sequence[str], query_file: str | None, prompt: str | None,
           source: Mapping[str, Any]) -> None:
    """UsageError for what makes no sense together, before the model is opened."""
    searches = bool(queries) or query_file is not None
    if not all(query.strip() for query in queries):
        raise UsageError(say("an empty query is near to nothing", "空查询无从检索"), where='--nearest ""',
                         mend="--nearest TEXT")
    if _is_index(file) and (out is not None or prompt is not None or not searches):
        raise UsageError(say("an index is there to be searched", "索引是用来检索的"), where=file,
                         mend="--nearest TEXT")
    if _is_index(file) and source:
        raise UsageError(say("an index has its texts: neither columns nor an encoding is asked for",
                             "索引已含文本，无需指定列或编码"), where=file,
                         mend=say("take out --columns and --encoding", "请去掉 --columns 与 --encoding"))
    if searches and out is not None and not _is_folder(out):
        raise UsageError(say("a search can keep an index, a folder, and no single file",
                             "检索时 --out 应为保存索引的文件夹，不能是单个文件"), where=f"--out {out}",
                         mend=f"--out {out.with_suffix('.index')}")
    if out is not None:
        refuse_inputs(out, file, *([] if query_file is None else [query_file]))
        if _is_folder(out):
            refuse_other_things(out, ABOUT)
    if file == query_file == "-":
        raise UsageError(say("texts and queries cannot both come from stdin", "文本与查询不能都来自标准输入"),
                         where="--query-file -", mend=say("put one of them into a file", "请把其中之一存成文件"))


def _is_index(file: str) -> bool:
    return (Path(file) / ABOUT).is_file()


def _is_folder(out: Path | None) -> bool:
    return out is not None and out.suffix not in (".npy", ".jsonl")


def _known(loaded: Loaded, prompt: str) -> str | None:
    """The prompt's name, if the model has it."""
    return prompt if prompt in of_card(loaded.opened.card).get("prompts", {}) else None


def _refuse_other_model(loaded: Loaded, index: Index) -> None:
    if weights_sha256(loaded.model) != index.about.get("weights_sha256"):
        raise ModelError(
            say("the index was made by another model", "该索引由另一个模型建立"),
            where=f"{index.folder}: {index.about.get('model')}",
            mend=say("search with that model, or make the index again", "请用那个模型检索，或重新建立索引"))


# Vectors ----------------------------------------------------------------------------------------------

Piece = list[tuple[Floats, Row] | DataError]


def _pieces(loaded: Loaded, file: str, source: Row, prompt: str | None, normalise: bool | None) -> Iterator[Piece]:
    """A few hundred rows at a time, each with its vector; errors in the places of rows that have none."""
    rows, at_once = rows_to_answer(file, ("text",), source, loaded.opened.card.get("source", {}))
    cut_tokens: list[int] = []
    while some := list(islice(rows, at_once)):
        good = [row for row in some if not isinstance(row, DataError)]
        texts = loaded.texts_to_embed([str(row["text"]) for row in good], prompt)
        cut_tokens += [int(text.values["cut_tokens"]) for text in texts]
        vectors = iter(loaded.vectors(texts, normalise))
        yield [row if isinstance(row, DataError) else (next(vectors), row) for row in some]
    say_cut(cut_tokens)


def _without_faults(pieces: Iterator[Piece], *, skip: bool) -> Iterator[tuple[Floats, list[Row]]]:
    """[B, D] and the rows, piece by piece. Bad rows are left out, and counted; or raised, unless told to skip."""
    left_out = 0
    for piece in pieces:
        good = []
        for each in piece:
            if not isinstance(each, DataError):
                good.append(each)
            elif not skip:
                raise each
            else:
                left_out += 1
        if good:
            yield np.stack([vector for vector, _ in good]), [row for _, row in good]
    if left_out:
        _log.warning(say(f"{left_out:,} rows could not be read and are left out", f"{left_out:,} 行无法读取，已略去"))


def _lines(pieces: Iterator[Piece]) -> Iterator[dict[str, Any]]:
    for piece in pieces:
        for each in piece:
            if isinstance(each, DataError):
                yield {"error": each.in_a_line}
            else:
                yield {"embedding": [round(float(number), 7) for number in each[0]]}


def _write(out: Path, pieces: Iterator[Piece], width: int) -> None:
    """Vectors alone (.npy: line by line those of the rows, so that a bad row is an error), or beside their rows."""
    unfinished, number = out.with_name(f".{out.name}.unfinished"), 0
    with storage_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        unfinished.unlink(missing_ok=True)
        try:
            if out.suffix == ".npy":
                with vectors_file(unfinished, width) as write:
                    for vectors_BD, rows in _without_faults(pieces, skip=False):
                        write(vectors_BD)
                        number += len(rows)
            else:
                with open(unfinished, "w", encoding="utf-8") as file:
                    for piece in pieces:
                        for each, line in zip(piece, _lines(iter([piece])), strict=True):
                            whole = line if isinstance(each, DataError) else {**each[1], **line}
                            file.write(json.dumps(whole, ensure_ascii=False) + "\n")
                            number += 1
            unfinished.replace(out)
        finally:
            unfinished.unlink(missing_ok=True)
    _log.info(say(f"{out}: {number:,} rows", f"{out}：{number:,} 行"))


# Searching --------------------------------------------------------------------------------------------


def _answers(loaded: Loaded, vectors_ND: Floats, row_of: Any, queries: Sequence[str], query_file: str | None,
             top: int) -> Iterator[dict[str, Any]]:
    prompt = _known(loaded, QUERY)
    if queries:
        vectors_QD = loaded.embed(list(queries), prompt=prompt, normalise=True)
        yield from _nearest(list(queries), vectors_QD, vectors_ND, row_of, top)
    if query_file is not None:
        for piece in _pieces(loaded, query_file, {}, prompt, normalise=True):
            for each in piece:
                if isinstance(each, DataError):
                    yield {"error": each.in_a_line}
                else:
                    yield from _nearest([str(each[1]["text"])], each[0][None], vectors_ND, row_of, top)


def _nearest(texts: list[str], queries_QD: Floats, vectors_ND: Floats, row_of: Any,
             top: int) -> Iterator[dict[str, Any]]:
    for text, hits in zip(texts, nearest(queries_QD, vectors_ND, top), strict=True):
        yield {"query": text, "nearest": [{"row": hit.number, "score": round(hit.score, 6), **row_of(hit.number)}
                                          for hit in hits]}
