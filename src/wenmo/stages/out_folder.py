"""What `--out` may be: what stands there would be gone.

In: a path, what is read, and the files by which a folder of the kind is known. Out: nothing, or a UsageError.
"""

from __future__ import annotations

from glob import glob
from pathlib import Path

from wenmo.errors import UsageError, say
from wenmo.locate import RUN_RECORD


def refuse_other_things(out: Path, *marks: str, read: tuple[Path, ...] = ()) -> None:
    """UsageError unless the folder is new, empty, or one that holds `marks`, which is then replaced; not where it is
    among those that are `read`, nor where it belongs to a Run."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    refuse_inputs(out, *read)
    whole = out.resolve()
    if any((folder / RUN_RECORD).exists() for folder in (whole, *whole.parents)):
        raise UsageError(say("this folder belongs to a run", "该文件夹属于一次训练"), where=f"--out {out}",
                         mend=_elsewhere())
    if not out.is_dir() or not all((out / name).exists() for name in marks):
        raise UsageError(say("something else is there", "该处已有其他内容"), where=f"--out {out}", mend=_elsewhere())


def refuse_inputs(out: Path, *read: str | Path) -> None:
    """UsageError where `out` is a file or folder that is read: names, or patterns of names."""
    if out.exists() and any(Path(name).exists() and out.samefile(name)
                            for given in map(str, read) for name in (given, *glob(given, recursive=True))):
        raise UsageError(say("this is read, and would be overwritten", "这是输入，会被覆盖"), where=str(out),
                         mend=say("name another place", "请另指定位置"))


def _elsewhere() -> str:
    return say("give --out a new or an empty folder", "请让 --out 指向新的或空的文件夹")
