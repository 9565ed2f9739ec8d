"""`wenmo show`: what a model is, where it came from, and what it makes of a text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from wenmo.data.sequence import Sequence, collate
from wenmo.errors import say
from wenmo.loaded import Loaded, load
from wenmo.modeldir import QUANTIZATION
from wenmo.models import logits
from wenmo.nn.quantized import num_weights, weight_shapes
from wenmo.objectives import hidden_of
from wenmo.training import cost

TOP = 5
# The names of facts in Chinese; those of metrics, tensors and files are the same in both languages.
_CHINESE = {
    "model": "模型", "architecture": "模型结构", "heads": "输出头", "tasks": "任务", "parameters": "参数量",
    "memory_fp32_bytes": "fp32 内存（字节）", "memory_bf16_bytes": "bf16 内存（字节）", "width": "宽度",
    "max_tokens": "最大词元数", "vocab_size": "词表大小", "labels": "标签",
    "languages": "训练文本的文字", "zh": "汉字", "latin": "拉丁字母", "other": "其他文字",
    "lineage": "来历", "parent": "来源模型", "reference": "引用", "recipe_sha256": "配方 sha256",
    "data_sha256": "数据 sha256", "tokenizer_sha256": "分词器 sha256", "versions": "版本", "threads": "线程数",
    "seed": "随机种子", "steps": "步数", "tokens": "词元数", "best_step": "最佳步", "trained": "训练的", "all": "全部",
    "compressed": "量化自", "merged": "合并自", "average_of": "平均自", "weights_sha256": "权重 sha256",
    "quantization": "量化", "format": "格式", "method": "方法", "group": "每组输入数", "matrices": "矩阵数",
    "bytes": "字节数", "before": "之前", "after": "之后", "calibration": "校准", "held_out": "留出", "data": "数据",
    "rows": "行数", "task": "任务",
    "scores": "分数", "choose": "用于选择的数据", "loss": "损失",
    "cost": "训练开销", "forecast": "预测", "actual": "实际", "after_steps": "据前几步", "seconds": "秒数",
    "low": "下限", "high": "上限", "peak_memory_bytes": "内存峰值（字节）",
    "golden": "黄金提示", "prompts": "条数", "largest_difference": "最大差异",
}


@dataclass(frozen=True)
class Shown:
    """`facts` about the model; `groups` of parameters; for a text its tokens with the likeliest words."""

    facts: dict[str, Any]
    groups: list[dict[str, Any]]
    tokens: list[dict[str, Any]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {**self.facts, "parameters_by_group": self.groups, **({"tokens": self.tokens} if self.tokens else {})}

    def renderable(self) -> RenderableType:
        facts = Table(show_header=False, box=None, title_justify="left")
        for name, value in self.facts.items():
            if isinstance(value, dict):
                facts.add_row(Text(_named(name), "bold"), "")
                for inner, part in value.items():
                    facts.add_row(Text(f"  {_named(inner)}"), Text(_short(part)))
            else:
                facts.add_row(Text(_named(name), "bold"), Text(_short(value)))
        groups = Table(box=None, title=Text(say("parameters", "参数")), title_justify="left")
        for name in (say("group", "部分"), say("shape", "形状"), say("count", "个数"), say("parameters", "参数量")):
            groups.add_column(name)
        for group in self.groups:
            shape = "×".join(map(str, group["shape"]))
            groups.add_row(group["name"], shape, str(group["count"]), f"{group['total']:,}")
        parts: list[RenderableType] = [facts, Text(""), groups]
        if self.tokens:
            tokens = Table(box=None, title=Text(say("tokens", "词元")), title_justify="left")
            for name in (say("token", "词元"), "id", say("likeliest here", "此处最可能")):
                tokens.add_column(name)
            for token in self.tokens:
                likely = "  ".join(f"{_printed(word)} {chance:.2f}" for word, chance in token.get("likely", []))
                tokens.add_row(Text(_printed(token["token"])), str(token["id"]), Text(likely))
            parts += [Text(""), tokens]
        return Group(*parts)


def _printed(token: str) -> str:
    """On one line: what no terminal shows (a line break) as Python writes it."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in token)


def _named(name: str) -> str:
    return say(name, _CHINESE.get(name, name))


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return say(", ", "，").join(f"{_named(name)} {_short(item)}" for name, item in value.items())
    if isinstance(value, list):
        return say("; ", "；").join(map(_short, value))
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str) and len(value) == 64:
        return value[:12] + "…"  # a hash; --json has the whole
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def show(reference: str, text: str | None = None) -> Shown:
    """Everything that the model folder tells, and the model's view of a text. Raises ModelError."""
    loaded = load(reference)
    model, card = loaded.model, loaded.opened.card
    total = num_weights(model)
    config = model.config
    facts: dict[str, Any] = {
        "model": reference, "architecture": config.model_type, "heads": ", ".join(model.heads) or "-",
        "tasks": ", ".join(loaded.tasks) or "-", "parameters": total, "memory_fp32_bytes": 4 * total,
        "memory_bf16_bytes": 2 * total, "width": config.width, "max_tokens": config.max_tokens,
        "vocab_size": config.vocab_size,
    }
    for name in ("languages", QUANTIZATION, "lineage", "scores"):
        if card.get(name):
            facts[name] = card[name]
    spent = {} if loaded.opened.folder is None else cost.read(loaded.opened.folder.parent)
    if spent:  # the model of a Run: what the run cost, beside what it was expected to
        facts["cost"] = spent
    labels = [task["labels"] for task in card.get("tasks", {}).values() if task.get("labels")]
    if labels:
        facts["labels"] = ", ".join(labels[0])
    difference = loaded.check()
    if difference is not None:
        facts["golden"] = {"prompts": len(card["golden"]), "largest_difference": difference}
    return Shown(facts, _groups(weight_shapes(model)), [] if text is None else _tokens(loaded, text))


def _groups(shapes: Mapping[str, torch.Size]) -> list[dict[str, Any]]:
    """Parameters of all layers under one name: layers.*.mlp.up_proj.weight, its shape, how many there are."""
    groups: dict[tuple[str, tuple[int, ...]], int] = {}
    for name, shape in shapes.items():
        general = ".".join("*" if part.isdigit() else part for part in name.split("."))
        groups[general, tuple(shape)] = groups.get((general, tuple(shape)), 0) + 1
    return [{"name": name, "shape": list(size), "count": count, "total": count * int(torch.tensor(size).prod())}
            for (name, size), count in groups.items()]


def _tokens(loaded: Loaded, text: str) -> list[dict[str, Any]]:
    """Each token; where the model has a language head, what it expects there: the next token (causal, beside the token
    before it), or the token itself when it is masked."""
    tokenizer, model = loaded.tokenizer, loaded.model
    ids = loaded.prompt_ids(text) if "causal_lm" in model.heads else tokenizer.wrap(tokenizer.encode(text))[0]
    ids = ids[: model.config.max_tokens]
    result: list[dict[str, Any]] = [{"token": tokenizer.token(id), "id": id} for id in ids]
    if not {"causal_lm", "masked_lm"} & set(model.heads):
        return result
    if model.causal:
        rows = [ids]
    else:  # one copy a position, with that position masked
        mask = tokenizer.control["mask"]
        rows = [[mask if place == masked else id for place, id in enumerate(ids)] for masked in range(len(ids))]
    batch = collate(Sequence(number, {"ids": torch.tensor(row).numpy()}) for number, row in enumerate(rows))
    with torch.inference_mode():
        hidden_MD = hidden_of(model, batch.text)
        if not model.causal:
            hidden_MD = hidden_MD.view(len(ids), len(ids), -1).diagonal().T
        chances = logits(model, hidden_MD).softmax(-1)
    best = chances.topk(TOP)
    for place, entry in enumerate(result):
        if not model.causal and entry["id"] in tokenizer.control_ids:
            continue
        entry["likely"] = [(tokenizer.token(int(id)), round(float(p), 4))
                           for id, p in zip(best.indices[place], best.values[place], strict=True)]
    return result
