"""The soak of the line's benchmark gives every part and says how memory grew."""

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
    return load_script("line")


@pytest.mark.long
def test_the_soak_alone(script: ModuleType, tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "tiny.flaw", thresholds=tiny_thresholds(150.0))
    images, journals = tmp_path / "images", tmp_path / "journals"
    images.mkdir()
    journals.mkdir()
    for value in (50, 100, 200):
        (images / f"{value}.png").write_bytes(png(value))
    given = [str(tmp_path / "tiny.flaw"), str(images), str(journals), "--stations", "--count", "12", "--backend", "cpu"]
    out = tmp_path / "out.json"
    script.main([*given, "--soak", "240", "--soak-points", "20", "--out", str(out)])
    document = json.loads(out.read_text(encoding="utf-8"))
    soak = document["soak"]
    assert document["rows"] == []
    assert soak["parts"] == 240
    # Two of three images are accepted.
    assert soak["verdicts"] == {"accept": 160, "reject": 80, "fault": 0}
    assert soak["points"]["parts"] == list(range(12, 241, 12))
    assert soak["bytes_per_part"]["from_part"] == 132
    assert soak["bytes_per_part"]["low"] <= soak["bytes_per_part"]["slope"] <= soak["bytes_per_part"]["high"]
    assert all(kib > 1024 for kib in soak["points"]["resident_kib"])
