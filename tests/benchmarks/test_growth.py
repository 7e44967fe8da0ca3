"""The growth benchmark: exponents are those of power laws, a run that was broken off goes on, and every case runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from benchmark_scripts import load_script
from hypothesis import given, settings
from hypothesis import strategies as st
from project_paths import ROOT

SCRIPT = ROOT / "benchmarks" / "growth.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("growth")


def run(n: int, ms: float | None, **more: Any) -> dict[str, Any]:
    return {"series": "search_by_rows", "axis": "rows", "system": "flawscope", "n": n, "ms": ms, **more}


@settings(max_examples=50, deadline=None)
@given(exponent=st.floats(-1, 3), factor=st.floats(0.001, 1000), points=st.integers(2, 5))
def test_exponents_are_those_of_a_power_law(script: ModuleType, exponent: float, factor: float, points: int) -> None:
    (row,) = script.exponents([run(10**k, factor * 10.0 ** (k * exponent), peak_kib=500) for k in range(1, points + 1)])
    assert row["ms"]["exponent"] == pytest.approx(exponent, abs=1e-6)
    assert row["ms"]["last"] == pytest.approx(exponent, abs=1e-6)
    assert row["peak_kib"]["exponent"] == pytest.approx(0, abs=1e-9)


def test_fixed_costs_hide_the_growth_of_all_points_but_not_of_the_last(script: ModuleType) -> None:
    (row,) = script.exponents([run(10**k, 100.0 + 10.0**k) for k in range(1, 6)])
    assert row["ms"]["exponent"] < 0.9 < row["ms"]["last"]


def test_a_system_that_failed_somewhere_has_the_exponents_of_its_other_points(script: ModuleType) -> None:
    failed = {key: value for key, value in run(1000, None, failed="no memory").items() if key != "ms"}
    (row,) = script.exponents([run(10, 1.0), run(100, 10.0), failed])
    assert row["ms"]["exponent"] == pytest.approx(1)
    (row,) = script.exponents([run(10, 1.0), failed])
    assert row == {"series": "search_by_rows", "system": "flawscope"}


def test_a_broken_off_run_goes_on_and_tries_again_what_failed(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, measured, is_broken = tmp_path / "growth.json", [], True

    def run_case(case: dict[str, Any], files: object, options: object) -> dict[str, Any]:
        measured.append((case["series"], case["system"], case["n"]))
        if is_broken and len(measured) == 2:
            return {"failed": "no memory"}
        if is_broken and len(measured) == 4:
            raise KeyboardInterrupt
        return {"ms": 1.0, "peak_kib": 1000}

    monkeypatch.setattr(script, "run_case", run_case)
    monkeypatch.setattr(script, "make_bundles", lambda *_: dict.fromkeys(((64, 50), (64, 200), (96, 50)), (out, out)))
    with pytest.raises(KeyboardInterrupt):
        script.main(["--quick", "--out", str(out)])
    first, is_broken = list(measured), False
    measured.clear()
    script.main(["--quick", "--out", str(out)])
    # The second failed and the fourth was interrupted; the first and the third are not measured again.
    assert measured[:2] == [first[1], first[3]]
    assert not {first[0], first[2]} & set(measured)
    assert len(json.loads(out.read_text(encoding="utf-8"))["runs"]) == len(set(first) | set(measured))
    measured.clear()
    script.main(["--quick", "--out", str(out)])
    assert measured == []
    with pytest.raises(SystemExit, match="expected the same settings to resume, got others"):
        script.main(["--quick", "--threads", "77", "--out", str(out)])


@pytest.mark.slow
def test_every_case_runs_in_a_process_of_its_own(script: ModuleType, tmp_path: Path) -> None:
    out, plot = tmp_path / "growth.json", tmp_path / "growth.svg"
    command = [sys.executable, str(SCRIPT), "--quick", "--out", str(out), "--plot", str(plot)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    document = json.loads(out.read_text(encoding="utf-8"))
    assert (document["suite"], document["settings"]["weights"]) == ("growth", "scattering")
    assert [run for run in document["runs"] if "failed" in run] == []
    assert {run["series"] for run in document["runs"]} == set(script.TITLES)
    for run_of in document["runs"]:
        assert run_of["ms"] > 0
        assert run_of["peak_kib"] >= run_of["before_kib"] > 10_000
    for row in document["exponents"]:
        assert set(row["ms"]) == set(row["peak_kib"]) == {"exponent", "last"}
    text = plot.read_text(encoding="utf-8")
    assert all(title in text for title in script.TITLES.values())
    assert str(tmp_path) not in out.read_text(encoding="utf-8")


STAND_IN = """
import torch

class KCenterGreedy:
    def __init__(self, embedding, sampling_ratio):
        self.features, self.count = embedding.reshape(len(embedding), -1), int(len(embedding) * sampling_ratio)

    def select_coreset_idxs(self):
        return list(range(self.count))
"""


def test_the_rivals_time_and_memory_are_read_as_its_script_writes_them(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "anomalib" / "models" / "components"
    package.mkdir(parents=True)
    for folder in (package, package.parent, package.parent.parent):
        (folder / "__init__.py").write_text("__version__ = '0'\n")
    (package / "sampling.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    case = {"n": 20, "patches": 4, "channels": 8, "bank_rows": 5, "threads": 1}
    got = script.run_rival(case, Path(sys.executable))
    assert got.get("failed") is None
    assert got["ms"] > 0
    assert got["calls"] == 1
    assert got["peak_kib"] > 1000
