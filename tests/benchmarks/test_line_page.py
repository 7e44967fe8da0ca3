"""What an open page costs is measured with a page that asks for what the page asks for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType

import pytest
from benchmark_scripts import load_script
from line_project import png
from project_paths import ROOT
from tiny_bundle import tiny_thresholds, write_tiny_bundle

for needed in ("starlette", "uvicorn", "prometheus_client"):
    pytest.importorskip(needed, reason=f"{needed} is not installed")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("line_page")


@pytest.mark.long
def test_each_turn_is_measured_with_a_page_and_without(script: ModuleType, tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "tiny.flaw", thresholds=tiny_thresholds(150.0))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(png(50))
    given = [str(tmp_path / "tiny.flaw"), str(tmp_path / "images"), str(tmp_path)]
    script.main([*given, "--count", "40", "--turns", "1", "--map", "--out", str(tmp_path / "out.json")])
    document = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert document["parts"] == 40
    asked = document["asked_per_s"]
    assert set(asked) == {"new", "state", "parts", "image"}, asked
    assert 0 < asked["image"] <= asked["parts"] <= asked["state"] <= 1.5 / script.PAUSE_S
    assert document["cost_ms"]["p50"] == document["with_ms"]["p50"] - document["without_ms"]["p50"]


def test_it_asks_as_often_as_the_page(script: ModuleType) -> None:
    source = (ROOT / "runtime" / "line" / "http" / "page" / "line.js").read_text(encoding="utf-8")
    found = {name: int(value) for name, value in re.findall(r"const (\w+) = (\d+);", source)}
    assert (found["PAUSE_MS"], found["LAST"]) == (1000 * script.PAUSE_S, script._LAST)
