"""The public surface: small, stable, and quick to reach."""

from __future__ import annotations

import importlib
import subprocess
import sys
import time

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


def test_the_verbs() -> None:
    began = time.perf_counter()
    out = subprocess.check_output([sys.executable, "-m", "wenmo", "--help"], text=True)
    assert time.perf_counter() - began < 30  # the figure (0.3 s) is measured in bench/, not here
    for verb in ("demo", "train", "evaluate", "predict", "generate", "chat", "show", "tokenizer"):
        assert verb in out
