"""The hubs: what is fetched is what was listed, once, and never more than is read; every failure says what to do."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers

from command import Command
from command import wenmo as wenmo
from hub_server import COMMIT, Hub, serve
from small_data import recipe
from wenmo.data.sources import fingerprint, read_sources
from wenmo.errors import DataError, ModelError, StorageError, WenmoError
from wenmo.files import sha256, sha256_file
from wenmo.hub import fetch
from wenmo.hub.repository import Repository, parse_reference
from wenmo.locate import locate
from wenmo.modeldir import open_model, open_tokenizer
from wenmo.stages.library import train
from wenmo.text.intake import SourceSettings, open_source
from wenmo.text.tokenizer_training import TokenizerSettings
from wenmo.text.tokenizer_training import train as train_tokenizer

REVIEWS = "text,label\n" + "".join(f"书{i}很{'好' if i % 2 else '差'}看,{i % 2}\n" for i in range(60))


@pytest.fixture(scope="module")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A tiny BERT as a repository holds it, with files that nobody reads."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer(REVIEWS.splitlines(), TokenizerSettings(type="wordpiece", vocab_size=100))
    tokenizer.save(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=tokenizer.vocab_size, hidden_size=16, num_hidden_layers=1,
                                     num_attention_heads=2, intermediate_size=32, max_position_embeddings=64)
    transformers.BertForMaskedLM(config).save_pretrained(folder)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return files | {"pytorch_model.bin": b"pickle" * 1000, "README.md": b"# card", "run.py": b"import os"}


@pytest.fixture
def hub(model_files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("WENMO_LANG", "en")
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "MODELSCOPE_API_TOKEN", "MODELSCOPE_CACHE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serve() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", server.url)
        server.files["models/org/tiny"] = dict(model_files)
        server.files["datasets/org/books"] = {
            "data/a.csv": REVIEWS.encode(), "data/b.csv.gz": gzip.compress(REVIEWS.replace("书", "文").encode()),
            "data/deep/c.csv": REVIEWS.encode(), "README.md": b"# card"}
        yield server


def says(reference: str, what: str, mend: str, kind: type[WenmoError] = ModelError) -> None:
    with pytest.raises(kind) as caught:
        fetch.data_files(reference) if "datasets" in reference else locate(reference)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert what in lines[0]
    assert mend in lines[2]


# Models -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["hf", "ms"])
def test_a_model_comes_whole_and_nothing_else(hub: Hub, model_files: dict[str, bytes], scheme: str) -> None:
    opened = open_model(f"{scheme}:org/tiny")
    assert opened.tokenizer is not None
    folder = locate(f"{scheme}:org/tiny")
    there = {path.name: path.read_bytes() for path in folder.iterdir()}
    unread = {"pytorch_model.bin", "README.md", "run.py"}
    assert there == {name: content for name, content in model_files.items() if name not in unread}
    assert len(hub.files_asked()) == len(there)  # the second time nothing is fetched


@pytest.mark.parametrize("scheme", ["hf", "ms"])
def test_a_tokenizer_comes_without_weights(hub: Hub, scheme: str) -> None:
    assert open_tokenizer(f"{scheme}:org/tiny").mask_id is not None
    assert not any("safetensors" in path for path in hub.files_asked())


@pytest.mark.parametrize("scheme", ["hf", "ms"])
def test_without_a_network_what_was_fetched_is_found(hub: Hub, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = locate(f"{scheme}:org/tiny")
    hub.down = 503
    assert locate(f"{scheme}:org/tiny") == before
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    number = len(hub.asked)
    assert locate(f"{scheme}:org/tiny") == before
    assert len(hub.asked) == number
    says(f"{scheme}:org/other", "not fetched before", "HF_HUB_OFFLINE")


def test_a_commit_is_asked_for_once(hub: Hub) -> None:
    before = locate(f"hf:org/tiny@{COMMIT}")
    number = len(hub.asked)
    assert locate(f"hf:org/tiny@{COMMIT}") == before
    assert len(hub.asked) == number


@pytest.mark.parametrize("scheme", ["hf", "ms"])
def test_another_content_than_listed_is_thrown_away(hub: Hub, scheme: str) -> None:
    for file in ("config.json", "model.safetensors"):
        hub.faults[file] = "wrong"
        says(f"{scheme}:org/tiny", "another hash", "ENDPOINT")
        del hub.faults[file]
    assert open_model(f"{scheme}:org/tiny").tokenizer is not None


@pytest.mark.parametrize("scheme", ["hf", "ms"])
def test_a_cut_transfer_is_taken_up_again(hub: Hub, model_files: dict[str, bytes], scheme: str) -> None:
    hub.faults["model.safetensors"] = "cut"
    assert (locate(f"{scheme}:org/tiny") / "model.safetensors").read_bytes() == model_files["model.safetensors"]
    assert sum("safetensors" in path for path in hub.files_asked()) == 2


def test_a_transfer_that_stays_cut_goes_on_with_the_next_command(hub: Hub, model_files: dict[str, bytes]) -> None:
    hub.faults["model.safetensors"] = "always cut"
    says("ms:org/tiny", "cut", "run the same command again")
    hub.faults.clear()
    hub.asked.clear()
    assert (locate("ms:org/tiny") / "model.safetensors").read_bytes() == model_files["model.safetensors"]
    half = len(model_files["model.safetensors"]) // 2
    assert [begin for _, path, begin in hub.asked if "safetensors" in path] == [half]


def test_more_than_was_listed_is_not_taken(hub: Hub) -> None:
    hub.faults["config.json"] = "long"
    says("ms:org/tiny", "another hash", "ENDPOINT")


@pytest.mark.parametrize("scheme", ["hf", "ms"])
@pytest.mark.parametrize(("status", "what", "mend"), [(401, "does not let you", "TOKEN"),
                                                      (403, "does not let you", "TOKEN")])
def test_a_gated_model(hub: Hub, scheme: str, status: int, what: str, mend: str) -> None:
    hub.down = status
    says(f"{scheme}:org/tiny", what if scheme == "ms" or status == 403 else "", mend)


@pytest.mark.parametrize("scheme", ["hf", "ms"])
def test_what_is_not_there(hub: Hub, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    says(f"{scheme}:org/none", "no such repository", "org/name")
    hub.down = 502
    says(f"{scheme}:org/tiny", "cannot be reached", "ENDPOINT")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")
    says(f"{scheme}:org/tiny", "cannot be reached", "ENDPOINT")


def test_a_revision_that_is_not_there(hub: Hub) -> None:
    assert locate("hf:org/tiny@v1")
    says("hf:org/tiny@v2", "no v2", "revisions")


def test_an_endpoint_that_is_no_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"{hub.url}/a/b/c")
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", f"{hub.url}/a/b/c")
    says("hf:org/tiny", "no hub", "HF_ENDPOINT")
    says("ms:org/tiny", "no hub", "MODELSCOPE_ENDPOINT")


@pytest.mark.parametrize("scheme", ["hf", "ms"])
def test_pickles_are_refused(hub: Hub, scheme: str) -> None:
    del hub.files["models/org/tiny"]["model.safetensors"]
    says(f"{scheme}:org/tiny", "pickles", "safetensors")
    assert not hub.files_asked()


@pytest.mark.parametrize("scheme", ["hf", "ms"])
def test_a_gguf_is_named(hub: Hub, scheme: str) -> None:
    hub.files["models/org/small"] = {"q4/small.gguf": b"GGUF" * 400, "config.json": b"{}"}
    says(f"{scheme}:org/small", "gguf", f"{scheme}:org/small/q4/small.gguf")
    assert locate(f"{scheme}:org/small/q4/small.gguf").read_bytes() == b"GGUF" * 400
    says(f"{scheme}:org/small/q5.gguf", "no q5.gguf", "files")
    says(f"{scheme}:org/small/config.json", "only a .gguf", "org/small")


@pytest.mark.parametrize("path", ["../evil.json", "/etc/evil.json", "a\\..\\evil.json"])
def test_a_path_out_of_the_folder_is_refused(hub: Hub, path: str) -> None:
    hub.files["models/org/tiny"][path] = b"{}"
    says("ms:org/tiny", "impossible", "do not trust")
    says("hf:org/tiny", "impossible", "do not trust")


def test_a_full_disk(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100}))
    says("ms:org/tiny", "are free", "MODELSCOPE_CACHE", StorageError)
    assert not hub.files_asked()


@pytest.mark.parametrize(("text", "expected"), [
    ("hf:org/name", (Repository("hf", "model", "org/name", None), "")),
    ("hf:gpt2", (Repository("hf", "model", "gpt2", None), "")),
    ("hf:org/na.me@refs/pr/1/x.gguf", (Repository("hf", "model", "org/na.me", "refs/pr/1"), "x.gguf")),
    ("ms:org/name@v1.0", (Repository("ms", "model", "org/name", "v1.0"), "")),
    ("hf://datasets/org/name@a%2Fb/x/*.csv", (Repository("hf", "dataset", "org/name", "a/b"), "x/*.csv"))])
def test_references(text: str, expected: tuple[Repository, str]) -> None:
    assert parse_reference(text) == expected


@pytest.mark.parametrize("text", ["hf:", "hf:/etc", "hf:../x", "ms:name", "hf:org/name@", "hf:a b"])
def test_references_to_nothing(text: str) -> None:
    says(text, "no", "")


# Data sets --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["hf", "ms"])
def test_a_source_on_a_hub_reads_like_a_file(hub: Hub, scheme: str, tmp_path: Path) -> None:
    path = f"{scheme}://datasets/org/books/data/a.csv"
    (tmp_path / "a.csv").write_text(REVIEWS)
    [there] = read_sources([SourceSettings(path=path)], Path("/nowhere"))
    [here] = read_sources([SourceSettings(path="a.csv")], tmp_path)
    assert [row.values for row in there.rows] == [row.values for row in here.rows]
    assert there.sha256 == here.sha256


@pytest.mark.parametrize("scheme", ["hf", "ms"])
def test_globs_and_revisions_of_a_data_set(hub: Hub, scheme: str) -> None:
    base = f"{scheme}://datasets/org/books"
    assert [path.name for path in fetch.data_files(f"{base}@v1/data/*.csv*")] == ["a.csv", "b.csv.gz"]
    assert [path.name for path in fetch.data_files(f"{base}/**/*.csv")] == ["a.csv", "c.csv"]
    assert not any("README" in path for path in hub.files_asked())
    hub.down = 500
    assert len(fetch.data_files(f"{base}@v1/data/*.csv*")) == 2
    hub.down = 0
    says(f"{base}/data/*.tsv", "no data/*.tsv", "files", DataError)
    says(f"{scheme}://datasets/org/none/a.csv", "no such repository", "org/name", DataError)
    says(base, "names no file", "path", DataError)


def test_a_long_listing_comes_in_pages(hub: Hub) -> None:
    hub.files["datasets/org/many"] = {f"{i:04}.txt": f"text {i}".encode() for i in range(200)}
    assert len(fetch.data_files("ms://datasets/org/many/*9.txt")) == 20
    assert len(fetch.data_files("ms://datasets/org/many/01*.txt")) == 100


def test_the_fingerprint_is_that_of_the_content(hub: Hub) -> None:
    path = "hf://datasets/org/books/data/a.csv"
    before = fingerprint(open_source(SourceSettings(path=path), Path()))
    assert before == sha256(sha256_file(fetch.data_files(path)[0]))


# Commands ---------------------------------------------------------------------------------------------


def test_training_from_a_hub_on_a_hub(hub: Hub, tmp_path: Path) -> None:
    base = recipe("classification", steps=2, batch_tokens=256)
    base |= {"model": {"from": "hf:org/tiny"}, "tokenizer": {"from": "model"}}
    source = {"path": "ms://datasets/org/books/data/a.csv"}
    base["data"] = {"train": [source], "max_tokens": 32, "choose": {"carve": 10}}
    train(base, out=tmp_path / "run")
    assert open_model(str(tmp_path / "run")).card["tasks"]


def test_the_command_line(hub: Hub, wenmo: Command) -> None:
    shown = wenmo("show", "hf:org/tiny", "--json")
    assert json.loads(shown.out)["parameters"] > 0
    assert "no such repository" in wenmo("show", "ms:org/none").message[0]
