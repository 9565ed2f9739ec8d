"""API keys: who is calling.

In: a file or WENMO_API_KEYS, and what a request presents. Out: the key's name, which stands in logs and counts quotas.
Of keys themselves only digests are kept; a comparison takes the same time wherever a key differs.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from pathlib import Path

from wenmo.errors import UsageError, say
from wenmo.faults import of_reading

ENVIRONMENT = "WENMO_API_KEYS"


class Keys:
    """digests: name → SHA-256 of the key. Empty: whoever calls may."""

    def __init__(self, digests: dict[str, bytes]) -> None:
        self.digests = digests

    def name_of(self, presented: bytes) -> str | None:
        """The name of a key, None for one that is not known. All known ones are compared."""
        digest, found = hashlib.sha256(presented).digest(), None
        for name, known in self.digests.items():
            if hmac.compare_digest(digest, known):
                found = name
        return found


def read_keys(path: str | None) -> Keys:
    """The keys of a file and of the environment. Raises UsageError for a file that cannot be read or has none."""
    digests: dict[str, bytes] = {}
    if path is not None:
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(say(f"cannot read the API keys: {of_reading(error)}",
                                 f"无法读取 API 密钥：{of_reading(error)}"), where=path,
                             mend=say("give a UTF-8 text file", "请给出 UTF-8 文本文件")) from error
        _add(text, path, digests)
        if not digests:
            raise UsageError(say("there is no API key in the file", "文件中没有 API 密钥"), where=path,
                             mend=say("write one on each line, `NAME: KEY` or the key alone",
                                      "每行写一个：`名称: 密钥`，或只写密钥"))
    _add(os.environ.get(ENVIRONMENT, ""), ENVIRONMENT, digests)
    return Keys(digests)


def _add(text: str, where: str, digests: dict[str, bytes]) -> None:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        before, colon, after = line.partition(":")
        key = (after if colon else before).strip()
        name = before.strip() if colon else f"key-{len(digests) + 1}"
        if not key or not name or name in digests:
            raise UsageError(
                say(f"line {number} has no key, no name, or a name that was there before",
                    f"第 {number} 行没有密钥、没有名称，或名称已经出现过"), where=where,
                mend=say("write `NAME: KEY` or the key alone", "请写 `名称: 密钥`，或只写密钥"))
        digests[name] = hashlib.sha256(key.encode()).digest()
