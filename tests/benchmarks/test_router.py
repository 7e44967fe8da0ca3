"""The router's benchmark runs, its rows follow from its runs, and it says nothing of speed where scores differ."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from benchmark_scripts import load_script
from project_paths import ROOT

from flawscope.errors import FlawscopeError

SCRIPT = ROOT / "benchmarks" / "router.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("router")


def run(bundles: int, shares: bool, value: float, scores: tuple[str, ...] = ("0x1p+0",)) -> dict[str, Any]:
    figures = {"load_s": value, "uss_mb": 50.0, "growth_mb": 9.0, "staying_ms": 10.0, "alternating_ms": 10.0 + value}
    return {
        "bundles": bundles,
        "shares": shares,
        "sessions": 1 if shares else bundles,
        "scores": list(scores),
        **figures,
    }


def test_rows_are_medians_and_a_change_is_the_difference_of_the_orders(script: ModuleType) -> None:
    runs = [run(2, shares, value) for shares in (True, False) for value in (1.0, 3.0, 2.0)]
    shared, own = script.summarise(runs)
    assert (shared["bundles"], shared["shares"], shared["sessions"], shared["runs"]) == (2, True, 1, 3)
    assert (own["shares"], own["sessions"]) == (False, 2)
    assert (shared["load_s"], shared["change_ms"], shared["change_in_images"]) == (2.0, 2.0, 0.2)
    assert shared["loading_in_images"] == pytest.approx(100.0)  # 1 s a bundle


def test_other_scores_with_sharing_are_an_error_and_no_row(script: ModuleType) -> None:
    runs = [run(2, True, 1.0), run(2, False, 1.0, ("0x1.0000000000001p+0",))]
    with pytest.raises(FlawscopeError, match="2 bundles: expected equal scores with and without sharing, got others"):
        script.summarise(runs)


@pytest.mark.slow
def test_it_runs(tmp_path: Path) -> None:
    out = tmp_path / "router--quick.json"
    process = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick", "--out", str(out)], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    document = json.loads(out.read_text(encoding="utf-8"))
    assert (document["suite"], document["settings"]["weights"]) == ("router", "scattering")
    cases = [(row["bundles"], row["shares"], row["sessions"]) for row in document["rows"]]
    assert cases == [(1, True, 1), (1, False, 1), (2, True, 1), (2, False, 2)]
    for row in document["rows"]:
        assert min(row[figure] for figure in ("load_s", "uss_mb", "staying_ms", "alternating_ms")) > 0
    assert str(tmp_path) not in out.read_text(encoding="utf-8")
