"""The benchmark of workers: every way has its figures in one run, and another result ends it."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
from benchmark_scripts import load_script
from thread_executor import use_threads
from tiny_bundle import tiny_thresholds, write_tiny_bundle

from flawscope.runtime.scale.executors import EXECUTORS


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("scale_throughput")


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    write_tiny_bundle(tmp_path / "tiny.flaw", thresholds=tiny_thresholds(), min_area_px=1)
    (tmp_path / "images").mkdir()
    for number in range(6):
        assert cv2.imwrite(str(tmp_path / "images" / f"{number}.png"), np.full((24, 30, 3), 40 * number, np.uint8))
    given = [str(tmp_path / "tiny.flaw"), str(tmp_path / "images"), "--shard-size", "2", "--turns", "2"]
    return [*given, "--workers", "1", "--out", str(tmp_path / "out.json")]


@pytest.mark.slow
@pytest.mark.serial
def test_every_way_has_its_figures_beside_the_first(script: ModuleType, arguments: list[str], tmp_path: Path) -> None:
    script.main([*arguments, "--kinds", "threads", "processes"])
    text = (tmp_path / "out.json").read_text(encoding="utf-8")
    document = json.loads(text)
    assert document["suite"] == "scale_throughput"
    assert [row["kind"] for row in document["rows"]] == ["threads", "processes"]
    for row in document["rows"]:
        assert 0 < row["images_s"]["min"] <= row["images_s"]["median"] <= row["images_s"]["max"]
        memory = row["memory_mib"]
        assert 0 < memory["uss"] <= memory["pss"] <= memory["rss"]
    assert set(document["rows"][0]["times_first"].values()) == {1.0}
    assert str(tmp_path) not in text


def test_other_results_end_it(
    script: ModuleType, arguments: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_threads(monkeypatch)
    monkeypatch.setitem(EXECUTORS, "local", EXECUTORS["threads"])
    monkeypatch.setattr(script.Case, "lines", lambda case: [case.kind.encode()])
    with pytest.raises(SystemExit, match="processes: expected the results of threads, got others"):
        script.main([*arguments, "--kinds", "threads", "processes"])
