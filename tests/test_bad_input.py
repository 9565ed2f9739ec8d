"""What users get wrong, and what machines do to them: a message that says what, where and how to mend it; the right
exit code; no traceback; nothing lost."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import small_data
from command import Command, wenmo
from small_data import recipe, write_csv
from wenmo import faults, files
from wenmo.errors import NumericsError
from wenmo.files import sha256_file
from wenmo.stages.library import train
from wenmo.stages.train import running

__all__ = ["wenmo"]  # the fixture

RATED = "data.train.0={columns: {text: review}, path: "
BEST = "train.best={metric: "


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as users have them: data/, recipes, two small models."""
    folder = tmp_path_factory.mktemp("work")
    data = small_data.write(folder / "data", num_reviews=60, num_news=40)
    reviews = small_data.reviews(40)
    write_csv(data / "one-class.csv", ("review", "label"), [(text, "positive") for text, _ in reviews])
    write_csv(data / "unheard.csv", ("review", "label"), [*reviews, ("从未见过的标签", "neutral")])
    write_csv(data / "header-only.csv", ("review", "label"), [])
    (data / "empty.csv").write_bytes(b"")
    (folder / "broken.yaml").write_text("model: {type: bert\n")
    for task in ("classification", "causal_lm", "masked_lm"):
        made = recipe(task, steps=4, batch_tokens=256)
        (folder / f"{task}.yaml").write_text(yaml.safe_dump(made, allow_unicode=True), encoding="utf-8")
    train(recipe("classification", steps=2, batch_tokens=256), out=folder / "classifier", data_root=data)
    train(recipe("causal_lm", steps=2, batch_tokens=256), out=folder / "gpt", data_root=data)
    return folder


@pytest.fixture(autouse=True)
def there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


# The recipe and its data ------------------------------------------------------------------------------

# what is laid over classification.yaml → exit code; what, where and the mend hold these words
RECIPES: dict[str, tuple[list[str], int, str, str, str]] = {
    "unknown key": (["train.stepz=3"], 2, "unknown key `train.stepz`", "classification.yaml", "did you mean `steps`?"),
    "unknown key of a kind": (["model.hiden_size=3"], 2, "unknown key `model.hiden_size`", "classification.yaml",
                              "did you mean `hidden_size`?"),
    "a key that stands elsewhere": (["epochs=3"], 2, "unknown key `epochs`", ".yaml", "did you mean `train.epochs`?"),
    "a key that stands deeper": (["train.lr=3"], 2, "unknown key `train.lr`", ".yaml", "mean `train.optimizer.lr`?"),
    "a misspelt key that stands elsewhere": (["epoch=3"], 2, "unknown key `epoch`", ".yaml", "mean `train.epochs`?"),
    "a misspelt key of a source": (["data.train.0.colums.text=text"], 2, "unknown key `data.train.0.colums`", ".yaml",
                                   "did you mean `columns`?"),
    "a key of a source that stands elsewhere": (["data.weight=2"], 2, "unknown key `data.weight`", ".yaml",
                                                "did you mean `data.train.0.weight`?"),
    "a path alone as a source": (["data.train=[people.txt]"], 2, "(`people.txt`): keys with values are wanted", ".yaml",
                                 "correct it"),
    "a key is missing": (["data.train=[{limit: 3}]"], 2, "the key `data.train.0.path` is missing", "", "correct it"),
    "sizes that do not fit": (["model={type: llama, hidden_size: 30, num_attention_heads: 4}"], 2,
                              "`model`: hidden_size (30) must be a multiple of num_attention_heads (4)", "",
                              "correct it"),
    "unknown architecture": (["model.type=berd"], 2, "`model`: there is no kind `berd`", "", "did you mean `bert`?"),
    "unknown task": (["task.type=translation"], 2, "no kind `translation`", "", "one of: classification, joint"),
    "unknown key of an adapter": (["model={from: gpt, lora: {rnk: 4}}"], 2, "unknown key `model.lora.rnk`", ".yaml",
                                  "did you mean `rank`?"),
    "unknown key beside a tokenizer": (["tokenizer.trian={}"], 2, "unknown key `tokenizer.trian`", ".yaml", "`train`?"),
    "wrong type": (["train.steps=many"], 2, "`train.steps` (`many`)", ".yaml", "correct it in the file"),
    "several faults": (["seed=x", "train.stepz=3", "data.max_token=4"], 2,
                       "`seed` (`x`): a whole number is wanted", ".yaml", "`max_tokens`? did you mean `steps`?"),
    "not an override": (["train.steps"], 2, "not an override: train.steps", "", "write key.key=value"),
    "no such item": (["data.train.3.path=x"], 2, "there is no item `3`", "data.train.3.path=x", "items count from 0"),
    "missing file": ([RATED + "revews-train.csv}"], 1, "no such file", "data/revews-train.csv",
                     "did you mean `reviews-train.csv`?"),
    "missing column": (["data.train.0.columns.text=reviw"], 1, "there is no column `reviw`",
                       "data/reviews-train.csv; columns found: review, label", "did you mean `review`?"),
    "empty file": ([RATED + "empty.csv}"], 1, "not a single row", "data/empty.csv", "fetch it again"),
    "a header alone": ([RATED + "header-only.csv}"], 1, "not a single row", "data/header-only.csv", "fetch it again"),
    "a label that is nowhere": (["task.labels=[positive, negative, neutral]"], 2, "no training row has the label neut",
                                "task.labels", "the labels found: negative, positive"),
    "a label that is not listed": ([RATED + "unheard.csv}", "task.labels=[positive, negative]", "data.choose.carve=2"],
                                   2, "training rows have the label neutral, which is not listed", "task.labels",
                                   "the labels found: negative, neutral, positive"),
    "a label twice": (["task.labels=[a, a]"], 2, "`task.labels`: a stands twice", ".yaml", "correct it"),
    "one class": ([RATED + "one-class.csv}"], 1, "all training rows have the label positive", "label", "two classes"),
    "weights of other labels": (["task.class_weights={positive: 2, negativ: 1}"], 2, "differ in negativ, negative",
                                "task.class_weights", "one weight for each of: negative, positive"),
    "too long a text": (["data.max_tokens=9", "data.too_long=refuse"], 1, "tokens, 7 fit", "，", "shorten the text"),
    "no room": (["data.max_tokens=2"], 2, "2 tokens leave no room for a text", "data.max_tokens", "at least 3"),
    "beyond the positions": (["data.max_tokens=80"], 2, "data.max_tokens is 80, the model's positions end at 64",
                             ".yaml", "correct it"),
    "too small a vocabulary": (["model.vocab_size=50"], 1, "tokens, the model 50", "model.vocab_size", "the tokenizer"),
    "a tokenizer for a trained model": (["model={from: gpt}"], 2, "a trained model keeps its tokenizer", ".yaml", ""),
    "a model without this head": (["model={from: gpt}", "tokenizer={from: nowhere}"], 2, "keeps its tokenizer", "", ""),
    "no model": (["model={from: nowhere}", "tokenizer={from: model}"], 1, "no such model", "nowhere", "give a folder"),
    "no model folder": (["model={from: data}", "tokenizer={from: model}"], 1, "not a model folder", "data", "config"),
    "no tokenizer": (["tokenizer={from: nowhere}"], 1, "no such model", "nowhere", "give a folder"),
    "nothing to choose by": (["data.choose.carve=0", BEST + "loss}"], 2, "train.best needs rows to choose by", "", ""),
    "too few rows to carve": (["data.choose.carve=60"], 1, "cannot hold out 60 of 60 rows", "carve: 60", "fewer rows"),
    "chosen by what was learned": (["data.choose={files: [{path: reviews-train.csv, columns: {text: review}}]}"], 1,
                                   "no training row is left", "data.train", "other rows"),
    "a metric that is not measured": ([BEST + "acuracy}"], 2, "there is no metric `acuracy` here", "train.best.metric",
                                      "choose one of: accuracy, ece, loss, macro_f1"),
    "a device that is nowhere": (["train.device=gpu"], 2, "`train.device` (`gpu`): wanted is auto, cpu, cuda, or",
                                 ".yaml", "correct it"),
    "a warm-up beyond the end": (["train.schedule.warmup=99"], 2, "the warm-up takes 99 steps, the whole run has 4",
                                 "train.schedule.warmup", "6%"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_wrong_recipe(wenmo: Command, tmp_path: Path, name: str) -> None:
    """And once it is mended, the same command line works in the same folder."""
    overrides, code, what, where, mend = RECIPES[name]
    command = ("train", "classification.yaml", "--data-root", "data", "--out", tmp_path / "run")
    result = wenmo(*command, *overrides)
    assert result.code == code, result.err
    if name == "not an override":
        assert result.err == "not an override: train.steps\nmend:  write key.key=value\n"
    else:
        for said, expected in zip(result.message, (what, where, mend), strict=True):
            assert expected in said
    if name == "several faults":
        assert "unknown key `train.stepz`" in result.err
        assert "unknown key `data.max_token`" in result.err
    if name in ("a metric that is not measured", "a label that is nowhere", "one class"):
        assert wenmo(*command).code == 0


def test_no_user_is_shown_a_pattern() -> None:
    """Each that a setting or a request must match has words of its own."""
    sources = [path.read_text(encoding="utf-8") for path in Path(files.__file__).parent.rglob("*.py")]
    assert {name for source in sources for name in re.findall(r"\bpattern=([^,)]+)", source)} == {"DEVICE", "NAME"}
    for pattern in (faults.DEVICE, faults.NAME):
        assert "^" not in faults.in_words({"type": "string_pattern_mismatch", "ctx": {"pattern": pattern}})


def test_a_head_that_the_model_has_not(wenmo: Command, tmp_path: Path) -> None:
    result = wenmo("train", "masked_lm.yaml", "--data-root", "data", "--out", tmp_path / "run", "model={from: gpt}",
                   "tokenizer={from: model}")
    assert result.code == 2
    assert "needs a tokenizer with a mask token" in result.message[0]


@pytest.mark.parametrize(("file", "what"), [
    ("none.yaml", "no such recipe"), ("data", "cannot read the recipe"), ("broken.yaml", "not valid YAML")])
def test_no_recipe(wenmo: Command, tmp_path: Path, file: str, what: str) -> None:
    result = wenmo("train", file, "--out", tmp_path / "run")
    assert result.code == 2
    assert what in result.message[0]
    assert file in result.message[1]
    assert not (tmp_path / "run").exists()


# The command line -------------------------------------------------------------------------------------

TEST = "data/reviews-train.csv"
COMMANDS: dict[str, tuple[list[str], int, str, str, str]] = {
    "no such command": (["tran"], 2, "No such command 'tran'", "wenmo", "wenmo --help"),
    "no such option": (["show", "gpt", "--nope"], 2, "No such option: --nope", "wenmo show", "wenmo show --help"),
    "a missing argument": (["evaluate", "gpt"], 2, "Missing argument", "wenmo evaluate", "wenmo evaluate --help"),
    "no such model": (["show", "nowhere"], 1, "no such model", "nowhere", "give a folder, a Run"),
    "not a model": (["show", "data"], 1, "not a model folder", "data", "config.json and model.safetensors"),
    "not a kind of model": (["show", TEST], 1, "a model file of kind `.csv`", TEST, "a folder with config.json"),
    "no such data": (["evaluate", "classifier", "none.csv"], 1, "no such file", "none.csv", "check the path"),
    "no such task": (["evaluate", "classifier", TEST, "--task", "tagging"], 1, "no task `tagging`", "classifier",
                     "its tasks: classification"),
    "not columns": (["evaluate", "classifier", TEST, "--columns", "text"], 2, "no list of standard=yours",
                    "--columns text", "text=review"),
    "a wrong column": (["evaluate", "classifier", TEST, "--columns", "text=revew"], 1, "no column `revew`",
                       "columns found: review, label", "did you mean `review`?"),
    "a column nobody needs": (["evaluate", "classifier", TEST, "--columns", "tixt=review"], 2, "uses a column `tixt`",
                              TEST, "did you mean `text`?"),
    "a label never seen": (["evaluate", "classifier", "data/unheard.csv"], 1, "the label `neutral` was never seen",
                           "data/unheard.csv:42, label", "known labels: negative, positive"),
    "a label never seen, two models": (["evaluate", "classifier", "classifier", "data/unheard.csv"], 1,
                                       "the label `neutral` was never seen", "data/unheard.csv:42, label", "known"),
    "an empty query": (["embed", "classifier", TEST, "--nearest", " "], 2, "an empty query", "--nearest", "TEXT"),
    "a number format": (["predict", "classifier", TEST, "--dtype", "fp8"], 2, "no such number format", "fp8", "bf16"),
    "no threads": (["predict", "classifier", TEST, "--threads", "0"], 2, "--threads", "wenmo predict", "--help"),
    "a classifier does not write": (["generate", "classifier", "-p", "新"], 1, "cannot generate", "classifier",
                                    "its heads: classification"),
    "a temperature": (["generate", "gpt", "-p", "新", "--temperature", "-1"], 2, "`temperature` (`-1.0`)",
                      "the command line", ""),
    "a kind of tokenizer": (["tokenizer", "train", "data/people.txt", "--out", "tok", "--type", "sp"], 2,
                            "`type` (`sp`)", "the command line", ""),
    "a vocabulary": (["tokenizer", "train", "data/people.txt", "--out", "tok", "--vocab-size", "9"], 2, "too small",
                     "the command line", ""),
    "out is a file": (["train", "classification.yaml", "--data-root", "data", "--out", TEST], 2, "a file, not a folder",
                      TEST, "new or an empty folder"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_wrong_command_line(wenmo: Command, name: str) -> None:
    arguments, code, what, where, mend = COMMANDS[name]
    result = wenmo(*arguments)
    assert result.code == code, result.err
    for said, expected in zip(result.message, (what, where, mend), strict=True):
        assert expected in said


@pytest.mark.parametrize(("line", "what"), [
    (b'{"text": oops}', "not valid JSON"), (b'{"txt": "good"}', "no text `text`"),
    (b'{"text": ["a"]}', "no text `text`"), ("很好".encode("gbk"), "not UTF-8")])
def test_a_wrong_line_on_stdin(wenmo: Command, line: bytes, what: str) -> None:
    """It costs itself; alone, it is all there is to say."""
    result = wenmo("predict", "classifier", stdin="很好\n\n".encode() + line + b"\n")
    assert result.code == 0
    answer, error = (json.loads(each) for each in result.out.splitlines())
    assert "label" in answer
    assert what in error["error"]
    assert "stdin, line 3" in error["error"]
    alone = wenmo("predict", "classifier", stdin=line)
    assert alone.code == 1
    assert what in alone.err.splitlines()[1]


def test_lines_of_stdin_are_read_as_told(wenmo: Command) -> None:
    """`--columns` and `--encoding` hold for stdin too; what they cannot mean there is refused."""
    plain = wenmo("predict", "classifier", stdin="很好\n".encode()).out
    assert wenmo("predict", "classifier", "--encoding", "gbk", stdin="很好\n".encode("gbk")).out == plain
    line = json.dumps({"review": "很好"}).encode()
    assert wenmo("predict", "classifier", "--columns", "text=review", stdin=line).out == plain
    for option, value, what in (("--columns", "txt=review", "nothing uses a column `txt`"),
                                ("--columns", "text=0", "no numbered columns"),
                                ("--encoding", "utf-16", "UTF-16 does not allow")):
        result = wenmo("predict", "classifier", option, value, stdin=line)
        assert result.code == 2
        assert what in result.message[0]


def test_in_chinese(wenmo: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WENMO_LANG", "zh")
    command = ("train", "classification.yaml", "--data-root", "data", "--out", tmp_path / "run")
    assert wenmo(*command, "train.stepz=3").message == [
        "未知的键 `train.stepz`", "位置：classification.yaml", "办法：是否想写 `steps`？"]
    assert wenmo("evaluate", "classifier", "data/unheard.csv").message == [
        "标签 `neutral` 在训练中从未出现", "位置：data/unheard.csv:42, label", "办法：已知标签：negative, positive"]
    assert wenmo("show", "nowhere").message[0] == "找不到模型"


# Damage -----------------------------------------------------------------------------------------------


def copied(tmp_path: Path, model: str) -> Path:
    return Path(shutil.copytree(Path(model, "model"), tmp_path / "copy"))


def test_damaged_weights(wenmo: Command, tmp_path: Path) -> None:
    weights = copied(tmp_path, "classifier") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    result = wenmo("evaluate", tmp_path / "copy", TEST)
    assert result.code == 1
    assert "damaged weights" in result.message[0]
    assert result.message[1:] == [f"where: {weights}", "mend:  copy or download the file again"]


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "wenmo.json"])
def test_a_damaged_file_of_a_model(wenmo: Command, tmp_path: Path, name: str) -> None:
    file = copied(tmp_path, "classifier") / name
    file.write_bytes(file.read_bytes()[:-9])
    result = wenmo("evaluate", tmp_path / "copy", TEST)
    assert result.code == 1
    assert str(file) in result.message[1]


def test_the_tokenizer_of_another_model(wenmo: Command, tmp_path: Path) -> None:
    shutil.copy(Path("gpt/model/tokenizer.json"), copied(tmp_path, "classifier"))
    result = wenmo("evaluate", tmp_path / "copy", TEST)
    assert result.code == 1
    assert "tokens, the model" in result.message[0]
    assert "use the tokenizer that the model was trained with" in result.message[2]


def test_a_damaged_checkpoint(wenmo: Command, tmp_path: Path) -> None:
    command = ("train", "classification.yaml", "--data-root", "data", "--out", tmp_path / "run", "train.save_every=2")
    assert wenmo(*command).code == 0
    weights = sha256_file(tmp_path / "run" / "model" / "model.safetensors")
    shutil.rmtree(tmp_path / "run" / "model")
    newest = tmp_path / "run" / "checkpoints" / "step-4"
    content = bytearray((newest / "model.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (newest / "model.safetensors").write_bytes(content)
    result = wenmo(*command)
    assert result.code == 1
    assert "the checkpoint is damaged: model.safetensors was changed" in result.message[0]
    assert str(newest) in result.message[1]
    assert f"delete {newest}; the same command then goes on from" in result.message[2]
    shutil.rmtree(newest)
    assert wenmo(*command).code == 0
    assert sha256_file(tmp_path / "run" / "model" / "model.safetensors") == weights


def test_a_faulty_recipe_leaves_nothing(wenmo: Command, tmp_path: Path) -> None:
    command = ("train", "classification.yaml", "--data-root", "data", "--out", tmp_path / "run")
    assert wenmo(*command, "task.labels=[positive, bad]").code == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("fault", "code"), [(NumericsError("the loss is NaN"), 1), (KeyboardInterrupt(), 130)])
def test_a_run_without_weights_does_not_stand_in_the_way(
    wenmo: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException, code: int
) -> None:
    """What was begun and came to no checkpoint gives way to the recipe put right; what has one does not."""
    command = ("train", "classification.yaml", "--data-root", "data", "--out", tmp_path / "run")

    def failing(*_: Any, **__: Any) -> None:
        raise fault

    with monkeypatch.context() as patched:
        patched.setattr(running, "steps", failing)
        assert wenmo(*command, "tokenizer.train.vocab_size=150").code == code
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert "run.json" in left
    assert not left & {".lock", ".lock.pid"}
    assert wenmo(*command).code == 0
    assert "vocab_size: 400" in (tmp_path / "run" / "recipe.yaml").read_text()
    card = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert card["vocab_size"] > 150  # nor is the tokenizer of before still there
    assert "seed: 0 → 5" in wenmo(*command, "seed=5").err


# Disks ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(folder: Path) -> str:
    """The weights of a run that nothing disturbed."""
    made = recipe("classification", steps=4, batch_tokens=256)
    trained = train(made, out=folder / "whole", data_root=folder / "data")
    return sha256_file(trained.folder / "model" / "model.safetensors")


def test_a_disk_that_is_full_at_the_third_checkpoint(
    wenmo: Command, tmp_path: Path, whole: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("train", "classification.yaml", "--data-root", "data", "--out", tmp_path / "run")
    with monkeypatch.context() as patched:
        patched.setattr(files.os, "fsync", lambda handle: _fail_at(handle, "step-3"))
        result = wenmo(*command)
    assert result.code == 1
    lines = result.err.splitlines()[-3:]
    assert lines[0] == "cannot write: No space left on device"
    assert lines[1].startswith(f"where: {tmp_path}/run/checkpoints/.step-3.")
    assert lines[2] == "mend:  free some disk space, then run the same command again"
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["step-1", "step-2"]
    assert wenmo(*command).code == 0
    assert sha256_file(tmp_path / "run" / "model" / "model.safetensors") == whole


def _fail_at(handle: int, name: str) -> None:
    """fsync, as it is on a disk that is full when a file in the folder `name` is written out."""
    if f".{name}." in os.readlink(f"/proc/self/fd/{handle}"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_limit_on_the_size_of_files(tmp_path: Path, whole: str, wenmo: Command) -> None:
    """A process of its own, with the real limit: the weights are the first file above it."""
    command = ["train", "classification.yaml", "--data-root", "data", "--out", str(tmp_path / "run")]
    code = ("import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (65536, resource.RLIM_INFINITY))\n"
            f"sys.argv = ['wenmo', *{command!r}]\nimport wenmo.cli; wenmo.cli.main()")
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                           env={**os.environ, "WENMO_LANG": "en", "OMP_NUM_THREADS": "1"})
    assert ended.returncode == 1, ended.stderr
    lines = ended.stderr.splitlines()
    assert lines[-3] == "cannot write: File too large"
    assert lines[-2].startswith(f"where: {tmp_path}/run/checkpoints/")
    assert lines[-1] == "mend:  raise the limit on file sizes (ulimit -f)"
    assert "Traceback" not in ended.stderr
    assert wenmo(*command).code == 0
    assert sha256_file(tmp_path / "run" / "model" / "model.safetensors") == whole


@pytest.mark.parametrize("out", ["/sys/wenmo", "/proc/wenmo"])
def test_a_folder_that_nobody_may_write_to(wenmo: Command, out: str) -> None:
    if not Path(out).parent.is_dir():
        pytest.skip(f"this system has no {Path(out).parent}")
    for command in (("train", "classification.yaml", "--data-root", "data", "--out", out),
                    ("tokenizer", "train", "data/people.txt", "--out", out, "--vocab-size", "300"),
                    ("evaluate", "classifier", TEST, "--predictions", f"{out}/answers.jsonl")):
        result = wenmo(*command)
        assert result.code == 1
        assert result.message[0].startswith("cannot ")
        assert out in result.message[1]


def test_a_model_that_lies_where_one_cannot_write_is_measured_all_the_same(
    wenmo: Command, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = open

    def read_only(file: Any, mode: str = "r", *more: Any, **named: Any) -> Any:
        if str(file).endswith("evaluations.jsonl") and "a" in mode:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(file, mode, *more, **named)

    with monkeypatch.context() as patched:
        patched.setattr("builtins.open", read_only)
        result = wenmo("evaluate", "gpt", "data/people.txt", "--json")
    assert result.code == 0
    assert json.loads(result.out)["n"] == 40
    assert "not written down: cannot write: Read-only file system" in caplog.text
    assert not Path("gpt/evaluations.jsonl").exists()


@pytest.mark.parametrize(("arguments", "what"), [
    (["tran"], "没有命令 tran。"), (["show", "gpt", "--nope"], "没有选项 --nope"), (["evaluate", "gpt"], "缺少参数"),
    (["predict", "classifier", TEST, "more", "yet"], "多出的参数：more yet"),
    (["predict", "classifier", TEST, "--threads", "0"], "--threads 的值不合适：不得小于 1"),
    (["train", "classification.yaml", "--out", "x", "seed=x", "train.steps=0"],
     "`seed` (`x`): 应为整数; `train.steps` (`0`): 须大于 0"),
])
def test_typing_mistakes_are_told_in_chinese(wenmo: Command, monkeypatch: pytest.MonkeyPatch, arguments: list[str],
                                             what: str) -> None:
    monkeypatch.setenv("WENMO_LANG", "zh")
    result = wenmo(*arguments)
    assert result.code == 2
    assert what in result.err


def test_no_traceback_from_the_real_command() -> None:
    ended = subprocess.run([sys.executable, "-m", "wenmo", "evaluate", "classifier", "data/unheard.csv"],
                           capture_output=True, text=True, env={**os.environ, "WENMO_LANG": "en"})
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.splitlines()[-3:] == [
        "the label `neutral` was never seen in training", "where: data/unheard.csv:42, label",
        "mend:  known labels: negative, positive"]
    assert "Traceback" not in ended.stderr
