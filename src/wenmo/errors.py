"""Errors a user can meet. Each says three things: what happened, where, and how to mend it.

    WenmoError (ValueError)          exit code 1
    ├── UsageError                   exit code 2: the command line or the recipe is at fault
    │   ├── RecipeError
    │   └── MissingExtra             an optional library is not installed
    ├── DataError                    a file of rows or text
    ├── TokenizerError
    ├── ModelError                   a model directory, a GGUF file, a configuration
    ├── CheckpointError              damaged, or refused on resume
    ├── RunLocked                    another process writes to this run
    ├── ProcessFailed                another of the processes that train one model has ended
    ├── NumericsError                NaN or infinity
    └── StorageError                 disk full, read-only folder

Messages are English or Chinese: `WENMO_LANG` (en, zh) wins over the locale. A message is written with both
languages side by side, `say("…", "…")`, so that neither can lag behind the other.
"""

from __future__ import annotations

import os


def language() -> str:
    """`zh` or `en`: WENMO_LANG first, then the locale variables in their POSIX order."""
    for name in ("WENMO_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        value = os.environ.get(name, "")
        if value:
            return "zh" if value.lower().startswith("zh") else "en"
    return "en"


def say(en: str, zh: str) -> str:
    """The user's language of a message."""
    return zh if language() == "zh" else en


class WenmoError(ValueError):
    """What happened, where, and the mend; `str()` gives the three lines."""

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", mend: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.mend = mend

    @property
    def in_a_line(self) -> str:
        """Without the mend, for a list of faults."""
        return f"{self.what} ({self.where})" if self.where else self.what

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(say("where: ", "位置：") + self.where)
        if self.mend:
            lines.append(say("mend:  ", "办法：") + self.mend)
        return "\n".join(lines)


class UsageError(WenmoError):
    exit_code = 2


class RecipeError(UsageError):
    pass


class MissingExtra(UsageError):
    """An optional library is needed; `extra` is the name in `pip install 'wenmo[extra]'`."""

    def __init__(self, library: str, extra: str, purpose: str) -> None:
        super().__init__(
            say(f"{purpose} needs the library {library}", f"{purpose}需要安装 {library}"),
            mend=f"pip install 'wenmo[{extra}]'",
        )


class DataError(WenmoError):
    pass


class TokenizerError(WenmoError):
    pass


class ModelError(WenmoError):
    pass


class CheckpointError(WenmoError):
    pass


class RunLocked(WenmoError):
    pass


class ProcessFailed(WenmoError):
    pass


class NumericsError(WenmoError):
    pass


class StorageError(WenmoError):
    pass
