"""The soak of a line measures what it says, and has the verdict of every part."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
from benchmark_scripts import load_script
from line_project import png
from tiny_bundle import tiny_thresholds, write_tiny_bundle

for needed in ("httpx", "starlette", "uvicorn", "prometheus_client"):
    pytest.importorskip(needed, reason=f"{needed} is not installed")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("line_soak")


@pytest.mark.long
def test_every_part_has_a_verdict_and_a_broken_image_a_fault(script: ModuleType, tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "tiny.flaw", thresholds=tiny_thresholds(150.0))
    images = tmp_path / "images"
    images.mkdir()
    for value in (50, 100, 200):
        (images / f"{value}.png").write_bytes(png(value))
    given = [str(tmp_path / "tiny.flaw"), str(images), str(tmp_path / "state"), "--points", "8"]
    options = ["--minutes", "0.05", "--parts-per-s", "70", "--out", str(tmp_path / "out.json")]
    script.main([*given, *options])
    document = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    verdicts = document["verdicts"]
    assert sum(verdicts.values()) == document["parts"]
    assert verdicts.get("fault", 0) == document["parts"] // 100
    # Of three images one is rejected; broken ones are taken from all of them.
    assert abs(verdicts["accept"] - 2 * verdicts["reject"]) <= 2 + document["parts"] // 100
    assert document["account_holds"]
    assert document["exit_status"] == 0
    assert document["points"][-1]["parts"] <= document["parts"]
    assert all(point["resident_bytes"] > 1 << 20 and point["threads"] > 1 for point in document["points"])


def test_too_short_a_run_has_no_slope(script: ModuleType) -> None:
    points = [{"parts": float(part), "files": 3.0} for part in range(6)]
    with pytest.raises(SystemExit, match="at least 8 points"):
        script.slope(points, "files")
    grown = [*points, {"parts": 6.0, "files": 3.0}, {"parts": 7.0, "files": 3.0}]
    assert script.slope(grown, "files") == pytest.approx(0.0, abs=1e-9)
