"""Chat (SFT): the mask is transformers', unfit conversations are counted and not learned from, one template for all."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers import LlamaConfig as HFConfig

from small_data import write_csv
from wenmo.data.loader import evaluation_batches
from wenmo.data.sequence import Sequence, collate
from wenmo.data.sources import read_sources
from wenmo.errors import DataError, ModelError, RecipeError
from wenmo.files import read_jsonl
from wenmo.loaded import load
from wenmo.models import create, logits
from wenmo.models.llama import LlamaConfig
from wenmo.nn.attend import Packed
from wenmo.nn.cross_entropy import IGNORED
from wenmo.nn.padding import positions_of
from wenmo.objectives import hidden_of
from wenmo.stages.library import evaluate, train
from wenmo.stages.predict import predict
from wenmo.tasks import Lengths, task_from_card
from wenmo.tasks.chat import Chat, ChatSettings
from wenmo.text.chat import render_with_mask
from wenmo.text.chat_templates import TEMPLATES
from wenmo.text.intake import SourceSettings
from wenmo.text.tokenizer import Tokenizer
from wenmo.text.tokenizer_training import TokenizerSettings
from wenmo.text.tokenizer_training import train as train_tokenizer

DATA = Path(os.environ.get("WENMO_TEST_DATA") or Path(__file__).parent.parent.parent / "shared" / "data")
TEXTS = ["user assistant system: 你好，世界！ Hello there, how are you? What is 1 + 2? \n"] * 3
COLOURS = {"天空": "蓝色", "草地": "绿色", "snow": "white", "coal": "black"}


def tokenizer_with(template: str | None, vocab_size: int = 340) -> Tokenizer:
    plain = train_tokenizer(TEXTS, TokenizerSettings(vocab_size=vocab_size))
    if template is None:
        return plain
    named = TEMPLATES[template]
    return plain.with_chat_template(named.source, named.control_tokens, named.end)


def turns(*contents: str) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


def task(too_long: str = "head", max_tokens: int = 256, template: str | None = "chatml", **given: Any) -> Chat:
    lengths = Lengths(max_tokens=max_tokens, too_long=too_long)  # type: ignore[arg-type]
    return Chat(ChatSettings(**given), tokenizer_with(template), lengths)


def learned(chat: Chat, messages: Any, **row: Any) -> list[str]:
    """What each sequence of a conversation teaches, in words."""
    found = []
    for sequence in chat.learnable(0, {"messages": messages, **row}).sequences:
        targets = sequence.tokens["targets"]
        found.append(chat.tokenizer.decode(targets[targets != IGNORED].tolist(), keep_control=True))
    return found


# The mask ---------------------------------------------------------------------------------------------


def real_conversations() -> list[tuple[list[dict[str, Any]], Any]]:
    """Five hundred questions in each language; three hundred conversations with tools."""
    folder = DATA / "llamafactory-demo"
    if not folder.exists():
        pytest.skip(f"no data in {DATA} (WENMO_TEST_DATA)")
    found: list[tuple[list[dict[str, Any]], Any]] = []
    for language in ("en", "zh"):
        rows = json.loads(gzip.decompress((folder / f"alpaca_{language}_demo.json.gz").read_bytes()))
        found += [(turns(row["instruction"] + row["input"], row["output"]), None) for row in rows[:500]
                  if row["output"]]
    for row in json.loads(gzip.decompress((folder / "glaive_toolcall_zh_demo.json.gz").read_bytes())):
        messages = []
        for turn in row["conversations"]:
            said = {"human": "user", "gpt": "assistant", "observation": "tool", "function_call": "assistant"}
            message: dict[str, Any] = {"role": said[turn["from"]], "content": turn["value"]}
            if turn["from"] == "function_call":
                message |= {"content": "", "tool_calls": [{"type": "function", "function": json.loads(turn["value"])}]}
            messages.append(message)
        found.append((messages, json.loads(row["tools"])))
    return found


@pytest.mark.parametrize("name", TEMPLATES)
def test_mask_equals_transformers_on_a_thousand_conversations(name: str) -> None:
    conversations = real_conversations()
    assert len(conversations) > 1200
    tokenizer = tokenizer_with(name)
    roles = {f"{role}_token": tokenizer.token(id) for role, id in tokenizer.control.items()}
    oracle = PreTrainedTokenizerFast(tokenizer_object=tokenizer._full, chat_template=tokenizer.chat_template, **roles)
    for messages, tools in conversations[:: 1 if name == "chatml" else 4]:
        expected = oracle.apply_chat_template(messages, tools=tools, tokenize=True, return_dict=True,
                                              return_assistant_tokens_mask=True)
        ids, mask = render_with_mask(tokenizer, messages, tools=tools)
        assert ids == expected["input_ids"]
        assert mask == list(map(bool, expected["assistant_masks"]))
        assert any(mask)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("last_only", [False, True])
def test_mask_without_marks_is_that_with_marks(name: str, last_only: bool) -> None:
    """The same template without its {% generation %} marks: contents by fences, tool calls by what they add."""
    tokenizer = tokenizer_with(name)
    source = TEMPLATES[name].source
    bare = tokenizer.with_chat_template(source.replace("{%- generation %}", "").replace("{% endgeneration %}", ""))
    assert "generation %" not in str(bare.chat_template)
    call = {"function": {"name": "weather", "arguments": {"city": "北京"}}}
    calling = [{"role": "user", "content": "天气？"}, {"role": "assistant", "content": "", "tool_calls": [call, call]},
               {"role": "tool", "content": "晴"}, {"role": "assistant", "content": "晴天。"}]
    tools = [{"name": "weather", "parameters": {}}]
    for messages, offered in ((turns("Hi", "Hello!", "1 + 2?", " 3 "), None), (calling, tools),
                              ([*calling, *turns("谢谢", "不客气")], tools)):
        ids, mask = render_with_mask(bare, messages, tools=offered, last_only=last_only)
        assert (ids, mask) == render_with_mask(tokenizer, messages, tools=offered, last_only=last_only)
    said = bare.decode([id for id, theirs in zip(ids, mask, strict=True) if theirs])
    assert ("<tool_call>" in said) == (not last_only)
    assert said.endswith("不客气")


def test_every_turn_or_the_last_one_is_learned() -> None:
    messages = turns("Hi", "Hello", "1 + 2?", "3")
    assert learned(task(), messages) == ["Hello<|im_end|>3<|im_end|>"]
    assert learned(task(learn="last"), messages) == ["3<|im_end|>"]
    assert learned(task(), [*messages, {"role": "user", "content": "and?"}]) == ["Hello<|im_end|>3<|im_end|>"]


def test_loss_is_that_of_transformers_and_of_no_other_conversation() -> None:
    """Two conversations in one batch: the loss of each alone, by transformers; and no gradient goes across."""
    chat = Chat(ChatSettings(template="chatml"), tokenizer_with(None), Lengths(max_tokens=128))
    model = small_model(chat).eval()
    rows = [turns("Hi", "Hello there"), turns("你好", "世界！", "How?", "1 + 2")]
    sequences = [sequence for number, messages in enumerate(rows)
                 for sequence in chat.learnable(number, {"messages": messages}).sequences]
    batch = collate(sequences)
    [term] = chat.objective().terms(model, batch)
    theirs = LlamaForCausalLM(HFConfig(
        **{key: value for key, value in model.config.model_dump().items() if key != "model_type"}))
    theirs.load_state_dict(model.state_dict(), strict=False)
    theirs.tie_weights()
    expected = 0.0
    for messages in rows:
        ids, mask = render_with_mask(chat.tokenizer, messages)
        labels = torch.tensor([id if its else -100 for id, its in zip(ids, mask, strict=True)])
        with torch.inference_mode():
            expected += float(theirs(input_ids=torch.tensor([ids]), labels=labels[None]).loss) * sum(mask)
    assert term.sum.item() == pytest.approx(expected, rel=1e-5)

    words_MD = model.model.embed_tokens(batch.text.ids_M).detach().requires_grad_()
    lengths = batch.text.lengths
    hidden_MD = model.body(words_MD, positions_of(lengths, words_MD.device), Packed(lengths, causal=True))
    hidden_MD[lengths[0]:].square().sum().backward()
    assert words_MD.grad is not None
    assert torch.equal(words_MD.grad[: lengths[0]], torch.zeros_like(words_MD.grad[: lengths[0]]))
    assert words_MD.grad[lengths[0]:].abs().amin(1).max() > 0


def small_model(chat: Chat) -> Any:
    config = LlamaConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
                         max_position_embeddings=128, vocab_size=chat.tokenizer.vocab_size)
    return create(config, chat.heads, torch.Generator().manual_seed(0))


# What is not learned from -----------------------------------------------------------------------------

UNFIT: dict[str, Any] = {
    "no answer": [{"role": "user", "content": "Hi"}],
    "an empty message": turns("Hi", "Hello", "  ", "3"),
    "an empty message ": turns("Hi", ""),
    "roles out of order": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"},
                           {"role": "assistant", "content": "c"}],
    "roles out of order ": [{"role": "assistant", "content": "c"}],
    "roles out of order  ": [*turns("a", "b"), {"role": "system", "content": "c"}],
    "roles out of order   ": [{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}],
    "no such role": [{"role": "narrator", "content": "a"}, {"role": "assistant", "content": "c"}],
    "the content is not a text": [{"role": "user", "content": 3}, {"role": "assistant", "content": "c"}],
    "no text": [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "c"}],
    "not a list of named function calls": [{"role": "user", "content": "a"},
                                           {"role": "assistant", "content": "", "tool_calls": [{}]}],
    "list of messages": "hello",
}


@pytest.mark.parametrize("why", UNFIT)
def test_a_conversation_that_cannot_be_learned_from_is_counted_and_left_out(why: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=why.strip()) as caught:
        task().learnable(0, {"messages": UNFIT[why]})
    assert len(str(caught.value).split("\n")) == 3
    rows = [{"messages": UNFIT[why]}, {"messages": turns("Hi", "Hello")}]
    built = task().build(rows, tmp_path, 0, "")
    assert (built.num_rows, built.num_rows_skipped, len(built.examples)) == (1, 1, 1)
    assert caught.value.what in built.notes[0]
    with pytest.raises(DataError, match="not one conversation"):
        task().build(rows[:1], tmp_path, 0, "")


def test_calls_that_the_template_would_lose_are_not_learned_from() -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    messages = [{"role": "user", "content": "a"}, call, {"role": "tool", "content": "b"},
                {"role": "assistant", "content": "c"}]
    silent = tokenizer_with("chatml").with_chat_template(
        "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}")
    chat = Chat(ChatSettings(), silent, Lengths(max_tokens=128))
    assert chat.learnable(0, {"messages": turns("a", "b")}).sequences
    for row in ({"messages": messages}, {"messages": turns("a", "b"), "tools": '[{"name": "f"}]'}):
        with pytest.raises(DataError, match="no place for tools"):
            chat.learnable(0, row)
    [said] = learned(task(), messages, tools='[{"name": "f"}]')
    assert '{"name": "f", "arguments": {}}' in said
    with pytest.raises(DataError, match="list of functions"):
        task().learnable(0, {"messages": messages, "tools": "f("})


def test_a_template_without_an_end_of_turn_is_refused() -> None:
    source = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    with pytest.raises(RecipeError, match="never to stop"):
        Chat(ChatSettings(template=source), tokenizer_with(None), Lengths())
    with pytest.raises(RecipeError, match="no chat template"):
        Chat(ChatSettings(), tokenizer_with(None), Lengths())


# Long conversations -----------------------------------------------------------------------------------


def test_a_long_conversation_is_cut_between_exchanges() -> None:
    above = [{"role": "system", "content": "Be short."}]
    messages = above + turns("one?", "1", "two?", "2", "three?", "3", "four?", "4")
    room = len(task(system="Be short.").learnable(0, {"messages": turns("one?", "1", "two?", "2")}).sequences[0]) + 6
    assert learned(task(), messages) == ["".join(f"{n}<|im_end|>" for n in "1234")]
    assert learned(task("head", room), messages) == ["1<|im_end|>2<|im_end|>"]
    assert learned(task("tail", room), messages) == ["3<|im_end|>4<|im_end|>"]
    assert learned(task("window", room), messages) == ["1<|im_end|>2<|im_end|>", "3<|im_end|>4<|im_end|>"]
    with pytest.raises(DataError, match="fit") as caught:
        task("refuse", room).build([{"messages": messages}], Path(), 0, "")
    assert caught.value.where == "data.too_long"
    for kind in ("head", "tail", "window"):
        encoded = task(kind, room).learnable(0, {"messages": messages})
        assert all(len(sequence) <= room for sequence in encoded.sequences)
        starts = [task().tokenizer.decode(sequence.tokens["ids"].tolist()) for sequence in encoded.sequences]
        assert all(start.startswith("system\nBe short.") for start in starts)
        assert (encoded.cut_tokens > 0) == (kind != "window")


def test_an_exchange_that_is_too_long_by_itself_is_cut_at_its_end() -> None:
    chat = task("head", 24)
    [sequence] = chat.learnable(0, {"messages": turns("Hi", "Hello there " * 20)}).sequences
    assert len(sequence) == 24
    whole = task("head", 1000).learnable(0, {"messages": turns("Hi", "Hello there " * 20)}).sequences[0]
    assert 0 < sequence.values["num_bytes"] < whole.values["num_bytes"] == 240
    with pytest.raises(DataError, match="no room for its answer"):
        chat.learnable(0, {"messages": turns("Hi " * 100, "Hello")})


# From files to answers --------------------------------------------------------------------------------


def recipe(path: str, steps: int = 240, **task: Any) -> dict[str, Any]:
    return {
        "model": {"type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
                  "intermediate_size": 64, "max_position_embeddings": 128, "tie_word_embeddings": True},
        "tokenizer": {"train": {"type": "bpe", "vocab_size": 400}},
        "data": {"train": [{"path": path}], "choose": {"carve": 4}, "max_tokens": 96},
        "task": {"type": "chat", "template": "chatml", "max_new_tokens": 12, **task},
        "train": {"steps": steps, "batch_tokens": 512, "threads": 1, "dtype": "fp32", "optimizer": {"lr": 5e-3}},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """qa.csv, and run/: a small model that knows four colours."""
    folder = tmp_path_factory.mktemp("chat")
    known = [(f"{prefix}{thing}是什么颜色？", f"{colour}。") for prefix in ("", "请问", "喂，", "那么", "说说")
             for thing, colour in COLOURS.items()]
    others = [("无人回答", ""), *((f"{letter}？", letter) for letter in "abcd")]
    write_csv(folder / "qa.csv", ("question", "answer"), [*known, *others])
    train(recipe("qa.csv", system="Colours."), out=folder / "run", data_root=folder)
    return folder


def test_a_csv_of_questions_and_answers_trains_a_model_that_answers(folder: Path) -> None:
    model = load(folder / "run")
    [answer] = model.predict([{"question": "天空是什么颜色？"}])
    assert answer == {"output": "蓝色。"}
    messages = turns("snow是什么颜色？", "white。", "草地是什么颜色？", "ignored")
    asked = [{"messages": messages[:1]}, {"prompt": "snow是什么颜色？"}, "snow是什么颜色？", {"messages": messages[:2]}]
    assert model.predict(asked) == [{"output": "white。"}] * 4
    long, empty, none = model.answers([{"question": "颜色" * 200}, {"messages": turns("a", "b")[1:]}, {"answer": "x"}])
    assert all(isinstance(each, DataError) for each in (long, empty, none))


def test_rows_at_hand_keep_the_tools_that_are_offered_with_them(folder: Path) -> None:
    row = {"messages": turns("天空是什么颜色？", "蓝色。")}
    model = load(folder / "run")
    assert evaluate(model, [row]).n == 1
    with pytest.raises(DataError, match="not one conversation") as caught:  # the window is too small for them
        evaluate(model, [{**row, "tools": '[{"name": "f"}]'}])
    assert "leaves no room" in str(caught.value)


def test_columns_are_remembered_for_files_of_the_same_kind(tmp_path: Path) -> None:
    rows = [(f"{n}？", f"{n}") for n in range(9)]
    write_csv(tmp_path / "train.csv", ("问", "答"), rows)
    write_csv(tmp_path / "asked.csv", ("问",), [row[:1] for row in rows])
    made = recipe("train.csv", steps=1)
    made["data"] |= {"train": [{"path": "train.csv", "columns": {"question": "问", "answer": "答"}}],
                     "choose": {"carve": 0}}
    train(made, out=tmp_path / "run", data_root=tmp_path)
    assert evaluate(tmp_path / "run", tmp_path / "train.csv").n == 9
    for name in ("train.csv", "asked.csv"):
        answers = list(predict(str(tmp_path / "run"), str(tmp_path / name)))
        assert [list(answer) for answer in answers] == [["output"]] * 9


def test_answers_do_not_depend_on_who_is_asked_beside(folder: Path) -> None:
    model = load(folder / "run")
    questions = [f"{prefix}{thing}是什么颜色？" for thing in COLOURS for prefix in ("", "说说")]
    together = model.predict(questions)
    assert together == [model.predict([question])[0] for question in questions]
    assert model.predict(questions[::-1]) == together[::-1]


def test_evaluate_counts_what_it_leaves_out(folder: Path) -> None:
    model = load(folder / "run")
    report = evaluate(model, folder / "qa.csv")
    assert (report.task, report.n) == ("chat", 24)
    assert report.details["skipped"] == {"an empty message": 1}
    chat = model.task("chat")
    rows = [{"messages": turns(f"{n}？", n)} for n in "abcd"]
    nats = bytes_ = 0.0
    for row in rows:
        ids, mask = render_with_mask(chat.tokenizer, [{"role": "system", "content": "Colours."}, *row["messages"]])
        with torch.inference_mode():
            hidden_MD = hidden_of(model.model, collate_ids(ids))
            chances = logits(model.model, hidden_MD).log_softmax(1)
        nats -= sum(float(chances[i - 1, ids[i]]) for i in range(1, len(ids)) if mask[i])
        bytes_ += len(row["messages"][1]["content"].encode())
    measured = chat.measure(rows, model.outputs(rows, chat, with_targets=True), 0)
    assert measured.metrics["loss"].value == pytest.approx(np.log(measured.metrics["perplexity"].value))
    assert measured.metrics["bits_per_byte"].value == pytest.approx(nats / bytes_ / 0.6931472, rel=1e-4)
    assert model.task("causal_lm").name == "causal_lm"  # what it forgot of texts can be measured


def collate_ids(ids: list[int]) -> Any:
    return collate([Sequence(0, {"ids": np.asarray(ids)})]).text


def test_the_folder_holds_all_that_chatting_needs(folder: Path) -> None:
    path = folder / "run" / "model"
    tokenizer = AutoTokenizer.from_pretrained(path)
    opened = AutoModelForCausalLM.from_pretrained(path)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end in opened.generation_config.eos_token_id
    messages = [{"role": "system", "content": "Colours."}, *turns("天空是什么颜色？")]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    said = opened.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1]:]
    assert tokenizer.decode(said) == "蓝色。<|im_end|>"
    model = load(folder / "run")
    assert model.chat_ids(turns("天空是什么颜色？")) == ids["input_ids"][0].tolist()  # with the system of its training
    card = json.loads((path / "wenmo.json").read_text(encoding="utf-8"))
    assert [entry.get("chat", False) for entry in card["golden"]] == [False, False, True, True]
    assert model.check() == pytest.approx(0, abs=1e-4)
    assert task_from_card(card["tasks"]["chat"], model.tokenizer, "").card() == card["tasks"]["chat"]


def test_another_template_is_noticed(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "run" / "model", tmp_path / "model")
    template = (tmp_path / "model" / "chat_template.jinja").read_text(encoding="utf-8")
    (tmp_path / "model" / "chat_template.jinja").write_text(template.replace("'\\n' }}", "' ' }}"), encoding="utf-8")
    with pytest.raises(ModelError, match="chat template lays"):
        load(tmp_path / "model").check()


@pytest.mark.parametrize("tied", [True, False])
def test_a_base_model_gets_a_template_and_rows_for_its_tokens(tied: bool, tmp_path: Path) -> None:
    """llama3's control tokens are new to it: more rows, as the mean of all; transformers opens the result."""
    (tmp_path / "text.txt").write_text("\n".join(f"你好 {n} hello" for n in range(40)), encoding="utf-8")
    base = {**recipe("text.txt", steps=1), "task": {"type": "causal_lm"}}
    base["model"] = {**base["model"], "tie_word_embeddings": tied}
    train(base, out=tmp_path / "base", data_root=tmp_path)
    before = load(tmp_path / "base")
    write_csv(tmp_path / "qa.csv", ("prompt", "response"), [(f"{n}？", f"{n}！") for n in range(30)])
    made = {**recipe("qa.csv", steps=1, template="llama3"), "model": {"from": str(tmp_path / "base")},
            "train": {"steps": 1, "batch_tokens": 512, "threads": 1, "optimizer": {"lr": 1e-9}}}
    del made["tokenizer"]
    train(made, out=tmp_path / "run", data_root=tmp_path)
    after = load(tmp_path / "run")
    old = before.model.config.vocab_size
    assert after.model.config.vocab_size == after.tokenizer.vocab_size == old + 3
    for name in ("model.embed_tokens.weight", *(() if tied else ("lm_head.weight",))):
        was, now = before.model.state_dict()[name], after.model.state_dict()[name]
        torch.testing.assert_close(now[:old], was, atol=1e-6, rtol=0)
        torch.testing.assert_close(now[old:], was.mean(0).expand(3, -1), atol=1e-6, rtol=0)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert opened.config.vocab_size == old + 3
    assert opened.config.eos_token_id == after.tokenizer.control_strings["<|eot_id|>"]
    ids = torch.tensor([after.chat_ids(turns("1？"))])
    with torch.inference_mode():
        ours = logits(after.model, hidden_of(after.model, collate_ids(ids[0].tolist())))
        torch.testing.assert_close(opened(ids).logits[0], ours, atol=1e-5, rtol=0)


def test_an_adapter_brings_the_rows_of_its_new_tokens(tmp_path: Path) -> None:
    """LoRA with a template whose tokens are new: the larger embeddings are trained whole, and opened again."""
    (tmp_path / "text.txt").write_text("\n".join(f"你好 {n} hello" for n in range(40)), encoding="utf-8")
    train({**recipe("text.txt", steps=1), "task": {"type": "causal_lm"}}, out=tmp_path / "base", data_root=tmp_path)
    write_csv(tmp_path / "qa.csv", ("prompt", "response"), [(f"{n}？", f"{n}！") for n in range(30)])
    made = {**recipe("qa.csv", steps=3, template="llama3"),
            "model": {"from": str(tmp_path / "base"), "lora": {"rank": 2}}}
    del made["tokenizer"]
    train(made, out=tmp_path / "run", data_root=tmp_path)
    adapted = load(tmp_path / "run")
    end = adapted.tokenizer.control_strings["<|eot_id|>"]
    assert adapted.model.config.vocab_size == adapted.tokenizer.vocab_size == end + 1
    assert end in adapted.ends()
    assert adapted.check() == pytest.approx(0, abs=1e-4)
    embeddings = adapted.model.state_dict()["model.embed_tokens.weight"]
    assert not torch.equal(embeddings[-1], embeddings[-2])  # they were trained


def test_a_template_file_becomes_part_of_the_recipe(folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.jinja"
    own.write_text("{% for m in messages %}<|im_start|>{{ m.role }}:{% generation %}{{ m.content }}<|im_end|>"
                   "{% endgeneration %}{% endfor %}", encoding="utf-8")
    settings = ChatSettings(template=str(own))
    assert settings.template == own.read_text(encoding="utf-8")
    assert ChatSettings(template=settings.template) == settings
    for wrong in ("chatlm", str(tmp_path / "none.jinja")):
        with pytest.raises(ValueError, match=r"jinja|chatml"):
            ChatSettings(template=wrong)


@pytest.mark.parametrize(("name", "content", "expected"), [
    ("a.jsonl", '{"prompt": "q", "response": "a"}', turns("q", "a")),
    ("a.jsonl", '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}',
     turns("q", "a")),
    ("a.json", '[{"instruction": "q", "input": "x", "output": "a"}]', turns("q\nx", "a")),
    ("a.csv", "instruction,input,output,other\nq,x,a,y\n", turns("q\nx", "a")),
    ("a.tsv", "question\tanswer\tsystem\nq\ta\ts\n", [{"role": "system", "content": "s"}, *turns("q", "a")]),
    ("a.csv", "question\nq\n", turns("q")),
    ("a.yml", "conversations:\n- - q\n  - a\n", turns("q", "a")),
])
def test_forms_of_chat_data(name: str, content: str, expected: Any, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    [found] = read_sources([SourceSettings(path=name)], tmp_path, ("messages",), (), ("messages",))
    assert found.rows[0].values["messages"] == expected


def test_columns_of_a_table_are_refused_where_rows_are_conversations(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"columns\.question"):
        read_sources([SourceSettings(path="a.jsonl", columns={"question": "q"})], tmp_path, ("messages",), ())


def test_an_answer_marked_as_bad_is_not_learned_from(tmp_path: Path) -> None:
    """The rows of KTO (Ethayarajh et al. 2024), where half of the answers are those not to give."""
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"messages": turns("q", answer), "label": label}) + "\n"
                                              for answer, label in (("good", True), ("bad", False))))
    [found] = read_sources([SourceSettings(path="a.jsonl")], tmp_path, ("messages",), (), ("messages",))
    assert [row.values["messages"] for row in found.rows] == [turns("q", "good")]
    assert found.counts.quarantined == 1


def test_columns_of_a_table_are_mapped_and_placeholders_filled(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("问,答\n你是谁,我是{{name}}，{{ author }}所造\n", encoding="utf-8")
    columns, fill = {"question": "问", "answer": "答"}, {"name": "小文", "author": "Wen"}
    settings = SourceSettings(path="a.csv", columns=columns, constants={"system": "s"}, fill=fill)
    [found] = read_sources([settings], tmp_path, ("messages",), (), ("messages",))
    assert found.rows[0].values["messages"] == [{"role": "system", "content": "s"},
                                                *turns("你是谁", "我是小文，Wen所造")]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in (
        turns("hi", "ho"), [{"role": "developer", "content": "own"}, *turns("hi", "ho")])), encoding="utf-8")
    settings_ = SourceSettings(path="a.jsonl", constants={"system": "s"})
    [found] = read_sources([settings_], tmp_path, ("messages",), (), ("messages",))
    assert [row.values["messages"][0]["content"] for row in found.rows] == ["s", "own"]
    with pytest.raises(RecipeError, match="nmae"):
        read_sources([settings.model_copy(update={"fill": {**fill, "nmae": "x"}})], tmp_path, ("messages",), ())
    with pytest.raises(DataError, match="no column `messages`"):
        read_sources([SourceSettings(path="a.csv")], tmp_path, ("messages",), ())


def test_validation_is_the_loss_of_the_assistants_part(folder: Path) -> None:
    last = [row for row in read_jsonl(folder / "run" / "metrics.jsonl") if "val_loss" in row][-1]
    model = load(folder / "run")
    chat = model.task("chat")
    assert last["val_loss"] > 0
    built = chat.build([{"messages": turns("天空是什么颜色？", "蓝色。")}], folder, 0, "")
    [batch] = evaluation_batches(built.examples, 512)
    [term] = chat.objective().terms(model.model, batch)
    assert term.sum.item() / chat.objective().counts(batch)["tokens"] < 0.1
