"""Chat templates, rendered within bounds.

In: the jinja source that came with a model, and plain values. Out: the rendered text. A template is a program by a
stranger, so it runs in jinja's immutable sandbox, with only the filters and methods that chat templates need, and
whatever can grow is counted: steps (loops, calls, filters), seconds, and the size of each text, list and number.
What stays out of reach is a single operation of C code on values within these sizes, and the memory of many such
values together; a server that opens the models of strangers still wants limits on its process.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.filters import FILTERS, make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from wenmo.errors import DataError, TokenizerError, say

MAX_TEMPLATE = 1 << 20  # characters of source; long ones in the field have 20,000
MAX_SIZE = 1 << 24  # characters of a text (the output too), items of a list
MAX_STEPS = 1_000_000
MAX_SECONDS = 10.0
_MAX_NUMBER = 1 << 64
_BUDGET, _FENCES = "step budget", "generation fences"  # no template can name them: a name has no space

_FILTERS = (
    "abs", "count", "d", "default", "dictsort", "first", "float", "int", "items", "last", "length", "list", "map",
    "max", "min", "reject", "rejectattr", "reverse", "round", "select", "selectattr", "sort", "sum", "unique",
)
_TEXT_FILTERS = ("capitalize", "e", "escape", "lower", "safe", "string", "title", "trim", "upper")
_METHODS: dict[type, tuple[str, ...]] = {
    str: (
        "capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha", "isdecimal", "isdigit",
        "islower", "isnumeric", "isspace", "isupper", "lower", "lstrip", "partition", "removeprefix", "removesuffix",
        "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "title",
        "upper",
    ),
    dict: ("copy", "get", "items", "keys", "values"),
    list: ("copy", "count", "index"),
    tuple: ("count", "index"),
}


class _Objection(jinja2.TemplateError):
    """`raise_exception`: the template does not want this conversation."""


class _Budget:
    def __init__(self) -> None:
        self._steps = MAX_STEPS
        self._deadline = time.monotonic() + MAX_SECONDS

    def spend(self, steps: int = 1) -> None:
        self._steps -= steps
        if self._steps < 0 or time.monotonic() > self._deadline:
            raise jinja2.TemplateRuntimeError(say("it does not come to an end", "它无法结束"))


def render_template(source: str, values: Mapping[str, Any], fences: tuple[str, str] = ("", "")) -> str:
    """`source` rendered with `values` (plain JSON values); `fences` are put around each {% generation %} block.

    Raises DataError when the template objects to the conversation, TokenizerError when it fails or breaks a bound.
    """
    try:
        template = _compiled(source)
        pieces = template.generate({**values, _BUDGET: _Budget(), _FENCES: fences})
        return _joined(pieces)
    except _Objection as error:
        raise DataError(
            say(f"the chat template refuses this conversation: {error}", f"对话模板拒绝了这段对话：{error}"),
            mend=say("change the messages (often it is the order of their roles)", "请修改消息（常见原因是角色顺序）"),
        ) from error
    except Exception as error:  # a stranger's program may fail in any way
        raise TokenizerError(
            say(f"the chat template fails: {type(error).__name__}: {error}",
                f"对话模板出错：{type(error).__name__}: {error}"),
            where="chat_template.jinja",
            mend=say("correct it, or take the template of the original model", "请修正模板，或使用原模型的模板"),
        ) from error


@functools.lru_cache(maxsize=8)
def _compiled(source: str) -> jinja2.Template:
    _bound(len(source), MAX_TEMPLATE)
    environment = _Environment(trim_blocks=True, lstrip_blocks=True,
                               extensions=["jinja2.ext.loopcontrols", _Generation])
    code = environment.compile(_Counted().visit(environment.parse(source)))
    return environment.template_class.from_code(environment, code, environment.make_globals(None))


# Bounds -----------------------------------------------------------------------------------------------


def _bound(size: int, limit: int = MAX_SIZE) -> None:
    if size > limit:
        raise jinja2.TemplateRuntimeError(say("it makes something too large", "它生成的内容过大"))


def _joined(pieces: Iterable[str]) -> str:
    """The pieces as one text, refused before it is made too large."""
    kept, size = [], 0
    for piece in pieces:
        size += len(piece)
        _bound(size)
        kept.append(piece)
    return "".join(kept)


def _weigh(value: Any, budget: _Budget) -> None:
    """Pays for writing `value` out; a list that holds itself many times over is paid for as often."""
    if isinstance(value, (list, tuple, dict)):
        budget.spend(1 + len(value))
        for item in value.values() if isinstance(value, dict) else value:
            _weigh(item, budget)
    elif isinstance(value, str):
        budget.spend(1 + len(value) // 1024)


@jinja2.pass_context
def _written(context: Context, value: Any) -> Any:
    if not isinstance(value, str):
        _weigh(value, context.parent[_BUDGET])
    return value


@jinja2.pass_context
def _looped(context: Context, value: Any) -> Any:
    """What a loop runs over: paid for at once, or item by item where its length is not known."""
    budget: _Budget = context.parent[_BUDGET]
    if isinstance(value, Iterator):
        return _paying(value, budget)
    budget.spend(1 + (len(value) if hasattr(value, "__len__") else 0))
    return value


@jinja2.pass_context
def _filtered(context: Context, value: Any) -> Any:
    budget: _Budget = context.parent[_BUDGET]
    budget.spend()
    return _paying(value, budget) if isinstance(value, Iterator) else value


def _paying(items: Iterator[Any], budget: _Budget) -> Iterator[Any]:
    for item in items:
        budget.spend()
        yield item


class _Counted(NodeTransformer):
    """Leads everything that loops, filters or joins (`~`) past the functions above, before compilation."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = _through("bounded loop", node.iter)
        return node

    def visit_Filter(self, node: nodes.Filter) -> nodes.Filter:
        self.generic_visit(node)
        if node.node is not None:
            node.node = _through("bounded input", node.node)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return _through("join", nodes.List(node.nodes, lineno=node.lineno))


def _through(name: str, node: Any) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


# Filters ----------------------------------------------------------------------------------------------


@jinja2.pass_context
def _join(context: Context, value: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
    budget: _Budget = context.parent[_BUDGET]
    items = list(_paying(iter(value), budget))
    if attribute is not None:
        items = list(map(make_attrgetter(context.environment, attribute), items))
    _weigh(items, budget)
    return _join_texts(str(d), map(str, items))


def _join_texts(separator: str, items: Iterable[str]) -> str:
    return _joined(part for i, item in enumerate(items) for part in ((separator, item) if i else (item,)))


def _replace(value: Any, old: str, new: str, count: int | None = None) -> str:
    text = str(value)
    found = text.count(old)
    if count is not None and count >= 0:
        found = min(count, found)
    _bound(len(text) + found * (len(new) - len(old)))
    return text.replace(old, new, found)


def _indent(text: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    _bound((str(text).count("\n") + 1) * (width if isinstance(width, int) else len(width)))
    return FILTERS["indent"](str(text), width, first, blank)  # type: ignore[no-any-return]


@jinja2.pass_context
def _tojson(context: Context, value: Any, ensure_ascii: bool = False, indent: int | None = None,
            separators: Any = None, sort_keys: bool = False) -> str:
    """JSON as text: unlike jinja's own filter it leaves < > & as they are."""
    _weigh(value, context.parent[_BUDGET])
    _bound(indent or 0, 16)
    _bound(len(str(separators)), 64)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _of_text(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that writes its input out as text first."""
    @jinja2.pass_context
    def weighed(context: Context, value: Any, *arguments: Any, **keywords: Any) -> Any:
        return function(_written(context, value), *arguments, **keywords)
    return weighed


# What a template can call -----------------------------------------------------------------------------


class _Namespace(Namespace):
    """jinja's, without names that Python would take for its own."""

    def __setitem__(self, name: str, value: Any) -> None:
        _plain_names([name])
        super().__setitem__(name, value)


def _plain_names(names: Iterable[str]) -> None:
    if any(name.startswith("_") for name in names):
        raise SecurityError(say("a namespace takes no names with _ in front", "命名空间不接受以 _ 开头的名称"))


def _namespace(*arguments: Any, **values: Any) -> _Namespace:
    content = dict(*arguments, **values)
    _plain_names(content)
    return _Namespace(content)


def _dict(*arguments: Any, **values: Any) -> dict[Any, Any]:
    return dict(*arguments, **values)


def _raise_exception(message: str) -> None:
    raise _Objection(message)


def _strftime_now(format: str) -> str:
    _bound(len(format), 256)
    return datetime.now().strftime(format)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])
    concat = staticmethod(_joined)

    def __init__(self, **options: Any) -> None:
        super().__init__(finalize=_written, **options)
        self.filters = {
            **{name: FILTERS[name] for name in _FILTERS},
            **{name: _of_text(FILTERS[name]) for name in _TEXT_FILTERS},
            "join": _join, "replace": _replace, "indent": _indent, "tojson": _tojson,
            "bounded loop": _looped, "bounded input": _filtered,
        }
        self.globals = {"range": self.globals["range"], "dict": _dict, "namespace": _namespace,
                        "raise_exception": _raise_exception, "strftime_now": _strftime_now}

    def call(__self, __context: Context, __obj: Any, *arguments: Any, **keywords: Any) -> Any:  # noqa: N805
        # Keywords come from the template and may have any name, hence jinja's own mangled ones here.
        __context.parent[_BUDGET].spend()
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str) and name == "replace":
            return _replace(owner, *arguments, **keywords)
        if isinstance(owner, str) and name == "join":
            return _join_texts(owner, _paying(iter(*arguments), __context.parent[_BUDGET]))
        for kind in (str, dict, list, tuple, int, float):
            if isinstance(owner, kind) and name not in _METHODS.get(kind, ()):
                raise SecurityError(say(f"the method `{name}` is not available", f"方法 `{name}` 不可用"))
        return super().call(__context, __obj, *arguments, **keywords)

    def wrap_str_format(self, value: Any) -> None:
        """`format` stays the method it is, and `call` refuses it: a width can be a billion."""

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, str) and operator == "%":
            raise SecurityError(say("`%` on texts is not available", "文本不可用 `%`"))
        sizes = [len(side) if isinstance(side, (str, list, tuple)) else None for side in (left, right)]
        if operator == "+" and None not in sizes:
            _bound(len(left) + len(right))
        elif operator == "*" and sizes != [None, None]:
            _bound((sizes[0] or left) * (sizes[1] or right))
        elif operator == "**":
            _bound(abs(right), 64)
        result = super().call_binop(context, operator, left, right)
        if isinstance(result, int):
            _bound(abs(result), _MAX_NUMBER)
        return result


class _Generation(Extension):
    """{% generation %} … {% endgeneration %}: what the assistant writes, marked so by the template itself."""

    tags = {"generation"}  # noqa: RUF012 (jinja's declaration)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_fenced", [nodes.ContextReference()])
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _fenced(self, context: Context, caller: Callable[[], str]) -> str:
        start, end = context.parent[_FENCES]
        return f"{start}{caller()}{end}"
