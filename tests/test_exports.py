"""The public surface: small, stable, and quick to reach."""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
from pathlib import Path

import wenmo


def test_exported_members() -> None:
    assert sorted(wenmo.__all__) == ["__version__", "evaluate", "load", "train"]
    for name in wenmo.__all__:
        assert getattr(wenmo, name) is not None
    importlib.import_module("wenmo.evaluation")  # no room has the name of a function: it would take its place
    assert all(callable(getattr(wenmo, name)) for name in ("evaluate", "load", "train"))


def test_import_wenmo_loads_nothing_heavy() -> None:
    code = "import sys, wenmo; print([m for m in ('torch', 'numpy', 'pydantic', 'tokenizers') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_help_loads_no_torch() -> None:
    code = ("import sys; sys.argv = ['wenmo', '--help']\nimport wenmo.cli\n"
            "try: wenmo.cli.main()\nexcept SystemExit: pass\n"
            "print([m for m in ('torch', 'numpy', 'pydantic') if m in sys.modules], file=sys.stderr)")
    result = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    assert result.stderr.strip() == "[]"


def test_verbs_about_text_load_no_torch(tmp_path: Path) -> None:
    """A tokenizer, and a file divided in parts, are there before torch would be."""
    text, tokenizer = tmp_path / "a.txt", tmp_path / "tok"
    text.write_text("".join(f"春天来了，第{i}天。\n" for i in range(60)), encoding="utf-8")
    commands = [["tokenizer", "train", str(text), "--vocab-size", "300", "--out", str(tokenizer)],
                ["tokenizer", "show", str(tokenizer), "-t", "春天"],
                ["tokenizer", "compare", str(text), "--vocab-size", "300"],
                ["split", str(text), "a=5", "b", "--columns", "text=text", "--out", str(tmp_path / "parts")]]
    code = (f"import sys, wenmo.cli\nfor command in {commands!r}:\n    sys.argv = ['wenmo', *command]\n"
            "    try: wenmo.cli.main()\n    except SystemExit as ended: assert not ended.code, command\n"
            "print('torch' in sys.modules)")
    printed = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert printed.splitlines()[-1] == "False"


def test_the_verbs() -> None:
    began = time.perf_counter()
    out = subprocess.check_output([sys.executable, "-m", "wenmo", "--help"], text=True)
    assert time.perf_counter() - began < 30  # the figure (0.3 s) is measured in bench/, not here
    for verb in ("demo", "train", "evaluate", "predict", "generate", "chat", "show", "tokenizer"):
        assert verb in out
