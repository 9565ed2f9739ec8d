"""What `--out` may be where a whole folder is written: what stands there would be gone.

In: a path, and the files by which a folder of the kind is known. Out: nothing, or a UsageError.
"""

from __future__ import annotations

from pathlib import Path

from wenmo.errors import UsageError, say


def refuse_other_things(out: Path, *marks: str) -> None:
    """UsageError unless the folder is new, empty, or one that holds `marks`, which is then replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir() or not all((out / name).exists() for name in marks):
        raise UsageError(say("something else is there", "该处已有其他内容"), where=f"--out {out}",
                         mend=say("give --out a new or an empty folder", "请让 --out 指向新的或空的文件夹"))
