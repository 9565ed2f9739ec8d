"""From a reference to files on this disk: a model's folder, or the files of a data set.

In: `hf:org/name`, `ms://datasets/org/name/*.csv`. Out: paths. Only files that are ever read are fetched: weights are
safetensors or the one .gguf that is named, never a pickle, never code. Every listing is kept: without a network, or
for a commit that is named, what was fetched before is found by it.
"""

from __future__ import annotations

import fnmatch
import json
import logging
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Protocol

from wenmo.errors import DataError, ModelError, StorageError, say
from wenmo.files import write_json
from wenmo.hub import huggingface, modelscope
from wenmo.hub.errors import not_found, unreachable
from wenmo.hub.repository import Listing, RemoteFile, Repository, Unreachable, parse_reference
from wenmo.hub.repository import is_reference as is_reference

_log = logging.getLogger(__name__)


class _Hub(Protocol):
    """What both hubs are to this room."""

    def listing(self, repository: Repository) -> Listing: ...
    def fetch(self, repository: Repository, listed: Listing, files: Sequence[RemoteFile]) -> Path: ...
    def cached(self, repository: Repository, listed: Listing, file: RemoteFile) -> bool: ...
    def cache_folder(self) -> Path: ...


_HUBS: dict[str, _Hub] = {"hf": huggingface, "ms": modelscope}
_COMMIT = re.compile(r"[0-9a-f]{40}")
_OF_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
                  "additional_chat_templates/*.jinja")
_WITHOUT_JSON = ("source.spm", "vocab.json", "spiece.model")  # tokenizers of older translation models and T5s
_OF_MODELS = (*_OF_TOKENIZERS, "config.json", "generation_config.json", "wenmo.json", "sentence_bert_config.json",
              "1_Pooling/config.json", "adapter_config.json", "adapter_model.safetensors")
_WHOLE = ("model.safetensors", "quantized.safetensors")
_SHARDS = ("model.safetensors.index.json", "model-*-of-*.safetensors")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def model(reference: str, weights: bool = True) -> Path:
    """The folder of a model, or the .gguf file that `hf:org/name/file.gguf` names. Without `weights`, its tokenizer
    and configuration alone. Raises ModelError, StorageError."""
    repository, path = parse_reference(reference)
    if repository.kind != "model":
        raise ModelError(say("this is a data set, not a model", "这是数据集，不是模型"), where=reference,
                         mend=say("a model is hf:org/name", "模型写成 hf:组织/名称"))
    listed = _listing(repository)
    if path:
        if not path.endswith(".gguf"):
            raise ModelError(
                say("of a repository, only a .gguf file is read by itself", "仓库中只能单独读取 .gguf 文件"),
                where=reference, mend=str(repository))
        chosen = [file for file in listed.files if file.path == path]
        if not chosen:
            raise not_found(repository, path)
        return _fetch(repository, listed, chosen) / path
    files = _matching(listed, _OF_MODELS if weights else (*_OF_TOKENIZERS, "config.json"))
    if not any(file.path == "tokenizer.json" for file in files):
        files = [*files, *_matching(listed, _WITHOUT_JSON)]
    found = (_matching(listed, _WHOLE) or _matching(listed, _SHARDS)) if weights else []
    if weights and not found and not any(file.path == "adapter_model.safetensors" for file in files):
        raise _no_weights(repository, listed)
    return _fetch(repository, listed, [*files, *found])


def data_files(pattern: str) -> list[Path]:
    """The file of a data set, or all that match a glob (`**` for folders within folders), in the order of their
    names. Raises DataError, StorageError."""
    repository, path = parse_reference(pattern)
    if repository.kind != "dataset" or not path:
        raise DataError(say("this names no file of a data set", "这没有指明数据集中的文件"), where=pattern,
                        mend=f"{repository.hub}://datasets/org/name/path/*.csv")
    listed = _listing(repository)
    files = [file for file in listed.files if file.path == path] or _matching(listed, [path])
    if not files:
        raise not_found(repository, path)
    folder = _fetch(repository, listed, files)
    return [folder / file.path for file in files]


def _matching(listed: Listing, patterns: Sequence[str]) -> list[RemoteFile]:
    return [file for file in listed.files if any(_fits(PurePosixPath(file.path).parts, tuple(pattern.split("/")))
                                                 for pattern in patterns)]


def _fits(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """As in a shell: `*` stays within a folder, `**` goes through any number of them."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_fits(parts[skipped:], pattern[1:]) for skipped in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


def _no_weights(repository: Repository, listed: Listing) -> ModelError:
    ggufs = [file.path for file in listed.files if file.path.endswith(".gguf")]
    if ggufs:
        return ModelError(say(f"it holds .gguf files, {len(ggufs)} of them", f"其中是 .gguf 文件，共 {len(ggufs)} 个"),
                          where=str(repository),
                          mend=say("name one: ", "请指明一个：")
                          + ", ".join(f"{repository}/{path}" for path in ggufs[:4]))
    pickled = any(fnmatch.fnmatchcase(file.path, pattern) for file in listed.files for pattern in _PICKLES)
    return ModelError(
        say("no model.safetensors there" + (", only pickles, which can run code" if pickled else ""),
            "其中没有 model.safetensors" + ("，只有可能执行代码的 pickle 文件" if pickled else "")),
        where=str(repository),
        mend=say("look for a revision with safetensors (hf:org/name@refs/pr/1 often is one), or save it once with "
                 "transformers where you trust it", "查找带 safetensors 的版本（常为 hf:组织/名称@refs/pr/1），"
                 "或在信任它的环境中用 transformers 另存一次"))


# Listings and downloads -------------------------------------------------------------------------------


def _listing(repository: Repository) -> Listing:
    """As the hub gives it, or as it gave it last; a commit never changes, so it is asked for once."""
    kept = _base() / repository.hub / repository.kind / repository.name.replace("/", "--")
    kept /= f"{(repository.revision or 'default').replace('/', '--')}.json"
    if repository.revision and _COMMIT.fullmatch(repository.revision) and kept.exists():
        return _read(kept)
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    try:
        if offline:
            raise Unreachable("HF_HUB_OFFLINE")
        listed = _HUBS[repository.hub].listing(repository)
    except Unreachable as error:
        if not kept.exists():
            raise unreachable(repository, str(error), offline) from error
        listed = _read(kept)
        _log.info(say(f"{repository}: the hub was not asked ({error}); what was fetched before is used",
                      f"{repository}：未询问模型库（{error}），使用此前下载的内容"))
        return listed
    write_json(kept, asdict(listed))
    return listed


def _read(path: Path) -> Listing:
    value = json.loads(path.read_text(encoding="utf-8"))
    return Listing(value["commit"], tuple(RemoteFile(**file) for file in value["files"]))


def _base() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "wenmo" / "hub"


def _fetch(repository: Repository, listed: Listing, files: Sequence[RemoteFile]) -> Path:
    hub = _HUBS[repository.hub]
    missing = [file for file in files if not hub.cached(repository, listed, file)]
    size = sum(file.size_bytes for file in missing)
    if missing:
        folder = hub.cache_folder()
        there = next(each for each in (folder, *folder.parents) if each.exists())
        free = shutil.disk_usage(there).free
        if size > free:
            raise StorageError(
                say(f"{size / 1e9:.1f} GB are to be fetched, {free / 1e9:.1f} GB are free",
                    f"需下载 {size / 1e9:.1f} GB，只剩 {free / 1e9:.1f} GB"), where=str(folder),
                mend=say("free some space, or let HF_HOME (ms: MODELSCOPE_CACHE) lie on another disk",
                         "腾出空间，或把 HF_HOME（ms：MODELSCOPE_CACHE）放到别的磁盘"))
        _log.info(say(f"{repository}: fetching {len(missing)} files, {size / 1e6:.1f} MB",
                      f"{repository}：下载 {len(missing)} 个文件，{size / 1e6:.1f} MB"))
    try:
        return hub.fetch(repository, listed, files)
    except Unreachable as error:
        raise unreachable(repository, str(error), offline=False) from error
