"""The plumbing of bench/: rounds alternate, peers are pinned, the page says what was found, and what was not."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import small_data
from bench import PARTS, environments, page, plan, pretraining_curve, rounds, scaling
from bench.plot import plot
from wenmo.files import read_jsonl, write_jsonl

PEERS = Path(__file__).parent.parent / "bench" / "peers"


def test_rounds_alternate_and_ratios_are_of_one_round() -> None:
    calls: list[str] = []

    def side(name: str, speeds: list[float]) -> Callable[[], float]:
        left = iter(speeds)

        def run() -> float:
            calls.append(name)
            return next(left)

        return run

    found = rounds.alternate({"ours": side("ours", [9.0, 2.0, 4.0, 40.0]), "peer": side("peer", [9.0, 1.0, 4.0, 10.0])},
                             rounds=3)
    assert calls == ["ours", "peer", "ours", "peer", "peer", "ours", "ours", "peer"]
    assert found["medians"] == {"ours": 4.0, "peer": 4.0}  # without the round that warms up
    assert found["ratios"]["peer"] == {"median": 2.0, "low": 1.0, "high": 4.0}


def test_every_package_of_a_peer_is_pinned() -> None:
    locks = sorted(PEERS.glob("*.txt"))
    assert locks
    for path in locks:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
        assert lines
        for line in lines:
            assert re.match(r"[A-Za-z0-9._-]+==[^ ]+", line), f"{path.name}: {line}"


def test_a_program_answers_until_it_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "peers").mkdir()
    (tmp_path / "peers" / "program.py").write_bytes((PEERS / "program.py").read_bytes())
    (tmp_path / "peers" / "doubling.py").write_text(
        "import os\nfrom program import given, serve\nprint('a library talks')\n"
        "serve({'got': given(), 'threads': os.environ['OMP_NUM_THREADS'], 'own': os.environ['OWN']},\n"
        "      lambda asked: {'twice': 2 * asked['x']})\n", encoding="utf-8")
    monkeypatch.setattr(environments, "BENCH", tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("WENMO_BENCH_PYTHON_DOUBLER", sys.executable)
    with environments.Program("doubler", "doubling.py", {"a": 1}, variables={"OWN": "yes"}) as program:
        assert program.ready == {"got": {"a": 1}, "threads": "3", "own": "yes"}
        assert [program.ask({"x": x})["twice"] for x in (1, 21)] == [2, 42]
        with pytest.raises(RuntimeError, match=r"doubling.py ended with exit code 1"):
            program.ask({"not x": 1})


def test_an_environment_is_made_again_only_where_its_lock_has_changed(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[Any], **_: Any) -> None:
        commands.append([str(part) for part in command])
        (tmp_path / ".bench" / "some").mkdir(parents=True, exist_ok=True)

    (tmp_path / "peers").mkdir()
    lock = tmp_path / "peers" / "some.txt"
    lock.write_text("numpy==1.0\n", encoding="utf-8")
    monkeypatch.setattr(environments, "BENCH", tmp_path)
    monkeypatch.setattr(environments, "ENVIRONMENTS", tmp_path / ".bench")
    monkeypatch.setattr("subprocess.run", run)
    first = environments.python("some")
    assert len(commands) == 2
    assert {"--no-deps", str(lock)} < set(commands[1])
    assert environments.python("some") == first
    assert len(commands) == 2
    lock.write_text("numpy==2.0\n", encoding="utf-8")
    environments.python("some")
    assert len(commands) == 4


def test_the_page_tells_reached_from_missed_and_says_why_there_is_no_figure(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "OUT", tmp_path)
    monkeypatch.setattr(page, "OUT", tmp_path)
    monkeypatch.setattr(page, "PAGE", tmp_path / "performance.md")
    rounds.write("serving", {"title": "Writing", "title_zh": "生成", "versions": {"peer": "1.2"}, "rows": [
        rounds.row("a", "tok/s", 1234.5, "one", 617.25, {"median": 2.0, "low": 1.9, "high": 2.1}, "≥ 1.5 ×", True),
        rounds.row("b|c", "s", 0.1234, "two", 0.1, {"median": 0.81, "low": 0.8, "high": 0.9}, "≥ 1 ×", False),
        rounds.row("d", "tok/s", 5.0, "three", None, goal="≥ 3 ×", note="it ended with\nexit code 1")]})
    page.write()
    text = (tmp_path / "performance.md").read_text(encoding="utf-8")
    assert "| a | ≥ 1.5 × | 1,234 tok/s | one | 617 tok/s | 2.00 × (1.90–2.10) | ✓ |  |" in text
    assert "| b\\|c | ≥ 1 × | 0.123 s | two | 0.1 s | 0.81 × (0.80–0.90) | ✗ |  |" in text
    assert "| d | ≥ 3 × | 5 tok/s | three | – | – |  | it ended with exit code 1 |" in text
    assert "| Writing 生成 | 1 of 2 |" in text
    assert "peer 1.2" in text
    assert json.loads((tmp_path / "serving.json").read_text(encoding="utf-8"))["machine"]["cores"] >= 1


def test_plots_stand_beside_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "OUT", tmp_path)
    monkeypatch.setattr(page, "OUT", tmp_path)
    monkeypatch.setattr(page, "PAGE", tmp_path / "performance.md")
    lines = {"ours": [[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]], "a peer's & more": [[1.0, 3.0], [2.0, 3.0], [3.0, 3.0]]}
    rounds.write("scaling", {"title": "Cost", "rows": [], "plots": [plot("cost", "Cost 开销", "size", "ms", lines)]})
    page.write()
    assert "![Cost 开销](plots/cost.svg)" in page.PAGE.read_text(encoding="utf-8")
    svg = ElementTree.parse(tmp_path / "plots" / "cost.svg").getroot()
    name = "{http://www.w3.org/2000/svg}"
    assert svg.tag == f"{name}svg"
    said = [each.text for each in svg.iter(f"{name}text")]
    assert {"Cost 开销", *lines} <= set(said)
    drawn = [each.get("d") for each in svg.iter(f"{name}path") if "L" in str(each.get("d"))]
    assert len(drawn) == len(lines)


def test_cost_is_drawn_against_size_length_and_tokens() -> None:
    shapes = {**scaling.SHAPES, **scaling.T_SHAPES, **scaling.B_SHAPES}
    speeds = {"Wenmo": 2000.0, scaling.EAGER.name: 1000.0, scaling.NANO.name: 500.0}
    found = {name: {"parameters": 1e6 * number, "medians": speeds} for number, name in enumerate(shapes, 1)}
    size, length, tokens = scaling.plots(found, dict.fromkeys(shapes, 0.001))
    assert size["series"]["Wenmo"] == [[float(number), 0.5] for number in range(1, 6)]
    assert length["series"]["the formula 公式"] == [[float(T), 1.0] for T in (256, 512, 1024, 2048)]
    assert tokens["series"][scaling.EAGER.name] == [[T, T / 1000] for T in (1024.0, 2048.0, 4096.0, 8192.0)]


def test_a_forecast_is_judged_by_how_far_it_is_off() -> None:
    def reached(**off: float) -> list[bool]:
        each = {"recipe": "some", "range": [90.0, 110.0], "disk_bytes": [2**20, 2**20],
                "seconds": [100.0 * off.get("time", 1), 100.0],
                "peak_memory_bytes": [2**30 * off.get("memory", 1), 2**30]}
        return [row["reached"] for row in plan.rows_of(each)]

    assert reached() == [True, True]
    assert reached(time=1.14, memory=0.91) == [True, True]
    assert reached(time=0.84, memory=1.11) == [False, False]


def test_every_long_proof_has_a_make_target() -> None:
    tests = Path(__file__).parent
    targets = (tests.parent / "Makefile").read_text(encoding="utf-8")
    ran = {name for line in targets.splitlines() if "-m long" in line for name in re.findall(r"tests/(\w+\.py)", line)}
    assert {path.name for path in tests.glob("test_*.py") if re.search(r"mark\.long\b", path.read_text("utf-8"))} == ran


def test_the_parts_are_modules() -> None:
    for part in PARTS:
        assert importlib.util.find_spec(f"bench.{part}"), f"bench/{part}.py"


def test_the_curve_of_pretraining_goes_on_from_one_encoder(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    figures, out = small_data.write(tmp_path / "figures"), tmp_path / "curve"
    (figures / "shop").mkdir()
    for part, seed in (("train", 1), ("choose", 2), ("report", 3)):
        write_jsonl(figures / "shop" / f"{part}.jsonl",
                    [{"text": text, "label": label} for text, label in small_data.reviews(20, seed)])
    made = small_data.recipe("masked_lm", steps=10, batch_tokens=256, evaluate_every=5)
    made["model"]["max_position_embeddings"] = 128
    monkeypatch.setattr(pretraining_curve, "encoder", lambda threads: made)
    monkeypatch.setattr(pretraining_curve, "WARMUP", 2)

    def found(*arguments: str) -> list[dict[str, Any]]:
        monkeypatch.setattr(sys, "argv", ["", str(figures), "--out", str(out), *arguments])
        pretraining_curve.main()
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    assert found("--points", "10", "20", "--only", "encoder") == []
    first, second = found("--points", "10", "20", "--seeds", "1")
    assert (first["steps"], second["steps"]) == (10, 20)
    assert first["tokens"] < second["tokens"]
    assert 0 <= second["report"]["value"] <= 1
    rates = {row["step"]: row["lr"] for row in read_jsonl(out / "encoder-20" / "metrics.jsonl") if "lr" in row}
    assert rates[20] < rates[10] == pytest.approx(3 * rates[1])  # at the top after two steps of warm-up
    shared = [read_jsonl(out / name / "metrics.jsonl")[:2] for name in ("encoder-10", "encoder-20", "trunk")]
    assert shared[0] == shared[1] == shared[2]
    both = found("--points", "10", "--seeds", "2")[0]
    assert both["choose"]["each"][:1] == first["choose"]["each"]
    assert both["seconds"] == first["seconds"]  # nothing was trained twice
