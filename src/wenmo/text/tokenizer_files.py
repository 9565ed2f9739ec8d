"""The files of a Hugging Face tokenizer folder, read into plain values.

In: a folder, old or new. Out: the text of tokenizer.json (or what the folder's SentencePiece models make of it), one
configuration, the chat templates by name; and which tokens that configuration promises beyond tokenizer.json, as
`transformers` understands it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers

from wenmo.errors import TokenizerError, say
from wenmo.text.sentencepiece import marian_definition, read_sentencepiece, t5_definition

ROLES = ("pad", "unk", "cls", "sep", "mask", "bos", "eos")

# Old folders (bert-base-chinese, gpt2) name nothing: their names were known to the code. The first row whose names are
# all special tokens holds.
_FAMILIES: tuple[dict[str, str], ...] = (
    {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
    {"bos": "<s>", "eos": "</s>", "cls": "<s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"},
    {"eos": "</s>", "pad": "<pad>", "unk": "<unk>"},
    {"bos": "<|endoftext|>", "eos": "<|endoftext|>", "unk": "<|endoftext|>"},
)


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder brings a tokenizer in one of the forms that are read here."""
    forms = (("tokenizer.json",), ("source.spm", "vocab.json"), ("spiece.model",))
    return any(all((folder / name).exists() for name in form) for form in forms)


def read_folder(folder: Path) -> tuple[str, dict[str, Any], dict[str, str]]:
    """(tokenizer.json, configuration, chat templates by name). Raises TokenizerError for what cannot be read."""
    definition = _text(folder / "tokenizer.json")
    config = _mapping(folder / "tokenizer_config.json")
    if definition is None:
        definition = _from_sentencepiece(folder, config)
    if definition is None:
        raise TokenizerError(
            say("there is no tokenizer.json", "找不到 tokenizer.json"), where=str(folder),
            mend=say("check the path; an old folder becomes a new one with "
                     "transformers.AutoTokenizer.from_pretrained(…).save_pretrained(…)",
                     "检查路径；旧格式可用 transformers.AutoTokenizer.from_pretrained(…).save_pretrained(…) 转换"),
        )
    if "added_tokens_decoder" not in config:  # since that key came, the map only repeats the configuration
        config |= _mapping(folder / "special_tokens_map.json")

    templates = _templates(config.pop("chat_template", None), folder / "tokenizer_config.json")
    paths = {"default": folder / "chat_template.jinja"}
    paths |= {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    for name, path in paths.items():
        text = _text(path)
        if text is not None:
            templates[name] = text
    return definition, config, templates


def _from_sentencepiece(folder: Path, config: dict[str, Any]) -> str | None:
    """The tokenizer.json that older folders of Marian (source.spm, vocab.json) and T5 (spiece.model) would have; the
    configuration then names the class that reads one. None where there is neither."""
    marian = (folder / "source.spm").exists() and (folder / "vocab.json").exists()
    if not marian and not (folder / "spiece.model").exists():
        return None
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    for key in ("separate_vocabs", "sp_model_kwargs"):  # of the class that they no longer have
        config.pop(key, None)
    if not marian:
        listed = config.get("extra_ids")
        return t5_definition(read_sentencepiece(folder / "spiece.model"), 100 if listed is None else int(listed))
    return marian_definition(read_sentencepiece(folder / "source.spm"), _mapping(folder / "vocab.json"),
                             str(folder / "vocab.json"))


def _templates(value: object, path: Path) -> dict[str, str]:
    """The templates in a configuration: none, one, or a list of named ones."""
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    try:
        named = {item["name"]: item["template"] for item in value}  # type: ignore[attr-defined]
        if all(re.fullmatch(r"[\w-]+", name) and isinstance(text, str) for name, text in named.items()):
            return named
    except (TypeError, KeyError):
        pass  # said below
    raise _damaged(path, say("`chat_template` is neither a text nor a list of named texts",
                             "`chat_template` 既不是文本，也不是带名称的文本列表"))


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(path, str(error)) from error


def _mapping(path: Path) -> dict[str, Any]:
    text = _text(path)
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(value, dict):
        raise _damaged(path, say("not a JSON object", "不是 JSON 对象"))
    return value


def _damaged(path: Path, what: str) -> TokenizerError:
    return TokenizerError(say(f"{path.name} is damaged: {what}", f"{path.name} 已损坏：{what}"), where=str(path),
                          mend=say("fetch or save the folder again", "请重新获取或保存该文件夹"))


# Names ------------------------------------------------------------------------------------------------


def names_of_roles(full: tokenizers.Tokenizer, config: Mapping[str, Any]) -> dict[str, str]:
    """role → the token's text, from the configuration or, where it names none, by family."""
    named = {role: content for role in ROLES if (content := _content(config.get(f"{role}_token"))) is not None}
    if named:
        return named
    special = {token.content for token in full.get_added_tokens_decoder().values() if token.special}
    return next((family for family in _FAMILIES if set(family.values()) <= special), {})


def follow_configuration(full: tokenizers.Tokenizer, config: Mapping[str, Any]) -> None:
    """Brings `full` in line with what the configuration says beyond tokenizer.json, as transformers does: tokens
    it adds or makes special, and BERT's normalisation. Raises TokenizerError for values it cannot mean."""
    try:
        for token in _promised_tokens(full, config):
            (full.add_special_tokens if token.special else full.add_tokens)([token])
        if isinstance(full.normalizer, tokenizers.normalizers.BertNormalizer) and not _as_it_stands(config):
            for key, name in _BERT_KEYS.items():
                if key in config:
                    setattr(full.normalizer, name, config[key])
    except (AttributeError, TypeError, ValueError) as error:
        raise TokenizerError(
            say(f"tokenizer_config.json is damaged: {error}", f"tokenizer_config.json 已损坏：{error}"),
            mend=say("fetch or save the folder again", "请重新获取或保存该文件夹"),
        ) from error


_BERT_KEYS = {"do_lower_case": "lowercase", "strip_accents": "strip_accents",
              "tokenize_chinese_chars": "handle_chinese_chars"}


def _as_it_stands(config: Mapping[str, Any]) -> bool:
    """Whether the tokenizer's class takes tokenizer.json as it is; BERT's own class follows the configuration."""
    return config.get("tokenizer_class") in ("PreTrainedTokenizerFast", "TokenizersBackend")


def _promised_tokens(full: tokenizers.Tokenizer, config: Mapping[str, Any]) -> Iterator[tokenizers.AddedToken]:
    """In the order of transformers: listed with their ids, then those with a role, then the other special ones."""
    present = {token.content: token for token in full.get_added_tokens_decoder().values()}
    listed = config.get("added_tokens_decoder") or {}
    for _, fields in sorted((int(id), fields) for id, fields in listed.items()):
        token = tokenizers.AddedToken(**{key: value for key, value in fields.items() if key != "__type"})
        known = present.get(token.content)
        if known is None or known.__getstate__() != token.__getstate__():
            present[token.content] = token
            yield token
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    extra = list(extra.values()) if isinstance(extra, dict) else extra
    for value in [*names_of_roles(full, config).values(), *extra]:
        content = _content(value)
        if content is not None and not (content in present and present[content].special):
            token = tokenizers.AddedToken(content, special=True, normalized=False)
            present[content] = token
            yield token


def _content(value: object) -> str | None:
    """A token's text, given as text or as the fields of an added token."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value else None
