"""The documents say what is so: links lead somewhere, named symbols exist, commands and recipes are accepted."""

from __future__ import annotations

import ast
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

import wenmo
from wenmo.cli import app

ROOT = Path(__file__).parent.parent
READMES = [ROOT / "README.md", ROOT / "README.zh.md"]
DOCS = [*READMES, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
ATLAS = ROOT / "docs" / "atlas.md"

_LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
_INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path) -> list[tuple[str, str, str]]:
    """(the line before it, language, body) of each fenced block."""
    found = []
    lines = path.read_text(encoding="utf-8").splitlines()
    start = None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start is None:
            start = number
        else:
            found.append((lines[start - 1], lines[start][3:], "\n".join(lines[start + 1 : number])))
            start = None
    assert start is None, f"{path}: a block does not end"
    return found


def prose(path: Path) -> str:
    """The text without its fenced blocks."""
    kept, inside = [], False
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            inside = not inside
        elif not inside:
            kept.append(line)
    return "\n".join(kept)


# Links and symbols ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", DOCS, ids=name_of)
def test_relative_links_lead_to_a_file(path: Path) -> None:
    for link in _LINK.finditer(prose(path)):
        target = link["target"].split("#")[0]
        if target and not re.match(r"[a-z]+:", target):
            assert (path.parent / target).exists(), link[0]


@cache
def symbols(path: Path) -> frozenset[str]:
    """Functions, classes, methods (`Class.method`) and constants of a module."""
    found: set[str] = set()

    def collect(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                found.add(prefix + node.name)
                if isinstance(node, ast.ClassDef):
                    collect(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found.update(prefix + target.id for target in targets if isinstance(target, ast.Name))

    collect(ast.parse(path.read_text(encoding="utf-8")).body, "")
    return frozenset(found)


def code_links(path: Path) -> Iterator[tuple[str, str, str]]:
    """(text outside the backticks, symbol, target) of links to Python files."""
    for link in _LINK.finditer(prose(path)):
        if link["target"].endswith(".py"):
            symbol = _INLINE.search(link["text"])
            text = _INLINE.sub("", link["text"]).replace("\\_", "_").strip()
            yield text, symbol[1] if symbol else "", link["target"]


@pytest.mark.parametrize("path", DOCS, ids=name_of)
def test_symbols_beside_code_links_exist(path: Path) -> None:
    for text, symbol, target in code_links(path):
        assert target.endswith(text), f"{text} leads to {target}"
        if symbol:
            assert symbol in symbols((path.parent / target).resolve()), f"{target} has no {symbol}"


def test_the_atlas_names_a_symbol_for_every_concept() -> None:
    links = list(code_links(ATLAS))
    assert len(links) > 80
    assert all(symbol for _, symbol, _ in links)


@pytest.mark.parametrize("path", DOCS, ids=name_of)
def test_tables_have_as_many_cells_as_their_heading(path: Path) -> None:
    """A | inside a formula or a command would cut a cell in two."""
    cells = 0
    for line in prose(path).splitlines():
        if not line.startswith("|"):
            cells = 0
            continue
        cells = cells or line.count("|")
        assert line.count("|") == cells, line


# The two READMEs --------------------------------------------------------------------------------------


def headings(path: Path) -> list[int]:
    return [len(found[1]) for line in prose(path).splitlines() if (found := re.match(r"(#+) ", line))]


def test_both_readmes_have_the_same_headings() -> None:
    english, chinese = (headings(path) for path in READMES)
    assert Counter(english) == Counter(chinese)
    assert english == chinese


def without_comments(body: str) -> list[str]:
    lines = (re.sub(r"(^|\s+)#.*$", "", line) for line in body.splitlines())
    return [re.sub(r"\s+", " ", line) for line in lines if line.strip()]


def test_both_readmes_have_the_same_code() -> None:
    """Comments apart, and apart from what the demo prints, which speaks the reader's language."""
    english, chinese = (
        [(language, without_comments(body)) for before, language, body in blocks(path)
         if "demo-output" not in before] for path in READMES)
    assert english == chinese


@pytest.mark.parametrize("path", READMES, ids=name_of)
def test_the_demo_output_has_its_place(path: Path) -> None:
    assert [before for before, _, _ in blocks(path)].count("<!-- demo-output -->") == 1


# Commands ---------------------------------------------------------------------------------------------


def commands_in(body: str) -> list[list[str]]:
    """The arguments of every `wenmo …` in a shell block, pipes and redirections taken apart."""
    found = []
    for line in body.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars="|<>;&")
        lexer.whitespace_split = True
        part: list[str] = []
        for token in [*lexer, ";"]:
            if set(token) <= set("|<>;&"):
                if part and part[0] == "wenmo":
                    found.append(part[1:])
                part = ["redirected"] if set(token) <= set("<>") else []
            else:
                part.append(token)
    return found


def fenced_commands(path: Path) -> list[list[str]]:
    return [command for _, language, body in blocks(path) if language == "bash" for command in commands_in(body)]


def inline_commands(path: Path) -> list[list[str]]:
    """`wenmo verb …` within the text: usually shortened, so that only verb and options can be checked."""
    spans = (found[1] for found in _INLINE.finditer(prose(path)))
    return [shlex.split(span)[1:] for span in spans if span.startswith("wenmo ")]


def command_of(arguments: list[str]) -> tuple[Any, str, list[str]]:
    """(the command, its name, what is left of the arguments); AssertionError for one that does not exist."""
    command: Any = typer.main.get_command(app)
    rest = list(arguments)
    while rest and hasattr(command, "commands"):
        word = rest.pop(0)
        if word.startswith("-"):
            assert word in options_of(command), f"wenmo has no option {word}"
        else:
            assert word in command.commands, f"no such command: wenmo {' '.join(arguments)}"
            command = command.commands[word]
    return command, command.name or "wenmo", rest


def options_of(command: Any) -> set[str]:
    return {"--help", "-h"} | {name for parameter in command.params for name in (*parameter.opts,
                                                                                 *parameter.secondary_opts)}


@pytest.mark.parametrize("path", DOCS, ids=name_of)
def test_commands_parse(path: Path) -> None:
    for arguments in fenced_commands(path):
        command, name, rest = command_of(arguments)
        if not hasattr(command, "commands"):
            try:
                command.make_context(name, rest)  # reads the arguments, and runs nothing
            except Exception as error:
                pytest.fail(f"wenmo {shlex.join(arguments)}: {type(error).__name__}: {error}")


def test_the_atlas_says_the_whole_command() -> None:
    for arguments in inline_commands(ATLAS):
        command, name, rest = command_of(arguments)
        command.make_context(name, rest)


@pytest.mark.parametrize("path", DOCS, ids=name_of)
def test_commands_within_the_text_have_their_verb_and_options(path: Path) -> None:
    for arguments in inline_commands(path):
        command, _, rest = command_of(arguments)
        for word in rest:
            if re.match(r"--?[a-z]", word):
                assert word.split("=")[0] in options_of(command), f"wenmo {shlex.join(arguments)}"


@pytest.mark.parametrize("path", DOCS, ids=name_of)
def test_recipes_named_in_commands_are_there(path: Path) -> None:
    for arguments in (*fenced_commands(path), *inline_commands(path)):
        for word in arguments:
            if word.endswith(".yaml") and "/" in word:
                assert (ROOT / word).exists(), word


@pytest.mark.parametrize("path", DOCS, ids=name_of)
def test_tests_named_in_the_text_are_there(path: Path) -> None:
    for name in re.findall(r"tests/\w+\.py", prose(path)):
        assert (ROOT / name).exists(), name


def test_the_readme_shows_every_verb() -> None:
    verbs = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    shown = {arguments[0] for arguments in (*fenced_commands(READMES[0]), *inline_commands(READMES[0]))}
    assert verbs <= shown


def test_make_targets_in_the_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for path in DOCS:
        named = re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert {one or other for one, other in named} <= targets, path


# Recipes and Python -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", DOCS, ids=name_of)
def test_recipes_in_the_documents_are_accepted(path: Path) -> None:
    from wenmo.config import parse_yaml
    from wenmo.recipe import parse_recipe

    for _, language, body in blocks(path):
        if language == "yaml":
            parse_recipe(parse_yaml(body, name_of(path)), name_of(path))


@pytest.mark.parametrize("path", READMES, ids=name_of)
def test_python_uses_what_there_is(path: Path) -> None:
    methods = {name.partition(".")[2] for file in (ROOT / "src/wenmo/loaded").glob("*.py") for name in symbols(file)}
    source = "\n".join(body for _, language, body in blocks(path) if language == "python")
    loaded: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("wenmo.load("):
            loaded |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    assert loaded
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "wenmo":
                assert node.attr in wenmo.__all__
            elif node.value.id in loaded:
                assert node.attr in methods
