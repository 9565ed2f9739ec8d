"""Tokenizer: strings ↔ ids.

In: a Hugging Face folder (tokenizer.json, tokenizer_config.json, chat templates) or a definition just trained.
Out: ids of texts, texts of ids, what a model family puts around a text, and the folder again.

The law of this room: `encode` never yields a control token, whatever the text says (see twin.py). Control tokens are
placed by `wrap` and by text/chat.py, never read out of data.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from wenmo.errors import DataError, TokenizerError, say
from wenmo.files import write_atomic, write_json
from wenmo.text.decoding import ByteStream, PieceStream, Stream, added_bytes, byte_pieces, without
from wenmo.text.tokenizer_files import follow_configuration, names_of_roles, read_folder
from wenmo.text.twin import make_twin

_BATCH_CHARACTERS = 1 << 18
_FIRST, _SECOND = -1, -2  # where the texts stand in a layout; everything else there is an id


class Tokenizer:
    """Ids are positions in the vocabulary, `vocab_size` long with the added tokens.

    `control` maps pad, unk, cls, sep, mask, bos, eos to their ids, those that exist. `control_ids` holds every
    special token except the one that `encode` gives to text it does not know (WordPiece's [UNK]);
    `control_strings` is how each special token is written → its id.
    """

    def __init__(
        self, definition: str, config: Mapping[str, Any] | None = None, templates: Mapping[str, str] | None = None
    ) -> None:
        """`definition`: the content of a tokenizer.json; `config`: of a tokenizer_config.json; `templates`: chat
        templates by name. Raises TokenizerError when the definition cannot be read."""
        self._config = dict(config or {})
        self._templates = dict(templates or {})
        with _damage():
            self._full = tokenizers.Tokenizer.from_str(definition)
        follow_configuration(self._full, self._config)
        self._names = names_of_roles(self._full, self._config)
        canonical = self._full.to_str()
        parsed = json.loads(canonical)
        ids = {token["content"]: token["id"] for token in parsed["added_tokens"] if token["special"]}
        self.control_strings: Mapping[str, int] = ids
        self.control: Mapping[str, int] = {role: ids[name] for role, name in self._names.items()}
        with _damage():
            self._twin = make_twin(canonical, self.control)
            self._twin.tokenizer.encode("\U0010ffff")  # a WordPiece without its unknown token fails here
            self._layouts = [_layout(self._full, pair=False), _layout(self._full, pair=True)]
        self._special_ids = frozenset(ids.values())
        self.control_ids: frozenset[int] = self._special_ids - {self._twin.unknown_id}
        self._byte_level = (parsed["decoder"] or {}).get("type") == "ByteLevel"
        self._trims_offsets = _trims_offsets(parsed["post_processor"])

    # Files --------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Opens any Hugging Face folder that holds a tokenizer.json.

        Raises TokenizerError when a file is absent or damaged.
        """
        definition, config, templates = read_folder(folder)
        try:
            return cls(definition, config, templates)
        except TokenizerError as error:
            raise TokenizerError(error.what, where=str(folder / "tokenizer.json"), mend=error.mend) from error

    def save(self, folder: Path) -> None:
        """Writes tokenizer.json, tokenizer_config.json and the chat templates, as `transformers` reads them."""
        config = {"tokenizer_class": "PreTrainedTokenizerFast"} | self._config
        for role, name in self._names.items():
            config.setdefault(f"{role}_token", name)
        write_atomic(folder / "tokenizer.json", self._definition)
        write_json(folder / "tokenizer_config.json", config)
        for name, template in self._templates.items():
            path = "chat_template.jinja" if name == "default" else f"additional_chat_templates/{name}.jinja"
            write_atomic(folder / path, template)

    @functools.cached_property
    def _definition(self) -> str:
        return self._full.to_str(pretty=True)

    @functools.cached_property
    def sha256(self) -> str:
        """Of the tokenizer.json that `save` writes, as `sha256sum` prints it."""
        return hashlib.sha256(self._definition.encode()).hexdigest()

    @property
    def chat_template(self) -> str | None:
        """The jinja source of the default chat template."""
        return self._templates.get("default")

    def with_chat_template(self, template: str, control_tokens: Sequence[str] = (),
                           end: str | None = None) -> Tokenizer:
        """The same tokenizer with another default chat template, the control tokens that it lacks for it at the end of
        the vocabulary, and `end` (one of them) as the token that ends a text."""
        full = tokenizers.Tokenizer.from_str(self._definition)
        full.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False)
                                 for token in control_tokens if token not in self.control_strings])
        names = {f"{role}_token": name for role, name in self._names.items()} if end is not None else {}
        config = {**self._config, **names, **({} if end is None else {"eos_token": end})}
        return Tokenizer(full.to_str(), config, self._templates | {"default": template})

    # Text → ids ---------------------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """The ids of `text` alone: nothing is put around it, and none of them is in `control_ids`."""
        return self._encoding(text).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each, in parallel."""
        try:
            encodings = self._twin.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        except TypeError as error:
            raise _not_text(texts) from error
        return [encoding.ids for encoding in encodings]

    def encode_each(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        """`encode` of each as they come, some at a time and on all cores, for corpora that are not to stand in memory:
        int64 arrays. While a batch is given out, the next one is being encoded."""
        with ThreadPoolExecutor(1) as beside:
            coming: Future[list[list[int]]] | None = None
            for batch in _batches(texts):
                ready, coming = coming, beside.submit(self.encode_batch, batch)
                yield from _arrays(ready)
            yield from _arrays(coming)

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids, and for each where it stands in `text` (start and end, in characters).

        Pieces of one character share its place. Where the tokenizer says `trim_offsets`, the spaces a piece
        begins or ends with are left out.
        """
        encoding = self._encoding(text)
        if not self._trims_offsets:
            return encoding.ids, encoding.offsets
        return encoding.ids, [_trimmed(text, start, end) for start, end in encoding.offsets]

    def encode_pieces(self, pieces: Sequence[str | int]) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of texts (str) and control tokens (their ids) in a row, and for each id the first and the last piece
        it stands in.

        Neighbouring texts are read as one. Text stays text here too; a control token stands only where a piece
        is its id.
        """
        secret = self._twin.secret_names
        texts = [piece if isinstance(piece, str) else secret[self._piece(piece) or ""] for piece in pieces]
        encoding = self._encoding("".join(texts))
        offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        lasts = np.maximum(offsets[:, 0], offsets[:, 1] - 1)
        begins = np.cumsum([0, *(len(text) for text in texts[:-1])])
        first, last = (np.searchsorted(begins, places, side="right") - 1 for places in (offsets[:, 0], lasts))
        spans = list(zip(first.tolist(), last.tolist(), strict=True))
        # A control token may take the spaces beside it into its place; it stands in its own piece alone.
        placed = (i for i, piece in enumerate(pieces) if piece in self.control_ids)
        for i, id in enumerate(encoding.ids):
            if id in self.control_ids:
                spans[i] = (own := next(placed), own)
        return encoding.ids, spans

    def _encoding(self, text: str) -> tokenizers.Encoding:
        try:
            return self._twin.tokenizer.encode(text, add_special_tokens=False)
        except TypeError as error:
            raise _not_text([text]) from error

    # Ids → text ---------------------------------------------------------------------------------------

    def decode(self, ids: Sequence[int], *, keep_control: bool = False) -> str:
        """The text of `ids`; special tokens are shown only with `keep_control`. Unknown ids add nothing."""
        skipped = frozenset[int]() if keep_control else self._special_ids
        if self._byte_level:
            pieces, limit = self._bytes, len(self._bytes)
            known = (pieces[id] for id in ids if id not in skipped and 0 <= id < limit)
            return b"".join(known).decode("utf-8", "replace")
        return self._full.decode(without(ids, skipped), skip_special_tokens=False)

    def stream(self, *, keep_control: bool = False, shown: frozenset[int] = frozenset()) -> Stream:
        """For ids that come one by one: `push(id)` and `finish()` give text that joins to `decode` of all. `shown`:
        special tokens that are shown all the same."""
        skipped = frozenset[int]() if keep_control else self._special_ids - shown
        if self._byte_level:
            return ByteStream(self._bytes, skipped)
        decode = functools.partial(self._full.decode, skip_special_tokens=False)
        return PieceStream(decode, self._piece, skipped)

    def token(self, id: int) -> str:
        r"""How one id is shown to people: byte-level pieces as their text, a part of a character as `\xe4\xbd`."""
        if self._byte_level and 0 <= id < len(self._bytes):
            return self._bytes[id].decode("utf-8", "backslashreplace")
        return self._piece(id) or ""

    def token_bytes(self, id: int) -> bytes:
        """The bytes that one id stands for; where the vocabulary is of characters, those of how it is shown."""
        return self._bytes[id] if self._byte_level and 0 <= id < len(self._bytes) else self.token(id).encode()

    def _piece(self, id: int) -> str | None:
        return self._full.id_to_token(id) if id >= 0 else None

    def added_bytes(self) -> tuple[list[bytes], list[bytes]]:
        """For each id the bytes that it adds to a text that has begun, and those that a text begins with where it comes
        first. Empty for special tokens, and where a neighbour could change them."""
        if self._byte_level:
            pieces = [b"" if id in self._special_ids else piece for id, piece in enumerate(self._bytes)]
            return pieces, pieces
        return added_bytes(self._full, self._special_ids)

    @functools.cached_property
    def _bytes(self) -> list[bytes]:
        return byte_pieces(self._full)

    # What a model family puts around texts ------------------------------------------------------------

    def wrap(self, first: Sequence[int], second: Sequence[int] | None = None) -> tuple[list[int], list[int]]:
        """A text or a pair as the model expects it: the ids with their control tokens, and the segment of each.

        BERT: [CLS] first [SEP] second [SEP] with segments 0 and 1; Llama 3: bos first; GPT-2: as they are.
        """
        ids: list[int] = []
        segments: list[int] = []
        for part, segment in self._layouts[second is not None]:
            piece = first if part == _FIRST else (second or ()) if part == _SECOND else (part,)
            ids += piece
            segments += [segment] * len(piece)
        return ids, segments

    @property
    def prefix(self) -> list[int]:
        """What `wrap` puts before a text."""
        before = []
        for part, _ in self._layouts[False]:
            if part == _FIRST:
                break
            before.append(part)
        return before

    def num_wrapping(self, pair: bool) -> int:
        """How many ids `wrap` adds."""
        return sum(part not in (_FIRST, _SECOND) for part, _ in self._layouts[pair])

    # What it holds ------------------------------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        """With the added tokens."""
        return self._full.get_vocab_size(with_added_tokens=True)

    @functools.cached_property
    def control_pattern(self) -> re.Pattern[str]:
        """Matches every control string, the longest first."""
        strings = sorted(self.control_strings, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, strings)) or r"(?!)")

    @property
    def pad_id(self) -> int | None:
        return self.control.get("pad")

    @property
    def unk_id(self) -> int | None:
        return self.control.get("unk")

    @property
    def cls_id(self) -> int | None:
        return self.control.get("cls")

    @property
    def mask_id(self) -> int | None:
        return self.control.get("mask")

    @property
    def bos_id(self) -> int | None:
        return self.control.get("bos")

    @property
    def eos_id(self) -> int | None:
        return self.control.get("eos")


@contextlib.contextmanager
def _damage() -> Iterator[None]:
    """Turns whatever the library raises on a damaged definition into a TokenizerError."""
    try:
        yield
    except TokenizerError:
        raise
    except BaseException as error:
        # Rust's panics are no Exception, and their class cannot be imported.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(
            say(f"tokenizer.json is damaged or of an unknown kind: {error}",
                f"tokenizer.json 已损坏或类型未知：{error}"),
            mend=say("fetch it again, or save it anew with transformers' save_pretrained",
                     "请重新获取，或用 transformers 的 save_pretrained 重新保存"),
        ) from error


def _layout(full: tokenizers.Tokenizer, *, pair: bool) -> list[tuple[int, int]]:
    """(id or place of a text, segment) in order, read off what the post-processor does to one-token texts."""
    probe = tokenizers.Tokenizer(tokenizers.models.WordLevel({"x": 0}, unk_token="x"))
    if full.post_processor is not None:
        probe.post_processor = full.post_processor
    encoding = probe.encode("x", "x" if pair else None)
    places = {0: _FIRST, 1: _SECOND}
    return [(id if text is None else places[text], segment)
            for id, text, segment in zip(encoding.ids, encoding.sequence_ids, encoding.type_ids, strict=True)]


def _trims_offsets(processor: Mapping[str, Any] | None) -> bool:
    if processor is None:
        return False
    if processor["type"] == "Sequence":
        return any(_trims_offsets(part) for part in processor["processors"])
    return bool(processor.get("trim_offsets", False))


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    piece = text[start:end]
    start += len(piece) - len(piece.lstrip(" "))
    return start, max(start, end - (len(piece) - len(piece.rstrip(" "))))


def _arrays(encoded: Future[list[list[int]]] | None) -> Iterator[np.ndarray]:
    for ids in encoded.result() if encoded is not None else ():
        yield np.array(ids, np.int64)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Together as long as keeps all cores busy; a token takes a hundred bytes until it is a number."""
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _not_text(texts: Sequence[object]) -> DataError:
    """Which of the texts cannot be one: not a string, or half of a surrogate pair."""
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            what = say(f"not a text but {type(text).__name__}", f"不是文本，而是 {type(text).__name__}")
        elif found := re.search("[\ud800-\udfff]", text):
            what = say(f"half of a surrogate pair, U+{ord(found[0]):04X}, in a text",
                       f"文本中有半个代理对 U+{ord(found[0]):04X}")
        else:
            continue
        return DataError(what, where=say(f"text {i}", f"第 {i} 条文本"),
                         mend=say("clean it first: text.encode('utf-8', 'replace').decode()",
                                  "请先清理：text.encode('utf-8', 'replace').decode()"))
    raise AssertionError(texts)
