"""A model that knows nothing is held to a shape: what it finishes is valid, whatever it draws, whoever is beside it."""

from __future__ import annotations

import copy
import functools
import json
import re
import time

import jsonschema
import pytest
import tokenizers
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wenmo import device
from wenmo.engine import Engine, EngineSettings, Request
from wenmo.engine.shapes import Shape, choice, grammar, json_object, json_schema, regex
from wenmo.errors import DataError
from wenmo.generate import Sampling
from wenmo.models import architecture, create, read_config
from wenmo.text import tokenizer_training
from wenmo.text.tokenizer import Tokenizer
from wenmo.text.tokenizer_training import TokenizerSettings

TEXT = ['emoji 🙂, 汉字 and letters {"name": "张三", "age": 30, "list": [1, 2, 3], "ok": true, "x": null}'] * 20


@functools.cache
def trained(kind: str, control: tuple[str, ...] = ()) -> Tokenizer:
    if kind == "sentencepiece":
        return sentencepiece()
    return tokenizer_training.train(TEXT, TokenizerSettings(type=kind, vocab_size=340, control_tokens=control))


def sentencepiece() -> Tokenizer:
    """As Llama 2 and Mistral have it: words begin with ▁, what is unknown is spelt in bytes, the first space is cut."""
    words = ["yes", "no", "name", "ok", "true", *'{}":,[]0123456789abcdefghijklmnopqrstuvwxyz']
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁▁", *words,
              *(f"▁{word}" for word in words), '":', '{"']
    made = tokenizers.Tokenizer(tokenizers.models.BPE(
        {piece: id for id, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True))
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.normalizer = tokenizers.normalizers.Sequence([
        tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")])
    decoders = tokenizers.decoders
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                      decoders.Strip(" ", 1, 0)])
    return Tokenizer(made.to_str(), {"eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"})


@functools.cache
def made_model(tokenizer: Tokenizer):
    size = tokenizer.vocab_size + 7  # a vocabulary is often padded
    data = {"model_type": "llama", "vocab_size": size, "hidden_size": 32, "num_hidden_layers": 1,
            "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 600}
    config, _ = read_config(architecture("llama", "llama").config_class, data, "llama")
    made = create(config, {"causal_lm": 0}, device.torch_rng("test", "grammar")).eval()
    for parameter in made.parameters():
        parameter.data.mul_(3 if parameter.ndim > 1 else 1)
    return made


def engine(model, tokenizer: Tokenizer, **given) -> Engine:
    ends = frozenset({tokenizer.eos_id}) if tokenizer.eos_id is not None else frozenset()
    return Engine(copy.deepcopy(model), tokenizer, EngineSettings(**given), ends=ends)


def continued(model, tokenizer, shape: Shape | None, *, number: int = 1, temperature: float = 1.0,
              max_new_tokens: int = 120, shown: frozenset[int] = frozenset()):
    busy = engine(model, tokenizer)
    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, seed=7)
    return busy.generate([Request((5, 9), sampling, sample=sample, shown=shown,
                                  constraint=None if shape is None else busy.constraint(shape))
                          for sample in range(number)])


# Schemas ----------------------------------------------------------------------------------------------

NAMES = st.text(st.sampled_from("ab 名\"\\/é🙂"), min_size=1, max_size=4)
VALUES = st.one_of(st.none(), st.booleans(), st.integers(-99, 99), NAMES)
LEAVES = st.one_of(
    st.just({"type": "null"}), st.just({"type": "boolean"}),
    st.builds(lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more},
              st.integers(-1000, 1000), st.integers(0, 300)),
    st.builds(lambda low, more: {"type": "number", "minimum": low, "exclusiveMaximum": low + more},
              st.integers(-9, 9), st.integers(1, 30)),
    st.builds(lambda low, more: {"type": "string", "minLength": low, "maxLength": low + more},
              st.integers(0, 3), st.integers(0, 3)),
    st.sampled_from([{"type": "string", "pattern": "^[a-c]{2,4}$"}, {"type": "string", "format": "date"},
                     {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 700},
                     {"type": ["boolean", "null"]}]),
    st.lists(VALUES, min_size=1, max_size=3).map(lambda values: {"enum": values}),
    VALUES.map(lambda value: {"const": value}))


def larger(inside):
    objects = st.builds(
        lambda properties, others, required: {
            "type": "object", "properties": properties, "additionalProperties": others,
            "required": [name for name in properties if required or name < "b"]},
        st.dictionaries(NAMES, inside, max_size=3), st.just(False), st.booleans())
    lists = st.builds(
        lambda items, low, more: {"type": "array", "items": items, "minItems": low, "maxItems": low + more},
        inside, st.integers(0, 2), st.integers(0, 2))
    either = st.lists(inside, min_size=1, max_size=2).map(lambda some: {"anyOf": some})
    defined = inside.map(lambda schema: schema if "$defs" in json.dumps(schema) else {
        "$defs": {"it": schema}, "type": "array", "maxItems": 2, "items": {"$ref": "#/$defs/it"}})
    return st.one_of(objects, lists, either, defined)


@given(st.recursive(LEAVES, larger, max_leaves=5), st.sampled_from(["bpe", "unigram", "sentencepiece"]))
@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
def test_what_is_finished_is_valid(schema, kind) -> None:
    tokenizer = trained(kind)
    if '"$defs"' in json.dumps(schema) and "$defs" not in schema:
        return  # a reference from the root to what stands deeper
    for done in continued(made_model(tokenizer), tokenizer, json_schema(schema), number=2):
        if done.reason == "stop":
            jsonschema.Draft202012Validator(schema).validate(json.loads(done.text))
            assert not tokenizer.control_ids & set(done.ids)


PERSON = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 5}, "age": {
    "type": "integer", "minimum": 0, "maximum": 120}, "tags": {"type": "array", "maxItems": 2, "items": {
        "enum": ["一", "two"]}}}, "required": ["name", "age", "tags"], "additionalProperties": False}


@pytest.mark.parametrize("kind", ["bpe", "unigram", "sentencepiece"])
def test_each_kind_of_shape(kind) -> None:
    tokenizer = trained(kind)
    model = made_model(tokenizer)
    people = continued(model, tokenizer, json_schema(PERSON), number=30)
    assert sum(done.reason == "stop" for done in people) > 20
    for done in people:
        if done.reason == "stop":
            jsonschema.validate(json.loads(done.text), PERSON)
    words = {done.text for done in continued(model, tokenizer, choice(["yes", "no", "也许", 'a "b" \\']), number=40)}
    assert words == {"yes", "no", "也许", 'a "b" \\'}
    for done in continued(model, tokenizer, regex(r"[a-c]{2,4} ?[0-9]{2}元"), number=20):
        assert re.fullmatch(r"[a-c]{2,4} ?[0-9]{2}元", done.text)
        assert done.reason == "stop"
    for done in continued(model, tokenizer, regex(" [ab]"), number=6):  # where a decoder cuts the first space too
        assert done.text in (" a", " b")
    for done in continued(model, tokenizer, grammar('start: "a" part{1,3}\npart: "b" | "c"'), number=6):
        assert re.fullmatch("a[bc]{1,3}", done.text)
    assert all(done.text[0] == "{" for done in continued(model, tokenizer, json_object(), number=5))


def test_without_a_shape_it_fails() -> None:
    tokenizer = trained("bpe")
    for done in continued(made_model(tokenizer), tokenizer, None, number=20):
        with pytest.raises(ValueError, match=r"Expecting|Extra"):
            json.loads(done.text or "?")


def test_an_end_comes_only_where_the_text_is_complete() -> None:
    """And it may come there: the pattern allows one to nine letters, and not all have nine."""
    tokenizer = trained("bpe")
    lengths = {len(done.text) for done in continued(made_model(tokenizer), tokenizer, regex("a{1,9}"), number=60,
                                                    temperature=5.0)}
    assert 1 <= min(lengths) < 5 < max(lengths) <= 9
    cut = continued(made_model(tokenizer), tokenizer, regex("a{50}"), max_new_tokens=5)
    assert cut[0].reason == "length"


def test_nobody_changes_what_another_gets() -> None:
    """Greedy, held and not held, in one engine that runs out of memory, and each alone."""
    tokenizer = trained("bpe")
    model, sampling = made_model(tokenizer), Sampling(max_new_tokens=100)
    shapes = [None, json_schema(PERSON), regex("[a-z ]{90,99}"), choice(["yes", "no"]), json_object()]
    asked = [((10 + number,) * (5 + 3 * number), shapes[number % 5]) for number in range(15)]
    for format in ("fp32", "int8"):
        solo = engine(model, tokenizer, format=format)
        alone = [solo.generate([Request(ids, sampling, constraint=shape and solo.constraint(shape))])[0]
                 for ids, shape in asked]
        busy = engine(model, tokenizer, format=format, cache_tokens=384)
        together = busy.generate([Request(ids, sampling, constraint=shape and busy.constraint(shape))
                                  for ids, shape in asked])
        assert together == alone
        assert busy.num_preempted > 0


def test_a_seed_draws_the_same_again() -> None:
    tokenizer = trained("bpe")
    first, second = (continued(made_model(tokenizer), tokenizer, json_schema(PERSON), number=4) for _ in range(2))
    assert first == second
    assert len({done.text for done in first}) > 1


# What strangers send ----------------------------------------------------------------------------------


def nested(depth: int) -> dict:
    schema: dict = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


REFUSED = {
    "deep": lambda: json_schema(nested(5000)),
    "large": lambda: json_schema({"enum": [f"value {number}" for number in range(10_000)]}),
    "nothing fits": lambda: json_schema({"type": "integer", "minimum": 5, "maximum": 3}),
    "false": lambda: json_schema(False),
    "no end": lambda: json_schema({"$ref": "#"}),
    "a file elsewhere": lambda: json_schema({"$ref": "http://127.0.0.1:9/schema.json"}),
    "not supported": lambda: json_schema({"type": "array", "uniqueItems": True}),
    "no such type": lambda: json_schema({"type": "text"}),
    "no JSON": lambda: json_schema({"const": {1, 2}}),
    "no number": lambda: json_schema({"const": float("nan")}),
    "no schema": lambda: json_schema([]),
    "repeats": lambda: regex("(a{1000}){1000}"),
    "repeats in a schema": lambda: json_schema({"properties": {"x": {"pattern": "^((ab){99}){999}$"}}}),
    "look-around": lambda: regex("(?=a)b"),
    "no pattern": lambda: regex("("),
    "no texts": lambda: choice([]),
    "one text": lambda: choice("abc"),
    "product": lambda: json_schema({"allOf": [{"anyOf": [{"properties": {f"p{one}{two}": {"type": "string"}}} for two in
                                                          range(8)]} for one in range(8)]}),
    "no grammar": lambda: grammar("start: nowhere"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_held_to_is_refused_soon(name) -> None:
    tokenizer = trained("bpe")
    busy = engine(made_model(tokenizer), tokenizer)
    began = time.perf_counter()
    with pytest.raises(DataError):
        busy.constraint(REFUSED[name]())
    assert time.perf_counter() - began < 2


@pytest.mark.parametrize(("pattern", "why"), [("(", "unclosed group"), ("(?=a)b", "look-around"), ("[z-a]", "class")])
def test_a_bad_pattern_is_told_in_three_lines(pattern: str, why: str) -> None:
    tokenizer = trained("bpe")
    with pytest.raises(DataError, match=why) as caught:
        engine(made_model(tokenizer), tokenizer).constraint(regex(pattern))
    assert len(str(caught.value).splitlines()) == 3


def test_one_that_becomes_too_costly_ends_itself_and_nobody_else() -> None:
    tokenizer = trained("bpe")
    busy = engine(made_model(tokenizer), tokenizer)
    sampling = Sampling(max_new_tokens=300, temperature=1.0)
    costly = busy.submit(Request((5,), sampling, constraint=busy.constraint(
        regex("(.*a.{18}b)+"))))
    longer = Sampling(max_new_tokens=30, min_new_tokens=3)
    other = busy.submit(Request((5,), longer, constraint=busy.constraint(json_object())))
    twice = Sampling(max_new_tokens=30, no_repeat_ngram_size=1)
    stuck = busy.submit(Request((5,), twice, constraint=busy.constraint(regex("(a|b|c){9}"))))
    while not all(handle.done.is_set() for handle in (costly, stuck, other)):
        busy.step()
    with pytest.raises(DataError, match=r"may come next|没有可以接着"):
        stuck.result()
    assert other.result().text[0] == "{"
    ended = list(costly)[-1]
    assert ended.outcome in ("error", "length")
    assert busy.slots.used_tokens == 0


def test_a_shape_is_compiled_once() -> None:
    tokenizer = trained("bpe")
    busy = engine(made_model(tokenizer), tokenizer)
    shape = json_schema({"type": "object", "properties": {f"key {n}": {"type": "string"} for n in range(1000)}})
    times = []
    for _ in range(3):
        began = time.perf_counter()
        busy.constraint(shape)
        times.append(time.perf_counter() - began)
    assert min(times[1:]) < times[0] / 3
    for number in range(100):
        busy.constraint(regex(f"a{{{number + 1}}}"))
    assert len(busy._grammars._compiled) == 64


def test_bytes_of_ids_join_to_the_text() -> None:
    for kind in ("bpe", "unigram", "sentencepiece"):
        tokenizer = trained(kind)
        later, first = tokenizer.added_bytes()
        generator = torch.Generator().manual_seed(1)
        usable = [id for id, piece in enumerate(later) if piece and first[id]]
        assert len(usable) > 0.9 * tokenizer.vocab_size
        whole = [id for id in usable if piece_is_text(later[id])]
        for _ in range(200):
            ids = [whole[n] for n in torch.randint(len(whole), (5,), generator=generator)]
            expected = first[ids[0]] + b"".join(later[id] for id in ids[1:])
            stream = tokenizer.stream()
            assert "".join(map(stream.push, ids)) + stream.finish() == expected.decode() == tokenizer.decode(ids)


def piece_is_text(piece: bytes) -> bool:
    try:
        return bool(piece.decode())
    except UnicodeDecodeError:
        return False
