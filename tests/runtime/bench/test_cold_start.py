"""Cold start: real processes, whose parts add up."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from flawscope import cli
from flawscope.cpp_ext import HAVE_NATIVE
from flawscope.errors import BackendError
from flawscope.runtime import Inspector
from flawscope.runtime.bench import cold_start as cold_start_module
from flawscope.runtime.bench import measurement
from flawscope.runtime.bench.cold_start import PARTS, REPEATS, cold_start

pytestmark = pytest.mark.serial  # latencies and throughput are compared with each other


def test_parts_add_up_to_the_whole_and_the_median_is_that_of_the_runs(padim_bundle: Path) -> None:
    with Inspector.load(padim_bundle, "cpu") as inspector:
        figures = cold_start(inspector, padim_bundle)
    assert figures["processes"] == len(figures["runs_ms"]) == REPEATS
    for run in figures["runs_ms"]:
        assert list(run) == list(PARTS)
        assert all(value > 0 for value in run.values())
        assert sum(run[part] for part in PARTS[1:]) == pytest.approx(run["process"])
    for part in PARTS:
        assert figures["median_ms"][part] == statistics.median(run[part] for run in figures["runs_ms"])
    assert 10_000 < figures["rss_kib"] <= figures["peak_rss_kib"] < 2_000_000


def test_a_module_of_the_current_folder_is_not_taken_for_one_of_python(
    padim_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit('the wrong numpy')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cold_start_module, "REPEATS", 1)
    with Inspector.load(padim_bundle, "cpu") as inspector:
        assert cold_start(inspector, padim_bundle)["processes"] == 1


def test_a_process_that_cannot_load_the_bundle_says_why(padim_bundle: Path, tmp_path: Path) -> None:
    with (
        Inspector.load(padim_bundle, "cpu") as inspector,
        pytest.raises(BackendError, match=r"cold start: expected a new process to do .*gone\.flaw.*--no-cold-start\."),
    ):
        cold_start(inspector, tmp_path / "gone.flaw")


def test_a_process_that_takes_for_ever_is_ended(padim_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cold_start_module, "_CODE", "import time; time.sleep(60)")
    monkeypatch.setattr(cold_start_module, "_TIMEOUT_S", 0.3)
    with (
        Inspector.load(padim_bundle, "cpu") as inspector,
        pytest.raises(BackendError, match=r"cold start: expected a decision within 0\.3 s, got none\."),
    ):
        cold_start(inspector, padim_bundle)


def test_where_engines_run_a_start_without_one_is_measured_too(
    padim_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[object, ...]] = []

    def run(arguments: list[str], variables: dict[str, str] | None = None, timeout_s: float | None = None) -> object:
        engines = None if variables is None else Path(variables["FLAWSCOPE_ENGINES"])
        calls.append((engines, engines is not None and list(engines.iterdir()) == [], timeout_s))
        return {**dict.fromkeys(PARTS, 10.0 * len(calls)), "memory": [1, 1]}

    monkeypatch.setattr(cold_start_module, "_run", run)
    with Inspector.load(padim_bundle, "cpu") as inspector:
        assert cold_start(inspector, padim_bundle)["without_engine_ms"] is None
        monkeypatch.setattr(Inspector, "backend", "tensorrt")
        figures = cold_start(inspector, padim_bundle)
    assert figures["without_engine_ms"] == dict.fromkeys(PARTS, 10.0 * len(calls))
    assert [engines is None for engines, *_ in calls] == [True] * (2 * REPEATS) + [False]
    engines, was_empty, timeout_s = calls[-1]
    assert was_empty
    assert isinstance(engines, Path)
    assert not engines.exists()
    assert timeout_s == 3600


@pytest.mark.parametrize("path", ["auto", "kernel"])
def test_a_new_process_is_asked_for_the_path_that_this_one_was_asked_for(
    padim_bundle: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """The path by name is refused where `auto` takes it with less: kernels of the CPU behind a device."""
    paths: list[str] = []

    def run(arguments: list[str], *_: object) -> dict[str, float]:
        paths.append(arguments[2])
        return {**dict.fromkeys(PARTS, 1.0), "memory": [1, 1]}  # type: ignore[dict-item]

    monkeypatch.setattr(cold_start_module, "_run", run)
    with Inspector.load(padim_bundle, "cpu", path) as inspector:
        assert (inspector.path, inspector.asked_path) == ("kernel" if HAVE_NATIVE else inspector.path, path)
        cold_start(inspector, padim_bundle)
    assert paths == [path] * REPEATS


def test_the_command_measures_it_unless_told_not_to(
    padim_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measurement, "WARM_UP_S", (0.0, 0.05))
    monkeypatch.setattr(cold_start_module, "REPEATS", 1)
    file = tmp_path / "bench.json"
    arguments = ["bench", str(padim_bundle), "--backend", "cpu", "--seconds", "0.1", "--json", str(file)]
    assert cli.run(arguments) == 0
    whole = json.loads(file.read_text())["cold_start"]["median_ms"]["process"]
    assert f"cold start: {whole:.0f} ms to the first decision (interpreter " in capsys.readouterr().out
