"""Settings: the strict base that every part of a recipe is built from.

In: YAML files, `a.b=c` overrides. Out: frozen pydantic objects, or one error that lists every fault with its
path and a suggestion. It stands on the ground floor because settings live beside the thing they set.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from wenmo.errors import RecipeError, say
from wenmo.faults import in_words, of_reading

S = TypeVar("S", bound="Settings")


class Settings(BaseModel):
    """Frozen; an unknown key is an error. A key is `identity` (a change on resume is refused) unless `free`."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, protected_namespaces=(),
                              serialize_by_alias=True)


def free(default: Any, **constraints: Any) -> Any:
    """A field that may change when a run is resumed (logging, saving, where things lie)."""
    return Field(default, json_schema_extra={"resume": "free"}, **constraints)


# Units ------------------------------------------------------------------------------------------------


def _count(value: object) -> object:
    """`8192`, `2e9`, "2e9 tokens", "1_000" → int."""
    if isinstance(value, str):
        value = re.sub(r"(_|\s*(tokens?|steps?|rows?|词元|步|行)\s*$)", "", value.strip())
        try:
            value = float(value)
        except ValueError:
            return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _fraction(value: object) -> object:
    """`0.06` or "6%" → float."""
    if isinstance(value, str) and value.strip().endswith("%"):
        return float(value.strip()[:-1]) / 100
    return value


Count = Annotated[int, BeforeValidator(_count), Field(ge=0)]
Fraction = Annotated[float, BeforeValidator(_fraction), Field(ge=0, le=1)]


# Reading ----------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML 1.2's scalars: `3e-4` is a number, `no` and `on` are words (labels, often), a key stands once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise RecipeError(
                    say(f"the key `{name}` stands twice", f"键 `{name}` 出现了两次"),
                    where=f"{key.start_mark.name}:{key.start_mark.line + 1}",
                    mend=say("keep one of them", "只保留一个"),
                )
            seen.add(name)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag not in
            ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.[\d_]*([eE][-+]?\d+)?|\.\d+([eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.inf|\.nan)$"),
    list("-+0123456789."),
)


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text; a fault in it is a RecipeError with line and column."""
    try:
        loader = _Loader(text)
        loader.name = where
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise RecipeError(
            say(f"not valid YAML: {error.problem}", f"不是合法的 YAML：{error.problem}"),
            where=f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where,
            mend=say("check indentation, quotes and colons there", "检查该处的缩进、引号和冒号"),
        ) from error


def read_yaml(path: Path, kind: str = "") -> dict[str, Any]:
    """The mapping in a YAML file: a recipe, or what `kind` calls it."""
    kind, example = (kind, say("docs/serving.md has an example", "docs/serving.md 里有示例")) if kind else (
        say("recipe", "配方"), say("`recipes/` has examples", "`recipes/` 里有示例"))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise RecipeError(say(f"no such {kind}", f"找不到{kind}"), where=str(path),
                          mend=say(f"check the path; {example}", f"请检查路径；{example}")) from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(say(f"cannot read the {kind}: {of_reading(error)}", f"无法读取{kind}：{of_reading(error)}"),
                          where=str(path), mend=say("give a UTF-8 text file", "请给出 UTF-8 文本文件")) from error
    data = parse_yaml(text, str(path))
    if not isinstance(data, dict):
        raise RecipeError(say(f"a {kind} is a mapping of keys to values", f"{kind}应是“键: 值”的映射"),
                          where=str(path), mend=example)
    return data


def apply_overrides(data: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`data` with each `a.b=value` (value in YAML; list items by number, `data.train.0.weight=2`) laid over it."""
    result = _copied(data)
    for override in overrides:
        path, sign, value = override.partition("=")
        if not sign or not path:
            raise RecipeError(
                say(f"not an override: {override}", f"不是合法的覆盖项：{override}"),
                mend=say("write key.key=value", "写成 键.键=值"),
            )
        parts = path.split(".")
        node: Any = result
        for part in parts[:-1]:
            node = _child(node, part, override)
        if isinstance(node, list):
            _child(node, parts[-1], override)
            node[int(parts[-1])] = parse_yaml(value, override)
        else:
            node[parts[-1]] = parse_yaml(value, override)
    return dict(result)


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def _child(node: Any, part: str, override: str) -> Any:
    if isinstance(node, list):
        if not part.isdigit() or int(part) >= len(node):
            raise RecipeError(
                say(f"the list has {len(node)} items, there is no item `{part}`",
                    f"列表只有 {len(node)} 项，没有第 `{part}` 项"), where=override,
                mend=say("items count from 0", "序号从 0 开始"),
            )
        return node[int(part)]
    child = node.setdefault(part, {})
    if not isinstance(child, (dict, list)):
        child = node[part] = {}
    return child


# Validation -------------------------------------------------------------------------------------------


def parse(cls: type[S], data: Mapping[str, Any], where: str, context: Mapping[str, Any] | None = None) -> S:
    """`data` as settings; every fault at once, each with its path and, for a misspelt key, the likely one.

    `context` is what validators may need to know beside the data.
    """
    try:
        return cls.model_validate(data, context=context)
    except ValidationError as error:
        faults, mends = [], []
        found = error.errors(include_url=False)
        inside = {each["loc"][:depth] for each in found for depth in range(len(each["loc"]))}
        for fault in found:
            if fault["type"] == "too_short" and fault["loc"] in inside:
                continue  # its items are missing because each is at fault
            path = _path_in(data, fault["loc"])
            if fault["type"] == "missing":
                path = f"{path}.{fault['loc'][-1]}".lstrip(".")
            if fault["type"] == "union_tag_invalid":
                tag = fault["ctx"]["tag"]
                known = [kind.strip("'") for kind in fault["ctx"]["expected_tags"].split(", ")]
                faults.append(say(f"`{path}`: there is no kind `{tag}`", f"`{path}`：没有 `{tag}` 这一类"))
                near = difflib.get_close_matches(tag, known, n=1)
                mends.append(say(f"did you mean `{near[0]}`?", f"是否想写 `{near[0]}`？") if near else
                             say(f"one of: {', '.join(known)}", f"可选：{', '.join(known)}"))
            elif fault["type"] == "union_tag_not_found":
                faults.append(say(f"`{path}` does not say of which kind it is: give its `type`",
                                  f"`{path}` 没有说明是哪一类：请给出 `type`"))
            elif fault["type"] == "extra_forbidden":
                faults.append(say(f"unknown key `{path}`", f"未知的键 `{path}`"))
                key = str(fault["loc"][-1])
                places = _places(cls, key)
                beside = set().union(*map(_keys, _settings_at(cls, fault["loc"][:-1])))
                near = (difflib.get_close_matches(key, sorted(beside), n=1)
                        or difflib.get_close_matches(key, sorted(_known_keys(cls) - {key}), n=1))
                kinds = _kinds_with(cls, fault["loc"])
                if kinds:
                    mends.append(say(f"`{key}` belongs to {', '.join(kinds)}", f"`{key}` 属于 {', '.join(kinds)}"))
                elif places:
                    mends.append(say(f"did you mean `{places[0]}`?", f"是否想写 `{places[0]}`？"))
                elif near:
                    meant = near[0] if near[0] in beside else next(iter(_places(cls, near[0])), near[0])
                    mends.append(say(f"did you mean `{meant}`?", f"是否想写 `{meant}`？"))
            elif fault["type"] == "missing":
                faults.append(say(f"the key `{path}` is missing", f"缺少键 `{path}`"))
            else:
                message = in_words(fault)
                shown = "" if isinstance(fault["input"], (dict, list)) else f" (`{fault['input']}`)"
                faults.append(f"`{path}`{shown}: {message}" if path else message)
        mend = " ".join(dict.fromkeys(mends)) or say("correct it in the file or on the command line",
                                                      "请在文件或命令行中改正")
        raise RecipeError("; ".join(faults), where=where, mend=mend) from error


def _path_in(data: Any, location: Sequence[int | str]) -> str:
    """Where a fault lies, as an override would name it: without the names that pydantic gives to kinds of settings."""
    parts = []
    for part in location:
        in_list = isinstance(data, (list, tuple)) and isinstance(part, int) and part < len(data)
        if in_list or (isinstance(data, Mapping) and part in data):
            data = data[part]
        else:
            continue
        parts.append(str(part))
    return ".".join(parts)


def _kinds_with(cls: type[Settings], location: Sequence[int | str]) -> list[str]:
    """Where an unknown key stands in one of several kinds of settings (`type: …`): the other kinds that know it."""
    knowing = [each for each in _settings_at(cls, location[:-1]) if location[-1] in _keys(each)]
    literals = [get_args(field.annotation) for each in knowing for field in each.model_fields.values()
                if get_origin(field.annotation) is Literal]
    return sorted({str(values[0]) for values in literals if len(values) == 1 and isinstance(values[0], str)})


def _settings_at(cls: type[Settings], location: Sequence[int | str]) -> list[type[Settings]]:
    """What may stand there: several kinds of settings, one, or none."""
    here: list[type[Settings]] = [cls]
    for part in location:
        fields = [field for each in here for name, field in each.model_fields.items() if (field.alias or name) == part]
        if fields:  # else a number in a list, or the name that pydantic gives to a kind
            here = [inner for field in fields for inner in _types_in(field.annotation)
                    if isinstance(inner, type) and issubclass(inner, Settings)]
    return here


def _keys(cls: type[Settings]) -> set[str]:
    return {field.alias or name for name, field in cls.model_fields.items()}


def _known_keys(cls: type[Settings]) -> set[str]:
    keys: set[str] = set()
    for reachable in _reachable(cls, set()):
        keys |= _keys(reachable)
    return keys


def _places(cls: type[Settings], key: str) -> list[str]:
    """Where a key stands that was written elsewhere: its paths, the shortest first; of a list, in its first item."""
    level, seen = [("", cls)], {cls}
    while level:
        fields = [(before + (field.alias or name), field) for before, each in level
                  for name, field in each.model_fields.items()]
        found = [path for path, _ in fields if path.rpartition(".")[2] == key]
        if found:
            return found
        inner = [(f"{path}.0." if get_origin(field.annotation) is tuple else f"{path}.", each)
                 for path, field in fields if get_origin(field.annotation) is not dict
                 for each in _types_in(field.annotation) if isinstance(each, type) and issubclass(each, Settings)]
        level = [(path, each) for path, each in inner if each not in seen]
        seen.update(each for _, each in level)
    return []


def _reachable(cls: type[Settings], seen: set[type]) -> Iterator[type[Settings]]:
    if cls in seen:
        return
    seen.add(cls)
    yield cls
    for field in cls.model_fields.values():
        for inner in _types_in(field.annotation):
            if isinstance(inner, type) and issubclass(inner, Settings):
                yield from _reachable(inner, seen)


def _types_in(annotation: Any) -> Iterator[Any]:
    yield annotation
    for argument in get_args(annotation):
        yield from _types_in(argument)


# Comparing --------------------------------------------------------------------------------------------


def identity_differences(old: Settings, new: Settings, path: str = "") -> list[tuple[str, Any, Any]]:
    """(path, old value, new value) for every `identity` key in which two settings differ."""
    if type(old) is not type(new):
        return [(path, _plain(old), _plain(new))]
    result: list[tuple[str, Any, Any]] = []
    for name, field in type(old).model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("resume") == "free":
            continue
        shown = field.alias or name
        here = f"{path}.{shown}" if path else shown
        result += _differences(getattr(old, name), getattr(new, name), here)
    return result


def _differences(a: Any, b: Any, here: str) -> list[tuple[str, Any, Any]]:
    if isinstance(a, Settings) and isinstance(b, Settings):
        return identity_differences(a, b, here)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [item for i, (x, y) in enumerate(zip(a, b, strict=True)) for item in _differences(x, y, f"{here}.{i}")]
    return [] if a == b else [(here, _plain(a), _plain(b))]


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.model_dump(mode="json") if isinstance(value, Settings) else value


def to_yaml(settings: Settings) -> str:
    """The resolved settings as YAML, Chinese readable, in declaration order."""
    return yaml.safe_dump(settings.model_dump(mode="json"), allow_unicode=True, sort_keys=False, width=100)
