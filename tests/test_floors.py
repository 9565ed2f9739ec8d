"""The house stands: a room imports only rooms below it, folders on a floor are strangers, nothing forbidden is used."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "wenmo"

# From the ground up. Rooms on one line may not import each other; a line may import all lines above it.
FLOORS = [
    ["errors"], ["faults"], ["config", "files", "metrics", "seeds"], ["device", "tensors", "hub"],
    ["levels"], ["native"], ["text", "nn"],
    ["data", "models"],
    ["locate", "embedding_files"], ["adapter"], ["modeldir"], ["generate"], ["golden", "objectives"],
    ["tasks"],
    ["training", "chart", "retrieve", "engine", "compress"], ["notebook"], ["report"], ["page"],
    ["loaded"], ["ensemble"],
    ["evaluation", "serve"],
    ["plan"],
    ["recipe"],
    ["stages"],
    ["cli"], ["__main__"],
]
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
MAY_IMPORT_LATE = {"cli", "__init__"}
EXTRAS = {"pyarrow", "huggingface_hub", "rjieba", "opencc", "pypinyin", "gguf", "sklearn", "pycrfsuite", "sacrebleu",
          "torch.utils.tensorboard"}
# The room in which each optional library is imported, and no other.
ROOM_OF_EXTRA = {"pyarrow": "text/formats.py", "huggingface_hub": "hub/huggingface.py", "rjieba": "text/words.py",
                 "backports": "text/archive.py", "compression": "text/archive.py", "opencc": "text/normalize.py",
                 "pypinyin": "text/pinyin.py",
                 "gguf": "models/gguf.py", "sklearn": "evaluation/baseline.py",
                 "pycrfsuite": "evaluation/crf_baseline.py",
                 "sacrebleu": "metrics/translation.py", "openai": "stages/demo_serve.py",
                 "scipy": "evaluation/pair_baselines.py", "llguidance": "engine/grammar.py"}

# Folders that are of no use without an extra: they say so themselves, and import it at their files' tops.
FOLDER_OF_EXTRA = {"fastapi": "serve", "starlette": "serve", "uvicorn": "serve", "anyio": "serve",
                   "prometheus_client": "serve"}

FILES = sorted(SOURCE.rglob("*.py"))


def room_of(path: Path) -> str:
    first = path.relative_to(SOURCE).parts[0]
    return first.removesuffix(".py")


def imports(path: Path) -> list[tuple[str, bool]]:
    """(module, whether it is imported inside a function), `if TYPE_CHECKING` included."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    late = {id(inner) for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            for inner in ast.walk(node)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in late) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            if module == "wenmo":
                found += [(f"wenmo.{alias.name}", id(node) in late) for alias in node.names]
            else:
                found.append((module, id(node) in late))
    return found


def test_every_room_has_a_floor() -> None:
    rooms = {room_of(path) for path in FILES} - {"__init__"}
    assert rooms == set(LEVEL)


def test_training_and_data_know_no_task_and_no_model() -> None:
    """What is trained on and how is handed to them: a new task or model changes nothing there."""
    for path in FILES:
        if room_of(path) in ("training", "data"):
            named = {module.split(".")[1] for module, _ in imports(path) if module.startswith("wenmo.")}
            assert not named & {"tasks", "models"}, path


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_room_imports_only_rooms_below(path: Path) -> None:
    room = room_of(path)
    for module, late in imports(path):
        if not module.startswith("wenmo."):
            continue
        other = module.split(".")[1]
        if other == "__version__":
            continue
        if late:
            assert room in MAY_IMPORT_LATE, f"{path.name} imports {module} late"
            assert other == "stages" or room == "cli", f"{path.name} imports {module} late"
        if room != "__init__" and other != room:
            assert LEVEL[other] < LEVEL[room], f"{path.name} ({room}) imports {module}"


def test_no_circles_inside_a_room() -> None:
    graph = {}
    names = {".".join(("wenmo", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__"): path
             for path in FILES}
    for name, path in names.items():
        # `wenmo` itself only names its two functions for type checkers; at run time it imports them late.
        graph[name] = {module for module, late in imports(path)
                       if module in names and not late and module not in (name, "wenmo")}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " → ".join((*way[way.index(name):], name))
        if name not in done:
            for other in graph[name]:
                visit(other, (*way, name))
            done.add(name)

    for name in graph:
        if name != "wenmo":
            visit(name, ())


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_optional_libraries_stay_in_their_room(path: Path) -> None:
    here = path.relative_to(SOURCE).as_posix()
    for module, late in imports(path):
        extra = module.split(".")[0]
        if extra in ROOM_OF_EXTRA:
            assert here == ROOM_OF_EXTRA[extra], f"{here} imports {module}"
            assert late, f"{here} imports {module} at its top"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_optional_libraries_stay_in_their_folder(path: Path) -> None:
    for module, _ in imports(path):
        assert FOLDER_OF_EXTRA.get(module.split(".")[0]) in (None, room_of(path)), f"{path} imports {module}"


def test_nothing_that_can_run_code_from_a_file() -> None:
    forbidden = re.compile(r"\bimport pickle|from pickle|torch\.load\(|trust_remote_code|(?<!\.)\beval\(|\bexec\(|"
                           r"shell=True|os\.system")
    for path in FILES:
        code = "\n".join(line.split("#")[0] for line in path.read_text(encoding="utf-8").splitlines())
        assert not forbidden.findall(code), path


def test_text_needs_no_torch() -> None:
    for path in (SOURCE / "text").rglob("*.py"):
        assert not [module for module, _ in imports(path) if module.split(".")[0] == "torch"], path
