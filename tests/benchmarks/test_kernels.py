"""The kernel benchmark runs, its result has the form that readers rely on, and its verdicts follow from its figures."""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from project_paths import ROOT

from flawscope import __version__
from flawscope.cpp_ext import HAVE_NATIVE, reference
from flawscope.errors import ArgumentError, FlawscopeError

BENCHMARKS = ROOT / "benchmarks"
SCRIPT = BENCHMARKS / "kernels.py"

sys.path.insert(0, str(BENCHMARKS))  # its scripts import each other by name, as when one of them is run
kernels = importlib.import_module("kernels")
measure = importlib.import_module("kernels_measure")
kcenter = importlib.import_module("kernels_kcenter")
nearest = importlib.import_module("kernels_nearest")
tables = importlib.import_module("kernels_tables")

needs_rivals = [
    pytest.mark.skipif(find_spec("faiss") is None, reason="needs faiss-cpu (dependency group bench)"),
    pytest.mark.skipif(find_spec("threadpoolctl") is None, reason="needs threadpoolctl (dependency group bench)"),
    pytest.mark.skipif(not HAVE_NATIVE, reason="needs the compiled kernels"),
]


def run_script(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The result of --quick, and what it printed."""
    out = tmp_path_factory.mktemp("kernels") / "kernels--cpu.json"
    process = run_script("--quick", "--out", str(out))
    assert process.returncode == 0, process.stderr
    return out, process.stdout


def check_form(document: dict[str, Any]) -> None:
    assert document["suite"] == "kernels"
    assert document["settings"]["threads"] >= 1
    assert document["machine"]["simd_level"] != "none"
    assert document["machine"]["sgemm_gflops"] > 0
    assert len(document["machine"]["load_average"]) == 3
    assert {"faiss-cpu", "threadpoolctl", "torch", "numpy", "kernels"} <= document["versions"].keys()
    assert document["cuda"] in ("not built", "compiled, not run")
    parts = [part for part in kernels.PARTS if part in document]
    assert parts
    for part in parts:
        assert document[part]["rows"]
        assert document[part]["conditions"]["seconds"] > 0
    # What is claimed is worked out again from the cases.
    assert document["targets"] == [row for part in parts for row in kernels.PARTS[part].targets(document[part])]
    for row in document["targets"]:
        if row["required"] is not None:
            is_reached = row["worst"] <= row["required"] if row["unit"] == "MB" else row["worst"] >= row["required"]
            assert row["met"] is is_reached


def check_ratios(document: dict[str, Any]) -> None:
    rows = [(row, "bank") for row in document.get("nearest", {"rows": []})["rows"]]
    rows += [(row, "window") for row in document.get("window", {"rows": []})["rows"]]
    for part in ("kcenter", "mahalanobis"):
        rows += [(row, "flawscope") for row in document.get(part, {"rows": []})["rows"]]
    for row, ours in rows:
        for rival, ratio in row["ratios"].items():
            theirs = row["contestants"][row["sgemm"] if rival == "sgemm" else rival]
            assert math.isclose(ratio, theirs["median_s"] / row["contestants"][ours]["median_s"], rel_tol=1e-9)


@pytest.mark.parametrize("path", sorted((BENCHMARKS / "results").rglob("*.json")), ids=lambda path: path.name)
def test_a_committed_result_was_measured_in_full_and_its_verdicts_follow_from_its_figures(path: Path) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    if document["suite"] != "kernels":
        assert not path.name.startswith("kernels--")
        return
    check_form(document)
    check_ratios(document)
    assert not document["settings"]["quick"]
    measured = [part for part in kernels.PARTS if part in document]
    # A part that was added later is measured on the machine of the day, and has a file of its own.
    of_one_part = path.name.removeprefix("kernels--").removesuffix(".json")
    assert measured == [of_one_part] if of_one_part in kernels.PARTS else {*measured} >= {"nearest", "kcenter"}
    for part in measured:
        # Rivals that wait for each other suffer most from a busy machine: such a ratio would flatter us.
        assert (document[part]["conditions"]["share_of_cores_elsewhere"] or 0) <= tables.BUSY_ELSEWHERE
    if "nearest" in document:
        assert {"mahalanobis", "memory"} <= set(measured)
        assert {"anomalib_shipped", "anomalib_unprojected"} <= document["kcenter"]["rows"][0]["contestants"].keys()
        assert len({(row["N"], row["M"], row["D"]) for row in document["nearest"]["rows"]}) == 24


class TestQuick:
    pytestmark = needs_rivals

    def test_every_part_runs_and_the_verdicts_follow_from_the_figures(self, quick: tuple[Path, str]) -> None:
        document = json.loads(quick[0].read_text(encoding="utf-8"))
        check_form(document)
        check_ratios(document)
        assert document["settings"]["quick"]
        assert all(part in document for part in kernels.PARTS)

    def test_every_case_and_every_target_is_in_the_tables(self, quick: tuple[Path, str]) -> None:
        document = json.loads(quick[0].read_text(encoding="utf-8"))
        for row in document["targets"]:
            assert row["claim"] in quick[1]
        shown = quick[1].replace(" (!)", "")  # the mark of a busy machine
        for text in (
            "784 × 1024 × 128, 9",
            "784 × 1024 × 128, int8",
            "2000 × 128, 50, gaussian",
            "784 × 100, 1, full",
            "28 × 28, 784 × 128, 1",
        ):
            assert text in shown

    def test_selections_and_stored_rows_are_as_good_as_they_claim(self, quick: tuple[Path, str]) -> None:
        document = json.loads(quick[0].read_text(encoding="utf-8"))
        for row in document["kcenter"]["rows"]:
            assert row["same_rows"]["flawscope"] == 1
        for row in document["nearest"]["storages"]:
            assert 0 <= row["recall"] <= 1
            if row["storage"] == "float16":
                # Up to rounding; int8 rounds the query as well, about which its bound says nothing.
                assert row["largest_excess"] <= 2 * row["error_bound"] + 1e-5

    def test_one_part_is_measured_again_and_the_others_are_kept(self, quick: tuple[Path, str], tmp_path: Path) -> None:
        out = tmp_path / "kernels--cpu.json"
        before = json.loads(quick[0].read_text(encoding="utf-8"))
        out.write_text(json.dumps(before), encoding="utf-8")
        process = run_script("--quick", "--only", "memory", "--out", str(out))
        assert process.returncode == 0, process.stderr
        after = json.loads(out.read_text(encoding="utf-8"))
        assert {part: before[part] == after[part] for part in kernels.PARTS} == {
            "nearest": True,
            "window": True,
            "kcenter": True,
            "mahalanobis": True,
            "memory": False,
        }
        assert [row["claim"] for row in after["targets"]] == [row["claim"] for row in before["targets"]]

    def test_without_out_quick_writes_nothing(self) -> None:
        options = kernels.parse_arguments(["--quick"])
        assert options.out is None
        assert kernels.parse_arguments([]).out == BENCHMARKS / "results" / __version__ / "kernels--cpu.json"


@pytest.mark.parametrize(("module", "package"), [("faiss", "faiss-cpu"), ("threadpoolctl", "threadpoolctl")])
@pytest.mark.long
def test_a_missing_rival_is_one_sentence_and_status_two(tmp_path: Path, module: str, package: str) -> None:
    # Shadows it, so that the claim is tested where it is installed too.
    (tmp_path / f"{module}.py").write_text(f"raise ModuleNotFoundError('no {module}', name='{module}')")
    process = run_script("--quick", PYTHONPATH=str(tmp_path))
    assert process.returncode == 2
    assert process.stderr.startswith(
        f"error: {sys.executable}: expected an environment with the rivals, got one without"
    )
    assert package in process.stderr.partition("Install them with: pip install ")[2].split()
    assert process.stdout == ""


@pytest.mark.skipif(any(mark.args[0] for mark in needs_rivals[:2]), reason="needs the rivals")
def test_kernels_that_are_not_compiled_are_not_measured() -> None:
    process = run_script("--quick", FLAWSCOPE_NATIVE="0")
    assert process.returncode == 2
    assert "kernels: expected compiled ones to measure, got reference (NumPy)" in process.stderr


def test_an_environment_without_anomalib_is_told_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "anomalib.py").write_text("raise ModuleNotFoundError('no anomalib', name='anomalib')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(FlawscopeError, match=r"got status 2: error: .* got one without anomalib; make one with"):
        kcenter.run_anomalib(Path(sys.executable), np.zeros((4, 2), np.float32), 2, 0, 1, 1)


@pytest.mark.parametrize("changed", ["settings", "versions", "machine"])
def test_parts_of_another_run_are_not_mixed_in(tmp_path: Path, changed: str) -> None:
    document = {"settings": {"seed": 0}, "versions": {"torch": "1"}, "machine": {"cpu": "a"}}
    out = tmp_path / "kernels--cpu.json"
    out.write_text(json.dumps(document | {"memory": {"rows": []}, "nearest": {"rows": []}}), encoding="utf-8")
    options = kernels.parse_arguments(["--only", "nearest", "--out", str(out)])
    assert kernels.earlier_parts(options, document) == {"memory": {"rows": []}}
    with pytest.raises(ArgumentError, match=f"expected the same {changed} to keep its other parts, got others"):
        kernels.earlier_parts(options, document | {changed: {next(iter(document[changed])): "other"}})


def test_a_target_is_met_only_where_every_case_reaches_it() -> None:
    cases = {"a": 2.0, "b": 8.0}
    met = measure.target("times", 2.0, cases)
    assert (met["met"], met["cases_met"], met["worst"], met["worst_case"]) == (True, 2, 2.0, "a")
    assert math.isclose(met["geometric_mean"], 4.0)
    missed = measure.target("times", 2.1, cases)
    assert (missed["met"], missed["cases_met"]) == (False, 1)
    memory = measure.target("memory", 4, cases, "MB")
    assert (memory["met"], memory["cases_met"], memory["worst_case"]) == (False, 1, "b")
    assert measure.target("shown", None, cases)["met"] is None
    assert measure.target("times", 2.0, {}) is None


def test_contestants_take_turns_and_short_calls_are_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    order = []
    monkeypatch.setattr(measure, "rest", lambda: order.append("rest"))
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])

    def call(name: str, seconds: float) -> None:
        order.append(name)
        clock[0] += seconds

    contestants = {"short": lambda: call("short", 0.0201), "long": lambda: call("long", 2.0)}
    timings = measure.race(contestants, seconds=0, least=2)
    assert order == ["short", "long", *(["rest", "short", "short", "short", "short", "rest", "long"] * 2)]
    assert (timings["short"]["rounds"], timings["short"]["calls"]) == (2, 6)
    assert math.isclose(timings["short"]["median_s"], 0.0201)
    assert math.isclose(timings["long"]["median_s"], 2.0)
    assert timings["long"]["iqr_s"] < 1e-9


def test_patches_share_centres_but_no_rows_between_streams() -> None:
    bank = measure.patches("clustered", 5000, 8, seed=0)
    assert np.array_equal(bank, measure.patches("clustered", 5000, 8, seed=0))
    assert bank.dtype == np.float32
    assert bank.min() == 0
    queries = measure.patches("clustered", 5000, 8, seed=0, stream=1)
    assert not np.array_equal(bank, queries)
    # With centres of their own the nearest rows would be as far away as any.
    shared, _ = reference.nearest(queries, bank, 1)
    apart, _ = reference.nearest(queries, measure.patches("clustered", 5000, 8, seed=1), 1)
    assert shared.mean() < 0.8 * apart.mean()


@pytest.mark.parametrize("loop", ["numpy_loop", "torch_loop"])
def test_the_plain_loops_select_what_the_definition_selects(loop: str) -> None:
    features = np.random.default_rng(0).integers(-9, 10, (300, 5)).astype(np.float32)
    for seed in range(3):
        first = kcenter.first_row(len(features), seed)
        selection = getattr(kcenter, loop)(features, 40, first)
        assert np.array_equal(selection, reference.kcenter_greedy(features, 40, seed))


def test_a_contestant_that_finds_other_distances_is_refused() -> None:
    class Wrong:
        calls = {  # noqa: RUF012
            "bank/1": lambda: (np.zeros((2, 1), np.float32), None),
            "faiss/1": lambda: (np.full((2, 1), np.nan, np.float32), None),
        }
        largest_error = nearest.Contestants.largest_error
        _scale = 1.0

    with pytest.raises(FlawscopeError, match="nearest, faiss/1: expected the distances of bank/1"):
        nearest.first_round(Wrong())


def test_the_shapes_are_those_of_the_method() -> None:
    assert len(set(nearest.shapes(quick=False))) == 24
    assert (6272, 65536, 1536) in nearest.shapes(quick=False)
    assert (1_000_000, 384, 10_000) in kcenter.growth_shapes(quick=False)
