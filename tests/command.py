"""`wenmo …` inside the test's own process: the same main, the same exit codes, no second torch to load."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from wenmo.cli import main


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def message(self) -> list[str]:
        """What happened, where, and the mend: all that stands on stderr."""
        lines = self.err.splitlines()
        assert self.out == ""
        assert len(lines) == 3, self.err
        assert lines[1].startswith(("where: ", "位置：")), self.err
        assert lines[2].startswith(("mend:  ", "办法：")), self.err
        return lines


Command = Callable[..., Result]


@pytest.fixture
def wenmo(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """wenmo("predict", "runs/a", stdin=b"…") → what it printed and its exit code, in English unless told otherwise."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv("WENMO_LANG", "en")

    def run(*arguments: object, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "argv", ["wenmo", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return Result(int(ended.value.code or 0), printed.out, printed.err)

    yield run
    signal.signal(signal.SIGTERM, before)
