"""Texts in, vectors out: embed, token_states.

In: texts. Out: a vector for each, or for each of its tokens; made as the model's own folder says that they are made.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
import torch

from wenmo import embedding_files
from wenmo.data.sequence import Sequence as Tokens
from wenmo.errors import ModelError, say
from wenmo.loaded.held import Held
from wenmo.nn.pooling import Pooling, pooled
from wenmo.objectives import hidden_of
from wenmo.tasks import Lengths
from wenmo.tasks.vectors import text_ids

_log = logging.getLogger(__name__)


def say_cut(cut_tokens: Sequence[int]) -> None:
    """A warning where texts were longer than the model reads. `cut_tokens`: of each text."""
    if any(cut_tokens):
        number, total = sum(map(bool, cut_tokens)), sum(cut_tokens)
        _log.warning(say(f"{number:,} of {len(cut_tokens):,} texts were too long: {total:,} tokens were not read",
                         f"{len(cut_tokens):,} 段文本中有 {number:,} 段过长：有 {total:,} 个词元未读入"))


class Vectors(Held):
    """The verbs that give vectors."""

    def embed(self, texts: Sequence[str], *, normalise: bool | None = None, prompt: str | None = None) -> np.ndarray:
        """[number of texts, D] in fp32, pooled as the model's folder says, else the mean of the last hidden states; of
        length one unless the folder says otherwise (`normalise` wins). `prompt`: the name of one that the model has
        (`query`, `document`), to stand before each text. Longer texts are cut at the model's length, aloud.
        """
        read = self.texts_to_embed(texts, prompt)
        say_cut([int(text.values["cut_tokens"]) for text in read])
        return self.vectors(read, normalise)

    def texts_to_embed(self, texts: Sequence[str], prompt: str | None = None) -> list[Tokens]:
        """Texts as `vectors` reads them; calls no model. values["cut_tokens"] is how many tokens of each did not fit.
        """
        how = embedding_files.of_card(self.opened.card)
        before, longest = self._prompt(prompt, how), self.opened.max_tokens or 512
        lengths = Lengths(max_tokens=min(longest, int(how.get("max_tokens") or 512)))
        encoded = []
        for number, text in enumerate(texts):
            text = text if self.normalize is None else self.normalize(text)
            ids, cut_tokens = text_ids(self.tokenizer, text, before, lengths, number)
            encoded.append(Tokens(number, {"ids": np.asarray(ids)}, {"cut_tokens": cut_tokens}))
        return encoded

    def vectors(self, texts: Sequence[Tokens], normalise: bool | None = None) -> np.ndarray:
        """`embed` for texts that `texts_to_embed` gave, of one call or of many."""
        how = embedding_files.of_card(self.opened.card)
        pooling, two_stacks = how.get("pooling", "mean"), getattr(self.model.config, "is_encoder_decoder", False)
        unsupported = [*how.get("unsupported", ()), *(() if pooling in get_args(Pooling) else (pooling,)),
                       *(("encoder–decoder",) if two_stacks and "encoder" not in self.model.heads else ())]
        if unsupported:
            raise ModelError(
                say("this model makes its vectors in a way that is not supported", "不支持此模型得到向量的方式"),
                where=f"{self.reference}: {', '.join(unsupported)}",
                mend=say("use an encoder whose vectors are pooled by mean, cls, max or last, without further steps",
                         "请使用以 mean、cls、max 或 last 汇聚、没有其他步骤的编码器"))

        def vectors(batch: Any) -> list[np.ndarray]:
            return list(pooled(hidden_of(self.model, batch.text), batch.text.lengths, pooling).cpu().numpy())

        if not texts:
            return np.zeros((0, self.model.config.width), np.float32)
        found = np.stack([vector for [vector] in self._run([[text] for text in texts], vectors)])
        one_long = how.get("normalise", True) if normalise is None else normalise
        return found / np.linalg.norm(found, axis=1, keepdims=True).clip(1e-12) if one_long else found

    def token_states(self, texts: Sequence[str], layer: int | None = None) -> list[tuple[list[int], np.ndarray]]:
        """For each text the ids of its own tokens, and a vector for each: (ids, [T, D] in fp32). They are those after
        the last layer, or after that `layer`, counted from 1. Control tokens are read but not given; longer texts are
        cut, aloud."""
        if getattr(self.model.config, "is_encoder_decoder", False):
            raise ModelError(
                say("an encoder–decoder has no states of a text alone", "编码器–解码器没有单独一段文本的隐状态"),
                where=self.reference, mend=say("name an encoder such as a BERT", "请指定编码器，如 BERT"))
        room = (self.opened.max_tokens or 512) - self.tokenizer.num_wrapping(False)
        whole = [self.tokenizer.encode(text if self.normalize is None else self.normalize(text)) for text in texts]
        say_cut([max(0, len(ids) - room) for ids in whole])
        ids = [each[:room] for each in whole]
        encoded = [[Tokens(number, {"ids": np.asarray(self.tokenizer.wrap(own)[0])})] if own else []
                   for number, own in enumerate(ids)]
        seen: dict[str, torch.Tensor] = {}

        def states(batch: Any) -> list[np.ndarray]:
            hidden_MD = self.model(batch.text.ids_M, batch.text.lengths, taps=lambda name, x: seen.setdefault(name, x))
            if layer is not None and f"layers.{layer - 1}" not in seen:
                number = sum(name.startswith("layers.") for name in seen)
                raise ModelError(say(f"the model has {number} layers", f"模型有 {number} 层"), where=f"layer {layer}",
                                 mend=f"1 … {number}")
            hidden_MD = hidden_MD if layer is None else seen[f"layers.{layer - 1}"]
            seen.clear()
            return [part.cpu().numpy() for part in torch.split(hidden_MD.float(), list(batch.text.lengths))]

        before = len(self.tokenizer.prefix)
        none = np.zeros((0, self.model.config.width), np.float32)
        return [(own, found[0][before : before + len(own)] if found else none)
                for own, found in zip(ids, self._run(encoded, states), strict=True)]

    def _prompt(self, name: str | None, how: Mapping[str, Any]) -> str:
        """Raises ModelError for a prompt that the model does not have."""
        prompts = how.get("prompts", {})
        if name is None:
            return str(how.get("default_prompt", ""))
        if name not in prompts:
            known = ", ".join(prompts) or say("none", "无")
            raise ModelError(say(f"the model has no prompt `{name}`", f"模型没有提示 `{name}`"), where=self.reference,
                             mend=say(f"its prompts: {known}", f"它的提示：{known}"))
        return str(prompts[name])
