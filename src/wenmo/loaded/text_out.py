"""Text in, text out: generate, stream, and the engine for many at once.

In: prompts or conversations. Out: their ids as the model saw them in training, and text that goes on from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from wenmo import device as machine
from wenmo.config import parse
from wenmo.engine import DraftSettings, Engine, EngineSettings
from wenmo.errors import UsageError, say
from wenmo.generate import Completion, Piece, Sampling, generate, stream
from wenmo.loaded.held import Held
from wenmo.modeldir import open_model
from wenmo.tasks.chat import Chat
from wenmo.text import chat
from wenmo.text.messages import with_system
from wenmo.text.normalize import normalized


class TextOut(Held):
    """The verbs that write text."""

    def generate(self, prompts: Sequence[str], **sampling: Any) -> list[list[Completion]]:
        """For each prompt its completions; the keywords are those of `generate.Sampling`. An encoder–decoder takes each
        prompt as its source."""
        return self.complete([self.prompt_ids(prompt) for prompt in prompts], **sampling)

    def complete(self, prompts: Sequence[Sequence[int]], **sampling: Any) -> list[list[Completion]]:
        """`generate` for prompts given as ids (`prompt_ids`, `chat_ids`)."""
        self._needs_to_generate()
        return generate(self.model, self.tokenizer, prompts, self.sampling(sampling), self.ends(), self.banned())

    def stream(self, ids: Sequence[int], **sampling: Any) -> Iterator[Piece]:
        """Pieces of text as they come, for one prompt given as ids (`prompt_ids`, `chat_ids`)."""
        self._needs_to_generate()
        yield from stream(self.model, self.tokenizer, [ids], self.sampling(sampling), self.ends(), self.banned())

    def engine(self, settings: EngineSettings | Mapping[str, Any] | None = None) -> Engine:
        """An engine, which continues many texts at once, for a model that was loaded in fp32 on the CPU. The format of
        the engine's settings says how it computes. It packs the weights in place: the model is its own from then on.

        Raises UsageError for another device or number format, RecipeError for what is no setting.
        """
        self._needs_to_generate()
        if self.on.device.type != "cpu" or self.on.dtype != torch.float32:
            raise UsageError(
                say("the engine takes a model in fp32 on the CPU, and changes the format itself",
                    "引擎接受 CPU 上的 fp32 模型，并自行转换格式"), where=str(self.on),
                mend='wenmo.load(…, device="cpu", dtype="fp32").engine({"format": "bf16"})')
        chosen = settings if isinstance(settings, EngineSettings) else parse(EngineSettings, settings or {}, "engine")
        guess = chosen.speculate
        draft = None
        if isinstance(guess, DraftSettings):
            draft = Held(open_model(guess.draft), machine.choose("cpu", "fp32"), guess.draft).model
        return Engine(self.model, self.tokenizer, chosen, ends=self.ends(), banned=self.banned(), draft=draft)

    def prompt_ids(self, prompt: str) -> list[int]:
        """Ids of a prompt as the model saw the beginnings of texts in training; of a source with what ends it."""
        self._needs_to_generate()
        ids = self.tokenizer.encode(prompt if self.normalize is None else self.normalize(prompt))
        if "seq2seq_lm" in self.model.heads:
            return self.tokenizer.wrap(ids)[0]
        return [*self.opened.card.get("document_start", self.tokenizer.prefix), *ids]

    def chat_ids(self, messages: Sequence[Mapping[str, Any]],
                 tools: Sequence[Mapping[str, Any]] | None = None) -> list[int]:
        """Ids of a conversation that ends where the model is to answer, with the system message of its training above
        one that has none. `tools`: the functions that it may call, as JSON schemas. Raises DataError for what are no
        messages, TokenizerError without a chat template."""
        system = next((task.settings.system for task in self.tasks.values() if isinstance(task, Chat)), "")
        change = self.normalize
        given = with_system(messages, system)
        return chat.render(self.tokenizer, given if change is None else normalized(given, change), tools=tools,
                           add_generation_prompt=True)

    def sampling(self, given: Mapping[str, Any]) -> Sampling:
        """Raises RecipeError for what is no setting of `generate.Sampling`."""
        return parse(Sampling, given, "sampling")

    def ends(self) -> frozenset[int]:
        """Ids that end a text: the tokenizer's, and those that the model's folder names."""
        stored = self.opened.generation.get("eos_token_id", self.opened.carried.get("eos_token_id"))
        ids = stored if isinstance(stored, list) else [stored]
        return frozenset(id for id in (*ids, self.tokenizer.eos_id) if id is not None)

    def banned(self) -> frozenset[int]:
        """Ids that the model's folder forbids to generate; bad words of several tokens are not heeded."""
        words = self.opened.generation.get("bad_words_ids") or []
        return frozenset([*(word[0] for word in words if len(word) == 1),
                          *(self.opened.generation.get("suppress_tokens") or [])]) - self.ends()

    def _needs_to_generate(self) -> None:
        if "seq2seq_lm" not in self.model.heads:
            self._needs("causal_lm", say("generate", "生成"))
