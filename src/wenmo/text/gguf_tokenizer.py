"""The tokenizer inside a GGUF file.

In: the file's metadata as plain values. Out: a Tokenizer. GGUF keeps the vocabulary and the merges of byte-level BPE
and, instead of the pre-tokenizer, its name in llama.cpp; the few names met in practice are spelt out here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from wenmo.errors import TokenizerError, say
from wenmo.text.tokenizer import Tokenizer

_CONTROL, _USER_DEFINED = 3, 4  # of llama.cpp's token types: special; added, but text

_WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
_PRE_TOKENIZERS = ("gpt-2", "smollm", "llama-bpe", "qwen2")

_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "cls": "cls", "mask": "mask",
          "sep": "seperator"}  # the format's own spelling


def from_gguf(fields: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that `tokenizer.ggml.*` and `tokenizer.chat_template` describe.

    Raises TokenizerError for another kind than byte-level BPE, for a pre-tokenizer it does not know, and for
    metadata that contradicts itself.
    """
    kind, pre = _get(fields, "model", str), _get(fields, "pre", str)
    if kind != "gpt2":
        raise _unknown("model", kind, ("gpt2",))
    if pre not in _PRE_TOKENIZERS:
        raise _unknown("pre", pre, _PRE_TOKENIZERS)
    tokens, merges = _get(fields, "tokens", list), _get(fields, "merges", list)
    types = fields.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    vocabulary = {token: id for id, token in enumerate(tokens)}
    if not tokens or len(vocabulary) != len(tokens) or len(types) != len(tokens):
        raise _contradiction("tokens", say(
            f"{len(tokens)} tokens, {len(vocabulary)} different ones, {len(types)} types",
            f"{len(tokens)} 个词元，其中不同的有 {len(vocabulary)} 个，类型有 {len(types)} 个"))

    full = tokenizers.Tokenizer(_model(vocabulary, merges, ignore_merges=pre == "llama-bpe"))
    if pre == "qwen2":
        full.normalizer = normalizers.NFC()
    full.pre_tokenizer = _pre_tokenizer(pre)
    full.decoder = decoders.ByteLevel()
    for token, type in zip(tokens, types, strict=True):
        if type in (_CONTROL, _USER_DEFINED):
            special = type == _CONTROL
            added = AddedToken(token, special=special, normalized=False)
            (full.add_special_tokens if special else full.add_tokens)([added])

    names = {}
    for role, key in _ROLES.items():
        id = fields.get(f"tokenizer.ggml.{key}_token_id")
        if id is not None:
            if not 0 <= id < len(tokens):
                raise _contradiction(f"{key}_token_id", say(f"{id} of {len(tokens)} tokens",
                                                            f"{id}，而词元共 {len(tokens)} 个"))
            names[role] = tokens[id]
    full.post_processor = _post_processor(full, names, fields, pre)
    return Tokenizer(full.to_str(), {f"{role}_token": name for role, name in names.items()}, _templates(fields))


def _model(vocabulary: dict[str, int], merges: list[str], *, ignore_merges: bool) -> models.BPE:
    pairs = []
    for merge in merges:
        left, _, right = merge.partition(" ")
        if not {left, right, left + right} <= vocabulary.keys():
            raise _contradiction("merges", say(f"{merge!r} joins what is not in the vocabulary",
                                               f"{merge!r} 所合并的词元不在词表中"))
        pairs.append((left, right))
    return models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=ignore_merges)


def _pre_tokenizer(pre: str) -> pre_tokenizers.PreTokenizer:
    """llama.cpp's names (llama-vocab.cpp) in the parts that the original tokenizer.json files use."""
    if pre == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pre == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                        pre_tokenizers.ByteLevel(add_prefix_space=False)])
    words = _WORDS.replace("DIGITS", r"\p{N}{1,3}" if pre == "llama-bpe" else r"\p{N}")
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(words), behavior="isolated"),
                                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _post_processor(
    full: tokenizers.Tokenizer, names: Mapping[str, str], fields: Mapping[str, Any], pre: str
) -> processors.PostProcessor:
    """bos before and eos after every text, where the file asks for them (Llama 3 does without asking)."""
    before = names.get("bos") if fields.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe") else None
    after = names.get("eos") if fields.get("tokenizer.ggml.add_eos_token", False) else None
    byte_level = processors.ByteLevel(add_prefix_space=False, trim_offsets=True)
    if before is None and after is None:
        return byte_level
    def around(*texts: str) -> list[str]:
        return [f"{part}:{segment}" for segment, text in enumerate(texts)
                for part in (before, f"${text}", after) if part is not None]

    template = processors.TemplateProcessing(
        single=around("A"), pair=around("A", "B"),
        special_tokens=[(name, full.token_to_id(name)) for name in (before, after) if name is not None],
    )
    return processors.Sequence([byte_level, template])


def _templates(fields: Mapping[str, Any]) -> dict[str, str]:
    """`tokenizer.chat_template` and its named siblings, `tokenizer.chat_template.NAME`."""
    prefix = "tokenizer.chat_template"
    named = {key.removeprefix(prefix + "."): value for key, value in fields.items() if key.startswith(prefix + ".")}
    return named | ({"default": fields[prefix]} if prefix in fields else {})


def _get(fields: Mapping[str, Any], key: str, kind: type) -> Any:
    value = fields.get(f"tokenizer.ggml.{key}")
    if not isinstance(value, kind):
        raise TokenizerError(
            say("the GGUF file brings no tokenizer, or a damaged one", "该 GGUF 文件没有分词器，或分词器已损坏"),
            where=f"tokenizer.ggml.{key}",
            mend=say("convert the model again with a current llama.cpp", "请用新版 llama.cpp 重新转换模型"),
        )
    return value


def _unknown(key: str, value: str, known: tuple[str, ...]) -> TokenizerError:
    return TokenizerError(
        say(f"a GGUF tokenizer of the kind `{value}` cannot be read", f"无法读取 `{value}` 类型的 GGUF 分词器"),
        where=f"tokenizer.ggml.{key}",
        mend=say(f"known are: {', '.join(known)}; or open the original Hugging Face folder",
                 f"支持：{', '.join(known)}；也可打开原始的 Hugging Face 文件夹"),
    )


def _contradiction(key: str, what: str) -> TokenizerError:
    return TokenizerError(
        say(f"the tokenizer in the GGUF file contradicts itself: {what}", f"GGUF 文件中的分词器自相矛盾：{what}"),
        where=f"tokenizer.ggml.{key}",
        mend=say("fetch or convert the file again", "请重新获取或转换该文件"),
    )
