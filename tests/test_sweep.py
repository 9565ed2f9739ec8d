"""`wenmo train --sweep`: each combination a Run; faults come first, failures do not stop it, kills lose nothing."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

import small_data
from command import Command, wenmo
from small_data import recipe
from wenmo.cli import main
from wenmo.errors import RecipeError
from wenmo.files import sha256_file
from wenmo.recipe import Recipe
from wenmo.stages.folds import carry_out
from wenmo.stages.grid import Combination, combinations, read_axes
from wenmo.stages.library import train
from wenmo.stages.swept import FAILED, FINISHED, WAITING, Swept, SweptRun
from wenmo.stages.train import Trained
from wenmo.training.run import Run

__all__ = ["wenmo"]  # the fixture


@pytest.fixture(autouse=True)
def english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WENMO_LANG", "en")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/ and r.yaml."""
    folder = tmp_path_factory.mktemp("sweep")
    small_data.write(folder / "data", num_reviews=60)
    made = recipe("classification", steps=4, save_every=2, evaluate_every=2, log_every=1)
    made["model"]["hidden_size"] = 16
    made["data"]["choose"] = {"carve": 20}
    (folder / "r.yaml").write_text(yaml.safe_dump(made), encoding="utf-8")
    return folder


def given(here: Path) -> dict[str, Any]:
    made: dict[str, Any] = yaml.safe_load((here / "r.yaml").read_text(encoding="utf-8"))
    return made


def grid(here: Path, *sweeps: str, overrides: tuple[str, ...] = ()) -> list[Combination]:
    return combinations(given(here), overrides, read_axes(sweeps), "r.yaml")


def arguments(here: Path, out: Path, *more: str) -> list[str]:
    return ["train", str(here / "r.yaml"), "--data-root", str(here / "data"), "--out", str(out), *more]


def weights(folder: Path) -> dict[str, str]:
    return {path.parent.parent.name: sha256_file(path) for path in folder.glob("*/model/model.safetensors")}


# The grid ---------------------------------------------------------------------------------------------


def test_all_combinations_with_short_names_whole_keys_and_list_items(here: Path) -> None:
    made = grid(here, "lr=1e-4,3e-4", "seed=0,1,2", "data.train.0.weight=1,2")
    assert len(made) == 12
    assert {each.recipe.train.optimizer.lr for each in made} == {1e-4, 3e-4}
    assert {each.recipe.seed for each in made} == {0, 1, 2}
    assert {each.recipe.data.train[0].weight for each in made} == {1, 2}
    assert made[1].values == {"lr": 1e-4, "seed": 0, "data.train.0.weight": 2}
    assert len({each.name for each in made}) == 12


def test_a_value_is_yaml_and_may_hold_commas(here: Path) -> None:
    made = grid(here, "train.optimizer.betas=[0.9, 0.98],[0.9, 0.999]", "warmup=6%,2 steps")
    assert [each.recipe.train.optimizer.betas for each in made[::2]] == [(0.9, 0.98), (0.9, 0.999)]  # type: ignore[union-attr]


def test_names_are_stable_and_can_be_folders(here: Path) -> None:
    one, other = grid(here, "lr=1e-4", "seed=3"), grid(here, "seed=3", "train.optimizer.lr=0.0001")
    assert one[0].name == other[0].name == "lr-0.0001_seed-3"
    paths = grid(here, "model={from: ../a/b},{from: ../a-b}", overrides=("tokenizer={from: model}",))
    names = [each.name for each in paths]
    assert len(set(names)) == 2
    assert not any(set("/{ ") & set(name) for name in names)


@pytest.mark.parametrize(("sweeps", "faults", "mend"), [
    (["sed=1", "lr"], ["no short name `sed`", "not a key with its values: lr"], "did you mean `seed`?"),
    (["hidden_size=8,16"], ["no short name `hidden_size`"], "model.hidden_size"),
    (["lr=fast,1e-3", "model.hiden_size=8", "steps=0"],
     ["`train.optimizer.lr` (`fast`)", "unknown key `model.hiden_size`", "`train.steps`"],
     "did you mean `hidden_size`?"),
    (["lr=1e-3,0.001"], ["a value stands twice"], "each once"),
    (["lr="], ["no value"], "--sweep lr=1e-4,3e-4"),
    (["lr=1e-3", "train.optimizer.lr=1e-4"], ["`train.optimizer.lr` is swept twice"], "one --sweep"),
    (["batch_tokens=100,200"], ["`train.batch_tokens` is both set and swept"], "give it once"),
    (["data.train.7.weight=1,2"], ["the list has 1 items"], "count from 0"),
])
def test_all_faults_are_said_before_anything_is_trained(
        here: Path, tmp_path: Path, wenmo: Command, sweeps: list[str], faults: list[str], mend: str) -> None:
    options = [part for sweep in sweeps for part in ("--sweep", sweep)]
    result = wenmo(*arguments(here, tmp_path / "out", "train.batch_tokens=300", *options))
    assert result.code == 2
    assert all(fault in result.message[0] for fault in faults), result.err
    assert mend in result.message[2]
    assert result.err.count("`hidden_size`") <= 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("more", "fault"), [
    (("--sweep-by", "accuracy"), "does nothing without --sweep"),
    (("--sweep", "seed=0,1", "--sweep-by", "acuracy"), "no metric `acuracy`"),
    (("--sweep", "seed=0,1", "data.choose.carve=0"), "needs rows to choose by"),
    (("--sweep", "train.best={metric: accuracy},{metric: loss}"), "by different metrics"),
])
def test_nothing_to_choose_by(here: Path, tmp_path: Path, wenmo: Command, more: tuple[str, ...], fault: str) -> None:
    result = wenmo("-q", *arguments(here, tmp_path / "out", *more))
    assert result.code == 2
    assert fault in result.err
    assert not list(tmp_path.glob("out/*/model"))


def test_a_missing_file_is_found_before_the_first_run(here: Path, tmp_path: Path, wenmo: Command) -> None:
    result = wenmo("-q", *arguments(here, tmp_path / "out", "--sweep", "data.train.0.path=reviews-train.csv,none.csv"))
    assert result.code == 1
    assert "none.csv" in result.err
    assert not (tmp_path / "out").exists()


# The runs ---------------------------------------------------------------------------------------------


SWEEP = ("--sweep", "lr=1e-3,1e30", "--sweep", "seed=0,1", "--sweep-by", "accuracy")


@pytest.fixture(scope="module")
def whole(here: Path) -> Path:
    """A sweep whose second rate is far too high."""
    code = in_child(arguments(here, here / "whole", *SWEEP))
    assert code == 1  # two have failed
    return here / "whole"


def in_child(command: list[str], kill_at: tuple[Path, int] | None = None) -> int | None:
    """The exit code of `wenmo …` in a process of its own; with SIGKILL once a log has so many lines."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["wenmo.cli", "wenmo.stages.sweep", "torch.utils.tensorboard"])
    process = context.Process(target=run_main, args=(command,))
    process.start()
    while kill_at is not None and process.is_alive():
        log, lines = kill_at
        if log.exists() and log.read_text(encoding="utf-8").count("\n") >= lines:
            process.kill()
        time.sleep(0.001)
    process.join()
    return process.exitcode


def run_main(command: list[str]) -> None:
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (the process's own)
    sys.argv = ["wenmo", "-q", *command]
    main()


def told(folder: Path) -> dict[str, Any]:
    """sweep.json without its times and the folder."""
    record = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    return {"runs": [{key: value for key, value in run.items() if key != "seconds"} for run in record["runs"]],
            "settings": record["settings"], "best": record["best"]}


def test_a_failed_run_does_not_stop_the_others(whole: Path) -> None:
    runs = told(whole)["runs"]
    assert [(run["values"], run["status"]) for run in runs] == [
        ({"lr": 1e-3, "seed": 0}, FINISHED), ({"lr": 1e-3, "seed": 1}, FINISHED),
        ({"lr": 1e30, "seed": 0}, FAILED), ({"lr": 1e30, "seed": 1}, FAILED)]
    assert "nan" in runs[2]["error"]
    assert set(weights(whole)) == {"lr-0.001_seed-0", "lr-0.001_seed-1"}


def test_a_run_of_a_sweep_is_what_train_makes(here: Path, whole: Path, tmp_path: Path) -> None:
    train(given(here), "train.optimizer.lr=1e-3", "seed=1", out=tmp_path / "alone" / "x", data_root=here / "data")
    assert weights(tmp_path / "alone")["x"] == weights(whole)["lr-0.001_seed-1"]


def test_killed_in_the_middle_it_ends_in_the_same(here: Path, whole: Path, tmp_path: Path) -> None:
    command = arguments(here, tmp_path / "out", *SWEEP)
    log = tmp_path / "out" / "lr-0.001_seed-1" / "metrics.jsonl"
    assert in_child(command, (log, 3)) == -signal.SIGKILL
    assert [run["status"] for run in told(tmp_path / "out")["runs"]] == [FINISHED, WAITING, WAITING, WAITING]
    first = (tmp_path / "out" / "lr-0.001_seed-0" / "model" / "config.json").stat().st_mtime_ns
    assert in_child(command) == 1
    assert weights(tmp_path / "out") == weights(whole)
    assert told(tmp_path / "out") == told(whole)
    assert (tmp_path / "out" / "lr-0.001_seed-0" / "model" / "config.json").stat().st_mtime_ns == first


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_asked_to_stop_it_saves_and_says_so(
        here: Path, tmp_path: Path, wenmo: Command, monkeypatch: pytest.MonkeyPatch, number: int, code: int) -> None:
    log, rows = Run.log, []

    def logged(run: Run, row: Mapping[str, Any]) -> None:
        log(run, row)
        rows.append(row)
        if len(rows) == 2:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Run, "log", logged)
    command = ("-q", *arguments(here, tmp_path / "out", "--sweep", "seed=0,1", "--json"))
    result = wenmo(*command)
    assert result.code == code
    assert [run["status"] for run in json.loads(result.out)["runs"]] == ["interrupted", "waiting"]
    result = wenmo(*command)
    assert result.code == 0
    assert [run["status"] for run in json.loads(result.out)["runs"]] == ["finished", "finished"]


def test_what_has_finished_is_not_repeated_and_more_can_be_added(
        here: Path, tmp_path: Path, wenmo: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []

    def seen(recipe: Recipe, out: Path, **more: Any) -> Trained:
        trained.append(out.name)
        return carry_out(recipe, out, **more)

    monkeypatch.setattr("wenmo.stages.sweep.carry_out", seen)
    for seeds in ("0,1", "0,1", "2,0"):
        assert wenmo("-q", *arguments(here, tmp_path / "out", "--sweep", f"seed={seeds}")).code == 0
    assert trained == ["seed-0", "seed-1", "seed-2"]
    record = json.loads((tmp_path / "out" / "sweep.json").read_text(encoding="utf-8"))
    assert [run["name"] for run in record["runs"]] == ["seed-2", "seed-0"]
    assert [run["name"] for run in record["others"]] == ["seed-1"]
    result = wenmo("-q", *arguments(here, tmp_path / "out", "train.batch_tokens=300", "--sweep", "seed=0"))
    assert result.code == 1  # the folder holds another run
    assert "begun with something else" in result.out


def test_folds_in_a_sweep(here: Path, tmp_path: Path, wenmo: Command) -> None:
    result = wenmo("-q", *arguments(here, tmp_path / "out", "data.choose={folds: 2}", "--sweep", "lr=1e-3,1e-2",
                                    "--json"))
    told = json.loads(result.out)
    assert result.code == 0, result.err
    for run in told["runs"]:
        report = json.loads((tmp_path / "out" / run["name"] / "report.json").read_text(encoding="utf-8"))
        for name, measured in report["metrics"].items():
            assert run["folds"][name] == pytest.approx(measured, abs=1e-6)
        assert not (tmp_path / "out" / run["name"] / "model").exists()
    assert len(told["within_noise"]) == 1  # of two folds the interval is wide


# The result -------------------------------------------------------------------------------------------


def swept(by: str, found: dict[tuple[Any, int], float | None]) -> Swept:
    runs = [SweptRun(f"lr-{lr}_seed-{seed}", {"lr": lr, "seed": seed}, FAILED if value is None else FINISHED,
                     metrics={} if value is None else {by: value}, error="nan" if value is None else "")
            for (lr, seed), value in found.items()]
    return Swept(Path("out"), by, runs)


def test_the_best_is_low_or_high_as_the_metric_wants_and_nan_is_never_it() -> None:
    values: dict[tuple[Any, int], float | None] = {
        (1, 0): 0.3, (2, 0): 0.1, (3, 0): math.nan, (4, 0): 0.2, (5, 0): None}
    for by, best in (("loss", "lr-2_seed-0"), ("accuracy", "lr-1_seed-0")):
        found = swept(by, values).best
        assert found is not None
        assert found.name == best
    assert swept("loss", {(1, 0): None}).best is None


def test_over_seeds_mean_spread_and_what_is_within_noise() -> None:
    result = swept("accuracy", {(1, 0): 0.80, (1, 1): 0.82, (1, 2): 0.84, (2, 0): 0.83, (2, 1): 0.83, (2, 2): 0.86,
                                (3, 0): 0.30, (3, 1): 0.31, (3, 2): 0.32, (4, 0): 0.99, (4, 1): None, (4, 2): 0.98})
    told = result.as_dict()
    assert told["best_setting"] == {"lr": 2}  # that of 4 has lost a seed
    assert told["best"] == "lr-4_seed-0"
    assert told["settings"][0]["value"] == pytest.approx(0.82)
    assert told["settings"][0]["sd"] == pytest.approx(0.02)
    assert told["settings"][0]["high"] == pytest.approx(0.82 + 4.3027 * 0.02 / math.sqrt(3), abs=1e-5)
    assert told["within_noise"] == [{"lr": 1}]
    assert result.exit_code == 1


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_table_says_it(monkeypatch: pytest.MonkeyPatch, language: str) -> None:
    monkeypatch.setenv("WENMO_LANG", language)
    result = swept("accuracy", {(1, 0): 0.80, (1, 1): 0.82, (2, 0): 0.83, (2, 1): 0.83, (3, 0): None, (3, 1): 0.1})
    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(result.renderable())
    shown = console.export_text()
    for word in {"en": ("★ best", "within noise", "failed", "0.825 ± 0.014", "lr=2"),
                 "zh": ("★ 最佳", "在噪声之内", "失败", "0.825 ± 0.014", "lr=2")}[language][:3]:
        assert word in shown
    assert "lr=2" in shown


def test_a_run_survives_its_json() -> None:
    run = SweptRun("lr-1", {"lr": 1}, FINISHED, "f" * 64, {"loss": 0.5, "odd": math.nan}, {}, {}, 3, 100, 1.5)
    again = SweptRun.of(json.loads(json.dumps(run.as_dict())))
    assert math.isnan(again.metrics["odd"])
    assert again.as_dict() == run.as_dict()


def test_a_misspelt_sweep_raises_in_python_too() -> None:
    with pytest.raises(RecipeError, match="no short name"):
        read_axes(["sed=1"])
