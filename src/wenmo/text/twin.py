"""The twin: a copy of a tokenizer that cannot read control tokens out of text.

In: the tokenizer.json of a tokenizer and the ids of its roles. Out: a `tokenizers.Tokenizer` with the same ids in which
every special token goes by a secret name, drawn afresh in each process. A review that says "[SEP]" or "<|im_end|>"
is text like any other there, while a chat, which must place control tokens, calls them by the secret names.

It is a room of its own because a whole promise hangs on it: text that is data never becomes control.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tokenizers

from wenmo.errors import TokenizerError, say


@dataclass(frozen=True)
class Twin:
    """`secret_names`: control string → its name in the twin. `unknown_id`: what `encode` yields for what it does
    not know (None: such characters are dropped, or there are none)."""

    tokenizer: tokenizers.Tokenizer
    secret_names: Mapping[str, str]
    unknown_id: int | None


def make_twin(definition: str, roles: Mapping[str, int]) -> Twin:
    """The twin of the tokenizer that `definition` (a tokenizer.json) describes; `roles` is name → id.

    Raises TokenizerError where text that a WordPiece, WordLevel or Unigram model does not know would come out as
    an end, a separator or a mask: there the law cannot hold.
    """
    data = json.loads(definition)
    secret = {token["content"]: secrets.token_hex(16) for token in data["added_tokens"] if token["special"]}
    ids = {token["content"]: token["id"] for token in data["added_tokens"] if token["special"]}
    for token in data["added_tokens"]:
        token["content"] = secret.get(token["content"], token["content"])
    data["post_processor"] = data["truncation"] = data["padding"] = None

    unknown_id = _rename(data["model"], secret, {id for role, id in roles.items() if role != "unk"})
    if unknown_id in {id for role, id in roles.items() if role not in ("unk", "pad")}:
        raise TokenizerError(
            say("the token for unknown text is also an end, a separator or a mask",
                "未知词元同时又是结束、分隔或掩码词元"),
            where=f"id {unknown_id}",
            mend=say("give the unknown token a name of its own in tokenizer_config.json",
                     "请在 tokenizer_config.json 中给未知词元单独取名"),
        )
    twin = tokenizers.Tokenizer.from_str(json.dumps(data))
    for content, id in ids.items():
        if twin.token_to_id(secret[content]) != id or twin.id_to_token(id) != secret[content]:
            raise TokenizerError(
                say(f"two tokens share an id, one of them {content!r}", f"两个词元共用一个编号，其一为 {content!r}"),
                where=f"id {id}", mend=say("fetch the tokenizer again", "请重新获取分词器"),
            )
    return Twin(twin, secret, unknown_id)


def _rename(model: dict[str, Any], secret: Mapping[str, str], taken: set[int]) -> int | None:
    """Gives the special tokens their secret names inside `model`, in place; the id of its unknown token."""
    if model["type"] == "Unigram":
        # A piece's place is its id and its score bounds the others': both stay.
        model["vocab"] = [[secret.get(piece, piece), score] for piece, score in model["vocab"]]
        return model["unk_id"]  # type: ignore[no-any-return]
    unknown = model.get("unk_token")
    unknown_id = model["vocab"].get(unknown)
    model["vocab"] = {secret.get(piece, piece): id for piece, id in model["vocab"].items()}
    if unknown is not None:
        model["unk_token"] = secret.get(unknown, unknown)
    if model["type"] != "BPE":
        return unknown_id  # type: ignore[no-any-return]

    # A merge that makes or uses a control string can only fire inside text that holds that string.
    prefix = model.get("continuing_subword_prefix") or ""
    merges = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"])
    model["merges"] = [[left, right] for left, right in merges
                       if not {left, right, left + right.removeprefix(prefix)} & secret.keys()]
    if unknown_id in taken:
        model["unk_token"] = unknown_id = None  # BPE can do without: better a dropped character than an end of text
    return unknown_id  # type: ignore[no-any-return]
